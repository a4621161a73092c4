"""Has programs prepared in a requester's process, and knows which it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from shoal.compute import frames
from shoal.compute.card_memory import believed_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from shoal.compute.frames import UnitLimits
    from shoal.compute.rooms import Rooms
    from shoal.compute.starting import Room
    from shoal.crypto.content import BlobId, Buffer

COMPILE_LIMIT_S: Final = 20.0
"""What compiling for a card may take beyond a program's own time: some 0.1 s for each of its
kernels (`compute.warming`)."""


async def prepare(
    rooms: Rooms,
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
        card = rooms.starter.start.card
        compile_s = COMPILE_LIMIT_S if card else 0.0
        request = frames.Prepare(
            program_id, tuple(blobs), limits, numeric_class, held_as, compile_s
        )
        patient = msgspec.structs.replace(limits, time_s=limits.time_s + compile_s)
        sizes = {held_as: sum(memoryview(blob).nbytes for blob in blobs.values())}
        # It lets go of others before it sees whether this one is any good, and does not
        # say of which: what is not known to be there is prepared again.
        before, room.held = room.held, {}
        prepared, _ = await rooms.ask(
            room, request, list(blobs.values()), patient, frames.Prepared
        )
        room.held = {name: (before | sizes).get(name, 0) for name in prepared.held}
        room.card_bytes = believed_bytes(prepared.card_bytes, card.memory_bytes if card else 0)
    rooms.prepared(room)


def name_of(program_id: BlobId, numeric_class: str) -> str:
    """Under which name a process holds a program, which it may hold in several classes."""
    return f"{program_id} {numeric_class}" if numeric_class else program_id
