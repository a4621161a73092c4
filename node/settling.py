"""Receipts are acknowledged, and who did how much for whom is counted: both sides of it.

A *requester* signs that it has the receipts of answered messages, for each award, once
they are checked (level L0): at most `WAITS_S` later, at once where they are many. It is
beside the data path: nothing waits for it. Where the provider cannot be reached it waits
for another time.

A *provider* notes what it has answered, and takes the acknowledgements. A requester of
which `UNSETTLED_LIMIT` answered messages have waited for longer than `GRACE_S` gets no
more units before it has acknowledged some: `Reason.UNSETTLED`, which names an award that
is meant. The requester then acknowledges all that it has, what it finds in its journal of
that award too; so one that was restarted goes on by itself. What it never got, since it or
the provider was killed, nobody can acknowledge: after `FORGOTTEN_S` the provider waits for
it no longer, and it stays in the ledger as not acknowledged.

What changes is gathered here and written once a second (`write`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.envelope import Statement
from shoal.crypto.errors import ShoalError, VerificationError
from shoal.node.errors import StoreError
from shoal.node.journal_ledger import KeptAcknowledgement, Settled, Unacknowledged
from shoal.node.ledger import Ledger, LedgerRow, added
from shoal.node.result_standing import Deed
from shoal.protocol.codec import encode
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import ACKNOWLEDGED_LIMIT
from shoal.protocol.messages import Acknowledge, Done
from shoal.protocol.statements import Acknowledgement, open_acknowledgement, open_receipt
from shoal.protocol.versions import OWN
from shoal.protocol.vocabulary import knows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.protocol.negotiation import ProviderSide, RequesterSide

UNSETTLED_LIMIT: Final = 8
"""Answered messages of a requester that may wait for their acknowledgement."""

GRACE_S: Final = 5.0
"""How long a message may be unacknowledged before it counts there: a round trip between
distant continents, and a busy daemon."""

FORGOTTEN_S: Final = 3600.0
"""After which nobody waits for an acknowledgement any more."""

MESSAGES_LIMIT: Final = 1024
"""Answered messages of one requester that are waited for; one more counts as forgotten."""

WAITS_S: Final = 1.0
"""How long a requester gathers receipts before it acknowledges them."""

AT_ONCE_MESSAGES: Final = UNSETTLED_LIMIT // 2
"""From so many messages of one provider on it acknowledges them at once."""

EXCUSED: Final = 512
"""Receipts of cancelled units that a requester need not acknowledge: two leases' worth."""

EXCUSED_PEERS_LIMIT: Final = 4096

OWED_LIMIT: Final = 4096
"""Receipts of one provider that wait to be acknowledged here; the oldest go first."""

RETRY_S: Final = 10.0
"""When a provider that could not be told is told again."""

TOLD_TIME_LIMIT_S: Final = 10.0
LAST_WORDS_S: Final = 1.0
"""What a daemon that ends takes to tell what it owes."""

WRITE_INTERVAL_S: Final = 1.0

NOTHING_TO_SETTLE: Final = "nothing_to_settle"

RECEIPTS_ASKED_FOR: Final = 4096
"""Receipts that are looked through for those of an award that a provider waits for."""

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


@dataclass(slots=True)
class _Answered:
    """One message that this node answered as a provider."""

    row: Unacknowledged
    missing: dict[BlobId, None]
    units: dict[str, BlobId] = field(default_factory=dict)


class Settling:
    """Acknowledges what others did, and waits for what it did itself to be acknowledged.

    Before `bind`, as in a test of something else, it does nothing.

    Attributes:
        ledger: Who did how much for whom.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.ledger = Ledger()
        self._clock = clock
        self._house: House | None = None
        self._owed: dict[PeerId, _Owed] = {}
        self._due = trio.Event()
        self._answered: dict[PeerId, dict[BlobId, _Answered]] = {}
        self._of_receipt: dict[BlobId, tuple[PeerId, BlobId]] = {}
        self._awards: dict[BlobId, bytes] = {}
        self._late: set[PeerId] = set()
        self._excused: Counter[PeerId] = Counter()
        self._rows: dict[tuple[PeerId, str], LedgerRow] = {}
        self._new: dict[BlobId, _Answered] = {}
        self._settled: list[BlobId] = []
        self._kept: list[KeptAcknowledgement] = []

    async def bind(self, house: House) -> None:
        """Begin, with what was written down before."""
        self._house = house
        self.ledger = Ledger(tuple(await house.journal.ledger()))
        for row in await house.journal.unacknowledged():
            self._keep(_Answered(row, dict.fromkeys(row.receipts)))

    @property
    def unsettled_messages(self) -> int:
        """Messages that this node answered, and whose receipts are not all acknowledged."""
        return sum(map(len, self._answered.values()))

    # --- the provider -------------------------------------------------------------

    def answered(
        self, side: ProviderSide, receipts: Mapping[str, bytes], seconds: float
    ) -> None:
        """Note receipts that were given in answer to one message.

        Args:
            side: Under which lease.
            receipts: Their envelopes, by the names of their units.
            seconds: How long their units ran, all together.
        """
        house, peer = self._house, side.requester
        if house is None or peer == house.peer_id or not receipts:
            return
        assert side.award is not None
        assert side.award_id is not None
        now, price, count = self._clock(), side.award.price, len(receipts)
        self._add(LedgerRow(peer, "given", count, count * price, seconds, 0, 0.0, now, now))
        if not knows(house.control.versions.of(peer), Acknowledge):
            return
        ids = tuple(map(blob_id_of, receipts.values()))
        row = Unacknowledged(ids[0], peer, side.award_id, ids, price, now)
        waiting = self._answered.get(peer, {})
        if len(waiting) >= MESSAGES_LIMIT:
            self._give_up(next(iter(waiting.values())))
        one = _Answered(row, dict.fromkeys(ids), dict(zip(receipts, ids, strict=True)))
        self._keep(one)
        self._new[row.id] = one
        self._awards[side.award_id] = side.award_bytes

    def excuse(self, side: ProviderSide, units: Collection[str]) -> None:
        """Wait for no acknowledgement of units that were cancelled while they were answered.

        Their requester has given up waiting, and may never see the receipts; the ledger
        has them as not acknowledged. It is excused as often as it acknowledges, and
        `EXCUSED` times more: else who cancels everything would never have to.
        """
        peer = side.requester
        waiting = self._answered.get(peer) if units else None
        for one in list(waiting.values()) if waiting else ():
            if one.row.award != side.award_id:
                continue
            for name, receipt in one.units.items():
                if name not in units:
                    continue
                if receipt not in one.missing or self._excused[peer] >= EXCUSED:
                    continue
                self._excused[peer] += 1
                del one.missing[receipt], self._of_receipt[receipt]
                self._new[one.row.id] = one
            if not one.missing:
                self._drop(one)
        while len(self._excused) > EXCUSED_PEERS_LIMIT:
            del self._excused[next(iter(self._excused))]

    async def acknowledged(self, peer: PeerId, message: Acknowledge) -> Done:
        """Take a requester's acknowledgement; receipts in it that are not known are no matter.

        Raises:
            VerificationError: It is not the peer's own, or not about this node's receipts;
                ``nothing_to_settle`` where this node waits for none of them.
        """
        assert self._house is not None
        said = open_acknowledgement(message.acknowledgement)
        if said.requester != peer or said.provider != self._house.peer_id:
            raise VerificationError(
                "the acknowledgement is another requester's, or for another provider",
                code="wrong_signer",
            )
        now, settled, credits_ = self._clock(), 0, 0.0
        award_bytes = self._awards.get(BlobId(said.award), b"")
        for receipt in map(BlobId, said.receipts):
            requester, message_id = self._of_receipt.get(receipt, (None, receipt))
            if requester != peer:
                continue
            one = self._answered[peer][message_id]
            if one.row.award != said.award:
                continue
            del one.missing[receipt], self._of_receipt[receipt]
            settled, credits_ = settled + 1, credits_ + one.row.price
            self._new[message_id] = one
            if not one.missing:
                self._drop(one)
        if not settled:
            raise VerificationError(
                "this node waits for no acknowledgement of these receipts",
                code=NOTHING_TO_SETTLE,
            )
        if peer in self._excused:
            self._excused[peer] = max(0, self._excused[peer] - settled)
        envelope = message.acknowledgement
        self._kept.append(
            KeptAcknowledgement(blob_id_of(envelope), peer, award_bytes, envelope, now)
        )
        self._add(LedgerRow(peer, "given", 0, 0.0, 0.0, settled, credits_, now, now))
        return Done()

    def unsettled(self, peer: PeerId) -> tuple[str, BlobId] | None:
        """Why a requester gets no more units, and an award that is meant."""
        waiting = self._answered.get(peer)
        if not waiting or len(waiting) < UNSETTLED_LIMIT:
            self._late.discard(peer)
            return None
        before = self._clock() - GRACE_S
        late = 0
        for one in waiting.values():  # oldest first
            if one.row.at > before:
                break
            late += 1
        if late < UNSETTLED_LIMIT:
            return None
        award = next(iter(waiting.values())).row.award
        if peer not in self._late and self._house is not None:
            self._late.add(peer)
            self._house.standings.note(
                peer, Deed.UNSETTLED, detail=f"{late} answered messages, award {award}"
            )
        why = f"{late} messages that were answered here are not acknowledged: do that first"
        return why, award

    def _keep(self, one: _Answered) -> None:
        row = one.row
        self._answered.setdefault(row.requester, {})[row.id] = one
        for receipt in one.missing:
            self._of_receipt[receipt] = (row.requester, row.id)

    def _drop(self, one: _Answered) -> None:
        """Wait for a message no longer."""
        row = one.row
        waiting = self._answered[row.requester]
        del waiting[row.id]
        if not waiting:
            del self._answered[row.requester]
        for receipt in one.missing:
            del self._of_receipt[receipt]
        self._new.pop(row.id, None)
        self._settled.append(row.id)
        if not any(each.row.award == row.award for each in waiting.values()):
            self._awards.pop(row.award, None)

    def _give_up(self, one: _Answered) -> None:
        """Wait for an acknowledgement no longer that nobody may be able to give."""
        row = one.row
        log.info(
            "receipts are not acknowledged, and not waited for any longer",
            requester=row.requester,
            award=row.award,
            receipts=len(one.missing),
        )
        if self._house is not None:
            self._house.standings.note(
                row.requester, Deed.UNSETTLED, 0.25, f"award {row.award}"
            )
        self._drop(one)

    # --- the requester ------------------------------------------------------------

    def received(self, side: RequesterSide, receipts: Sequence[bytes], seconds: float) -> None:
        """Note receipts that came in answer to one message, and were checked (level L0).

        Args:
            side: Under which lease.
            receipts: Their envelopes.
            seconds: How long their units ran, by their own word.
        """
        house, peer = self._house, side.provider
        if house is None or peer == house.peer_id or not receipts:
            return
        assert side.award is not None
        assert side.award_id is not None
        now, price, count = self._clock(), side.award.price, len(receipts)
        self._add(LedgerRow(peer, "taken", count, count * price, seconds, 0, 0.0, now, now))
        house.standings.note(peer, Deed.DELIVERED, times=count)
        if knows(house.control.versions.of(peer), Acknowledge):
            self._owe(peer, side.award_id, price, map(blob_id_of, receipts))

    def asked_for(self, peer: PeerId, award: str | None) -> None:
        """A provider refuses units until it has what it is owed: tell it all at once."""
        owed = self._owed.setdefault(peer, _Owed())
        owed.not_before_s = 0.0
        owed.messages = max(owed.messages, AT_ONCE_MESSAGES)
        if award is not None:
            owed.asked_for.add(BlobId(award))
        self._due.set()

    def _owe(
        self, peer: PeerId, award: BlobId, price: float, receipts: Iterable[BlobId]
    ) -> None:
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
        assert self._house is not None
        owed = self._owed[peer]
        awards, asked_for = owed.awards, owed.asked_for
        owed.awards, owed.asked_for, owed.messages = {}, set(), 0
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
                    self._count_told(peer, award, len(some), owed)
                if rest:
                    awards[award] = rest
                else:
                    del awards[award]
        except ShoalError as error:
            log.debug("an acknowledgement was not taken", provider=peer, error=str(error))
            if error.code in {"unknown_message", "not_served", "peer_too_old"}:
                awards.clear()
        finally:
            for award, receipts in awards.items():
                owed.awards[award] = receipts + owed.awards.get(award, [])
            owed.telling = False
            if awards:
                owed.messages = max(1, owed.messages)
                owed.not_before_s = trio.current_time() + RETRY_S
            elif not owed.awards and not owed.asked_for:
                self._owed.pop(peer, None)
            else:
                owed.since_s = trio.current_time()
                self._due.set()

    async def _say(self, peer: PeerId, award: BlobId, receipts: Sequence[BlobId]) -> bool:
        """Acknowledge receipts; False where the provider waits for none of them."""
        assert self._house is not None
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
        now, price = self._clock(), owed.prices.get(award)
        if award not in owed.awards:
            owed.prices.pop(award, None)
        if price is not None:  # else it was counted before this node was restarted, or told
            self._add(LedgerRow(peer, "taken", 0, 0.0, 0.0, count, count * price, now, now))

    async def _look_up(
        self, peer: PeerId, award: BlobId, awards: dict[BlobId, list[BlobId]]
    ) -> None:
        """Find receipts of an award in the journal: owed before a restart, maybe."""
        assert self._house is not None
        found = awards.setdefault(award, [])
        for envelope in await self._house.journal.receipts_from(peer, RECEIPTS_ASKED_FOR):
            try:
                receipt = open_receipt(envelope)
            except VerificationError:  # a row that somebody else wrote
                continue
            if receipt.award == award and blob_id_of(envelope) not in found:
                found.append(blob_id_of(envelope))
        if not found:
            del awards[award]

    # --- effects ------------------------------------------------------------------

    def _add(self, row: LedgerRow) -> None:
        self.ledger.add(row)
        key = (row.peer, row.direction)
        self._rows[key] = added(self._rows.get(key), row)

    async def write(self) -> None:
        """Write what has changed; where that cannot be, it is written later."""
        assert self._house is not None
        for waiting in list(self._answered.values()):
            for one in list(waiting.values()):
                if one.row.at > self._clock() - FORGOTTEN_S:
                    break
                self._give_up(one)
        rows, new, settled, kept = self._rows, self._new, self._settled, self._kept
        self._rows, self._new, self._settled, self._kept = {}, {}, [], []
        changed = Settled(
            rows=tuple(rows.values()),
            unacknowledged=tuple(
                msgspec.structs.replace(one.row, receipts=tuple(one.missing))
                for one in new.values()
                if one.missing
            ),
            settled=tuple(settled),
            acknowledgements=tuple(kept),
        )
        if not changed:
            return
        try:
            for peer in await self._house.journal.add_acknowledged(changed):
                self.ledger.drop(peer)
        except StoreError as error:
            log.warning("the ledger is not written", error=str(error))
            for key, row in rows.items():
                self._rows[key] = added(self._rows.get(key), row)
            self._new = new | self._new
            self._settled = settled + self._settled
            self._kept = (kept + self._kept)[-MESSAGES_LIMIT:]

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

    async def keep_writing(self) -> None:
        """Write what has changed, and how peers stand, for ever."""
        assert self._house is not None
        while True:
            await trio.sleep(WRITE_INTERVAL_S)
            with trio.CancelScope(shield=True):  # what is taken out of memory is written
                await self.write()
                await self._house.standings.write(self._house.journal)

    async def end(self) -> None:
        """Tell providers what they are owed, as far as that is quick, and write all down."""
        assert self._house is not None
        with trio.move_on_after(LAST_WORDS_S, shield=True):
            async with trio.open_nursery() as nursery:
                for peer, owed in list(self._owed.items()):
                    if owed.awards and not owed.telling:
                        owed.telling = True
                        nursery.start_soon(self._tell, peer)
        with trio.CancelScope(shield=True):
            await self.write()
            await self._house.standings.write(self._house.journal)


@asynccontextmanager
async def open_settling(house: House) -> AsyncIterator[Settling]:
    """Settle for as long as the block runs, and write down what there is at its end."""
    settling = house.settling
    await settling.bind(house)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(settling.run)
        nursery.start_soon(settling.keep_writing)
        try:
            yield settling
        finally:
            nursery.cancel_scope.cancel()
            await settling.end()
