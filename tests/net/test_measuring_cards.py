"""Measuring a card: what fails at it is no spare any more, and units go first.

The card is made up, and its worker a real one (`test_card_faults.py`); a card's rates
themselves are `tests/gpu`'s.
"""

import faulty_card
import pytest
import trio
from test_card_faults import ENTRY, FINE, LIMIT_S, START, MadeUpCard, run_all

from shoal.compute import frames
from shoal.compute.capability import Amounts, measure_device
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.supervisor import open_workers

SIZE = 16


@pytest.fixture
def card(tmp_path):
    return MadeUpCard(tmp_path)


@pytest.fixture
async def worker(card):
    async with open_workers() as workers:
        yield workers.add(START, card.place, ENTRY)


async def measure(worker, size=SIZE, time_s=0.0):
    request = frames.Measure("fp32", time_s, size)
    with trio.fail_after(LIMIT_S):
        return await worker.measure(request, frames.Measured, 10.0)


async def test_a_card_without_its_own_measure_is_measured_as_it_runs_programs(worker):
    found = await measure_device(
        worker, ["fp32"], Amounts(size=32, depth=3, copy_bytes=1 << 20)
    )
    (rate,) = found.rates
    assert (rate.numeric_class, rate.rate > 0) == ("fp32", True)
    # A copy in the machine's memory is none of the card's.
    assert found.memory_rate == 0.0
    assert found.failed == (("memory", "no executor here copies on the card"),)
    done = await measure(worker)
    assert done.amount % 16**3 == 0
    assert worker.processes_started == 1


@pytest.mark.parametrize(
    ("size", "code"),
    [
        (faulty_card.SIZE_FULL, "memory_limit"),
        (faulty_card.SIZE_BROKEN, "device_failed"),
        (faulty_card.SIZE_GONE, "device_lost"),
        (faulty_card.SIZE_ODD, "library_failure"),
    ],
)
async def test_a_process_that_failed_while_it_was_measured_runs_no_unit(
    worker, card, size, code
):
    await measure(worker)
    (before,) = worker.pids.values()
    with pytest.raises((ComputeError, ProgramError)) as caught:
        await measure(worker, size)
    assert caught.value.code == code
    assert before not in worker.pids.values()
    codes, _ = await run_all(worker, FINE)
    assert codes == [""]
    assert before not in worker.pids.values()
    assert await measure(worker)
    assert (worker.lost, card.lost) == (None, [])  # a fresh process has reached it


async def test_what_a_process_declines_leaves_it_the_spare(worker):
    await measure(worker)
    spare = worker.pids
    for what in (
        frames.Measure("low", 0.0, 16),
        frames.Prove(bytes(32), 16, 16, 1, "x20", 1.0),
    ):
        with pytest.raises(ComputeError) as caught:
            await worker.measure(what, frames.Answer, 10.0)
        assert caught.value.code == "no_executor"
    assert worker.pids == spare


async def test_a_card_that_goes_while_it_is_measured_is_lost(worker, card):
    await measure(worker)
    card.take_away()
    with pytest.raises(ComputeError):
        await measure(worker, faulty_card.SIZE_GONE)
    with trio.fail_after(LIMIT_S):
        while not card.lost:  # noqa: ASYNC110  # it is looked for in a task of the worker's
            await trio.sleep(0.01)
    assert [error.code for error in card.lost] == ["device_lost"]
    with pytest.raises(ComputeError) as caught:
        await measure(worker)
    assert caught.value.code == "device_lost"


async def test_units_that_wait_go_before_a_measurement_that_waits(worker):
    await measure(worker)
    ended = []

    async def piece(number):
        await measure(worker, faulty_card.SIZE_SLOW)
        ended.append(number)

    async def unit():
        await run_all(worker, FINE)
        ended.append("unit")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(piece, 0)
        await trio.testing.wait_all_tasks_blocked()
        for number in (1, 2, 3):  # they wait already when the unit comes
            nursery.start_soon(piece, number)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(unit)
    assert ended[:2] == [0, "unit"]
