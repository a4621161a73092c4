"""Units that await others in the journal: inputs come, or the unit fails, and nothing hangs."""

import pytest
from journal_samples import (
    PEER,
    check_sound,
    done,
    failed,
    make_job,
    make_unit,
    make_units,
    tensor_id,
    tensor_of,
)

from shoal.node.errors import JobError
from shoal.node.records import Failure, JobId, JobState, OutputRef, UnitState
from shoal.node.state import open_state

FIRST, SECOND = JobId("0001"), JobId("0002")


@pytest.fixture
async def state(tmp_path):
    async with open_state(tmp_path / "state.sqlite") as state:
        state.told = []
        state.touched = state.told.append
        yield state
    check_sound(tmp_path / "state.sqlite")


async def ready(state, job=FIRST):
    return [unit.index for unit in await state.open_units(job)]


async def unit_of(state, index, job=FIRST):
    (unit,) = await state.units(job, index, 1)
    return unit


async def test_a_unit_is_ready_when_the_last_that_it_awaits_has_ended(state):
    both = make_unit(2, a=(FIRST, 0, "y"), b=(FIRST, 1, "y"))
    await state.add_job(*make_job(), [*make_units(2), both])
    assert await ready(state) == [0, 1]
    assert await state.count_open(FIRST) == (2, 1)
    written = await state.end_units([done(make_unit(0), 70)])
    assert written.touched == {FIRST}
    waiting = await unit_of(state, 2)
    assert waiting.inputs == {**both.inputs, "a": tensor_id(70)}
    assert waiting.awaits == {"b": OutputRef(FIRST, 1, "y")}
    assert await ready(state) == [1]
    await state.end_units([done(make_unit(1), 71)])
    assert await ready(state) == [2]
    now = await unit_of(state, 2)
    assert now.inputs == {**both.inputs, "a": tensor_id(70), "b": tensor_id(71)}
    assert now.awaits == {}
    assert state.told == [{FIRST}, {FIRST}]


async def test_units_that_await_one_that_has_ended_have_its_output_at_once(state):
    await state.add_job(*make_job(opened=True), make_units(1))
    await state.end_units([done(make_unit(0), 70)])
    await state.add_units(FIRST, [make_unit(1, a=(FIRST, 0, "y"))])
    assert (await unit_of(state, 1)).inputs["a"] == tensor_id(70)
    assert await ready(state) == [1]


async def test_another_job_has_a_copy_of_the_small_tensors_that_it_takes(state):
    await state.add_job(*make_job(), make_units(1))
    await state.add_job(*make_job(SECOND), [make_unit(0, job=SECOND, a=(FIRST, 0, "y"))])
    written = await state.end_units([done(make_unit(0), 70)])
    assert written.touched == {SECOND}
    assert state.told == [{SECOND}]
    rows = state._database.execute("SELECT job FROM tensors WHERE id = ?", (tensor_id(70),))
    assert {row["job"] for row in rows} == {FIRST, SECOND}
    third = make_unit(1, job=SECOND, inputs={"x": tensor_id(70)})
    assert await state.tensors([tensor_id(70), tensor_id(1)]) == {tensor_id(70): tensor_of(70)}
    with pytest.raises(JobError):
        await state.add_units(SECOND, [third])  # it is not open


async def test_a_failure_fails_all_that_await_it_however_far(state):
    chain = [make_unit(n, a=(FIRST, n - 1, "y")) for n in range(1, 300)]
    await state.add_job(*make_job(), [make_unit(0), *chain])
    await state.add_job(*make_job(SECOND), [make_unit(0, job=SECOND, a=(FIRST, 299, "y"))])
    written = await state.end_units([failed(make_unit(0), Failure("nan", "NaN"))])
    assert written.touched == {FIRST, SECOND}
    assert (await state.job(FIRST)).units_failed == 300
    last = await unit_of(state, 0, SECOND)
    assert (last.state, last.failure.code) == (UnitState.FAILED, "input_failed")
    assert FIRST in last.failure.message
    assert last.failure.hint
    assert await ready(state) == []


async def test_an_output_that_the_program_has_not_got_fails_the_unit_and_names_those_it_has(
    state,
):
    await state.add_job(*make_job(), [make_unit(0), make_unit(1, a=(FIRST, 0, "z"))])
    await state.end_units([done(make_unit(0))])
    unit = await unit_of(state, 1)
    assert (unit.state, unit.failure.code) == (UnitState.FAILED, "no_such_output")
    assert "has none of that name, but y" in unit.failure.message


async def test_what_is_awaited_of_a_job_that_is_cancelled_fails_in_the_others(state):
    await state.add_job(*make_job(), make_units(2))
    waiting = [make_unit(n, job=SECOND, a=(FIRST, n, "y")) for n in range(2)]
    await state.add_job(*make_job(SECOND), waiting)
    await state.end_units([done(make_unit(0))])
    await state.end_job(FIRST, JobState.CANCELLED, 2000.0)
    assert state.told == [{SECOND}, {SECOND}]
    assert await ready(state, SECOND) == [0]
    assert (await unit_of(state, 1, SECOND)).failure.code == "input_failed"
    late = make_unit(0, job="0003", a=(FIRST, 1, "y"))
    await state.add_job(*make_job("0003"), [late])
    assert (await unit_of(state, 0, "0003")).failure.code == "input_failed"


@pytest.mark.parametrize("ref", [("nowhere", 0), (FIRST, 5), (FIRST, 1), (FIRST, 2)])
async def test_a_unit_awaits_only_what_comes_before_it(state, ref):
    with pytest.raises(JobError) as caught:
        await state.add_job(*make_job(), [make_unit(0), make_unit(1, a=(*ref, "y"))])
    assert caught.value.code == "no_such_unit"
    assert await state.jobs(5) == []


async def test_a_unit_whose_outputs_were_lost_runs_again_and_what_awaits_it_awaits_it_again(
    state,
):
    chain = [make_unit(n, a=(FIRST, 0, "y")) for n in (1, 2)]
    await state.add_job(*make_job(), [make_unit(0), *chain])
    await state.end_units([done(make_unit(0), 70, left={tensor_id(70): 8})])
    assert await state.holders([tensor_id(70)]) == {tensor_id(70): (PEER, FIRST, 0, 8)}
    await state.end_units([done(await unit_of(state, 1))])
    assert await state.reopen_unit(FIRST, 0)
    assert not await state.reopen_unit(FIRST, 0)
    assert await ready(state) == [0]
    again = await unit_of(state, 2)
    assert (again.inputs, again.awaits) == (chain[1].inputs, chain[1].awaits)
    assert (await unit_of(state, 1)).state is UnitState.DONE
    assert (await state.job(FIRST)).units_done == 1
    assert await state.holders([tensor_id(70)]) == {}
    await state.end_units([done(make_unit(0), 71)])
    assert (await unit_of(state, 2)).inputs["a"] == tensor_id(71)
    assert (await unit_of(state, 1)).inputs["a"] == tensor_id(70)


async def test_a_unit_that_was_out_when_its_input_was_lost_may_end_all_the_same(state):
    await state.add_job(*make_job(), [make_unit(0), make_unit(1, a=(FIRST, 0, "y"))])
    await state.end_units([done(make_unit(0), 70)])
    out = await unit_of(state, 1)
    assert await state.reopen_unit(FIRST, 0)
    assert (await state.end_units([done(out)])).new == (True,)
    ended = await unit_of(state, 1)
    assert (ended.state, ended.awaits) == (UnitState.DONE, {})


async def test_a_job_that_was_done_runs_again_for_a_unit_that_was_lost(state):
    await state.add_job(*make_job(), make_units(2))
    await state.end_units([done(unit) for unit in make_units(2)])
    await state.end_job(FIRST, JobState.DONE, 2000.0)
    assert await state.reopen_unit(FIRST, 1)
    assert state.told[-1] == {FIRST}
    job = await state.job(FIRST)
    assert (job.state, job.ended_at, job.units_done) == (JobState.RUNNING, None, 1)
    await state.end_job(FIRST, JobState.CANCELLED, 3000.0)
    assert not await state.reopen_unit(FIRST, 0)


async def test_a_job_does_not_end_by_itself_over_a_unit_that_runs_again(state):
    await state.add_job(*make_job(), make_units(1))
    await state.end_units([done(make_unit(0), 70, left={tensor_id(70): 8})])
    assert await state.reopen_unit(FIRST, 0)  # between the last end and that of the job
    job = await state.end_job(FIRST, JobState.DONE, 1.0, by_itself=True)
    assert job.state is JobState.RUNNING
    assert await ready(state) == [0]
    await state.end_units([done(make_unit(0), 70)])
    job = await state.end_job(FIRST, JobState.DONE, 2.0, by_itself=True)
    assert job.state is JobState.DONE
