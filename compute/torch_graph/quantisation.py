"""Quantised tensors: to them, from them, and products of them.

Part of *execute*. Halves round to even, as ONNX says; products are exact (``products``).
"""

from __future__ import annotations

from typing import Final

import torch

from shoal.compute.torch_graph.convolution import convolved
from shoal.compute.torch_graph.node import (
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    axis_of,
    dtype_of_code,
    fail,
    given,
)
from shoal.compute.torch_graph.products import less_zero

_TARGETS: Final = frozenset({torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32})


def _along(node: Node, x: Tensor, parameter: Tensor) -> Tensor:
    """A scale or zero point that broadcasts over a tensor: one, one per axis, or blocks."""
    if parameter.numel() == 1 and parameter.ndim <= 1:
        return parameter.reshape(())
    axis = axis_of(node.get("axis", 1), x.ndim)
    block = node.get("block_size", 0)
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    if parameter.ndim != 1 or parameter.numel() != x.shape[axis]:
        fail("shape_mismatch", f"{list(parameter.shape)} does not fit axis {axis}")
    return parameter.reshape([-1 if a == axis else 1 for a in range(x.ndim)])


def _rounded(x: Tensor, zero: Tensor | float, dtype: torch.dtype) -> Tensor:
    if dtype not in _TARGETS:
        fail("wrong_dtype", f"nothing is quantised to {dtype} here")
    bounds = torch.iinfo(dtype)
    return (x.round() + zero).clamp(bounds.min, bounds.max).to(torch.int32).to(dtype)


def _quantize(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, scale, zero = given(inputs, 3)
    default = node.get("output_dtype", 0) or 2  # uint8
    dtype = dtype_of_code(default) if zero is None else zero.dtype
    shift = 0.0 if zero is None else _along(node, x, zero).to(torch.float32)
    y = x.to(torch.float32) / _along(node, x, scale).to(torch.float32)
    return (_rounded(y, shift, dtype),)


def _dequantize(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, scale, zero = given(inputs, 3)
    wide = x.to(torch.int32)
    if zero is not None:
        wide = wide - _along(node, x, zero).to(torch.int32)
    y = wide.to(torch.float32) * _along(node, x, scale).to(torch.float32)
    return (y.to(scale.dtype),)


def _dynamic_quantize(_: Node, inputs: Inputs, __: Run) -> Outputs:
    (x,) = inputs
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = (high - low) / 255
    divisor = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / divisor).round().clamp(0, 255)
    return _rounded(x / divisor, zero, torch.uint8), scale, zero.to(torch.uint8)


def _requantised(y: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """A product, exact in float64, as the result's own integers."""
    return _rounded(y * scale, zero.to(y.dtype), zero.dtype)


def _qlinear_matmul(_: Node, inputs: Inputs, __: Run) -> Outputs:
    a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = inputs
    y = torch.matmul(less_zero(a, a_zero, a.ndim - 2), less_zero(b, b_zero, b.ndim - 1))
    left = a_scale.reshape(-1, 1) if a_scale.numel() > 1 and a_scale.ndim == 1 else a_scale
    return (_requantised(y, left.double() * b_scale.double() / y_scale.double(), y_zero),)


def _qlinear_conv(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero, bias = given(inputs, 9)
    shift = None if bias is None else bias.double()
    y = convolved(node, less_zero(x, x_zero, 1), less_zero(w, w_zero, 0), shift)
    scale = x_scale.double() * w_scale.double() / y_scale.double()
    if scale.numel() > 1:
        scale = scale.reshape(-1, *[1] * (x.ndim - 2))
    return (_requantised(y, scale, y_zero),)


OPERATORS: Final[dict[str, Operator]] = {
    "DequantizeLinear": Operator(_dequantize, width=Width.WIDE),
    "DynamicQuantizeLinear": Operator(_dynamic_quantize, width=Width.WIDE),
    "QLinearConv": Operator(_qlinear_conv, width=Width.WIDE),
    "QLinearMatMul": Operator(_qlinear_matmul, width=Width.WIDE),
    "QuantizeLinear": Operator(_quantize, width=Width.WIDE),
}
