"""The taking thread of a bulk channel: asks ahead, and gives on each chunk as it arrives.

Which chunks are asked for, and where they go, is for the `Share` to say, whose methods are
called in this thread. A chunk is in the one buffer that there is, and is checked by
whoever takes it before it is written anywhere: at the first wrong one the channel is over.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from shoal.crypto.content import CHUNK_SIZE_BYTES, ChunkList
from shoal.crypto.errors import VerificationError
from shoal.node.errors import NetworkError
from shoal.protocol.channel_messages import (
    ChannelAnswer,
    ChunksGiven,
    ChunksRefused,
    ChunksWanted,
)
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import CHANNEL_AHEAD_LIMIT

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.bulk.wire import Wire


class Share(Protocol):
    """What one channel is to bring of a blob."""

    def more(self) -> range | None:
        """The next chunks to ask for, at most `CHANNEL_CHUNKS_LIMIT`; none for no more.

        Asked again after every answer.
        """
        ...

    def came(self, index: int, chunk: memoryview) -> None:
        """Take a chunk; the bytes are another's after this returns.

        Raises:
            VerificationError: It is not the one that the list names.
            StoreError: It cannot be written.
        """
        ...

    def lacking(self, chunks: range) -> None:
        """The peer itself does not have these yet, of which it was asked."""
        ...


def take(wire: Wire, chunks: ChunkList, share: Share, requester: PeerId | None = None) -> None:
    """Take chunks until the share gives no more; then the channel is at rest.

    Args:
        wire: After its handshake.
        chunks: The blob's chunk list.
        share: Says what to take.
        requester: As in `fetch_blob`.

    Raises:
        NetworkError: The channel broke, or the peer refuses: ``not_held``, ``no_right``.
        RemoteProtocolError: The peer sent something else than the chunks: ``bad_chunk``,
            or what breaks the protocol.
        StoreError: A chunk could not be written.
    """
    buffer = memoryview(bytearray(CHUNK_SIZE_BYTES))
    asked: deque[range] = deque()
    while True:
        while len(asked) < CHANNEL_AHEAD_LIMIT and (wanted := share.more()) is not None:
            first, count = wanted.start, len(wanted)
            wire.send(
                ChunksWanted(blob=chunks.blob_id, first=first, count=count, requester=requester)
            )
            asked.append(wanted)
        if not asked:
            return
        wanted = asked.popleft()
        given = wanted[: _given(wire, wanted)]
        for index in given:
            chunk = buffer[: chunks.chunk_size_bytes(index)]
            wire.receive_into(chunk)
            try:
                share.came(index, chunk)
            except VerificationError as error:
                raise _wrong(wire.peer, error) from None
        if len(given) < len(wanted):
            share.lacking(wanted[len(given) :])


def _given(wire: Wire, wanted: range) -> int:
    """How many of the chunks that were wanted come next."""
    answer = wire.receive(ChannelAnswer)
    match answer:
        case ChunksGiven() if answer.first == wanted.start and answer.count <= len(wanted):
            return answer.count
    raise _refusal(wire.peer, answer)


def _refusal(peer: PeerId, answer: ChannelAnswer) -> NetworkError | RemoteProtocolError:
    if isinstance(answer, ChunksRefused):
        return NetworkError(
            f"{peer} does not serve a blob on its bulk channel, or not any more: "
            f"{answer.reason}",
            code=answer.reason.value,
        )
    return RemoteProtocolError(
        f"{peer} answered on a bulk channel with what was not asked for",
        code="unfitting_answer",
    )


def _wrong(peer: PeerId, error: VerificationError) -> RemoteProtocolError:
    return RemoteProtocolError(f"{peer} sent wrong bytes: {error.message}", code=error.code)
