"""Who did how much for whom: the ledger of one node, and what its policy makes of it.

Pure. For each peer there are two columns, *given*: what this node did for it, and *taken*:
what it did for this node; in units, in credits at the price of the award, and in seconds.
Nothing is paid. A receipt that its requester has *acknowledged*, by a signed statement,
is work that nobody can deny; the rest is each side's own word.

Under ``serve = those-who-serve`` a peer is served as long as it is not too far in debt:
what it was given may be `ALLOWANCE_CREDITS` more than what it gave, and a `LEEWAY` of that
on top. The allowance lets two nodes begin that know nothing of each other: each may take
so much first. Keys cost nothing, so a fresh one has an allowance again; the policy keeps
out who takes for long under one name, and no more.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

from shoal.crypto.peer_id import PeerId

ALLOWANCE_CREDITS: Final = 500.0
"""What a peer may be given that has given nothing: 500 units of the least price."""

LEEWAY: Final = 0.25
"""How much more than it gave a peer may take for good: work never comes out even."""

Direction: TypeAlias = Literal["given", "taken"]
DIRECTIONS: Final[tuple[Direction, ...]] = ("given", "taken")


class LedgerRow(msgspec.Struct, frozen=True):
    """What one node did for another, so far.

    Attributes:
        direction: ``given`` by this node to the peer, or ``taken`` by it from the peer.
        units: Receipts signed.
        credits: Of them, by the price of their awards.
        seconds: That they ran, by their provider's clock.
        acknowledged_units: Of which their requester has signed that it has the receipts.
        since: When the first one was, in seconds since the epoch; ``at``: the last one.
    """

    peer: PeerId
    direction: Direction
    units: int = 0
    credits: float = 0.0
    seconds: float = 0.0
    acknowledged_units: int = 0
    acknowledged_credits: float = 0.0
    since: float = 0.0
    at: float = 0.0


def added(row: LedgerRow | None, more: LedgerRow) -> LedgerRow:
    """A row and what comes to it, of the same peer and direction."""
    if row is None:
        return more
    assert (row.peer, row.direction) == (more.peer, more.direction)
    return LedgerRow(
        peer=row.peer,
        direction=row.direction,
        units=row.units + more.units,
        credits=row.credits + more.credits,
        seconds=row.seconds + more.seconds,
        acknowledged_units=row.acknowledged_units + more.acknowledged_units,
        acknowledged_credits=row.acknowledged_credits + more.acknowledged_credits,
        since=min(row.since, more.since),
        at=max(row.at, more.at),
    )


class LedgerPage(msgspec.Struct, frozen=True):
    """The ledger for a person.

    Attributes:
        serve: Whom this node serves: its setting.
        in_debt: By how many credits peers are beyond what they may be given, where they are.
    """

    serve: str
    allowance_credits: float
    rows: tuple[LedgerRow, ...]
    in_debt: dict[PeerId, float]


class Ledger:
    """The rows of all peers, as the journal has them.

    Attributes:
        since_start: What was added to it, of all peers together: it only grows.
    """

    def __init__(self, rows: tuple[LedgerRow, ...] = ()) -> None:
        self.since_start = {each: LedgerRow(PeerId(""), each) for each in DIRECTIONS}
        self._rows = {(row.peer, row.direction): row for row in rows}

    def add(self, more: LedgerRow) -> None:
        """Count what comes to a row."""
        key = (more.peer, more.direction)
        self._rows[key] = added(self._rows.get(key), more)
        anybodys = msgspec.structs.replace(more, peer=PeerId(""))
        self.since_start[more.direction] = added(self.since_start[more.direction], anybodys)

    def drop(self, peer: PeerId) -> None:
        """Forget a peer, as the journal has."""
        for direction in DIRECTIONS:
            self._rows.pop((peer, direction), None)

    def row(self, peer: PeerId, direction: Direction) -> LedgerRow:
        """What is known of a peer in one direction."""
        return self._rows.get((peer, direction)) or LedgerRow(peer, direction)

    def rows(self, peer: PeerId | None = None) -> list[LedgerRow]:
        """All rows, or those of one peer: the last to change first."""
        found = [row for row in self._rows.values() if peer in {None, row.peer}]
        return sorted(found, key=lambda row: (-row.at, row.peer, row.direction))

    def page(self, serve: str, peer: PeerId | None = None) -> LedgerPage:
        """All rows, or those of one peer, for a person."""
        rows = self.rows(peer)
        debts = {row.peer: self.debt(row.peer) for row in rows}
        in_debt = {peer: debt for peer, debt in debts.items() if debt > 0.0}
        return LedgerPage(serve, ALLOWANCE_CREDITS, tuple(rows), in_debt)

    def debt(self, peer: PeerId) -> float:
        """Credits by which a peer is beyond what it may take; none where it is 0 or less."""
        given, taken = self.row(peer, "given").credits, self.row(peer, "taken").credits
        return given - taken * (1.0 + LEEWAY) - ALLOWANCE_CREDITS

    def why_not(self, peer: PeerId) -> str | None:
        """Why a peer is not served by those who serve who serves, for it to read."""
        if self.debt(peer) <= 0.0:
            return None
        given, taken = self.row(peer, "given").credits, self.row(peer, "taken").credits
        return (
            f"it did {given:.4g} credits of work for you and had {taken:.4g} back: it serves"
            f" those who serve, and up to {ALLOWANCE_CREDITS:g} beyond; take work of it first"
        )
