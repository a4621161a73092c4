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


def submit_chain(client, given):
    """Three jobs, each of which takes what the one before gives; only the last sends it."""
    jobs = [client.submit(models.dense(), [{"x": x} for x in given], outputs_stay=True)]
    for stage in range(1, STAGES):
        before = jobs[-1]
        units = [{"x": shoal.OutputRef(before.id, k, "y")} for k in range(UNITS)]
        jobs.append(client.submit(models.dense(), units, outputs_stay=stage < STAGES - 1))
    return jobs


def wait_done(client, jobs):
    for job in jobs:
        ended = client.wait(job.id, LIMIT_S)
        assert ended.state is JobState.DONE, (ended, client.why(job.id))
        assert ended.units_done == UNITS


def traffic(client):
    """Bytes over the submitter's streams, by direction and protocol."""
    found = re.findall(
        r'^shoal_stream_(sent|received)_bytes_total\{protocol="(\w+)"\} (\S+)$',
        client.metrics(),
        re.MULTILINE,
    )
    return {(way, protocol): int(float(count)) for way, protocol, count in found}


def stored(node):
    """The ids of all blobs in a daemon's store, by the names of its files."""
    return {path.name for path in Path(node.home, "blobs").rglob("*") if len(path.name) == 64}


def outputs_of(client, job):
    return {unit.outputs["y"] for unit in client.units(job.id, 0, UNITS)}


def assert_right(client, jobs, given):
    """Every unit has one receipt, for the inputs that the stage before gave, and the end is
    what it is in this process."""
    wanted = locally(given)
    for index, y in enumerate(wanted):
        found = client.outputs(jobs[-1].id, index)["y"]
        np.testing.assert_allclose(found, y, rtol=TOLERANCE, atol=TOLERANCE)
    before = None
    for job in jobs:
        units = client.units(job.id, 0, UNITS)
        receipts = [open_receipt(client.receipt(r)) for r in client.receipts(job.id)]
        assert sorted(r.unit for r in receipts) == sorted(f"{job.id}/{u.index}" for u in units)
        if before is not None:
            for unit in units:
                made = before[unit.index].outputs["y"]
                assert dict(unit.inputs)["x"] == made
        before = units


def test_what_lies_between_the_stages_never_passes_through_the_submitter(chain):
    submitter, given = chain.nodes[0], inputs()
    with submitter.client() as client:
        jobs = submit_chain(client, given)
        wait_done(client, jobs)
        between = set().union(*(outputs_of(client, job) for job in jobs[:-1]))
        assert len(between) == UNITS * (STAGES - 1)
        held = stored(submitter)
        seen = traffic(client)
        assert_right(client, jobs, given)
        providers = {u.provider for job in jobs for u in client.units(job.id, 0, UNITS)}
    assert held.isdisjoint(between)
    assert submitter.peer not in providers
    came = sum(count for (way, _), count in seen.items() if way == "received")
    given_bytes = UNITS * OUTPUT_BYTES
    print(
        f"\n{STAGES} stages of {UNITS} units, {OUTPUT_BYTES} bytes each; between the stages "
        f"{len(between)} outputs, {len(between) * OUTPUT_BYTES} bytes; of them in the "
        f"submitter's store: {len(held & between)}; all bytes over the submitter's streams: "
        f"{seen}; results of the last stage: {given_bytes}"
    )
    # What came is the last stage's outputs, receipts and talk: of what lay between, nothing.
    assert given_bytes <= came < given_bytes * 1.15
    sent = sum(count for (way, _), count in seen.items() if way == "sent")
    assert given_bytes <= sent < given_bytes * 1.3  # the inputs of the first stage, and talk


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
