"""How a false result is made: outputs that look right, and programs that are not the one asked.

Tensors are blobs, as receipts name them. Nothing here is random: the same work gives the same
lie, so that a test that fails fails again.
"""

import msgspec
import numpy as np

from shoal.compute import manifest as manifests
from shoal.compute.errors import ProgramError
from shoal.compute.graph import parse
from shoal.compute.tensor import from_blob, spec_of_blob, to_blob
from shoal.crypto.content import blob_id_of

UNARY = frozenset({"Tanh", "Erf", "Relu", "Gelu", "Sigmoid"})
"""Operators that can be left out, and what is behind them still runs."""

FALSE_NAN = ProgramError(
    "a value is not a number", code="nan", node="layer_norm_17", operator="Sqrt"
)


def spec_of(outputs):
    """What outputs look like from outside, by name."""
    return {name: spec_of_blob(blob, len(blob)) for name, blob in outputs.items()}


def drawn(outputs, seed):
    """Random tensors of the dtypes and shapes of ``outputs``."""
    draw = np.random.default_rng(seed)
    arrays = {name: from_blob(blob) for name, blob in outputs.items()}
    return {
        name: to_blob(draw.random(array.shape).astype(array.dtype))
        for name, array in arrays.items()
    }


def with_one_bit_turned(outputs, number=0):
    """The same but for the last bit of the mantissa of one element of the first output."""
    name, *_ = sorted(outputs)
    array = from_blob(outputs[name]).copy()
    whole = array.reshape(-1).view(np.uint8).reshape(array.size, array.itemsize)
    whole[number % array.size, 0] ^= 1  # little-endian
    return outputs | {name: to_blob(array)}


def reversed_inputs(inputs):
    """Other inputs that the program takes as well: the same, back to front."""
    arrays = {name: from_blob(bytes(blob)) for name, blob in inputs.items()}
    return {
        name: to_blob(np.ascontiguousarray(array[..., ::-1]) if array.ndim else array + 1)
        for name, array in arrays.items()
    }


def in_x8(manifest, blobs):
    """The same program in the lowest precision; of another class, with a layer less."""
    if manifest.precision is None:
        return without_layers(manifest, blobs)
    return _as_program(msgspec.structs.replace(manifest, precision="x8"), blobs)


def without_layers(manifest, blobs):
    """The program in which every third operator of one input does nothing."""
    model = parse(blobs[manifest.graph])
    unary = [node for node in model.graph.node if node.op_type in UNARY]
    assert unary, "there is nothing in this program that can be left out"
    for node in unary[::3]:
        node.op_type = "Identity"
        del node.attribute[:]
    graph = model.SerializeToString(deterministic=True)
    changed = msgspec.structs.replace(manifest, graph=blob_id_of(graph))
    return _as_program(changed, blobs | {changed.graph: graph})


def _as_program(manifest, blobs):
    encoded = manifests.encode(manifest)
    program = blob_id_of(encoded)
    return program, blobs | {program: encoded}
