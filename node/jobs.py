"""The requester's half of the node: takes each job's units to providers and back.

What is to be done is decided by `node.scheduling`, for all running jobs together. Here what
submitters ask for is taken in, and the plan is carried out: one task asks for it at every
change. How a job starts and ends is `node.job_runs`; what happens to its units is
`node.units_under_way`, which goes through the steps of `node.pipeline`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node import chaining, ending_leases, pipeline, probation
from shoal.node.errors import JobError, NetworkError
from shoal.node.house import House
from shoal.node.job_runs import JobRuns
from shoal.node.records import (
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
from shoal.node.running_jobs import RunningJob, RunningJobs
from shoal.node.scheduling import actions as do
from shoal.node.scheduling import events
from shoal.node.scheduling.outlooks import outlook
from shoal.node.scheduling.plan import WINDOW_UNITS, plan
from shoal.node.scheduling.state import Facts
from shoal.node.units_under_way import UnitsUnderWay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from shoal.compute.programs import AnyManifest
    from shoal.crypto.peer_id import PeerId
    from shoal.node.given_units import Taken
    from shoal.node.outlook import Outlook
    from shoal.node.records import CheckVerdict, GivenUnit
    from shoal.node.surroundings import PendingChecks
    from shoal.node.wanted import Wanted

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
        facts: What is known of a peer, for units that look for such.
    """

    def __init__(
        self,
        house: House,
        providers: Callable[[Wanted], list[PeerId]],
        nursery: trio.Nursery,
        facts: Callable[[PeerId, Wanted], Facts] = lambda _peer, _class: Facts(),
    ) -> None:
        self._house = house
        self._providers, self._facts = providers, facts
        self._nursery = nursery
        self._jobs = RunningJobs(house.journal)
        self._running, self._state = self._jobs.by_id, self._jobs.state
        self._views = self._jobs.views
        self._under_way = UnitsUnderWay(
            house,
            self._jobs,
            providers,
            lambda job_id: self._runs.ready(job_id, again=True),
            nursery,
        )
        self._runs = JobRuns(house, self._jobs, self._under_way, self._look_around, nursery)
        self._checking = self._under_way.checking
        self._negotiation = self._under_way.negotiation
        self.jobs_ended = self._runs.jobs_ended
        self.units_ended = self._under_way.units_ended
        house.journal.touched = self._runs.touched

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

    def manifest(self, job_id: JobId) -> AnyManifest | None:
        """Of a running job, the manifest of its program, which is held as long as it runs."""
        running = self._running.get(job_id)
        return None if running is None else running.need.manifest

    def wanted(self, job_id: JobId) -> Wanted | None:
        """What a running job's units look for."""
        running = self._running.get(job_id)
        return None if running is None else running.need.wanted

    async def outlook(self, job_id: JobId) -> Outlook | None:
        """How a job stands, peer by peer; None when it does not run."""
        if job_id not in self._running:
            return None
        _, awaiting = await self._house.journal.count_open(job_id)
        job = self._state.jobs.get(job_id)
        if job is None:
            return None
        return outlook(self._state, job, awaiting, trio.current_time())

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
            await self._jobs.changed.wait()

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
            return job if job.state.final else await self._runs.start(job, spec)

    def units_added(self, job_id: JobId, taken: Taken | None = None) -> None:
        """Look at the units that were added to an open job: those, where they are given."""
        running = self._running.get(job_id)
        if running is None or taken is None or not self._at_hand(running, taken):
            self._runs.ready(job_id, again=False)
            return
        running.units.update({unit.index: unit for unit in taken.units})
        running.cursor = taken.units[-1].index
        indices = [unit.index for unit in taken.units]
        events.units_came(self._state, job_id, indices, running.cursor + 1)
        self.wake()
        if self._views.watched(job_id):
            self._nursery.start_soon(self._runs.show, job_id)

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
        self._runs.ready(job_id, again=False)

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
            self._runs.ready(job_id, again=False)
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
            await self._runs.start(job, spec, resumed=True)

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
        job = await self._runs.end(job_id, JobState.CANCELLED)
        if job.outputs_stay:
            self._nursery.start_soon(self._let_go_of_outputs, job_id)
        return job

    async def _let_go_of_outputs(self, job_id: JobId) -> None:
        """Tell peers that they need not keep what a cancelled job left with them."""
        try:
            await chaining.let_go(self._house, job_id)
        except ShoalError as error:  # they let go by themselves, in time
            log.warning("peers were not told to drop outputs", job=job_id, why=error.message)

    # --- the plan ---

    def wake(self) -> None:
        """Plan again."""
        self._jobs.wake()

    async def keep_planning(self) -> None:
        """Do what the plan says, for ever."""
        looked_s = 0.0
        while True:
            changed = self._jobs.changed
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
        offering: dict[Wanted, dict[PeerId, Facts]] = {}
        for job in self._state.jobs.values():
            if job.wanted not in offering:
                peers = [
                    peer
                    for peer in self._providers(job.wanted)
                    if not self._checking.is_false(peer)
                ]
                if self._tries(job.wanted):
                    standings = self._house.standings
                    peers, _ = probation.tried(peers, standings.of, standings.may_verify)
                offering[job.wanted] = {peer: self._facts(peer, job.wanted) for peer in peers}
        events.peers_known(self._state, offering)
        for running in self._running.values():
            for lease, held in running.held.items():
                if self._checking.is_outdated(running, held):
                    events.lease_closed(self._state, lease)

    def _tries(self, wanted: Wanted) -> bool:
        """Whether newcomers are tried a few at a time: where all they return is checked."""
        jobs = self._running.values()
        return all(
            running.verify.level == "auto" for running in jobs if running.queue.wanted == wanted
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
                start(self._under_way.hand_over, running, action)
            case do.Cancel():
                held = running.held[self._state.batches[action.batch].lease]
                names = [f"{running.need.job.id}/{i}" for i in action.units]
                start(ending_leases.cancel, self._house, held.side, names)
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
                start(self._under_way.give_up, running, action.unit)
            case do.ReadOn():
                start(self._under_way.read_on, running)
            case do.Check():
                start(self._runs.check, running)
            case do.FailFast():
                start(self._runs.fail_fast, running)

    def banned(self, peer: PeerId) -> None:
        """Have nothing more to do with a peer that is banned, and run again what it gave."""
        self._checking.banned(peer)

    def forgive(self, peer: PeerId) -> None:
        """Deal with a peer again whose ban the operator has lifted."""
        self._checking.forgive(peer)
        self.wake()


@asynccontextmanager
async def open_jobs(
    house: House,
    providers: Callable[[Wanted], list[PeerId]],
    facts: Callable[[PeerId, Wanted], Facts] = lambda _peer, _class: Facts(),
) -> AsyncIterator[Jobs]:
    """Run jobs for as long as the block runs; what has not ended then is resumed later."""
    async with trio.open_nursery() as nursery:
        jobs = Jobs(house, providers, nursery, facts)
        nursery.start_soon(jobs.keep_planning)
        yield jobs
        nursery.cancel_scope.cancel()
