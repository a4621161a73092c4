"""How the units of a job were checked, counted: read from the journal at once.

Part of *deliver*, for `shoal job show`: a job of very many units is told by its counts, and
of single units by `node.assurance`, whose grounds these are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.node.assurance import DOUBTED_LIMIT, Ground, JobAssurance, quorum_of

if TYPE_CHECKING:
    import sqlite3

    from shoal.crypto.peer_id import PeerId
    from shoal.node.records import Job
    from shoal.node.state import State

_COUNTED = """
SELECT
    CASE
        WHEN units.state != 'done' THEN 'nothing'
        WHEN units.provider = :own OR found.own THEN 'own'
        WHEN found.quorum THEN 'quorum'
        WHEN found.rerun THEN 're-run'
        ELSE 'receipt'
    END AS ground,
    COUNT(*) AS number,
    TOTAL(COALESCE(units.state = 'done' AND found.differed, 0)) AS differed,
    TOTAL(1 + COALESCE(found.agreed, 0) < :quorum) AS fewer
FROM units LEFT JOIN (
    SELECT
        place,
        MAX(verdict = 'agrees' AND verifier = :own) AS own,
        MAX(verdict = 'agrees' AND level = 'quorum') AS quorum,
        MAX(verdict = 'agrees') AS rerun,
        MAX(verdict = 'differs') AS differed,
        COUNT(DISTINCT CASE WHEN verdict = 'agrees' THEN verifier END) AS agreed
    FROM checks WHERE job = :job GROUP BY place
) AS found ON found.place = units.place
WHERE units.job = :job GROUP BY ground
"""

_DOUBTED = """
FROM units WHERE job = :job AND state = 'done' AND provider != :own
AND NOT EXISTS (
    SELECT 1 FROM checks WHERE checks.job = units.job AND checks.place = units.place
    AND verdict = 'agrees' AND verifier NOT IN (SELECT peer FROM bans)
) AND (
    provider IN (SELECT peer FROM bans)
    OR EXISTS (
        SELECT 1 FROM checks WHERE checks.job = units.job AND checks.place = units.place
        AND verdict = 'agrees'
    )
)
"""
"""As `node.look_back.is_doubtful` has it, of peers that are banned."""


async def units_assured(journal: State, job: Job, own: PeerId) -> JobAssurance:
    """On what the units of a job rest.

    Args:
        journal: The journal.
        job: The job.
        own: This node.

    Raises:
        StoreError: The state cannot be read.
    """
    quorum = quorum_of(job)

    def read(database: sqlite3.Connection) -> JobAssurance:
        asked = {"job": job.id, "own": own, "quorum": quorum}
        rows = database.execute(_COUNTED, asked).fetchall()
        key = {"job": job.id, "own": own, "limit": DOUBTED_LIMIT}
        doubted, number = (), 0
        if database.execute("SELECT 1 FROM bans LIMIT 1").fetchone():
            (number,) = database.execute(f"SELECT count(*) {_DOUBTED}", key).fetchone()  # ours
            found = database.execute(
                f"SELECT place {_DOUBTED} ORDER BY place LIMIT :limit",  # ours
                key,
            )
            doubted = tuple(row["place"] for row in found)
        return JobAssurance(
            doubted=doubted,
            doubted_units=number,
            units={Ground(row["ground"]): row["number"] for row in rows},
            differed=int(sum(row["differed"] for row in rows)),
            weaker=job.numeric_class != "exact",
            quorum=quorum,
            below_quorum=int(sum(row["fewer"] for row in rows if row["ground"] == Ground.OWN)),
        )

    return await journal.transact(read)
