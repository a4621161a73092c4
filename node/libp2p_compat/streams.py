"""One libp2p stream: opened, read, and its end told as what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.ping import ID as PING_PROTOCOL
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator

if TYPE_CHECKING:
    from libp2p.abc import INetStream

__all__ = ["PING_PROTOCOL", "TRANSPORT_ERRORS", "ProtocolNotSupportedError", "agree", "receive"]

TRANSPORT_ERRORS = (
    BaseLibp2pError,
    OSError,
    UnicodeDecodeError,  # a peer's name of a protocol, which libp2p takes for text
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""What a stream or a connection fails with, by a peer's doing or the network's."""


async def agree(stream: INetStream, protocol: str) -> None:
    """Agree with the peer to speak ``protocol`` on a stream just opened.

    Raises:
        ProtocolNotSupportedError: It does not.
    """
    negotiator = MultiselectClient()
    communicator = MultiselectCommunicator(stream)
    await negotiator.handshake(communicator)
    await negotiator.try_select(communicator, protocol)
    stream.set_protocol(protocol)


async def receive(stream: INetStream, limit_bytes: int) -> tuple[bytes, str | None]:
    """Wait for 1 to ``limit_bytes`` bytes; b"" at the end, with its cause as below."""
    try:
        return await stream.read(limit_bytes), None
    except StreamReset:
        return b"", why_it_ended(stream) or "stream_reset"
    except StreamEOF:
        return b"", why_it_ended(stream)


def why_it_ended(stream: INetStream) -> str | None:
    """Tell apart what libp2p reports alike, as the end of a stream.

    Returns:
        ``connection_lost``, ``stream_reset``, or None where the peer closed its
        side in order.
    """
    if stream.muxed_conn.event_shutting_down.is_set():
        return "connection_lost"
    return "stream_reset" if stream.muxed_stream.reset_received else None
