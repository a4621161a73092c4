"""Units as submitters give them: checked whole, or not taken at all."""

from types import SimpleNamespace

import models
import numpy as np
import pytest

from shoal.compute.convert import convert
from shoal.compute.errors import ProgramError
from shoal.compute.manifest import decode
from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of
from shoal.node import pipeline, submission
from shoal.node.blobs import open_store
from shoal.node.errors import JobError, StoreError
from shoal.node.records import (
    SMALL_TENSOR_LIMIT_BYTES,
    JobSpec,
    JobState,
    OutputRef,
    Policy,
)
from shoal.node.state import open_state
from shoal.node.timing import Timings
from shoal.node.turns import Turns

DENSE, GATHER = convert(models.dense()), convert(models.gather())
ROW = to_blob(models.rows(1))
LARGE = to_blob(models.rows(SMALL_TENSOR_LIMIT_BYTES // 16))


@pytest.fixture
async def house(tmp_path):
    """A node with a store and a journal, which is all that taking units needs."""
    async with (
        open_store(tmp_path / "blobs", 1 << 24) as store,
        open_state(tmp_path / "state.sqlite") as journal,
    ):
        for program in (DENSE, GATHER):
            for blob in program.blobs.values():
                await store.put_bytes(blob)
        yield SimpleNamespace(store=store, journal=journal, adding=Turns(), timings=Timings())


def spec(program=DENSE, *, is_open=True):
    return JobSpec(Policy.MAP, program.program_id, (), open=is_open)


async def test_small_tensors_go_to_the_journal_and_large_ones_to_the_store(house):
    job = await pipeline.submit(house, spec(), [{"x": ROW}, {"x": LARGE}, {"x": ROW}])
    small, large = blob_id_of(ROW), blob_id_of(LARGE)
    assert [unit.inputs["x"] for unit in await house.journal.open_units(job.id)] == [
        small,
        large,
        small,
    ]
    assert await house.journal.tensors([small, large]) == {small: ROW}
    assert (house.store.holds(small), house.store.holds(large)) == (False, True)


async def test_an_open_job_goes_on_taking_units_and_an_empty_one_runs(house):
    job = await pipeline.submit(house, spec(), [])
    assert (job.state, job.open) == (JobState.RUNNING, True)
    assert (await pipeline.submit(house, spec(is_open=False), [])).state is JobState.DONE
    for total in (1, 2):
        job, _ = await submission.add_units(house, job.id, [{"x": ROW}])
        assert job.units_total == total
    with pytest.raises(JobError) as caught:
        await submission.add_units(house, job.id, [{"x": ROW}], at=1)
    assert (caught.value.code, caught.value.hint) == ("wrong_place", "go on with unit 2")
    await house.journal.seal_job(job.id)
    with pytest.raises(JobError) as caught:
        await submission.add_units(house, job.id, [{"x": ROW}])
    assert caught.value.code == "job_sealed"


@pytest.mark.parametrize(
    ("unit", "kind", "code"),
    [
        ({}, ProgramError, "missing_input"),
        ({"z": ROW}, ProgramError, "unknown_input"),
        ({"x": to_blob(np.zeros((1, 4)))}, ProgramError, "wrong_dtype"),
        ({"x": to_blob(np.zeros((1, 5), np.float32))}, ProgramError, "wrong_shape"),
        ({"x": b"no tensor"}, ProgramError, "bad_tensor"),
        ({"x": ROW[:-1]}, ProgramError, "bad_tensor"),
        ({"x": "00" * 32}, StoreError, "blob_missing"),
        ({"x": DENSE.program_id}, ProgramError, "bad_tensor"),
        ({"x": OutputRef("no job", 0, "y")}, JobError, "no_such_job"),
        ({"z": OutputRef("no job", 0, "y")}, ProgramError, "unknown_input"),
    ],
)
async def test_a_bad_unit_is_named_and_none_is_taken(house, unit, kind, code):
    job = await pipeline.submit(house, spec(), [{"x": ROW}])
    with pytest.raises(kind, match=r"^unit 2: ") as caught:
        await submission.add_units(house, job.id, [{"x": LARGE}, unit, {"x": ROW}])
    assert caught.value.code == code
    assert (await house.journal.job(job.id)).units_total == 1
    assert not house.store.holds(blob_id_of(LARGE))  # nothing was stored for it


async def test_an_output_of_another_unit_is_checked_as_far_as_it_is_known(house):
    first = await pipeline.submit(house, spec(), [{"x": ROW}])
    reference = OutputRef(first.id, 0, "y")
    job = await pipeline.submit(house, spec(), [{"x": reference}])
    (unit,) = await house.journal.units(job.id, 0, 1)
    assert (unit.awaits, unit.inputs) == ({"x": reference}, {})
    for wrong, code in (
        (OutputRef(first.id, 1, "y"), "no_such_unit"),
        (OutputRef(first.id, 0, "z"), "no_such_output"),
    ):
        with pytest.raises(JobError) as caught:
            await submission.add_units(house, job.id, [{"x": wrong}])
        assert caught.value.code == code
    whole = await pipeline.submit(house, spec(GATHER), [])
    with pytest.raises(ProgramError) as caught:
        await submission.add_units(house, whole.id, [{"x": reference}])
    assert caught.value.code == "wrong_dtype"


async def test_units_of_one_job_may_follow_one_another_but_not_themselves(house):
    job = await pipeline.submit(house, spec(), [{"x": ROW}])
    chain = [{"x": OutputRef(job.id, 0, "y")}, {"x": OutputRef(job.id, 1, "y")}]
    job, _ = await submission.add_units(house, job.id, chain)
    assert job.units_total == 3
    with pytest.raises(JobError, match="not there before it") as caught:
        await submission.add_units(house, job.id, [{"x": OutputRef(job.id, 3, "y")}])
    assert caught.value.code == "no_such_unit"


async def test_a_tensor_of_the_journal_is_an_input_by_its_id(house):
    await pipeline.submit(house, spec(), [{"x": ROW}])
    job = await pipeline.submit(house, spec(), [{"x": blob_id_of(ROW)}])
    (unit,) = await house.journal.open_units(job.id)
    assert unit.inputs == {"x": blob_id_of(ROW)}
    assert decode(DENSE.blobs[DENSE.program_id]).inputs[0].name == "x"
