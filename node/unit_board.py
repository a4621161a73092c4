"""Which units of one job wait, are out, or have ended: a pure table.

Leases take units from it and bring them back. A unit that a provider lost
waits again; one that a provider calls an error is tried by others, where there
are any, before it counts as failed. Whatever happens, a unit ends once.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from shoal.crypto.peer_id import PeerId

ERRORS_LIMIT = 3
"""Error receipts after which a unit has failed; one alone may be one node's fault."""

LOSSES_LIMIT = 20
"""Leases lost under a unit after which it has failed: it may be what kills them."""


@dataclass(slots=True)
class UnitBoard:
    """The units of a job by index."""

    _waiting: deque[int] = field(default_factory=deque)
    _out: dict[int, PeerId] = field(default_factory=dict)
    _errors: dict[int, set[PeerId]] = field(default_factory=dict)
    _losses: dict[int, int] = field(default_factory=dict)
    _open: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, indices: Iterable[int]) -> UnitBoard:
        """A board on which all of ``indices`` wait."""
        board = cls()
        board._waiting.extend(indices)
        board._open.update(board._waiting)
        return board

    @property
    def waiting(self) -> int:
        """How many units no lease has taken."""
        return len(self._waiting)

    @property
    def out(self) -> int:
        """How many units a lease has taken and not brought back."""
        return len(self._out)

    @property
    def finished(self) -> bool:
        """Whether every unit has ended."""
        return not self._open

    def add(self, index: int) -> None:
        """One more unit waits."""
        self._waiting.append(index)
        self._open.add(index)

    def cancel(self, index: int) -> bool:
        """End a unit that waits; False where it is out, or has ended."""
        if index not in self._waiting:
            return False
        self._waiting.remove(index)
        return self._end(index)

    def holder(self, index: int) -> PeerId | None:
        """Who has a unit out now."""
        return self._out.get(index)

    def take(self, peer: PeerId) -> int | None:
        """The next unit for ``peer``: the first that it has not failed itself."""
        for _ in range(len(self._waiting)):
            index = self._waiting.popleft()
            if self.untried(index, peer):
                self._out[index] = peer
                return index
            self._waiting.append(index)
        return None

    def untried(self, index: int, peer: PeerId) -> bool:
        """Whether ``peer`` has not called this unit an error."""
        return peer not in self._errors.get(index, ())

    def takeable(self, peer: PeerId) -> bool:
        """Whether `take` would give ``peer`` a unit."""
        return any(self.untried(index, peer) for index in self._waiting)

    def done(self, index: int) -> bool:
        """A verified result is here; False where the unit had ended before."""
        return self._end(index)

    def lost(self, index: int) -> bool:
        """The lease went away with the unit; True when that was once too often."""
        self._losses[index] = self._losses.get(index, 0) + 1
        return self._back(index, over=self._losses[index] >= LOSSES_LIMIT)

    def handed_back(self, index: int) -> None:
        """The provider gave the unit back unharmed: it is no loss, however often."""
        self._back(index, over=False)

    def failed(self, index: int, peer: PeerId) -> bool:
        """``peer`` gave an error; True when the unit has failed for good."""
        errors = self._errors.setdefault(index, set())
        errors.add(peer)
        return self._back(index, over=len(errors) >= ERRORS_LIMIT)

    def give_up(self, peers: Collection[PeerId]) -> list[int]:
        """End the units that somebody called an error and none of ``peers`` could try."""
        hopeless = [
            index
            for index in self._waiting
            if index in self._errors and self._errors[index].issuperset(peers)
        ]
        for index in hopeless:
            self._waiting.remove(index)
            self._end(index)
        return hopeless

    def _back(self, index: int, *, over: bool) -> bool:
        if index not in self._open:
            return False
        if over:
            return self._end(index)
        self._out.pop(index, None)
        self._waiting.appendleft(index)
        return False

    def _end(self, index: int) -> bool:
        self._out.pop(index, None)
        if index not in self._open:
            return False
        self._open.discard(index)
        return True
