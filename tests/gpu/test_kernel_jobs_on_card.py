"""Jobs of users' kernels through a daemon with a real card, and their receipts.

In a rehearsal the daemon has no card, and a model's job on its CPU stands in.
"""

from importlib.util import find_spec

import pytest
from rehearsal import REHEARSED

if find_spec("libp2p") is None:
    pytest.skip("libp2p is not installed, which a daemon takes", allow_module_level=True)

import models
import numpy as np
from daemons import eventually, shoal
from kernel_cases import INPUTS, assert_right, lowered

from shoal.compute.convert import convert
from shoal.crypto import identity
from shoal.node.demo.swarm import Node
from shoal.node.records import JobState
from shoal.protocol.statements import open_receipt

pytestmark = pytest.mark.gpu

PROBED_LIMIT_S = 300
NUMERIC_CLASS, EXECUTOR = ("fp32", "onnxruntime") if REHEARSED else ("kernel", "triton")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    if REHEARSED:
        return {"model": convert(models.dense())}
    return lowered(tmp_path_factory.mktemp("kernels"))[0]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    home = tmp_path_factory.mktemp("daemon")
    key = identity.generate()
    identity.save(key, home / "identity.key")
    node = Node(1, home, key.peer_id)
    flags = ("--detach", "--listen=/ip4/127.0.0.1/tcp/0")
    started = shoal("up", *flags, "--json", node=node)
    assert started.code == 0, started

    def offered():
        with node.client() as client:
            return any(EXECUTOR in device.executors for device in client.devices())

    try:
        eventually(offered, PROBED_LIMIT_S, f"the daemon offers {EXECUTOR}")
        yield node
    finally:
        ended = shoal("down", node=node)
    assert ended.code == 0, ended


@pytest.mark.parametrize(
    "name", ["model"] if REHEARSED else ["softmax", "add_multiply", "product"]
)
def test_a_job_of_it_runs_and_its_receipt_verifies(daemon, programs, name):
    inputs = {"x": models.rows(3)} if REHEARSED else INPUTS[name]
    with daemon.client() as client:
        found = client.run(programs[name], inputs, timeout_s=120)
        job = client.jobs(1)[0]
        assert (job.state, job.numeric_class) == (JobState.DONE, NUMERIC_CLASS)
        (receipt,) = [open_receipt(client.receipt(one)) for one in client.receipts(job.id)]
    if REHEARSED:
        assert np.isfinite(found["y"]).all()
    else:
        assert_right(name, found)
    assert receipt.error is None
    assert receipt.program == programs[name].program_id
    assert receipt.numeric_class == NUMERIC_CLASS
    assert receipt.runtime.startswith(f"{EXECUTOR} ")
