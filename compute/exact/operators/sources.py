"""Operators that make tensors out of attributes and sizes: constants, ranges, one-hots.

Part of *execute*. Their results are bounded before they are made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.exact.operators.casts import converted
from shoal.compute.exact.operators.dtypes import dtype_of_code
from shoal.compute.exact.operators.node import (
    ANY,
    FLOAT,
    Array,
    Inputs,
    Node,
    Operator,
    Outputs,
    axis_of,
    dense,
    fail,
    integers_of,
    within_limit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.exact.kernels import Kernels

_CONSTANT_DTYPES: Final = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def _constant_value(node: Node) -> Array:
    if "value" in node.attributes:
        return np.asarray(node.get("value"))
    name, value = next(iter(node.attributes.items()))
    return np.asarray(value, _CONSTANT_DTYPES[name])


def constant(node: Node, _: Inputs, kernels: Kernels) -> Outputs:
    """Constant: admitted as a program's own constants are."""
    value = _constant_value(node)
    return (kernels.admit(value) if value.dtype == np.float32 else value,)


def _refuses_constant(node: Node, _: Sequence[str | None]) -> str | None:
    name = next(iter(node.attributes), "value")
    known = name == "value" or name in _CONSTANT_DTYPES
    return None if known else f"the attribute {name!r}"


def constant_of_shape(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """ConstantOfShape: a view of one element."""
    value = np.asarray(node.get("value", np.zeros(1, np.float32))).reshape(())
    value = kernels.admit(value) if value.dtype == np.float32 else value
    return (np.broadcast_to(value, within_limit(integers_of(inputs[0]))),)


def _constant_of_shape_dtype(node: Node, _: Sequence[str]) -> str:
    return str(node.get("value", np.zeros(1, np.float32)).dtype)


def range_(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """Range: start + i * step, each step rounded where it is float."""
    start, limit, step = (x.reshape(()) for x in inputs)
    if step == 0:
        fail("out_of_range", "the step is zero")
    if start.dtype == np.float32:
        span = kernels.binary("div", kernels.binary("sub", limit, start), step)
        (count,) = within_limit([max(int(kernels.unary("ceil", span)), 0)])
        indices = np.arange(count, dtype=np.int64).astype(np.float32)
        return (kernels.binary("add", start, kernels.binary("mul", indices, step)),)
    first, last, stride = int(start), int(limit), int(step)
    (count,) = within_limit([max(-((first - last) // stride), 0)])
    with np.errstate(over="ignore"):
        return (start + np.arange(count, dtype=np.int64).astype(start.dtype) * step,)


def eye_like(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """EyeLike: ones on a diagonal."""
    (x,) = inputs
    if x.ndim != 2:
        fail("shape_mismatch", "EyeLike takes a matrix")
    return (np.eye(*x.shape, k=node.get("k", 0), dtype=node.dtypes[0]),)


def _eye_like_dtype(node: Node, dtypes: Sequence[str]) -> str:
    code = node.get("dtype")
    return dtypes[0] if code is None else dtype_of_code(code)


def one_hot(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """OneHot: indices out of range give rows of the off value, as ONNX says."""
    indices, depth, values = inputs
    (n,) = within_limit([int(depth.reshape(()))])
    axis = axis_of(node.get("axis", -1), indices.ndim + 1)
    within_limit([*indices.shape, n])
    whole = converted(indices, "int64")
    wanted = np.where(whole < 0, whole + n, whole)
    hot = np.expand_dims(wanted, axis) == np.arange(n).reshape(
        [-1 if i == axis else 1 for i in range(indices.ndim + 1)]
    )
    off, on = values.reshape(-1)
    return (dense(np.where(hot, on, off)),)


OPERATORS: Final[dict[str, Operator]] = {
    "Constant": Operator(
        constant,
        refuses=_refuses_constant,
        result_dtype=lambda node, _: str(_constant_value(node).dtype),
    ),
    "ConstantOfShape": Operator(constant_of_shape, result_dtype=_constant_of_shape_dtype),
    "EyeLike": Operator(eye_like, ANY, result_dtype=_eye_like_dtype),
    "OneHot": Operator(one_hot),
    "Range": Operator(range_, FLOAT | frozenset({"int16", "int32", "int64"})),
}
