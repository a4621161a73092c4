"""Units in the journal: which are open, how they end, and that one runs again.

Each function is one transaction. Units that are ready are read in windows by index, so
that nobody holds all of a large job at once.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from shoal.crypto.content import BlobId
from shoal.node.journal_endings import Endings, source_at
from shoal.node.records import Ended, Failure, JobId, OutputRef, Unit, UnitState, Written
from shoal.node.state_tables import from_json, to_json, unit_of


def end_units(database: sqlite3.Connection, ends: Sequence[Ended]) -> Written:
    """Write the ends of units, each once, and what follows for those that await them."""
    for ended in ends:
        assert ended.unit.state in {UnitState.DONE, UnitState.FAILED, UnitState.CANCELLED}
        assert (ended.unit.receipt is None) == (ended.receipt is None)
    endings = Endings(database)
    new = tuple(endings.end(ended) for ended in ends)
    endings.close()
    return Written(new, frozenset(endings.touched))


def count_lease(database: sqlite3.Connection, job_id: JobId, places: Sequence[int]) -> None:
    """Count a lease of units that are queued still: what came of it was not used."""
    database.executemany(
        "UPDATE units SET attempts = attempts + 1"
        " WHERE job = ? AND place = ? AND state = 'queued'",
        [(job_id, place) for place in places],
    )


def reopen(
    database: sqlite3.Connection, job_id: JobId, place: int, *, unseen: bool = False
) -> frozenset[JobId] | None:
    """Queue a unit again whose outputs were lost; those that have not ended await it again.

    A job that was done, or had failed, runs again; one that was cancelled does not.

    Args:
        database: The journal's.
        job_id: The unit's job.
        place: Its index.
        unseen: Only where its result was not fetched yet, and its job has not ended.

    Returns:
        The jobs that have changed: that of the unit, and those of units that await it;
        None, and nothing has changed, where the unit is not done or its job is cancelled.
    """
    row = database.execute(
        "SELECT fetched, receipt, length(envelope) AS size_bytes FROM units"
        " JOIN jobs ON jobs.id = units.job"
        " LEFT JOIN receipts ON receipts.job = units.job AND receipts.place = units.place"
        " WHERE units.job = ? AND units.place = ? AND units.state = 'done'"
        " AND jobs.state <> 'cancelled' AND NOT forgotten"
        " AND (? OR NOT fetched AND jobs.state = 'running')",
        (job_id, place, not unseen),
    ).fetchone()
    if row is None:
        return None
    key = (job_id, place)
    database.execute("DELETE FROM receipts WHERE job = ? AND place = ?", key)
    database.execute("DELETE FROM left_outputs WHERE job = ? AND place = ?", key)
    database.execute("DELETE FROM checks WHERE job = ? AND place = ?", key)
    database.execute(
        "UPDATE units SET state = 'queued', outputs = NULL, receipt = NULL, provider = NULL,"
        " seconds = NULL, ended = NULL, fetched = 0 WHERE job = ? AND place = ?",
        key,
    )
    database.execute(
        "UPDATE jobs SET state = 'running', ended_at = NULL, failure = NULL,"
        " units_done = units_done - 1, units_fetched = units_fetched - ?,"
        " size_bytes = size_bytes - ? WHERE id = ?",
        (row["fetched"], row["size_bytes"] or 0, job_id),
    )
    edges_to = database.execute(
        "SELECT edges.* FROM edges JOIN units ON units.job = from_job"
        " AND units.place = from_place WHERE edges.job = ? AND edges.place = ?",
        key,
    ).fetchall()
    edges_from = database.execute(
        "SELECT edges.* FROM edges JOIN units ON units.job = edges.job"
        " AND units.place = edges.place"
        " WHERE from_job = ? AND from_place = ? AND state = 'queued'",
        key,
    ).fetchall()
    _await_again(database, [*edges_to, *edges_from])
    endings = Endings(database)
    for edge in edges_to:  # of these some have ended, perhaps with other outputs than before
        source = source_at(database, edge["from_job"], edge["from_place"])
        if source is not None and source.state is not UnitState.QUEUED:
            endings.meet(job_id, place, edge["input"], source, edge["output"])
    endings.close()
    return frozenset({job_id, *(edge["job"] for edge in edges_from), *endings.touched})


def _await_again(database: sqlite3.Connection, edges: Sequence[sqlite3.Row]) -> None:
    for edge in edges:
        unit = database.execute(
            "SELECT inputs, awaits FROM units WHERE job = ? AND place = ?",
            (edge["job"], edge["place"]),
        ).fetchone()
        inputs = from_json(unit["inputs"], dict[str, BlobId])
        awaits = from_json(unit["awaits"], dict[str, OutputRef]) or {}
        inputs.pop(edge["input"], None)
        awaits[edge["input"]] = OutputRef(edge["from_job"], edge["from_place"], edge["output"])
        database.execute(
            "UPDATE units SET inputs = ?, awaits = ? WHERE job = ? AND place = ?",
            (to_json(inputs), to_json(awaits), edge["job"], edge["place"]),
        )


def page(database: sqlite3.Connection, job_id: JobId, offset: int, limit: int) -> list[Unit]:
    """Some of a job's units, in order of their index."""
    rows = database.execute(
        # Indices have no gaps: an OFFSET would be counted row by row.
        "SELECT * FROM units WHERE job = ? AND place >= ? ORDER BY place LIMIT ?",
        (job_id, offset, limit),
    )
    return [unit_of(row) for row in rows]


def ready(
    database: sqlite3.Connection, job_id: JobId, after: int, limit: int | None
) -> list[Unit]:
    """Units that can be leased: they have not ended and await nothing; in order of index."""
    rows = database.execute(
        "SELECT * FROM units INDEXED BY ready_units WHERE job = ? AND place > ?"
        " AND state = 'queued' AND awaits IS NULL ORDER BY place LIMIT ?",
        (job_id, after, -1 if limit is None else limit),
    )
    return [unit_of(row) for row in rows]


def count_open(database: sqlite3.Connection, job_id: JobId) -> tuple[int, int]:
    """How many units of a job are ready, and how many await others."""
    (ready_units,) = database.execute(
        "SELECT count(*) FROM units INDEXED BY ready_units"
        " WHERE job = ? AND state = 'queued' AND awaits IS NULL",
        (job_id,),
    ).fetchone()
    (waiting,) = database.execute(
        "SELECT count(*) FROM units INDEXED BY awaiting_units"
        " WHERE job = ? AND awaits IS NOT NULL",
        (job_id,),
    ).fetchone()
    return ready_units, waiting


def any_open(database: sqlite3.Connection, job_id: JobId) -> tuple[bool, bool]:
    """Whether units of a job are ready, and whether some await others."""
    (ready_units, waiting) = database.execute(
        "SELECT EXISTS (SELECT 1 FROM units INDEXED BY ready_units"
        " WHERE job = :job AND state = 'queued' AND awaits IS NULL),"
        " EXISTS (SELECT 1 FROM units INDEXED BY awaiting_units"
        " WHERE job = :job AND awaits IS NOT NULL)",
        {"job": job_id},
    ).fetchone()
    return bool(ready_units), bool(waiting)


def first_failure(database: sqlite3.Connection, job_id: JobId) -> Failure | None:
    """Why the first of a job's failed units failed; None where none has."""
    row = database.execute(
        "SELECT failure FROM units WHERE job = ? AND state = 'failed' ORDER BY place LIMIT 1",
        (job_id,),
    ).fetchone()
    return from_json(row["failure"], Failure) if row else None
