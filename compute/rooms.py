"""The processes of one device: each requester's own, and a spare for the next one.

A process runs the units of one requester and of nobody else, so that whoever breaks
into it finds nothing of another's, and falsifies nothing of another's. The next
requester gets a spare that has settled in already, and another one is started.

A unit that finds its card gone ends by `device_lost`. Where no process can be started on
the card any more (`compute.starting`), nothing more runs there.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

import structlog
import trio

from shoal.compute import frames
from shoal.compute.errors import ComputeError
from shoal.compute.exchanges import Answer, exchange
from shoal.compute.starting import Starter
from shoal.compute.turnstile import Turnstile

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from shoal.compute.frames import UnitLimits
    from shoal.compute.in_file import Tensor
    from shoal.compute.starting import Room
    from shoal.compute.worker_process import Place
    from shoal.crypto.content import BlobId, Buffer

ROOMS_LIMIT: Final = 3
"""Requesters whose processes are kept at once, with what is prepared for them."""

ROOM_IDLE_LIMIT_S: Final = 300.0
"""How long a process waits for its requester's next unit; a cold one takes about a second."""

SWEEP_INTERVAL_S: Final = 30.0

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
        self._turnstile = Turnstile()
        self._starting = trio.Lock()
        self._rooms: dict[str, Room] = {}  # the least recently used first
        self._spare: Room | None = None
        self._looking = False

    @property
    def pids(self) -> dict[str, int]:
        """The live processes, by requester; the spare's name is empty."""
        rooms = self._rooms | ({"": self._spare} if self._spare else {})
        return {name: room.process.pid for name, room in rooms.items() if room.process.alive}

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
        room = self._rooms.get(requester)
        return room is not None and room.process.alive and held_as in room.held

    @asynccontextmanager
    async def turn(
        self, rank: int, requester: str, patience_s: float = math.inf
    ) -> AsyncIterator[Room]:
        """Wait for a turn, and have the requester's process while the block runs.

        Args:
            rank: A lower one goes first.
            requester: Whose process is wanted; nobody else's units ever run there.
            patience_s: After so long at a rank it goes on waiting at the one before.

        Raises:
            ComputeError: No process can be had.
        """
        async with self._turnstile.turn(rank, requester, patience_s):
            yield await self._room_of(requester)

    @asynccontextmanager
    async def turn_with_spare(self, rank: int) -> AsyncIterator[Room]:
        """The same with the spare, which stays one: for what needs nobody's data.

        Raises:
            ComputeError: No process can be had.
        """
        async with self._turnstile.turn(rank), self._starting:
            spare = await self._ready_spare()
            try:
                yield spare
            finally:
                if spare.process.ended:
                    self._spare = None
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
        async with self._turnstile.turn(FIRST), self._starting:
            before, self.starter.start = self.starter.start, start
            await self.close()
            try:
                return await self._ready_spare()
            except ComputeError:
                self.starter.start = before
                raise

    async def prepare(
        self,
        room: Room,
        program_id: BlobId,
        fetch_blobs: Callable[[], Awaitable[Mapping[BlobId, Buffer]]],
        limits: UnitLimits,
        numeric_class: str = "",
    ) -> None:
        """Have a program prepared in a process.

        Raises:
            ProgramError: It is none.
            ComputeError: A limit was met, or the worker failed.
        """
        held_as = name_of(program_id, numeric_class)
        if held_as not in room.held:
            blobs = await fetch_blobs()
            request = frames.Prepare(
                program_id, tuple(blobs), limits, numeric_class, held_as=held_as
            )
            prepared, _ = await self.ask(
                room, request, list(blobs.values()), limits, frames.Prepared
            )
            room.held = frozenset(prepared.held)

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
        finally:
            self.forget_if_ended(room)

    def forget_if_ended(self, room: Room) -> None:
        """Let go of a process that is no more."""
        if room.process.ended:
            self._rooms = {name: r for name, r in self._rooms.items() if r is not room}

    async def end(self, room: Room) -> None:
        """End a process."""
        await room.process.end()
        self.forget_if_ended(room)

    async def close(self) -> None:
        """End all processes and wait until they are gone; a later call starts others."""
        for room in tuple(self._rooms.values()):
            await self.end(room)
        await self._end_spare()

    async def sweep(self) -> None:
        """End the processes of requesters that do not come back, for ever."""
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            async with self._turnstile.turn(FIRST):
                for room in tuple(self._rooms.values()):
                    if room.used_at_s + ROOM_IDLE_LIMIT_S <= trio.current_time():
                        await self.end(room)

    def look_again(self) -> None:
        """See whether a device is there that a unit has found gone.

        What one unit met is no proof: it may have been made to. A fresh process is. One
        look is for all that say so meanwhile, or whoever says it often would have every
        start wait.
        """
        if self.starter.start.card is not None and not self._looking:
            self._looking = True
            self._nursery.start_soon(self._look_again)

    async def _look_again(self) -> None:
        async with self._starting:
            await self._end_spare()  # it was started before
            self._looking = False  # what is said from now on is of a later time
            while self.starter.lost is None:
                with suppress(ComputeError):
                    await self._ready_spare()
                    return

    def _lost(self) -> None:
        self._nursery.start_soon(self._end_all)

    async def _end_all(self) -> None:
        async with self._turnstile.turn(FIRST):
            await self.close()

    async def _room_of(self, requester: str) -> Room:
        """The process that runs this requester's units and nobody else's."""
        if self.starter.lost is not None:
            raise self.starter.lost
        room = self._rooms.pop(requester, None)
        if room is not None and not room.process.alive:
            await room.process.end()  # it died between two units: no unit's fault
            room = None
        if room is None:
            while len(self._rooms) >= ROOMS_LIMIT:
                await self.end(next(iter(self._rooms.values())))
            await self.probe()
            room, self._spare = self._spare, None
            assert room is not None
            self._nursery.start_soon(self._keep_spare)
        room.used_at_s = trio.current_time()
        self._rooms[requester] = room
        return room

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


def name_of(program_id: BlobId, numeric_class: str) -> str:
    """Under which name a process holds a program, which it may hold in several classes."""
    return f"{program_id} {numeric_class}" if numeric_class else program_id
