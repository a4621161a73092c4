"""Models that were damaged on purpose, each time the same, and what a worker makes of them."""

import random

import numpy as np
from onnx import ModelProto, numpy_helper, parser

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.frames import UnitLimits
from shoal.compute.manifest import decode
from shoal.compute.program import OPERATORS
from shoal.compute.tensor import to_blob

_OPERATORS = sorted(OPERATORS[""])
_NUMBERS = [-(1 << 63), -(1 << 31), -2, -1, 0, 1, 2, 3, 7, 255, 1 << 31, 1 << 32, (1 << 63) - 1]

LIMITS = UnitLimits(time_s=1.0, memory_bytes=1 << 28, output_bytes=1 << 22)

_TEXTS = [
    # a product with weights
    """<ir_version: 8, opset_import: ["" : 18]> g (float[n, 8] x) => (float[n, 4] y) {
        h = MatMul(x, w) y = Softmax<axis = -1>(h) }""",
    # branches and loops within one another
    """<ir_version: 8, opset_import: ["" : 18]> g (float[3] x) => (float[3] y) {
        n = Constant<value = int64 {5}>() t = Constant<value = bool {1}>()
        y = Loop <body = b (int64 i, bool c, float[3] v) => (bool d, float[3] u) {
            d = Identity(c)
            u = If (c) <then_branch = t () => (float[3] p) { p = Neg(v) },
                        else_branch = e () => (float[3] q) { q = Exp(v) }> }> (n, t, x) }""",
    # one that has to be brought to another opset
    """<ir_version: 8, opset_import: ["" : 15]> g (float[2, 3, 8, 8] x) => (float[m] y) {
        c = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(x, k)
        r = ReduceMean<axes = [1, 2], keepdims = 0>(c)
        s = Constant<value = int64[1] {-1}>() y = Reshape(r, s) }""",
]


def _seeds():
    product, loop, old = (parser.parse_model(text) for text in _TEXTS)
    weight = np.linspace(-1, 1, 32, dtype=np.float32)
    product.graph.initializer.append(numpy_helper.from_array(weight.reshape(8, 4), "w"))
    kernel = np.ones((2, 3, 3, 3), np.float32)
    old.graph.initializer.append(numpy_helper.from_array(kernel, "k"))
    return [model.SerializeToString() for model in (product, loop, old)]


def fuzzed(count, seed):
    """So many damaged models.

    In half of them bytes are changed, cut, doubled, moved, or made huge numbers; most are
    no protobuf any more. In the others nodes, names, attributes and sizes are exchanged:
    most are, and make no sense.
    """
    draw = random.Random(seed)
    originals = _seeds()
    for _ in range(count):
        if draw.random() < 0.5:
            model = ModelProto.FromString(draw.choice(originals))
            for _ in range(draw.choice([1, 1, 2, 4])):
                _confuse(draw, model)
            yield model.SerializeToString()
            continue
        data = bytearray(draw.choice(originals))
        for _ in range(draw.choice([1, 1, 2, 4, 16])):
            _damage(draw, data, draw.choice(originals))
        yield bytes(data)


def _damage(draw, data, other):
    """Change some bytes."""
    start = draw.randrange(len(data))
    stop = min(len(data), start + draw.randrange(1, 16))
    match draw.randrange(6):
        case 0:
            data[start] ^= 1 << draw.randrange(8)
        case 1:
            data[start] = draw.randrange(256)
        case 2 if len(data) > 16:
            del data[start:stop]
        case 3:
            data[start:start] = data[start:stop]
        case 4:
            data[start:stop] = other[start:stop] or b"\0"
        case 5:
            data[start:stop] = draw.choice([b"\xff" * 9 + b"\x01", b"\x80" * 10, b"\0"])


def _confuse(draw, model):
    """Change one thing in a model that stays a model."""
    graph = model.graph
    node = draw.choice(graph.node)
    names = [name for n in graph.node for name in (*n.input, *n.output)] or ["x"]
    match draw.randrange(8):
        case 0:
            node.op_type = draw.choice(_OPERATORS)
        case 1 if node.input:
            node.input[draw.randrange(len(node.input))] = draw.choice([*names, "", "nowhere"])
        case 2:
            node.input.append(draw.choice([*names, ""]))
        case 3 if node.attribute:
            attribute = draw.choice(node.attribute)
            attribute.i = draw.choice(_NUMBERS)
            if attribute.ints:
                attribute.ints[draw.randrange(len(attribute.ints))] = draw.choice(_NUMBERS)
        case 4 if graph.initializer:
            tensor = draw.choice(graph.initializer)
            tensor.dims[draw.randrange(len(tensor.dims))] = draw.choice(_NUMBERS)
        case 5:
            port = draw.choice([*graph.input, *graph.output]).type.tensor_type
            port.elem_type = draw.randrange(24)
        case 6:
            graph.node.append(node)
        case 7:
            graph.node.remove(node) if len(graph.node) > 1 else node.ClearField("attribute")


def _ones(port):
    sizes = [size if isinstance(size, int) and size < 1000 else 3 for size in port.shape or ()]
    dtype = "float32" if port.dtype == "bfloat16" else port.dtype
    return np.ones(sizes, dtype)


async def try_one(worker, model):
    """Convert a model, and run what it becomes; gives the code of the error, or "ran".

    Raises:
        Exception: Anything but an error that names what was wrong with the program.
    """
    try:
        program = await worker.convert("ann", model, limits=LIMITS)
        manifest = decode(program.blobs[program.program_id])
        inputs = {port.name: to_blob(_ones(port)) for port in manifest.inputs}

        async def fetch_blobs():
            return program.blobs

        await worker.run("ann", program.program_id, fetch_blobs, inputs, LIMITS)
    except (ProgramError, ComputeError) as error:
        return error.code
    return "ran"
