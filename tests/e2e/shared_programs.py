"""A large program goes to many providers: how much of it does its requester send?"""

import re

import numpy as np
import onnxruntime
from daemons import eventually
from onnx import TensorProto, helper, numpy_helper

from shoal.node.demo.swarm import Swarm
from shoal.node.records import JobState

WIDTH = 2048
LAYERS = 5
SIZE_BYTES = LAYERS * WIDTH * WIDTH * 4
"""Of the model: 80 MiB, in five tensors."""

UNITS = 64
LIMIT_S = 240.0
TOLERANCE = 1e-3


def large_model():
    """y = x · w0 · w1 · … of no two equal chunks."""
    random = np.random.default_rng(7)
    shape = (WIDTH, WIDTH)
    weights = [random.normal(size=shape).astype(np.float32) / WIDTH**0.5 for _ in range(LAYERS)]
    names = ["x", *(f"x{layer}" for layer in range(1, LAYERS)), "y"]
    nodes = [
        helper.make_node("MatMul", [names[layer], f"w{layer}"], [names[layer + 1]])
        for layer in range(LAYERS)
    ]
    rows = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH])
        for name in ("x", "y")
    ]
    initializers = [numpy_helper.from_array(w, f"w{n}") for n, w in enumerate(weights)]
    graph = helper.make_graph(nodes, "large", rows[:1], rows[1:], initializers)
    opsets = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return model.SerializeToString()


def wanted(model, x):
    return onnxruntime.InferenceSession(model).run(None, {"x": x})[0]


def moved(node, way):
    """Bytes of blobs that a daemon sent or received, over channels and by stream."""
    with node.client() as client:
        found = re.findall(
            rf'^shoal_stream_{way}_bytes_total\{{.*protocol="(?:bulk|blob)".*\}} (\S+)$',
            client.metrics(),
            re.MULTILINE,
        )
    return sum(map(float, found))


def sent_to_providers(count):
    """Run a job at so many; gives the bytes that its submitter sent, in sizes of the model."""
    model = large_model()
    inputs = np.random.default_rng(1).normal(size=(UNITS, 16, WIDTH)).astype(np.float32)
    with Swarm(1 + count) as swarm:
        submitter, *providers = swarm.nodes
        (submitter.home / "config.toml").write_text("provide = false\n")
        swarm.start_all()
        everybody = {node.peer for node in providers}
        with submitter.client() as client:
            client.pause("cpu")
            eventually(
                lambda: everybody <= {v.peer for v in client.peers() if v.numeric_classes},
                LIMIT_S,
                "the submitter knows the providers",
            )
            units = [{"x": x} for x in inputs]
            job = client.submit(model, units, label="many")
            ended = client.wait(job.id, LIMIT_S)
            assert ended.state is JobState.DONE, client.why(job.id)
            y = client.outputs(job.id, UNITS - 1)["y"]
        assert np.allclose(y, wanted(model, inputs[-1]), TOLERANCE, TOLERANCE)
        got = [moved(node, "received") for node in providers]
        sent = moved(submitter, "sent")
        print(f"\nsent {sent / SIZE_BYTES:.2f} of the model")
        print([f"{each / SIZE_BYTES:.2f}" for each in got])
        assert all(each >= SIZE_BYTES for each in got), "not all of them took part"
        return sent / SIZE_BYTES
