"""The peers of earlier times: whom a node looks for when nobody else is to be found.

A row of the state for each peer that was ever a link: where it says it is, which
address led to it, when it was seen last and how often it came back. Places are
bounded, and whoever makes keys by the thousand must not drive out those that a node
has lived with for months: so half of the places are for the peers that came back
most often, and half for the newest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.crypto.peer_id import PeerId
from shoal.node.state_tables import from_json, to_json

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from shoal.node.state import State

PEERS_LIMIT = 1024
"""Peers remembered: far more than a start needs to find one alive."""

ADDRESSES_LIMIT = 16
"""Kept of one peer: as many as are dialled."""

AGE_LIMIT_S = 180 * 86_400.0
"""A peer that was not seen for half a year has another address by now."""

KEPT_ANYHOW = 16
"""Peers kept however old they are: the last way back of a node long asleep."""

AWAY_S = 600.0
"""A peer that comes back after this time counts once more; one that flaps does not."""


@dataclass(frozen=True, slots=True)
class RememberedPeer:
    """A peer of an earlier time.

    Attributes:
        addresses: Where it said that it is.
        seen_at_s: When it was a link last, in seconds since the epoch.
        worked: The address that led to it last, or "".
        met: How often it became a link after some time away.
    """

    peer: PeerId
    addresses: tuple[str, ...]
    seen_at_s: float
    worked: str = ""
    met: int = 1

    @property
    def places(self) -> tuple[str, ...]:
        """Where to look for it, what worked last first."""
        return tuple(dict.fromkeys(filter(None, (self.worked, *self.addresses))))


# --- decisions: pure --------------------------------------------------------------


def best(rows: Sequence[RememberedPeer], limit: int) -> list[RememberedPeer]:
    """Choose ``limit`` peers, half by how often they came back; the last seen first."""
    newest = sorted(rows, key=lambda row: -row.seen_at_s)
    often = sorted(newest, key=lambda row: -row.met)  # stable: the newest among equals
    chosen = {row.peer for row in often[: limit // 2]}
    for row in newest:
        if len(chosen) >= limit:
            break
        chosen.add(row.peer)
    return [row for row in newest if row.peer in chosen][:limit]


def to_forget(rows: Sequence[RememberedPeer], now_s: float) -> list[PeerId]:
    """Whom to remember no more: those past `PEERS_LIMIT`, and those past `AGE_LIMIT_S`."""
    kept = best(rows, PEERS_LIMIT)
    alive = [
        row
        for place, row in enumerate(kept)
        if place < KEPT_ANYHOW or row.seen_at_s > now_s - AGE_LIMIT_S
    ]
    staying = {row.peer for row in alive}
    return [row.peer for row in rows if row.peer not in staying]


# --- effects ----------------------------------------------------------------------


async def meet(
    journal: State, peer: PeerId, addresses: Sequence[str], seen_at_s: float
) -> None:
    """Note that a peer became a link; raises StoreError, and then nothing has changed."""
    row = RememberedPeer(peer, tuple(addresses[:ADDRESSES_LIMIT]), seen_at_s)

    def write(database: sqlite3.Connection) -> None:
        database.execute(
            f"{_PUT} met = met + (excluded.seen_at - seen_at >= {AWAY_S}),"
            " seen_at = excluded.seen_at",
            _values(row),
        )
        _forget(database, seen_at_s)

    await journal.transact(write)


async def keep(journal: State, rows: Iterable[RememberedPeer]) -> None:
    """Note where the peers that are links now are; raises as `meet`."""
    kept = list(rows)

    def write(database: sqlite3.Connection) -> None:
        database.executemany(f"{_PUT} seen_at = excluded.seen_at", map(_values, kept))
        _forget(database, max((row.seen_at_s for row in kept), default=0.0))

    await journal.transact(write)


async def remembered(journal: State, limit: int) -> list[RememberedPeer]:
    """The best of the peers remembered, the last seen first."""
    return best(await journal.transact(_all), limit)


_PUT = (
    "INSERT INTO peers (peer, addresses, seen_at, worked, met)"
    " VALUES (:peer, :addresses, :seen_at, :worked, 1) ON CONFLICT (peer) DO UPDATE SET"
    " addresses = CASE excluded.addresses WHEN '[]' THEN addresses"
    " ELSE excluded.addresses END,"
    " worked = CASE excluded.worked WHEN '' THEN worked ELSE excluded.worked END,"
)


def _values(row: RememberedPeer) -> dict[str, str | float | None]:
    return {
        "peer": row.peer,
        "addresses": to_json(row.addresses[:ADDRESSES_LIMIT]),
        "seen_at": row.seen_at_s,
        "worked": row.worked,
    }


def _all(database: sqlite3.Connection) -> list[RememberedPeer]:
    return [
        RememberedPeer(
            PeerId(row["peer"]),
            from_json(row["addresses"], tuple[str, ...]),
            row["seen_at"],
            row["worked"],
            row["met"],
        )
        for row in database.execute("SELECT * FROM peers")
    ]


def _forget(database: sqlite3.Connection, now_s: float) -> None:
    """Keep the table within its bounds; it is read only when it may be past one."""
    count, oldest = database.execute("SELECT count(*), min(seen_at) FROM peers").fetchone()
    if count <= KEPT_ANYHOW or (count <= PEERS_LIMIT and oldest > now_s - AGE_LIMIT_S):
        return
    doomed = to_forget(_all(database), now_s)
    database.executemany("DELETE FROM peers WHERE peer = ?", [(peer,) for peer in doomed])
