"""What follows for a peer whose result was false, and for all that rests on its word.

It is asked once more while there is the lease, gets nothing more of this node, and its
receipts go to the disputes. What nobody else stands for runs again where it has not been
fetched; and who vouched for it is looked at again by `node.checking`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node.checked import Checked, Deliveries, JobChecks, Opinion
from shoal.node.house import unit_name
from shoal.node.look_back import is_doubtful
from shoal.node.repeating import other_answer

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.node.records import JobId, Unit

FALSE_FOR_S: Final = 24 * 3600.0
"""How long a peer gets nothing by this node's own finding, beside what others find."""

FALSE_PEERS: Final = 4096
EVIDENCE_OF_ONE: Final = 3
"""False receipts of one peer that are brought to the disputes: one convicts, and two more
are for what cannot be had any more of the first."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Falsehood:
    """A result that was false, and what is to be done about it.

    Attributes:
        other: Another receipt of the same award and unit that says another thing.
        first: Nothing false was found of this peer before.
        accused: The receipt is to be brought to the disputes.
    """

    peer: PeerId
    opinion: Opinion
    other: bytes | None
    unit: Unit
    first: bool
    accused: bool


class Falsehoods:
    """Peers that were found false, and what follows. Made by `node.checking.Checking`.

    Args:
        house: The modules that the steps call.
        jobs: Has nothing more to do with them.
        nursery: Owns what outlives a job.
        withdraw: Puts back what of a peer waits, and looks back at whoever vouched for it;
            gives what was put back.
    """

    def __init__(
        self,
        house: House,
        jobs: Deliveries,
        nursery: trio.Nursery,
        withdraw: Callable[[PeerId], list[tuple[JobId, list[int]]]],
    ) -> None:
        self._house, self._deliveries, self._nursery = house, jobs, nursery
        self._withdraw = withdraw
        self._false: dict[PeerId, float] = {}
        self._accused: dict[PeerId, int] = {}
        self._asked_again: set[PeerId] = set()

    def is_false(self, peer: PeerId) -> bool:
        """Whether this node has found a result of this peer false lately."""
        until_s = self._false.get(peer)
        return until_s is not None and trio.current_time() < until_s

    def banned(self, peer: PeerId) -> None:
        """Part with a peer that somebody's fraud proof has convicted; it does not block."""
        if self._note_false(peer):
            self._nursery.start_soon(self._part_with, peer, "a fraud proof has convicted it")

    def forgive(self, peer: PeerId) -> None:
        """Hold nothing against a peer any more: its operator has mended it, says this one's."""
        self._false.pop(peer, None)
        self._accused.pop(peer, None)
        self._asked_again.discard(peer)

    def follow(self, found: Sequence[Falsehood]) -> None:
        """Do what follows from false results, in a task that outlives their job."""
        self._nursery.start_soon(self._see_to, found)

    def convicted(self, checked: Checked, peer: PeerId) -> Falsehood:
        """Note that a peer's signed result is another one than this node got itself."""
        name = unit_name(checked.unit)
        log.warning("a result was false", peer=peer, unit=name, right=checked.machine.right)
        first = self._note_false(peer)
        before = self._accused.get(peer, 0)
        self._accused[peer] = before + 1
        return Falsehood(
            peer,
            checked.opinions[peer],
            None,
            checked.unit,
            first=first,
            accused=before < EVIDENCE_OF_ONE,
        )

    async def asked_again(
        self, job: JobChecks, checked: Checked, found: Falsehood
    ) -> Falsehood:
        """Have a provider that was false say it once more, while there is its lease."""
        if found.peer != checked.machine.provider or found.peer in self._asked_again:
            return found
        self._asked_again.add(found.peer)
        side, need, first = checked.held.side, job.running.need, found.opinion.receipt
        other = await other_answer(self._house, need, side, checked.unit, first)
        return found if other is None else replace(found, other=other, accused=True)

    def _note_false(self, peer: PeerId) -> bool:
        """Deal no more with a peer for a while; gives whether that is new."""
        first = not self.is_false(peer)
        if first:  # or long ago: whatever came of that, this is disputed as well
            self.forgive(peer)
        self._false[peer] = trio.current_time() + FALSE_FOR_S
        while len(self._false) > FALSE_PEERS:
            self.forgive(next(iter(self._false)))
        return first

    async def _part_with(self, peer: PeerId, detail: str) -> None:
        """Have nothing more to do with a peer, and nothing rest on its word; never raises."""
        try:
            with trio.CancelScope(shield=True):
                await self._deliveries.take_away(peer, detail)
                await self._take_back(peer)
        except ShoalError as error:  # root of a task of all jobs
            log.error("what a false peer gave could not be taken back", error=str(error))

    async def _see_to(self, found: Sequence[Falsehood]) -> None:
        """See to peers whose results were false: raises nothing."""
        for each in found:
            if each.first:
                detail = f"its result of unit {unit_name(each.unit)} was false"
                await self._part_with(each.peer, detail)
            if each.accused:
                await self._accuse(each)

    async def _accuse(self, found: Falsehood) -> None:
        opinion, unit = found.opinion, found.unit
        try:
            with trio.CancelScope(shield=True):
                await self._house.accuse(
                    opinion.award, opinion.receipt, found.other, unit.job, unit.index
                )
        except ShoalError as error:  # root of a task of all jobs
            log.error("a false receipt is not disputed", peer=found.peer, error=str(error))

    async def _take_back(self, peer: PeerId) -> None:
        """Have everything run again that rests on a false peer's word alone."""
        journal, again = self._house.journal, 0
        for job_id, indices in self._withdraw(peer):
            await journal.count_lease(job_id, indices)
        for job_id, index, provider in await journal.unfetched_units_by(peer):
            checks = await journal.checks(job_id, index)
            agreed = [check.verifier for check in checks if check.verdict == "agrees"]
            if is_doubtful(provider, agreed, self.is_false):
                self._deliveries.doubt(job_id, index)
                again += await journal.reopen_unit(job_id, index, unseen=True)
        log.warning("what a false peer gave or vouched for runs again", peer=peer, units=again)
