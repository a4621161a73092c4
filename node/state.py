"""What survives a restart: jobs, units, receipts, answers and known peers, in SQLite.

The journal of the data path: a job is written before any of its units is given
out, and a unit's end, its receipt and its small outputs before anyone is told. Each
method is all or nothing; a daemon killed at any instant finds all of it or nothing. A
unit ends once, whoever says so again, and the counters of a job change in the same
transaction, so nothing is counted twice. `docs/STATE.md` has the whole argument.

The writes of concurrent tasks share transactions: see `node.journal_writer`. What is
written is in `node.journal_jobs`, `node.journal_units`, `node.journal_endings` and
`node.journal_results`; what others' conduct in work comes to is in
`node.state_verdicts`, and the tables are in `node.migrations`.

WAL with ``synchronous = NORMAL``: a killed process loses nothing; a power cut
may lose the last moments, never the order of things. Cancelling a call either
comes before its transaction or has to wait for its end.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node import (
    journal_jobs,
    journal_results,
    journal_units,
    remembered_peers,
)
from shoal.node.journal_results import Order
from shoal.node.journal_writer import JournalWriter
from shoal.node.owner import Pause
from shoal.node.records import (
    Answer,
    Ended,
    Failure,
    Job,
    JobId,
    JobSpec,
    JobState,
    Unit,
    Written,
)
from shoal.node.state_file import open_database
from shoal.node.state_tables import answer_of, insert
from shoal.node.state_verdicts import VerdictState

ANSWERS_LIMIT = 500
"""Answers kept of one job, the newest: as many lines as a person will read."""

FEW = 8
"""Rows that are read at once, without a change of threads: some 0.2 ms."""

FEW_WRITTEN = 2
"""Units that are written so, or their ends: some 0.3 ms."""

T = TypeVar("T")


class State(VerdictState):
    """The database of one daemon. Made by `open_state`.

    Every method raises `StoreError` when the disk is full or the file damaged.

    Attributes:
        touched: Called with the jobs of which units became ready, failed, await again or
            run again through the end of others, after that was written.
    """

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._writer = JournalWriter(database, path)
        self.touched: Callable[[frozenset[JobId]], None] = lambda _jobs: None

    # --- jobs -------------------------------------------------------------------

    async def add_job(
        self,
        job: Job,
        spec: JobSpec,
        units: Sequence[Unit] = (),
        tensors: Mapping[BlobId, bytes] | None = None,
    ) -> None:
        """Write a new job with the units that it has so far.

        Args:
            job: As it begins; how many units it has is counted here.
            spec: Kept without its units.
            units: With indices from 0; what one awaits is an earlier unit.
            tensors: Inputs of theirs, each up to `SMALL_TENSOR_LIMIT_BYTES`.

        Raises:
            JobError: ``no_such_unit``, ``wrong_unit_index``.
        """
        self._touch(
            await self._write(journal_jobs.add_job, job, spec, units, tensors or {}), job.id
        )

    async def add_units(
        self,
        job_id: JobId,
        units: Sequence[Unit],
        tensors: Mapping[BlobId, bytes] | None = None,
    ) -> Job:
        """Add units to an open job; gives it as it then stands.

        Args:
            job_id: A job that is open.
            units: With indices that follow those which the job has.
            tensors: As in `add_job`.

        Raises:
            JobError: ``no_such_job``, ``job_ended``, ``job_sealed``, ``no_such_unit``, or
                ``wrong_unit_index`` where units of the job are missing or were there before.
        """
        write = self._write_small if len(units) <= FEW_WRITTEN else self._write
        job, touched = await write(journal_jobs.add_units, job_id, units, tensors or {})
        self._touch(touched, job_id)
        return job

    async def seal_job(self, job_id: JobId) -> Job:
        """Note that no more units come; gives the job, which may have been sealed before.

        Raises:
            JobError: ``no_such_job``.
        """
        return await self._write(journal_jobs.seal, job_id)

    async def end_job(
        self,
        job_id: JobId,
        state: JobState,
        ended_at: float,
        failure: Failure | None = None,
        *,
        by_itself: bool = False,
    ) -> Job:
        """End a job and cancel what is open of it; gives the job as it then stands.

        A job that has ended already stays as it is. Units of other jobs that await what
        is cancelled fail. One that ends ``by_itself``, since all its units have, stays as it
        is where one of them was queued again meanwhile.

        Raises:
            JobError: ``no_such_job``.
        """
        assert state.final
        job, touched = await self._write(
            journal_jobs.end_job, job_id, state, ended_at, failure, by_itself
        )
        self._touch(touched)
        return job

    async def job(self, job_id: JobId) -> Job:
        """One job as it stands.

        Raises:
            JobError: ``no_such_job``.
        """
        return await self._look(journal_jobs.find_job, job_id)

    async def spec(self, job_id: JobId) -> JobSpec:
        """What was asked for, without the units: those are `units`.

        Raises:
            JobError: ``no_such_job``.
        """
        return await self._look(journal_jobs.find_spec, job_id)

    async def jobs(self, limit: int) -> list[Job]:
        """The newest jobs, newest first."""
        return await self._read(journal_jobs.newest, limit)

    async def running_jobs(self) -> list[Job]:
        """The jobs that have not ended, oldest first."""
        return await self._read(journal_jobs.running)

    # --- units ------------------------------------------------------------------

    async def end_units(self, ends: Sequence[Ended]) -> Written:
        """Write the ends of units with receipts and small outputs, and count them.

        Units that await an output of these get it as an input, or fail where it will not
        come, in the same transaction.
        """
        write = self._write_small if len(ends) <= FEW_WRITTEN else self._write
        written = await write(journal_units.end_units, ends)
        self._touch(written.touched)
        return written

    async def count_lease(self, job_id: JobId, indices: Sequence[int]) -> None:
        """Count a lease of units that are queued still: what came of it was not used."""
        await self._write(journal_units.count_lease, job_id, tuple(indices))

    async def reopen_unit(self, job_id: JobId, index: int, *, unseen: bool = False) -> bool:
        """Queue a unit again whose outputs were lost with the peer that had them.

        Units that await them and have not ended await them again; those that have ended
        keep what they have. A job that was done runs again: `touched` is told of it. Where
        only what is ``unseen`` is to be, a result that was fetched meanwhile stays as it is,
        and so does a job that has ended.

        Returns:
            False, and nothing has changed, where the unit is not done, or its job was
            cancelled or is not there.
        """
        write = partial(journal_units.reopen, unseen=unseen)
        touched = await self._write(write, job_id, index)
        self._touch(touched or frozenset())
        return touched is not None

    async def units(self, job_id: JobId, offset: int, limit: int) -> list[Unit]:
        """Some of a job's units, in order of their index."""
        read = self._look if limit <= FEW else self._read
        return await read(journal_units.page, job_id, offset, limit)

    async def open_units(
        self, job_id: JobId, after: int = -1, limit: int | None = None
    ) -> list[Unit]:
        """A job's units that are ready: not ended, and awaiting nothing; in order of index.

        Args:
            job_id: A job; there are none of one that is not there.
            after: Only those with a higher index.
            limit: Only so many.
        """
        first = FEW if limit is None else min(limit, FEW)
        few = await self._look(journal_units.ready, job_id, after, first)
        if len(few) < first or first == limit:
            return few
        return await self._read(journal_units.ready, job_id, after, limit)

    async def any_open(self, job_id: JobId) -> tuple[bool, bool]:
        """Whether units of a job are ready, and whether some await others."""
        return await self._look(journal_units.any_open, job_id)

    async def count_open(self, job_id: JobId) -> tuple[int, int]:
        """How many units of a job are ready, and how many await others."""
        return await self._read(journal_units.count_open, job_id)

    async def first_failure(self, job_id: JobId) -> Failure | None:
        """Why the first of a job's failed units failed; None where none has."""
        return await self._read(journal_units.first_failure, job_id)

    # --- results ----------------------------------------------------------------

    async def results(
        self, job_id: JobId, after: int, limit: int, order: Order = "given"
    ) -> list[Unit]:
        """A page of a job's units that have ended.

        Args:
            job_id: A job of this daemon.
            after: The index of the last unit of the page before, or its ``ended`` where
                the order is that of ending; -1 for the first page.
            limit: Units in a page, at most.
            order: ``given``: by index, up to the first that has not ended; ``ended``: as
                they ended.

        Raises:
            JobError: ``no_such_job``.
        """
        first = min(limit, FEW)
        few = await self._look(journal_results.results, job_id, after, first, order)
        if len(few) < first or first == limit:
            return few
        return await self._read(journal_results.results, job_id, after, limit, order)

    async def note_fetched(self, job_id: JobId, indices: Collection[int] | None) -> Job:
        """Note that the results of these units, or all, were given out; gives the job.

        Raises:
            JobError: ``no_such_job``.
        """
        return await self._write(journal_results.note_fetched, job_id, indices)

    async def note_read(self, job_id: JobId, until: int, order: Order = "given") -> Job:
        """Note that the results up to ``until``, as `results` counts, were given out.

        Raises:
            JobError: ``no_such_job``.
        """
        write = self._write
        if await self._look(journal_results.count_unread, job_id, until, order, FEW) < FEW:
            write = self._write_small
        return await write(journal_results.note_read, job_id, until, order)

    async def tensors(self, ids: Iterable[BlobId]) -> dict[BlobId, bytes]:
        """Those of these tensors that are in the journal."""
        return await self._of_these(journal_results.tensors, ids)

    async def tensor_sizes(self, ids: Iterable[BlobId]) -> dict[BlobId, int]:
        """The sizes in bytes of those of these tensors that are in the journal."""
        return await self._of_these(journal_results.tensor_sizes, ids)

    async def holders(
        self, ids: Iterable[BlobId]
    ) -> dict[BlobId, tuple[PeerId, JobId, int, int]]:
        """Of outputs left with peers: who has one, of which job and unit, in how many bytes."""
        return await self._of_these(journal_results.holders, ids)

    async def receipt_ids(self, job_id: JobId) -> list[BlobId]:
        """The ids of a job's receipts, in order of its units."""
        return await self._read(journal_results.receipt_ids, job_id)

    async def receipt(self, receipt_id: BlobId) -> bytes:
        """The signed envelope of a receipt.

        Raises:
            JobError: ``no_such_receipt``.
        """
        return await self._read(journal_results.receipt, receipt_id)

    # --- what peers said, and where they are --------------------------------------

    async def add_answer(self, answer: Answer) -> None:
        """Keep what a peer answered; of each job the newest `ANSWERS_LIMIT`."""

        def write(database: sqlite3.Connection) -> None:
            row = {name: getattr(answer, name) for name in answer.__struct_fields__}
            insert(database, "answers", [row])
            database.execute(
                "DELETE FROM answers WHERE job = :job AND rowid <= (SELECT rowid FROM answers"
                " WHERE job = :job ORDER BY rowid DESC LIMIT 1 OFFSET :limit)",
                {"job": answer.job, "limit": ANSWERS_LIMIT},
            )

        await self._write(write)

    async def answers(self, job_id: JobId) -> list[Answer]:
        """What peers answered to a job's calls, oldest first."""

        def read(database: sqlite3.Connection) -> list[Answer]:
            rows = database.execute(
                "SELECT * FROM answers WHERE job = ? ORDER BY rowid", (job_id,)
            )
            return [answer_of(row) for row in rows]

        return await self._read(read)

    async def remember_peer(
        self, peer: PeerId, addresses: Sequence[str], seen_at_s: float
    ) -> None:
        """Note that a peer became a link, for the next start; see `remembered_peers`."""
        await remembered_peers.meet(self, peer, addresses, seen_at_s)

    async def enter_network(self, number: int) -> bool:
        """Note which network this node is in; in another than before, forget the peers.

        Returns:
            Whether it is another one.
        """

        def write(database: sqlite3.Connection) -> bool:
            row = database.execute(
                "SELECT value FROM counters WHERE name = 'network'"
            ).fetchone()
            if number == (0 if row is None else int(row["value"])):
                return False
            database.execute("DELETE FROM peers")
            database.execute(
                "INSERT OR REPLACE INTO counters (name, value) VALUES ('network', ?)", (number,)
            )
            return True

        return await self._write(write)

    async def pauses(self) -> list[Pause]:
        """What the owner has paused, pauses that have ended by themselves among it."""

        def read(database: sqlite3.Connection) -> list[Pause]:
            rows = database.execute("SELECT * FROM pauses")
            return [Pause(row["device"], row["until_s"]) for row in rows]

        return await self._read(read)

    async def keep_pauses(self, pauses: Collection[Pause]) -> None:
        """Keep these pauses, and no others."""
        rows = [{"device": pause.device, "until_s": pause.until_s} for pause in pauses]

        def write(database: sqlite3.Connection) -> None:
            database.execute("DELETE FROM pauses")
            insert(database, "pauses", rows)

        await self._write(write)

    async def next_sequence(self, wall_ms: int) -> int:
        """A number for the next advert, higher than any before; written before it is given.

        Args:
            wall_ms: The wall clock in milliseconds, so that a node whose state
                was lost is not behind its own old adverts.
        """

        def write(database: sqlite3.Connection) -> int:
            row = database.execute(
                "INSERT INTO counters (name, value) VALUES ('advert', ?)"
                " ON CONFLICT (name) DO UPDATE SET value = max(value + 1, excluded.value)"
                " RETURNING value",
                (wall_ms,),
            ).fetchone()
            return int(row["value"])

        return await self._write(write)

    # --- for modules that keep tables of their own ----------------------------------

    async def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` on the database, all or nothing, perhaps more than once."""
        return await self._write(work)

    # --- in the thread ------------------------------------------------------------

    def _touch(self, jobs: frozenset[JobId], but: JobId | None = None) -> None:
        jobs -= {but} if but else set()
        if jobs:
            self.touched(jobs)

    async def _read(self, work: Callable[..., T], *arguments: object) -> T:
        return await self._writer.read(lambda database: work(database, *arguments))

    async def _look(self, work: Callable[..., T], *arguments: object) -> T:
        return await self._writer.look(lambda database: work(database, *arguments))

    async def _of_these(self, work: Callable[..., T], ids: Iterable[BlobId]) -> T:
        wanted = list(ids)
        return await (self._look if len(wanted) <= FEW else self._read)(work, wanted)

    async def _write(self, work: Callable[..., T], *arguments: object) -> T:
        return await self._writer.write(lambda database: work(database, *arguments))

    async def _write_small(self, work: Callable[..., T], *arguments: object) -> T:
        return await self._writer.write(lambda database: work(database, *arguments), small=True)


@asynccontextmanager
async def open_state(path: Path) -> AsyncIterator[State]:
    """Open the state in ``path``, or begin a new one.

    Raises:
        StoreError: ``state_too_new``, ``state_damaged``, ``state_unusable`` or
            ``disk_full``.
    """
    database = await trio.to_thread.run_sync(open_database, path)
    try:
        yield State(database, path)
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(database.close)
