"""How a blob is got from peers: small ones by stream, large ones by bulk channels.

The one place that decides between the two. Every blob begins by stream, since its size
stands in its chunk list; the list of a large one is all that is taken of it there. Its
chunks come from all sources at once (`node.bulk.transfer`). Where no source is left that a
channel can be had to, a stream carries the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from shoal.crypto.errors import ShoalError
from shoal.node.blob_transfer import BLOB_PROTOCOL, fetch_blob
from shoal.node.bulk.plan import Role
from shoal.node.bulk.transfer import Failures, Source, Transfer
from shoal.node.errors import StoreError
from shoal.node.standing import Offence
from shoal.protocol.blob_messages import WhyNot
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import BLOB_AT_ONCE_LIMIT_BYTES, CHANNEL_FROM_BYTES

if TYPE_CHECKING:
    from shoal.crypto.content import BlobId, ChunkList
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House


async def fetch_from(
    house: House, blob_id: BlobId, sources: Sequence[Source], limit_bytes: int
) -> None:
    """Fetch a blob; returns when the sources have shown to have all of it.

    Args:
        house: Whose store it goes to.
        blob_id: Which.
        sources: At least one, in the order in which to try; the last one's word decides on
            what is wrong where all fail.
        limit_bytes: A larger one is refused.

    Raises:
        NetworkError: As `fetch_blob`; where several sources were tried it says of each why
            it did not give the blob.
        RemoteProtocolError: The only source sent something else than the blob. That is
            reported of any.
        StoreError: ``blob_too_large``, or the store has no room for it.
    """
    failures = Failures()
    try_stream = partial(_from_the_first, house, blob_id, limit_bytes, failures)
    chunks = await try_stream(sources, leave=True)
    if chunks is None:
        return
    left = [source for source in sources if source.peer not in failures.why]
    if await _by_channels(house, left, chunks, failures):
        return
    able = [source for source in left if _may_do_by_stream(failures.why.get(source.peer))]
    if not able:
        raise failures.of(sources, blob_id)
    await try_stream(able)  # the rest, or a proof of what others had sent before


async def _from_the_first(
    house: House,
    blob_id: BlobId,
    limit_bytes: int,
    failures: Failures,
    sources: Sequence[Source],
    *,
    leave: bool = False,
    leave_over_bytes: int = CHANNEL_FROM_BYTES,
) -> ChunkList | None:
    """Fetch by stream from the first source that gives it; ``leave`` what is large."""
    channels = house.channels
    for source in sources:
        wanted = leave and channels is not None and channels.may_be_had(source.peer)
        left = leave_over_bytes if wanted else None
        try:
            return await _by_stream(house, blob_id, source, limit_bytes, left)
        except StoreError:
            raise
        except ShoalError as error:
            failures.note(source, blob_id, error)
    raise failures.of(sources, blob_id)


async def fetch_beside(
    house: House,
    blob_id: BlobId,
    origin: PeerId,
    takers: Callable[[], Sequence[Source]],
    limit_bytes: int,
) -> None:
    """Fetch a blob that others get from the same peer, from them as far as may be.

    Args:
        house: Whose store it goes to.
        blob_id: Which.
        origin: Whom all have it from, and who named them to each other.
        takers: The others that are known by now.
        limit_bytes: A larger one is refused.

    Raises:
        NetworkError: As `fetch_from`; what the others do or fail to do is no matter.
        RemoteProtocolError: As `fetch_from`.
        StoreError: As `fetch_from`.
    """
    failures, source = Failures(), Source(origin, role=Role.ORIGIN)
    by_stream = partial(_from_the_first, house, blob_id, limit_bytes, failures, [source])
    chunks = await by_stream(leave=True, leave_over_bytes=BLOB_AT_ONCE_LIMIT_BYTES)
    if chunks is None or await _by_channels(house, [source], chunks, failures, takers):
        return
    if not _may_do_by_stream(failures.why.get(origin)):
        raise failures.why[origin]
    await by_stream()


def _may_do_by_stream(failed: ShoalError | None) -> bool:
    """Whether a source may give by stream what it has not given by channel."""
    return not isinstance(failed, RemoteProtocolError) and (
        failed is None or failed.code not in set(WhyNot)
    )


async def _by_stream(
    house: House,
    blob_id: BlobId,
    source: Source,
    limit_bytes: int,
    leave_over_bytes: int | None = None,
) -> ChunkList | None:
    peer = source.peer
    try:
        async with house.fetching_from.take(peer):
            return await fetch_blob(
                partial(house.network.begin_stream, peer, BLOB_PROTOCOL),
                blob_id,
                house.store,
                own=house.peer_id,
                limit_bytes=limit_bytes,
                requester=source.requester,
                newer=house.control.versions.is_newer(peer),
                leave_over_bytes=leave_over_bytes,
            )
    except RemoteProtocolError as error:
        house.broke(peer, Offence.BAD_BLOB, error.message)
        raise


async def _by_channels(
    house: House,
    sources: Sequence[Source],
    chunks: ChunkList,
    failures: Failures,
    takers: Callable[[], Sequence[Source]] | None = None,
) -> bool:
    """Take what is missing by channel; gives whether the sources have sent all of the blob."""
    if house.store.receiving(chunks.blob_id):  # by another peer, whose pace is not this one's
        return False
    async with house.store.receive(chunks.blob_id) as reception:
        await reception.begin(chunks)
        transfer = Transfer(house, chunks, reception, failures, takers)
        all_missing = len(reception.missing_chunks()) == len(chunks.digests)
        # What was here before is no word of these sources', and is not passed on in it.
        whom = sources[-1].peer if takers is not None and all_missing else None
        with house.shares.arriving(whom, chunks.blob_id):
            await transfer.run(sources)
        if not transfer.plan.done:
            return False
        await reception.finish()
        return all_missing
