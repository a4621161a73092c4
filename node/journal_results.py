"""Results in the journal: pages of ended units, small tensors, receipts, who has the rest.

A page is found by the index of a unit, or by its number in the order of ending: however
large the job, it costs what is in the page.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node.errors import JobError
from shoal.node.journal_jobs import find_job
from shoal.node.records import Job, JobId, Unit, UnitState
from shoal.node.state_tables import KEY_OF_ID, id_key, unit_of

Order = Literal["given", "ended"]

_UNFETCHED: dict[Order, tuple[str, str]] = {
    "given": ("unfetched_places", "place"),
    "ended": ("unfetched_units", "ended"),
}

VALUES_AT_ONCE = 500
"""In one statement: SQLite's own bound was 999 in its older versions."""


def results(
    database: sqlite3.Connection, job_id: JobId, after: int, limit: int, order: Order
) -> list[Unit]:
    """Units that have ended; in order of index, up to the first that has not ended."""
    find_job(database, job_id)
    if order == "ended":
        rows = database.execute(
            "SELECT * FROM units WHERE job = ? AND ended > ? ORDER BY ended LIMIT ?",
            (job_id, after, limit),
        )
        return [unit_of(row) for row in rows]
    rows = database.execute(
        "SELECT * FROM units WHERE job = ? AND place > ? ORDER BY place LIMIT ?",
        (job_id, after, limit),
    )
    ended: list[Unit] = []
    for row in rows:
        if row["state"] == UnitState.QUEUED.value:
            break
        ended.append(unit_of(row))
    return ended


def note_fetched(
    database: sqlite3.Connection, job_id: JobId, indices: Iterable[int] | None
) -> Job:
    """Note that these results, or all that there are, were given out; gives the job."""
    statement = (
        "UPDATE units SET fetched = 1 WHERE job = ? AND NOT fetched"
        " AND state IN ('done', 'failed')"
    )
    if indices is None:
        fetched = database.execute(statement, (job_id,)).rowcount
    else:
        fetched = sum(
            database.execute(f"{statement} AND place = ?", (job_id, index)).rowcount
            for index in indices
        )
    return _count_fetched(database, job_id, fetched)


def note_read(database: sqlite3.Connection, job_id: JobId, until: int, order: Order) -> Job:
    """Note that the results up to this place in the order were given out; gives the job.

    Each order has an index of what was not fetched, so that a page costs what is in it.
    """
    index, unread = _unread(order)
    fetched = database.execute(
        f"UPDATE units INDEXED BY {index} SET fetched = 1 WHERE {unread}",  # noqa: S608  # ours
        (job_id, until),
    ).rowcount
    return _count_fetched(database, job_id, fetched)


def count_unread(
    database: sqlite3.Connection, job_id: JobId, until: int, order: Order, limit: int
) -> int:
    """How many units `note_read` would note; counts no further than ``limit``."""
    index, unread = _unread(order)
    (count,) = database.execute(
        f"SELECT count(*) FROM (SELECT 1 FROM units INDEXED BY {index} WHERE {unread} LIMIT ?)",  # noqa: S608  # ours
        (job_id, until, limit),
    ).fetchone()
    return int(count)


def _unread(order: Order) -> tuple[str, str]:
    """The index by which what was not given out is found, and the condition for it."""
    index, column = _UNFETCHED[order]
    return index, (
        f"job = ? AND {column} <= ?"
        " AND ended IS NOT NULL AND NOT fetched AND state IN ('done', 'failed')"
    )


def _count_fetched(database: sqlite3.Connection, job_id: JobId, fetched: int) -> Job:
    if fetched:
        database.execute(
            "UPDATE jobs SET units_fetched = units_fetched + ? WHERE id = ?",
            (fetched, job_id),
        )
    return find_job(database, job_id)


def tensors(database: sqlite3.Connection, ids: Iterable[BlobId]) -> dict[BlobId, bytes]:
    """Those of the tensors that the journal has."""
    return _of_tensors(database, "data", ids)


def tensor_sizes(database: sqlite3.Connection, ids: Iterable[BlobId]) -> dict[BlobId, int]:
    """The sizes in bytes of those of the tensors that the journal has."""
    return _of_tensors(database, "length(data)", ids)


def _of_tensors(
    database: sqlite3.Connection, what: str, ids: Iterable[BlobId]
) -> dict[BlobId, Any]:
    found: dict[BlobId, Any] = {}
    for some in _pieces(ids):
        wanted = set(some)
        marks = ",".join("?" * len(some))
        rows = database.execute(
            f"SELECT id, {what} AS it FROM tensors WHERE {KEY_OF_ID} IN ({marks})",  # noqa: S608  # ours, and marks
            [*map(id_key, some)],
        )
        found.update((BlobId(row["id"]), row["it"]) for row in rows if row["id"] in wanted)
    return found


def holders(
    database: sqlite3.Connection, ids: Iterable[BlobId]
) -> dict[BlobId, tuple[PeerId, JobId, int, int]]:
    """Of outputs left with peers: one peer that has it, job, unit, and size in bytes."""
    found: dict[BlobId, tuple[PeerId, JobId, int, int]] = {}
    for some in _pieces(ids):
        marks = ",".join("?" * len(some))
        rows = database.execute(
            f"SELECT * FROM left_outputs WHERE tensor IN ({marks})",  # noqa: S608  # no text but marks
            some,
        )
        for row in rows:
            found[BlobId(row["tensor"])] = (
                PeerId(row["peer"]),
                JobId(row["job"]),
                row["place"],
                row["size_bytes"],
            )
    return found


def receipt_ids(database: sqlite3.Connection, job_id: JobId) -> list[BlobId]:
    """The ids of a job's receipts, in order of its units."""
    rows = database.execute("SELECT id FROM receipts WHERE job = ? ORDER BY place", (job_id,))
    return [BlobId(row["id"]) for row in rows]


def receipt(database: sqlite3.Connection, receipt_id: BlobId) -> bytes:
    """The signed envelope of a receipt.

    Raises:
        JobError: ``no_such_receipt``.
    """
    row = database.execute(
        f"SELECT envelope FROM receipts WHERE {KEY_OF_ID} = ? AND +id = ?",  # noqa: S608  # ours
        (id_key(receipt_id), receipt_id),
    ).fetchone()
    if row is None:
        raise JobError(
            f"there is no receipt {receipt_id[:64]!r}",
            code="no_such_receipt",
            hint="`shoal job show JOB` lists a job's receipts",
        )
    return bytes(row["envelope"])


def _pieces(ids: Iterable[BlobId]) -> Iterator[list[BlobId]]:
    left = iter(dict.fromkeys(ids))
    while some := list(islice(left, VALUES_AT_ONCE)):
        yield some
