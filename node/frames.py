"""Messages on a byte stream: four big-endian bytes of length, then msgpack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from shoal.node.errors import NetworkError, StreamClosedError
from shoal.protocol.codec import decode, encode
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import FRAME_LIMIT_BYTES

if TYPE_CHECKING:
    import msgspec

    from shoal.crypto.peer_id import PeerId
    from shoal.node.network import ByteStream

LENGTH_BYTES = 4
FRAME_TIME_LIMIT_S = 60.0
"""For a peer to take one message; one that takes nothing is cut off before, by libp2p."""

ARRIVAL_GRACE_S = 10.0
ARRIVAL_BYTES_PER_S = 16 << 10
"""From a message's first byte to its last: the one, and what it needs at the other."""

DRIBBLE_BYTES = 256
DRIBBLE_PIECES = 5
"""A message that is late and came in so many pieces, of fewer bytes than that each, was
dribbled on purpose: libp2p sends 64 KiB in one piece, however slow the link is."""


async def receive_frame(
    stream: ByteStream, kind: Any, limit_bytes: int = FRAME_LIMIT_BYTES, *, newer: bool = False
) -> Any:
    """Wait for the next message of ``kind``; as `receive_message`.

    Args:
        stream: Of the peer.
        kind: As `protocol.codec.decode` takes it.
        limit_bytes: Of the message at most.
        newer: Whether the peer speaks a newer version (`protocol.versions`).

    Raises:
        RemoteProtocolError: Not a message of ``kind`` either.
    """
    return decode(await receive_message(stream, limit_bytes), kind, limit_bytes, newer=newer)


async def receive_message(stream: ByteStream, limit_bytes: int = FRAME_LIMIT_BYTES) -> bytes:
    """Wait for the next message, whatever it is.

    It may wait for ever for a message to begin; one that has begun must end in
    time. Cancelling it leaves the stream of no further use.

    Raises:
        StreamClosedError: The peer closed the stream between two messages.
        NetworkError: The connection broke or the message did not end in time.
        RemoteProtocolError: Over the limit, or ``dribbled``.
    """
    first = await stream.receive_some(LENGTH_BYTES)
    if not first:
        raise StreamClosedError(f"{stream.remote} closed the stream")
    arrival = _Arrival(stream, first)
    size = int.from_bytes(await arrival.take(LENGTH_BYTES), "big")
    if size > limit_bytes:
        raise RemoteProtocolError(
            f"{stream.remote} announces a message of {size} bytes; {limit_bytes} are allowed",
            code="frame_too_large",
        )
    return await arrival.take(size)


class _Arrival:
    """A message that has begun to come in."""

    def __init__(self, stream: ByteStream, first: bytes) -> None:
        self._stream = stream
        self._began_s = trio.current_time()
        self._received = bytearray(first)
        self._pieces = 1
        self._size_bytes = len(first)

    async def take(self, count: int) -> bytes:
        """Wait for the next ``count`` bytes of it; raises as `receive_frame`."""
        if len(self._received) == count:
            taken, self._received = bytes(self._received), bytearray()
            return taken
        allowed_s = ARRIVAL_GRACE_S + count / ARRIVAL_BYTES_PER_S
        with trio.move_on_at(self._began_s + allowed_s):
            while len(self._received) < count:
                some = await self._stream.receive_some(count - len(self._received))
                if not some:
                    raise NetworkError(
                        f"{self._stream.remote} closed the stream within a message",
                        code="stream_truncated",
                    )
                self._received += some
                self._pieces += 1
                self._size_bytes += len(some)
            taken = bytes(self._received)
            self._received.clear()
            return taken
        message = f"{self._stream.remote} took over {allowed_s:.0f} s to send one message"
        if self._pieces >= DRIBBLE_PIECES and self._size_bytes < DRIBBLE_BYTES * self._pieces:
            raise RemoteProtocolError(
                f"{message}, and sent it in {self._pieces} pieces", code="dribbled"
            )
        raise NetworkError(message, code="too_slow")


async def send_frame(
    stream: ByteStream, message: msgspec.Struct, limit_bytes: int = FRAME_LIMIT_BYTES
) -> None:
    """Send one message; the caller keeps two tasks from sending at once.

    Cancelling it takes effect after the message: half a frame would leave the
    stream of no further use.

    Raises:
        LocalProtocolError: The message is over the limit.
        NetworkError: The connection broke or the peer does not take it in time; the
            stream is of no further use.
    """
    await send_message(stream, encode(message, limit_bytes))


async def send_message(stream: ByteStream, data: bytes) -> None:
    """Send an encoded message; otherwise as `send_frame`."""
    with trio.move_on_after(FRAME_TIME_LIMIT_S, shield=True) as scope:
        await stream.send_all(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    if scope.cancelled_caught:
        raise NetworkError(
            f"{stream.remote} did not take a message in {FRAME_TIME_LIMIT_S:.0f} s",
            code="too_slow",
        )


@contextmanager
def within(limit_s: float, peer: PeerId) -> Iterator[None]:
    """Cut off a stream whose next bytes take longer than this.

    Raises:
        NetworkError: ``too_slow``.
    """
    with trio.move_on_after(limit_s) as scope:
        yield
    if scope.cancelled_caught:
        raise NetworkError(
            f"{peer} did not send or take its next bytes within {limit_s:.0f} s",
            code="too_slow",
        )
