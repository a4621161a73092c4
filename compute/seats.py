"""What a unit has of its device while its turn lasts: a process, and a part of the memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from shoal.compute.card_memory import Use
from shoal.compute.turnstile import Claim

if TYPE_CHECKING:
    from shoal.compute.frames import UnitLimits
    from shoal.compute.rooms import Rooms
    from shoal.compute.starting import Room


class Seat(Claim):
    """What a unit wants: a process of its requester's, and its memory.

    Attributes:
        room: The process that is its own meanwhile; None until it has one.
        use: What it may take of the device; what the process holds is in it.
    """

    def __init__(
        self, rooms: Rooms, requester: str, limits: UnitLimits | None, held_as: str
    ) -> None:
        self._rooms, self._requester, self._held_as = rooms, requester, held_as
        self._limit_bytes = limits.memory_bytes if limits is not None else 0
        self.room: Room | None = None
        self.use = Use()

    def fits(self) -> bool:
        """Whether its process's memory fits beside that of those which run."""
        return self._rooms.fits(self._use_in(self._found()))

    def enter(self) -> None:
        """Take the process, where there is one already, and the memory."""
        self.room = self._found()
        self.use = self._use_in(self.room)
        if self.room is not None:
            self.room.use = self.use
        self._rooms.seats.append(self)

    def leave(self) -> None:
        """Give both back."""
        self._rooms.seats.remove(self)
        if self.room is not None:
            self.room.use = None
            self.room.used_at_s = trio.current_time()

    def sit(self, room: Room) -> None:
        """Take a process that was the spare."""
        self.room, room.requester = room, self._requester
        self.use = room.use = self._use_in(room)

    def prepared(self) -> None:
        """Go on with what the process says that it holds now."""
        assert self.room is not None
        self.use = self.room.use = Use(self.room.weights_bytes, self._limit_bytes)

    def _found(self) -> Room | None:
        """The requester's process that is free: one that holds the program, if any does."""
        return self._rooms.free_room(self._requester, self._held_as)

    def _use_in(self, room: Room | None) -> Use:
        holds = room is not None and self._held_as in room.held
        weights = room.weights_bytes if room is not None else 0
        return Use(weights, self._limit_bytes, 0 if holds else self._limit_bytes)
