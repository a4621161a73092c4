"""Several units in one exchange with a real worker: each ends as it would by itself."""

import time

import numpy as np
import pytest
import trio
from test_worker import ANN, BOB, DOUBLE, LIMITS, program_of

from shoal.compute import exchanges, unit_batches
from shoal.compute.errors import ProgramError
from shoal.compute.frames import UnitLimits
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import from_blob, to_blob
from shoal.compute.unit_batches import PART_LIMIT_BYTES
from shoal.compute.unit_runs import Execution, UnitRun

LIMIT_S = 60.0
DIES, DIES_ONCE, HANGS, SLOW = 101.0, 102.0, 103.0, 104.0
MISBEHAVES = f"""
import os, sys, time
import numpy as np
from shoal.compute import frames
from shoal.compute.tensor import from_blob
from shoal.compute.worker import Worker, main

class Misbehaving(Worker):
    ran = 0

    def run(self, request, attachments):
        first = float(from_blob(attachments[0])[0])
        if first == {DIES} or (first == {DIES_ONCE} and self.ran):
            os._exit(7)
        if first == {HANGS}:
            time.sleep(600)
        if first == {SLOW}:
            time.sleep(0.1)
        self.ran += 1
        return super().run(request, attachments)

main(Misbehaving)
"""
GATHER = program_of(
    "g (int64[n] x) => (float[n] y) { t = Constant<value = float[2] {1.0, 2.0}>() "
    "y = Gather(t, x) }"
)
FOURFOLD = program_of("g (float[n] x) => (float[m] y) { y = Concat<axis = 0>(x, x, x, x) }")


def runs_of(*values):
    return [UnitRun({"x": to_blob(np.array([value], np.float32))}) for value in values]


async def run_many(worker, units, program=DOUBLE, limits=LIMITS, requester=ANN):
    """Run them; gives those that ended, in order."""
    ended = []

    async def fetch_blobs():
        return program.blobs

    with trio.fail_after(LIMIT_S):
        await worker.run_many(
            requester, program.program_id, fetch_blobs, units, limits, ended.append
        )
    return ended


def ended_of(batches):
    return sum(unit.outcome is not None for units in batches for unit in units)


def value_of(unit):
    assert isinstance(unit.outcome, Execution), unit.outcome
    return from_blob(unit.outcome.outputs["y"])[0]


@pytest.fixture
async def worker():
    async with open_worker(threads=1) as opened:
        yield opened


@pytest.fixture
async def misbehaving():
    async with open_worker(threads=1, entry=("-c", MISBEHAVES)) as opened:
        yield opened


async def test_every_unit_gets_its_own_outputs_and_its_own_time(worker):
    units = runs_of(*range(64))
    before_ms = time.time_ns() // 1_000_000
    assert await run_many(worker, units) == units
    assert [value_of(unit) for unit in units] == [2.0 * k for k in range(64)]
    assert all(0 < unit.outcome.compute_s < 1 for unit in units)
    assert all(before_ms <= u.started_at_ms <= u.ended_at_ms for u in units)
    assert worker.processes_started <= 2  # its own and the spare


async def test_units_of_several_inputs_are_not_mixed_up(worker):
    program = program_of("g (float[n] a, float[n] b) => (float[n] y) { y = Sub(a, b) }")
    units = [
        UnitRun({"a": to_blob(np.array([k], np.float32)), "b": to_blob(np.ones(1, np.float32))})
        for k in range(5)
    ]
    units[2].inputs = dict(reversed(units[2].inputs.items()))
    await run_many(worker, units, program)
    assert [value_of(unit) for unit in units] == [-1.0, 0.0, 1.0, 2.0, 3.0]


async def test_an_error_is_the_unit_s_own(worker):
    units = [UnitRun({"x": to_blob(np.array([index]))}) for index in (0, 9, 1)]
    await run_many(worker, units, GATHER)
    assert value_of(units[0]) == 1.0
    assert isinstance(units[1].outcome, ProgramError)
    assert value_of(units[2]) == 2.0


async def test_outputs_too_large_for_a_frame_come_and_those_over_the_limit_are_errors(worker):
    blobs = [to_blob(np.full(size, 1, np.float32)) for size in (30_000, 100_000, 10)]
    units = [UnitRun({"x": blob}) for blob in blobs]
    await run_many(worker, units, FOURFOLD)
    assert from_blob(units[0].outcome.outputs["y"]).size == 120_000
    assert units[1].outcome.code == "output_limit"
    assert from_blob(units[2].outcome.outputs["y"]).size == 40


async def test_units_with_large_inputs_are_handed_over_a_part_at_a_time(worker):
    large = to_blob(np.ones(PART_LIMIT_BYTES // 8, np.float32))
    units = [UnitRun({"x": large}) for _ in range(5)]
    await run_many(worker, units)
    assert all(value_of(unit) == 2.0 for unit in units)


async def test_a_program_that_cannot_run_is_every_unit_s_error(worker):
    units = runs_of(1, 2)

    async def nothing():
        return {}

    ended = []
    program = program_of("g (float[n] x) => (float[n] y) { y = Neg(x) }")
    await worker.run_many(ANN, program.program_id, nothing, units, LIMITS, ended.append)
    assert ended == units
    assert units[0].outcome is units[1].outcome


async def test_a_unit_that_kills_its_worker_fails_alone(misbehaving):
    units = runs_of(1, 2, DIES, 4, DIES, 6)
    assert await run_many(misbehaving, units) == units
    for unit in (units[2], units[4]):
        assert unit.outcome.code == "worker_died"
        assert "status 7" in unit.outcome.message
    assert [value_of(units[k]) for k in (0, 1, 3, 5)] == [2.0, 4.0, 8.0, 12.0]


async def test_a_unit_that_dies_of_what_another_left_behind_runs_in_a_new_process(misbehaving):
    units = runs_of(1, DIES_ONCE, 3)
    await run_many(misbehaving, units)
    assert [value_of(unit) for unit in units] == [2.0, 2 * DIES_ONCE, 6.0]


async def test_a_unit_that_hangs_is_over_its_own_time_and_no_other_s(misbehaving, monkeypatch):
    monkeypatch.setattr(exchanges, "GRACE_S", 0.2)
    limits = UnitLimits(time_s=1.0, memory_bytes=1 << 30, output_bytes=1 << 20)
    await misbehaving.probe()
    units = runs_of(1, HANGS, 3)
    await run_many(misbehaving, units, limits=limits)
    assert units[1].outcome.code == "time_limit"
    assert units[1].ended_at_ms - units[1].started_at_ms >= 1000
    for unit, value in ((units[0], 2.0), (units[2], 6.0)):
        assert value_of(unit) == value
        assert unit.ended_at_ms - unit.started_at_ms < 1000


async def test_many_units_may_take_longer_together_than_one_may(misbehaving):
    limits = UnitLimits(time_s=0.5, memory_bytes=1 << 30, output_bytes=1 << 20)
    await misbehaving.probe()
    units = runs_of(*[SLOW] * 12)
    await run_many(misbehaving, units, limits=limits)
    assert all(value_of(unit) == 2 * SLOW for unit in units)


async def test_a_unit_that_is_cancelled_before_its_turn_does_not_run(worker):
    units = runs_of(1, 2, 3)
    units[1].cancel()
    assert await run_many(worker, units) == [units[0], units[2]]


async def test_a_unit_that_is_cancelled_while_it_runs_ends_and_the_others_run(misbehaving):
    units = runs_of(1, HANGS, 3)
    async with trio.open_nursery() as nursery:
        ended = []

        async def run_them():
            ended.extend(await run_many(misbehaving, units))

        nursery.start_soon(run_them)
        while units[0].outcome is None:  # noqa: ASYNC110  # of another process
            await trio.sleep(0.01)
        units[1].cancel()
    assert ended == [units[0], units[2]]
    assert value_of(units[2]) == 6.0


async def test_cancelling_all_of_it_ends_the_process(misbehaving):
    units = runs_of(1, HANGS)
    with trio.CancelScope() as scope:

        def cancel(_):
            scope.cancel()

        async def fetch_blobs():
            return DOUBLE.blobs

        await misbehaving.run_many(ANN, DOUBLE.program_id, fetch_blobs, units, LIMITS, cancel)
    assert scope.cancelled_caught
    assert ANN not in misbehaving.pids
    assert value_of((await run_many(misbehaving, runs_of(4)))[0]) == 8.0


async def test_a_short_unit_waits_for_one_turn_of_a_requester_with_many(
    misbehaving, monkeypatch
):
    """Of ann there are 60 units of 0.1 s each in three batches, of bob there is one."""
    monkeypatch.setattr(unit_batches, "TURN_S", 0.2)
    await run_many(misbehaving, runs_of(0), requester=ANN)
    await run_many(misbehaving, runs_of(0), requester=BOB)  # both have their process
    anns = [runs_of(*[SLOW] * 20) for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for units in anns:
            nursery.start_soon(run_many, misbehaving, units)
        while anns[0][0].outcome is None:  # noqa: ASYNC110  # of another process
            await trio.sleep(0.01)
        before = ended_of(anns)
        await run_many(misbehaving, runs_of(1), requester=BOB)
        assert ended_of(anns) - before <= 3  # the turn under way: 0.2 s and its last unit
    assert ended_of(anns) == 60


async def test_units_of_the_class_exact_run_together_too(worker):
    await worker.enable_exact()
    matrix = "{1.0, 2.0, 3.0, 4.0}"
    program = program_of(
        "g (float[n, 2] x) => (float[n, 2] y) { "
        f"w = Constant<value = float[2, 2] {matrix}>() y = MatMul(x, w) }}",
        precision="x20",
    )
    rows = [np.array([[k, 1]], np.float32) for k in range(1, 6)]
    wrong = np.array([[np.nan, 1]], np.float32)
    units = [UnitRun({"x": to_blob(x)}) for x in (*rows, wrong, rows[0])]
    assert await run_many(worker, units, program) == units
    for unit, x in zip(units, rows, strict=False):
        expected = x @ np.array([[1, 2], [3, 4]], np.float32)
        assert from_blob(unit.outcome.outputs["y"]).tolist() == expected.tolist()
        assert "numba" in unit.outcome.runtime
    assert not isinstance(units[5].outcome, Execution)
    assert units[6].outcome.outputs == units[0].outcome.outputs
