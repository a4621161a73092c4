"""Operators on images: grids of samples, crops, and columns put back into an image.

Part of *execute*.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Final

from torch.nn import functional

from shoal.compute.torch_graph.layout import padded
from shoal.compute.torch_graph.node import (
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Width,
    axes_of,
    fail,
    integers_of,
    within_limit,
)

_MODES: Final = {
    "linear": "bilinear",
    "bilinear": "bilinear",
    "nearest": "nearest",
    "cubic": "bicubic",
    "bicubic": "bicubic",
}
_PADDINGS: Final = frozenset({"zeros", "border", "reflection"})


def _grid_sample(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, grid = inputs
    mode = _MODES[node.get("mode", "linear")]
    within_limit([x.shape[0], x.shape[1], *grid.shape[1:-1]])
    y = functional.grid_sample(
        x,
        grid.to(x.dtype),
        mode,
        node.get("padding_mode", "zeros"),
        align_corners=bool(node.get("align_corners", 0)),
    )
    return (y,)


def _refuses_grid_sample(node: Node) -> str | None:
    mode, padding = node.get("mode", "linear"), node.get("padding_mode", "zeros")
    if mode not in _MODES:
        return f"the mode {mode!r}"
    return None if padding in _PADDINGS else f"the padding {padding!r}"


def _affine_grid(node: Node, inputs: Inputs, _: Run) -> Outputs:
    theta, size = inputs
    sizes = list(within_limit(integers_of(size)))
    return (functional.affine_grid(theta, sizes, bool(node.get("align_corners", 0))),)


def _center_crop_pad(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, shape = inputs
    wanted = within_limit(integers_of(shape))
    axes = axes_of(node.get("axes", range(x.ndim)), x.ndim)
    if len(axes) != len(wanted):
        fail("shape_mismatch", f"{list(wanted)} has no size for each of {len(axes)} axes")
    widths, sizes = [(0, 0)] * x.ndim, list(x.shape)
    for axis, size in zip(axes, wanted, strict=True):
        if size <= x.shape[axis]:
            x = x.narrow(axis, (x.shape[axis] - size) // 2, size)
        else:
            first = (size - x.shape[axis]) // 2
            widths[axis] = (first, size - x.shape[axis] - first)
        sizes[axis] = size
    return (padded(x, within_limit(sizes), widths, x.new_zeros(())),)


def _col2im(node: Node, inputs: Inputs, _: Run) -> Outputs:
    columns, image, block = inputs
    sizes, kernel = integers_of(image), integers_of(block)
    rank = len(sizes)
    strides = list(node.get("strides", [1] * rank))
    dilations = list(node.get("dilations", [1] * rank))
    pads = list(node.get("pads", [0] * (2 * rank)))
    if (
        columns.ndim != 3
        or columns.shape[1] < math.prod(kernel)
        or not len(kernel) == len(strides) == len(dilations) == len(pads) // 2 == rank
        or min((*kernel, *strides, *dilations, *sizes), default=0) < 1
        or min(pads, default=0) < 0
    ):
        fail("shape_mismatch", f"{list(columns.shape)} is no image of {sizes}")
    whole = [size + pads[a] + pads[a + rank] for a, size in enumerate(sizes)]
    counts = [
        (whole[a] - (kernel[a] - 1) * dilations[a] - 1) // strides[a] + 1 for a in range(rank)
    ]
    depth = columns.shape[1] // math.prod(kernel)
    parts = columns.reshape(columns.shape[0], depth, math.prod(kernel), *counts)
    y = columns.new_zeros(within_limit([columns.shape[0], depth, *whole]))
    for number, place in enumerate(product(*map(range, kernel))):
        seen = tuple(
            slice(k * gap, k * gap + (count - 1) * step + 1, step)
            for k, gap, count, step in zip(place, dilations, counts, strides, strict=True)
        )
        y[(slice(None), slice(None), *seen)] += parts[:, :, number]
    for axis, size in enumerate(sizes):
        y = y.narrow(2 + axis, pads[axis], size)
    return (y,)


OPERATORS: Final[dict[str, Operator]] = {
    "AffineGrid": Operator(_affine_grid, host=frozenset({1}), width=Width.WIDE),
    "CenterCropPad": Operator(_center_crop_pad, host=frozenset({1})),
    "Col2Im": Operator(_col2im, host=frozenset({1, 2}), width=Width.WIDE),
    "GridSample": Operator(_grid_sample, width=Width.WIDE, refuses=_refuses_grid_sample),
}
