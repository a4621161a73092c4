"""Messages on a byte stream: four big-endian bytes of length, then msgpack."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from shoal.node.errors import NetworkError
from shoal.protocol.codec import decode, encode
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import FRAME_LIMIT_BYTES

if TYPE_CHECKING:
    import msgspec

    from shoal.crypto.peer_id import PeerId
    from shoal.node.network import ByteStream

LENGTH_BYTES = 4
FRAME_TIME_LIMIT_S = 60.0
"""From a frame's length to its last byte; a peer that dribbles is cut."""


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
    `FRAME_TIME_LIMIT_S`. Cancelling it leaves the stream of no further use.

    Raises:
        StreamClosedError: The peer closed the stream between two messages.
        NetworkError: The connection broke or the message did not end in time.
        RemoteProtocolError: Over the limit.
    """
    size = int.from_bytes(await stream.receive_exactly(LENGTH_BYTES), "big")
    if size > limit_bytes:
        raise RemoteProtocolError(
            f"{stream.remote} announces a message of {size} bytes; {limit_bytes} are allowed",
            code="frame_too_large",
        )
    with trio.move_on_after(FRAME_TIME_LIMIT_S):
        return await stream.receive_exactly(size)
    raise NetworkError(
        f"{stream.remote} took over {FRAME_TIME_LIMIT_S:.0f} s to send one message",
        code="too_slow",
    )


async def send_frame(
    stream: ByteStream, message: msgspec.Struct, limit_bytes: int = FRAME_LIMIT_BYTES
) -> None:
    """Send one message; the caller keeps two tasks from sending at once.

    Cancelling it takes effect after the message: half a frame would leave the
    stream of no further use.

    Raises:
        LocalProtocolError: The message is over the limit.
        NetworkError: The connection broke or the peer does not take it in time.
    """
    data = encode(message, limit_bytes)
    with trio.move_on_after(FRAME_TIME_LIMIT_S, shield=True) as scope:
        await stream.send_all(len(data).to_bytes(LENGTH_BYTES, "big") + data)
    if scope.cancelled_caught:
        raise NetworkError(
            f"{stream.remote} did not take a message in {FRAME_TIME_LIMIT_S:.0f} s",
            code="too_slow",
        )


@contextmanager
def within(limit_s: float, peer: PeerId) -> Iterator[None]:
    """Cut a peer whose next bytes take longer than this.

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
