"""A real fraud proof, judged by a real worker, and what comes of it at two nodes."""

from functools import partial

import msgpack
import pytest
from conviction_nodes import NOW_S, a_proof, open_node, until
from fraud_samples import Accused, bit_flipped, data_of, lying, proof_against, small
from strategies import BOB

from shoal.compute.supervisor import open_worker
from shoal.crypto.content import blob_id_of
from shoal.crypto.errors import VerificationError
from shoal.node.believed_proofs import Charge
from shoal.node.docket import End
from shoal.node.trials import charge_of, judged_by
from shoal.protocol.verification.fraud_proof import Outcome

MEMORY_BYTES = 2 << 30


@pytest.fixture(scope="module")
def proof():
    """Of one operator whose output has a flipped bit, with the blobs to check it."""
    sample = small()
    with lying("biased", bit_flipped):
        leaves = sample.leaves()
    proof, blobs = proof_against(Accused(sample, leaves))
    return data_of(proof), blobs


@pytest.fixture
async def judge():
    async with open_worker(threads=1) as worker:
        yield partial(judged_by, worker, MEMORY_BYTES)


def test_a_charge_is_read_before_anything_is_computed(proof):
    data, _ = proof
    assert charge_of(data) == Charge(BOB.peer_id, NOW_S)
    for wrong in (b"", a_proof(), data[:-1], data.replace(b"operator", b"wirings!", 1)):
        with pytest.raises(VerificationError):
            charge_of(wrong)


@pytest.mark.parametrize("change", [{"version": 1, "tile": None}, {"version": 3}], ids=str)
def test_a_proof_in_the_form_of_another_version_is_left_open(proof, change):
    other = msgpack.packb(msgpack.unpackb(proof[0]) | change)
    with pytest.raises(VerificationError) as caught:  # and not held to be false
        charge_of(other)
    assert caught.value.code == "version_unsupported"


async def test_the_worker_convicts_by_a_true_proof_and_leaves_it_open_without_its_blobs(
    proof, judge
):
    data, blobs = proof
    verdict = await judge(data, blobs)
    assert (verdict.outcome, verdict.accused) == (Outcome.CONVICTED, BOB.peer_id)
    assert verdict.sentence
    some = dict(list(blobs.items())[1:])
    assert (await judge(data, some)).outcome is Outcome.UNDECIDED


async def test_the_proof_of_an_honest_result_acquits(judge):
    sample = small()
    proof, blobs = proof_against(Accused(sample, sample.leaves(), traces=False))
    assert proof.kind == "unit"
    assert (await judge(data_of(proof), blobs)).outcome is Outcome.ACQUITTED


async def test_a_real_proof_bans_at_one_node_and_then_at_its_link(tmp_path, proof, judge):
    data, blobs = proof
    async with open_node(tmp_path / "first") as first, open_node(tmp_path / "second") as second:
        for node in (first, second):
            node.known.add(BOB.peer_id)
            node.convictions.judge, node.convictions.read = judge, charge_of
        await first.meets(second)
        verdict = await first.convictions.convict(data, blobs)
        assert verdict.outcome is Outcome.CONVICTED
        await until(lambda: second.bans(BOB.peer_id))
        assert second.ended == {End.PROVED: 1}
        (view,) = second.convictions.proofs()
        assert view.id == blob_id_of(data)
        assert set(view.blobs) == set(blobs)
