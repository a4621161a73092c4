"""Outputs left with peers, in the journal: what is left where, and whether it is still wanted.

Rows are written with a unit's end (`node.journal_endings`) and go with what makes them
void: a unit that runs again, an output that was brought here, a job that needs its own no
more. Each function is for one transaction.
"""

from __future__ import annotations

import sqlite3

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node.records import JobId


def take_unneeded(database: sqlite3.Connection, job_id: JobId) -> dict[PeerId, list[BlobId]]:
    """Forget what a job has left, but for what units that have not ended take of it.

    Returns:
        What nobody needs there any more, by peer: no other job has left it there as well.
    """
    rows = database.execute(
        "DELETE FROM left_outputs WHERE job = ? AND NOT EXISTS (SELECT 1 FROM edges"
        " JOIN units ON units.job = edges.job AND units.place = edges.place"
        " WHERE from_job = left_outputs.job AND from_place = left_outputs.place"
        " AND state = 'queued') RETURNING peer, tensor",
        (job_id,),
    ).fetchall()
    found: dict[PeerId, list[BlobId]] = {}
    for row in rows:
        still = database.execute(
            "SELECT 1 FROM left_outputs WHERE tensor = ? AND peer = ?",
            (row["tensor"], row["peer"]),
        ).fetchone()
        if still is None:
            found.setdefault(PeerId(row["peer"]), []).append(BlobId(row["tensor"]))
    return found


def is_awaited(database: sqlite3.Connection, tensor: BlobId) -> bool:
    """Whether a unit that has not ended takes an output which is left with a peer."""
    row = database.execute(
        "SELECT 1 FROM left_outputs JOIN edges ON from_job = left_outputs.job"
        " AND from_place = left_outputs.place JOIN units ON units.job = edges.job"
        " AND units.place = edges.place WHERE tensor = ? AND state = 'queued' LIMIT 1",
        (tensor,),
    ).fetchone()
    return row is not None


def brought_here(database: sqlite3.Connection, tensor: BlobId) -> list[tuple[JobId, PeerId]]:
    """An output is in the blob store now; gives which job had left it, and with whom."""
    rows = database.execute(
        "DELETE FROM left_outputs WHERE tensor = ? RETURNING job, peer", (tensor,)
    ).fetchall()
    for row in rows:
        database.execute("UPDATE jobs SET blobs = blobs + 1 WHERE id = ?", (row["job"],))
    return [(JobId(row["job"]), PeerId(row["peer"])) for row in rows]


def makers(
    database: sqlite3.Connection, job: JobId, place: int
) -> dict[str, tuple[JobId, int]]:
    """By input of a unit that another unit makes: which one."""
    rows = database.execute(
        "SELECT input, from_job, from_place FROM edges WHERE job = ? AND place = ?",
        (job, place),
    )
    return {row["input"]: (JobId(row["from_job"]), row["from_place"]) for row in rows}
