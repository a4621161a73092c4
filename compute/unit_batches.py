"""Several units of one program on one device, in as few exchanges as is fair to others."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Final

from shoal.compute import frames
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.exchanges import exchange_many
from shoal.compute.in_file import LARGE_BYTES, size_of
from shoal.compute.preparing import name_of, prepare
from shoal.compute.unit_runs import Execution

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from shoal.compute.frames import UnitLimits
    from shoal.compute.in_file import Tensor
    from shoal.compute.rooms import Rooms
    from shoal.compute.starting import Room
    from shoal.compute.unit_runs import Outcome, UnitRun
    from shoal.crypto.content import BlobId, Buffer

TURN_S: Final = 0.25
"""So long one requester's small units are run in a row while another's wait: a hundred
times what it costs to hand over between them."""

PART_LIMIT_BYTES: Final = 1 << 20
"""Inputs of the units that are handed over together; they may be handed over again."""


async def run_many(
    rooms: Rooms,
    requester: str,
    program_id: BlobId,
    fetch_blobs: Callable[[], Awaitable[Mapping[BlobId, Buffer]]],
    units: Sequence[UnitRun],
    limits: UnitLimits,
    ended: Callable[[UnitRun], None],
    rank: int,
    numeric_class: str,
) -> None:
    """Run them; see `device_worker.Worker.run_many`."""
    together = True
    held_as = name_of(program_id, numeric_class)
    ended = partial(_ended, rooms, ended)
    left = deque(units)
    while left := deque(unit for unit in left if not unit.cancelled):
        try:
            async with rooms.turn(rank, requester, math.inf, limits, held_as) as room:
                await prepare(rooms, room, program_id, fetch_blobs, limits, numeric_class)
                part = _part(left) if together else [left[0]]
                turn_s, room.turn_s = room.turn_s, TURN_S
                if len(part) == 1:
                    await _run_one(rooms, room, held_as, left.popleft(), limits, ended)
                    continue
                request = frames.RunMany(
                    held_as, tuple(part[0].inputs), len(part), limits, turn_s, part[0].trace
                )
                try:
                    for _ in range(await exchange_many(room.process, request, part, ended)):
                        left.popleft()
                finally:
                    rooms.forget_if_ended(room)
                    together = together and not room.process.ended
        except ProgramError as error:  # nor will any other unit of it run
            for unit in left:
                unit.end(error)
                ended(unit)
            return
        except ComputeError as error:
            unit = left.popleft()
            unit.end(error)
            ended(unit)


async def run_one(
    rooms: Rooms,
    room: Room,
    held_as: str,
    inputs: Mapping[str, Tensor],
    limits: UnitLimits,
    *,
    trace: bool = False,
    in_file_from: float = math.inf,
) -> Execution:
    """Run one unit of a program that a process holds.

    Raises:
        ProgramError: As the worker says.
        ComputeError: As the worker says, or of the worker itself.
    """
    request = frames.Run(held_as, tuple(inputs), limits, trace)
    answer, outputs = await rooms.ask(
        room, request, list(inputs.values()), limits, frames.Ran, in_file_from
    )
    named = dict(zip(answer.output_names, outputs, strict=True))
    return Execution(named, answer.compute_s, answer.runtime, answer.stages)


async def _run_one(
    rooms: Rooms,
    room: Room,
    held_as: str,
    unit: UnitRun,
    limits: UnitLimits,
    ended: Callable[[UnitRun], None],
) -> None:
    """Run one of several units by itself."""
    outcome: Outcome
    with unit.attempt():
        try:
            outcome = await run_one(
                rooms,
                room,
                held_as,
                unit.inputs,
                limits,
                trace=unit.trace,
                in_file_from=LARGE_BYTES,
            )
        except (ProgramError, ComputeError) as error:
            outcome = error
        unit.end(outcome)
        ended(unit)


def _ended(rooms: Rooms, tell: Callable[[UnitRun], None], unit: UnitRun) -> None:
    """Tell of a unit's end; by some of them the device may be gone."""
    rooms.heard(unit.outcome)
    tell(unit)


def _part(units: Sequence[UnitRun]) -> list[UnitRun]:
    """As many of the units, from the first, as are handed over together."""
    part: list[UnitRun] = []
    room = PART_LIMIT_BYTES
    for unit in units:
        room -= sum(map(size_of, unit.inputs.values()))
        if part and (room < 0 or unit.trace != part[0].trace):
            break
        part.append(unit)
    return part
