"""Standing, ledger and acknowledgements in the journal: each function is one transaction.

What happens under leases comes many times a second, and so it is gathered
(`node.settling`) and written once a second, as one `Settled`: a process that is killed
loses the last second of figures, and nothing that was signed is told otherwise by it.

Bounds: of the ledger `LEDGER_PEERS_LIMIT` peers, those with the least work go first, so
that fresh keys displace each other and nobody who has worked; of acknowledgements the
newest of each peer, and of all of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final

import msgspec

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node.ledger import LedgerRow
from shoal.node.result_standing import StandingRow
from shoal.node.state_tables import from_json, to_json

LEDGER_PEERS_LIMIT: Final = 4096
"""Peers of which it is known who did how much for whom."""

ACKNOWLEDGEMENTS_OF_PEER: Final = 64
"""Acknowledgements kept of one requester, the newest, up to 17 KB each."""

ACKNOWLEDGEMENTS_LIMIT: Final = 4096
"""And of all: 70 MB at the most."""

UNACKNOWLEDGED_LIMIT: Final = 8192
"""Answered messages whose receipts were not acknowledged, of all requesters."""

RECEIPTS_LOOKED_AT: Final = 20_000
"""Receipts among which those of one award are looked for, the newest."""


class Unacknowledged(msgspec.Struct, frozen=True):
    """Receipts that this node gave in one message, and that nobody has acknowledged.

    Attributes:
        id: Of the first of the receipts: its name here.
        price: Credits for each, by the award.
        at: When they were given, in seconds since the epoch.
    """

    id: BlobId
    requester: PeerId
    award: BlobId
    receipts: tuple[BlobId, ...]
    price: float
    at: float


class KeptAcknowledgement(msgspec.Struct, frozen=True):
    """A requester's signed word that it has receipts, with the award that it gave.

    Attributes:
        id: Content id of the envelope.
        award: The award's envelope.
        envelope: The acknowledgement's.
        at: When it came, in seconds since the epoch.
    """

    id: BlobId
    requester: PeerId
    award: bytes
    envelope: bytes
    at: float


class Settled(msgspec.Struct, frozen=True):
    """What has changed since it was written last.

    Attributes:
        rows: What comes to the ledger.
        unacknowledged: New ones, and those of which some were acknowledged.
        settled: Those that are acknowledged, or given up, by their ids.
        acknowledgements: New ones.
    """

    rows: tuple[LedgerRow, ...] = ()
    unacknowledged: tuple[Unacknowledged, ...] = ()
    settled: tuple[BlobId, ...] = ()
    acknowledgements: tuple[KeptAcknowledgement, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.rows or self.unacknowledged or self.settled or self.acknowledgements)


# --- standing ---------------------------------------------------------------------


def save_standing(
    database: sqlite3.Connection, rows: Iterable[StandingRow], forgotten: Iterable[PeerId]
) -> None:
    """Write the accounts of some peers, and forget others'."""
    database.executemany(
        "INSERT OR REPLACE INTO standing (peer, account) VALUES (?, ?)",
        [(row.peer, to_json(row)) for row in rows],
    )
    database.executemany("DELETE FROM standing WHERE peer = ?", [(peer,) for peer in forgotten])


def standing_rows(database: sqlite3.Connection) -> list[StandingRow]:
    """The accounts of all peers."""
    rows = database.execute("SELECT account FROM standing ORDER BY peer")
    return [from_json(row["account"], StandingRow) for row in rows]


# --- ledger and acknowledgements --------------------------------------------------


def settle(database: sqlite3.Connection, settled: Settled) -> list[PeerId]:
    """Write what has changed; gives the peers that the ledger has no room for."""
    database.executemany(_ADD_ROW, [msgspec.structs.asdict(row) for row in settled.rows])
    database.executemany(
        "INSERT OR REPLACE INTO unacknowledged (id, requester, award, receipts, price, at)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        [
            (each.id, each.requester, each.award, to_json(each.receipts), each.price, each.at)
            for each in settled.unacknowledged
        ],
    )
    database.executemany(
        "DELETE FROM unacknowledged WHERE id = ?", [(each,) for each in settled.settled]
    )
    _keep_newest(database, "unacknowledged", UNACKNOWLEDGED_LIMIT)
    database.executemany(
        "INSERT OR IGNORE INTO acknowledgements (id, requester, award, envelope, at)"
        " VALUES (?, ?, ?, ?, ?)",
        [
            (each.id, each.requester, each.award, each.envelope, each.at)
            for each in settled.acknowledgements
        ],
    )
    for requester in {each.requester for each in settled.acknowledgements}:
        database.execute(
            "DELETE FROM acknowledgements WHERE id IN (SELECT id FROM acknowledgements"
            " INDEXED BY acknowledgements_of_peer WHERE requester = ?"
            " ORDER BY at DESC LIMIT -1 OFFSET ?)",
            (requester, ACKNOWLEDGEMENTS_OF_PEER),
        )
    _keep_newest(database, "acknowledgements", ACKNOWLEDGEMENTS_LIMIT)
    return _bound_ledger(database) if settled.rows else []


def ledger(database: sqlite3.Connection) -> list[LedgerRow]:
    """All rows, the last to change first."""
    rows = database.execute("SELECT * FROM ledger ORDER BY at DESC, peer, direction")
    return [
        LedgerRow(**{name: row[name] for name in LedgerRow.__struct_fields__}) for row in rows
    ]


def unacknowledged(database: sqlite3.Connection) -> list[Unacknowledged]:
    """What was not acknowledged, oldest first."""
    rows = database.execute("SELECT * FROM unacknowledged ORDER BY at, rowid")
    return [
        Unacknowledged(
            id=BlobId(row["id"]),
            requester=PeerId(row["requester"]),
            award=BlobId(row["award"]),
            receipts=from_json(row["receipts"], tuple[BlobId, ...]),
            price=row["price"],
            at=row["at"],
        )
        for row in rows
    ]


def acknowledgements(
    database: sqlite3.Connection, requester: PeerId | None
) -> list[KeptAcknowledgement]:
    """Acknowledgements of one requester or of all, oldest first."""
    rows = database.execute(
        "SELECT * FROM acknowledgements WHERE :peer IS NULL OR requester = :peer"
        " ORDER BY at, rowid",
        {"peer": requester},
    )
    return [
        KeptAcknowledgement(
            id=BlobId(row["id"]),
            requester=PeerId(row["requester"]),
            award=bytes(row["award"]),
            envelope=bytes(row["envelope"]),
            at=row["at"],
        )
        for row in rows
    ]


def receipts_from(
    database: sqlite3.Connection, provider: PeerId | None, limit: int
) -> list[bytes]:
    """The newest receipts that this node has of a provider's, or of all providers'.

    They are looked for among the newest `RECEIPTS_LOOKED_AT` of all.
    """
    rows = database.execute(
        "SELECT envelope FROM (SELECT * FROM receipts ORDER BY rowid DESC LIMIT :looked)"
        " AS receipts JOIN units ON units.job = receipts.job AND units.place = receipts.place"
        " WHERE :peer IS NULL OR provider = :peer LIMIT :limit",
        {"looked": RECEIPTS_LOOKED_AT, "peer": provider, "limit": limit},
    )
    return [bytes(row["envelope"]) for row in rows]


def _keep_newest(database: sqlite3.Connection, table: str, limit: int) -> None:
    (count,) = database.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608  # ours
    if count > limit:
        database.execute(
            f"DELETE FROM {table} WHERE rowid IN"  # noqa: S608  # ours
            f" (SELECT rowid FROM {table} ORDER BY at LIMIT ?)",
            (count - limit,),
        )


def _bound_ledger(database: sqlite3.Connection) -> list[PeerId]:
    (count,) = database.execute("SELECT count(*) FROM ledger").fetchone()
    if count <= LEDGER_PEERS_LIMIT:
        return []
    rows = database.execute(
        "SELECT peer FROM ledger GROUP BY peer ORDER BY sum(credits) DESC, min(since)"
        " LIMIT -1 OFFSET ?",
        (LEDGER_PEERS_LIMIT,),
    ).fetchall()
    peers = [PeerId(row["peer"]) for row in rows]
    database.executemany("DELETE FROM ledger WHERE peer = ?", [(peer,) for peer in peers])
    return peers


_ADD_ROW = (
    "INSERT INTO ledger (peer, direction, units, credits, seconds, acknowledged_units,"
    " acknowledged_credits, since, at) VALUES (:peer, :direction, :units, :credits, :seconds,"
    " :acknowledged_units, :acknowledged_credits, :since, :at)"
    " ON CONFLICT (peer, direction) DO UPDATE SET units = units + excluded.units,"
    " credits = credits + excluded.credits, seconds = seconds + excluded.seconds,"
    " acknowledged_units = acknowledged_units + excluded.acknowledged_units,"
    " acknowledged_credits = acknowledged_credits + excluded.acknowledged_credits,"
    " since = min(since, excluded.since), at = max(at, excluded.at)"
)
