"""Large tensors between two daemons: by bulk channel, by stream where that is off, and over
the submitter's death.

The figures are printed: ``pytest -s -k large tests/e2e/test_bulk.py``.
"""

import re
import time

import models
import numpy as np
import onnxruntime
import pytest
from daemons import eventually, shoal

from shoal.node.demo.swarm import Swarm
from shoal.node.records import JobState

MIB = 1 << 20
SIZE_BYTES = 128 * MIB
BY_STREAM_BYTES = 64 * MIB
"""Less where it takes several times as long."""

LIMIT_S = 180
TOLERANCE = 1e-5


@pytest.fixture
def two(request):
    """A submitter that runs nothing itself, and a provider."""
    with Swarm(2, settings=getattr(request, "param", ())) as swarm:
        submitter, provider = swarm.nodes
        (submitter.home / "config.toml").write_text("provide = false\n")
        swarm.start_all()
        with submitter.client() as client:
            client.pause("cpu")
            eventually(
                lambda: any(
                    v.peer == provider.peer and v.numeric_classes for v in client.peers()
                ),
                60,
                "the submitter knows the provider",
            )
        yield swarm


def large(size_bytes):
    random = np.random.default_rng(7)
    return random.random((size_bytes // 4 // models.WIDTH, models.WIDTH), dtype=np.float32)


def wanted(x):
    return onnxruntime.InferenceSession(models.dense()).run(None, {"x": x})[0]


def moved(node, way, protocol):
    """Bytes that a daemon sent or received by one protocol."""
    with node.client() as client:
        found = re.search(
            rf'^shoal_stream_{way}_bytes_total\{{.*protocol="{protocol}".*\}} (\S+)$',
            client.metrics(),
            re.MULTILINE,
        )
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize(
    ("two", "protocol", "size_bytes"),
    [((), "bulk", SIZE_BYTES), (("--bulk=off",), "blob", BY_STREAM_BYTES)],
    indirect=["two"],
    ids=["bulk", "blob"],
)
def test_a_large_tensor_goes_there_and_back_and_the_daemons_stay_well(
    two, protocol, size_bytes
):
    submitter, provider = two.nodes
    x = large(size_bytes)
    with submitter.client() as client:
        began = time.monotonic()
        job = client.submit(models.dense(), [{"x": x}])
        ended = client.wait(job.id, LIMIT_S)
        took_s = time.monotonic() - began
        assert ended.state is JobState.DONE, client.why(job.id)
        assert np.allclose(client.outputs(job.id, 0)["y"], wanted(x), TOLERANCE, TOLERANCE)
    print(f"{protocol}: 2 × {size_bytes // MIB} MiB in {took_s:.1f} s, all included")
    other = {"bulk": "blob", "blob": "bulk"}[protocol]
    for node, way in ((provider, "received"), (submitter, "received")):
        assert size_bytes < moved(node, way, protocol) < size_bytes + MIB
        assert moved(node, way, other) < MIB
    with submitter.client() as client:
        (view,) = client.peers()
    ways = (view.bulk_received_bytes, view.bulk_sent_bytes)
    assert view.peer == provider.peer
    assert all(SIZE_BYTES < count < SIZE_BYTES + MIB for count in ways) == (protocol == "bulk")
    assert protocol == "bulk" or ways == (0, 0)
    for node in two.nodes:
        status = shoal("status", "--json", node=node).json
        assert (status["bulk"] > 0) == (protocol == "bulk")
        assert "a peer broke the rules" not in node.log_path.read_text()


def test_a_submitter_that_is_killed_in_the_middle_is_sent_nothing_again(two):
    submitter = two.nodes[0]
    x = large(SIZE_BYTES)
    with submitter.client() as client:
        job = client.submit(models.dense(), [{"x": x}])
    partial = submitter.home / "blobs" / "partial"

    def half_way():
        sizes = [path.stat().st_size for path in partial.glob("*") if not path.suffix]
        return max(sizes, default=0) > SIZE_BYTES // 4

    deadline = time.monotonic() + LIMIT_S
    while not half_way():
        assert time.monotonic() < deadline
        time.sleep(0.002)
    submitter.kill()
    kept = max(path.stat().st_size for path in partial.glob("*") if not path.suffix)
    assert kept < SIZE_BYTES
    two.start(submitter)
    two.wait_ready(submitter)
    with submitter.client() as client:
        ended = client.wait(job.id, LIMIT_S)
        assert ended.state is JobState.DONE, client.why(job.id)
        assert np.allclose(client.outputs(job.id, 0)["y"], wanted(x), TOLERANCE, TOLERANCE)
    assert moved(submitter, "received", "bulk") < SIZE_BYTES - kept + MIB
    assert moved(submitter, "received", "blob") < MIB
