"""py-libp2p 0.8.1, made safe to build on: every patch and work-around, in one place.

py-libp2p carries connections (TCP, Noise, yamux), streams and gossipsub. As it
comes, one bad stream ends the program, one cancelled write ends a connection,
250 accepted connections are all it ever accepts, and a peer decides how much
memory is filled. What is changed here is changed by subclasses and by our own
accepting, dialling and reading, so that nothing outside this package sees
another libp2p than the one it imported. Private methods are overridden, hence
one exact version, checked at import; each change has a test that fails without
it (``tests/net/test_libp2p_compat.py``), which tells on an upgrade what can go.

What the daemon says over all this is `node.network`'s; nobody else calls here,
and nobody outside imports libp2p.

| stock behaviour | instead |
|---|---|
| plaintext is accepted as "security" | Noise only, yamux only: `host.make_host` |
| an exception in a stream handler ends the program | `host.SturdyHost`: log, reset |
| an exception in any other task ends it too | `host.SturdyManager`: log, go on |
| an accepted connection holds its slot for ever | `node.host` serves it to its end |
| each step of a handshake has a limit of its own | `connections.secure`: one, its caller's |
| private networks nobody else understands | `transport.PrivateTCPStream`, as specified |
| a message in over 100 pieces is cut short | `transport.BufferedTCPStream` gathers |
| a cancelled write breaks the connection | `muxing.SafeYamux` finishes each frame |
| a writer polls for credit, and is reset after 5 s | `muxing.SafeStream` waits for the event |
| a full stream table blocks `open_stream` for ever | `muxing.SafeYamux` refuses |
| a peer opens streams, and sends, without any bound | `muxing.SafeYamux` refuses, then cuts |
| a stream that the peer never closes stays for ever | `muxing.SafeYamux` sweeps it |
| a close waits for a peer that does not read | `muxing.SafeYamux` cuts the socket |
| a reset, or a loss, reads as an orderly end | `streams.why_it_ended` tells |
| one address per dial, 250 ms late, then 60 s ban | `connections.dial` takes one address, now |
| a listener that breaks the handshake ends the dialler | `connections.dial` names it |
| whoever is in the address book is dialled by and by | `host.NoAutoConnector` never starts |
| every peer is asked who it is, in a task nobody guards | nobody is: `host.make_host` |
| answering pings keeps whoever has pinged | `host.answer_pings` |
| what a peer gossiped is kept for ever in ten tables | `gossip.Gossip.forget` |
| a peer that comes again at once loses its topics | `gossip.Gossip._handle_dead_peer` |
| SO_REUSEPORT lets two daemons share a port | listening sockets are trio's |
| gossip drops above 10 messages/s and 32 queued | `gossip.Gossip` and its limits |
| identify speaks of py-libp2p | it names shoal and its protocol's version: `host` |
| gossip keeps whatever control messages name | `gossip.Gossip` reads what concerns it |
"""

from __future__ import annotations

import logging
from importlib.metadata import version

from shoal.node.errors import ConfigError

SUPPORTED_VERSION = "0.8.1"
if version("libp2p") != SUPPORTED_VERSION:
    _message = f"libp2p {version('libp2p')} is installed, and shoal patches {SUPPORTED_VERSION}"
    raise ConfigError(
        _message,
        code="libp2p_version",
        hint=f"install the one that fits: pip install libp2p=={SUPPORTED_VERSION}",
    )

# libp2p logs every refused stream as an error. What an operator needs to know of
# it, our own events say.
_libp2p_log = logging.getLogger("libp2p")
_libp2p_log.handlers = [logging.NullHandler()]
_libp2p_log.propagate = False
