"""Checks, bans, fraud proofs and disputes in the journal: each function is one transaction.

Checks are rows of their unit and go with it. Of bans and proofs there may be no end, since
anybody can make two keys and convict one of them by the other: so what this node's *own*
work has shown is kept before what others tell. Own ones take the place of others', and no
others' the place of an own one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

import msgspec

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node.records import Ban, Check, JobId
from shoal.node.state_tables import from_json, insert, to_json

CHECKS_LIMIT: Final = 16
"""Checks kept of one unit, the newest: a quorum, a re-run and their like."""

BANS_LIMIT: Final = 4096
"""Bans kept at once, about 500 bytes each."""

PROOFS_LIMIT: Final = 1024
PROOFS_LIMIT_BYTES: Final = 64 << 20
"""Fraud proofs kept, and their bytes in all: several hundred of the largest."""

DISPUTES_LIMIT: Final = 256
"""Disputes that are open at once; one more ends the oldest, of which nobody waits long."""

CLOSED_DISPUTES_LIMIT: Final = 256
"""Ended disputes whose outcome is kept, the newest."""


class KeptProof(msgspec.Struct, frozen=True):
    """A fraud proof as it is kept.

    Attributes:
        proof: Its bytes.
        blobs: Ids of the blobs that it takes to check it.
        verdict: What this node found when it checked it.
        own: Whether it is of work that this node gave.
        at: When it was kept, in seconds since the epoch.
        private: Whether it is for this node alone.
    """

    id: BlobId
    accused: PeerId
    proof: bytes
    blobs: tuple[BlobId, ...]
    verdict: str
    own: bool
    at: float
    private: bool = False


# --- checks -----------------------------------------------------------------------


def add_checks(database: sqlite3.Connection, checks: Iterable[Check]) -> None:
    """Keep checks; those of a unit that is not there, or not any more, are no matter."""
    for check in checks:
        key = {"job": check.job, "place": check.unit}
        known = database.execute(
            "SELECT 1 FROM units WHERE job = :job AND place = :place", key
        ).fetchone()
        if known is None:
            continue
        row = {
            **key,
            "level": check.level,
            "verifier": check.verifier,
            "verdict": check.verdict,
            "receipt": check.receipt,
            "at": check.at,
        }
        insert(database, "checks", [row])
        database.execute(
            "DELETE FROM checks WHERE rowid IN (SELECT rowid FROM checks"
            " WHERE job = :job AND place = :place ORDER BY rowid DESC LIMIT -1 OFFSET :limit)",
            {**key, "limit": CHECKS_LIMIT},
        )


def checks(database: sqlite3.Connection, job_id: JobId, unit: int | None) -> list[Check]:
    """The checks of a job's units, or of one of them, by unit and then as they came."""
    rows = database.execute(
        "SELECT * FROM checks WHERE job = :job AND (:place IS NULL OR place = :place)"
        " ORDER BY place, rowid",
        {"job": job_id, "place": unit},
    )
    return [
        Check(
            job=row["job"],
            unit=row["place"],
            level=row["level"],
            verifier=PeerId(row["verifier"]),
            verdict=row["verdict"],
            receipt=row["receipt"],
            at=row["at"],
        )
        for row in rows
    ]


def unfetched_units_by(
    database: sqlite3.Connection, peer: PeerId
) -> list[tuple[JobId, int, PeerId]]:
    """Units that a peer ran or vouched for, each with who ran it.

    Of jobs that have not ended, and of results that nobody has yet.
    """
    rows = database.execute(
        "SELECT job, place, provider FROM jobs CROSS JOIN units INDEXED BY unfetched_places"
        " ON units.job = jobs.id WHERE jobs.state = 'running' AND NOT forgotten"
        " AND ended IS NOT NULL AND NOT fetched AND units.state = 'done'"
        " AND provider IS NOT NULL AND (provider = :peer OR EXISTS (SELECT 1 FROM checks"
        " WHERE checks.job = units.job AND checks.place = units.place"
        " AND verifier = :peer AND verdict = 'agrees')) ORDER BY job, place",
        {"peer": peer},
    )
    return [(JobId(row["job"]), row["place"], PeerId(row["provider"])) for row in rows]


# --- bans -------------------------------------------------------------------------


def add_ban(database: sqlite3.Connection, ban: Ban) -> bool:
    """Keep a ban; the longer one of a peer that is banned already.

    Returns:
        False where it is not kept: there are `BANS_LIMIT`, and this one is others' word.
    """
    database.execute("DELETE FROM bans WHERE until <= ?", (ban.since,))
    there = database.execute("SELECT until FROM bans WHERE peer = ?", (ban.peer,)).fetchone()
    if there is None:
        (count,) = database.execute("SELECT count(*) FROM bans").fetchone()
        if count >= BANS_LIMIT:
            if not ban.own:
                return False
            database.execute(
                "DELETE FROM bans WHERE peer ="
                " (SELECT peer FROM bans ORDER BY own, until, peer LIMIT 1)"
            )
    elif there["until"] > ban.until:
        return True
    database.execute(
        "INSERT OR REPLACE INTO bans (peer, proof, since, until, why, own)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (ban.peer, ban.proof, ban.since, ban.until, ban.why, ban.own),
    )
    return True


def bans(database: sqlite3.Connection) -> list[Ban]:
    """All bans, those that have lapsed among them until one is added; oldest first."""
    rows = database.execute("SELECT * FROM bans ORDER BY since, peer")
    return [
        Ban(
            peer=PeerId(row["peer"]),
            proof=BlobId(row["proof"]),
            since=row["since"],
            until=row["until"],
            why=row["why"],
            own=bool(row["own"]),
        )
        for row in rows
    ]


def lift_ban(database: sqlite3.Connection, peer: PeerId) -> bool:
    """End a ban; False where there was none."""
    return database.execute("DELETE FROM bans WHERE peer = ?", (peer,)).rowcount > 0


# --- proofs -----------------------------------------------------------------------


def add_proof(database: sqlite3.Connection, proof: KeptProof) -> bool:
    """Keep a proof; False where it is not kept, since there is no room for others'."""
    database.execute(
        "INSERT INTO fraud_proofs (id, accused, proof, blobs, verdict, own, at, private)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
        " verdict = excluded.verdict, own = max(own, excluded.own)",
        (
            proof.id,
            proof.accused,
            proof.proof,
            to_json(proof.blobs),
            proof.verdict,
            proof.own,
            proof.at,
            proof.private,
        ),
    )
    count, size_bytes = database.execute(
        "SELECT count(*), coalesce(sum(length(proof)), 0) FROM fraud_proofs"
    ).fetchone()
    while count > 1 and (count > PROOFS_LIMIT or size_bytes > PROOFS_LIMIT_BYTES):
        gone = database.execute(
            "DELETE FROM fraud_proofs WHERE id = (SELECT id FROM fraud_proofs"
            " INDEXED BY fraud_proofs_by_age ORDER BY own, at LIMIT 1)"
            " RETURNING length(proof)"
        ).fetchone()
        count, size_bytes = count - 1, size_bytes - gone[0]
    kept = database.execute("SELECT 1 FROM fraud_proofs WHERE id = ?", (proof.id,)).fetchone()
    return kept is not None


def proofs(database: sqlite3.Connection) -> list[KeptProof]:
    """All proofs, oldest first."""
    return [
        _proof_of(row)
        for row in database.execute("SELECT * FROM fraud_proofs ORDER BY at, rowid")
    ]


def proof(database: sqlite3.Connection, proof_id: BlobId) -> KeptProof | None:
    """One proof; None where it is not kept."""
    row = database.execute("SELECT * FROM fraud_proofs WHERE id = ?", (proof_id,)).fetchone()
    return None if row is None else _proof_of(row)


def _proof_of(row: sqlite3.Row) -> KeptProof:
    return KeptProof(
        id=BlobId(row["id"]),
        accused=PeerId(row["accused"]),
        proof=bytes(row["proof"]),
        blobs=from_json(row["blobs"], tuple[BlobId, ...]),
        verdict=row["verdict"],
        own=bool(row["own"]),
        at=row["at"],
        private=bool(row["private"]),
    )


# --- disputes ---------------------------------------------------------------------


def add_dispute(database: sqlite3.Connection, evidence: bytes) -> int:
    """Open a dispute; gives its number, which no other one ever has."""
    number = database.execute(
        "INSERT INTO disputes (evidence) VALUES (?) RETURNING number", (evidence,)
    ).fetchone()[0]
    displaced = database.execute(
        "SELECT number FROM disputes INDEXED BY open_disputes WHERE outcome IS NULL"
        " ORDER BY number DESC LIMIT -1 OFFSET ?",
        (DISPUTES_LIMIT,),
    ).fetchall()
    for row in displaced:
        close_dispute(database, row["number"], "displaced")
    return int(number)


def open_disputes(database: sqlite3.Connection) -> list[tuple[int, bytes]]:
    """The disputes that have not ended, oldest first."""
    rows = database.execute("SELECT * FROM disputes WHERE outcome IS NULL ORDER BY number")
    return [(row["number"], bytes(row["evidence"])) for row in rows]


def keep_dispute(database: sqlite3.Connection, number: int, evidence: bytes) -> bool:
    """Write down how far an open dispute is; False where it is not open."""
    return (
        database.execute(
            "UPDATE disputes SET evidence = ? WHERE number = ? AND outcome IS NULL",
            (evidence, number),
        ).rowcount
        > 0
    )


def close_dispute(database: sqlite3.Connection, number: int, outcome: str) -> bool:
    """End a dispute, of which the outcome stays; False where it had ended before."""
    closed = database.execute(
        "UPDATE disputes SET outcome = ?, evidence = x'' WHERE number = ? AND outcome IS NULL",
        (outcome, number),
    )
    database.execute(
        "DELETE FROM disputes WHERE number IN (SELECT number FROM disputes"
        " WHERE outcome IS NOT NULL ORDER BY number DESC LIMIT -1 OFFSET ?)",
        (CLOSED_DISPUTES_LIMIT,),
    )
    return closed.rowcount > 0
