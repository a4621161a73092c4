"""The file of the state: opening it, its transactions, and what can be wrong with it.

Synchronous; `node.state` runs it in a thread. The tables are `node.migrations`'. A file
that a newer shoal wrote is refused, never guessed at; one that was not closed, since the
process was killed or the power went, is looked through before it is used.
"""

from __future__ import annotations

import errno
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from shoal.node import migrations
from shoal.node.errors import StoreError

BUSY_LIMIT_S = 5.0
"""How long to wait for another process, such as a backup, to let go of the file."""

CACHE_BYTES = 16 << 20
"""Of pages: the indices of a job with 10^5 units, whose ids lie at random in them."""

CHECKPOINT_PAGES = 4000
"""Pages in the WAL at which they are moved into the file: each once, however often it was
written in between. At SQLite's own 1000, ends of units took twice as long."""

CHECK_LIMIT_S = 3.0
"""How long the look through a file may take that was not closed."""

log = structlog.get_logger(__name__)


def open_database(path: Path) -> sqlite3.Connection:
    """Open the file, or make it with its tables, all of them or none.

    Raises:
        StoreError: ``state_too_new``, ``state_damaged``, ``state_unusable`` or
            ``disk_full``.
    """
    with reporting(path):
        left_open = _size_bytes(path.with_name(path.name + "-wal")) > 0
        database = connect(path)
        try:
            _refuse_newer(database, path)
            if left_open:
                _look_through(database)
            # Before the first page is written: later it takes a whole copy of the file.
            database.execute(f"PRAGMA auto_vacuum = {migrations.INCREMENTAL}")
            database.execute("PRAGMA journal_mode = WAL")
            migrations.migrate(database, path)
            # Written each time: a state that cannot be written to is found out now.
            with transaction(database):
                database.execute(f"PRAGMA user_version = {migrations.TABLES_VERSION}")
        except BaseException:
            database.close()
            raise
    return database


def connect(path: Path) -> sqlite3.Connection:
    """A connection to the file as it is, for one thread at a time."""
    database = sqlite3.connect(
        path, timeout=BUSY_LIMIT_S, isolation_level=None, check_same_thread=False
    )
    database.row_factory = sqlite3.Row
    database.execute("PRAGMA foreign_keys = ON")
    database.execute("PRAGMA synchronous = NORMAL")
    database.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
    database.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """All of the block, or nothing of it."""
    database.execute("BEGIN IMMEDIATE")
    with ending(database):
        yield


@contextmanager
def ending(database: sqlite3.Connection) -> Iterator[None]:
    """As `transaction`, of one that has begun."""
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:  # a full disk may have ended it already
            database.execute("ROLLBACK")
        raise


@contextmanager
def at_once(database: sqlite3.Connection) -> Iterator[None]:
    """Let a transaction wait for no other process, and move no pages into the file."""
    database.execute("PRAGMA busy_timeout = 0")
    database.execute("PRAGMA wal_autocheckpoint = 0")
    try:
        yield
    finally:
        database.execute(f"PRAGMA busy_timeout = {int(BUSY_LIMIT_S * 1000)}")
        database.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")


@contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turn what SQLite meets in the world, but no bug of ours, into a `StoreError`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                raise _full(path) from None
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                raise _damaged(path, str(error)) from None
            case (
                sqlite3.SQLITE_READONLY
                | sqlite3.SQLITE_CANTOPEN
                | sqlite3.SQLITE_PERM
                | sqlite3.SQLITE_IOERR
                | sqlite3.SQLITE_BUSY
            ):
                raise _unusable(path, error) from None
        raise
    except OSError as error:  # of the backup beside it
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise (_full(path) if full else _unusable(path, error)) from None


def _full(path: Path) -> StoreError:
    return StoreError(
        f"the disk that holds {path} is full",
        code="disk_full",
        hint="free some space, or move the node's home with --home or SHOAL_HOME",
    )


def _unusable(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"the state in {path} cannot be used: {error}",
        code="state_unusable",
        hint="make it and its directory writable for this user, look whether the "
        "disk is sound, or choose another home with --home or SHOAL_HOME",
    )


def _damaged(path: Path, what: str) -> StoreError:
    return StoreError(
        f"the state in {path} is damaged: {what}",
        code="state_damaged",
        hint="move it away, with the -wal file beside it, to begin with an empty "
        "one; the node's key and blobs are not affected",
    )


def _refuse_newer(database: sqlite3.Connection, path: Path) -> None:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version > migrations.TABLES_VERSION:
        raise StoreError(
            f"the state in {path} was written by a newer shoal (tables {version}, "
            f"this one knows {migrations.TABLES_VERSION})",
            code="state_too_new",
            hint="upgrade shoal, or choose another home with --home or SHOAL_HOME",
        )


def _look_through(database: sqlite3.Connection) -> None:
    """Raise where the file is damaged; a large one is looked at for `CHECK_LIMIT_S` only."""
    ends_s = time.monotonic() + CHECK_LIMIT_S
    database.set_progress_handler(lambda: time.monotonic() > ends_s, 100_000)
    try:
        said = database.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.OperationalError as error:
        if getattr(error, "sqlite_errorcode", 0) != sqlite3.SQLITE_INTERRUPT:
            raise
        log.warning("the state was not closed, and is too large to be looked through")
        return
    finally:
        database.set_progress_handler(None, 0)
    if said != "ok":
        damaged = sqlite3.DatabaseError(said)
        damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise damaged


def _size_bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
