"""By how much honest results of one program may differ, in the classes ``fp32`` and ``low``.

Two libraries add in another order, fuse, or take another polynomial: each operator adds an
error of some units in the last place of its class. Here each operator has such a number,
in units of the class's rounding error u, and a program's tolerance is the largest sum of
them along any path from its inputs: errors add up at worst along a path, and what passes
through one node is bounded by what comes in and what it adds. Tensors are compared
relative to their largest element, since an error relative to a small one that came of
cancellation has no bound.

This finds another model, noise and wrong inputs. It does *not* find what stays within the
tolerance: a low bit, or a slightly cheaper model. Where a path goes through a comparison
(ArgMax, TopK, Round, …) a rounding error can flip a whole number, so a few elements of
whole-number outputs may differ at all.

Sources of the numbers, rounded up: Higham, *Accuracy and Stability of Numerical
Algorithms* (2002), sections 3.1 and 3.5, with the probabilistic bound √K·u of Higham and
Mary (2019) for sums of K terms, K up to 8192; the tables of maximum errors in ulp in the
CUDA C++ Programming Guide (expf 2, tanhf 2, erff 2, sinf 2, powf 8); the default
tolerances of PyTorch's ``testing.assert_close`` (1.3e-6 for float32, 1.6e-2 for bfloat16)
and of the ONNX backend tests (1e-3), between which what comes out for whole models lies.

The daemon imports this module, so graphs are read by a small reader of their own and
elements compared without numpy.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shoal.compute.errors import ProgramError
from shoal.compute.tensor import TensorSpec, decode_header

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.crypto.content import Buffer

UNIT_OF_CLASS: Final = {"fp32": 2.0**-24, "low": 2.0**-8}
"""The relative rounding error of one operation: IEEE single, and bfloat16."""

SUM_U: Final = 96.0
"""A product or sum of up to 8192 terms: √8192 = 91."""

FUNCTION_U: Final = 8.0
ARITHMETIC_U: Final = 2.0
NORMALIZED_U: Final = 64.0
"""Sums, a division and a root of one row."""

UNKNOWN_U: Final = SUM_U

LEAST_U: Final = 64.0
"""Of any program: the inputs' own rounding, and outputs that are read as another dtype."""

CAP: Final = {"fp32": 1e-2, "low": 1e-1}
"""No program's tolerance is wider: beyond it agreement would say nothing."""

FLIPS: Final = 0.01
"""Of the elements of whole-number outputs behind a comparison, which may differ."""

_MOVES = [
    "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand",
    "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "OneHot", "Pad",
    "Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "SpaceToDepth",
    "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where", "Abs", "Neg", "Max",
    "Min", "Relu", "Clip", "Sign", "MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin",
    "And", "Or", "Not", "Xor", "Range", "Trilu", "Dropout",
]  # fmt: skip
_ARITHMETIC = [
    "Add", "Sub", "Mul", "Div", "Mod", "Sqrt", "Reciprocal", "LeakyRelu", "PRelu",
]  # fmt: skip
_FUNCTIONS = [
    "Exp", "Log", "Sin", "Cos", "Tan", "Tanh", "Erf", "Sigmoid", "Softplus", "Softsign",
    "Gelu", "Elu", "Selu", "Celu", "HardSigmoid", "HardSwish", "Mish", "Pow", "Asin",
    "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", "Sum", "Mean", "Resize",
]  # fmt: skip
_NORMALIZED = [
    "Softmax", "LogSoftmax", "LayerNormalization", "InstanceNormalization",
    "BatchNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization",
    "AveragePool", "GlobalAveragePool",
]  # fmt: skip
_SUMS = [
    "MatMul", "Gemm", "Conv", "ConvTranspose", "Einsum", "ReduceSum", "ReduceMean",
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceProd",
    "ReduceSumSquare", "CumSum", "LSTM", "GRU", "RNN", "Attention",
]  # fmt: skip

_OF: Final[dict[str, float]] = {
    **dict.fromkeys(_MOVES, 0.0),
    **dict.fromkeys(_ARITHMETIC, ARITHMETIC_U),
    **dict.fromkeys(_FUNCTIONS, FUNCTION_U),
    **dict.fromkeys(_NORMALIZED, NORMALIZED_U),
    **dict.fromkeys(_SUMS, SUM_U),
}
"""What an operator adds, in u. What only moves or picks elements adds nothing."""

_FLIPPING: Final = frozenset([
    "ArgMax", "ArgMin", "TopK", "Round", "Floor", "Ceil", "NonZero", "NonMaxSuppression",
    "Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual", "QuantizeLinear",
    "DynamicQuantizeLinear", "Unique", "Hardmax", "Sign", "IsNaN", "IsInf",
])  # fmt: skip
"""Where a rounding error can become a whole one."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far apart honest results may be.

    Attributes:
        relative: Difference of two elements, by the largest element of the tensor.
        flips: Which part of the elements of a whole-number output may differ.
    """

    relative: float
    flips: float = 0.0


KERNEL_TOLERANCE: Final = Tolerance(CAP["low"], FLIPS)
"""Of users' kernels, whose arithmetic nobody here knows: what the class ``low`` allows at
most."""


def tolerance_of(graph: bytes, numeric_class: str) -> Tolerance:
    """The tolerance of a program, by its ONNX graph.

    Args:
        graph: The bytes of the model file.
        numeric_class: ``fp32`` or ``low``.

    Raises:
        ProgramError: ``malformed_model``: the graph cannot be read.
    """
    unit = UNIT_OF_CLASS[numeric_class]
    behind: dict[bytes, float] = {}
    """Of each value, the largest sum along a path to it."""
    flips, worst = 0.0, 0.0
    for node in _nodes(graph):
        operator = node.operator
        added = _OF.get(operator, 0.0 if operator in _FLIPPING else UNKNOWN_U)
        total = added + max((behind.get(name, 0.0) for name in node.inputs), default=0.0)
        if operator in _FLIPPING:
            flips = FLIPS
        for name in node.outputs:
            behind[name] = total
        worst = max(worst, total)
    relative = min(CAP[numeric_class], (LEAST_U + worst) * unit * 2.0)  # two such results
    return Tolerance(relative, flips)


def near(one: Buffer, other: Buffer, tolerance: Tolerance) -> bool:
    """Whether two tensor blobs are the same within a tolerance.

    Takes some 0.1 s for a million elements: to be called in a thread. What is no tensor,
    or another shape or dtype, is not near; NaN is near NaN alone, infinity the same one.
    """
    if bytes(one) == bytes(other):
        return True
    try:
        (spec, start), (other_spec, _) = decode_header(one), decode_header(other)
    except ProgramError:
        return False
    if spec != other_spec or len(one) != len(other):
        return False
    ours, theirs = _elements(one[start:], spec), _elements(other[start:], spec)
    if spec.dtype not in {"float32", "float64", "float16", "bfloat16"}:
        differing = sum(a != b for a, b in zip(ours, theirs, strict=True))
        return differing <= tolerance.flips * len(ours)
    return _floats_near(ours, theirs, tolerance.relative)


def _floats_near(ours: list[float], theirs: list[float], relative: float) -> bool:
    largest = max(
        (abs(each) for values in (ours, theirs) for each in values if math.isfinite(each)),
        default=0.0,
    )
    room = relative * largest
    for a, b in zip(ours, theirs, strict=True):
        if a == b or abs(a - b) <= room:
            continue
        if not (math.isnan(a) and math.isnan(b)):
            return False
    return True


_CODES: Final = {
    "float32": "f",
    "float64": "d",
    "float16": "e",
    "int8": "b",
    "uint8": "B",
    "bool": "B",
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
}
"""Of each dtype as `struct` has it."""


def _elements(data: Buffer, spec: TensorSpec) -> list[float]:
    if spec.dtype == "bfloat16":  # the upper half of a float32
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[0::2], data[1::2]
        return list(struct.unpack(f"<{len(data) // 2}f", wide))
    return list(struct.unpack(f"<{len(data) // spec.item_bytes}{_CODES[spec.dtype]}", data))


# --- the graph, as far as it matters here -------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Node:
    operator: str
    inputs: tuple[bytes, ...]
    outputs: tuple[bytes, ...]


_MODEL_GRAPH, _GRAPH_NODE = 7, 1
_NODE_INPUT, _NODE_OUTPUT, _NODE_OPERATOR = 1, 2, 4
"""Field numbers of onnx.proto; a node's subgraphs count by the node itself."""


def _nodes(model: bytes) -> Iterator[_Node]:
    """The nodes of an ONNX file in their order, which is one of computation."""
    for number, graph in _fields(memoryview(model)):
        if number != _MODEL_GRAPH:
            continue
        for field, node in _fields(graph):
            if field != _GRAPH_NODE:
                continue
            inputs, outputs, operator = [], [], ""
            for part, value in _fields(node):
                if part == _NODE_INPUT:
                    inputs.append(bytes(value))
                elif part == _NODE_OUTPUT:
                    outputs.append(bytes(value))
                elif part == _NODE_OPERATOR:
                    operator = bytes(value).decode(errors="replace")
            yield _Node(operator, tuple(inputs), tuple(outputs))


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of a protobuf message; others are passed over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        match tag & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 5:
                at += 4
            case 2:
                size, at = _varint(message, at)
                if size > len(message) - at:
                    raise _malformed()
                yield tag >> 3, message[at : at + size]
                at += size
            case _:
                raise _malformed()
    if at > len(message):
        raise _malformed()


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            raise _malformed()
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _malformed()


def _malformed() -> ProgramError:
    return ProgramError("the program's graph is no ONNX model", code="malformed_model")
