"""The id that a client chooses for a job: what is submitted again under it is the same job."""

import msgspec
import pytest
import trio
from job_nodes import X, open_node

from shoal.node import submission
from shoal.node.errors import JobError
from shoal.node.records import JobSpec, JobState, new_job_id


@pytest.fixture
async def node(tmp_path):
    async with open_node(tmp_path) as node:
        yield node


async def test_what_is_submitted_again_under_its_id_is_the_same_job(node):
    spec = msgspec.structs.replace(await node.spec(X, X), id=new_job_id())
    found = []

    async def submit():
        found.append(await node.jobs.submit(spec))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(submit)
    assert {job.id for job in found} == {spec.id}
    await node.ended(spec.id)
    again = await node.jobs.submit(spec)
    assert (again.state, again.units_total, again.units_done) == (JobState.DONE, 2, 2)
    assert len(await node.journal.jobs(9)) == 1


async def test_an_open_job_that_is_submitted_again_is_given_as_far_as_it_is(node):
    one = await node.spec(X)
    spec = msgspec.structs.replace(one, id=new_job_id(), open=True)
    await node.jobs.submit(spec)
    await submission.add_units(node.house, spec.id, one.units, 1)
    assert (await node.jobs.submit(spec)).units_total == 2


@pytest.mark.parametrize(
    "change",
    [{"label": "other"}, {"units": ()}, {"units": ({"x": "0" * 64},)}, {"units": ({},)}],
    ids=str,
)
async def test_another_job_under_an_id_that_is_taken_is_refused_by_name(node, change):
    spec = msgspec.structs.replace(await node.spec(X), id=new_job_id())
    await node.jobs.submit(spec)
    with pytest.raises(JobError) as caught:
        await node.jobs.submit(msgspec.structs.replace(spec, **change))
    assert caught.value.code == "job_id_taken"
    assert caught.value.hint


async def test_the_id_of_a_job_that_was_forgotten_is_not_given_out_again(node):
    spec = msgspec.structs.replace(await node.spec(X), id=new_job_id())
    await node.jobs.submit(spec)
    await node.ended(spec.id)

    def forget(database):
        database.execute("UPDATE jobs SET forgotten = 1")

    await node.journal.transact(forget)
    with pytest.raises(JobError) as caught:
        await node.jobs.submit(spec)
    assert caught.value.code == "job_id_taken"


async def test_who_cancels_a_job_that_is_about_to_be_written_down_waits_for_it(
    node, monkeypatch
):
    spec = msgspec.structs.replace(await node.spec(X), id=new_job_id())
    add_job, written = node.journal.add_job, trio.Event()

    async def slow(*arguments):
        written.set()
        await trio.sleep(0.2)
        await add_job(*arguments)

    monkeypatch.setattr(node.journal, "add_job", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.jobs.submit, spec)
        await written.wait()
        assert (await node.jobs.cancel(spec.id)).state is JobState.CANCELLED
    assert (await node.journal.job(spec.id)).state is JobState.CANCELLED


def spec_under(text):
    units = [{"x": "0" * 64}]
    return msgspec.convert(
        {"policy": "run", "program": "0" * 64, "units": units, "id": text}, JobSpec
    )


@pytest.mark.parametrize("text", ["a" * 27 + "\n", "A" * 27, "a" * 26, "../" + "a" * 24])
def test_what_is_no_id_of_a_job_is_refused(text):
    assert spec_under("a" * 27).id == "a" * 27
    with pytest.raises(msgspec.ValidationError):
        spec_under(text)
