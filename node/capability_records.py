"""What is kept on disk of measured figures and proofs of capability.

Two small tables in the node's state (`node.state`); what they mean is elsewhere
(`compute.capability`, `node.proofs`).
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import structlog

from shoal.compute.capability import Measurement
from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node.errors import StoreError
from shoal.node.proofs import BOOK_LIMIT, Proof, ProofBook, checked
from shoal.node.state_tables import from_json, to_json

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection

    from shoal.node.state import State

_LEASED_FROM_LIMIT: Final = 64
_ANSWERS_LOOKED_AT: Final = 2000

log = structlog.get_logger(__name__)


async def keep_measurement(journal: State, measurement: Measurement) -> None:
    """Keep a device's newest figures."""

    def write(database: sqlite3.Connection) -> None:
        database.execute(
            "INSERT OR REPLACE INTO measurements (device, figures) VALUES (?, ?)",
            (measurement.device, to_json(measurement)),
        )

    await journal.transact(write)


async def drop_measurement(journal: State, device: str) -> None:
    """Keep no figures of a device any more: they are not claimed again after a restart."""

    def write(database: sqlite3.Connection) -> None:
        database.execute("DELETE FROM measurements WHERE device = ?", (device,))

    await journal.transact(write)


async def kept_measurements(journal: State) -> list[Measurement]:
    """All devices' figures of an earlier time; what cannot be read is measured anew."""

    def read(database: sqlite3.Connection) -> list[Measurement]:
        kept = []
        for row in database.execute("SELECT figures FROM measurements ORDER BY device"):
            with suppress(msgspec.DecodeError):
                kept.append(from_json(row["figures"], Measurement))
        return kept

    return await journal.transact(read)


async def take_up(journal: State, book: ProofBook, proof: Proof) -> None:
    """Count a proof from now on, and keep it; where the disk is full, until the next start."""
    book.keep(proof)
    try:
        await keep_proof(journal, proof, book.counted)
    except StoreError as error:
        log.warning("a proof is not kept", verifier=proof.verifier, error=str(error))


async def keep_proof(journal: State, proof: Proof, counted: Collection[str]) -> None:
    """Keep a proof, in place of an older one of the same, and `BOOK_LIMIT` in all.

    The oldest by verifiers that are not ``counted`` goes first: anybody can make keys,
    and with them proofs that would displace those that count.
    """
    said, marks = proof.said, ",".join("?" * len(counted))

    def write(database: sqlite3.Connection) -> None:
        database.execute(
            "INSERT OR REPLACE INTO proofs (verifier, prover, device, numeric_class,"
            " precision, issued_at_ms, envelope) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                proof.verifier,
                said.prover,
                said.device,
                said.numeric_class,
                said.precision,
                said.issued_at_ms,
                proof.envelope,
            ),
        )
        database.execute(  # no text but question marks goes into it
            "DELETE FROM proofs WHERE envelope IN (SELECT envelope FROM proofs"  # noqa: S608
            f" ORDER BY verifier IN ({marks}) DESC, issued_at_ms DESC LIMIT -1 OFFSET ?)",
            (*counted, BOOK_LIMIT),
        )

    await journal.transact(write)


async def kept_proofs(journal: State) -> list[Proof]:
    """All proofs, oldest first; one that does not hold any more is left out."""

    def read(database: sqlite3.Connection) -> list[bytes]:
        rows = database.execute("SELECT envelope FROM proofs ORDER BY issued_at_ms")
        return [bytes(row["envelope"]) for row in rows]

    proofs = []
    for envelope in await journal.transact(read):
        try:
            proofs.append(checked(envelope))
        except VerificationError:  # a row that somebody else wrote
            continue
    return proofs


async def leased_from(journal: State) -> list[PeerId]:
    """Peers that this node has lately awarded work to, the last first."""

    def read(database: sqlite3.Connection) -> list[PeerId]:
        rows = database.execute(
            "SELECT peer, max(at) AS last FROM"
            " (SELECT * FROM answers ORDER BY rowid DESC LIMIT ?)"
            " WHERE verdict = 'awarded' GROUP BY peer ORDER BY last DESC LIMIT ?",
            (_ANSWERS_LOOKED_AT, _LEASED_FROM_LIMIT),
        )
        return [PeerId(row["peer"]) for row in rows]

    return await journal.transact(read)
