"""How long results are kept: until they were fetched, and then while there is room.

The part of *deliver* that comes after it. Small outputs are in the journal, large ones
blobs: those are pinned until the whole job was fetched, then the blob store's own quota
decides. Of the journal, the jobs that were fetched wholly are forgotten, the one that
ended first before the others, while all jobs together take more than `results_quota`.
One that was not is never forgotten before `results_keep` is over, and then only for room.

What is decided is in `to_forget`, which is pure; the rest carries it out.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.node import journal_forgetting
from shoal.node.errors import JobError, StoreError
from shoal.node.house import outputs_of
from shoal.node.journal_forgetting import EndedJob
from shoal.node.journal_results import Order
from shoal.node.records import Job, JobId

if TYPE_CHECKING:
    from shoal.node.blobs import BlobStore
    from shoal.node.state import State

INTERVAL_S = 30.0
"""Between two looks at how much the journal takes."""

UNITS_AT_ONCE = 1000
"""Of a job, in memory, when its outputs are pinned at a start."""

log = structlog.get_logger(__name__)


def to_forget(
    jobs: Sequence[EndedJob], taken_bytes: int, quota_bytes: int
) -> tuple[EndedJob, ...]:
    """Choose which jobs go, so that the rest is within the quota.

    Args:
        jobs: Those that may go.
        taken_bytes: By all jobs, these among them.
        quota_bytes: What they may take.

    Returns:
        Those that were fetched first, the one that ended first before the others; all of
        ``jobs`` where that is not enough.
    """
    chosen: list[EndedJob] = []
    for job in sorted(jobs, key=lambda job: (not job.fetched, job.ended_at, job.id)):
        if taken_bytes <= quota_bytes:
            break
        chosen.append(job)
        taken_bytes -= job.size_bytes
    return tuple(chosen)


class Retention:
    """Keeps and forgets the results of one daemon's jobs.

    Args:
        journal: Has the jobs and their small outputs.
        store: Has their large outputs.
        quota_bytes: Gives what jobs may take in the journal, now.
        keep_s: Gives how long results that nobody fetched are kept in any case.

    Attributes:
        leaving: Called with a job that is being forgotten: what it left with peers is
            still in the journal, and is for nobody any more.
    """

    def __init__(
        self,
        journal: State,
        store: BlobStore,
        quota_bytes: Callable[[], int],
        keep_s: Callable[[], float],
    ) -> None:
        self._journal = journal
        self._store = store
        self._quota_bytes = quota_bytes
        self._keep_s = keep_s
        self.leaving: Callable[[JobId], Awaitable[None]] = _nothing_left
        self._deleting = trio.Lock()
        self._full = False

    async def pin(self) -> None:
        """Pin outputs that are blobs, of jobs that were not fetched: at each start, first.

        Raises:
            StoreError: The journal cannot be read.
        """
        for job_id in await self._journal.transact(_with_blobs_unfetched):
            offset = 0
            while units := await self._journal.units(job_id, offset, UNITS_AT_ONCE):
                offset += len(units)
                for unit in units:
                    for blob_id in (unit.outputs or {}).values():
                        if self._store.holds(blob_id):
                            self._store.pin(blob_id, outputs_of(job_id))

    async def note_fetched(self, job_id: JobId, indices: Collection[int] | None) -> Job:
        """Note that the results of these units, or all, were given out; gives the job.

        Raises:
            JobError: ``no_such_job``.
            StoreError: It could not be written.
        """
        return self._let_go(await self._journal.note_fetched(job_id, indices))

    async def note_read(self, job_id: JobId, until: int, order: Order = "given") -> Job:
        """Note that the results up to there, as `State.results` counts, were given out.

        Raises:
            JobError: ``no_such_job``.
            StoreError: It could not be written.
        """
        return self._let_go(await self._journal.note_read(job_id, until, order))

    async def forget(self, job_id: JobId, *, unfetched_too: bool = False) -> Job:
        """Forget a job that has ended, with its results; gives it as it was.

        Raises:
            JobError: ``no_such_job``, ``job_running``, ``job_awaited``, or
                ``results_unfetched`` where not ``unfetched_too``.
            StoreError: It could not be written.
        """
        job = await self._journal.transact(
            partial(journal_forgetting.forget, job_id=job_id, unfetched_too=unfetched_too)
        )
        self._store.unpin(outputs_of(job_id))
        await self.leaving(job_id)
        await self._delete()
        return job

    async def prune(self) -> int:
        """Forget what has to go for room, and finish what was begun; gives how many jobs.

        Raises:
            StoreError: The disk is full, so that not even this can be written, or the
                file damaged.
        """
        quota_bytes = self._quota_bytes()
        taken_bytes, jobs = await self._journal.transact(
            partial(_taken, quota_bytes=quota_bytes, before_s=time.time() - self._keep_s())
        )
        chosen = to_forget(jobs, taken_bytes, quota_bytes)
        gone = 0
        for job in chosen:
            try:
                await self.forget(job.id, unfetched_too=True)
            except JobError as error:  # since the look: it runs again, or is gone already
                log.info("a job is not forgotten for room", job=job.id, why=error.message)
                continue
            log.info("a job is forgotten for room", job=job.id, fetched=job.fetched)
            gone += 1
        await self._delete()
        left_bytes = taken_bytes - sum(job.size_bytes for job in chosen)
        if left_bytes > quota_bytes and not self._full:
            log.warning(
                "results take more than results_quota, and none of them may go: fetch them, "
                "or let them go with `shoal job forget`",
                results_bytes=left_bytes,
                results_quota=quota_bytes,
            )
        self._full = left_bytes > quota_bytes
        return gone

    async def run(self) -> None:
        """Keep within the quota, for as long as the daemon runs."""
        while True:
            try:
                await self.prune()
            except StoreError as error:  # the next look may find more room
                log.warning("results cannot be forgotten", error=str(error))
            await trio.sleep(INTERVAL_S)

    def _let_go(self, job: Job) -> Job:
        if job.fetched:
            self._store.unpin(outputs_of(job.id))
        return job

    async def _delete(self) -> None:
        """Delete what is marked, piece by piece, and give its pages back to the disk."""
        async with self._deleting:
            jobs = await self._journal.transact(journal_forgetting.forgotten)
            for job_id in jobs:
                while await self._journal.transact(
                    partial(journal_forgetting.delete_piece, job_id=job_id)
                ):
                    pass
            if jobs:
                while await self._journal.transact(journal_forgetting.give_back_pages):
                    pass


async def _nothing_left(_job_id: JobId) -> None:
    pass


def _taken(
    database: sqlite3.Connection, quota_bytes: int, before_s: float
) -> tuple[int, list[EndedJob]]:
    taken_bytes = journal_forgetting.size_bytes(database)
    if taken_bytes <= quota_bytes:
        return taken_bytes, []
    return taken_bytes, journal_forgetting.may_go(database, before_s)


def _with_blobs_unfetched(database: sqlite3.Connection) -> list[JobId]:
    rows = database.execute(
        "SELECT id FROM jobs WHERE blobs AND NOT forgotten"
        " AND (state = 'running' OR units_fetched < units_done + units_failed)"
    )
    return [JobId(row["id"]) for row in rows]
