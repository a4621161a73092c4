"""What a node claims after a restart: not what it gave up, whatever its disk did then."""

import time

import msgspec
import pytest
import trio
from test_capability import CARDS, ON_CARDS, capability, card_figures

from shoal.compute.errors import ComputeError
from shoal.node import capability as capabilities
from shoal.node import capability_records
from shoal.node.capability import open_capability
from shoal.node.errors import StoreError
from shoal.node.measuring_plan import BELIED_AFTER_S
from shoal.node.state import open_state

LIMIT_S = 60.0
FAILED = ComputeError("the card failed", code="device_failed")


class Disk:
    """A journal whose disk is full so many times."""

    def __init__(self, state, full=0):
        self.state, self.full = state, full

    async def transact(self, work):
        if self.full > 0:
            self.full -= 1
            raise StoreError("the disk is full")
        return await self.state.transact(work)


def claiming(journal):
    made = capability(devices=CARDS[:1], classes={"gpu0": ON_CARDS})
    made.journal = journal
    made.settled.set()
    return made


async def rates_after_a_restart(state):
    made = claiming(state)
    await made.load()
    return made.rates("gpu0")


@pytest.fixture
async def state(tmp_path):
    async with open_state(tmp_path / "state.sqlite") as state:
        at_s = time.time() - 2 * BELIED_AFTER_S  # anew once it is belied, and not before
        figures = msgspec.structs.replace(card_figures(0), measured_at=at_s)
        await capability_records.keep_measurement(state, figures)
        yield state


@pytest.fixture(autouse=True)
def measured(monkeypatch):
    """What `measure_device` raises; where that is nothing, it takes for ever."""
    found = []

    async def measure(*_):
        if found:
            raise found[0]
        await trio.sleep_forever()

    monkeypatch.setattr(capabilities.figures, "measure_device", measure)
    monkeypatch.setattr(capabilities, "LOOK_INTERVAL_S", 0.01)
    return found


async def until(is_so):
    with trio.fail_after(LIMIT_S):
        while not await is_so():  # noqa: ASYNC110  # it is written in a task of its own
            await trio.sleep(0.01)


@pytest.mark.parametrize("full", [0, 3])
async def test_a_claim_that_was_given_up_is_not_made_after_a_restart(state, measured, full):
    measured.append(FAILED)
    disk = Disk(state)
    async with open_capability(claiming(disk)) as made:
        assert await rates_after_a_restart(state)
        disk.full = full
        made.belie("gpu0")

        async def given_up():
            return not made.rates("gpu0") and not await rates_after_a_restart(state)

        await until(given_up)
    assert disk.full == 0


async def test_a_claim_that_could_not_be_shown_is_measured_before_a_restarted_node_makes_it(
    state,
):
    async with open_capability(claiming(state)) as made:
        made.belie("gpu0")
        assert made.rates("gpu0")  # until it is measured anew, or that fails
    assert not await rates_after_a_restart(state)
