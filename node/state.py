"""What survives a restart: jobs, units, receipts, answers and known peers, in SQLite.

The journal of the data path: a job is written before any of its units is given
out, and a unit's end and its receipt before anyone is told. Each method is one
transaction in a worker thread; a daemon killed at any instant finds all of it
or nothing. A unit ends once, whoever says so again, and the counters of a job
change in the same transaction, so nothing is counted twice.

WAL with ``synchronous = NORMAL``: a killed process loses nothing; a power cut
may lose the last moments, never the order of things. Cancelling a call either
comes before its transaction or has to wait for its end.

How records lie in tables is in `node.state_tables`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import trio

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node import remembered_peers
from shoal.node.errors import JobError
from shoal.node.owner import Pause
from shoal.node.records import (
    Answer,
    Failure,
    Job,
    JobId,
    JobSpec,
    JobState,
    Unit,
    UnitState,
)
from shoal.node.state_tables import (
    answer_of,
    from_json,
    job_of,
    job_row,
    open_database,
    reporting,
    to_json,
    transaction,
    unit_of,
    unit_row,
)

ANSWERS_LIMIT = 500
"""Answers kept of one job, the newest: as many lines as a person will read."""

T = TypeVar("T")


class State:
    """The database of one daemon. Made by `open_state`.

    Every method raises `StoreError` when the disk is full or the file damaged.
    """

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database = database
        self._path = path
        self._turn = trio.CapacityLimiter(1)

    # --- jobs -------------------------------------------------------------------

    async def add_job(self, job: Job, spec: JobSpec, units: Sequence[Unit]) -> None:
        """Write a new job with all its units."""

        def write() -> None:
            self._insert("jobs", [job_row(job, spec)])
            self._insert("units", [unit_row(unit) for unit in units])

        await self._write(write)

    async def end_job(
        self, job_id: JobId, state: JobState, ended_at: float, failure: Failure | None = None
    ) -> Job:
        """End a job and cancel what is open of it; gives the job as it then stands.

        A job that has ended already stays as it is.

        Raises:
            JobError: ``no_such_job``.
        """
        assert state.final

        def write() -> Job:
            ended = self._database.execute(
                "UPDATE jobs SET state = ?, ended_at = ?, failure = ?"
                " WHERE id = ? AND state = 'running'",
                (state.value, ended_at, to_json(failure), job_id),
            )
            if ended.rowcount:
                self._database.execute(
                    "UPDATE units SET state = 'cancelled' WHERE job = ? AND state = 'queued'",
                    (job_id,),
                )
            return self._job(job_id)

        return await self._write(write)

    async def job(self, job_id: JobId) -> Job:
        """One job as it stands.

        Raises:
            JobError: ``no_such_job``.
        """
        return await self._read(lambda: self._job(job_id))

    async def spec(self, job_id: JobId) -> JobSpec:
        """What was asked for, without the units: those are `units`.

        Raises:
            JobError: ``no_such_job``.
        """

        def read() -> JobSpec:
            row = self._row("SELECT spec FROM jobs WHERE id = ?", (job_id,))
            if row is None:
                raise _no_such_job(job_id)
            return from_json(row["spec"], JobSpec)

        return await self._read(read)

    async def jobs(self, limit: int) -> list[Job]:
        """The newest jobs, newest first."""
        return await self._rows(job_of, "SELECT * FROM jobs ORDER BY id DESC LIMIT ?", (limit,))

    async def running_jobs(self) -> list[Job]:
        """The jobs that have not ended, oldest first."""
        return await self._rows(
            job_of, "SELECT * FROM jobs WHERE state = 'running' ORDER BY id", ()
        )

    # --- units and receipts -----------------------------------------------------

    async def end_unit(self, unit: Unit, receipt: bytes | None) -> bool:
        """Write a unit's end with its receipt, and count it.

        Args:
            unit: As it ended: done, failed or cancelled.
            receipt: The envelope that ``unit.receipt`` names, where there is one.

        Returns:
            False if the unit had ended before: then nothing is written.
        """
        assert _final(unit.state)
        assert (unit.receipt is None) == (receipt is None)

        def write() -> bool:
            if not self._put_unit(unit):
                return False
            self._database.execute(
                "UPDATE jobs SET units_done = units_done + ?, units_failed = units_failed + ?"
                " WHERE id = ?",
                (unit.state is UnitState.DONE, unit.state is UnitState.FAILED, unit.job),
            )
            if receipt is not None:
                row = {"id": unit.receipt, "job": unit.job, "place": unit.index}
                self._insert("receipts", [{**row, "envelope": receipt}])
            return True

        return await self._write(write)

    async def units(self, job_id: JobId, offset: int, limit: int) -> list[Unit]:
        """Some of a job's units, in order of their index."""
        return await self._rows(
            unit_of,
            "SELECT * FROM units WHERE job = ? ORDER BY place LIMIT ? OFFSET ?",
            (job_id, limit, offset),
        )

    async def open_units(self, job_id: JobId) -> list[Unit]:
        """A job's units that have not ended."""
        return await self._rows(
            unit_of,
            "SELECT * FROM units WHERE job = ? AND state = 'queued' ORDER BY place",
            (job_id,),
        )

    async def first_failure(self, job_id: JobId) -> Failure | None:
        """Why the first of a job's failed units failed; None where none has."""
        failures: list[Failure] = await self._rows(
            lambda row: from_json(row["failure"], Failure),
            "SELECT failure FROM units WHERE job = ? AND state = 'failed'"
            " ORDER BY place LIMIT 1",
            (job_id,),
        )
        return failures[0] if failures else None

    async def receipt_ids(self, job_id: JobId) -> list[BlobId]:
        """The ids of a job's receipts, in order of its units."""
        return await self._rows(
            lambda row: BlobId(row["id"]),
            "SELECT id FROM receipts WHERE job = ? ORDER BY place",
            (job_id,),
        )

    async def receipt(self, receipt_id: BlobId) -> bytes:
        """The signed envelope of a receipt.

        Raises:
            JobError: ``no_such_receipt``.
        """

        def read() -> bytes:
            row = self._row("SELECT envelope FROM receipts WHERE id = ?", (receipt_id,))
            if row is None:
                raise JobError(
                    f"there is no receipt {receipt_id[:64]!r}",
                    code="no_such_receipt",
                    hint="`shoal job show JOB` lists a job's receipts",
                )
            return bytes(row["envelope"])

        return await self._read(read)

    # --- what peers said, and where they are --------------------------------------

    async def add_answer(self, answer: Answer) -> None:
        """Keep what a peer answered; of each job the newest `ANSWERS_LIMIT`."""

        def write() -> None:
            row = {name: getattr(answer, name) for name in answer.__struct_fields__}
            self._insert("answers", [row])
            self._database.execute(
                "DELETE FROM answers WHERE job = :job AND rowid <= (SELECT rowid FROM answers"
                " WHERE job = :job ORDER BY rowid DESC LIMIT 1 OFFSET :limit)",
                {"job": answer.job, "limit": ANSWERS_LIMIT},
            )

        await self._write(write)

    async def answers(self, job_id: JobId) -> list[Answer]:
        """What peers answered to a job's calls, oldest first."""
        return await self._rows(
            answer_of, "SELECT * FROM answers WHERE job = ? ORDER BY rowid", (job_id,)
        )

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

        def write() -> bool:
            row = self._row("SELECT value FROM counters WHERE name = 'network'", ())
            if number == (0 if row is None else int(row["value"])):
                return False
            self._database.execute("DELETE FROM peers")
            self._database.execute(
                "INSERT OR REPLACE INTO counters (name, value) VALUES ('network', ?)", (number,)
            )
            return True

        return await self._write(write)

    async def pauses(self) -> list[Pause]:
        """What the owner has paused, pauses that have ended by themselves among it."""
        return await self._rows(
            lambda row: Pause(row["device"], row["until_s"]), "SELECT * FROM pauses", ()
        )

    async def keep_pauses(self, pauses: Collection[Pause]) -> None:
        """Keep these pauses, and no others."""

        def write() -> None:
            self._database.execute("DELETE FROM pauses")
            self._insert("pauses", [{"device": p.device, "until_s": p.until_s} for p in pauses])

        await self._write(write)

    async def next_sequence(self, wall_ms: int) -> int:
        """A number for the next advert, higher than any before; written before it is given.

        Args:
            wall_ms: The wall clock in milliseconds, so that a node whose state
                was lost is not behind its own old adverts.
        """

        def write() -> int:
            row = self._row(
                "INSERT INTO counters (name, value) VALUES ('advert', ?)"
                " ON CONFLICT (name) DO UPDATE SET value = max(value + 1, excluded.value)"
                " RETURNING value",
                (wall_ms,),
            )
            assert row is not None
            return int(row["value"])

        return await self._write(write)

    # --- for modules that keep tables of their own ----------------------------------

    async def transact(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run ``work`` on the database in one transaction."""
        return await self._write(lambda: work(self._database))

    # --- one thread at a time -----------------------------------------------------

    async def _read(self, work: Callable[[], T]) -> T:
        def guarded() -> T:
            with reporting(self._path):
                return work()

        return await trio.to_thread.run_sync(guarded, limiter=self._turn)

    async def _write(self, work: Callable[[], T]) -> T:
        def in_transaction() -> T:
            with transaction(self._database):
                return work()

        return await self._read(in_transaction)

    async def _rows(
        self, make: Callable[[sqlite3.Row], T], query: str, values: tuple[object, ...]
    ) -> list[T]:
        return await self._read(
            lambda: [make(row) for row in self._database.execute(query, values)]
        )

    def _row(self, query: str, values: tuple[object, ...]) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._database.execute(query, values).fetchone()
        return row

    def _job(self, job_id: JobId) -> Job:
        row = self._row("SELECT * FROM jobs WHERE id = ?", (job_id,))
        if row is None:
            raise _no_such_job(job_id)
        return job_of(row)

    def _put_unit(self, unit: Unit) -> bool:
        """Write a unit over its row, unless that has ended; says whether it was written."""
        row = unit_row(unit)
        columns = ", ".join(f"{name} = :{name}" for name in row if name not in _UNIT_KEY)
        written = self._database.execute(
            f"UPDATE units SET {columns} WHERE job = :job AND place = :place"  # noqa: S608  # names are ours
            " AND state = 'queued'",
            row,
        )
        return written.rowcount > 0

    def _insert(self, table: str, rows: list[dict[str, object]]) -> None:
        if rows:
            names = rows[0].keys()
            values = ", ".join(f":{name}" for name in names)
            self._database.executemany(
                f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})",  # noqa: S608  # names are ours
                rows,
            )


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


_UNIT_KEY = ("job", "place")


def _final(state: UnitState) -> bool:
    return state in {UnitState.DONE, UnitState.FAILED, UnitState.CANCELLED}


def _no_such_job(job_id: JobId) -> JobError:
    return JobError(
        f"there is no job {job_id[:64]!r}",
        code="no_such_job",
        hint="`shoal jobs` lists the jobs of this daemon",
    )
