"""Receipts are acknowledged, and who did how much for whom is counted: both sides of it.

A *requester* signs that it has the receipts of answered messages, once they are checked
(level L0): see `node.acknowledging`.

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
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.errors import VerificationError
from shoal.node.acknowledging import NOTHING_TO_SETTLE, UNSETTLED_LIMIT, Acknowledging
from shoal.node.admission import Bucket
from shoal.node.errors import StoreError
from shoal.node.journal_ledger import KeptAcknowledgement, Settled, Unacknowledged
from shoal.node.ledger import Ledger, LedgerRow, added
from shoal.node.result_standing import Deed
from shoal.protocol.checking_messages import Acknowledge
from shoal.protocol.messages import Done
from shoal.protocol.statements import Acknowledgement, open_acknowledgement
from shoal.protocol.vocabulary import knows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.protocol.negotiation import ProviderSide, RequesterSide

GRACE_S: Final = 5.0
"""How long a message may be unacknowledged before it counts there: a round trip between
distant continents, and a busy daemon."""

FORGOTTEN_S: Final = 3600.0
"""After which nobody waits for an acknowledgement any more."""

MESSAGES_LIMIT: Final = 1024
"""Answered messages of one requester that are waited for; one more counts as forgotten."""

EXCUSED: Final = 512
"""Receipts of cancelled units that a requester need not acknowledge: two leases' worth."""

EXCUSED_PEERS_LIMIT: Final = 4096

REPEATED_PER_S, REPEATED_BURST, REPEATED_PEERS_LIMIT = 0.5, 16.0, 4096
"""How often it is looked for what one requester has acknowledged before: that takes some ten
milliseconds, and an acknowledgement is charged for hardly anything (`node.allowance`)."""

WRITE_INTERVAL_S: Final = 1.0

log = structlog.get_logger(__name__)


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
        self._owes: Acknowledging | None = None
        self._answered: dict[PeerId, dict[BlobId, _Answered]] = {}
        self._of_receipt: dict[BlobId, tuple[PeerId, BlobId]] = {}
        self._awards: dict[BlobId, bytes] = {}
        self._late: set[PeerId] = set()
        self._excused: Counter[PeerId] = Counter()
        self._rows: dict[tuple[PeerId, str], LedgerRow] = {}
        self._new: dict[BlobId, _Answered] = {}
        self._settled: list[BlobId] = []
        self._kept: list[KeptAcknowledgement] = []
        self._repeated: dict[PeerId, Bucket] = {}

    async def bind(self, house: House) -> None:
        """Begin, with what was written down before."""
        self._house = house
        self._owes = Acknowledging(house, self._count_told)
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

        One that was taken before is answered again as it was, and counts no more: its answer
        may have been lost.

        Raises:
            VerificationError: It is not the peer's own, or not about this node's receipts;
                ``nothing_to_settle`` where this node waits for none of them, and has none of
                them acknowledged.
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
            if await self._has_acknowledged(peer, said):
                return Done()
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

    async def _has_acknowledged(self, peer: PeerId, said: Acknowledgement) -> bool:
        """Whether one that was kept has any of these receipts; False to who asks too often."""
        assert self._house is not None
        now_s = trio.current_time()
        fresh = Bucket(REPEATED_PER_S, REPEATED_BURST, now_s)
        if not self._repeated.setdefault(peer, fresh).takes(now_s):
            return False
        if len(self._repeated) > REPEATED_PEERS_LIMIT:
            del self._repeated[next(iter(self._repeated))]
        wanted = set(said.receipts)
        try:
            kept = await self._house.journal.acknowledgements(peer)
        except StoreError:  # its disk tells nothing: the requester hears as much
            kept = []
        for one in (*kept, *(each for each in self._kept if each.requester == peer)):
            # After a restart nobody knows any more which award a receipt is of.
            if one.award and blob_id_of(one.award) != said.award:
                continue
            if wanted & set(open_acknowledgement(one.envelope).receipts):
                return True
            await trio.lowlevel.checkpoint()
        return False

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
            assert self._owes is not None
            self._owes.owe(peer, side.award_id, price, map(blob_id_of, receipts))

    def asked_for(self, peer: PeerId, award: str | None) -> None:
        """A provider refuses units until it has what it is owed: tell it all at once."""
        if self._owes is not None:
            self._owes.asked_for(peer, award)

    def _count_told(self, peer: PeerId, count: int, price: float) -> None:
        now = self._clock()
        self._add(LedgerRow(peer, "taken", 0, 0.0, 0.0, count, count * price, now, now))

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
        assert self._owes is not None
        await self._owes.run()

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
        assert self._owes is not None
        await self._owes.tell_the_last()
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
