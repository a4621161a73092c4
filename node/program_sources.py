"""Programs that go from provider to provider: the requester names them, and they fetch.

Part of the steps "negotiate" and "fetch inputs". Who may have what from whom is in
`node.program_shares`, and who is asked for which chunk in `node.bulk.plan`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node.bulk.transfer import Source
from shoal.node.house import hold, program_blobs
from shoal.protocol.limits import CHANNEL_FROM_BYTES
from shoal.protocol.negotiation_messages import AwardOffer, Share
from shoal.protocol.vocabulary import knows_field

if TYPE_CHECKING:
    from shoal.compute.programs import AnyManifest
    from shoal.crypto.content import BlobId
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House

SHARE_LIMIT_S = 5.0
"""For an earlier provider to hear of a new one; without it the new one asks others."""

BLOBS_AT_ONCE = 2
"""Of one program: small ones are then not each a round trip apart, and with eight takers the
requester still has channels left for others."""

PROGRAM_BLOB_LIMIT_BYTES = 8 << 30
"""Largest single blob of a program that a provider fetches."""

log = structlog.get_logger(__name__)

# --- the requester names providers to each other --------------------------------------


def shares(house: House, provider: PeerId, size_bytes: int) -> bool:
    """Whether a provider is to share a program of so many bytes: not if it is a trifle."""
    if size_bytes <= CHANNEL_FROM_BYTES or provider == house.peer_id:
        return False
    return knows_field(house.control.versions.of(provider), AwardOffer, "sources")


def others_for(
    house: House, provider: PeerId, program: BlobId, size_bytes: int
) -> tuple[PeerId, ...]:
    """Whom to name in an award."""
    if not shares(house, provider, size_bytes):
        return ()
    return tuple(house.awarded.others(provider, program))


async def tell_others(
    house: House, others: Collection[PeerId], provider: PeerId, program: BlobId
) -> None:
    """Tell earlier providers of a new one; who does not hear serves it nothing."""

    async def tell(other: PeerId) -> None:
        try:
            message = Share(blobs=(program,), peer=provider)
            await house.control.request(other, message, SHARE_LIMIT_S)
        except ShoalError as error:
            log.info("a provider was not told of another", peer=other, why=error.message)

    async with trio.open_nursery() as nursery:
        for other in others:
            nursery.start_soon(tell, other)


# --- a provider gets a program from them ----------------------------------------------


async def hold_blobs(
    house: House, requester: PeerId, program: BlobId, award: str, manifest: AnyManifest
) -> None:
    """Hold all blobs of a program until an award lets go, from whoever has them by now.

    Raises:
        NetworkError: The requester went away, or does not give one.
        RemoteProtocolError: It sent something else.
        StoreError: There is no room.
    """
    blob_ids = list(dict.fromkeys(program_blobs(manifest)))
    house.shares.lists(requester, program, blob_ids)

    def takers() -> list[Source]:
        return [
            Source(peer, requester, role)
            for peer, role in house.shares.peers(requester, program).items()
        ]

    async def hold_one(blob_id: BlobId) -> None:
        await hold(house, requester, blob_id, award, PROGRAM_BLOB_LIMIT_BYTES, takers=takers)
        house.shares.came(requester, program, blob_id)

    await each_of(blob_ids, hold_one, BLOBS_AT_ONCE)


async def each_of(
    items: Sequence[BlobId], work: Callable[[BlobId], Awaitable[None]], at_once: int
) -> None:
    """Do some work for each, so many at once; the first failure ends it and is raised."""
    waiting = iter(items)
    failed: ShoalError | None = None

    async def go_on(scope: trio.CancelScope) -> None:
        nonlocal failed
        for item in waiting:
            try:
                await work(item)
            except ShoalError as error:
                failed = failed or error
                scope.cancel()
                return

    async with trio.open_nursery() as nursery:
        for _ in range(min(at_once, len(items))):
            nursery.start_soon(go_on, nursery.cancel_scope)
    if failed is not None:
        raise failed
