"""Jobs of one node: how they end, go on and are added to."""

import models
import msgspec
import numpy as np
import pytest
import trio
import trio.testing
from job_nodes import (
    GATHER,
    LIMIT_S,
    NOWHERE,
    OUT_OF_RANGE,
    SLOW,
    Distrusts,
    X,
    open_node,
    open_peer,
    until,
)
from journal_samples import end_one

from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.node.errors import StoreError
from shoal.node.records import (
    Failure,
    Job,
    JobSpec,
    JobState,
    Policy,
    Unit,
    UnitState,
    new_job_id,
)


@pytest.fixture
async def node(tmp_path):
    async with open_node(tmp_path) as node:
        yield node


async def test_a_node_runs_its_own_users_job(node):
    job = await node.ended((await node.jobs.submit(await node.spec(X, X))).id)
    assert (job.state, job.units_done) == (JobState.DONE, 2)


async def test_a_unit_fails_when_only_providers_are_left_that_refuse_its_requester(node):
    async with open_peer(Distrusts, node):
        job = await node.jobs.submit(await node.spec(OUT_OF_RANGE, program=GATHER))
        job = await node.ended(job.id)
    assert (job.state, job.units_failed) == (JobState.FAILED, 1)
    (unit,) = await node.journal.units(job.id, 0, 10)
    assert unit.receipt is not None  # of the one error that there was


async def test_a_unit_fails_when_the_last_provider_that_could_try_it_goes_away(node):
    nobody = identity.generate().peer_id
    node.offering.append(nobody)  # known, and not to be reached
    job = await node.jobs.submit(await node.spec(OUT_OF_RANGE, program=GATHER))

    async def this_node_called_it_an_error():
        return node.provider.units_served and not node.jobs.leases(job.id)

    await until(this_node_called_it_an_error)
    assert not (await node.journal.job(job.id)).state.final
    node.offering.remove(nobody)
    assert (await node.ended(job.id)).state is JobState.FAILED


async def noted(node, states, spec, *, open_=False):
    """A job of an earlier run of the daemon, with one unit in each of ``states``."""
    job = Job(
        id=new_job_id(),
        policy=spec.policy,
        program=spec.program,
        numeric_class=spec.numeric_class,
        label="",
        state=JobState.RUNNING,
        created_at=0.0,
        ended_at=None,
        units_total=len(states),
        units_done=0,
        units_failed=0,
        open=open_,
    )
    units = [
        Unit(job=job.id, index=k, state=UnitState.QUEUED, inputs=spec.units[0])
        for k in range(len(states))
    ]
    await node.journal.add_job(job, spec, units)
    for unit, state in zip(units, states, strict=True):
        if state is UnitState.FAILED:
            ended = Unit(
                job=job.id,
                index=unit.index,
                state=state,
                inputs=unit.inputs,
                failure=Failure("time_limit", "it took too long"),
            )
            await end_one(node.journal, ended, None)
    return job.id


async def test_a_job_with_a_unit_that_failed_before_a_restart_has_failed(node):
    job_id = await noted(node, [UnitState.FAILED, UnitState.QUEUED], await node.spec(X))
    await node.jobs.resume()
    job = await node.ended(job_id)
    assert (job.state, job.units_done, job.units_failed) == (JobState.FAILED, 1, 1)
    assert job.failure == Failure("time_limit", "it took too long")


async def test_a_job_whose_blobs_were_lost_fails_at_the_restart_and_the_next_one_runs(node):
    lost = await noted(
        node, [UnitState.QUEUED], JobSpec(Policy.MAP, NOWHERE, ({"x": NOWHERE},))
    )
    kept = await noted(node, [UnitState.QUEUED], await node.spec(X))
    await node.jobs.resume()
    assert (await node.ended(lost)).failure.code == "blob_missing"
    assert (await node.ended(kept)).state is JobState.DONE


async def test_a_job_that_no_task_runs_can_be_cancelled(node):
    job_id = await noted(node, [UnitState.QUEUED], await node.spec(X))
    assert (await node.jobs.cancel(job_id)).state is JobState.CANCELLED
    (unit,) = await node.journal.units(job_id, 0, 10)
    assert unit.state is UnitState.CANCELLED


async def test_a_job_is_cancelled_while_it_ends_and_ends_once(node):
    spec = await node.spec(X)
    for delay_s in np.linspace(0.0, 0.06, 13):
        job = await node.jobs.submit(spec)
        await trio.sleep(delay_s)
        cancelled = await node.jobs.cancel(job.id)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await node.journal.job(job.id) == cancelled
        (unit,) = await node.journal.units(job.id, 0, 10)
        ended = (cancelled.state, cancelled.units_done, unit.state)
        assert ended in {
            (JobState.DONE, 1, UnitState.DONE),
            (JobState.CANCELLED, 0, UnitState.CANCELLED),
            (JobState.CANCELLED, 1, UnitState.DONE),
        }


async def test_a_state_that_cannot_be_written_ends_neither_the_daemon_nor_its_other_jobs(node):
    database = node.journal._database
    job = await node.jobs.submit(
        await node.spec(*[to_blob(models.rows(k + 1)) for k in range(99)])
    )
    database.execute("PRAGMA query_only = ON")
    with trio.fail_after(LIMIT_S):
        async with node.jobs.watch(job.id) as changes:
            async for _ in changes:
                pass  # until nothing more will come

    async def none_runs():
        return not node.jobs.running

    await until(none_runs)
    database.execute("PRAGMA query_only = OFF")
    assert not (await node.journal.job(job.id)).state.final
    await node.jobs.resume()
    job = await node.ended(job.id)
    assert (job.state, job.units_done) == (JobState.DONE, 99)


async def test_peers_that_cannot_be_told_of_a_cancelled_job_end_nothing(node, monkeypatch):
    spec = msgspec.structs.replace(await node.spec(X), outputs_stay=True)
    node.offering.clear()
    job = await node.jobs.submit(spec)

    async def full(_work):
        raise StoreError("the disk is full", code="disk_full")

    with monkeypatch.context() as patch:
        patch.setattr(node.journal, "transact", full)
        assert (await node.jobs.cancel(job.id)).state is JobState.CANCELLED
        await trio.testing.wait_all_tasks_blocked(0.01)
    node.offering.append(node.key.peer_id)
    job = await node.jobs.submit(await node.spec(X))
    assert (await node.ended(job.id)).state is JobState.DONE


async def test_units_that_could_not_be_cancelled_for_want_of_room_run(node, monkeypatch):
    node.offering.clear()
    job = await node.jobs.submit(await node.spec(X, X))

    async def waits():
        return node.jobs.units_waiting == 2

    await until(waits)
    go_on = trio.Event()

    async def full(_ends):
        await go_on.wait()
        raise StoreError("the disk is full", code="disk_full")

    async def cancel():
        with pytest.raises(StoreError):
            await node.jobs.cancel_units(job.id, [0, 1])

    with monkeypatch.context() as patch:
        patch.setattr(node.journal, "end_units", full)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel)
            await trio.testing.wait_all_tasks_blocked(0.05)
            node.jobs.units_added(job.id)  # and so it is looked up if all have ended
            await trio.testing.wait_all_tasks_blocked(0.05)
            go_on.set()
    node.offering.append(node.key.peer_id)
    job = await node.ended(job.id)
    assert (job.state, job.units_done) == (JobState.DONE, 2)


async def test_a_job_that_is_not_to_wait_fails_when_nobody_bids_and_says_what_would_help(node):
    node.offering.clear()
    spec = msgspec.structs.replace(await node.spec(X), fail_fast=True)
    async with open_peer(Distrusts, node):
        job = await node.ended((await node.jobs.submit(spec)).id)
    assert (job.state, job.failure.code) == (JobState.FAILED, "nobody_bids")
    assert "serves only nodes that its owner knows" in job.failure.message
    assert "--fail-fast" in job.failure.hint


async def test_a_job_that_is_not_to_wait_runs_where_somebody_bids(node):
    spec = msgspec.structs.replace(await node.spec(X), fail_fast=True)
    async with open_peer(Distrusts, node):
        job = await node.ended((await node.jobs.submit(spec)).id)
    assert job.state is JobState.DONE


async def test_an_outlook_says_who_has_what_and_how_fast(node):
    job = await node.jobs.submit(await node.spec(*[X] * 8, program=SLOW))

    async def some_are_done():
        return (await node.journal.job(job.id)).units_done >= 2

    await until(some_are_done)
    seen = await node.jobs.outlook(job.id)
    (own,) = seen.peers
    assert own.peer == node.key.peer_id
    assert own.unit_s > 0
    assert own.units_done >= 2
    assert seen.units_waiting + seen.units_out + own.units_done >= 8
    await node.ended(job.id)
    assert await node.jobs.outlook(job.id) is None


async def test_units_are_added_to_an_open_job_until_it_is_sealed(node):
    spec = await node.spec(X)
    job_id = await noted(node, [UnitState.QUEUED], spec, open_=True)
    await node.jobs.resume()

    async def done(count):
        return (await node.journal.job(job_id)).units_done == count

    await until(lambda: done(1))
    units = [Unit(job_id, k, UnitState.QUEUED, spec.units[0]) for k in (1, 2)]
    await node.journal.add_units(job_id, units)
    node.jobs.units_added(job_id)
    await until(lambda: done(3))
    assert not (await node.journal.job(job_id)).state.final
    await node.journal.seal_job(job_id)
    node.jobs.sealed(job_id)
    assert (await node.ended(job_id)).state is JobState.DONE
