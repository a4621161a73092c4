"""Jobs of one node: with itself, and with a peer that fails it."""

import secrets
from contextlib import AsyncExitStack, asynccontextmanager

import models
import msgspec
import numpy as np
import pytest
import trio
import trio.testing
from attacker import Liar, make_award, make_call
from journal_samples import end_one

from shoal.compute.convert import convert
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import BlobId, ChunkList, blob_id_of
from shoal.node import house, jobs, pipeline
from shoal.node import provider as providers
from shoal.node.bidding import Terms
from shoal.node.blob_transfer import BLOB_PROTOCOL, Rights
from shoal.node.blobs import open_store
from shoal.node.control import open_control
from shoal.node.errors import JobError, StoreError
from shoal.node.frames import receive_frame, send_frame
from shoal.node.network import open_network
from shoal.node.owner import OPEN, Cause, Stance
from shoal.node.provider import OPEN_LIMIT, open_provider
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
from shoal.node.scheduling import setbacks
from shoal.node.scheduling.feeding import BATCHES_OUT
from shoal.node.state import open_state
from shoal.protocol.blob_messages import MESSAGE_LIMIT_BYTES, BlobFound, BlobRequest
from shoal.protocol.messages import (
    AwardOffer,
    Bid,
    Call,
    Done,
    Lease,
    Reason,
    Refusal,
    Release,
    UnitRequest,
    UnitResult,
)
from shoal.protocol.statements import open_receipt

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
LIMIT_S = 30.0
MIB = 1 << 20
DENSE = convert(models.dense())
GATHER = convert(models.gather())
X = to_blob(models.rows(3))
OUT_OF_RANGE = to_blob(np.array([1 << 20]))
FRIEND = identity.generate()
NOWHERE = blob_id_of(b"held by nobody")


class Node:
    """A node without membership: who offers to work is what the test says."""

    def __init__(self, key, network, control, blobs, journal, worker):
        self.key, self.network, self.blobs, self.journal = key, network, blobs, journal
        self.offering = [key.peer_id]
        self.draining = self.sandboxed = False
        self.stance = OPEN
        self.withheld = lambda _peer: None
        self.rights = Rights()
        self.house = house.House(
            identity=key,
            network=network,
            control=control,
            store=blobs,
            rights=self.rights,
            journal=journal,
            worker=worker,
            reach=self.reach,
            terms=self.terms,
        )

    async def reach(self, peer):
        pass

    def terms(self):
        return Terms(
            device="cpu",
            executors={"fp32": "onnxruntime"},
            memory_bytes=1 << 32,
            providing=True,
            own=self.key.peer_id,
            draining=self.draining,
            allowed={FRIEND.peer_id},
            leases=self.provider.leases,
            units_waiting=self.provider.units_waiting,
            waiting_s=self.provider.waiting_s,
            stance=self.stance,
            sandboxed=self.sandboxed,
            withheld=self.withheld,
        )

    async def spec(self, *inputs, program=DENSE):
        """Of a job with one unit for each of ``inputs``; all of its blobs are stored."""
        for blob in (*program.blobs.values(), *inputs):
            await self.blobs.put_bytes(blob)
        units = tuple({"x": blob_id_of(blob)} for blob in inputs)
        return JobSpec(Policy.MAP, program.program_id, units)

    async def ended(self, job_id):
        with trio.fail_after(LIMIT_S):
            async with self.jobs.watch(job_id) as changes:
                async for _ in changes:
                    pass
            return await self.journal.job(job_id)


@asynccontextmanager
async def open_node(home, quota_bytes=1 << 30):
    key = identity.generate()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        network = await enter(open_network(key, LOOPBACK))
        control = await enter(open_control(network, "test/1"))
        blobs = await enter(open_store(home / "blobs", quota_bytes))
        journal = await enter(open_state(home / "state.sqlite"))
        worker = await enter(open_worker(threads=1))
        node = Node(key, network, control, blobs, journal, worker)
        node.provider = await enter(open_provider(node.house))
        node.jobs = await enter(jobs.open_jobs(node.house, lambda _: list(node.offering)))
        control.answer_with(node.provider.answer)
        yield node


async def until(condition):
    with trio.fail_after(LIMIT_S):
        while not await condition():  # noqa: ASYNC110  # of others' states, which tell nobody
            await trio.sleep(0.01)


@pytest.fixture
async def node(tmp_path):
    async with open_node(tmp_path) as node:
        yield node


@asynccontextmanager
async def open_peer(kind, node):
    """A peer of ``kind`` (of `Liar`) that is connected to ``node`` and offers to work."""
    key = identity.generate()
    async with (
        open_network(key, LOOPBACK) as network,
        open_control(network, "test/1") as control,
    ):
        peer = kind(key, network)
        control.answer_with(peer.answer)
        await network.connect(node.network.peer_id, node.network.addresses(), 5)
        node.offering.append(key.peer_id)
        yield peer


# --- a job ends, and ends as it should --------------------------------------------------


async def test_a_node_runs_its_own_users_job(node):
    job = await node.ended((await node.jobs.submit(await node.spec(X, X))).id)
    assert (job.state, job.units_done) == (JobState.DONE, 2)


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
    await pipeline.add_units(node.house, spec.id, one.units, 1)
    assert (await node.jobs.submit(spec)).units_total == 2


@pytest.mark.parametrize("change", [{"label": "other"}, {"units": ()}], ids=str)
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


class Distrusts(Liar):
    async def answer(self, peer, body):
        if isinstance(body, Call):
            return Refusal(call=body.call, reason=Reason.UNTRUSTED_REQUESTER)
        return Done()


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


# --- what a provider can do to a job ------------------------------------------------------


async def answers_of(kind, node):
    """Let a liar have a job's one unit first; gives what was noted of its answers."""
    async with open_peer(kind, node) as liar:
        job = await node.ended((await node.jobs.submit(await node.spec(X))).id)
        assert job.state is JobState.DONE
        (unit,) = await node.journal.units(job.id, 0, 10)
        assert unit.provider == node.key.peer_id
        answers = await node.journal.answers(job.id)
        return [a.verdict for a in answers if a.peer == liar.key.peer_id]


class SendsNoTensor(Liar):
    """Its output has the id that its receipt names, and is no tensor."""


class SendsAnotherDtype(Liar):
    OUTPUT = to_blob(np.arange(3))

    def result(self, request):
        return super().result(request, blobs=(self.OUTPUT,))


TOO_LARGE = ChunkList(9 << 30, tuple(bytes([k % 256]) * 32 for k in range(9 << 10)))


class NamesAnEndlessOutput(Liar):
    """Its receipt names an output of 9 GiB, which it will gladly send."""

    def __init__(self, key, network):
        super().__init__(key, network)
        network.handle(BLOB_PROTOCOL, self.give)

    async def give(self, stream):
        await receive_frame(stream, BlobRequest, MESSAGE_LIMIT_BYTES)
        listed = TOO_LARGE.encode()
        await send_frame(stream, BlobFound(list_bytes=len(listed)), MESSAGE_LIMIT_BYTES)
        await stream.send_all(listed)

    def result(self, request):
        return super().result(request, blobs=())

    def receipt(self, request):
        return super().receipt(request, outputs=(("y", TOO_LARGE.blob_id),))


@pytest.mark.parametrize("kind", [SendsNoTensor, SendsAnotherDtype, NamesAnEndlessOutput])
async def test_an_output_that_no_honest_provider_gives_is_refused_and_fails_no_job(node, kind):
    assert await answers_of(kind, node) == ["awarded", "wrong_output"]


class LiesToEveryUnit(Liar):
    def __init__(self, key, network):
        super().__init__(key, network)
        self.lies = 0
        self.lied = trio.Event()

    def result(self, request):
        self.lies += 1
        self.lied.set()
        return super().result(request)

    def receipt(self, request):
        return super().receipt(request, unit="another/0")


async def test_a_provider_whose_result_is_false_gets_no_more_of_the_job(node, monkeypatch):
    monkeypatch.setattr(setbacks, "COOL_DOWN_BROKEN_S", 0.0)
    node.offering.clear()
    async with open_peer(LiesToEveryUnit, node) as liar:
        job = await node.jobs.submit(await node.spec(X))
        with trio.fail_after(LIMIT_S):
            await liar.lied.wait()
        await trio.sleep(2 * jobs.RECALL_INTERVAL_S)
        assert liar.lies == 1
        node.offering.append(node.key.peer_id)
        assert (await node.ended(job.id)).state is JobState.DONE


class AnswersNoAward(Liar):
    def __init__(self, key, network):
        super().__init__(key, network)
        self.awarded, self.released = [], trio.Event()

    async def answer(self, peer, body):
        if isinstance(body, AwardOffer):
            self.awarded.append(body.call)
            await trio.sleep_forever()
        if isinstance(body, Release):
            assert body.call == self.awarded[0]
            self.released.set()
        return await super().answer(peer, body)


async def test_an_award_that_is_not_answered_is_released_for_it_may_be_a_lease_there(
    node, monkeypatch
):
    monkeypatch.setattr(pipeline, "AWARD_TIME_LIMIT_S", 0.3)
    node.offering.clear()
    async with open_peer(AnswersNoAward, node) as silent:
        job = await node.jobs.submit(await node.spec(X))
        with trio.fail_after(LIMIT_S):
            await silent.released.wait()
        assert (await node.journal.answers(job.id))[0].verdict == "no_answer"
        node.offering[:] = [node.key.peer_id]
        assert (await node.ended(job.id)).state is JobState.DONE


async def test_a_disk_that_is_full_while_an_answer_is_noted_fails_no_job(node, monkeypatch):
    noted = []

    async def full(answer):
        noted.append(answer.verdict)
        raise StoreError("no room to note it", code="disk_full")

    monkeypatch.setattr(node.journal, "add_answer", full)
    node.offering.clear()
    async with open_peer(Distrusts, node):
        job = await node.jobs.submit(await node.spec(X, X))

        async def refused():
            return Reason.UNTRUSTED_REQUESTER in noted

        await until(refused)
        node.offering.append(node.key.peer_id)
        assert (await node.ended(job.id)).state is JobState.DONE
    assert "awarded" in noted


class TakesAllAndAnswersNothing(Liar):
    def __init__(self, key, network):
        super().__init__(key, network)
        self.taken = 0

    def bid(self, request):
        return super().bid(request, units_max=64, in_flight_max=64)

    async def answer(self, peer, body):
        if isinstance(body, UnitRequest):
            self.taken += 1
            await trio.sleep_forever()
        return await super().answer(peer, body)


async def test_a_provider_that_answers_nothing_gets_no_more_and_others_run_what_it_has(node):
    node.offering.clear()
    async with open_peer(TakesAllAndAnswersNothing, node) as greedy:
        inputs = [to_blob(models.rows(k + 1)) for k in range(30)]
        job = await node.jobs.submit(await node.spec(*inputs))

        async def it_has_some():
            return greedy.taken

        await until(it_has_some)
        node.offering.append(node.key.peer_id)
        assert (await node.ended(job.id)).state is JobState.DONE
        units = await node.journal.units(job.id, 0, 30)
    assert 1 <= greedy.taken <= BATCHES_OUT
    assert {unit.provider for unit in units} == {node.key.peer_id}


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


# --- what a requester can do to a provider ------------------------------------------------


async def bid_for(node, program=DENSE.program_id, **changes):
    call = msgspec.structs.replace(make_call(program, secrets.token_hex(16)), **changes)
    return call, await node.provider.answer(FRIEND.peer_id, call)


async def lease_for(node, **changes):
    """Gives the call and the lease of a friend who has the program, and is not connected."""
    node.house.known.note(FRIEND.peer_id, DENSE.blobs)
    call, bid = await bid_for(node, **changes)
    award = make_award(FRIEND, node.key.peer_id, call, bid, units_max=8)
    return call, await node.provider.answer(FRIEND.peer_id, award)


def unit_of(call, name, blob=X):
    inputs = (("x", blob_id_of(blob)),)
    return UnitRequest(call=call.call, unit=name, inputs=inputs, blobs=(blob,))


async def test_a_unit_named_like_a_job_of_the_provider_lets_go_of_nothing(tmp_path):
    async with open_node(tmp_path, quota_bytes=4 * MIB) as node:
        await node.spec()
        precious = await node.blobs.put_bytes(bytes(2 * MIB))
        node.blobs.pin(precious, "the job of another")
        call, _ = await lease_for(node)
        unit = unit_of(call, "the job of another")
        assert isinstance(await node.provider.answer(FRIEND.peer_id, unit), UnitResult)
        with pytest.raises(StoreError):
            await node.blobs.put_bytes(bytes(3 * MIB))
        assert node.blobs.holds(precious)


async def test_a_node_that_shuts_down_takes_neither_awards_nor_units(node):
    await node.spec()
    call, lease = await lease_for(node)
    assert isinstance(lease, Lease)
    late, bid = await bid_for(node)
    node.draining = True
    award = make_award(FRIEND, node.key.peer_id, late, bid)
    for message in (award, unit_of(call, "late"), make_call(DENSE.program_id, "ab" * 16)):
        answer = await node.provider.answer(FRIEND.peer_id, message)
        assert answer.reason is Reason.DRAINING


async def test_a_requester_that_calls_and_never_awards_is_in_nobody_elses_way(node):
    await node.spec()
    answers = [(await bid_for(node))[1] for _ in range(OPEN_LIMIT + 1)]
    assert all(isinstance(answer, Bid) for answer in answers[:-1])
    assert answers[-1].reason is Reason.BUSY
    job = await node.ended((await node.jobs.submit(await node.spec(X))).id)
    assert job.state is JobState.DONE


async def test_strangers_together_hold_so_many_bids_and_friends_get_theirs(node, monkeypatch):
    monkeypatch.setattr(providers, "STRANGERS_OPEN_LIMIT", 2)
    node.sandboxed = True
    answers = [
        await node.provider.answer(
            identity.generate().peer_id, make_call(DENSE.program_id, secrets.token_hex(16))
        )
        for _ in range(3)
    ]
    assert all(isinstance(answer, Bid) for answer in answers[:2])
    assert answers[2].reason is Reason.BUSY
    assert isinstance((await bid_for(node))[1], Bid)


async def test_a_price_counts_only_what_its_requester_is_known_to_have(node):
    await node.spec()
    known, size_bytes = node.house.known, 1 << 30

    async def price(program):
        return (await bid_for(node, program, program_bytes=size_bytes))[1].price

    dear = await price(NOWHERE)
    assert await price(DENSE.program_id) == dear
    known.note(FRIEND.peer_id, [DENSE.program_id])
    part = await price(DENSE.program_id)
    known.note(FRIEND.peer_id, DENSE.blobs)
    assert await price(DENSE.program_id) < part < dear


async def test_inputs_larger_than_the_units_memory_are_not_read(node):
    await node.spec()
    large = to_blob(np.zeros((MIB, 4), np.float32))
    node.house.known.note(FRIEND.peer_id, [await node.blobs.put_bytes(large)])
    call, _ = await lease_for(node, memory_bytes=MIB)
    unit = UnitRequest(call=call.call, unit="large", inputs=(("x", blob_id_of(large)),))
    answer = await node.provider.answer(FRIEND.peer_id, unit)
    assert answer.reason is Reason.PROGRAM_REFUSED
    assert "memory" in answer.detail


async def test_nothing_stays_granted_or_pinned_after_a_unit_that_was_released_while_it_ran(
    tmp_path,
):
    output = to_blob(np.zeros((MIB // 8, 4), np.float32))  # too large to travel inline
    async with open_node(tmp_path, quota_bytes=64 * MIB) as node:
        await node.spec()
        output_id = await output_of(node, output)
        for turns in range(60):  # at each of its steps
            call, _ = await lease_for(node)
            unit = UnitRequest(call=call.call, unit="u", inputs=(("x", blob_id_of(output)),))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.provider.answer, FRIEND.peer_id, unit)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                await node.provider.answer(FRIEND.peer_id, Release(call=call.call))
            assert node.provider.units_waiting == 0
            assert not node.rights.allows(FRIEND.peer_id, output_id)
        await node.blobs.put_bytes(bytes(63 * MIB))  # pushes out all that nobody pins
        assert not node.blobs.holds(DENSE.program_id)


async def output_of(node, blob):
    """The id of what the program makes of an input, which is stored too."""
    node.house.known.note(FRIEND.peer_id, [await node.blobs.put_bytes(blob)])
    call, _ = await lease_for(node)
    unit = UnitRequest(call=call.call, unit="first", inputs=(("x", blob_id_of(blob)),))
    result = await node.provider.answer(FRIEND.peer_id, unit)
    await node.provider.answer(FRIEND.peer_id, Release(call=call.call))
    return BlobId(open_receipt(result.receipt).outputs[0][1])


# --- when its owner wants the device back ---------------------------------------------------

PAUSED = Stance(Cause.PAUSED)
ENDLESS = convert(models.slow(10**9))
SLOW = convert(models.slow(100_000))


async def unit_of_a_friend(node, program, answers):
    """Give a unit of a peer to this node; its answer goes where it is looked for."""
    await node.spec(program=program)
    node.house.known.note(FRIEND.peer_id, program.blobs)
    call, _ = await lease_for(node, program=program.program_id)
    answers.append(await node.provider.answer(FRIEND.peer_id, unit_of(call, "u")))


async def it_runs(node):
    return node.provider.units_waiting


async def test_a_unit_that_runs_on_is_handed_back_and_the_device_serves_again_later(
    node, monkeypatch
):
    monkeypatch.setattr(providers, "HAND_BACK_AFTER_S", 0.0)
    answers = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unit_of_a_friend, node, ENDLESS, answers)
        await until(lambda: it_runs(node))
        node.stance = PAUSED
    assert answers[0].reason is Reason.PAUSED
    assert node.provider.units_waiting == 0
    _, refused = await bid_for(node)
    assert refused.reason is Reason.PAUSED
    node.stance = OPEN
    await unit_of_a_friend(node, DENSE, answers)
    assert isinstance(answers[1], UnitResult)


async def test_a_unit_that_ends_soon_is_not_handed_back(node):
    answers = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unit_of_a_friend, node, SLOW, answers)
        await until(lambda: it_runs(node))
        node.stance = PAUSED
    assert isinstance(answers[0], UnitResult)


async def test_a_lease_of_a_closed_device_takes_no_new_unit(node):
    await node.spec()
    call, _ = await lease_for(node)
    node.stance = PAUSED
    answer = await node.provider.answer(FRIEND.peer_id, unit_of(call, "late"))
    assert answer.reason is Reason.PAUSED


async def test_the_time_that_a_unit_gets_begins_anew_with_each_pause(node):
    answers = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unit_of_a_friend, node, ENDLESS, answers)
        await until(lambda: it_runs(node))
        (conversation,) = node.provider._conversations.values()
        (running,) = conversation.running.values()
        began_s, limit_s = trio.current_time(), providers.HAND_BACK_AFTER_S
        for at_s, stance in (
            (0.0, PAUSED),
            (limit_s - 1, OPEN),
            (limit_s + 1, PAUSED),
            (2 * limit_s, PAUSED),
        ):
            node.stance = stance
            node.provider._hand_back(conversation, began_s + at_s)
            assert running.refusal is None
        node.provider._hand_back(conversation, began_s + 2 * limit_s + 1)
        assert running.refusal.reason is Reason.PAUSED
    assert answers[0].reason is Reason.PAUSED


async def test_the_owners_job_runs_here_in_a_pause_for_peers_and_waits_in_one_of_the_device(
    node, monkeypatch
):
    monkeypatch.setitem(setbacks.COOL_DOWN_S, Reason.PAUSED, 0.0)
    node.stance = PAUSED
    job = await node.ended((await node.jobs.submit(await node.spec(X))).id)
    assert job.state is JobState.DONE
    node.stance = Stance(Cause.PAUSED, own=False)
    job = await node.jobs.submit(await node.spec(X))

    async def it_was_told_so():
        return [a.verdict for a in await node.journal.answers(job.id)][-1:] == ["paused"]

    await until(it_was_told_so)
    assert not (await node.journal.job(job.id)).state.final
    node.stance = OPEN
    assert (await node.ended(job.id)).state is JobState.DONE


class HandsOneBack(Liar):
    """Takes two units, gives the second one back at once, and ends the first when told."""

    OUTPUT = to_blob(models.rows(3))

    def __init__(self, key, network):
        super().__init__(key, network)
        self.handed_back, self.go_on = trio.Event(), trio.Event()

    def bid(self, request):
        return super().bid(request, in_flight_max=2)

    async def answer(self, peer, body):
        if not isinstance(body, UnitRequest):
            return await super().answer(peer, body)
        if body.unit.endswith("/1"):
            self.handed_back.set()
            return Refusal(call=body.call, reason=Reason.PAUSED, detail="for a test")
        await self.go_on.wait()
        return self.result(body, blobs=(self.OUTPUT,))


async def test_what_a_pausing_provider_still_has_in_hand_is_waited_for_and_taken(node):
    node.offering.clear()
    async with open_peer(HandsOneBack, node) as pausing:
        job = await node.jobs.submit(await node.spec(X, X))
        with trio.fail_after(LIMIT_S):
            await pausing.handed_back.wait()

        async def the_first_one_is_done():
            return (await node.journal.job(job.id)).units_done

        pausing.go_on.set()
        await until(the_first_one_is_done)
        node.offering.append(node.key.peer_id)
        assert (await node.ended(job.id)).state is JobState.DONE
        units = await node.journal.units(job.id, 0, 10)
    assert [unit.provider for unit in units] == [pausing.key.peer_id, node.key.peer_id]
    verdicts = [a.verdict for a in await node.journal.answers(job.id)]
    assert "paused" in verdicts


# --- when the daemon drains -----------------------------------------------------------------


async def test_a_drain_waits_for_a_unit_and_then_for_its_requester_to_let_go(node):
    answers, over = [], trio.Event()

    async def drain():
        await node.provider.idle()
        over.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(unit_of_a_friend, node, SLOW, answers)
        await until(lambda: it_runs(node))
        node.draining = True

        async def it_is_answered():
            return answers

        await until(it_is_answered)
        assert isinstance(answers[0], UnitResult)
        nursery.start_soon(drain)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not over.is_set()  # the outputs may not have been fetched yet
        ((_, call),) = node.provider._conversations
        late = await node.provider.answer(
            FRIEND.peer_id, UnitRequest(call=call, unit="late", inputs=(("x", blob_id_of(X)),))
        )
        assert late.reason is Reason.DRAINING
        await node.provider.answer(FRIEND.peer_id, Release(call=call))
        with trio.fail_after(5):
            await over.wait()
    assert node.provider.refused[Reason.DRAINING] == 1


async def test_a_unit_that_outlasts_a_drain_is_handed_back_by_it_and_by_nothing_before(node):
    answers = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(unit_of_a_friend, node, ENDLESS, answers)
        await until(lambda: it_runs(node))
        node.draining = True
        (conversation,) = node.provider._conversations.values()
        (running,) = conversation.running.values()
        for at_s in (0.0, 1e6):
            node.provider._hand_back(conversation, trio.current_time() + at_s)
        assert running.refusal is None
        node.provider.hand_back(Reason.DRAINING, "for a test")
    assert (answers[0].reason, answers[0].detail) == (Reason.DRAINING, "for a test")
    assert node.provider.units_waiting == 0


async def test_a_draining_requester_waits_for_what_is_out_and_keeps_the_rest(node):
    job = await node.jobs.submit(await node.spec(*[X] * 8, program=SLOW))

    async def one_is_done():
        return (await node.journal.job(job.id)).units_done

    await until(one_is_done)
    node.jobs.drain()
    with trio.fail_after(LIMIT_S):
        await node.jobs.idle()
    assert (node.jobs.units_out, node.jobs.leases(job.id)) == (0, 0)
    kept = await node.journal.job(job.id)
    assert (kept.state, kept.units_failed) == (JobState.RUNNING, 0)
    assert 1 <= kept.units_done < 8
    assert node.jobs.units_waiting == 8 - kept.units_done
    assert node.jobs.units_ended == {UnitState.DONE: kept.units_done}
    assert len(await node.journal.open_units(job.id)) == 8 - kept.units_done
    with pytest.raises(JobError) as caught:
        await node.jobs.submit(await node.spec(X))
    assert caught.value.code == "draining"
    node.jobs._state.draining = False  # the next start takes it up
    assert (await node.ended(job.id)).state is JobState.DONE
    assert node.jobs.jobs_ended == {JobState.DONE: 1}


async def test_a_job_that_is_cancelled_while_its_node_drains_is_not_waited_for(node):
    job = await node.jobs.submit(await node.spec(X, program=ENDLESS))
    await until(lambda: it_runs(node))
    node.jobs.drain()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.jobs.idle)
        await trio.testing.wait_all_tasks_blocked(0.01)
        await node.jobs.cancel(job.id)
        nursery.cancel_scope.deadline = trio.current_time() + 10
    assert not nursery.cancel_scope.cancelled_caught
