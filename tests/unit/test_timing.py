"""Where a unit's time went: what is noted, under a clock that the test moves."""

import msgspec
import pytest
import trio
import trio.testing

from shoal.node import timing
from shoal.node.errors import JobError
from shoal.node.timing import Timings
from shoal.node.timing_view import STEPS, UnitTiming
from shoal.protocol.negotiation_messages import UnitTimes

JOB, PEER = "j", "p"


async def handed(timings, *indices, called_s=0.0, got_s=0.0):
    began_s = trio.current_time()
    await trio.sleep(1)
    timings.added(JOB, 0, 10, began_s)
    await trio.sleep(5)
    timings.handed(JOB, indices, PEER, began_s + called_s, began_s + got_s)


async def test_the_steps_add_up_to_the_time_that_passed(autojump_clock):
    timings = Timings()
    began_s = trio.current_time()
    await handed(timings, 3, 4, called_s=2.0, got_s=4.0)
    await trio.sleep(10)
    timings.came_back(JOB, 3, UnitTimes(1.0, 0.5, 6.0, 0.25))
    for step in ("verified", "taken_in", "checked", "written"):
        await trio.sleep(0.5)
        timings.passed(JOB, [3], step)
    await trio.sleep(1)
    timings.delivered(JOB, [3, 4])
    total_s = trio.current_time() - began_s
    timings.delivered(JOB, [3])  # given out again
    found = timings.of(JOB, 3)
    assert list(found.steps) == list(STEPS)
    assert found.steps["submitted"] == pytest.approx(1.0)
    assert found.steps["queued"] == pytest.approx(3.0)
    assert found.steps["negotiated"] == pytest.approx(2.0)
    assert found.steps["handed_over"] == pytest.approx(2.25)
    assert found.steps["executed"] == pytest.approx(6.0)
    assert found.total_s == pytest.approx(total_s)
    assert (found.provider, found.together) == (PEER, 2)
    told = msgspec.json.encode(found)
    assert msgspec.json.decode(told, type=UnitTiming) == found


async def test_a_provider_cannot_say_that_it_took_longer_than_it_did(autojump_clock):
    timings = Timings()
    await handed(timings, 0)
    await trio.sleep(2)
    timings.came_back(JOB, 0, UnitTimes(0.5, 3600.0, 3600.0, 0.0))
    steps = timings.of(JOB, 0).steps
    assert steps["fetched"] + steps["waited"] == pytest.approx(2.0)
    assert steps["executed"] == steps["handed_over"] == 0.0


async def test_a_unit_that_ran_twice_has_the_time_of_both(autojump_clock):
    timings = Timings()
    await handed(timings, 0)
    await trio.sleep(2)
    timings.handed(JOB, [0], "another", 0.0, 0.0)
    await trio.sleep(1)
    timings.came_back(JOB, 0, None)
    found = timings.of(JOB, 0)
    assert found.provider == "another"
    assert found.steps["queued"] == pytest.approx(7.0)
    assert found.steps["handed_over"] == pytest.approx(1.0)


async def test_no_more_than_the_last_units_are_remembered(autojump_clock, monkeypatch):
    monkeypatch.setattr(timing, "UNITS_LIMIT", 3)
    timings = Timings()
    for index in range(5):
        timings.handed(JOB, [index], PEER, 0.0, 0.0)
        timings.passed(JOB, [index], "verified")
    with pytest.raises(JobError) as caught:
        timings.of(JOB, 1)
    assert caught.value.code == "no_timing"
    assert timings.of(JOB, 2).steps.keys() == {"queued", "verified"}
    timings.passed(JOB, [1], "written")  # of one that is forgotten
