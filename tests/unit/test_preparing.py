"""What a process says that its programs take of a card, and what is made of it."""

from collections import OrderedDict
from types import SimpleNamespace

import pytest

from shoal.compute import frames
from shoal.compute.card_memory import share_bytes
from shoal.compute.card_meter import CardMeter
from shoal.compute.devices.cards import Card
from shoal.compute.frames import FrameError, UnitLimits, decode_answer, encode_answer
from shoal.compute.preparing import prepare
from shoal.compute.starting import Room
from shoal.compute.worker import Worker

GIB = 1 << 30
LIMITS = UnitLimits(time_s=1.0, memory_bytes=GIB, output_bytes=1)


class Telling:
    """The processes of a device, one of which says so much of its programs."""

    def __init__(self, told, card_bytes):
        card = Card("gpu0", "cuda", "sm_90", card_bytes) if card_bytes is not None else None
        self.starter = SimpleNamespace(start=SimpleNamespace(card=card))
        self.told = told

    async def ask(self, room, request, attachments, limits, kind):
        answer = frames.Prepared((request.held_as,), self.told)
        frame = b"".join(encode_answer(answer))
        return decode_answer(frame[frames.SIZE_FIELD_BYTES :])[0], []

    def prepared(self, room):
        pass


async def weights(told, card_bytes):
    async def blobs():
        return {"blob": bytes(10)}

    room = Room(process=None, probes=())
    await prepare(Telling(told, card_bytes), room, "program", blobs, LIMITS)
    return room.weights_bytes


@pytest.mark.parametrize(
    ("told", "card_bytes", "believed"),
    [
        (3 * GIB, 80 * GIB, 3 * GIB),
        (0, 80 * GIB, 10),
        (81 * GIB, 80 * GIB, 80 * GIB),
        (2**63, 80 * GIB, 80 * GIB),
        (2**64 - 1, 80 * GIB, 80 * GIB),
        (3 * GIB, 0, 10),
        (3 * GIB, None, 10),
    ],
)
async def test_a_process_is_believed_no_more_than_its_card_has(told, card_bytes, believed):
    assert await weights(told, card_bytes) == believed


@pytest.mark.parametrize("told", [-1, -(2**63), float("nan"), float("inf"), "1", None])
async def test_what_is_no_number_of_bytes_is_nonsense(told):
    with pytest.raises(FrameError):
        await weights(told, 80 * GIB)


class Shared:
    """torch's allocator on a card of 80 GiB that other processes fill but for so much."""

    def __init__(self, worker, free):
        self.worker, self.free = worker, free

    def memory_allocated(self):
        return sum(held.size_bytes for held in self.worker._held.values())

    def memory_reserved(self):
        return self.memory_allocated()

    def mem_get_info(self):
        return self.free, 80 * GIB


def left_after(held, free, at_once=2):
    """Which of programs of so many GiB stay prepared when the last has been."""
    start = frames.Start(
        threads=1,
        cache_bytes=40 * GIB,
        memory_bytes=GIB,
        exact=False,
        card=Card("gpu0", "cuda", "sm_90", 80 * GIB),
        share_bytes=share_bytes(80 * GIB, at_once),
    )
    worker = object.__new__(Worker)  # no executor is loaded
    worker._card, worker._share_bytes, worker._unit_bytes = start.card, start.share_bytes, 0
    worker._held = OrderedDict(
        (name, SimpleNamespace(size_bytes=size * GIB)) for name, size in held.items()
    )
    worker._enforcer = SimpleNamespace(meter=CardMeter(Shared(worker, free)))
    worker._leave_room(next(reversed(held)), LIMITS)
    return set(worker._held)


def test_what_other_processes_take_of_a_card_drives_out_no_program_within_its_share():
    assert left_after({"old": 2, "older": 3, "new": 1}, free=0) == {"old", "older", "new"}


def test_a_process_over_its_share_lets_the_oldest_go_until_it_is_within():
    assert left_after({"old": 20, "older": 20, "new": 5}, free=0) == {"older", "new"}


def test_a_process_over_its_share_keeps_all_where_the_card_has_room():
    assert left_after({"old": 20, "older": 20, "new": 5}, free=9 * GIB) == {
        "old",
        "older",
        "new",
    }


def test_where_one_unit_runs_at_a_time_it_makes_room_for_itself():
    assert left_after({"old": 2, "older": 3, "new": 1}, free=0, at_once=1) == {"new"}
