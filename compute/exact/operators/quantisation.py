"""QuantizeLinear, DequantizeLinear and DynamicQuantizeLinear.

Part of *execute*. A division, a rounding and a saturation one way; an integer
subtraction and a multiplication the other: each float step is one rounded operation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.exact.operators.dtypes import dtype_of_code
from shoal.compute.exact.operators.node import (
    FLOAT,
    Array,
    Inputs,
    Node,
    Operator,
    Outputs,
    axis_of,
    dense,
    fail,
    float32,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.exact.kernels import Kernels

_SMALL: Final = frozenset({"int8", "uint8", "int16", "uint16"})


def _laid_out(node: Node, factor: Array, x: Array) -> Array:
    """Scale or zero point, one for all, per axis or per block, so that it broadcasts over x."""
    if factor.size == 1 and factor.ndim <= 1:
        return factor.reshape(())
    axis = axis_of(node.get("axis", 1), x.ndim)
    block = node.get("block_size", 0)
    if not block:
        if factor.shape != (x.shape[axis],):
            fail("shape_mismatch", f"scales of {list(factor.shape)} do not fit {list(x.shape)}")
        return factor.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    repeated = np.repeat(factor, block, axis).take(range(x.shape[axis]), axis)
    if repeated.shape != x.shape:
        fail("shape_mismatch", f"scales of {list(factor.shape)} do not fit {list(x.shape)}")
    return repeated


def _saturated(y: Array, zero: Array, dtype: str) -> Array:
    """Rounded floats plus the zero point, held within the dtype."""
    bounds = np.iinfo(dtype)
    # Beyond these, the zero point makes no difference: all are held at a bound.
    clipped = np.clip(y, -(1 << 20), 1 << 20).astype(np.int64) + zero.astype(np.int64)
    return np.clip(clipped, bounds.min, bounds.max).astype(dtype)


def quantize(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """QuantizeLinear."""
    x, scale, zero = (*inputs, None)[:3]
    steps = kernels.binary("div", dense(x), dense(_laid_out(node, scale, x)))
    offset = np.zeros((), np.int64) if zero is None else _laid_out(node, zero, x)
    return (_saturated(kernels.unary("round", steps), offset, node.dtypes[0]),)


def _quantized_dtype(node: Node, dtypes: Sequence[str]) -> str:
    if len(dtypes) > 2 and dtypes[2]:
        return dtypes[2]
    code = node.get("output_dtype", 0)
    return dtype_of_code(code) if code else "uint8"


def _refuses_quantize(node: Node, _: Sequence[str | None]) -> str | None:
    code = node.get("precision", 0)
    return f"a division in {dtype_of_code(code)}" if code not in {0, 1} else None


def dequantize(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """DequantizeLinear."""
    x, scale, zero = (*inputs, None)[:3]
    wide = x.astype(np.int64)
    if zero is not None:
        wide = wide - _laid_out(node, zero, x).astype(np.int64)
    factor = dense(_laid_out(node, scale, x))
    return (kernels.binary("mul", wide.astype(np.float32), factor),)


def dynamic_quantize(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """DynamicQuantizeLinear: to uint8, over the range of the values and zero."""
    (x,) = inputs
    values = dense(x).reshape(1, -1)
    zero = float32(0)
    high = kernels.binary("max", kernels.reduce_rows("max", values), zero)
    low = kernels.binary("min", kernels.reduce_rows("min", values), zero)
    scale = kernels.binary("div", kernels.binary("sub", high, low), float32(255))
    if not scale[0]:
        return np.zeros(x.shape, np.uint8), scale.reshape(()), np.zeros((), np.uint8)
    start = kernels.binary("sub", zero, kernels.binary("div", low, scale))
    point = _saturated(kernels.unary("round", start), np.zeros((), np.int64), "uint8")
    steps = kernels.unary("round", kernels.binary("div", dense(x), scale.reshape(())))
    return (
        _saturated(steps, point, "uint8").reshape(x.shape),
        scale.reshape(()),
        point.reshape(()),
    )


OPERATORS: Final[dict[str, Operator]] = {
    "DequantizeLinear": Operator(
        dequantize, _SMALL | frozenset({"int32"}), result_dtype=lambda _, dtypes: dtypes[1]
    ),
    "DynamicQuantizeLinear": Operator(dynamic_quantize, FLOAT),
    "QuantizeLinear": Operator(
        quantize, FLOAT, refuses=_refuses_quantize, result_dtype=_quantized_dtype
    ),
}
