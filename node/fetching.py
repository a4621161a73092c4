"""How a blob is got from a peer: small ones by stream, large ones by bulk channel.

The one place that decides between the two. Every blob begins by stream, since its size
stands in its chunk list; the list of a large one is all that is taken of it there. Where
no channel is to be had, or it breaks again and again, the stream carries the rest.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from shoal.node.blob_transfer import BLOB_PROTOCOL, fetch_blob
from shoal.node.bulk.channels import offence_of
from shoal.node.errors import NetworkError
from shoal.node.standing import Offence
from shoal.protocol.blob_messages import WhyNot
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import CHANNEL_CHUNKS_LIMIT, CHANNEL_FROM_BYTES

if TYPE_CHECKING:
    from shoal.crypto.content import BlobId, ChunkList
    from shoal.crypto.peer_id import PeerId
    from shoal.node.blob_reception import Reception
    from shoal.node.house import House

CHANNEL_TRIES = 3
"""Channels that may break in the middle of one blob, after which a stream takes over."""

_NOT_AGAIN = frozenset({"no_channel", "channels_busy", "not_connected", *WhyNot})


async def fetch(
    house: House,
    blob_id: BlobId,
    source: PeerId,
    limit_bytes: int,
    requester: PeerId | None = None,
) -> None:
    """Fetch a blob from a peer; returns when that peer has shown to have all of it.

    Args:
        house: Whose store it goes to.
        blob_id: Which.
        source: A connected peer.
        limit_bytes: A larger one is refused.
        requester: For whose unit, where that is another peer; as in `fetch_blob`.

    Raises:
        NetworkError: As `fetch_blob`, by which all that follows goes.
        RemoteProtocolError: The peer sent something else than the blob, which is reported.
        StoreError: ``blob_too_large``, or the store has no room for it.
    """
    by_stream = partial(_by_stream, house, blob_id, source, limit_bytes, requester)
    wanted = house.channels is not None and house.channels.may_be_had(source)
    chunks = await by_stream(leave_over_bytes=CHANNEL_FROM_BYTES if wanted else None)
    if chunks is None:
        return
    try:
        if await _by_channel(house, source, chunks, requester):
            return
    except NetworkError as error:
        if error.code in set(WhyNot):
            raise
    except RemoteProtocolError as error:
        house.broke(source, offence_of(error), error.message)
        raise
    await by_stream()  # the rest, or a proof of what others had sent before


async def _by_stream(
    house: House,
    blob_id: BlobId,
    source: PeerId,
    limit_bytes: int,
    requester: PeerId | None,
    leave_over_bytes: int | None = None,
) -> ChunkList | None:
    try:
        async with house.fetching_from.take(source):
            return await fetch_blob(
                partial(house.network.begin_stream, source, BLOB_PROTOCOL),
                blob_id,
                house.store,
                own=house.peer_id,
                limit_bytes=limit_bytes,
                requester=requester,
                newer=house.control.versions.is_newer(source),
                leave_over_bytes=leave_over_bytes,
            )
    except RemoteProtocolError as error:
        house.broke(source, Offence.BAD_BLOB, error.message)
        raise


async def _by_channel(
    house: House, source: PeerId, chunks: ChunkList, requester: PeerId | None
) -> bool:
    """Take what is missing by channel; gives whether the peer has sent all of the blob."""
    assert house.channels is not None
    if house.store.receiving(chunks.blob_id):  # by another peer, whose pace is not this one's
        return False
    async with house.store.receive(chunks.blob_id) as reception:
        await reception.begin(chunks)
        missing = reception.missing_chunks()
        for left in reversed(range(CHANNEL_TRIES)):
            try:
                async with house.channels.to(source) as channel:
                    await channel.take(chunks, _Missing(source, reception), requester)
                break
            except NetworkError as error:
                if not left or error.code in _NOT_AGAIN:
                    raise
        await reception.finish()
        return len(missing) == len(chunks.digests)


class _Missing:
    """All that a reception lacks, as one channel's `taking.Share`."""

    def __init__(self, source: PeerId, reception: Reception) -> None:
        self._source = source
        self._reception = reception
        self._left = deque(reception.missing_chunks())

    def more(self) -> range | None:
        """The next missing chunks that follow one another."""
        if not self._left:
            return None
        first = last = self._left.popleft()
        while self._left and self._left[0] == last + 1 < first + CHANNEL_CHUNKS_LIMIT:
            last = self._left.popleft()
        return range(first, last + 1)

    def came(self, index: int, chunk: memoryview) -> None:
        """Check and write a chunk."""
        self._reception.write_here(index, chunk)

    def lacking(self, _chunks: range) -> None:
        """There is nobody else to ask."""
        raise NetworkError(
            f"{self._source} has not got all of the blob yet", code=WhyNot.NOT_HELD.value
        )
