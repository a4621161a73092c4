"""Softmax and the normalisations.

Part of *execute*. All of them are computed in float32 where their input is narrower, and in
the class ``low`` too: means and squares of bfloat16 say little.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.nn import functional

from shoal.compute.torch_graph.node import (
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    axis_of,
    fail,
    fitting,
    given,
)

_NARROW: Final = frozenset({torch.float16, torch.bfloat16})


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _NARROW else x


def _softmax(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    axis = axis_of(node.get("axis", -1), max(x.ndim, 1))
    return (torch.softmax(_wide(x), axis).to(x.dtype),)


def _log_softmax(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    axis = axis_of(node.get("axis", -1), max(x.ndim, 1))
    return (torch.log_softmax(_wide(x), axis).to(x.dtype),)


def _layer_norm(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, scale, bias = given(inputs, 3)
    axis = axis_of(node.get("axis", -1), x.ndim)
    epsilon = node.get("epsilon", 1e-5)
    wide, shape = _wide(x), list(x.shape[axis:])
    fits = list(scale.shape) == shape and (bias is None or list(bias.shape) == shape)
    if fits and not node.wants(1) and not node.wants(2):
        shift = None if bias is None else bias.to(wide.dtype)
        y = functional.layer_norm(wide, shape, scale.to(wide.dtype), shift, epsilon)
        return (y.to(x.dtype),)
    axes = tuple(range(axis, x.ndim))
    mean = wide.mean(axes, keepdim=True)
    centred = wide - mean
    inverse = torch.rsqrt((centred * centred).mean(axes, keepdim=True) + epsilon)
    y = (centred * inverse).to(x.dtype) * scale
    return (y if bias is None else y + bias), mean, inverse


def _rms_norm(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, scale = inputs
    axis = axis_of(node.get("axis", -1), x.ndim)
    wide = _wide(x)
    square = (wide * wide).mean(tuple(range(axis, x.ndim)), keepdim=True)
    return ((wide * torch.rsqrt(square + node.get("epsilon", 1e-5))).to(x.dtype) * scale,)


def _batch_norm(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, scale, bias, mean, variance = inputs
    epsilon, momentum = node.get("epsilon", 1e-5), node.get("momentum", 0.9)
    wide = _wide(x)
    if not node.get("training_mode", 0):
        factor = scale.to(wide.dtype) * torch.rsqrt(variance.to(wide.dtype) + epsilon)
        shift = bias.to(wide.dtype) - mean.to(wide.dtype) * factor
        return ((wide * fitting(x.shape, factor) + fitting(x.shape, shift)).to(x.dtype),)
    axes = (0, *range(2, x.ndim))
    seen = wide.mean(axes)
    centred = wide - fitting(x.shape, seen)
    spread = (centred * centred).mean(axes)
    y = centred * fitting(x.shape, torch.rsqrt(spread + epsilon) * scale)
    y = (y + fitting(x.shape, bias)).to(x.dtype)
    new_mean = mean * momentum + seen * (1 - momentum)
    new_variance = variance * momentum + spread * (1 - momentum)
    return y, new_mean.to(mean.dtype), new_variance.to(variance.dtype)


def _rows_normalised(rows: Tensor, epsilon: float) -> Tensor:
    """Each row with mean 0 and variance 1; (rows, elements)."""
    return functional.layer_norm(_wide(rows), [rows.shape[-1]], None, None, epsilon)


def _instance_norm(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, scale, bias = inputs
    rows = x.reshape(x.shape[0] * x.shape[1], -1)
    y = _rows_normalised(rows, node.get("epsilon", 1e-5)).reshape(x.shape)
    return ((y * fitting(x.shape, scale) + fitting(x.shape, bias)).to(x.dtype),)


def _group_norm(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, scale, bias = inputs
    groups, channels = node.get("num_groups"), x.shape[1]
    if groups < 1 or channels % groups:
        fail("shape_mismatch", f"{channels} channels do not make {groups} groups")
    if node.opset < 21:  # one scale for each group
        each = channels // groups
        scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
    rows = x.reshape(x.shape[0] * groups, -1)
    y = _rows_normalised(rows, node.get("epsilon", 1e-5)).reshape(x.shape)
    return ((y * fitting(x.shape, scale) + fitting(x.shape, bias)).to(x.dtype),)


def _lp_norm(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    wide = _wide(x)
    size = torch.linalg.vector_norm(wide, node.get("p", 2), node.get("axis", -1), keepdim=True)
    return (torch.where(size == 0, torch.zeros_like(wide), wide / size).to(x.dtype),)


def _lrn(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    size = node.get("size")
    squares = (x * x).reshape(x.shape[0], x.shape[1], -1)
    before, after = (size - 1) // 2, size - 1 - (size - 1) // 2
    around = functional.pad(squares, (0, 0, before, after)).unfold(1, size, 1).sum(-1)
    factor = node.get("alpha", 1e-4) / size
    base = node.get("bias", 1.0) + factor * around.reshape(x.shape)
    return (x / base.pow(node.get("beta", 0.75)),)


def _mean_variance(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    axes = tuple(node.get("axes", [0, 2, 3]))
    mean = x.mean(axes, keepdim=True)
    spread = (x * x).mean(axes, keepdim=True) - mean * mean
    return ((x - mean) / (spread.sqrt() + 1e-9),)


OPERATORS: Final[dict[str, Operator]] = {
    "BatchNormalization": Operator(_batch_norm, width=Width.WIDE),
    "GroupNormalization": Operator(_group_norm, width=Width.WIDE),
    "InstanceNormalization": Operator(_instance_norm, width=Width.WIDE),
    "LRN": Operator(_lrn, width=Width.WIDE),
    "LayerNormalization": Operator(_layer_norm, width=Width.WIDE),
    "LogSoftmax": Operator(_log_softmax, width=Width.WIDE),
    "LpNormalization": Operator(_lp_norm, width=Width.WIDE),
    "MeanVarianceNormalization": Operator(_mean_variance, width=Width.WIDE),
    "RMSNormalization": Operator(_rms_norm, width=Width.WIDE),
    "Softmax": Operator(_softmax, width=Width.WIDE),
}
