"""Units of this node's jobs, from when they are handed over until their end is written.

On the requester's side, the steps from handing over to "deliver": the answers of a batch are
taken in (`node.handing_over`), results that are drawn wait for their checks
(`node.checking`), all others are written down, and whatever leases and bids break on the way
ends with them (`node.negotiating`). The scheduler is told of each. What is to be done is its
plan's to say, and when a job is over is `node.jobs`'.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from typing import TYPE_CHECKING

import trio

from shoal.crypto.errors import ShoalError
from shoal.node import arrivals, chaining, handing_over, pipeline
from shoal.node.checking import Checking
from shoal.node.checks import FOUND_FALSE
from shoal.node.errors import StoreError
from shoal.node.lineage import nearest
from shoal.node.negotiating import Negotiation
from shoal.node.records import Answer, Ended, Failure, UnitState
from shoal.node.result_standing import Deed
from shoal.node.running_jobs import Ending
from shoal.node.scheduling import events
from shoal.node.scheduling.plan import WINDOW_UNITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.node.records import JobId
    from shoal.node.running_jobs import Held, RunningJob, RunningJobs
    from shoal.node.scheduling import actions as do
    from shoal.node.scheduling.state import Batch
    from shoal.node.verifying import VerifierLease
    from shoal.node.wanted import Wanted


class UnitsUnderWay:
    """Takes units to providers and back. Made by `node.jobs.Jobs`.

    Args:
        house: The modules that the steps call.
        jobs: The jobs that run.
        providers: Gives the peers that offer a numeric class now.
        again: Looks for ready units of a job from its first on, and runs it again if it
            has ended.
        nursery: Owns what outlives a job.

    Attributes:
        negotiation: Has the bids and leases.
        checking: Has results checked; what it makes of them comes back here.
        units_ended: How many units ended how since this node started.
    """

    def __init__(
        self,
        house: House,
        jobs: RunningJobs,
        providers: Callable[[Wanted], list[PeerId]],
        again: Callable[[JobId], None],
        nursery: trio.Nursery,
    ) -> None:
        self._house = house
        self._jobs = jobs
        self._state = jobs.state
        self._again = again
        self.checking = Checking(house, self._state, providers, self, nursery)
        self.negotiation = Negotiation(
            house,
            self._state,
            nursery,
            self.wake,
            self.checking.draw_for,
            self.checking.is_false,
        )
        self.units_ended: Counter[UnitState] = Counter()

    def wake(self) -> None:
        """Plan again."""
        self._jobs.wake()

    def leave(self, running: RunningJob) -> None:
        """Have nothing more to do with peers for a job."""
        events.job_ended(self._state, running.need.job.id, trio.current_time())
        self.checking.leave(running)
        for side in running.bids.values():
            self.negotiation.let_go(side)
        for held in running.held.values():
            self.negotiation.let_go(held.side, held.draw)
        running.bids.clear()
        running.held.clear()

    async def hand_over(self, running: RunningJob, action: do.HandOver) -> None:
        """Hand a batch over and wait for it; what came of it goes on from here."""
        batch = self._state.batches.get(action.batch)
        held = running.held.get(action.lease)
        if batch is None or held is None:
            return  # the lease broke before this began
        peer = held.side.provider
        problem: ShoalError | None = None
        with trio.CancelScope() as scope:
            held.scopes.add(scope)
            try:
                outcome = await handing_over.hand_over(
                    self._house, self._state, running, held, batch, action.cost_s
                )
                problem = outcome.problem
                if outcome.drawn:
                    self.checking.begin(running, held, self._drawn(running, batch, outcome))
                if outcome.ends:
                    await self._deliver_or_hold(running, held, batch, outcome.ends)
                for index in outcome.given_up:
                    events.ended(self._state, running.need.job.id, index)
                    await self.give_up(running, index)
                if outcome.refusal is not None:
                    await self.negotiation.note(running, peer, outcome.refusal)
            except StoreError:
                raise
            except ShoalError as error:
                problem = error
            finally:
                held.scopes.discard(scope)
        if problem is not None and action.lease in running.held:
            del running.held[action.lease]
            held.cut()
            events.lease_broken(self._state, action.lease)
            self.negotiation.let_go(held.side, held.draw)
            if problem.code == "no_answer":
                self._house.standings.note(peer, Deed.NO_ANSWER, detail=problem.message)
            await self.negotiation.note(running, peer, problem)
        events.batch_over(self._state, batch.id)
        self.wake()

    async def _deliver_or_hold(
        self, running: RunningJob, held: Held, batch: Batch, ends: Sequence[Ended]
    ) -> None:
        """Deliver results that were not drawn, unless their provider is yet to be known."""
        if self.checking.holds(running, batch.peer):
            self.checking.hold(running, held, self._waiting(running, batch, ends))
        else:
            await self._deliver(running, batch, ends)

    async def _deliver(self, running: RunningJob, batch: Batch, ends: Sequence[Ended]) -> None:
        """Write the ends of units down, and then count them: once, whoever else ran them."""
        job_id = running.need.job.id
        with trio.CancelScope(shield=True):
            written = await pipeline.deliver(self._house, ends)
            for end, new in zip(ends, written.new, strict=True):
                events.ended(self._state, job_id, end.unit.index, batch.id)
                self._forget(running, end.unit.index)
                self.units_ended[UnitState.DONE] += new
            self.wake()
            await self._jobs.views.changed(job_id)
        copies = {
            blob_id
            for end, new in zip(ends, written.new, strict=True)
            if not new
            for blob_id in end.left
        }
        if copies:
            await chaining.let_go_of_copies(self._house, batch.peer, copies)

    def _drawn(
        self, running: RunningJob, batch: Batch, outcome: handing_over.Outcome
    ) -> list[tuple[Ended, int]]:
        """The results of a batch that wait to be checked, each as `Outcome.drawn` has it."""
        more = {end.unit.index: count for end, count in outcome.drawn}
        kept = self._waiting(running, batch, [end for end, _ in outcome.drawn])
        return [(end, more[end.unit.index]) for end in kept]

    def _waiting(self, running: RunningJob, batch: Batch, ends: Iterable[Ended]) -> list[Ended]:
        """Those that wait before they are delivered: for the scheduler they have ended."""
        kept = []
        for end in ends:
            index = end.unit.index
            if events.ended(self._state, running.need.job.id, index, batch.id):
                running.ending.add(index)
                self._forget(running, index)
                kept.append(end)
            else:  # another peer has ended it meanwhile
                arrivals.let_go(self._house, [end])
        return kept

    async def give_up(self, running: RunningJob, index: int) -> None:
        """Write down that a unit has failed; for the scheduler it has ended already."""
        ending = running.errors.get(index)
        if ending is None:
            failure = Failure("lost_too_often", "too many leases broke while this unit was out")
            ending = Ending(running.units[index], None, failure, None)
        ended = handing_over.failed_end(
            ending.unit, ending.peer, ending.failure, ending.receipt
        )
        running.ending.add(index)
        if ending.held is not None and self.checking.doubts(running, ended):
            self._forget(running, index)
            self.checking.begin(running, ending.held, [(ended, 1)], own_only=True)
            return
        try:
            with trio.CancelScope(shield=True):
                written = await self._house.journal.end_units([ended])
                self.units_ended[UnitState.FAILED] += written.new[0]
                await self._jobs.views.changed(running.need.job.id)
        finally:
            running.ending.discard(index)
            self._forget(running, index)
            self.wake()

    def _forget(self, running: RunningJob, index: int) -> None:
        running.units.pop(index, None)
        running.errors.pop(index, None)

    async def read_on(self, running: RunningJob) -> None:
        """Read the next ready units from the journal."""
        job_id = running.need.job.id
        cursor = running.cursor
        units = await self._house.journal.open_units(job_id, cursor, WINDOW_UNITS)
        if running.cursor == cursor and units:  # else units became ready meanwhile
            running.cursor = units[-1].index
            running.queue.units = max(running.queue.units, running.cursor + 1)
        near = nearest(await chaining.left_inputs(self._house, units), units)
        fresh = [unit for unit in units if unit.index not in running.ending]
        for unit in fresh:
            if unit.index not in running.queue.out:  # its inputs may be others than before
                running.units[unit.index] = unit
        events.units_read(
            self._state,
            job_id,
            [unit.index for unit in fresh],
            more=len(units) == WINDOW_UNITS,
            near=near,
        )
        self.wake()

    # --- what comes of checks: see `node.checked.Deliveries` ---

    async def deliver_checked(self, running: RunningJob, ends: Sequence[Ended]) -> None:
        """Write down the ends of units that waited for their checks."""
        indices = [end.unit.index for end in ends]
        self._house.timings.passed(running.need.job.id, indices, "checked")
        try:
            with trio.CancelScope(shield=True):
                written = await pipeline.deliver(self._house, ends)
                for end, new in zip(ends, written.new, strict=True):
                    self.units_ended[end.unit.state] += new
                await self._jobs.views.changed(running.need.job.id)
        finally:
            running.ending.difference_update(indices)
            self.wake()

    def let_go(self, lease: VerifierLease) -> None:
        """Release a lease with a verifier, in a task that outlives the job."""
        self.negotiation.let_go(lease.side, lease.draw)

    def put_back(self, running: RunningJob, indices: Sequence[int]) -> None:
        """Have units run again whose results are not used."""
        running.ending.difference_update(indices)
        running.doubted.update(indices)
        running.queue.ended -= len(indices)
        self._again(running.need.job.id)

    def doubt(self, job_id: JobId, index: int) -> None:
        """Have whoever runs this unit next be checked: a false peer had it."""
        running = self._jobs.by_id.get(job_id)
        if running is not None:
            running.doubted.add(index)

    async def take_away(self, peer: PeerId, detail: str) -> None:
        """Have nothing more to do with a peer whose result was false."""
        for job_id, running in list(self._jobs.by_id.items()):
            for lease, held in list(running.held.items()):
                if held.side.provider == peer:
                    del running.held[lease]
                    held.cut()
                    events.lease_broken(self._state, lease)
                    self.negotiation.let_go(held.side, held.draw)
            if peer in running.queue.candidates:
                events.refused(self._state, job_id, peer, FOUND_FALSE, math.inf)
                answer = Answer(job_id, peer, time.time(), FOUND_FALSE, detail)
                await self._house.journal.add_answer(answer)
        self.wake()
