"""The watch over pauses, clock and machine, on a clock that a test turns by waiting."""

from datetime import datetime
from types import SimpleNamespace

import pytest
import trio

from shoal.node import owner_watch
from shoal.node.errors import StoreError
from shoal.node.owner import WHOLE_NODE, Cause, Pause
from shoal.node.owner_watch import OwnerWatch, open_owner_watch
from shoal.node.schedule import parse_window

EPOCH_S = datetime.fromisoformat("2026-06-03 11:58").timestamp()  # by this machine's wall


class Journal:
    """Keeps pauses in memory; a full disk is one switch away."""

    full = False

    def __init__(self):
        self.kept = ()

    async def keep_pauses(self, pauses):
        await trio.lowlevel.checkpoint()
        if self.full:
            raise StoreError("the disk is full", code="disk_full")
        self.kept = pauses


class Use:
    """The use that the owner's processes make, as a test says."""

    def __init__(self):
        self.now, self.measured = 0.0, 0

    def measure(self):
        self.measured += 1
        return self.now


@pytest.fixture
def wall(autojump_clock, monkeypatch):
    """The wall clock goes with the test's; a thread would let that run ahead of it."""

    async def at_once(work):
        await trio.lowlevel.checkpoint()
        return work()

    monkeypatch.setattr(owner_watch.trio.to_thread, "run_sync", at_once)
    clock = SimpleNamespace(time=lambda: EPOCH_S + trio.current_time())
    monkeypatch.setattr(owner_watch, "time", clock)
    return autojump_clock  # by which pytest-trio knows that the test runs on it


class Owner:
    """A watch with all that is around it, and what the network was told."""

    def __init__(self, pauses=(), schedule=(), step_back=0.25):
        self.journal, self.use, self.told = Journal(), Use(), []
        self.watch = OwnerWatch(
            self.journal,
            pauses,
            schedule=schedule,
            step_back=step_back,
            use=self.use,
            devices=lambda: ("cpu", "gpu0"),
            changed=lambda: self.told.append(self.watch.announces_open),
        )

    def cause(self, device="cpu"):
        return self.watch.stance(device).cause


async def test_a_pause_of_all_and_its_end_are_told_to_the_network_at_once_and_once(wall):
    owner = Owner()
    async with open_owner_watch(owner.watch):
        await owner.watch.pause(WHOLE_NODE, None)
        assert owner.told == [False]
        await trio.sleep(30)
        await owner.watch.resume(WHOLE_NODE)
        assert owner.told == [False, True]
        await trio.sleep(30)
    assert owner.told == [False, True]


async def test_a_pause_of_one_device_of_two_closes_that_one_and_the_advert_stays(wall):
    owner = Owner()
    async with open_owner_watch(owner.watch):
        await owner.watch.pause("gpu0", None)
        assert (owner.cause("gpu0"), owner.cause("cpu")) == (Cause.PAUSED, None)
        await trio.sleep(30)
    assert owner.told == []


async def test_a_pause_that_ends_by_itself_is_told_without_anybody_asking(wall):
    owner = Owner()
    async with open_owner_watch(owner.watch):
        await owner.watch.pause(WHOLE_NODE, 60.0)
        await trio.sleep(55)
        assert owner.told == [False]
        await trio.sleep(10)
    assert owner.told == [False, True]


async def test_a_pause_that_cannot_be_written_down_does_not_hold(wall):
    owner = Owner()
    owner.journal.full = True
    with pytest.raises(StoreError):
        await owner.watch.pause(WHOLE_NODE, None)
    assert (owner.cause(), owner.told) == (None, [])


async def test_two_pauses_made_at_once_both_hold(wall):
    owner = Owner()
    async with trio.open_nursery() as nursery:
        for device in ("cpu", "gpu0"):
            nursery.start_soon(owner.watch.pause, device, None)
    assert set(owner.journal.kept) == {Pause("cpu"), Pause("gpu0")}
    assert {owner.cause(device) for device in ("cpu", "gpu0")} == {Cause.PAUSED}


async def test_a_pause_from_before_a_restart_holds_from_the_first_moment(wall):
    owner = Owner(pauses=[Pause(WHOLE_NODE)])
    assert not owner.watch.announces_open
    async with open_owner_watch(owner.watch):
        await trio.sleep(30)
    assert owner.told == []  # the first advert says so already


async def test_busy_owners_close_the_cpu_within_ten_seconds_and_the_advert_stays(wall):
    owner = Owner()
    async with open_owner_watch(owner.watch):
        await trio.sleep(20)
        assert owner.cause() is None
        owner.use.now = 0.5
        await trio.sleep(10)
        assert (owner.cause("cpu"), owner.cause("gpu0")) == (Cause.STEPPING_BACK, None)
        owner.use.now = 0.0
        await trio.sleep(20)
        assert owner.cause() is None
    assert owner.told == []


async def test_a_node_that_does_not_step_back_measures_nothing(wall):
    owner = Owner(step_back=None)
    owner.use.now = 1.0
    async with open_owner_watch(owner.watch):
        await trio.sleep(60)
    assert (owner.use.measured, owner.cause()) == (0, None)


async def test_the_hours_of_the_schedule_begin_and_end_by_themselves(wall):
    owner = Owner(schedule=(parse_window("12:00-12:05"),))
    async with open_owner_watch(owner.watch):
        assert owner.cause() is Cause.SCHEDULE
        await trio.sleep(4 * 60)
        assert (owner.cause(), owner.told) == (None, [True])
        await trio.sleep(10 * 60)
    assert (owner.cause(), owner.told) == (Cause.SCHEDULE, [True, False])
