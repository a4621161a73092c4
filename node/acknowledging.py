"""What a requester owes: its signed word that it has the receipts of others' work.

Receipts gather for each provider and award and are acknowledged at most `WAITS_S` later, at
once where they are many. It is beside the data path: nothing waits for it. Where a provider
cannot be reached it waits for another time. The provider's side, and the ledger, are
`node.settling`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog
import trio

from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.envelope import Statement
from shoal.crypto.errors import ShoalError, VerificationError
from shoal.protocol.checking_messages import Acknowledge
from shoal.protocol.codec import encode
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import ACKNOWLEDGED_LIMIT
from shoal.protocol.messages import Done
from shoal.protocol.statements import Acknowledgement, open_receipt
from shoal.protocol.versions import OWN

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House

WAITS_S: Final = 1.0
"""How long a requester gathers receipts before it acknowledges them."""

UNSETTLED_LIMIT: Final = 8
"""Answered messages of a requester that may wait for their acknowledgement."""

AT_ONCE_MESSAGES: Final = UNSETTLED_LIMIT // 2
"""From so many messages of one provider on it acknowledges them at once."""

OWED_LIMIT: Final = 4096
"""Receipts of one provider that wait to be acknowledged here; the oldest go first."""

RETRY_S: Final = 10.0
"""When a provider that could not be told is told again."""

TOLD_TIME_LIMIT_S: Final = 10.0

RECEIPTS_ASKED_FOR: Final = 4096
"""Receipts that are looked through for those of an award that a provider waits for."""

LAST_WORDS_S: Final = 1.0
"""What a daemon that ends takes to tell what it owes."""

NOTHING_TO_SETTLE: Final = "nothing_to_settle"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Owed:
    """What this node is to acknowledge to one provider: receipts and their price, by award."""

    awards: dict[BlobId, list[BlobId]] = field(default_factory=dict)
    prices: dict[BlobId, float] = field(default_factory=dict)
    messages: int = 0
    since_s: float = 0.0
    not_before_s: float = 0.0
    telling: bool = False
    asked_for: set[BlobId] = field(default_factory=set)
    """Awards of which the provider says that receipts are not acknowledged."""

    @property
    def count(self) -> int:
        return sum(map(len, self.awards.values()))

    def forget_price(self, award: BlobId) -> None:
        """Forget the price of an award of which nothing is owed any more."""
        if award not in self.awards:
            self.prices.pop(award, None)


class Acknowledging:
    """Acknowledges the receipts that this node took; part of `node.settling.Settling`.

    Args:
        house: The modules.
        told: Told of each acknowledgement that was taken: by whom, of how many receipts,
            and the price of each in credits.
    """

    def __init__(self, house: House, told: Callable[[PeerId, int, float], None]) -> None:
        self._house, self._told = house, told
        self._owed: dict[PeerId, _Owed] = {}
        self._due = trio.Event()

    def asked_for(self, peer: PeerId, award: str | None) -> None:
        """A provider refuses units until it has what it is owed: tell it all at once."""
        owed = self._owed.setdefault(peer, _Owed())
        owed.not_before_s = 0.0
        owed.messages = max(owed.messages, AT_ONCE_MESSAGES)
        if award is not None:
            owed.asked_for.add(BlobId(award))
        self._due.set()

    def owe(
        self, peer: PeerId, award: BlobId, price: float, receipts: Iterable[BlobId]
    ) -> None:
        """Note receipts of one message that are to be acknowledged."""
        owed = self._owed.setdefault(peer, _Owed())
        if not owed.messages:
            owed.since_s = trio.current_time()
        owed.messages += 1
        owed.awards.setdefault(award, []).extend(receipts)
        owed.prices[award] = price
        while owed.count > OWED_LIMIT:
            oldest = next(iter(owed.awards))
            log.info("receipts are never acknowledged: they are too many", provider=peer)
            del owed.awards[oldest]
        if owed.messages >= AT_ONCE_MESSAGES or owed.count >= ACKNOWLEDGED_LIMIT:
            self._due.set()

    async def run(self) -> None:
        """Acknowledge what is owed, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                for peer in self._ready(trio.current_time()):
                    self._owed[peer].telling = True
                    nursery.start_soon(self._tell, peer)
                with trio.move_on_after(WAITS_S / 2):
                    await self._due.wait()
                self._due = trio.Event()

    async def tell_the_last(self) -> None:
        """Tell providers what they are owed, as far as that is quick: this node ends."""
        with trio.move_on_after(LAST_WORDS_S, shield=True):
            async with trio.open_nursery() as nursery:
                for peer, owed in list(self._owed.items()):
                    if owed.awards and not owed.telling:
                        owed.telling = True
                        nursery.start_soon(self._tell, peer)

    def _ready(self, now_s: float) -> list[PeerId]:
        return [
            peer
            for peer, owed in self._owed.items()
            if not owed.telling
            and owed.not_before_s <= now_s
            and (
                owed.messages >= AT_ONCE_MESSAGES
                or owed.count >= ACKNOWLEDGED_LIMIT
                or (owed.messages and now_s >= owed.since_s + WAITS_S)
            )
        ]

    async def _tell(self, peer: PeerId) -> None:
        """Acknowledge to one provider all that it is owed; raises nothing."""
        owed = self._owed[peer]
        awards, asked_for = owed.awards, owed.asked_for
        owed.awards, owed.asked_for, owed.messages = {}, set(), 0
        counted = {receipt for receipts in awards.values() for receipt in receipts}
        try:
            for award in asked_for:
                await self._look_up(peer, award, awards)
            while awards:
                award = next(iter(awards))
                some, rest = (
                    awards[award][:ACKNOWLEDGED_LIMIT],
                    awards[award][ACKNOWLEDGED_LIMIT:],
                )
                if await self._say(peer, award, some):
                    self._count_told(peer, award, len(counted.intersection(some)), owed)
                if rest:
                    awards[award] = rest
                else:
                    del awards[award]
                    owed.forget_price(award)
        except ShoalError as error:
            log.debug("an acknowledgement was not taken", provider=peer, error=str(error))
            if error.code in {"unknown_message", "not_served", "peer_too_old"}:
                awards.clear()
        finally:
            # What was looked up beside it may be acknowledged: the provider asks again.
            self._told_or_not(
                peer,
                {
                    award: [receipt for receipt in receipts if receipt in counted]
                    for award, receipts in awards.items()
                },
            )

    def _told_or_not(self, peer: PeerId, left: dict[BlobId, list[BlobId]]) -> None:
        """A provider was told what it is owed, but for what is left: that waits."""
        owed = self._owed[peer]
        for award, receipts in left.items():
            if receipts:
                owed.awards[award] = receipts + owed.awards.get(award, [])
        owed.telling = False
        if left:
            owed.messages = max(1, owed.messages)
            owed.not_before_s = trio.current_time() + RETRY_S
        elif not owed.awards and not owed.asked_for:
            self._owed.pop(peer, None)
        else:
            owed.since_s = trio.current_time()
            self._due.set()

    async def _say(self, peer: PeerId, award: BlobId, receipts: Sequence[BlobId]) -> bool:
        """Acknowledge receipts; False where the provider waits for none of them."""
        said = Acknowledgement(
            protocol=OWN,
            award=award,
            receipts=tuple(receipts),
            requester=self._house.peer_id,
            provider=peer,
            issued_at_ms=time.time_ns() // 1_000_000,
        )
        envelope = self._house.identity.sign(Statement.ACKNOWLEDGEMENT, encode(said))
        try:
            answer = await self._house.control.request(
                peer, Acknowledge(envelope), TOLD_TIME_LIMIT_S
            )
        except RemoteProtocolError as error:
            if error.code == NOTHING_TO_SETTLE:
                return False
            raise
        if not isinstance(answer, Done):
            raise RemoteProtocolError(
                f"an unfitting {type(answer).__name__} came as an answer",
                code="unfitting_answer",
            )
        return True

    def _count_told(self, peer: PeerId, award: BlobId, count: int, owed: _Owed) -> None:
        price = owed.prices.get(award)
        if count and price is not None:  # else this node was restarted since
            self._told(peer, count, price)

    async def _look_up(
        self, peer: PeerId, award: BlobId, awards: dict[BlobId, list[BlobId]]
    ) -> None:
        """Find receipts of an award in the journal: owed before a restart, maybe."""
        found = dict.fromkeys(awards.get(award, ()))
        for envelope in await self._house.journal.receipts_from(peer, RECEIPTS_ASKED_FOR):
            await trio.lowlevel.checkpoint()  # thousands of signatures: others go on meanwhile
            try:
                receipt = open_receipt(envelope)
            except VerificationError:  # a row that somebody else wrote
                continue
            if receipt.award == award:
                found[blob_id_of(envelope)] = None
        if found:
            awards[award] = list(found)
