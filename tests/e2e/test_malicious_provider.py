"""A provider that lies: it is found out, named, and an honest one does the work.

It bids nothing, so each job's only unit goes to it first.
"""

from contextlib import suppress
from itertools import count

import models
import numpy as np
import onnxruntime
import pytest
import trio
from attacker import HELLO, Liar, send_raw
from daemons import eventually, peers_of

from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node.control import CONTROL_PROTOCOL, open_control
from shoal.node.errors import DaemonError
from shoal.node.frames import receive_frame, send_frame
from shoal.node.network import open_network
from shoal.protocol.messages import Done, Hello, Request, Response
from shoal.protocol.negotiation_messages import Call

SEEDS = count(1000)
"""A program of its own for each test: where nobody was measured, the price decides."""

OTHER = b"another blob"
OTHER_ID = blob_id_of(OTHER)


class SendsAnotherOutput(Liar):
    """Its receipt names one output, and the bytes are another's."""

    code = "wrong_output_id"

    def result(self, request):
        return super().result(request, blobs=(OTHER,))


class KeepsItsOutput(Liar):
    """Its receipt names an output that nobody can fetch."""

    code = "protocol_unknown"

    def result(self, request):
        return super().result(request, blobs=())


class NamesABlobOfTheRequester(Liar):
    """Its receipt names what the requester holds, as if it had computed just that."""

    code = "protocol_unknown"

    def result(self, request):
        return super().result(request, blobs=())

    def receipt(self, request):
        return super().receipt(request, outputs=(("y", request.inputs[0][1]),))


class NamesOtherOutputs(Liar):
    """Its receipt is about outputs that the program does not have."""

    code = "wrong_outputs"

    def receipt(self, request):
        return super().receipt(request, outputs=(("z", blob_id_of(self.OUTPUT)),))


class SignsWithAnotherKey(Liar):
    """Its receipt speaks for it and is signed by somebody else."""

    code = "wrong_signer"

    def receipt(self, request):
        return super().receipt(request, key=identity.generate())


class SpeaksForAnother(Liar):
    """Its receipt is properly signed, by and for a node that was given nothing."""

    code = "receipt_mismatch"

    def receipt(self, request):
        key = identity.generate()
        return super().receipt(request, key=key, provider=key.peer_id)


class TellsOfAnotherUnit(Liar):
    """Its receipt is about a unit of its own making."""

    code = "receipt_mismatch"

    def receipt(self, request):
        return super().receipt(request, unit="another/0")


class TellsOfAnotherAward(Liar):
    """Its receipt names an award that nobody gave."""

    code = "receipt_mismatch"

    def receipt(self, request):
        return super().receipt(request, award=OTHER_ID)


class TellsOfOtherInputs(Liar):
    """Its receipt is about inputs that it was not given."""

    code = "receipt_mismatch"

    def receipt(self, request):
        return super().receipt(request, inputs=(("x", OTHER_ID),))


class AnswersAnotherUnit(Liar):
    """It answers a unit that it was not asked."""

    code = "unknown_unit"

    def result(self, request):
        return super().result(request, unit="another/0")


class SendsNoReceipt(Liar):
    """What it calls a receipt is no signed envelope."""

    code = "bad_envelope"

    def receipt(self, request):
        return b"trust me"


class BidsOnAnotherCall(Liar):
    """It bids on a call that nobody made."""

    code = "unknown_call"

    def bid(self, request):
        return super().bid(request, call="ab" * 16)


class AnswersACallWithDone(Liar):
    """It answers a call with a word that answers something else."""

    code = "unfitting_answer"

    def bid(self, request):
        return Done()


class LeasesAnotherAward(Liar):
    """Its lease is under an award that nobody gave."""

    code = "unknown_award"

    def lease(self, offer):
        return super().lease(offer, award=OTHER_ID)


KINDS = [kind for kind in Liar.__subclasses__() if kind.__module__ == __name__]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_a_provider_that_lies_is_named_and_an_honest_one_does_the_work(
    node, attacker_key, kind
):
    async with (
        open_network(attacker_key, ["/ip4/127.0.0.1/tcp/0"]) as network,
        open_control(network, "liar/1") as control,
    ):
        control.answer_with(kind(attacker_key, network).answer)
        await assert_named_and_replaced(node, network, kind.code)


async def test_a_provider_that_talks_garbage_is_named_and_an_honest_one_does_the_work(
    node, attacker_key
):
    async def talk(stream):
        while True:
            request = await receive_frame(stream, Request)
            if isinstance(request.body, Call):
                await send_raw(stream, b"\xc1 garbage")
            answer = HELLO if isinstance(request.body, Hello) else None
            answer = answer or await liar.answer(stream.remote, request.body)
            await send_frame(stream, Response(id=request.id, body=answer))

    async with open_network(attacker_key, ["/ip4/127.0.0.1/tcp/0"]) as network:
        liar = Liar(attacker_key, network)
        network.handle(CONTROL_PROTOCOL, talk)
        await assert_named_and_replaced(node, network, "not_msgpack")


async def assert_named_and_replaced(node, liar, code):
    """Run a unit, which goes to the liar first; `job why` tells, and the result is right.

    What no honest provider does costs it standing; that it cannot serve a blob does not.
    """
    await trio.to_thread.run_sync(forgive, node, liar.peer_id)
    await liar.connect(node.peer, [node.address.rpartition("/p2p/")[0]], 5.0)
    model = models.dense(next(SEEDS))
    answers, found = await trio.to_thread.run_sync(run_one_unit, node, liar.peer_id, model)
    assert (liar.peer_id, code) in answers
    offences = await trio.to_thread.run_sync(offences_of, node, liar.peer_id)
    assert bool(offences) == (code != "protocol_unknown"), offences
    session = onnxruntime.InferenceSession(model)
    (wanted,) = session.run(None, {"x": models.rows(3)})
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


def forgive(node, peer):
    """Let a peer back in that an earlier test may have had cut."""
    with node.client() as client, suppress(DaemonError):
        client.forgive(peer)


def offences_of(node, peer):
    """What a peer that is known did against the rules."""
    with node.client() as client:
        (view,) = [view for view in client.peers() if view.peer == peer]
    return view.standing and view.standing.offences


def run_one_unit(node, liar, model):
    """What the peers answered to a job of one unit, and what came of it."""
    eventually(lambda: liar in peers_of(node), 60, "the liar is known")
    with node.client() as client:
        outputs = client.run(model, {"x": models.rows(3)}, timeout_s=30)
        job = client.jobs(1)[0]
        (unit,) = client.units(job.id, 0, 10)
        answers, _ = client.why(job.id)
    assert unit.provider != liar
    return {(answer.peer, answer.verdict) for answer in answers}, outputs["y"]
