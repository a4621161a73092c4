"""How records lie in SQLite: rows of jobs, units and answers.

Pure. The tables are `node.migrations`'. A column that holds a map or a struct holds its
JSON. A unit is ready where it is queued and ``awaits`` is NULL.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import msgspec

from shoal.crypto.content import BlobId
from shoal.node.records import (
    Answer,
    Failure,
    Job,
    JobSpec,
    JobState,
    OutputRef,
    Policy,
    Unit,
    UnitState,
)

ID_KEY_DIGITS = 12
"""Of 64: two in 10^6 ids have the same ones by a chance of 1 in 500."""

KEY_OF_ID = f"substr(id, 1, {ID_KEY_DIGITS})"
"""`id_key` in SQL, word for word as in the indices, or they are not used; beside it goes
``+id = …``, since SQLite would put what ``id`` equals into this expression too."""


def job_row(job: Job, spec: JobSpec) -> dict[str, Any]:
    """A new job's row; its counters begin at nought, and its units are counted as they come."""
    return {
        "id": job.id,
        "policy": job.policy.value,
        "program": job.program,
        "numeric_class": job.numeric_class,
        "label": job.label,
        "state": job.state.value,
        "created_at": job.created_at,
        "ended_at": job.ended_at,
        "units_total": 0,
        "failure": to_json(job.failure),
        "priority": job.priority,
        "open": job.open,
        "outputs_stay": job.outputs_stay,
        "spec": to_json(msgspec.structs.replace(spec, units=())),
    }


class _Asked(msgspec.Struct, frozen=True):
    """What of a spec's JSON a job is told with."""

    verify: str = "auto"


def job_of(row: sqlite3.Row) -> Job:
    """Read a job's row."""
    state = JobState(row["state"])
    ended = row["units_done"] + row["units_failed"]
    return Job(
        id=row["id"],
        policy=Policy(row["policy"]),
        program=row["program"],
        numeric_class=row["numeric_class"],
        label=row["label"],
        state=state,
        created_at=row["created_at"],
        ended_at=row["ended_at"],
        units_total=row["units_total"],
        units_done=row["units_done"],
        units_failed=row["units_failed"],
        failure=from_json(row["failure"], Failure),
        priority=row["priority"],
        open=bool(row["open"]),
        outputs_stay=bool(row["outputs_stay"]),
        fetched=state.final and row["units_fetched"] >= ended,
        verify=msgspec.json.decode(row["spec"], type=_Asked).verify,
    )


def unit_row(unit: Unit) -> dict[str, Any]:
    """A unit's row."""
    return {
        "job": unit.job,
        "place": unit.index,
        "state": unit.state.value,
        "inputs": to_json(unit.inputs),
        "awaits": to_json(unit.awaits) if unit.awaits else None,
        "outputs": to_json(unit.outputs),
        "receipt": unit.receipt,
        "provider": unit.provider,
        "attempts": unit.attempts,
        "seconds": unit.seconds,
        "failure": to_json(unit.failure),
        "ended": unit.ended,
    }


def unit_of(row: sqlite3.Row) -> Unit:
    """Read a unit's row."""
    return Unit(
        job=row["job"],
        index=row["place"],
        state=UnitState(row["state"]),
        inputs=from_json(row["inputs"], dict[str, BlobId]),
        awaits=from_json(row["awaits"], dict[str, OutputRef]) or {},
        outputs=from_json(row["outputs"], dict[str, BlobId]),
        receipt=row["receipt"],
        provider=row["provider"],
        attempts=row["attempts"],
        seconds=row["seconds"],
        failure=from_json(row["failure"], Failure),
        ended=row["ended"],
    )


def id_key(blob_id: BlobId) -> str:
    """What of a content id the indices of tensors and receipts have; others may have it too."""
    return blob_id[:ID_KEY_DIGITS]


def answer_of(row: sqlite3.Row) -> Answer:
    """Read an answer's row."""
    return Answer(row["job"], row["peer"], row["at"], row["verdict"], row["detail"])


def to_json(value: object) -> str | None:
    """A column that holds a map or a struct, or nothing."""
    return None if value is None else msgspec.json.encode(value).decode()


def from_json(text: str | None, kind: Any) -> Any:
    """Read what `to_json` wrote."""
    return None if text is None else msgspec.json.decode(text, type=kind)


def insert(database: sqlite3.Connection, table: str, rows: list[dict[str, Any]]) -> None:
    """Insert rows that have the same columns."""
    if rows:
        names = rows[0].keys()
        values = ", ".join(f":{name}" for name in names)
        database.executemany(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})",  # noqa: S608  # names are ours
            rows,
        )
