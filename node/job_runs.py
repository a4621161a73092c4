"""Each job's run, from when it is started until its end is written down.

On the requester's side, around the data path: a job is taken up, once, in a task of its
own, at its submission, after a restart, or again where units of it have to be made anew; it
ends when none of its units is left, when nobody bids, or by a fault of this node. What
happens to its units is `node.units_under_way`'s; what is to be done is the scheduler's.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node.account import nobody_bids
from shoal.node.errors import StoreError
from shoal.node.records import Failure, JobState
from shoal.node.running_jobs import prepare
from shoal.node.scheduling import events

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.node.house import House
    from shoal.node.records import Job, JobId, JobSpec
    from shoal.node.running_jobs import RunningJob, RunningJobs
    from shoal.node.units_under_way import UnitsUnderWay

log = structlog.get_logger(__name__)


class JobRuns:
    """Starts jobs and ends them. Made by `node.jobs.Jobs`.

    Args:
        house: The modules that the steps call.
        jobs: The jobs that run.
        under_way: What is under way of their units.
        look_around: Sees who may be called for bids.
        nursery: Owns one task for each running job.

    Attributes:
        jobs_ended: How many jobs ended how since this node started.
    """

    def __init__(
        self,
        house: House,
        jobs: RunningJobs,
        under_way: UnitsUnderWay,
        look_around: Callable[[], None],
        nursery: trio.Nursery,
    ) -> None:
        self._house = house
        self._jobs = jobs
        self._state = jobs.state
        self._under_way = under_way
        self._look_around = look_around
        self._nursery = nursery
        self._starting: set[JobId] = set()
        self.jobs_ended: Counter[JobState] = Counter()

    async def start(self, job: Job, spec: JobSpec, *, resumed: bool = False) -> Job:
        """Run a job in a task of its own; one that cannot even start has failed."""
        if job.id in self._jobs.by_id or job.id in self._starting:
            return job
        self._starting.add(job.id)
        try:
            running = await prepare(self._house, job, spec, resumed=resumed)
        except ShoalError as error:
            self._house.store.unpin(job.id)
            return await self.end(job.id, JobState.FAILED, _failure(error))
        finally:
            self._starting.discard(job.id)
        self._jobs.by_id[job.id] = running
        self._nursery.start_soon(self._run, running)
        return job

    async def _start_again(self, job_id: JobId) -> None:
        """Run a job that had ended, and has units to do again."""
        try:
            job = await self._house.journal.job(job_id)
            if job.state.final or job_id in self._jobs.by_id or job_id in self._starting:
                return
            await self.start(job, await self._house.journal.spec(job_id), resumed=True)
        except ShoalError as error:
            log.error("a job could not be taken up again", job=job_id, error=str(error))

    def ready(self, job_id: JobId, *, again: bool) -> None:
        """Look for ready units of a job, from the first on where ``again``."""
        running = self._jobs.by_id.get(job_id)
        if running is None:
            if again and job_id not in self._starting:
                self._nursery.start_soon(self._start_again, job_id)
            return
        if again:
            running.cursor, running.touched = -1, True
        events.units_ready(self._state, job_id)
        self._nursery.start_soon(self.show, job_id)
        self._jobs.wake()

    def touched(self, job_ids: frozenset[JobId]) -> None:
        """The ends of units made others ready, or failed them: see `State.touched`."""
        for job_id in job_ids:
            self.ready(job_id, again=True)

    async def show(self, job_id: JobId) -> None:
        """Show a job that changed through other jobs to those who watch it."""
        try:
            await self._jobs.views.changed(job_id)
        except ShoalError as error:
            log.error("a job cannot be shown", job=job_id, error=str(error))

    async def _run(self, running: RunningJob) -> None:
        job_id = running.need.job.id
        log.info("job started", job=job_id, units=running.queue.units)
        try:
            with running.scope:
                async with trio.open_nursery() as nursery:
                    running.nursery = nursery
                    events.job_started(self._state, running.queue)
                    self._look_around()
                    self._jobs.wake()
                    try:
                        await running.finished.wait()
                    finally:  # before the nursery closes: nothing is begun in it any more
                        self._under_way.leave(running)
                    nursery.cancel_scope.cancel()
                await self._end_by_itself(running)
        except* StoreError as errors:  # this node's disk: no other provider would help
            await self._break_off(job_id, _failure(_first(errors)))
        except* Exception as errors:  # root of a job: one job's end must not end the others
            log.exception("a job failed inside this node", job=job_id)
            await self._break_off(job_id, Failure("internal", repr(errors)[:400]))
        finally:
            self._jobs.by_id.pop(job_id, None)
            self._house.store.unpin(job_id)
            self._jobs.wake()
            if running.touched:
                self._nursery.start_soon(self._start_again, job_id)

    async def check(self, running: RunningJob) -> None:
        """End a job of which nothing is left, or wait for what is still to come."""
        job_id = running.need.job.id
        while running.ending:
            await self._jobs.changed.wait()
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
        self._jobs.wake()

    async def fail_fast(self, running: RunningJob) -> None:
        """Fail a job that nobody bids on, and say why."""
        answers = await self._house.journal.answers(running.need.job.id)
        running.failure = nobody_bids(running.need.job, answers, self._house.peer_id)
        running.finished.set()

    async def _end_by_itself(self, running: RunningJob) -> None:
        """End a job of which all units have ended, or that was failed as a whole."""
        job_id, failure = running.need.job.id, running.failure
        if failure is not None:
            await self.end(job_id, JobState.FAILED, failure)
            return
        failure = await self._house.journal.first_failure(job_id)
        state = JobState.FAILED if failure else JobState.DONE
        job = await self.end(job_id, state, failure, by_itself=True)
        # Else a unit of it has to run again by now, since its outputs were lost.
        running.touched = running.touched or not job.state.final

    async def _break_off(self, job_id: JobId, failure: Failure) -> None:
        """End a job through a fault of this node, perhaps one that keeps it from writing."""
        try:
            await self.end(job_id, JobState.FAILED, failure)
        except ShoalError as error:
            log.error(
                "a job stopped and its end could not be written: it goes on after a restart",
                job=job_id,
                why=failure.message,
                error=str(error),
            )

    async def end(
        self,
        job_id: JobId,
        state: JobState,
        failure: Failure | None = None,
        *,
        by_itself: bool = False,
    ) -> Job:
        """Write down that a job has ended, unless units of it have to run again by then."""
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
                await self._jobs.views.changed(job_id)
            finally:  # also where it could not be written: nothing more will be shown
                if not goes_on:
                    self._jobs.views.close(job_id)
        return job


def _failure(error: ShoalError) -> Failure:
    return Failure(error.code, error.message, error.hint)


def _first(group: BaseExceptionGroup[ShoalError]) -> ShoalError:
    """One error of a group: the first leaf tells enough for a person."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ShoalError)
    return error
