"""The processes of one device: each requester's own, and a spare for the next one.

A process runs the units of one requester and of nobody else, so that whoever breaks
into it finds nothing of another's, and falsifies nothing of another's. The next
requester gets a spare that has settled in already, and another one is started.

As many run units at once as the device has places, of one requester or of several, where
their memory fits (`compute.card_memory`). What ends one of them leaves the others alone.

A unit that finds its card gone ends by `device_lost`. Where no process can be started on
the card any more (`compute.starting`), all that run there end, and nothing more begins.
"""

from __future__ import annotations

import math
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from shoal.compute import card_memory, frames
from shoal.compute.card_memory import Use
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.exchanges import Answer, exchange
from shoal.compute.executors.card_faults import LOST
from shoal.compute.seats import Seat
from shoal.compute.starting import STARTS_TRIED, Starter
from shoal.compute.turnstile import Alone, Claim, Turnstile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from shoal.compute.frames import UnitLimits
    from shoal.compute.in_file import Tensor
    from shoal.compute.starting import Room
    from shoal.compute.worker_process import Place

ROOMS_LIMIT: Final = 3
"""Requesters whose processes are kept at once, with what is prepared for them."""

ROOM_IDLE_LIMIT_S: Final = 300.0
"""How long a process waits for its requester's next unit; a cold one takes about a second."""

SWEEP_INTERVAL_S: Final = 30.0

_SOUND_AFTER: Final = frozenset({"no_executor", "time_limit"})
"""How a measurement may fail in a process that units run in afterwards: by what the process
said and not by what it met. After anything else, no memory too, nobody knows its state."""

FIRST: Final = 0  # what the owner waits for, and what is soon done
LAST: Final = 3  # what nobody waits for: after strangers' units

log = structlog.get_logger(__name__)


class Rooms:
    """The processes of one device. Callers wait for their turn, the foremost rank first."""

    def __init__(
        self,
        start: frames.Start,
        entry: Sequence[str],
        nursery: trio.Nursery,
        place: Place,
    ) -> None:
        self.starter = Starter(start, entry, place, self._lost)
        self._nursery = nursery
        self._lent_bytes, self._places = place.lent_bytes, place.units_at_once
        self._kept = max(ROOMS_LIMIT, self._places)
        self._turnstile = Turnstile(self._places)
        self._starting, self._clearing = trio.Lock(), trio.Lock()
        self._rooms: list[Room] = []  # the least recently used first
        self.seats: list[Seat] = []
        """Of those whose turn it is."""
        self._spare: Room | None = None
        self._looking = False

    @property
    def pids(self) -> dict[str, int]:
        """The live processes, by requester, from the second of one on with its number.

        The spare's name is empty.
        """
        named: dict[str, int] = {}
        seen: Counter[str] = Counter()
        for room in (*self._rooms, *([self._spare] if self._spare else [])):
            if room.process.alive and not room.process.ended:
                seen[room.requester] += 1
                number = seen[room.requester]
                name = room.requester if number == 1 else f"{room.requester} {number}"
                named[name] = room.process.pid
        return named

    @property
    def units_at_once(self) -> int:
        """How many units run at once where their memory fits; known after the first start."""
        return self._places if self.starter.holds_units else 1

    @property
    def taken(self) -> bool:
        """Whether something runs."""
        return self._turnstile.taken

    @property
    def ready(self) -> bool:
        """Whether a spare waits for whoever comes."""
        return self._spare is not None and self._spare.process.alive

    def holds(self, requester: str, held_as: str) -> bool:
        """Whether a program is prepared for a requester, under this name."""
        return any(
            room.requester == requester and room.process.alive and held_as in room.held
            for room in self._rooms
        )

    def free_room(self, requester: str, held_as: str) -> Room | None:
        """A process of the requester's that runs nothing, which holds a program if any does."""
        free = [r for r in self._rooms if r.requester == requester and r.idle]
        free = [room for room in free if room.process.usable]
        return max(free, key=lambda room: (held_as in room.held, room.used_at_s), default=None)

    def fits(self, wanted: Use) -> bool:
        """Whether one more unit may begin beside those that run."""
        if not self.starter.holds_units:  # one could take what another one was promised
            return False
        if not self._lent_bytes:
            return True
        running = [seat.use for seat in self.seats]
        unit_bytes = self.starter.start.memory_bytes
        return card_memory.fits(self._lent_bytes, unit_bytes, running, wanted)

    @asynccontextmanager
    async def turn(
        self,
        rank: int,
        requester: str,
        patience_s: float = math.inf,
        limits: UnitLimits | None = None,
        held_as: str = "",
    ) -> AsyncIterator[Room]:
        """Wait for a turn, and have a process of the requester's while the block runs.

        Args:
            rank: A lower one goes first.
            requester: Whose process is wanted; nobody else's units ever run there.
            patience_s: After so long at a rank it goes on waiting at the one before.
            limits: What is to run there may take so much.
            held_as: The name of the program that it is of.

        Raises:
            ComputeError: No process can be had.
        """
        seat = Seat(self, requester, limits, held_as)
        async with self._turnstile.turn(rank, requester, patience_s, seat):
            yield await self._room_for(seat)

    @asynccontextmanager
    async def turn_with_spare(
        self, rank: int, patience_s: float = math.inf, *, alone: bool = True
    ) -> AsyncIterator[Room]:
        """Have a turn with the spare, for what needs nobody's data: it stays one.

        A process that fails at it does not.

        Args:
            rank: A lower one goes first.
            patience_s: After so long at a rank it goes on waiting at the one before.
            alone: Nothing else is to run meanwhile on this device.

        Raises:
            ComputeError: No process can be had.
        """
        await self.probe()  # before its turn, in which it may be that nothing else runs
        claim = Alone() if alone else Claim()
        async with self._turnstile.turn(rank, "", patience_s, claim), self._starting:
            spare = await self._ready_spare()
            try:
                yield spare
            except (ProgramError, ComputeError) as error:
                if error.code not in _SOUND_AFTER and not spare.process.ended:
                    await spare.process.end()
                self.heard(error)
                raise
            finally:
                if spare.process.ended:
                    self._spare = None
                    if not self._looking:
                        self._nursery.start_soon(self._keep_spare)

    async def probe(self) -> Room:
        """The spare, started if there is none.

        Raises:
            ComputeError: No process can be had, or no executor works here.
        """
        async with self._starting:
            return await self._ready_spare()

    async def start_anew(self, start: frames.Start) -> Room:
        """End all processes, and start others that are told something else.

        Raises:
            ComputeError: They do not start so; the next ones are told what was told before.
        """
        async with self._turnstile.turn(FIRST, claim=Alone()), self._starting:
            before, self.starter.start = self.starter.start, start
            await self.close()
            try:
                return await self._ready_spare()
            except ComputeError:
                self.starter.start = before
                raise

    def prepared(self, room: Room) -> None:
        """Go by what a process holds from now on: it may be less than it could have been."""
        for seat in self.seats:
            if seat.room is room:
                seat.prepared()
        self._turnstile.look()

    async def ask(
        self,
        room: Room,
        request: frames.Request,
        attachments: Sequence[Tensor],
        limits: UnitLimits,
        kind: type[Answer],
        in_file_from: float = math.inf,
    ) -> tuple[Answer, list[Any]]:
        """Exchange one request for one answer of ``kind``; see `exchange`."""
        try:
            return await exchange(
                room.process, request, attachments, limits, kind, in_file_from
            )
        except ComputeError as error:
            if room.process.ended and self.starter.lost is not None:
                raise self.starter.lost from error
            raise
        finally:
            self.forget_if_ended(room)

    def forget_if_ended(self, room: Room) -> None:
        """Let go of a process that is no more."""
        if room.process.ended and room in self._rooms:
            self._rooms.remove(room)

    async def end(self, room: Room) -> None:
        """End a process; until it is gone it counts as one that is there."""
        if room.ending:
            return
        room.ending = True
        if not room.process.ended:
            await room.process.end()  # nothing interrupts it
        self.forget_if_ended(room)

    async def close(self) -> None:
        """End all processes and wait until they are gone; a later call starts others."""
        for room in tuple(self._rooms):
            await self.end(room)
        await self._end_spare()

    async def sweep(self) -> None:
        """End the processes of requesters that do not come back, for ever."""
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            for room in tuple(self._rooms):
                if room.idle and room.used_at_s + ROOM_IDLE_LIMIT_S <= trio.current_time():
                    await self.end(room)

    def heard(self, outcome: object) -> None:
        """See whether a device is there that a unit has found gone, if it has.

        What one unit met is no proof: it may have been made to. A fresh process is. One
        look is for all that say so meanwhile, or whoever says it often would have every
        start wait.
        """
        gone = isinstance(outcome, ComputeError) and outcome.code == LOST
        if gone and self.starter.start.card is not None and not self._looking:
            self._looking = True
            self._nursery.start_soon(self._look_again)

    async def _look_again(self) -> None:
        async with self._starting:
            await self._end_spare()  # it was started before
            self._looking = False  # what is said from now on is of a later time
            for _ in range(STARTS_TRIED):  # so many tell that it is gone, if it is
                try:
                    await self._ready_spare()
                except ComputeError as error:
                    if self.starter.lost is not None:
                        return
                    log.warning("a device cannot be looked at", error=str(error))
                else:
                    return

    def _lost(self) -> None:
        """End what runs: each of the units says that the device is lost."""
        for seat in self.seats:
            if seat.room is not None and not seat.room.process.ended:
                seat.room.process.kill()
        self._nursery.start_soon(self._end_all)

    async def _end_all(self) -> None:
        async with self._turnstile.turn(FIRST, claim=Alone()):
            await self.close()

    async def _room_for(self, seat: Seat) -> Room:
        """The process for whoever has this seat: their own, or the spare."""
        if self.starter.lost is not None:
            raise self.starter.lost
        async with self._clearing:  # another one may be making room just now
            while (room := self._in_the_way(seat)) is not None:
                await self.end(room)
            if seat.room is not None and not seat.room.process.usable:
                await self.end(seat.room)  # it died, or holds too much: no unit's fault
                seat.room = None
        if seat.room is not None:
            self._rooms.remove(seat.room)
            self._rooms.append(seat.room)  # the last one used
            return seat.room
        async with self._starting:
            room = await self._ready_spare()
            self._spare = None
            seat.sit(room)
            self._rooms.append(room)
        self._nursery.start_soon(self._keep_spare)
        return room

    def _in_the_way(self, seat: Seat) -> Room | None:
        """What is to end next before this one begins: one that is dead, or one too many."""
        idle = [room for room in self._rooms if room.idle]
        dead = [room for room in idle if not room.process.usable]
        surplus = len(self._rooms) + (seat.room is None) - self._kept
        if self._lent_bytes:
            running = [each.use for each in self.seats]
            uses = [Use(room.weights_bytes) for room in idle]
            surplus = max(surplus, card_memory.to_end(self._lent_bytes, running, uses))
        return next(iter(dead or idle[: max(0, surplus)]), None)

    async def _ready_spare(self) -> Room:
        """The spare, started if there is none; the caller holds `_starting`."""
        if self.starter.lost is not None:
            raise self.starter.lost
        if not self.ready:
            await self._end_spare()
            self._spare = await self.starter.started()
        assert self._spare is not None
        return self._spare

    async def _keep_spare(self) -> None:
        try:
            await self.probe()
        except ComputeError as error:  # said again to the next unit, which waits for it
            log.warning("there is no spare worker", error=str(error))

    async def _end_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.process.end()
