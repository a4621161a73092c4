"""Units are handed back when the owner wants the device, and when the daemon drains."""

import models
import pytest
import trio
import trio.testing
from attacker import Liar
from job_nodes import (
    DENSE,
    FRIEND,
    LIMIT_S,
    SLOW,
    X,
    bid_for,
    lease_for,
    open_node,
    open_peer,
    unit_of,
    until,
)

from shoal.compute.convert import convert
from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of
from shoal.node import provider as providers
from shoal.node.errors import JobError
from shoal.node.owner import OPEN, Cause, Stance
from shoal.node.records import JobState, UnitState
from shoal.node.scheduling import setbacks
from shoal.protocol.negotiation_messages import (
    Reason,
    Refusal,
    Release,
    UnitRequest,
    UnitResult,
)


@pytest.fixture
async def node(tmp_path):
    async with open_node(tmp_path) as node:
        yield node


# --- when its owner wants the device back ---------------------------------------------------

PAUSED = Stance(Cause.PAUSED)
ENDLESS = convert(models.slow(10**9))


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
        with trio.fail_after(LIMIT_S):
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
