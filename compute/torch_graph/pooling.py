"""Pooling over windows, and over whole images.

Part of *execute*. Floats with one to three spatial axes go to torch's own kernels, anything
else is reduced over a view of its windows.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from shoal.compute.exact.operators.windows import windows_of
from shoal.compute.torch_graph.convolution import pads_of
from shoal.compute.torch_graph.node import (
    FLOATS,
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    fail,
    within_axis_limit,
    within_limit,
)

if TYPE_CHECKING:
    from shoal.compute.exact.operators.windows import Windows

_MAX: Final = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)


def _windows(node: Node, x: Tensor) -> Windows:
    if x.ndim < 3:
        fail("shape_mismatch", f"{list(x.shape)} has no spatial axes")
    windows = windows_of(node, x.shape[2:], node.get("kernel_shape"))
    within_limit([*x.shape[:2], *windows.out])
    return windows


def _padded(x: Tensor, windows: Windows, fill: float) -> Tensor:
    if not any(windows.before) and not any(windows.reach):
        return x
    return functional.pad(x, pads_of(windows.before, windows.reach), value=fill)


def _seen(x: Tensor, windows: Windows) -> Tensor:
    """(N, C, *out, *kernel): what each window of a padded image sees, without a copy."""
    for axis, (size, gap, step, count) in enumerate(
        zip(windows.kernel, windows.dilations, windows.strides, windows.out, strict=True)
    ):
        x = x.unfold(2 + axis, (size - 1) * gap + 1, step)[..., ::gap].narrow(
            2 + axis, 0, count
        )
    return x


def _kernel_axes(x: Tensor) -> tuple[int, ...]:
    return tuple(range(x.ndim, 2 * x.ndim - 2))


def _max_pool(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    windows = _windows(node, x)
    if x.dtype not in FLOATS or x.ndim > 5:
        lowest = -math.inf if x.dtype in FLOATS else torch.iinfo(x.dtype).min
        if node.wants(1):
            fail("unsupported_operator", f"MaxPool gives no indices of {x.dtype} here")
        return (_seen(_padded(x, windows, lowest), windows).amax(_kernel_axes(x)),)
    pooled = _MAX[x.ndim - 3](
        _padded(x, windows, -math.inf),
        windows.kernel,
        windows.strides,
        0,
        windows.dilations,
        return_indices=node.wants(1),
    )
    if not node.wants(1):
        return (pooled,)
    values, flat = pooled
    return values, _places(flat, x, windows, column_major=bool(node.get("storage_order", 0)))


def _places(flat: Tensor, x: Tensor, windows: Windows, *, column_major: bool) -> Tensor:
    """Indices into one padded image as indices into the whole tensor, as ONNX has them."""
    spatial = list(x.shape[2:])
    sizes = [
        size + first + last
        for size, first, last in zip(spatial, windows.before, windows.reach, strict=True)
    ]
    index, stride = torch.zeros_like(flat), 1
    left, strides = flat, [0] * len(spatial)
    for axis in range(len(spatial)) if column_major else reversed(range(len(spatial))):
        strides[axis] = stride
        stride *= spatial[axis]
    for axis in reversed(range(len(spatial))):
        index = index + (left % sizes[axis] - windows.before[axis]) * strides[axis]
        left = left // sizes[axis]
    images = torch.arange(x.shape[0] * x.shape[1], device=x.device) * stride
    return index + images.reshape(*x.shape[:2], *[1] * len(spatial))


def _counts(windows: Windows, spatial: list[int], *, with_pads: bool) -> Tensor:
    """How many elements each window of an average has; (*out), on the host."""
    counts = torch.ones(())
    for axis, size in enumerate(spatial):
        first = windows.before[axis]
        low, high = (
            (0, size + first + windows.after[axis]) if with_pads else (first, first + size)
        )
        within_axis_limit(windows.out[axis])
        starts = torch.arange(windows.out[axis]) * windows.strides[axis]
        gap, length = windows.dilations[axis], windows.kernel[axis]
        # A window sees start, start + gap, and so on: how many of these lie before a bound?
        under = [((end - starts + gap - 1) // gap).clamp(0, length) for end in (low, high)]
        counts = counts.unsqueeze(-1) * (under[1] - under[0])
    return counts


def _window_sums(x: Tensor, windows: Windows) -> Tensor:
    padded = _padded(x, windows, 0)
    flat = x.ndim == 3
    if x.ndim <= 5 and all(gap == 1 for gap in windows.dilations) and x.dtype in FLOATS:
        pool = functional.avg_pool3d if x.ndim == 5 else functional.avg_pool2d
        kernel, strides = windows.kernel, windows.strides
        if flat:  # torch's pooling of one axis has no divisor of its own
            padded, kernel, strides = padded.unsqueeze(2), (1, *kernel), (1, *strides)
        y = pool(padded, kernel, strides, divisor_override=1)
        return y.squeeze(2) if flat else y
    return _seen(padded, windows).sum(_kernel_axes(x))


def _average_pool(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    windows = _windows(node, x)
    with_pads = bool(node.get("count_include_pad", 0))
    counts = _counts(windows, list(x.shape[2:]), with_pads=with_pads)
    y = _window_sums(x.float() if x.dtype in {torch.float16, torch.bfloat16} else x, windows)
    return ((y / counts.to(device=y.device, dtype=y.dtype)).to(x.dtype),)


def _lp_pool(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    p = node.get("p", 2)
    return (_window_sums(x.abs().pow(p), _windows(node, x)).pow(1 / p),)


def _global_average(_: Node, inputs: Inputs, __: Run) -> Outputs:
    (x,) = inputs
    return (x.mean(tuple(range(2, x.ndim)), keepdim=True),)


def _global_max(_: Node, inputs: Inputs, __: Run) -> Outputs:
    (x,) = inputs
    return (x.amax(tuple(range(2, x.ndim)), keepdim=True),)


def _global_lp(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    axes = tuple(range(2, x.ndim))
    return (torch.linalg.vector_norm(x, node.get("p", 2), axes, keepdim=True),)


OPERATORS: Final[dict[str, Operator]] = {
    "AveragePool": Operator(_average_pool, width=Width.WIDE),
    "GlobalAveragePool": Operator(_global_average, width=Width.WIDE),
    "GlobalLpPool": Operator(_global_lp, width=Width.WIDE),
    "GlobalMaxPool": Operator(_global_max),
    "LpPool": Operator(_lp_pool, width=Width.WIDE),
    "MaxPool": Operator(_max_pool),
}
