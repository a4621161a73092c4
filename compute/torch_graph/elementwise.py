"""Elementwise operators, broadcast as ONNX says: arithmetic, comparisons, logic, bits.

Part of *execute*. Torch stores uint16, uint32 and uint64 and hardly computes with them, so
these are computed in int64, where all but a few operations on large uint64 have the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Final

import torch

from shoal.compute.torch_graph.node import (
    FLOATS,
    WIDE_UNSIGNED,
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    fail,
    given,
)


def _signed(x: Tensor) -> Tensor:
    if x.dtype == torch.uint64:
        return x.view(torch.int64)
    return x.to(torch.int64) if x.dtype in WIDE_UNSIGNED else x


def _unsigned(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.view(torch.uint64) if dtype == torch.uint64 else x.to(dtype)


def _of_any_sign(
    function: Callable[..., Tensor], *, uint64: bool = True
) -> Callable[..., Tensor]:
    """The function, made to take unsigned integers: its first result keeps their dtype."""

    def compute(*tensors: Tensor) -> Tensor:
        dtype = tensors[0].dtype
        if dtype not in WIDE_UNSIGNED:
            return function(*tensors)
        if dtype == torch.uint64 and not uint64:
            fail("wrong_dtype", "torch cannot compute this on uint64")
        result = function(*map(_signed, tensors))
        return result if result.dtype == torch.bool else _unsigned(result, dtype)

    return compute


def _unary(function: Callable[[Tensor], Tensor], width: Width = Width.ANY) -> Operator:
    def compute(_: Node, inputs: Inputs, __: Run) -> Outputs:
        return (function(inputs[0]),)

    return Operator(compute, width=width)


def _binary(function: Callable[[Tensor, Tensor], Tensor], *, uint64: bool = True) -> Operator:
    compute = _of_any_sign(function, uint64=uint64)
    return Operator(lambda _, inputs, __: (compute(inputs[0], inputs[1]),))


def _ordered(
    function: Callable[[Tensor, Tensor], Tensor],
) -> Callable[[Tensor, Tensor], Tensor]:
    """A comparison or choice by size, on uint64 too: their order is int64's, shifted."""

    def compute(a: Tensor, b: Tensor) -> Tensor:
        if a.dtype != torch.uint64:
            return _of_any_sign(function)(a, b)
        lowest = torch.iinfo(torch.int64).min
        result = function(_signed(a) ^ lowest, _signed(b) ^ lowest)
        if result.dtype == torch.bool:
            return result
        return _unsigned(result ^ lowest, a.dtype)

    return compute


def _comparison(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    compute = _ordered(function)
    return Operator(lambda _, inputs, __: (compute(inputs[0], inputs[1]),))


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return Operator(lambda _, inputs, __: (reduce(function, inputs),))


def _mean(_: Node, inputs: Inputs, __: Run) -> Outputs:
    return (reduce(torch.add, inputs) / len(inputs),)


def _divisor(node: Node, b: Tensor, run: Run) -> Tensor:
    """An integer divisor that is not zero; whether it was is looked at when the run ends."""
    run.require(node, (b != 0).all(), "division_by_zero", "an integer is divided by zero")
    return torch.where(b == 0, torch.ones_like(b), b)


def _div(node: Node, inputs: Inputs, run: Run) -> Outputs:
    a, b = inputs
    if a.dtype in FLOATS:
        return (a / b,)
    divide = _of_any_sign(lambda p, q: torch.div(p, q, rounding_mode="trunc"), uint64=False)
    return (divide(a, _divisor(node, b, run)),)


def _mod(node: Node, inputs: Inputs, run: Run) -> Outputs:
    a, b = inputs
    remainder = torch.fmod if node.get("fmod", 0) else torch.remainder
    if a.dtype in FLOATS:
        return (remainder(a, b),)
    return (_of_any_sign(remainder, uint64=False)(a, _divisor(node, b, run)),)


def _pow(_: Node, inputs: Inputs, __: Run) -> Outputs:
    a, b = inputs
    if a.dtype in FLOATS:
        return (torch.pow(a, b.to(a.dtype)),)
    if b.dtype in FLOATS:
        return (torch.pow(a.to(b.dtype), b).to(a.dtype),)
    return (torch.pow(a.to(torch.int64), b.to(torch.int64)).to(a.dtype),)


def _clip(_: Node, inputs: Inputs, __: Run) -> Outputs:
    x, low, high = given(inputs, 3)
    if low is not None:
        x = _ordered(torch.maximum)(x, low.to(x.dtype))
    if high is not None:
        x = _ordered(torch.minimum)(x, high.to(x.dtype))
    return (x,)


def _where(_: Node, inputs: Inputs, __: Run) -> Outputs:
    condition, a, b = inputs
    return (torch.where(condition, a, b),)


def _shift(node: Node, inputs: Inputs, __: Run) -> Outputs:
    a, b = inputs
    left = node.get("direction") == "LEFT"
    if a.dtype == torch.uint64 and not left:
        fail("wrong_dtype", "torch cannot shift uint64 to the right")
    # In int64, so that the sign of a narrow integer is no part of it.
    wide, amount = _signed(a).to(torch.int64), _signed(b).to(torch.int64)
    shifted = wide << amount if left else wide >> amount
    return (_unsigned(shifted, a.dtype) if a.dtype == torch.uint64 else shifted.to(a.dtype),)


def _is_inf(node: Node, inputs: Inputs, __: Run) -> Outputs:
    (x,) = inputs
    positive, negative = node.get("detect_positive", 1), node.get("detect_negative", 1)
    if positive and negative:
        return (torch.isinf(x),)
    if positive:
        return (torch.isposinf(x),)
    return (torch.isneginf(x) if negative else torch.zeros_like(x, dtype=torch.bool),)


OPERATORS: Final[dict[str, Operator]] = {
    "Abs": _unary(_of_any_sign(torch.abs)),
    "Acos": _unary(torch.acos, Width.WIDE),
    "Acosh": _unary(torch.acosh, Width.WIDE),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Asin": _unary(torch.asin, Width.WIDE),
    "Asinh": _unary(torch.asinh, Width.WIDE),
    "Atan": _unary(torch.atan, Width.WIDE),
    "Atanh": _unary(torch.atanh, Width.WIDE),
    "BitShift": Operator(_shift),
    "BitwiseAnd": _binary(torch.bitwise_and),
    "BitwiseNot": _unary(_of_any_sign(torch.bitwise_not)),
    "BitwiseOr": _binary(torch.bitwise_or),
    "BitwiseXor": _binary(torch.bitwise_xor),
    "Ceil": _unary(torch.ceil),
    "Clip": Operator(_clip),
    "Cos": _unary(torch.cos, Width.WIDE),
    "Cosh": _unary(torch.cosh, Width.WIDE),
    "Div": Operator(_div),
    "Equal": _comparison(torch.eq),
    "Erf": _unary(torch.erf, Width.WIDE),
    "Exp": _unary(torch.exp, Width.WIDE),
    "Floor": _unary(torch.floor),
    "Greater": _comparison(torch.gt),
    "GreaterOrEqual": _comparison(torch.ge),
    "IsInf": Operator(_is_inf),
    "IsNaN": _unary(torch.isnan),
    "Less": _comparison(torch.lt),
    "LessOrEqual": _comparison(torch.le),
    "Log": _unary(torch.log, Width.WIDE),
    "Max": _variadic(_ordered(torch.maximum)),
    "Mean": Operator(_mean, width=Width.WIDE),
    "Min": _variadic(_ordered(torch.minimum)),
    "Mod": Operator(_mod),
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "Pow": Operator(_pow, width=Width.WIDE),
    "Reciprocal": _unary(torch.reciprocal, Width.WIDE),
    "Round": _unary(torch.round),
    "Sign": _unary(_of_any_sign(torch.sign)),
    "Sin": _unary(torch.sin, Width.WIDE),
    "Sinh": _unary(torch.sinh, Width.WIDE),
    "Sqrt": _unary(torch.sqrt, Width.WIDE),
    "Sub": _binary(torch.sub),
    "Sum": Operator(lambda _, inputs, __: (reduce(torch.add, inputs),), width=Width.WIDE),
    "Tan": _unary(torch.tan, Width.WIDE),
    "Where": Operator(_where),
    "Xor": _binary(torch.logical_xor),
}
