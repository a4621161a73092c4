"""Jobs over a swarm whose daemons are killed, stopped and restarted by a seeded script.

``SHOAL_SOAK_S`` seconds long (60 when not set); ``SHOAL_SOAK_SEED`` repeats a script.
"""

import os
import random
import signal
import threading
import time

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from shoal.crypto.content import blob_id_of
from shoal.node.demo.swarm import Swarm
from shoal.node.errors import DaemonUnreachableError
from shoal.node.records import JobState
from shoal.protocol.statements import open_receipt

SOAK_S = float(os.environ.get("SHOAL_SOAK_S", "60"))
SEED = int(os.environ.get("SHOAL_SOAK_SEED", str(random.SystemRandom().randrange(1 << 32))))
ROWS_PER_UNIT = 4
UNITS_PER_JOB = 60
JOB_LIMIT_S = 180.0


def model_bytes() -> bytes:
    """y = tanh(x·W) a few times over: some milliseconds of work for each unit."""
    size, depth = 256, 12
    weights = np.random.default_rng(1).normal(0, 0.1, (size, size)).astype(np.float32)
    nodes, name = [], "x"
    for layer in range(depth):
        nodes += [
            helper.make_node("MatMul", [name, "w"], [f"m{layer}"]),
            helper.make_node("Tanh", [f"m{layer}"], [f"t{layer}"]),
        ]
        name = f"t{layer}"
    nodes.append(helper.make_node("Identity", [name], ["y"]))
    graph = helper.make_graph(
        nodes,
        "soak",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", size])],
        [
            helper.make_tensor(
                "w", TensorProto.FLOAT, weights.shape, weights.tobytes(), raw=True
            )
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    return model.SerializeToString()


class Faults(threading.Thread):
    """Hurts one daemon at a time, as the seed says, until told to stop."""

    def __init__(self, swarm, seed):
        super().__init__()
        self.swarm, self.random, self.told = swarm, random.Random(seed), []
        self.over = threading.Event()

    def run(self):
        while not self.over.wait(self.random.uniform(2, 5)):
            node = self.random.choice(self.swarm.nodes)
            fault = self.random.choice(["kill", "stop", "end"])
            self.told.append((fault, node.number))
            if fault == "stop":
                node.signal(signal.SIGSTOP)
                self.over.wait(self.random.uniform(1, 12))
                node.signal(signal.SIGCONT)
                continue
            if fault == "kill":
                node.kill()
            else:
                node.signal(signal.SIGTERM)
                node.process.wait(30)
            self.over.wait(self.random.uniform(0, 3))
            self.swarm.start(node)
            self.swarm.wait_ready(node)


def patiently(swarm, ask):
    """Ask the submitter's daemon, again while it is down."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with swarm.nodes[0].client() as client:
                return ask(client)
        except DaemonUnreachableError:
            assert time.monotonic() < deadline, "the submitter's daemon stays down"
            time.sleep(0.2)


@pytest.mark.parametrize("seed", [SEED])
def test_every_unit_is_delivered_once_and_right_whatever_dies(seed):
    model = model_bytes()
    local = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(seed)
    began, jobs = time.monotonic(), 0
    with Swarm(3, settings=["--cores=1"]) as swarm:
        swarm.start_all()
        swarm.wait_acquainted()
        faults = Faults(swarm, seed)
        faults.start()
        try:
            while time.monotonic() - began < SOAK_S:
                rows = generator.normal(size=(UNITS_PER_JOB * ROWS_PER_UNIT, 256))
                rows = rows.astype(np.float32)
                check_job(swarm, model, local, rows)
                jobs += 1
        finally:
            faults.over.set()
            faults.join(60)
            print(f"{jobs} jobs, {jobs * UNITS_PER_JOB} units, faults: {faults.told}")


def check_job(swarm, model, local, rows):
    batches = [
        {"x": rows[at : at + ROWS_PER_UNIT]} for at in range(0, len(rows), ROWS_PER_UNIT)
    ]
    job = patiently(swarm, lambda c: c.submit(model, batches))
    job_id = job.id
    deadline = time.monotonic() + JOB_LIMIT_S
    while not job.state.final:
        assert time.monotonic() < deadline, patiently(swarm, lambda c: c.why(job_id))
        job = patiently(swarm, lambda c: c.wait(job_id, timeout_s=5))
    assert (job.state, job.units_done) == (JobState.DONE, UNITS_PER_JOB), job.failure
    units = patiently(swarm, lambda c: list(c.units(job_id)))
    assert [unit.index for unit in units] == list(range(UNITS_PER_JOB))
    for unit in units:
        got = patiently(swarm, lambda c, unit=unit: c.outputs(job_id, unit.index))["y"]
        wanted = local.run(None, batches[unit.index])[0]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
        envelope = patiently(swarm, lambda c, unit=unit: c.receipt(unit.receipt))
        receipt = open_receipt(envelope)
        assert blob_id_of(envelope) == unit.receipt
        assert dict(receipt.outputs) == unit.outputs
        assert receipt.unit == f"{job.id}/{unit.index}"
