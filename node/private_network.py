"""libp2p's private networks: what goes over a TCP connection before anything else does.

The libp2p specification "Private Networks" (pre-shared keys, V1), as go-, js- and
rust-libp2p have it: each side sends a random nonce of 24 bytes, and from then on
every byte of its direction, multistream and Noise included, goes through XSalsa20
under the network's secret. Who lacks the secret gets bytes that tell nothing and
can say nothing that is understood.

The specification leaves it to the first thing said inside to show that the other
side has another secret. Both sides begin with the same 20 bytes there, so they are
looked at here, for two ends: the error can say what is wrong, and a listener can
keep silent. It sends its nonce and not one byte more until the dialler has shown
that it has the secret.

No IO: bytes go in, bytes come out. The stream round it is `libp2p_compat`'s, the
secret and its file are `swarm_key`'s.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import structlog

from shoal.crypto.xsalsa20 import NONCE_SIZE_BYTES, xsalsa20
from shoal.node.errors import OtherNetworkError

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.node.swarm_key import SwarmKey

MULTISTREAM_HEADER = b"\x13/multistream/1.0.0\n"
"""What either side of any libp2p connection over TCP says first."""

STRANGERS_LIMIT = 1000
"""Addresses of strangers that are remembered, so as to be logged once."""

_OPENING_SIZE_BYTES = NONCE_SIZE_BYTES + len(MULTISTREAM_HEADER)

log = structlog.get_logger(__name__)


class PrivateNetwork:
    """The network that this node is in, and the strangers that knocked at its door."""

    def __init__(self, key: SwarmKey) -> None:
        self.name = key.name
        self._secret = key.secret
        self._strangers: set[str] = set()

    def protect(self) -> Protection:
        """The protection of one new connection."""
        return Protection(self._secret)

    def turned_away(self, address: str, why: str) -> None:
        """Note in the log, once for each host, that a stranger was not let in.

        Args:
            address: Its multiaddr, with the passing port that it came from.
            why: What it did, as the end of a sentence.
        """
        host = address.rpartition("/tcp/")[0]
        if host in self._strangers or len(self._strangers) >= STRANGERS_LIMIT:
            return
        self._strangers.add(host)
        log.info(
            "a stranger was turned away; further attempts from its address are not logged",
            remote=host,
            network=self.name,
            why=why,
        )
        if len(self._strangers) == STRANGERS_LIMIT:
            log.warning(
                "strangers from other addresses are not logged any more", seen=STRANGERS_LIMIT
            )


class Protection:
    """The two key streams of one connection, and what is known of the other side."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._nonce = secrets.token_bytes(NONCE_SIZE_BYTES)
        self._nonce_unsent = True
        self._add_outgoing = xsalsa20(secret, self._nonce)
        self._add_incoming: Callable[[bytes], bytes] | None = None
        self._opening = b""

    @property
    def admitted(self) -> bool:
        """Whether the other side has shown that it has the secret."""
        return self._add_incoming is not None

    def nonce(self) -> bytes:
        """This side's nonce, the first time; b"" after it has gone out."""
        if not self._nonce_unsent:
            return b""
        self._nonce_unsent = False
        return self._nonce

    def protect(self, data: bytes) -> bytes:
        """Give what is to go out in place of ``data``, after all that was given before."""
        return self.nonce() + self._add_outgoing(data)

    def open(self, data: bytes) -> bytes:
        """Take in what came; gives what was said, b"" while that is not known yet.

        Raises:
            OtherNetworkError: The other side is in another network or in none.
        """
        if self._add_incoming is not None:
            return self._add_incoming(data)
        self._opening += data
        return self._look_at_opening()

    def ended(self) -> None:
        """Judge the end of what comes in.

        Raises:
            OtherNetworkError: The other side ended before it showed that it has the
                secret. Some that are in no private network do so without a word.
        """
        if self.admitted:
            return
        if not self._opening:
            raise OtherNetworkError("it ended the connection without a word, or has no room")
        raise OtherNetworkError("it ended the connection at what members begin with")

    def _look_at_opening(self) -> bytes:
        if self._opening.startswith(MULTISTREAM_HEADER):
            raise OtherNetworkError(
                "it speaks libp2p in the clear, so it is in no private network"
            )
        if len(self._opening) < _OPENING_SIZE_BYTES:
            return b""
        nonce, unread = self._opening[:NONCE_SIZE_BYTES], self._opening[NONCE_SIZE_BYTES:]
        add_incoming = xsalsa20(self._secret, nonce)
        said = add_incoming(unread)
        if not said.startswith(MULTISTREAM_HEADER):
            raise OtherNetworkError("it has another secret, or none")
        self._add_incoming, self._opening = add_incoming, b""
        return said
