"""Users' kernels on a real card: their results beside torch's, hostile ones, and receipts."""

import os

import msgspec
import numpy as np
import pytest
import torch
import user_kernels
from daemons import eventually, shoal

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.base import Evidence
from shoal.compute.executors.triton import Triton
from shoal.compute.kernel_manifest import program_of
from shoal.compute.loading import load
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node.demo.swarm import Node
from shoal.node.records import JobState
from shoal.protocol.statements import open_receipt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET", "0") != "0",
        reason="under Triton's interpreter no IR is lowered or run: `make test-gpu`",
    ),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch finds no card"),
]
RANDOM = np.random.default_rng(11)
PROBED_LIMIT_S = 300


def floats(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


INPUTS = {
    "softmax": {"x": floats(300, 777)},
    "add_multiply": {"x": floats(100_001), "z": floats(100_001)},
    "product": {"a": floats(130, 70), "b": floats(70, 250)},
    "count_up": {"x": np.arange(37, dtype=np.int64)},
}


def expected(name, inputs):
    on_card = {n: torch.from_numpy(array).cuda() for n, array in inputs.items()}
    match name:
        case "softmax":
            return {"y": torch.softmax(on_card["x"], 1)}
        case "add_multiply":
            return {"y": 3 * on_card["x"] + on_card["z"]}
        case "product":
            return {"c": on_card["a"] @ on_card["b"]}
    return {"x": 2 * on_card["x"] + on_card["x"].numel()}  # what was there, and the count


def assert_right(name, found):
    right = expected(name, INPUTS[name])
    assert found.keys() == right.keys()
    for output, tensor in right.items():
        np.testing.assert_allclose(found[output], tensor.cpu().numpy(), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def programs():
    return user_kernels.programs()


@pytest.fixture(scope="module")
def executor():
    return Triton("cuda:0")


def test_the_canary_runs(executor):
    assert executor.probe().evidence is Evidence.EXECUTED


@pytest.mark.parametrize("name", INPUTS)
def test_a_kernel_gives_what_torch_gives(executor, programs, name):
    program = programs[name]
    handle = executor.prepare(load(program.program_id, program.blobs))
    for _ in range(2):  # prepared once, run as often as one likes
        assert_right(name, executor.run(handle, INPUTS[name]))


def test_outputs_are_zeros_where_the_kernel_writes_nothing(executor, programs):
    program = programs["softmax"]
    handle = executor.prepare(load(program.program_id, program.blobs))
    # Its block is 1024 wide: what is beyond is not written.
    found = executor.run(handle, {"x": floats(2, 1500)})["y"]
    assert not found[-1, 1024:].any()


def test_hostile_texts_are_refused_on_the_card_as_well(executor, programs):
    good = programs["softmax"].manifest
    for text in user_kernels.hostile_texts().values():
        bad = program_of(msgspec.structs.replace(good, kernel=blob_id_of(text)), text)
        with pytest.raises((ProgramError, ComputeError)):
            executor.prepare(load(bad.program_id, bad.blobs))


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    home = tmp_path_factory.mktemp("daemon")
    key = identity.generate()
    identity.save(key, home / "identity.key")
    node = Node(1, home, key.peer_id)
    flags = ("--detach", "--listen=/ip4/127.0.0.1/tcp/0")
    started = shoal("up", *flags, "--json", node=node)
    assert started.code == 0, started

    def offers_kernels():
        with node.client() as client:
            return any("triton" in device.executors for device in client.devices())

    eventually(offers_kernels, PROBED_LIMIT_S, "the card's executors are probed")
    yield node
    assert shoal("down", node=node).code == 0


@pytest.mark.parametrize("name", ["softmax", "add_multiply", "product"])
def test_a_job_of_it_runs_and_its_receipt_verifies(daemon, programs, name):
    with daemon.client() as client:
        assert_right(name, client.run(programs[name], INPUTS[name], timeout_s=120))
        job = client.jobs(1)[0]
        assert (job.state, job.numeric_class) == (JobState.DONE, "kernel")
        (receipt,) = [open_receipt(client.receipt(one)) for one in client.receipts(job.id)]
    assert receipt.error is None
    assert receipt.program == programs[name].program_id
    assert receipt.numeric_class == "kernel"
    assert receipt.runtime.startswith("triton ")
