"""The tables of the state, and how those of an older shoal become these.

One function for each version, in `_STEPS`: the first makes the tables of version 1, each
next one changes those of the version before it. All that are needed run in one
transaction, so that a file is of one version or of another and never between two; before
it, a file that holds anything is copied beside itself, by SQLite's own backup, as
``NAME.vVERSION.bak``. To go back to the older shoal, put that copy in the file's place.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

import structlog

TABLES_VERSION: Final = 4

INCREMENTAL: Final = 2
"""The mode of SQLite's ``auto_vacuum`` in which freed pages are given back when asked."""

log = structlog.get_logger(__name__)


def migrate(database: sqlite3.Connection, path: Path) -> None:
    """Bring the tables up to `TABLES_VERSION`; raises what SQLite raises, and OSError."""
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if 0 < version < TABLES_VERSION:
        copy = backup(database, path, version)
        log.info("the state is brought up to this version", tables=version, backup=str(copy))
    if version < TABLES_VERSION:
        database.execute("BEGIN IMMEDIATE")
        try:
            for step in _STEPS[version:]:
                step(database)
            database.execute(f"PRAGMA user_version = {TABLES_VERSION}")
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
    if database.execute("PRAGMA auto_vacuum").fetchone()[0] != INCREMENTAL:
        try:
            database.execute("VACUUM")
        except sqlite3.OperationalError as error:  # no room for a second copy, most likely
            log.warning("the state stays as large as it was", error=str(error))


def backup(database: sqlite3.Connection, path: Path, version: int) -> Path:
    """Copy the state beside itself, whole or not at all; gives where."""
    copy = path.with_name(f"{path.name}.v{version}.bak")
    part = copy.with_name(copy.name + ".part")
    part.unlink(missing_ok=True)
    with closing(sqlite3.connect(part)) as into:
        database.backup(into)
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(copy)
    return copy


def _execute(database: sqlite3.Connection, statements: str) -> None:
    for statement in statements.split(";"):  # executescript would commit in between
        database.execute(statement)


def _make_tables(database: sqlite3.Connection) -> None:
    _execute(database, _TABLES_1)


def _add_chaining_and_results(database: sqlite3.Connection) -> None:
    """Version 2: units that await others, small tensors, and who fetched what."""
    _execute(database, _LATER_IN_1)
    there = {row["name"] for row in database.execute("PRAGMA table_info(peers)")}
    if "worked" not in there:
        database.execute("ALTER TABLE peers ADD COLUMN worked TEXT NOT NULL DEFAULT ''")
    if "met" not in there:
        database.execute("ALTER TABLE peers ADD COLUMN met INTEGER NOT NULL DEFAULT 1")
    _execute(database, _CHANGES_2)


def _add_verdicts_and_ledger(database: sqlite3.Connection) -> None:
    """Version 3: who checked what, who was convicted, and who did how much for whom."""
    _execute(database, _CHANGES_3)


def _add_given_receipts(database: sqlite3.Connection) -> None:
    """Version 4: receipts that a provider may have to answer for, and proofs kept at home."""
    _execute(database, _CHANGES_4)


_STEPS: Final = (
    _make_tables,
    _add_chaining_and_results,
    _add_verdicts_and_ledger,
    _add_given_receipts,
)

_TABLES_1: Final = """
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

_LATER_IN_1: Final = """
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
"""What came in the time of version 1: some of its files have it already."""

_CHANGES_2: Final = """
ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN open INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN outputs_stay INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN endings INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN units_fetched INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN size_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN blobs INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN forgotten INTEGER NOT NULL DEFAULT 0;
CREATE INDEX ended_jobs ON jobs (ended_at) WHERE ended_at IS NOT NULL;

ALTER TABLE units ADD COLUMN awaits TEXT;
ALTER TABLE units ADD COLUMN ended INTEGER;
ALTER TABLE units ADD COLUMN fetched INTEGER NOT NULL DEFAULT 0;
DROP INDEX open_units;
CREATE INDEX ready_units ON units (job, place) WHERE state = 'queued' AND awaits IS NULL;
CREATE INDEX awaiting_units ON units (job, place) WHERE awaits IS NOT NULL;
CREATE INDEX ended_units ON units (job, ended) WHERE ended IS NOT NULL;
CREATE INDEX unfetched_units ON units (job, ended) WHERE ended IS NOT NULL AND NOT fetched;
CREATE INDEX unfetched_places ON units (job, place) WHERE ended IS NOT NULL AND NOT fetched;
CREATE INDEX failed_units ON units (job, place) WHERE state = 'failed';

UPDATE units SET ended = place WHERE state <> 'queued';
UPDATE jobs SET endings = units_total,
    blobs = coalesce((SELECT sum((SELECT count(*) FROM json_each(outputs)))
        FROM units WHERE job = jobs.id AND outputs IS NOT NULL), 0),
    size_bytes = coalesce((SELECT sum(length(envelope))
        FROM receipts WHERE job = jobs.id), 0);

CREATE TABLE edges (
    from_job   TEXT NOT NULL,
    from_place INTEGER NOT NULL,
    job        TEXT NOT NULL,
    place      INTEGER NOT NULL,
    input      TEXT NOT NULL,
    output     TEXT NOT NULL,
    PRIMARY KEY (from_job, from_place, job, place, input),
    FOREIGN KEY (job, place) REFERENCES units (job, place)
) WITHOUT ROWID;
CREATE INDEX edges_of_unit ON edges (job, place);

CREATE TABLE tensors (
    job  TEXT NOT NULL REFERENCES jobs (id),
    id   TEXT NOT NULL,
    data BLOB NOT NULL
);
CREATE INDEX tensors_of_job ON tensors (job);
CREATE INDEX tensors_by_id ON tensors (substr(id, 1, 12));

ALTER TABLE receipts RENAME TO receipts_1;
CREATE TABLE receipts (
    id       TEXT NOT NULL,
    job      TEXT NOT NULL,
    place    INTEGER NOT NULL,
    envelope BLOB NOT NULL,
    FOREIGN KEY (job, place) REFERENCES units (job, place)
);
INSERT INTO receipts SELECT id, job, place, envelope FROM receipts_1 ORDER BY job, place;
DROP TABLE receipts_1;
CREATE INDEX receipts_of_job ON receipts (job, place);
CREATE INDEX receipts_by_id ON receipts (substr(id, 1, 12));

CREATE TABLE left_outputs (
    tensor     TEXT NOT NULL,
    job        TEXT NOT NULL,
    place      INTEGER NOT NULL,
    peer       TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (tensor, job, place),
    FOREIGN KEY (job, place) REFERENCES units (job, place)
) WITHOUT ROWID;
CREATE INDEX left_outputs_of_unit ON left_outputs (job, place)
"""
"""Columns of counters are kept in the transactions that change what they count:
``endings`` is the next number in the order of ending, ``size_bytes`` of tensors and
receipts together, ``blobs`` how many outputs lie in the blob store.

Content ids lie at random: what is ordered by them has a page written for nearly each row.
So tensors and receipts lie in the order in which they came, and of an id only its first
digits are in an index (`node.state_tables.id_key`), where one page has hundreds of them."""

_CHANGES_3: Final = """
CREATE TABLE checks (
    job      TEXT NOT NULL,
    place    INTEGER NOT NULL,
    level    TEXT NOT NULL,
    verifier TEXT NOT NULL,
    verdict  TEXT NOT NULL,
    receipt  TEXT,
    at       REAL NOT NULL,
    FOREIGN KEY (job, place) REFERENCES units (job, place)
);
CREATE INDEX checks_of_unit ON checks (job, place);

CREATE TABLE bans (
    peer    TEXT PRIMARY KEY,
    proof   TEXT NOT NULL,
    since   REAL NOT NULL,
    until   REAL NOT NULL,
    why     TEXT NOT NULL,
    own     INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE fraud_proofs (
    id      TEXT PRIMARY KEY,
    accused TEXT NOT NULL,
    proof   BLOB NOT NULL,
    blobs   TEXT NOT NULL,
    verdict TEXT NOT NULL,
    own     INTEGER NOT NULL,
    at      REAL NOT NULL
);
CREATE INDEX fraud_proofs_by_age ON fraud_proofs (own, at);

CREATE TABLE disputes (
    number   INTEGER PRIMARY KEY AUTOINCREMENT,
    evidence BLOB NOT NULL,
    outcome  TEXT
);
CREATE INDEX open_disputes ON disputes (number) WHERE outcome IS NULL;

CREATE TABLE standing (
    peer    TEXT PRIMARY KEY,
    account TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE ledger (
    peer                 TEXT NOT NULL,
    direction            TEXT NOT NULL,
    units                INTEGER NOT NULL,
    credits              REAL NOT NULL,
    seconds              REAL NOT NULL,
    acknowledged_units   INTEGER NOT NULL,
    acknowledged_credits REAL NOT NULL,
    since                REAL NOT NULL,
    at                   REAL NOT NULL,
    PRIMARY KEY (peer, direction)
) WITHOUT ROWID;

CREATE TABLE unacknowledged (
    id        TEXT PRIMARY KEY,
    requester TEXT NOT NULL,
    award     TEXT NOT NULL,
    receipts  TEXT NOT NULL,
    price     REAL NOT NULL,
    at        REAL NOT NULL
);

CREATE TABLE acknowledgements (
    id        TEXT PRIMARY KEY,
    requester TEXT NOT NULL,
    award     BLOB NOT NULL,
    envelope  BLOB NOT NULL,
    at        REAL NOT NULL
);
CREATE INDEX acknowledgements_of_peer ON acknowledgements (requester, at);
CREATE INDEX acknowledgements_by_age ON acknowledgements (at)
"""
"""What is kept of others' conduct in work. Checks go with their job; what bounds each of the
other tables is in `node.journal_verdicts` and `node.journal_ledger`. The table ``proofs`` is
of capability, and older; proofs of fraud are ``fraud_proofs``."""

_CHANGES_4: Final = """
CREATE TABLE given_receipts (
    number   INTEGER PRIMARY KEY,
    receipts BLOB NOT NULL
);

ALTER TABLE fraud_proofs ADD COLUMN private INTEGER NOT NULL DEFAULT 0
"""
"""Receipts given are those of one second each; see `node.journal_defence`."""
