"""Normalisation: layer, root mean square, batch, instance and group.

Part of *execute*. Each turns its axes into rows for one kernel, which rounds once;
per-channel factors are laid out so that row i takes the factors of its channel.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

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

_EPSILON: Final = float(np.float32(1e-5))


def _epsilon(node: Node) -> float:
    return float(np.float32(node.get("epsilon", _EPSILON)))


def _as_rows(x: Array, axis: int) -> Array:
    return dense(x).reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _weights(w: Array | None, x: Array, axis: int) -> Array | None:
    """Scale or bias as (groups, n), where row i of x takes the factors i % groups."""
    if w is None:
        return None
    try:
        if w.ndim <= x.ndim - axis:
            return dense(np.broadcast_to(w, x.shape[axis:])).reshape(1, -1)
        return _as_rows(np.broadcast_to(w, x.shape), axis)
    except ValueError:
        fail("shape_mismatch", f"factors of {list(w.shape)} do not fit {list(x.shape)}")


def layer_norm(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """LayerNormalization, with its mean and inverse deviation where they are asked for."""
    x, scale, bias = (*inputs, None)[:3]
    axis = axis_of(node.get("axis", -1), x.ndim)
    rows, eps = _as_rows(x, axis), _epsilon(node)
    y = kernels.layer_norm_rows(
        rows, _weights(scale, x, axis), _weights(bias, x, axis), eps
    ).reshape(x.shape)
    if not (node.wants(1) or node.wants(2)):
        return (y,)
    outer = (*x.shape[:axis], *[1] * (x.ndim - axis))
    mean = kernels.reduce_rows("mean", rows)
    centred = kernels.binary("sub", rows, mean[:, None])
    variance = kernels.reduce_rows("mean", kernels.binary("mul", centred, centred))
    deviation = kernels.unary("sqrt", kernels.binary("add", variance, float32(eps)))
    return y, mean.reshape(outer), kernels.unary("reciprocal", deviation).reshape(outer)


def rms_norm(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """RMSNormalization."""
    x, scale = inputs
    axis = axis_of(node.get("axis", -1), x.ndim)
    weights = _weights(scale, x, axis)
    return (kernels.rms_norm_rows(_as_rows(x, axis), weights, _epsilon(node)).reshape(x.shape),)


def _check_channels(x: Array, *factors: Array) -> None:
    if x.ndim < 2 or any(factor.shape != (x.shape[1],) for factor in factors):
        shapes = ", ".join(str(list(factor.shape)) for factor in factors)
        fail(
            "shape_mismatch", f"factors of {shapes} do not fit the channels of {list(x.shape)}"
        )


def batch_norm(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """BatchNormalization at inference."""
    x, scale, bias, mean, variance = inputs
    _check_channels(x if x.ndim > 1 else x.reshape(-1, 1), scale, bias, mean, variance)
    channels = x.shape[1] if x.ndim > 1 else 1
    planes = dense(x).reshape(x.shape[0], channels, math.prod(x.shape[2:]))
    factors = [dense(factor) for factor in (scale, bias, mean, variance)]
    return (kernels.batch_norm(planes, *factors, _epsilon(node)).reshape(x.shape),)


def _refuses_batch_norm(node: Node, _: Sequence[str | None]) -> str | None:
    return "training_mode=1" if node.get("training_mode", 0) else None


def _per_channel(factor: Array, groups: int, width: int) -> Array:
    """(channels,) as (groups, n): each channel's factor repeated over its pixels."""
    return np.repeat(factor, width).reshape(groups, -1)


def _grouped(
    x: Array, groups: int, scale: Array, bias: Array, eps: float, kernels: Kernels
) -> Array:
    pixels = math.prod(x.shape[2:])
    rows = dense(x).reshape(x.shape[0] * groups, (x.shape[1] // groups) * pixels)
    return kernels.layer_norm_rows(
        rows, _per_channel(scale, groups, pixels), _per_channel(bias, groups, pixels), eps
    ).reshape(x.shape)


def instance_norm(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """InstanceNormalization: each channel of each image by itself."""
    x, scale, bias = inputs
    _check_channels(x, scale, bias)
    return (_grouped(x, x.shape[1], scale, bias, _epsilon(node), kernels),)


def group_norm(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """GroupNormalization of opset 21, whose factors are per channel."""
    x, scale, bias = inputs
    _check_channels(x, scale, bias)
    groups = node.get("num_groups")
    if groups < 1 or x.shape[1] % groups:
        fail("shape_mismatch", f"{x.shape[1]} channels do not make {groups} groups")
    return (_grouped(x, groups, scale, bias, _epsilon(node), kernels),)


def _refuses_group_norm(node: Node, _: Sequence[str | None]) -> str | None:
    return "the form of opset 18, which ONNX took back" if node.opset < 21 else None


OPERATORS: Final[dict[str, Operator]] = {
    "BatchNormalization": Operator(batch_norm, FLOAT, refuses=_refuses_batch_norm),
    "GroupNormalization": Operator(group_norm, FLOAT, refuses=_refuses_group_norm),
    "InstanceNormalization": Operator(instance_norm, FLOAT),
    "LayerNormalization": Operator(layer_norm, FLOAT),
    "RMSNormalization": Operator(rms_norm, FLOAT),
}
