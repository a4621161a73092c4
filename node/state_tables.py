"""How records lie in SQLite: the tables, the rows, and opening a database file.

Synchronous; `node.state` runs it in a thread. A column that holds a map or a
struct holds its JSON. The file carries the version of its tables; one that a
newer shoal wrote is refused, never guessed at.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from shoal.crypto.content import BlobId
from shoal.node.errors import StoreError
from shoal.node.records import (
    Answer,
    Failure,
    Job,
    JobSpec,
    JobState,
    Policy,
    Unit,
    UnitState,
)

TABLES_VERSION = 1

BUSY_LIMIT_S = 5.0
"""How long to wait for another process, such as a backup, to let go of the file."""

_TABLES = """
CREATE TABLE jobs (
    id            TEXT PRIMARY KEY,
    policy        TEXT NOT NULL,
    program       TEXT NOT NULL,
    numeric_class TEXT NOT NULL,
    label         TEXT NOT NULL,
    state         TEXT NOT NULL,
    created_at    REAL NOT NULL,
    ended_at      REAL,
    units_total   INTEGER NOT NULL,
    units_done    INTEGER NOT NULL DEFAULT 0,
    units_failed  INTEGER NOT NULL DEFAULT 0,
    failure       TEXT,
    spec          TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX running_jobs ON jobs (id) WHERE state = 'running';

CREATE TABLE units (
    job      TEXT NOT NULL REFERENCES jobs (id),
    place    INTEGER NOT NULL,
    state    TEXT NOT NULL,
    inputs   TEXT NOT NULL,
    outputs  TEXT,
    receipt  TEXT,
    provider TEXT,
    attempts INTEGER NOT NULL,
    seconds  REAL,
    failure  TEXT,
    PRIMARY KEY (job, place)
) WITHOUT ROWID;
CREATE INDEX open_units ON units (job, place) WHERE state = 'queued';

CREATE TABLE receipts (
    id       TEXT PRIMARY KEY,
    job      TEXT NOT NULL,
    place    INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    FOREIGN KEY (job, place) REFERENCES units (job, place)
);
CREATE INDEX receipts_of_job ON receipts (job, place);

CREATE TABLE answers (
    job     TEXT NOT NULL REFERENCES jobs (id),
    peer    TEXT NOT NULL,
    at      REAL NOT NULL,
    verdict TEXT NOT NULL,
    detail  TEXT NOT NULL
);
CREATE INDEX answers_of_job ON answers (job);

CREATE TABLE peers (
    peer      TEXT PRIMARY KEY,
    addresses TEXT NOT NULL,
    seen_at   REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX peers_by_age ON peers (seen_at);

CREATE TABLE counters (
    name  TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) WITHOUT ROWID;
"""

_LATER_TABLES = """
CREATE TABLE IF NOT EXISTS pauses (
    device  TEXT PRIMARY KEY,
    until_s REAL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS measurements (
    device  TEXT PRIMARY KEY,
    figures TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS proofs (
    verifier      TEXT NOT NULL,
    prover        TEXT NOT NULL,
    device        TEXT NOT NULL,
    numeric_class TEXT NOT NULL,
    precision     TEXT NOT NULL,
    issued_at_ms  INTEGER NOT NULL,
    envelope      BLOB NOT NULL,
    PRIMARY KEY (verifier, prover, device, numeric_class, precision)
) WITHOUT ROWID;
"""
"""What came after the first version; each is made where it is not there yet."""

_LATER_COLUMNS = {
    "peers": ("worked TEXT NOT NULL DEFAULT ''", "met INTEGER NOT NULL DEFAULT 1")
}
"""Columns likewise; an older shoal leaves them as they are."""


def open_database(path: Path) -> sqlite3.Connection:
    """Open the file, or make it with its tables, all of them or none.

    Raises:
        StoreError: ``state_too_new``, ``state_damaged``, ``state_unusable`` or
            ``disk_full``.
    """
    with reporting(path):
        database = sqlite3.connect(
            path, timeout=BUSY_LIMIT_S, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(database, path)
        except BaseException:
            database.close()
            raise
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of the block, or nothing of it."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk may have ended it already
            database.execute("ROLLBACK")
        raise


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn what SQLite meets in the world, but no bug of ours, into a `StoreError`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                raise StoreError(
                    f"the disk that holds {path} is full",
                    code="disk_full",
                    hint="free some space, or move the node's home with --home or SHOAL_HOME",
                ) from None
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                raise StoreError(
                    f"the state in {path} is damaged: {error}",
                    code="state_damaged",
                    hint="move it away, with the -wal file beside it, to begin with an empty "
                    "one; the node's key and blobs are not affected",
                ) from None
            case (
                sqlite3.SQLITE_READONLY
                | sqlite3.SQLITE_CANTOPEN
                | sqlite3.SQLITE_PERM
                | sqlite3.SQLITE_IOERR
                | sqlite3.SQLITE_BUSY
            ):
                raise StoreError(
                    f"the state in {path} cannot be used: {error}",
                    code="state_unusable",
                    hint="make it and its directory writable for this user, look whether the "
                    "disk is sound, or choose another home with --home or SHOAL_HOME",
                ) from None
        raise


def job_row(job: Job, spec: JobSpec) -> dict[str, Any]:
    """A new job's row; its counters begin at nought, and its units are rows of their own."""
    return {
        "id": job.id,
        "policy": job.policy.value,
        "program": job.program,
        "numeric_class": job.numeric_class,
        "label": job.label,
        "state": job.state.value,
        "created_at": job.created_at,
        "ended_at": job.ended_at,
        "units_total": job.units_total,
        "failure": to_json(job.failure),
        "spec": to_json(msgspec.structs.replace(spec, units=())),
    }


def job_of(row: sqlite3.Row) -> Job:
    """Read a job's row."""
    return Job(
        id=row["id"],
        policy=Policy(row["policy"]),
        program=row["program"],
        numeric_class=row["numeric_class"],
        label=row["label"],
        state=JobState(row["state"]),
        created_at=row["created_at"],
        ended_at=row["ended_at"],
        units_total=row["units_total"],
        units_done=row["units_done"],
        units_failed=row["units_failed"],
        failure=from_json(row["failure"], Failure),
    )


def unit_row(unit: Unit) -> dict[str, Any]:
    """A unit's row."""
    return {
        "job": unit.job,
        "place": unit.index,
        "state": unit.state.value,
        "inputs": to_json(unit.inputs),
        "outputs": to_json(unit.outputs),
        "receipt": unit.receipt,
        "provider": unit.provider,
        "attempts": unit.attempts,
        "seconds": unit.seconds,
        "failure": to_json(unit.failure),
    }


def unit_of(row: sqlite3.Row) -> Unit:
    """Read a unit's row."""
    return Unit(
        job=row["job"],
        index=row["place"],
        state=UnitState(row["state"]),
        inputs=from_json(row["inputs"], dict[str, BlobId]),
        outputs=from_json(row["outputs"], dict[str, BlobId]),
        receipt=row["receipt"],
        provider=row["provider"],
        attempts=row["attempts"],
        seconds=row["seconds"],
        failure=from_json(row["failure"], Failure),
    )


def answer_of(row: sqlite3.Row) -> Answer:
    """Read an answer's row."""
    return Answer(row["job"], row["peer"], row["at"], row["verdict"], row["detail"])


def to_json(value: object) -> str | None:
    """A column that holds a map or a struct, or nothing."""
    return None if value is None else msgspec.json.encode(value).decode()


def from_json(text: str | None, kind: Any) -> Any:
    """Read what `to_json` wrote."""
    return None if text is None else msgspec.json.decode(text, type=kind)


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA synchronous = NORMAL")
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > TABLES_VERSION:
        raise StoreError(
            f"the state in {path} was written by a newer shoal (tables {version}, "
            f"this one knows {TABLES_VERSION})",
            code="state_too_new",
            hint="upgrade shoal, or choose another home with --home or SHOAL_HOME",
        )
    database.execute("PRAGMA journal_mode = WAL")
    with transaction(database):
        if version == 0:
            for statement in _TABLES.split(";"):  # executescript would commit in between
                database.execute(statement)
        for statement in _LATER_TABLES.split(";"):
            database.execute(statement)
        for table, columns in _LATER_COLUMNS.items():
            there = {row["name"] for row in database.execute(f"PRAGMA table_info({table})")}
            for column in columns:
                if column.partition(" ")[0] not in there:
                    database.execute(f"ALTER TABLE {table} ADD COLUMN {column}")
        # Written each time: a state that cannot be written to is found out now.
        database.execute(f"PRAGMA user_version = {TABLES_VERSION}")
