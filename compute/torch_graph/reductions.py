"""Reductions along axes that an input names.

Part of *execute*. Integers are reduced in their own dtype, as ONNX has it, and an empty
axis gives the reduction's neutral element.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, TypeAlias

import torch

from shoal.compute.torch_graph.node import (
    FLOATS,
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    axes_of,
    given,
    integers_of,
)

_Reduce: TypeAlias = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _reduction(
    reduce: _Reduce, before: Callable[[Tensor], Tensor], width: Width = Width.WIDE
) -> Operator:
    """A reduction; ``before`` is what it does to each element where there are no axes."""

    def compute(node: Node, inputs: Inputs, _: Run) -> Outputs:
        x, named = given(inputs, 2)
        axes = integers_of(named) if named is not None else []
        if not axes and node.get("noop_with_empty_axes", 0):
            return (before(x),)
        which = axes_of(axes, x.ndim) if axes else tuple(range(x.ndim))
        keep = bool(node.get("keepdims", 1))
        return ((reduce(x, which, keep) if which else before(x)),)

    return Operator(compute, host=frozenset({1}), width=width)


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.dtype in FLOATS:
        return x.mean(axes, keepdim=keep)
    count = math.prod(x.shape[axis] for axis in axes)
    return torch.div(_sum(x, axes, keep), max(count, 1), rounding_mode="trunc").to(x.dtype)


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep, dtype=x.dtype)
    return x


def _extreme(largest: bool) -> _Reduce:
    def reduce(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if not math.prod(x.shape[axis] for axis in axes):
            return _neutral(x, axes, keep, largest)
        if x.dtype == torch.bool:
            whole = x.to(torch.uint8)
            return (whole.amax(axes, keep) if largest else whole.amin(axes, keep)).bool()
        return x.amax(axes, keep) if largest else x.amin(axes, keep)

    return reduce


def _neutral(x: Tensor, axes: tuple[int, ...], keep: bool, largest: bool) -> Tensor:
    if x.dtype in FLOATS:
        value = -math.inf if largest else math.inf
    elif x.dtype == torch.bool:
        value = not largest
    else:
        bounds = torch.iinfo(x.dtype)
        value = bounds.min if largest else bounds.max
    sizes = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    if not keep:
        sizes = [size for axis, size in enumerate(x.shape) if axis not in axes]
    return torch.full(sizes, value, dtype=x.dtype, device=x.device)


def _same(x: Tensor) -> Tensor:
    return x


def _l1(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x.abs(), axes, keep)


def _root(x: Tensor) -> Tensor:
    return x.sqrt() if x.dtype in FLOATS else x.double().sqrt().to(x.dtype)


def _l2(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _root(_sum(x * x, axes, keep))


def _logarithm(x: Tensor) -> Tensor:
    return x.log() if x.dtype in FLOATS else x.double().log().to(x.dtype)


def _log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _logarithm(_sum(x, axes, keep))


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.dtype in FLOATS:
        return torch.logsumexp(x, axes, keep)
    return torch.logsumexp(x.double(), axes, keep).to(x.dtype)


def _sum_square(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return _sum(x * x, axes, keep)


OPERATORS: Final[dict[str, Operator]] = {
    "ReduceL1": _reduction(_l1, torch.abs),
    "ReduceL2": _reduction(_l2, torch.abs),
    "ReduceLogSum": _reduction(_log_sum, _logarithm),
    "ReduceLogSumExp": _reduction(_log_sum_exp, _same),
    "ReduceMax": _reduction(_extreme(largest=True), _same, Width.ANY),
    "ReduceMean": _reduction(_mean, _same),
    "ReduceMin": _reduction(_extreme(largest=False), _same, Width.ANY),
    "ReduceProd": _reduction(_product, _same),
    "ReduceSum": _reduction(_sum, _same),
    "ReduceSumSquare": _reduction(_sum_square, lambda x: x * x),
}
