"""Who did how many units of a job, and what failed where: read from the journal at once.

Part of *deliver*, for `shoal job why`: a job of very many units is told by its providers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from shoal.crypto.peer_id import PeerId
from shoal.node.records import Failure, UnitState

if TYPE_CHECKING:
    import sqlite3

    from shoal.node.records import JobId
    from shoal.node.state import State

GROUPS_LIMIT = 200
"""Providers and failures that are told of one job."""


class WorkDone(msgspec.Struct, frozen=True):
    """Units of a job that ended in the same way at the same provider.

    Attributes:
        units: How many.
        first: The lowest index of them.
        seconds: Of all of them together, from hand-over to verified result.
    """

    provider: PeerId | None
    state: UnitState
    units: int
    first: int
    seconds: float
    failure: Failure | None = None


async def work_done(journal: State, job_id: JobId) -> tuple[WorkDone, ...]:
    """How the units of a job ended, those first of which there are most.

    Raises:
        StoreError: The state cannot be read.
    """

    def read(database: sqlite3.Connection) -> tuple[WorkDone, ...]:
        rows = database.execute(
            "SELECT provider, state, failure, COUNT(*) AS units, MIN(place) AS first,"
            " TOTAL(seconds) AS seconds FROM units"
            " WHERE job = ? AND state IN ('done', 'failed')"
            " GROUP BY provider, state, failure ORDER BY units DESC, first LIMIT ?",
            (job_id, GROUPS_LIMIT),
        )
        return tuple(_of(row) for row in rows)

    return await journal.transact(read)


def _of(row: sqlite3.Row) -> WorkDone:
    failure = row["failure"]
    return WorkDone(
        provider=row["provider"],
        state=UnitState(row["state"]),
        units=row["units"],
        first=row["first"],
        seconds=row["seconds"],
        failure=None if failure is None else msgspec.json.decode(failure, type=Failure),
    )
