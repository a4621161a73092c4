"""What a provider can do to a job: it ends all the same, and as it should."""

import models
import numpy as np
import pytest
import trio
import trio.testing
from attacker import Liar
from job_nodes import LIMIT_S, Distrusts, X, open_node, open_peer, until

from shoal.compute.tensor import to_blob
from shoal.crypto.content import ChunkList
from shoal.node import jobs, pipeline
from shoal.node.blob_transfer import BLOB_PROTOCOL
from shoal.node.errors import StoreError
from shoal.node.frames import receive_frame, send_frame
from shoal.node.peer_versions import PeerVersions
from shoal.node.records import JobState
from shoal.node.scheduling import setbacks
from shoal.node.scheduling.feeding import BATCHES_OUT
from shoal.protocol.blob_messages import MESSAGE_LIMIT_BYTES, BlobFound, BlobRequest
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Reason,
    Refusal,
    Release,
    UnitRequest,
)
from shoal.protocol.versions import OWN


@pytest.fixture
async def node(tmp_path):
    async with open_node(tmp_path) as node:
        yield node


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


class RefusesTheAward(Liar):
    """And with it the units that came right behind."""

    def __init__(self, key, network):
        super().__init__(key, network)
        self.units = []

    def lease(self, offer):
        return Refusal(call=offer.call, reason=Reason.BUSY)

    def result(self, request):
        self.units.append(request.unit)
        return Refusal(call=request.call, reason=Reason.EXPIRED)


async def test_units_that_went_out_with_an_award_are_not_lost_where_it_is_refused(node):
    node.offering.clear()
    async with open_peer(RefusesTheAward, node) as busy:
        job = await node.jobs.submit(await node.spec(X))

        async def refused():
            return bool(await node.journal.answers(job.id))

        async def got_the_units():
            return busy.units == [f"{job.id}/0"]

        await until(refused)
        await until(got_the_units)
        queue = node.jobs._state.jobs[job.id]
        assert not queue.losses
        assert not queue.leased
        node.offering[:] = [node.key.peer_id]
        assert (await node.ended(job.id)).state is JobState.DONE
        answers = await node.journal.answers(job.id)
        assert {a.verdict for a in answers if a.peer == busy.key.peer_id} == {"busy"}


async def test_units_wait_for_the_lease_of_a_provider_that_is_too_old_to_take_them_before(
    node, monkeypatch
):
    monkeypatch.setattr(PeerVersions, "of", lambda _self, _peer: (OWN[0], 4))
    node.offering.clear()
    async with open_peer(RefusesTheAward, node) as busy:
        job = await node.jobs.submit(await node.spec(X))

        async def refused():
            return bool(await node.journal.answers(job.id))

        await until(refused)
        assert busy.units == []


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
