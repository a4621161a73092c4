"""One stream to one peer: bytes in order, and libp2p's failures as `NetworkError`."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

import structlog
import trio

from shoal.crypto.peer_id import PeerId
from shoal.node.errors import NetworkError, StreamClosedError
from shoal.node.libp2p_compat.muxing import CREDIT_STEP_BYTES, MAX_FRAME_PAYLOAD_BYTES
from shoal.node.libp2p_compat.streams import (
    TRANSPORT_ERRORS,
    LazyChoice,
    ProtocolNotSupportedError,
    receive,
)
from shoal.node.network_statistics import Traffic

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType
    from typing import Any

log = structlog.get_logger()

READ_SIZE_BYTES = 64 * 1024
GOODBYE_LIMIT_S = 1.0
"""For closing or resetting one stream; a peer that hangs does not get longer."""


class ByteStream:
    """One stream to one peer: bytes in order, in both directions, each closed by itself.

    One task may receive while another sends; two senders must take turns. A call
    that was cancelled leaves the stream between two unknown bytes: reset it. As a
    context manager it is closed at the end, and reset if that is an exception.

    A frame that is going out when its sender is cancelled goes out whole: to a
    peer that takes nothing, that lasts `libp2p_compat.muxing.FRAME_LIMIT_S`.

    Args:
        stream: Of the libp2p host.
        traffic: Where its bytes are counted.
        choice: Of the protocol, where the peer has not agreed to it yet: it goes out with
            the first bytes that are sent, or when some are waited for.
    """

    def __init__(
        self, stream: Any, traffic: Traffic | None = None, choice: LazyChoice | None = None
    ) -> None:
        self.remote = PeerId(str(stream.muxed_conn.peer_id))
        self._stream = stream
        self._traffic = Traffic() if traffic is None else traffic
        self._unread = memoryview(b"")
        self._choice = choice
        self._opening = b"" if choice is None else choice.opening

    @property
    def agreed(self) -> bool:
        """Whether the peer is known to speak the stream's protocol."""
        return self._choice is None

    def carries_small_messages(self) -> None:
        """Do not answer each message that is read by a frame of the muxer's own."""
        self._stream.muxed_stream.credit_step_bytes = CREDIT_STEP_BYTES

    async def agree(self) -> None:
        """Wait until the peer has agreed to speak the stream's protocol.

        Raises:
            NetworkError: ``protocol_unknown``, or the stream has failed.
        """
        if self._opening:
            await self.send_all(b"")
        while (choice := self._choice) is not None:
            data = await self._receive()
            if not data:
                raise NetworkError(
                    f"{self.remote} closed the stream before it agreed to speak "
                    f"{choice.protocol}",
                    code="stream_reset",
                )
            with translated(self.remote, "agrees to no protocol"):
                try:
                    self._unread = memoryview(choice.hear(data))
                except ProtocolNotSupportedError as error:
                    raise protocol_unknown(self.remote, choice.protocol) from error
            if choice.agreed:
                self._choice = None

    async def receive_some(self, limit: int) -> bytes:
        """Wait for 1 to ``limit`` bytes; b"" means that the peer closed its side.

        Raises:
            NetworkError: The stream was reset, or its connection has ended.
        """
        if self._choice is not None:
            await self.agree()
        if not self._unread:
            self._unread = memoryview(await self._receive())
        taken, self._unread = self._unread[:limit], self._unread[limit:]
        return bytes(taken)

    async def receive_exactly(self, count: int) -> bytes:
        """Wait for ``count`` bytes.

        Raises:
            StreamClosedError: The peer closed its side before the first of them.
            NetworkError: It did so after, or the stream has failed.
        """
        received = bytearray()
        while len(received) < count:
            some = await self.receive_some(count - len(received))
            if not some and not received:
                message = f"{self.remote} closed the stream"
                raise StreamClosedError(message)
            if not some:
                message = f"{self.remote} closed the stream {count - len(received)} bytes early"
                raise NetworkError(message, code="stream_truncated")
            received += some
        return bytes(received)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Hand all of ``data`` to the connection.

        Raises:
            NetworkError: The stream or its connection has ended, or the peer read
                nothing for `admission.WRITE_STALL_LIMIT_S`.
        """
        rest = memoryview(data)
        opening, self._opening = self._opening, b""
        with translated(self.remote, "takes no more data"):
            while rest or opening:
                frame = rest[: MAX_FRAME_PAYLOAD_BYTES - len(opening)]
                await self._stream.write(opening + frame)
                opening = b""
                self._traffic.sent += len(frame)
                rest = rest[len(frame) :]

    async def aclose(self) -> None:
        """Tell the peer that nothing more comes; what it sends can still be received.

        Never raises, and does its work even when the task is cancelled.
        """
        await self._end(self._stream.close)

    async def reset(self) -> None:
        """End both directions at once. Never raises, as `aclose`."""
        await self._end(self._stream.reset)

    async def _receive(self) -> bytes:
        with translated(self.remote, "sends no more data"):
            data, code = await receive(self._stream, READ_SIZE_BYTES)
        if code is None:
            self._traffic.received += len(data)
            return data
        message = f"{self.remote} sends no more data: {code.replace('_', ' ')}"
        raise NetworkError(message, code=code)

    async def _end(self, how: Callable[[], Awaitable[None]]) -> None:
        with trio.move_on_after(GOODBYE_LIMIT_S, shield=True):
            try:
                await how()
            except TRANSPORT_ERRORS as error:
                log.debug("stream_end_unsaid", peer=self.remote, error=repr(error))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await (self.aclose() if error is None else self.reset())


def protocol_unknown(peer: PeerId, protocol: str) -> NetworkError:
    """The error for a peer that does not speak a protocol."""
    return NetworkError(
        f"{peer} does not speak {protocol}",
        code="protocol_unknown",
        hint="it may run another version of shoal",
    )


@contextmanager
def translated(peer: PeerId, what: str) -> Iterator[None]:
    """Let libp2p's exceptions leave this part of the house as ``NetworkError``."""
    try:
        yield
    except TRANSPORT_ERRORS as error:
        reason = str(error) or type(error).__name__
        message = f"{peer} {what}: {reason}"
        raise NetworkError(message, code="stream_failed") from error
