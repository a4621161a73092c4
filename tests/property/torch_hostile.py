"""Spoils ONNX's node tests at random, runs them by the executor ``torch``, and counts.

Run by `test_torch_hostile` in a process of its own, whose memory is bounded: a spoiled model
may ask for any amount. Prints what was raised that is none of our errors, and nothing else.
"""

import random
import resource
import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / "net")]

import numpy as np
import onnx
import test_exact_onnx_backend as node_tests
import torch

from shoal.compute.errors import ShoalError
from shoal.compute.tensor import DTYPE_OF_ONNX_CODE
from shoal.compute.torch_graph import node as torch_node
from shoal.compute.torch_graph.arrays import to_array
from shoal.compute.torch_graph.graph import make_plan, placed_input, settle
from shoal.compute.torch_graph.operators import OPERATORS
from shoal.compute.torch_graph.reading import read

MEMORY_BYTES = 12 << 30
"""Of address space, most of which torch's libraries take."""

NUMBERS = [0, 1, -1, 2, -2, 3, 7, 100, -100, 2**31, 2**62, -(2**62), 2**40]
TEXTS = [b"", b"x", b"SAME_UPPER", b"VALID", b"ij,jk->ik", b"\xff"]


def suitable(case):
    graph = case.model.graph
    ports = [*graph.input, *graph.output]
    return (
        not node_tests._outside(case.model)
        and {node.op_type for node in graph.node} <= OPERATORS.keys()
        and len(graph.node) < 4
        and len(graph.input) > 0
        and all(port.type.tensor_type.elem_type in DTYPE_OF_ONNX_CODE for port in ports)
    )


def spoil_attribute(draw, attribute):
    match attribute.type:
        case onnx.AttributeProto.INT:
            attribute.i = draw.choice(NUMBERS)
        case onnx.AttributeProto.INTS if attribute.ints:
            attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice(NUMBERS)
            if draw.random() < 0.3:
                attribute.ints.append(draw.choice(NUMBERS))
        case onnx.AttributeProto.FLOAT:
            attribute.f = draw.choice([0, -1, 1e30, float("nan")])
        case onnx.AttributeProto.STRING:
            attribute.s = draw.choice(TEXTS)


def spoiled_array(draw, array):
    if array.dtype.kind == "i" and array.size and draw.random() < 0.6:
        bounds = np.iinfo(array.dtype)
        value = min(max(draw.choice(NUMBERS), bounds.min), bounds.max)
        array.reshape(-1)[draw.randrange(array.size)] = value
        return array
    if array.ndim and draw.random() < 0.5:
        axis = draw.randrange(array.ndim)
        return array.take(range(min(array.shape[axis], draw.choice([0, 1]))), axis)
    return array.reshape(draw.choice([(-1,), (1, *array.shape), (*array.shape, 1)]))


def spoil(draw, model, arrays):
    node = draw.choice(model.graph.node)
    kind = draw.random()
    if kind < 0.4 and node.attribute:
        spoil_attribute(draw, draw.choice(node.attribute))
    elif kind < 0.5 and node.attribute:
        node.attribute.pop(draw.randrange(len(node.attribute)))
    else:
        place = draw.randrange(len(arrays))
        arrays[place] = spoiled_array(draw, arrays[place])


def run(model, arrays, *, low):
    run = torch_node.Run(torch.device("cpu"), low=low)
    plan = make_plan(read(model, OPERATORS), {}, run)
    names = [port.name for port in model.graph.input]
    placed = {n: placed_input(a, run.device) for n, a in zip(names, arrays, strict=True)}
    outputs = plan.run(placed, run)
    settle(run)
    return [to_array(y) for y in outputs if y.numel() < 1 << 20]


def main(seed, count):
    """Spoil and run so many cases."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    torch_node.ELEMENT_LIMIT = 1 << 22
    torch.set_num_threads(1)
    draw = random.Random(seed)
    cases = [case for case in node_tests.cases() if suitable(case)]
    for _ in range(count):
        case = draw.choice(cases)
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        arrays = [np.array(node_tests._array(a)) for a in case.data_sets[0][0]]
        for _ in range(draw.randint(1, 3)):
            spoil(draw, model, arrays)
        try:
            run(model, arrays, low=draw.random() < 0.3)
        except ShoalError:
            continue
        except Exception as error:  # noqa: BLE001  # finding those is what this is for
            print(case.name, type(error).__name__, str(error)[:200])


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
