"""Outputs that stay here until their requester, or a peer that it names, fetches them.

A unit that is asked for with ``keep`` leaves its outputs with the provider that made them:
the next unit of the requester's takes them from here, and they never pass through the
requester. `KeptOutputs` is the table of what is kept for whom and who may fetch it, pure
and with time as an argument; below it is what the provider does by it.

What is kept is kept as a favour, within a share of the blob quota that is smaller for
strangers. Whoever ranks higher pushes out the oldest of those who rank lower, and nobody
pushes out their like: an output for which there is no room goes to its requester as
any other does, which costs a transfer and no work. In the store, kept blobs go when room
is needed and all others that may go have gone (`node.blob_index`). A requester that asks
for what has gone is told so, and has it computed again.

In memory: a restart forgets what was kept for whom.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Final, TypeAlias

import structlog
import trio

from shoal.compute.in_file import InFile
from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node import bidding
from shoal.node.errors import StoreError
from shoal.protocol.messages import Done
from shoal.protocol.negotiation_messages import Drop, Share, Shared

if TYPE_CHECKING:
    from shoal.node.house import House

KEPT_S: Final = 3600.0
"""After its last use a kept output goes: a requester that comes back later has it made anew."""

KEPT_SHARE: Final = 0.5
STRANGERS_KEPT_SHARE: Final = 0.25
"""Of the blob quota, for all requesters and for all strangers among them."""

KEPT_LIMIT: Final = 16_384
STRANGERS_KEPT_LIMIT: Final = KEPT_LIMIT // 2
"""Outputs, likewise: about 400 bytes of memory for each."""

SHARED_WITH_LIMIT: Final = 16
"""Peers that one output is shared with at once; the one that was named first goes. A share
is needed from the hand-over of a unit until its provider has fetched the input."""

log = structlog.get_logger(__name__)


_Key: TypeAlias = tuple[PeerId, BlobId]
"""For whom, and what."""


@dataclass(slots=True)
class _Kept:
    """One output, kept for one requester."""

    size_bytes: int
    rank: int
    used_at_s: float
    shared_with: OrderedDict[PeerId, None] = field(default_factory=OrderedDict)


class KeptOutputs:
    """What is kept for whom, and with whom it is shared."""

    def __init__(self) -> None:
        self._kept: dict[_Key, _Kept] = {}
        self._keepers: dict[BlobId, set[PeerId]] = {}
        self._order: dict[int, OrderedDict[_Key, None]] = defaultdict(OrderedDict)
        """The entries of each rank, least recently used first."""
        self._bytes: Counter[int] = Counter()

    def __len__(self) -> int:
        """How many outputs are kept; one that is kept for two requesters counts twice."""
        return len(self._kept)

    @property
    def size_bytes(self) -> int:
        """Of all that is kept."""
        return self._bytes.total()

    def keeps(self, requester: PeerId, blob_id: BlobId) -> bool:
        """Whether a blob is kept for ``requester``."""
        return (requester, blob_id) in self._kept

    def rank(self, blob_id: BlobId) -> int | None:
        """The highest rank (the lowest number) that it is kept for; None where it is not."""
        keepers = self._keepers.get(blob_id, ())
        return min((self._kept[each, blob_id].rank for each in keepers), default=None)

    def keep(
        self,
        requester: PeerId,
        rank: int,
        outputs: Mapping[BlobId, int],
        quota_bytes: int,
        now_s: float,
    ) -> set[BlobId] | None:
        """Keep a unit's outputs, all of them or none.

        Args:
            requester: For whom.
            rank: Its rank, as `bidding.rank` gives it.
            outputs: The size of each in bytes.
            quota_bytes: Of the blob store, of which a share may be kept.
            now_s: The time.

        Returns:
            What is kept for nobody any more, since this pushed it out; None where there
            is no room.
        """
        new = {id_: size for id_, size in outputs.items() if not self.keeps(requester, id_)}
        victims = self._victims(rank, new, quota_bytes)
        if victims is None:
            return None
        gone = {key[1] for key in victims if self._remove(key)}
        for blob_id, size_bytes in new.items():
            self._kept[requester, blob_id] = _Kept(size_bytes, rank, now_s)
            self._keepers.setdefault(blob_id, set()).add(requester)
            self._bytes[rank] += size_bytes
        for blob_id in outputs:
            self._touch((requester, blob_id), now_s)
        return gone - outputs.keys()

    def share(
        self, requester: PeerId, blob_ids: Iterable[BlobId], peer: PeerId, now_s: float
    ) -> tuple[BlobId, ...]:
        """Let ``peer`` fetch what is kept for ``requester``; gives what is not kept for it."""
        missing = []
        for blob_id in blob_ids:
            kept = self._kept.get((requester, blob_id))
            if kept is None:
                missing.append(blob_id)
                continue
            self._touch((requester, blob_id), now_s)
            kept.shared_with[peer] = None
            kept.shared_with.move_to_end(peer)
            if len(kept.shared_with) > SHARED_WITH_LIMIT:
                kept.shared_with.popitem(last=False)
        return tuple(missing)

    def allows(
        self, peer: PeerId, blob_id: BlobId, requester: PeerId | None, now_s: float
    ) -> bool:
        """Whether ``peer`` may fetch a blob: for itself, or for ``requester``'s unit."""
        key = (requester or peer, blob_id)
        kept = self._kept.get(key)
        if kept is None or (requester not in {None, peer} and peer not in kept.shared_with):
            return False
        self._touch(key, now_s)
        return True

    def drop(self, requester: PeerId, blob_ids: Iterable[BlobId]) -> set[BlobId]:
        """Keep these no longer for ``requester``; gives what is kept for nobody any more."""
        return {
            blob_id
            for blob_id in blob_ids
            if self.keeps(requester, blob_id) and self._remove((requester, blob_id))
        }

    def expire(self, now_s: float) -> set[BlobId]:
        """Keep no longer what was not used for `KEPT_S`; gives as `drop` does."""
        gone = set()
        for order in self._order.values():
            while order:
                key = next(iter(order))
                if now_s - self._kept[key].used_at_s < KEPT_S:
                    break
                if self._remove(key):
                    gone.add(key[1])
        return gone

    def forget(self, blob_ids: Iterable[BlobId]) -> set[BlobId]:
        """Keep these for nobody, since the store has lost them; gives those that were."""
        lost = {blob_id for blob_id in blob_ids if blob_id in self._keepers}
        for blob_id in lost:
            for requester in [*self._keepers[blob_id]]:
                self._remove((requester, blob_id))
        return lost

    def blobs(self) -> list[BlobId]:
        """All that is kept for anybody."""
        return [*self._keepers]

    def _victims(
        self, rank: int, new: Mapping[BlobId, int], quota_bytes: int
    ) -> list[_Key] | None:
        """What has to go for ``new``, oldest of the lowest first; None where it is too much."""
        added_bytes = sum(new.values())
        if rank >= bidding.STRANGER:
            of_strangers, count = self._bytes[rank], len(self._order[rank])
            if of_strangers + added_bytes > STRANGERS_KEPT_SHARE * quota_bytes:
                return None
            if count + len(new) > STRANGERS_KEPT_LIMIT:
                return None
        excess_bytes = self.size_bytes + added_bytes - KEPT_SHARE * quota_bytes
        excess = len(self._kept) + len(new) - KEPT_LIMIT
        victims: list[_Key] = []
        lower = (each for each in sorted(self._order, reverse=True) if each > rank)
        for key in chain.from_iterable(self._order[each] for each in lower):
            if excess_bytes <= 0 and excess <= 0:
                break
            victims.append(key)
            excess_bytes -= self._kept[key].size_bytes
            excess -= 1
        return victims if excess_bytes <= 0 and excess <= 0 else None

    def _touch(self, key: _Key, now_s: float) -> None:
        kept = self._kept[key]
        kept.used_at_s = now_s
        order = self._order[kept.rank]
        order[key] = None
        order.move_to_end(key)

    def _remove(self, key: _Key) -> bool:
        """Take out an entry; gives whether its blob is kept for nobody any more."""
        requester, blob_id = key
        kept = self._kept.pop(key)
        del self._order[kept.rank][key]
        self._bytes[kept.rank] -= kept.size_bytes
        keepers = self._keepers[blob_id]
        keepers.discard(requester)
        if not keepers:
            del self._keepers[blob_id]
        return not keepers


# --- what the provider does by it ---------------------------------------------------


async def keep_outputs(
    house: House, requester: PeerId, outputs: Mapping[BlobId, bytes | InFile]
) -> dict[BlobId, int]:
    """Keep a unit's outputs here; gives the size of each, or nothing where there is no room.

    What a node makes for its own user is delivered to its own store and not kept.
    """
    if requester == house.peer_id or not outputs:
        return {}
    kept, store = house.kept, house.store
    sizes = {blob_id: len(tensor) for blob_id, tensor in outputs.items()}
    rank = bidding.rank(requester, house.terms())

    def keep() -> set[BlobId] | None:
        return kept.keep(requester, rank, sizes, store.quota_bytes, trio.current_time())

    gone = keep()
    if gone is None:
        _forget_lost(house, kept.blobs())
        gone = keep()
    if gone is None:
        log.info("there is no room to keep outputs", requester=requester)
        return {}
    _let_go(house, gone)
    try:
        for blob_id, tensor in outputs.items():
            highest = kept.rank(blob_id)
            store.keep_longer(blob_id, rank if highest is None else highest)
            if not isinstance(tensor, InFile):  # which is in the store by now
                await store.put_bytes(tensor)
    except StoreError as error:  # where it cannot be kept it may still be sent
        log.info("outputs could not be kept", requester=requester, why=error.message)
        _let_go(house, kept.drop(requester, sizes))
        return {}
    return sizes


def answer(house: House, peer: PeerId, message: Share | Drop) -> Shared | Done:
    """Answer a requester about what is kept for it."""
    blob_ids = [BlobId(blob_id) for blob_id in message.blobs]
    if isinstance(message, Drop):
        _let_go(house, house.kept.drop(peer, blob_ids))
        return Done()
    _forget_lost(house, blob_ids)
    other = PeerId(message.peer)
    missing = house.kept.share(peer, blob_ids, other, trio.current_time())
    shares = house.shares
    return Shared(missing=tuple(id_ for id_ in missing if not shares.share(peer, id_, other)))


def sweep(house: House) -> None:
    """Let go of what nobody has used for long."""
    _let_go(house, house.kept.expire(trio.current_time()))


def _forget_lost(house: House, blob_ids: Iterable[BlobId]) -> None:
    lost = [blob_id for blob_id in blob_ids if not house.store.holds(blob_id)]
    _let_go(house, house.kept.forget(lost))


def _let_go(house: House, blob_ids: Collection[BlobId]) -> None:
    for blob_id in blob_ids:
        house.store.let_go(blob_id)
