"""Jobs are forgotten: marked at once, deleted in pieces, and the file gets smaller.

Each function is one transaction. A job that is marked is not seen any more; a kill before
its last piece leaves some of its rows, and the next start goes on with them.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from shoal.node.errors import JobError
from shoal.node.journal_jobs import find_job
from shoal.node.records import Job, JobId, JobState

UNIT_BYTES = 512
"""What a unit takes beside its tensors and its receipt: its rows, and those of indices."""

PIECE_UNITS = 2000
"""Deleted in one transaction: some tens of milliseconds in which nobody else writes."""

PIECE_PAGES = 2000
"""Given back to the disk in one transaction."""

_SIZE = f"size_bytes + {UNIT_BYTES} * units_total"
_AWAITED = (
    "EXISTS (SELECT 1 FROM edges JOIN units ON units.job = edges.job"
    " AND units.place = edges.place WHERE edges.from_job = jobs.id"
    " AND edges.job <> jobs.id AND units.state = 'queued')"
)


class EndedJob(NamedTuple):
    """A job that may be forgotten when room is needed: nothing awaits it.

    Attributes:
        ended_at: In seconds since the epoch.
        size_bytes: What it takes in the journal, near enough.
        fetched: Whether all of its results were given out.
    """

    id: JobId
    ended_at: float
    size_bytes: int
    fetched: bool


def forget(database: sqlite3.Connection, job_id: JobId, *, unfetched_too: bool) -> Job:
    """Mark a job as forgotten; gives it as it stood.

    Raises:
        JobError: ``no_such_job``, ``job_running``, ``job_awaited``, or
            ``results_unfetched`` where not ``unfetched_too``.
    """
    job = find_job(database, job_id)
    if not job.state.final:
        raise JobError(
            f"job {job_id} is still running",
            code="job_running",
            hint=f"wait for it, or end it first: `shoal job cancel {job_id}`",
        )
    awaited, fetched = database.execute(
        f"SELECT {_AWAITED}, units_fetched FROM jobs WHERE id = ?",  # noqa: S608  # ours
        (job_id,),
    ).fetchone()
    if awaited:
        raise JobError(
            f"units of other jobs take outputs of job {job_id}, and have not ended",
            code="job_awaited",
            hint="wait until they have, or cancel those jobs: `shoal jobs` lists them",
        )
    if not job.fetched and not unfetched_too:
        ended = job.units_done + job.units_failed
        one = "" if job.state is JobState.DONE else " --unit N"  # as a whole it has no outputs
        raise JobError(
            f"{ended - fetched} of {ended} results of job {job_id} were not fetched",
            code="results_unfetched",
            hint=f"`shoal job fetch {job_id}{one} --output DIR` fetches them; "
            f"`shoal job forget {job_id} --yes` forgets them",
        )
    database.execute("UPDATE jobs SET forgotten = 1 WHERE id = ?", (job_id,))
    return job


def forgotten(database: sqlite3.Connection) -> list[JobId]:
    """Jobs that are marked, and of which something is left."""
    rows = database.execute("SELECT id FROM jobs WHERE forgotten ORDER BY id")
    return [JobId(row["id"]) for row in rows]


def delete_piece(database: sqlite3.Connection, job_id: JobId) -> bool:
    """Delete some more of a job that is marked; False once nothing is left of it."""
    last = database.execute(
        "SELECT max(place) FROM (SELECT place FROM units WHERE job = ? ORDER BY place LIMIT ?)",
        (job_id, PIECE_UNITS),
    ).fetchone()[0]
    if last is not None:
        for table in ("receipts", "left_outputs", "checks", "edges", "units"):
            database.execute(
                f"DELETE FROM {table} WHERE job = ? AND place <= ?",  # noqa: S608  # ours
                (job_id, last),
            )
        return True
    tensors = database.execute(
        "DELETE FROM tensors WHERE rowid IN"
        " (SELECT rowid FROM tensors WHERE job = :job LIMIT :limit)",
        {"job": job_id, "limit": PIECE_UNITS},
    )
    if tensors.rowcount:
        return True
    database.execute("DELETE FROM answers WHERE job = ?", (job_id,))
    database.execute("DELETE FROM jobs WHERE id = ?", (job_id,))
    return False


def size_bytes(database: sqlite3.Connection) -> int:
    """What the jobs that are kept take in the journal, near enough."""
    (total,) = database.execute(
        f"SELECT coalesce(sum({_SIZE}), 0) FROM jobs WHERE NOT forgotten"  # noqa: S608  # ours
    ).fetchone()
    return int(total)


def may_go(database: sqlite3.Connection, fetched_or_before_s: float) -> list[EndedJob]:
    """Jobs that may be forgotten, the one that ended first before the others.

    Of those that were not fetched wholly only such as ended before ``fetched_or_before_s``,
    in seconds since the epoch.
    """
    rows = database.execute(
        f"SELECT id, ended_at, {_SIZE} AS size_bytes,"  # noqa: S608  # ours
        " units_fetched >= units_done + units_failed AS fetched FROM jobs"
        " WHERE ended_at IS NOT NULL AND NOT forgotten"
        f" AND (fetched OR ended_at < ?) AND NOT {_AWAITED} ORDER BY ended_at",
        (fetched_or_before_s,),
    )
    return [
        EndedJob(JobId(row["id"]), row["ended_at"], row["size_bytes"], bool(row["fetched"]))
        for row in rows
    ]


def give_back_pages(database: sqlite3.Connection) -> bool:
    """Make the file smaller by some of the pages that are free; False where none is left."""
    (free,) = database.execute("PRAGMA freelist_count").fetchone()
    for _ in range(min(free, PIECE_PAGES)):
        # The module sqlite3 steps a statement without rows once, which frees one page.
        database.execute("PRAGMA incremental_vacuum(1)").fetchall()
    return bool(free > PIECE_PAGES)
