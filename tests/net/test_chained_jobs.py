"""Jobs that take one another's outputs, run by two providers and a requester in one process."""

from contextlib import AsyncExitStack

import models
import numpy as np
import onnxruntime
import pytest
import trio
from chaining_nodes import DENSE, IDENTITY, open_node

from shoal.compute.tensor import from_blob, to_blob
from shoal.node import chaining
from shoal.node.jobs import open_jobs
from shoal.node.records import JobSpec, JobState, OutputRef, Policy
from shoal.node.scheduling import placement
from shoal.protocol.statements import open_receipt

LIMIT_S = 60.0
UNITS = 12
ROWS = 1500  # 24 kB: small enough for the journal, were they not to stay


class Requester:
    """A node with jobs; the others are its providers."""

    def __init__(self, node, jobs):
        self.node, self.jobs, self.journal = node, jobs, node.house.journal

    async def submit(self, units, program=DENSE, **options):
        for blob in program.blobs.values():
            await self.node.store.put_bytes(blob)
        spec = JobSpec(Policy.MAP, program.program_id, (), **options)
        return await self.jobs.submit(spec, units)

    async def stages(self, given, last_stays=False):
        first = await self.submit([{"x": to_blob(x)} for x in given], outputs_stay=True)
        second = await self.submit(refs(first, len(given)), outputs_stay=True)
        third = await self.submit(refs(second, len(given)), outputs_stay=last_stays)
        return [first, second, third]

    async def ended(self, job):
        with trio.fail_after(LIMIT_S):
            async with self.jobs.watch(job.id) as changes:
                async for _ in changes:
                    pass
        return await self.journal.job(job.id)

    async def until(self, condition):
        with trio.fail_after(LIMIT_S):
            while not await condition():  # noqa: ASYNC110  # of what tells nobody
                await trio.sleep(0.01)

    async def outputs(self, job):
        """The outputs of a job's units, as who reads them gets them."""
        found = []
        for unit in await self.journal.units(job.id, 0, 1000):
            blob_id = unit.outputs["y"]
            small = await self.journal.tensors([blob_id])
            if blob_id not in small:
                await chaining.bring_home(self.node.house, blob_id)
                small = {blob_id: await self.node.store.get_bytes(blob_id)}
            found.append(from_blob(small[blob_id]))
        return found

    async def ids(self, jobs):
        units = [u for job in jobs for u in await self.journal.units(job.id, 0, 1000)]
        return {unit.outputs["y"] for unit in units}


def refs(job, count):
    return [{"x": OutputRef(job.id, index, "y")} for index in range(count)]


def rows(count=UNITS):
    random = np.random.default_rng(3)
    return [random.normal(size=(ROWS, models.WIDTH)).astype(np.float32) for _ in range(count)]


def locally(given, stages=3):
    session = onnxruntime.InferenceSession(models.dense())
    for _ in range(stages):
        given = [session.run(None, {"x": x})[0] for x in given]
    return given


def assert_close(found, wanted):
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.fixture
async def swarm(tmp_path):
    """A requester that runs nothing itself, and two providers."""
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(open_node(tmp_path / str(n))) for n in range(3)
        ]
        for number, node in enumerate(nodes):
            node.meets(*nodes[:number])
        node, *providers = nodes
        offering = {provider.peer for provider in providers}
        jobs = await stack.enter_async_context(open_jobs(node.house, lambda _: offering))
        requester = Requester(node, jobs)
        requester.offering = offering
        with trio.fail_after(3 * LIMIT_S):
            yield requester, *providers


async def test_what_lies_between_never_comes_to_the_requester(swarm):
    requester, *providers = swarm
    given = rows()
    jobs = await requester.stages(given)
    for job in jobs:
        assert (await requester.ended(job)).state is JobState.DONE
    between = await requester.ids(jobs[:2])
    assert len(between) == 2 * UNITS
    assert not any(requester.node.store.holds(blob_id) for blob_id in between)
    assert await requester.journal.tensors(between) == {}
    assert set(await requester.journal.holders(between)) == between
    assert all(
        any(provider.house.kept.keeps(requester.node.peer, blob_id) for provider in providers)
        for blob_id in between
    )
    assert_close(await requester.outputs(jobs[2]), locally(given))
    for job, before in zip(jobs[1:], jobs, strict=False):
        made = {u.index: u.outputs for u in await requester.journal.units(before.id, 0, 99)}
        for unit in await requester.journal.units(job.id, 0, 99):
            receipt = open_receipt(await requester.journal.receipt(unit.receipt))
            assert dict(receipt.inputs)["x"] == made[unit.index]["y"]


async def test_outputs_that_are_lost_before_they_are_taken_are_made_anew(swarm):
    requester, provider, other = swarm
    given = rows()
    first = await requester.submit([{"x": to_blob(x)} for x in given], outputs_stay=True)
    await requester.ended(first)
    for node in (provider, other):  # as after a restart
        node.house.kept.drop(requester.node.peer, node.house.kept.blobs())
        node.house.known._of.clear()
    second = await requester.submit(refs(first, UNITS), outputs_stay=True)
    third = await requester.submit(refs(second, UNITS))
    assert (await requester.ended(third)).state is JobState.DONE
    assert_close(await requester.outputs(third), locally(given))
    for job in (first, second):
        ended = await requester.ended(job)
        assert (ended.state, ended.units_done) == (JobState.DONE, UNITS)


async def test_a_unit_runs_again_though_its_lease_has_answered_it_before(swarm, monkeypatch):
    # Leases are kept, as those of a job are that has other units to run.
    monkeypatch.setattr(placement, "keep_leases", lambda *_: None)
    requester, provider, other = swarm
    requester.offering.discard(other.peer)
    given = rows(1)
    first = await requester.submit([{"x": to_blob(given[0])}], outputs_stay=True, open=True)

    async def it_is_done():
        return (await requester.journal.job(first.id)).units_done == 1

    await requester.until(it_is_done)
    provider.house.kept.drop(requester.node.peer, provider.house.kept.blobs())
    provider.house.known._of.clear()
    second = await requester.submit(refs(first, 1))
    assert requester.jobs.leases(first.id)
    assert (await requester.ended(second)).state is JobState.DONE
    assert_close(await requester.outputs(second), locally(given, 2))


async def test_a_provider_goes_away_with_what_it_keeps_and_all_is_right(swarm):
    requester, victim, _ = swarm
    given = rows(30)
    jobs = await requester.stages(given)

    async def some_are_left_with_it():
        left = await requester.journal.units(jobs[0].id, 0, 99)
        return any(unit.provider == victim.peer for unit in left)

    await requester.until(some_are_left_with_it)
    requester.offering.discard(victim.peer)
    for node in (requester.node, *swarm[1:]):
        node.known.pop(victim.peer, None)
    await victim.network.close()

    async def all_are_done():  # at once: one that was done may have to give an output again
        stood = [(await requester.journal.job(job.id)).state for job in jobs]
        assert JobState.FAILED not in stood
        return set(stood) == {JobState.DONE}

    await requester.until(all_are_done)
    assert_close(await requester.outputs(jobs[2]), locally(given))


async def test_a_lost_output_that_is_asked_for_has_its_job_run_again(swarm):
    requester, *providers = swarm
    given = rows(2)
    job = await requester.submit([{"x": to_blob(x)} for x in given], outputs_stay=True)
    await requester.ended(job)
    for node in providers:
        node.house.kept.drop(requester.node.peer, node.house.kept.blobs())
    with pytest.raises(chaining.JobError) as caught:
        await requester.outputs(job)
    assert caught.value.code == chaining.COMPUTED_AGAIN
    found = []

    async def all_are_there():  # the second was not asked for, and is found lost then
        await requester.ended(job)
        try:
            found[:] = await requester.outputs(job)
        except chaining.JobError:
            return False
        return True

    await requester.until(all_are_there)
    assert_close(found, locally(given, 1))


async def test_a_false_output_is_found_when_it_is_taken_and_its_unit_runs_again(swarm):
    requester, *providers = swarm
    given = rows(2)
    job = await requester.submit([{"x": to_blob(x)} for x in given], outputs_stay=True)
    await requester.ended(job)
    (unit, _) = await requester.journal.units(job.id, 0, 9)
    liar = next(node for node in providers if node.peer == unit.provider)
    bad = await liar.store.put_bytes(b"no tensor")
    liar.house.kept.keep(requester.node.peer, 1, {bad: 9}, 1 << 30, trio.current_time())
    y = unit.outputs["y"]

    def name_that(database):  # as if its receipt had
        database.execute("UPDATE left_outputs SET tensor = ? WHERE tensor = ?", (bad, y))
        database.execute("UPDATE units SET outputs = replace(outputs, ?, ?)", (y, bad))

    await requester.journal.transact(name_that)
    second = await requester.submit(refs(job, 2), program=IDENTITY)
    assert (await requester.ended(second)).state is JobState.DONE
    assert_close(await requester.outputs(second), locally(given, 1))
    assert liar.peer in {peer for peer, _ in requester.node.offences}


async def test_when_a_stage_fails_the_next_one_says_by_what(swarm):
    requester, *_ = swarm
    requester.offering.clear()
    first = await requester.submit([{"x": to_blob(x)} for x in rows(2)], outputs_stay=True)
    second = await requester.submit(refs(first, 2))
    await requester.jobs.cancel(first.id)
    ended = await requester.ended(second)
    assert (ended.state, ended.failure.code) == (JobState.FAILED, "input_failed")


async def test_what_a_cancelled_job_has_left_is_dropped(swarm):
    requester, provider, other = swarm
    requester.offering.discard(other.peer)  # so that nothing is run twice
    given = [{"x": to_blob(x)} for x in rows(3)]
    first = await requester.submit(given, outputs_stay=True, open=True)

    async def all_are_left():
        return (await requester.journal.job(first.id)).units_done == 3

    await requester.until(all_are_left)
    assert len(provider.house.kept) == 3
    await requester.jobs.cancel(first.id)

    async def all_are_dropped():
        return not len(provider.house.kept)

    await requester.until(all_are_dropped)
