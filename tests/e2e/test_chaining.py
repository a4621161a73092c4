"""A chain of three stages of fifty units: what lies between them never comes to the submitter.

Four daemons, of which one submits and runs nothing. Also what becomes of such a chain when a
provider is killed in the middle of it, or the submitter's own daemon is.
"""

import re
from pathlib import Path

import models
import numpy as np
import onnxruntime
import pytest
from daemons import eventually

import shoal
from shoal.node.demo.swarm import Swarm
from shoal.node.records import JobState
from shoal.protocol.statements import open_receipt

UNITS = 50
ROWS = 6250
OUTPUT_BYTES = ROWS * models.WIDTH * 4  # 100 kB
STAGES = 3
LIMIT_S = 240
TOLERANCE = 1e-5


@pytest.fixture
def chain():
    """A submitter that runs nothing itself, and three providers."""
    with Swarm(4) as swarm:
        submitter = swarm.nodes[0]
        (submitter.home / "config.toml").write_text("provide = false\n")
        swarm.start_all()
        with submitter.client() as client:
            client.pause("cpu")
            peers = {node.peer for node in swarm.nodes[1:]}
            eventually(
                lambda: peers <= {view.peer for view in client.peers() if view.numeric_classes},
                60,
                "the submitter knows the providers",
            )
        yield swarm


def inputs():
    random = np.random.default_rng(5)
    return [random.normal(size=(ROWS, models.WIDTH)).astype(np.float32) for _ in range(UNITS)]


def locally(arrays, stages=STAGES):
    session = onnxruntime.InferenceSession(models.dense())
    for _ in range(stages):
        arrays = [session.run(None, {"x": x})[0] for x in arrays]
    return arrays


def submit_chain(client, given, stages=STAGES, *, last_stays=False):
    """Jobs, each of which takes what the one before gives; only the last sends it."""
    jobs = [client.submit(models.dense(), [{"x": x} for x in given], outputs_stay=True)]
    for stage in range(1, stages):
        before = jobs[-1]
        units = [{"x": shoal.OutputRef(before.id, k, "y")} for k in range(UNITS)]
        jobs.append(
            client.submit(models.dense(), units, outputs_stay=last_stays or stage < stages - 1)
        )
    return jobs


def wait_done(client, jobs):
    for job in jobs:
        ended = client.wait(job.id, LIMIT_S)
        assert ended.state is JobState.DONE, (ended, client.why(job.id))
        assert ended.units_done == UNITS


def traffic(client):
    """Bytes over all of the submitter's streams until now, by direction."""
    found = re.findall(
        r"^shoal_stream_(sent|received)_bytes_total\{.*\} (\S+)$",
        client.metrics(),
        re.MULTILINE,
    )
    ways = {way for way, _ in found}
    return {each: sum(int(float(n)) for way, n in found if way == each) for each in ways}


def since(before, client):
    return {way: count - before.get(way, 0) for way, count in traffic(client).items()}


def stored(node):
    """The ids of all blobs in a daemon's store, by the names of its files."""
    return {path.name for path in Path(node.home, "blobs").rglob("*") if len(path.name) == 64}


def outputs_of(client, job):
    return {unit.outputs["y"] for unit in client.units(job.id, 0, UNITS)}


def assert_right(client, jobs, given):
    """The end is what it is in this process, and every unit has one receipt, for what the
    stage before gave."""
    wanted = locally(given)
    for index, y in enumerate(wanted):
        found = client.outputs(jobs[-1].id, index)["y"]
        np.testing.assert_allclose(found, y, rtol=TOLERANCE, atol=TOLERANCE)
    before = None
    for job in jobs:
        units = client.units(job.id, 0, UNITS)
        receipts = [open_receipt(client.receipt(r)) for r in client.receipts(job.id)]
        assert [r.unit for r in receipts] == [f"{job.id}/{unit.index}" for unit in units]
        if before is not None:
            took = [dict(receipt.inputs)["x"] for receipt in receipts]
            assert took == [unit.outputs["y"] for unit in before]
        before = units


def test_what_lies_between_the_stages_never_passes_through_the_submitter(chain):
    submitter, given = chain.nodes[0], inputs()
    with submitter.client() as client:
        before = traffic(client)
        jobs = submit_chain(client, given, stages=STAGES - 1, last_stays=True)
        wait_done(client, jobs)
        between = set().union(*(outputs_of(client, job) for job in jobs))
        two_stages = since(before, client)
        before = traffic(client)
        units = [{"x": jobs[-1].output(k, "y")} for k in range(UNITS)]
        jobs.append(client.submit(models.dense(), units))
        wait_done(client, jobs)
        last_stage = since(before, client)
        held = stored(submitter)
        assert_right(client, jobs, given)
        providers = {u.provider for job in jobs for u in client.units(job.id, 0, UNITS)}
    stage_bytes = UNITS * OUTPUT_BYTES
    print(
        f"\n{STAGES} stages of {UNITS} units with outputs of {OUTPUT_BYTES} bytes; "
        f"{len(between)} of them between the stages, {len(between) * OUTPUT_BYTES} bytes, and "
        f"of these in the submitter's store: {len(held & between)}\n"
        "bytes over the submitter's streams: "
        f"{two_stages} for the first two stages, {last_stage} for the last, whose results "
        f"have {stage_bytes}"
    )
    assert len(between) == UNITS * (STAGES - 1)
    assert held.isdisjoint(between)
    assert submitter.peer not in providers
    # Receipts and talk came of the first two stages, and no output of the 100; and none of
    # the inputs of the last stage went out.
    talk_bytes = stage_bytes // 10
    assert two_stages["received"] < talk_bytes
    assert last_stage["sent"] < talk_bytes
    assert stage_bytes <= last_stage["received"]  # a unit that was run twice may come twice


@pytest.mark.soak
def test_a_provider_is_killed_in_the_middle_and_all_is_right(chain):
    submitter, victim, given = chain.nodes[0], chain.nodes[2], inputs()
    with submitter.client() as client:
        jobs = submit_chain(client, given)
        eventually(
            lambda: (
                any(
                    unit.provider == victim.peer and unit.outputs
                    for unit in client.units(jobs[0].id, 0, UNITS)
                )
                and client.job(jobs[1].id).units_done >= 3
            ),
            LIMIT_S,
            "outputs are left with the victim",
        )
        victim.kill()
        wait_done(client, jobs)
        assert_right(client, jobs, given)


@pytest.mark.soak
def test_the_submitters_daemon_is_killed_in_the_middle_and_all_is_right(chain):
    submitter, given = chain.nodes[0], inputs()
    with submitter.client() as client:
        jobs = submit_chain(client, given)
        eventually(
            lambda: client.job(jobs[1].id).units_done >= 3, LIMIT_S, "the second stage runs"
        )
    submitter.kill()
    chain.start(submitter)
    chain.wait_ready(submitter)
    with submitter.client() as client:
        wait_done(client, jobs)
        between = set().union(*(outputs_of(client, job) for job in jobs[:-1]))
        assert stored(submitter).isdisjoint(between)
        assert_right(client, jobs, given)


@pytest.mark.soak
def test_an_output_that_stayed_is_had_when_it_is_asked_for_and_made_anew_when_it_is_lost(
    chain,
):
    submitter, given = chain.nodes[0], inputs()[:4]
    with submitter.client() as client:
        job = client.submit(models.dense(), [{"x": x} for x in given], outputs_stay=True)
        assert client.wait(job.id, LIMIT_S).state is JobState.DONE
        wanted = locally(given, 1)
        first = client.outputs(job.id, 0)["y"]
        np.testing.assert_allclose(first, wanted[0], rtol=TOLERANCE, atol=TOLERANCE)
        for node in chain.nodes[1:]:
            node.kill()
            chain.start(node)
            chain.wait_ready(node)
        with pytest.raises(shoal.ShoalError) as caught:
            client.outputs(job.id, 1)
        assert caught.value.code == "computed_again"
        assert client.wait(job.id, LIMIT_S).state is JobState.DONE
        again = client.outputs(job.id, 1)["y"]
        np.testing.assert_allclose(again, wanted[1], rtol=TOLERANCE, atol=TOLERANCE)
        kept = client.outputs(job.id, 0)["y"]  # it was here
        np.testing.assert_array_equal(kept, first)
