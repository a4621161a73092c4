"""The requester's half of the node: takes each job's units to providers and back.

What is to be done is decided by `node.scheduling`, for all running jobs together; here it
is done, by the steps of `node.pipeline`, and the scheduler is told what came of it. One
task asks for the plan at every change; each running job has a nursery for what is under
way for it.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node import chaining, handing_over, pipeline, probation
from shoal.node.account import nobody_bids
from shoal.node.checking import Checking
from shoal.node.checks import FOUND_FALSE
from shoal.node.errors import JobError, NetworkError, StoreError
from shoal.node.house import House
from shoal.node.job_views import JobViews
from shoal.node.lineage import nearest
from shoal.node.negotiating import Negotiation
from shoal.node.records import (
    Answer,
    Ended,
    Failure,
    Job,
    JobId,
    JobSpec,
    JobState,
    Unit,
    UnitState,
)
from shoal.node.result_standing import Deed
from shoal.node.running_jobs import Ending, Held, RunningJob, prepare
from shoal.node.scheduling import actions as do
from shoal.node.scheduling import events
from shoal.node.scheduling.outlooks import outlook
from shoal.node.scheduling.plan import WINDOW_UNITS, plan
from shoal.node.scheduling.state import Batch, Facts, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from shoal.compute.manifest import Manifest
    from shoal.crypto.peer_id import PeerId
    from shoal.node.given_units import Taken
    from shoal.node.outlook import Outlook
    from shoal.node.records import CheckVerdict, GivenUnit
    from shoal.node.surroundings import PendingChecks
    from shoal.node.verifying import VerifierLease

RECALL_INTERVAL_S = 1.0
"""How often is looked for new peers while jobs run."""

PLANS_AT_ONCE = 1000
"""Plans carried out in a row before other tasks have their turn."""

log = structlog.get_logger(__name__)


class Jobs:
    """Runs the jobs of this node's user. Made by `open_jobs`.

    Args:
        house: The modules that the steps call.
        providers: Gives the peers that may be called for bids now, this node's
            own provider among them; a pure look at the table of adverts.
        nursery: Owns one task for each running job.
        facts: What is known of a peer, for a numeric class.
    """

    def __init__(
        self,
        house: House,
        providers: Callable[[str], list[PeerId]],
        nursery: trio.Nursery,
        facts: Callable[[PeerId, str], Facts] = lambda _peer, _class: Facts(),
    ) -> None:
        self._house = house
        self._providers, self._facts = providers, facts
        self._nursery = nursery
        self._running: dict[JobId, RunningJob] = {}
        self._starting: set[JobId] = set()
        self._state = State()
        self._views = JobViews(house.journal)
        self._changed = trio.Event()
        self._checking = Checking(house, self._state, providers, self, nursery)
        self._negotiation = Negotiation(
            house,
            self._state,
            nursery,
            self.wake,
            self._checking.draw_for,
            self._checking.is_false,
        )
        self.jobs_ended: Counter[JobState] = Counter()
        self.units_ended: Counter[UnitState] = Counter()
        house.journal.touched = self._touched

    # --- how things stand ---

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return len(self._running)

    @property
    def units_waiting(self) -> int:
        """How many units of running jobs no lease has taken."""
        return sum(job.backlog for job in self._state.jobs.values())

    @property
    def units_out(self) -> int:
        """How many units of running jobs are in the hands of a provider."""
        return sum(len(job.out) for job in self._state.jobs.values())

    @property
    def check_verdicts(self) -> Counter[CheckVerdict]:
        """How often verifiers said what of this node's results."""
        return self._checking.verdicts

    def leases(self, job_id: JobId) -> int:
        """How many leases a job holds now; 0 when it does not run."""
        return sum(lease.job == job_id for lease in self._state.leases.values())

    def as_leased(self, unit: Unit) -> Unit:
        """A unit of the state as it stands at this moment: with whom, if it is with anybody.

        It is until its result is delivered, which may have to be checked before.
        """
        if unit.state is not UnitState.QUEUED:
            return unit
        job = self._state.jobs.get(unit.job)
        copies = job.out.get(unit.index) if job else None
        if copies:
            holder: PeerId | None = self._state.batches[copies[0]].peer
        else:
            holder = self._checking.holder_of(unit.job, unit.index)
        if holder is None:
            return unit
        return msgspec.structs.replace(unit, state=UnitState.LEASED, provider=holder)

    def pending(self, job_id: JobId) -> list[PendingChecks]:
        """What of a job's results waits to be checked."""
        return self._checking.pending(job_id)

    def manifest(self, job_id: JobId) -> Manifest | None:
        """Of a running job, the manifest of its program, which is held as long as it runs."""
        running = self._running.get(job_id)
        return running and running.need.manifest

    async def outlook(self, job_id: JobId) -> Outlook | None:
        """How a job stands, peer by peer; None when it does not run."""
        if job_id not in self._running:
            return None
        _, awaiting = await self._house.journal.count_open(job_id)
        job = self._state.jobs.get(job_id)
        return job and outlook(self._state, job, awaiting, trio.current_time())

    def watch(
        self, job_id: JobId
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Job]]:
        """The job as it stands and at each change; see `JobViews.watch`."""
        return self._views.watch(job_id)

    # --- what a submitter and the daemon ask for ---

    def drain(self) -> None:
        """Take no job and hand over no unit any more; what waits is for the next start."""
        self._state.draining = True
        self.wake()

    async def idle(self) -> None:
        """Wait, once drained, until no unit is out and every lease is given up."""
        while self._state.leases or self._negotiation.letting_go or self._checking.leases:
            await self._changed.wait()

    async def submit(self, spec: JobSpec, given: Sequence[GivenUnit] | None = None) -> Job:
        """Check a job, write it down and start it; errors as `pipeline.submit` raises.

        Raises:
            JobError: ``draining``: this daemon is about to end.
        """
        if self._state.draining:
            raise JobError(
                "this daemon is ending and takes no more jobs",
                code="draining",
                hint="submit it again after the next `shoal up`",
            )
        if spec.id is None:
            return await self._submit(spec, given)
        async with self._house.adding.take(spec.id):  # the same one may come twice
            return await self._submit(spec, given)

    async def _submit(self, spec: JobSpec, given: Sequence[GivenUnit] | None) -> Job:
        job = await pipeline.submit(self._house, spec, given)
        with trio.CancelScope(shield=True):  # what is written down runs, whoever hangs up
            return job if job.state.final else await self._start(job, spec)

    def units_added(self, job_id: JobId, taken: Taken | None = None) -> None:
        """Look at the units that were added to an open job: those, where they are given."""
        running = self._running.get(job_id)
        if running is None or taken is None or not self._at_hand(running, taken):
            self._ready(job_id, again=False)
            return
        running.units.update({unit.index: unit for unit in taken.units})
        running.cursor = taken.units[-1].index
        indices = [unit.index for unit in taken.units]
        events.units_came(self._state, job_id, indices, running.cursor + 1)
        self.wake()
        if self._views.watched(job_id):
            self._nursery.start_soon(self._show, job_id)

    def _at_hand(self, running: RunningJob, taken: Taken) -> bool:
        """Whether units can go on as they are, without a look into the journal."""
        queue, units = running.queue, taken.units
        return (
            queue.id in self._state.jobs
            and bool(units)
            and running.cursor == units[0].index - 1
            and not (queue.unread or queue.reading)
            and len(queue.waiting) + len(units) <= WINDOW_UNITS
            and all(
                not unit.awaits
                and all(
                    i in taken.tensors or self._house.store.holds(i)
                    for i in unit.inputs.values()
                )
                for unit in units
            )
        )

    def sealed(self, job_id: JobId) -> None:
        """No more units come to a job: it ends with those it has."""
        self._ready(job_id, again=False)

    async def cancel_units(self, job_id: JobId, indices: Sequence[int]) -> tuple[int, ...]:
        """Cancel units that nobody runs; gives the indices of those that are cancelled.

        Raises:
            JobError: ``no_such_job``.
        """
        await self._house.journal.job(job_id)
        running = self._running.get(job_id)
        if running is None:
            return ()
        free = [i for i in indices if i not in running.queue.out and i not in running.ending]
        running.ending.update(free)
        try:
            with trio.CancelScope(shield=True):  # they have ended for the scheduler already
                for index in free:
                    events.ended(self._state, job_id, index)
                ends = [Ended(unit) for unit in await self._cancelled(running, free)]
                written = await self._house.journal.end_units(ends)
        finally:  # also where it could not be written: then they are read again
            running.ending.difference_update(free)
            self._ready(job_id, again=False)
        return tuple(end.unit.index for end, new in zip(ends, written.new, strict=True) if new)

    async def _cancelled(self, running: RunningJob, indices: Iterable[int]) -> list[Unit]:
        """Units as they are when cancelled, read where they are not in memory."""
        job_id, units = running.need.job.id, []
        for index in indices:
            unit = running.units.pop(index, None)
            if unit is None:
                found = await self._house.journal.open_units(job_id, index - 1, 1)
                unit = found[0] if found and found[0].index == index else None
            if unit is not None:
                units.append(msgspec.structs.replace(unit, state=UnitState.CANCELLED))
        return units

    async def resume(self) -> None:
        """Start again what ran when the daemon ended; to be called before any `submit`."""
        for job in await self._house.journal.running_jobs():
            spec = await self._house.journal.spec(job.id)
            await self._start(job, spec, resumed=True)

    async def cancel(self, job_id: JobId) -> Job:
        """End a job; units that have ended keep their results.

        Raises:
            JobError: ``no_such_job``.
        """
        async with self._house.adding.take(job_id):  # it may be about to be written down
            job = await self._house.journal.job(job_id)
        if job.state.final:
            return job
        running = self._running.get(job_id)
        if running is not None:
            running.scope.cancel()
        job = await self._end(job_id, JobState.CANCELLED)
        if job.outputs_stay:
            self._nursery.start_soon(self._let_go_of_outputs, job_id)
        return job

    async def _let_go_of_outputs(self, job_id: JobId) -> None:
        """Tell peers that they need not keep what a cancelled job left with them."""
        try:
            await chaining.let_go(self._house, job_id)
        except ShoalError as error:  # they let go by themselves, in time
            log.warning("peers were not told to drop outputs", job=job_id, why=error.message)

    # --- jobs from start to end ---

    async def _start(self, job: Job, spec: JobSpec, *, resumed: bool = False) -> Job:
        """Run a job in a task of its own; one that cannot even start has failed."""
        if job.id in self._running or job.id in self._starting:
            return job
        self._starting.add(job.id)
        try:
            running = await prepare(self._house, job, spec, resumed=resumed)
        except ShoalError as error:
            self._house.store.unpin(job.id)
            return await self._end(job.id, JobState.FAILED, _failure(error))
        finally:
            self._starting.discard(job.id)
        self._running[job.id] = running
        self._nursery.start_soon(self._run, running)
        return job

    async def _start_again(self, job_id: JobId) -> None:
        """Run a job that had ended, and has units to do again."""
        try:
            job = await self._house.journal.job(job_id)
            if job.state.final or job_id in self._running or job_id in self._starting:
                return
            await self._start(job, await self._house.journal.spec(job_id), resumed=True)
        except ShoalError as error:
            log.error("a job could not be taken up again", job=job_id, error=str(error))

    async def _run(self, running: RunningJob) -> None:
        job_id = running.need.job.id
        log.info("job started", job=job_id, units=running.queue.units)
        try:
            with running.scope:
                async with trio.open_nursery() as nursery:
                    running.nursery = nursery
                    events.job_started(self._state, running.queue)
                    self._look_around()
                    self.wake()
                    try:
                        await running.finished.wait()
                    finally:  # before the nursery closes: nothing is begun in it any more
                        self._leave(running)
                    nursery.cancel_scope.cancel()
                await self._end_by_itself(running)
        except* StoreError as errors:  # this node's disk: no other provider would help
            await self._break_off(job_id, _failure(_first(errors)))
        except* Exception as errors:  # root of a job: one job's end must not end the others
            log.exception("a job failed inside this node", job=job_id)
            await self._break_off(job_id, Failure("internal", repr(errors)[:400]))
        finally:
            self._running.pop(job_id, None)
            self._house.store.unpin(job_id)
            self.wake()
            if running.touched:
                self._nursery.start_soon(self._start_again, job_id)

    async def _end_by_itself(self, running: RunningJob) -> None:
        """End a job of which all units have ended, or that was failed as a whole."""
        job_id, failure = running.need.job.id, running.failure
        if failure is not None:
            await self._end(job_id, JobState.FAILED, failure)
            return
        failure = await self._house.journal.first_failure(job_id)
        state = JobState.FAILED if failure else JobState.DONE
        job = await self._end(job_id, state, failure, by_itself=True)
        # Else a unit of it has to run again by now, since its outputs were lost.
        running.touched = running.touched or not job.state.final

    def _leave(self, running: RunningJob) -> None:
        """Have nothing more to do with peers for a job."""
        events.job_ended(self._state, running.need.job.id, trio.current_time())
        self._checking.leave(running)
        for side in running.bids.values():
            self._negotiation.let_go(side)
        for held in running.held.values():
            self._negotiation.let_go(held.side, held.draw)
        running.bids.clear()
        running.held.clear()

    async def _break_off(self, job_id: JobId, failure: Failure) -> None:
        """End a job through a fault of this node, perhaps one that keeps it from writing."""
        try:
            await self._end(job_id, JobState.FAILED, failure)
        except ShoalError as error:
            log.error(
                "a job stopped and its end could not be written: it goes on after a restart",
                job=job_id,
                why=failure.message,
                error=str(error),
            )

    async def _end(
        self,
        job_id: JobId,
        state: JobState,
        failure: Failure | None = None,
        *,
        by_itself: bool = False,
    ) -> Job:
        goes_on = False
        with trio.CancelScope(shield=True):
            try:
                job = await self._house.journal.end_job(
                    job_id, state, time.time(), failure, by_itself=by_itself
                )
                if goes_on := not job.state.final:
                    return job
                self.jobs_ended[job.state] += 1
                log.info(
                    "job ended", job=job_id, state=job.state.value, failed=job.units_failed
                )
                await self._views.changed(job_id)
            finally:  # also where it could not be written: nothing more will be shown
                if not goes_on:
                    self._views.close(job_id)
        return job

    def _touched(self, job_ids: frozenset[JobId]) -> None:
        """The ends of units made others ready, or failed them: see `State.touched`."""
        for job_id in job_ids:
            self._ready(job_id, again=True)

    def _ready(self, job_id: JobId, *, again: bool) -> None:
        """Look for ready units of a job, from the first on where ``again``."""
        running = self._running.get(job_id)
        if running is None:
            if again and job_id not in self._starting:
                self._nursery.start_soon(self._start_again, job_id)
            return
        if again:
            running.cursor, running.touched = -1, True
        events.units_ready(self._state, job_id)
        self._nursery.start_soon(self._show, job_id)
        self.wake()

    async def _show(self, job_id: JobId) -> None:
        """Show a job that changed through other jobs to those who watch it."""
        try:
            await self._views.changed(job_id)
        except ShoalError as error:
            log.error("a job cannot be shown", job=job_id, error=str(error))

    # --- the plan ---

    def wake(self) -> None:
        """Plan again."""
        self._changed.set()
        self._changed = trio.Event()

    async def keep_planning(self) -> None:
        """Do what the plan says, for ever."""
        looked_s = 0.0
        while True:
            changed = self._changed
            try:
                if trio.current_time() >= looked_s + RECALL_INTERVAL_S:
                    looked_s = trio.current_time()
                    self._look_around()
                wake_at_s = self._carry_out()
            except Exception:  # root of all jobs: a bug here must not end the daemon
                log.exception("the scheduler failed inside this node")
                for running in self._running.values():
                    running.failure = Failure("internal", "the scheduler failed: see the log")
                    running.finished.set()
                wake_at_s = trio.current_time() + RECALL_INTERVAL_S
            if self._running:
                wake_at_s = min(wake_at_s, looked_s + RECALL_INTERVAL_S)
            with trio.move_on_at(wake_at_s):
                await changed.wait()

    def _look_around(self) -> None:
        """See who may be called now."""
        offering: dict[str, dict[PeerId, Facts]] = {}
        for job in self._state.jobs.values():
            if job.numeric_class not in offering:
                peers = [
                    peer
                    for peer in self._providers(job.numeric_class)
                    if not self._checking.is_false(peer)
                ]
                if self._tries(job.numeric_class):
                    standings = self._house.standings
                    peers, _ = probation.tried(peers, standings.of, standings.may_verify)
                offering[job.numeric_class] = {
                    peer: self._facts(peer, job.numeric_class) for peer in peers
                }
        events.peers_known(self._state, offering)
        for running in self._running.values():
            for lease, held in running.held.items():
                if self._checking.is_outdated(running, held):
                    events.lease_closed(self._state, lease)

    def _tries(self, numeric_class: str) -> bool:
        """Whether newcomers are tried a few at a time: where all they return is checked."""
        jobs = self._running.values()
        return all(
            running.verify.level == "auto"
            for running in jobs
            if running.queue.numeric_class == numeric_class
        )

    def _carry_out(self) -> float:
        """Begin whatever is to be done now; gives when to look again."""
        for _ in range(PLANS_AT_ONCE):
            now_s = trio.current_time()
            decided = plan(self._state, now_s)
            for action in decided.actions:
                running = self._running[action.job]
                events.apply(self._state, action, now_s)
                self._begin(running, action)
            if not decided.actions:
                return decided.wake_at_s
        return trio.current_time()

    def _begin(self, running: RunningJob, action: do.Action) -> None:  # noqa: C901  # a table
        assert running.nursery is not None
        start, talk = running.nursery.start_soon, self._negotiation
        match action:
            case do.Call():
                for peer in action.peers:
                    start(talk.call, running, peer, action.units)
            case do.Award():
                start(talk.award, running, action.peer)
            case do.Decline():
                self._negotiation.let_go(running.bids.pop(action.peer))
            case do.HandOver():
                start(self._hand_over, running, action)
            case do.Cancel():
                held = running.held[self._state.batches[action.batch].lease]
                names = [f"{running.need.job.id}/{i}" for i in action.units]
                start(pipeline.cancel, self._house, held.side, names)
            case do.Release():
                held = running.held.pop(action.lease)
                self._negotiation.let_go(held.side, held.draw)
            case do.Drop():
                held = running.held.pop(action.lease)
                held.cut()
                self._negotiation.let_go(held.side, held.draw)
                hangs = NetworkError(
                    f"{held.side.provider} takes far longer than others", code="no_answer"
                )
                detail = f"in job {running.need.job.id}"
                self._house.standings.note(held.side.provider, Deed.SLOW, detail=detail)
                start(talk.note, running, held.side.provider, hangs)
            case do.GiveUp():
                start(self._give_up, running, action.unit)
            case do.ReadOn():
                start(self._read_on, running)
            case do.Check():
                start(self._check, running)
            case do.FailFast():
                start(self._fail_fast, running)

    # --- units ---

    async def _hand_over(self, running: RunningJob, action: do.HandOver) -> None:
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
                    self._checking.begin(running, held, self._drawn(running, batch, outcome))
                if outcome.ends:
                    await self._deliver_or_hold(running, held, batch, outcome.ends)
                for index in outcome.given_up:
                    events.ended(self._state, running.need.job.id, index)
                    await self._give_up(running, index)
                if outcome.refusal is not None:
                    await self._negotiation.note(running, peer, outcome.refusal)
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
            self._negotiation.let_go(held.side, held.draw)
            if problem.code == "no_answer":
                self._house.standings.note(peer, Deed.NO_ANSWER, detail=problem.message)
            await self._negotiation.note(running, peer, problem)
        events.batch_over(self._state, batch.id)
        self.wake()

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
                pipeline.let_go(self._house, [end])
        return kept

    async def deliver_checked(self, running: RunningJob, ends: Sequence[Ended]) -> None:
        """Write down the ends of units that waited for their checks."""
        indices = [end.unit.index for end in ends]
        self._house.timings.passed(running.need.job.id, indices, "checked")
        try:
            with trio.CancelScope(shield=True):
                written = await pipeline.deliver(self._house, ends)
                for end, new in zip(ends, written.new, strict=True):
                    self.units_ended[end.unit.state] += new
                await self._views.changed(running.need.job.id)
        finally:
            running.ending.difference_update(indices)
            self.wake()

    def let_go(self, lease: VerifierLease) -> None:
        """Release a lease with a verifier, in a task that outlives the job."""
        self._negotiation.let_go(lease.side, lease.draw)

    def put_back(self, running: RunningJob, indices: Sequence[int]) -> None:
        """Have units run again whose results are not used."""
        running.ending.difference_update(indices)
        running.doubted.update(indices)
        running.queue.ended -= len(indices)
        self._ready(running.need.job.id, again=True)

    def doubt(self, job_id: JobId, index: int) -> None:
        """Have whoever runs this unit next be checked: a false peer had it."""
        running = self._running.get(job_id)
        if running is not None:
            running.doubted.add(index)

    def banned(self, peer: PeerId) -> None:
        """Have nothing more to do with a peer that is banned, and run again what it gave."""
        self._checking.banned(peer)

    def forgive(self, peer: PeerId) -> None:
        """Deal with a peer again whose ban the operator has lifted."""
        self._checking.forgive(peer)
        self.wake()

    async def take_away(self, peer: PeerId, detail: str) -> None:
        """Have nothing more to do with a peer whose result was false."""
        for job_id, running in list(self._running.items()):
            for lease, held in list(running.held.items()):
                if held.side.provider == peer:
                    del running.held[lease]
                    held.cut()
                    events.lease_broken(self._state, lease)
                    self._negotiation.let_go(held.side, held.draw)
            if peer in running.queue.candidates:
                events.refused(self._state, job_id, peer, FOUND_FALSE, math.inf)
                answer = Answer(job_id, peer, time.time(), FOUND_FALSE, detail)
                await self._house.journal.add_answer(answer)
        self.wake()

    async def _deliver_or_hold(
        self, running: RunningJob, held: Held, batch: Batch, ends: Sequence[Ended]
    ) -> None:
        """Deliver results that were not drawn, unless their provider is yet to be known."""
        if self._checking.holds(running, batch.peer):
            self._checking.hold(running, held, self._waiting(running, batch, ends))
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
            await self._views.changed(job_id)
        copies = {
            blob_id
            for end, new in zip(ends, written.new, strict=True)
            if not new
            for blob_id in end.left
        }
        if copies:
            await chaining.let_go_of_copies(self._house, batch.peer, copies)

    def _forget(self, running: RunningJob, index: int) -> None:
        running.units.pop(index, None)
        running.errors.pop(index, None)

    async def _give_up(self, running: RunningJob, index: int) -> None:
        """Write down that a unit has failed; for the scheduler it has ended already."""
        ending = running.errors.get(index)
        if ending is None:
            failure = Failure("lost_too_often", "too many leases broke while this unit was out")
            ending = Ending(running.units[index], None, failure, None)
        ended = handing_over.failed_end(
            ending.unit, ending.peer, ending.failure, ending.receipt
        )
        running.ending.add(index)
        if ending.held is not None and self._checking.doubts(running, ended):
            self._forget(running, index)
            self._checking.begin(running, ending.held, [(ended, 1)], own_only=True)
            return
        try:
            with trio.CancelScope(shield=True):
                written = await self._house.journal.end_units([ended])
                self.units_ended[UnitState.FAILED] += written.new[0]
                await self._views.changed(running.need.job.id)
        finally:
            running.ending.discard(index)
            self._forget(running, index)
            self.wake()

    async def _read_on(self, running: RunningJob) -> None:
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

    async def _check(self, running: RunningJob) -> None:
        """End a job of which nothing is left, or wait for what is still to come."""
        job_id = running.need.job.id
        while running.ending:
            await self._changed.wait()
        running.touched = False
        job = await self._house.journal.job(job_id)
        running.queue.open = job.open
        ready, awaiting = await self._house.journal.any_open(job_id)
        if ready:
            running.cursor = -1
            events.units_ready(self._state, job_id, job.units_total)
        elif job.open or awaiting:
            events.not_finished(self._state, job_id)
        elif not running.queue.busy:
            running.finished.set()
        self.wake()

    async def _fail_fast(self, running: RunningJob) -> None:
        answers = await self._house.journal.answers(running.need.job.id)
        running.failure = nobody_bids(running.need.job, answers, self._house.peer_id)
        running.finished.set()


@asynccontextmanager
async def open_jobs(
    house: House,
    providers: Callable[[str], list[PeerId]],
    facts: Callable[[PeerId, str], Facts] = lambda _peer, _class: Facts(),
) -> AsyncIterator[Jobs]:
    """Run jobs for as long as the block runs; what has not ended then is resumed later."""
    async with trio.open_nursery() as nursery:
        jobs = Jobs(house, providers, nursery, facts)
        nursery.start_soon(jobs.keep_planning)
        yield jobs
        nursery.cancel_scope.cancel()


def _failure(error: ShoalError) -> Failure:
    return Failure(error.code, error.message, error.hint)


def _first(group: BaseExceptionGroup[ShoalError]) -> ShoalError:
    """One error of a group: the first leaf tells enough for a person."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ShoalError)
    return error
