"""Jobs in the journal: taken, added to, sealed, ended. Each function is one transaction.

A job may be open: its units come in pieces, each with indices that follow those before it,
so that a piece which is sent twice, since nobody knows whether it was written before the
kill, is told from one that is missing. What a unit awaits has to be there before it, so
that no unit can ever await itself.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence

from shoal.crypto.content import BlobId
from shoal.node.errors import JobError, job_id_taken
from shoal.node.journal_endings import (
    Endings,
    Source,
    keep_tensor,
    share_tensors,
    source_at,
)
from shoal.node.records import (
    Failure,
    Job,
    JobId,
    JobSpec,
    JobState,
    OutputRef,
    Unit,
    UnitState,
)
from shoal.node.state_tables import from_json, insert, job_of, job_row, to_json, unit_row

_SHOWN = "NOT forgotten"


def add_job(
    database: sqlite3.Connection,
    job: Job,
    spec: JobSpec,
    units: Sequence[Unit],
    tensors: Mapping[BlobId, bytes],
) -> frozenset[JobId]:
    """Write a new job with the units that it has so far; gives what `attach` gives.

    Raises:
        JobError: ``no_such_unit``, ``wrong_unit_index``, ``job_id_taken``.
    """
    known = database.execute("SELECT 1 FROM jobs WHERE id = ?", (job.id,)).fetchone()
    if known is not None:  # perhaps forgotten, but for its bare row
        raise job_id_taken(job.id)
    insert(database, "jobs", [job_row(job, spec)])
    return attach(database, job.id, 0, units, tensors)


def add_units(
    database: sqlite3.Connection,
    job_id: JobId,
    units: Sequence[Unit],
    tensors: Mapping[BlobId, bytes],
) -> tuple[Job, frozenset[JobId]]:
    """Add units to an open job; gives it as it then stands, and what `attach` gives.

    Raises:
        JobError: ``no_such_job``, ``job_ended``, ``job_sealed``, ``no_such_unit`` or
            ``wrong_unit_index``.
    """
    job = find_job(database, job_id)
    if job.state.final:
        raise JobError(
            f"job {job_id} has ended and takes no more units",
            code="job_ended",
            hint="submit a new job for them",
        )
    if not job.open:
        raise JobError(
            f"job {job_id} was sealed and takes no more units",
            code="job_sealed",
            hint="submit a new job for them",
        )
    touched = attach(database, job_id, job.units_total, units, tensors)
    return find_job(database, job_id), touched


def attach(
    database: sqlite3.Connection,
    job_id: JobId,
    total: int,
    units: Sequence[Unit],
    tensors: Mapping[BlobId, bytes],
) -> frozenset[JobId]:
    """Write units of a job that has ``total``; gives the jobs of which units failed by it."""
    for place, unit in enumerate(units, total):
        if unit.index != place:
            raise JobError(
                f"job {job_id} has {total} units, and unit {unit.index} does not follow them",
                code="wrong_unit_index",
                hint=f"add units from index {total} on, without a gap; those before it are "
                "in the job already",
            )
    sources = dict(_sources(database, units))
    size_bytes = sum(
        keep_tensor(database, job_id, tensor, data) for tensor, data in tensors.items()
    )
    known = {tensor for unit in units for tensor in unit.inputs.values()} - tensors.keys()
    size_bytes += share_tensors(database, job_id, sorted(known))
    insert(database, "units", [unit_row(unit) for unit in units])
    edges = [
        {
            "from_job": ref.job,
            "from_place": ref.unit,
            "job": job_id,
            "place": unit.index,
            "input": name,
            "output": ref.output,
        }
        for unit in units
        for name, ref in unit.awaits.items()
    ]
    insert(database, "edges", edges)
    database.execute(
        "UPDATE jobs SET units_total = units_total + ?, size_bytes = size_bytes + ?"
        " WHERE id = ?",
        (len(units), size_bytes, job_id),
    )
    endings = Endings(database)
    for unit in units:
        for name, ref in unit.awaits.items():
            source = sources.get((ref.job, ref.unit))
            if source is not None and source.state is not UnitState.QUEUED:
                endings.meet(job_id, unit.index, name, source, ref.output)
    endings.close()
    return frozenset(endings.touched)


def seal(database: sqlite3.Connection, job_id: JobId) -> Job:
    """Note that no more units come; gives the job, which may have been sealed before.

    Raises:
        JobError: ``no_such_job``.
    """
    database.execute("UPDATE jobs SET open = 0 WHERE id = ?", (job_id,))
    return find_job(database, job_id)


def end_job(
    database: sqlite3.Connection,
    job_id: JobId,
    state: JobState,
    ended_at: float,
    failure: Failure | None,
    by_itself: bool = False,
) -> tuple[Job, frozenset[JobId]]:
    """End a job and cancel what is open of it, and with it what awaits that elsewhere.

    One that ends ``by_itself`` stays as it is while a unit of it is open: one may have been
    queued again, since its outputs were lost, after the others had ended.

    Returns:
        The job as it then stands, and the other jobs of which units failed by it.

    Raises:
        JobError: ``no_such_job``.
    """
    ended = database.execute(
        "UPDATE jobs SET state = :state, ended_at = :ended_at, failure = :failure, open = 0"
        " WHERE id = :job AND state = 'running' AND NOT (:by_itself AND EXISTS"
        " (SELECT 1 FROM units WHERE job = :job AND state = 'queued'))",
        {
            "state": state.value,
            "ended_at": ended_at,
            "failure": to_json(failure),
            "job": job_id,
            "by_itself": by_itself,
        },
    )
    endings = Endings(database)
    if ended.rowcount:
        endings.cancel_rest(job_id)
        endings.close()
    return find_job(database, job_id), frozenset(endings.touched - {job_id})


def find_job(database: sqlite3.Connection, job_id: JobId) -> Job:
    """One job as it stands.

    Raises:
        JobError: ``no_such_job``.
    """
    return job_of(_job_row(database, job_id))


def find_spec(database: sqlite3.Connection, job_id: JobId) -> JobSpec:
    """What was asked for, without the units; raises as `find_job`."""
    spec: JobSpec = from_json(_job_row(database, job_id)["spec"], JobSpec)
    return spec


def newest(database: sqlite3.Connection, limit: int) -> list[Job]:
    """The newest jobs, newest first."""
    rows = database.execute(
        f"SELECT * FROM jobs WHERE {_SHOWN} ORDER BY id DESC LIMIT ?",  # noqa: S608  # ours
        (limit,),
    )
    return [job_of(row) for row in rows]


def running(database: sqlite3.Connection) -> list[Job]:
    """The jobs that have not ended, oldest first."""
    rows = database.execute("SELECT * FROM jobs WHERE state = 'running' ORDER BY id")
    return [job_of(row) for row in rows]


def no_such_job(job_id: JobId) -> JobError:
    """Says that there is no such job."""
    return JobError(
        f"there is no job {job_id[:64]!r}",
        code="no_such_job",
        hint="`shoal jobs` lists the jobs of this daemon",
    )


def _job_row(database: sqlite3.Connection, job_id: JobId) -> sqlite3.Row:
    row: sqlite3.Row | None = database.execute(
        f"SELECT * FROM jobs WHERE id = ? AND {_SHOWN}",  # noqa: S608  # ours
        (job_id,),
    ).fetchone()
    if row is None:
        raise no_such_job(job_id)
    return row


def _sources(
    database: sqlite3.Connection, units: Iterable[Unit]
) -> Iterable[tuple[tuple[JobId, int], Source]]:
    """The units that these await, as they stand, but those that come with them."""
    units = list(units)
    own = units[0].job if units else None
    first = units[0].index if units else 0
    seen: set[tuple[JobId, int]] = set()
    for unit in units:
        for ref in unit.awaits.values():
            place = (ref.job, ref.unit)
            if ref.job == own and ref.unit >= unit.index:
                raise _no_such_unit(unit, ref, "it does not come before this one")
            if place in seen or (ref.job == own and ref.unit >= first):
                continue
            seen.add(place)
            source = source_at(database, *place)
            if source is None:
                raise _no_such_unit(unit, ref, "there is none")
            yield place, source


def _no_such_unit(unit: Unit, ref: OutputRef, why: str) -> JobError:
    return JobError(
        f"unit {unit.index} awaits unit {ref.unit} of job {ref.job[:64]!r}, and {why}",
        code="no_such_unit",
        hint="submit a unit before those that take its outputs",
    )
