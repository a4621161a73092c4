"""One libp2p stream: opened, read, and its end told as what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.ping import ID as PING_PROTOCOL
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.protocol_muxer.exceptions import MultiselectClientError, ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect_client import (
    MULTISELECT_PROTOCOL_ID,
    PROTOCOL_NOT_FOUND_MSG,
)
from libp2p.utils import encode_delim

if TYPE_CHECKING:
    from libp2p.abc import INetStream

__all__ = [
    "PING_PROTOCOL",
    "TRANSPORT_ERRORS",
    "LazyChoice",
    "ProtocolNotSupportedError",
    "receive",
]

TRANSPORT_ERRORS = (
    BaseLibp2pError,
    OSError,
    UnicodeDecodeError,  # a peer's name of a protocol, which libp2p takes for text
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""What a stream or a connection fails with, by a peer's doing or the network's."""


class LazyChoice:
    """A protocol that is spoken at once, before the peer has agreed to speak it.

    Multistream-select's lazy form: its header, the one protocol that is wanted and the first
    bytes of that protocol go out together, and the peer's echo of the first two stands before
    its own first bytes. A peer that answers step by step sees no difference but that more is
    there already, so every implementation understands it. What a peer that does not speak
    the protocol makes of those bytes is an error on this stream alone.

    Specification: https://github.com/multiformats/multistream-select

    Args:
        protocol: What is to be spoken; this side proposes nothing else.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._waiting = [MULTISELECT_PROTOCOL_ID, protocol]
        self._heard = b""

    @property
    def opening(self) -> bytes:
        """What goes out before the first bytes of the protocol."""
        return b"".join(encode_delim(word.encode()) for word in self._waiting)

    @property
    def agreed(self) -> bool:
        """Whether the peer has agreed."""
        return not self._waiting

    def hear(self, data: bytes) -> bytes:
        """Take what the peer sent; gives what follows its echo, b"" while that is not whole.

        Raises:
            ProtocolNotSupportedError: The peer does not speak the protocol.
            MultiselectClientError: It answered with anything else.
        """
        self._heard += data
        while self._waiting:
            word = self._waiting[0]
            echo = encode_delim(word.encode())
            if self._heard.startswith(echo):
                self._heard = self._heard[len(echo) :]
                del self._waiting[0]
            elif echo.startswith(self._heard):
                return b""
            elif word == self.protocol and self._heard.startswith(_NOT_FOUND):
                raise ProtocolNotSupportedError(f"protocol not supported: {self.protocol}")
            elif word == self.protocol and _NOT_FOUND.startswith(self._heard):
                return b""
            else:
                raise MultiselectClientError(f"unrecognized response: {self._heard[:64]!r}")
        rest, self._heard = self._heard, b""
        return rest


_NOT_FOUND = encode_delim(PROTOCOL_NOT_FOUND_MSG.encode())


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
