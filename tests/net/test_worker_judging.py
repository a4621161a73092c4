"""Fraud proofs judged in real locked-in workers, each in a process of its own."""

import fraud_samples as samples
import numpy as np
import pytest
import trio
import trio.testing
from test_worker import program_of

from shoal.compute import accusing, priority
from shoal.compute.errors import ComputeError
from shoal.compute.frames import UnitLimits
from shoal.compute.supervisor import open_worker
from shoal.crypto.content import blob_id_of
from shoal.protocol.verification import fraud_proof

LIMIT_S = 60.0
LIMITS = UnitLimits(time_s=20.0, memory_bytes=1 << 30, output_bytes=1 << 20)
PROCESSOR_S = 20.0


def unit_proof(sample, said):
    award = samples.an_award(sample)
    receipt = samples.a_receipt(sample, award, said)
    return fraud_proof.encode(accusing.unit_proof(award, receipt))


def long_unit():
    """A product that the reference needs minutes for."""
    program = program_of(
        "g (float[n, 4096] x) => (float y) "
        "{ t = Transpose(x) p = MatMul(t, x) q = MatMul(p, p) y = MatMul(q, q) }",
        "x20",
    )
    x = np.ones((4, 4096), np.float32)
    return samples.Sample(program.program_id, dict(program.blobs), {"x": x})


@pytest.fixture
async def worker():
    async with open_worker(threads=1) as opened:
        with trio.fail_after(LIMIT_S):
            yield opened


async def test_a_false_receipt_convicts_and_a_right_one_acquits(worker):
    sample = samples.small()
    right = sample.outputs(sample.leaves())
    false = {**right, "y": blob_id_of(b"another")}
    for said, outcome in ((false, "convicted"), (right, "acquitted")):
        verdict = await worker.judge(
            unit_proof(sample, said), sample.blobs, LIMITS, PROCESSOR_S
        )
        assert verdict.outcome == outcome, verdict
        assert verdict.accused == samples.BOB.peer_id
        assert verdict.sentence


async def test_what_is_no_proof_acquits_and_what_lacks_its_blobs_is_undecided(worker):
    sample = samples.small()
    verdict = await worker.judge(b"no proof", {}, LIMITS, PROCESSOR_S)
    assert (verdict.outcome, verdict.accused) == ("acquitted", None)
    proof = unit_proof(sample, {"y": blob_id_of(b"y"), "z": blob_id_of(b"z")})
    assert (await worker.judge(proof, {}, LIMITS, PROCESSOR_S)).outcome == "undecided"
    wrong = dict.fromkeys(sample.blobs, b"another")
    assert (await worker.judge(proof, wrong, LIMITS, PROCESSOR_S)).outcome == "undecided"


async def test_each_proof_has_a_process_of_its_own_and_units_keep_theirs(worker):
    await worker.probe()
    pids, started = worker.pids, worker.processes_started
    for _ in range(2):
        await worker.judge(b"no proof", {}, LIMITS, PROCESSOR_S)
    assert worker.processes_started == started + 2
    assert worker.pids == pids


async def test_a_proof_made_to_take_long_ends_at_its_limit_and_holds_up_no_unit(worker):
    sample = long_unit()
    proof = unit_proof(sample, {"y": blob_id_of(b"y")})
    short = UnitLimits(time_s=1.0, memory_bytes=1 << 30, output_bytes=1 << 20)
    async with trio.open_nursery() as nursery:

        async def judge():
            with pytest.raises(ComputeError) as refused:
                await worker.judge(proof, sample.blobs, short, PROCESSOR_S)
            assert refused.value.code == "time_limit"

        nursery.start_soon(judge)
        await trio.testing.wait_all_tasks_blocked()
        assert not worker._rooms.taken
    verdict = await worker.judge(b"no proof", {}, LIMITS, PROCESSOR_S)
    assert verdict.outcome == "acquitted"


async def test_a_proof_that_takes_too_much_of_a_processor_ends_whatever_the_clock_says(
    worker, monkeypatch
):
    monkeypatch.setattr(priority, "LOWEST", priority.STARTING)  # or it takes the tests' time
    sample = long_unit()
    proof = unit_proof(sample, {"y": blob_id_of(b"y")})
    with pytest.raises(ComputeError) as refused:
        await worker.judge(proof, sample.blobs, LIMITS, 1.0)
    assert refused.value.code == "worker_died"
    assert 0 < worker.judging_s <= 1.0


async def test_what_judging_takes_of_a_processor_is_counted(worker):
    began_s = trio.current_time()
    await worker.judge(b"no proof", {}, LIMITS, PROCESSOR_S)
    assert 0 < worker.judging_s <= trio.current_time() - began_s


async def test_a_nodes_own_proof_waits_for_no_others_and_is_judged_like_a_unit_runs(
    worker, monkeypatch
):
    niceness, started = [], worker._starter.started

    async def noted(start):
        niceness.append(start.niceness)
        return await started(start)

    monkeypatch.setattr(worker._starter, "started", noted)
    sample = long_unit()
    proof = unit_proof(sample, {"y": blob_id_of(b"y")})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.judge, proof, sample.blobs, LIMITS, PROCESSOR_S)
        await trio.testing.wait_all_tasks_blocked()
        verdict = await worker.judge(b"no proof", {}, LIMITS, PROCESSOR_S, own=True)
        assert verdict.outcome == "acquitted"
        assert worker.judging_s == 0, "others' is judged still, and one's own is not counted"
        nursery.cancel_scope.cancel()
    assert niceness == [priority.LOWEST, priority.STARTING]


async def test_judging_is_cancelled_with_its_process(worker):
    sample = long_unit()
    proof = unit_proof(sample, {"y": blob_id_of(b"y")})
    with trio.move_on_after(2.0) as scope:
        await worker.judge(proof, sample.blobs, LIMITS, PROCESSOR_S)
    assert scope.cancelled_caught
    assert (await worker.judge(b"no proof", {}, LIMITS, PROCESSOR_S)).outcome == "acquitted"
