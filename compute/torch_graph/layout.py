"""Operators that move elements: shapes, slices, joins, paddings.

Part of *execute*. Shapes and axes that are inputs are read on the host; the elements stay
where they are.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Final

import numpy as np
import torch

from shoal.compute.torch_graph.node import (
    HOST,
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    axes_of,
    axis_of,
    fail,
    given,
    integers_of,
    within_axis_limit,
    within_limit,
)


def _identity(_: Node, inputs: Inputs, __: Run) -> Outputs:
    return (inputs[0],)


def _dropout(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x = inputs[0]
    if not node.wants(1):
        return (x,)
    return x, torch.ones_like(x, dtype=torch.bool)


def _refuses_dropout(node: Node) -> str | None:
    return "a training_mode input" if any(node.inputs[2:]) else None


def _reshape(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, shape = inputs
    sizes = integers_of(shape)
    if not node.get("allowzero", 0):
        if any(size == 0 for size in sizes[x.ndim :]):
            fail("shape_mismatch", f"{sizes} copies a size that {list(x.shape)} does not have")
        sizes = [
            size or x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)
        ]
    if sizes.count(-1) == 1:
        rest = math.prod(size for size in sizes if size != -1)
        if rest and x.numel() % rest == 0:
            sizes[sizes.index(-1)] = x.numel() // rest
        elif not rest:
            fail("shape_mismatch", f"{sizes} leaves a size open that could be any")
    return (x.reshape(sizes),)


def _flatten(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    axis = node.get("axis", 1)
    if not -x.ndim <= axis <= x.ndim:
        fail("out_of_range", f"there is no axis {axis} in a tensor of {x.ndim} dimensions")
    axis = axis + x.ndim if axis < 0 else axis
    return (x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])),)


def _transpose(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    return (x.permute(tuple(node.get("perm", range(x.ndim - 1, -1, -1)))),)


def _squeeze(_: Node, inputs: Inputs, __: Run) -> Outputs:
    x, axes = given(inputs, 2)
    if axes is None:
        return (x.reshape([size for size in x.shape if size != 1]),)
    which = axes_of(integers_of(axes), x.ndim)
    if any(x.shape[axis] != 1 for axis in which):
        fail(
            "shape_mismatch", f"the axes {list(which)} of {list(x.shape)} are not all of size 1"
        )
    return (x.reshape([size for axis, size in enumerate(x.shape) if axis not in which]),)


def _unsqueeze(_: Node, inputs: Inputs, __: Run) -> Outputs:
    x, axes = inputs
    asked = integers_of(axes)
    which = axes_of(asked, x.ndim + len(asked))
    sizes = iter(x.shape)
    rank = x.ndim + len(asked)
    return (x.reshape([1 if axis in which else next(sizes) for axis in range(rank)]),)


def _expand(_: Node, inputs: Inputs, __: Run) -> Outputs:
    x, shape = inputs
    sizes = within_limit(integers_of(shape))
    try:
        target = np.broadcast_shapes(tuple(x.shape), sizes)  # both ways
    except ValueError:
        fail("shape_mismatch", f"{list(x.shape)} cannot be expanded to {list(sizes)}")
    return (x.expand(within_limit(target)),)


def _tile(_: Node, inputs: Inputs, __: Run) -> Outputs:
    x, repeats = inputs
    times = integers_of(repeats)
    if len(times) != x.ndim or any(n < 0 for n in times):
        fail("shape_mismatch", f"{times} does not say how often to repeat {list(x.shape)}")
    within_limit([size * n for size, n in zip(x.shape, times, strict=True)])
    return (x.repeat(times) if x.ndim else x,)


def _concat(node: Node, inputs: Inputs, _: Run) -> Outputs:
    axis = axis_of(node.get("axis"), inputs[0].ndim)
    # torch.cat takes an empty vector for nothing at all, whatever its rank.
    if len({x.ndim for x in inputs}) > 1:
        fail("shape_mismatch", "tensors of different ranks cannot be joined")
    return (torch.cat(tuple(inputs), axis),)


def _split(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, asked = given(inputs, 2)
    axis = axis_of(node.get("axis", 0), x.ndim)
    length = x.shape[axis]
    if asked is not None:
        sizes = integers_of(asked)
    else:
        parts = node.get("num_outputs", len(node.outputs))
        if parts != len(node.outputs):
            fail("shape_mismatch", f"{parts} parts do not fit {len(node.outputs)} outputs")
        size = -(-length // parts)
        sizes = [min(size, length - size * i) for i in range(parts)]
    if sum(sizes) != length or any(size < 0 for size in sizes):
        fail("shape_mismatch", f"{length} elements cannot be split into {sizes}")
    if len(sizes) != len(node.outputs):
        fail("shape_mismatch", f"{len(sizes)} parts do not fit {len(node.outputs)} outputs")
    ends = accumulate(sizes)
    return tuple(x.narrow(axis, end - n, n) for end, n in zip(ends, sizes, strict=True))


def clamped(start: int, end: int, step: int, length: int) -> range:
    """The indices of a slice; starts and ends beyond the tensor are moved into it."""
    start = start + length if start < 0 else start
    end = end + length if end < 0 else end
    if step > 0:
        return range(min(max(start, 0), length), min(max(end, 0), length), step)
    return range(min(max(start, -1), length - 1), min(max(end, -1), length - 1), step)


def _slice(_: Node, inputs: Inputs, __: Run) -> Outputs:
    x, starts, ends, axes, steps = given(inputs, 5)
    first, last = integers_of(starts), integers_of(ends)
    which = integers_of(axes) if axes is not None else list(range(len(first)))
    strides = integers_of(steps) if steps is not None else [1] * len(first)
    if not len(first) == len(last) == len(which) == len(strides):
        fail("shape_mismatch", "starts, ends, axes and steps have different lengths")
    if 0 in strides:
        fail("out_of_range", "a step is zero")
    for axis, start, end, step in zip(
        axes_of(which, x.ndim), first, last, strides, strict=True
    ):
        taken = clamped(start, end, step, x.shape[axis])
        if not taken:
            x = x.narrow(axis, 0, 0)
        elif step > 0:
            x = x[(slice(None),) * axis + (slice(taken.start, taken.stop, step),)]
        else:  # torch has no steps backwards
            x = x.flip(axis)
            turned = x.shape[axis] - 1 - taken.start
            part = slice(turned, turned + (len(taken) - 1) * -step + 1, -step)
            x = x[(slice(None),) * axis + (part,)]
    return (x,)


_PAD_MODES: Final = {"constant", "edge", "reflect", "wrap"}


def _pad(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, pads, value, axes = given(inputs, 4)
    which = axes_of(integers_of(axes), x.ndim) if axes is not None else range(x.ndim)
    amounts = integers_of(pads)
    if len(amounts) != 2 * len(which):
        fail("shape_mismatch", f"{len(amounts)} pads do not fit {len(which)} axes")
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(which):
        before[axis], after[axis] = amounts[i], amounts[i + len(which)]
    for axis in range(x.ndim):  # negative amounts cut
        begin = max(-before[axis], 0)
        end = max(x.shape[axis] + min(after[axis], 0), begin)
        x = x.narrow(axis, min(begin, x.shape[axis]), max(min(end, x.shape[axis]) - begin, 0))
    widths = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
    shape = within_limit([n + sum(width) for n, width in zip(x.shape, widths, strict=True)])
    mode = node.get("mode", "constant")
    if mode == "constant":
        return (padded(x, shape, widths, x.new_zeros(()) if value is None else value),)
    for axis, width in enumerate(widths):
        if not sum(width):
            continue
        if not x.shape[axis]:
            fail("shape_mismatch", f"an empty axis cannot be padded in the mode {mode!r}")
        within_axis_limit(x.shape[axis] + sum(width))
        index = np.pad(np.arange(x.shape[axis]), width, mode)
        x = x.index_select(axis, torch.from_numpy(index).to(x.device))
    return (x,)


def padded(
    x: Tensor, shape: tuple[int, ...], widths: list[tuple[int, int]], value: Tensor
) -> Tensor:
    """A tensor inside of a larger one that has one value everywhere else."""
    if tuple(x.shape) == shape:
        return x
    y = value.to(x.dtype).reshape(()).expand(shape).clone()
    inner = y
    for axis, (first, _) in enumerate(widths):
        inner = inner.narrow(axis, first, x.shape[axis])
    inner.copy_(x)
    return y


def _refuses_pad(node: Node) -> str | None:
    mode = node.get("mode", "constant")
    return None if mode in _PAD_MODES else f"the mode {mode!r}"


def _shape(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    taken = clamped(node.get("start", 0), node.get("end", x.ndim), 1, x.ndim)
    return (torch.tensor([x.shape[axis] for axis in taken], dtype=torch.int64, device=HOST),)


def _size(_: Node, inputs: Inputs, __: Run) -> Outputs:
    return (torch.tensor(math.prod(inputs[0].shape), dtype=torch.int64, device=HOST),)


def _trilu(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, k = given(inputs, 2)
    if x.ndim < 2:
        fail("shape_mismatch", "Trilu takes matrices")
    diagonal = 0 if k is None else integers_of(k)[0]
    rows, columns = x.shape[-2:]
    diagonal = min(max(diagonal, -rows), columns)
    # Chosen, not multiplied: a mask may hold infinities. torch.tril lacks some dtypes.
    index = torch.arange(columns, device=x.device) - torch.arange(
        rows, device=x.device
    ).unsqueeze(-1)
    kept = index >= diagonal if node.get("upper", 1) else index <= diagonal
    return (torch.where(kept, x, torch.zeros((), dtype=x.dtype, device=x.device)),)


def _depth_to_space(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    block = node.get("blocksize")
    if x.ndim != 4 or block < 1 or x.shape[1] % (block * block):
        fail("shape_mismatch", f"{list(x.shape)} has no blocks of {block}")
    n, c, h, w = x.shape
    depth = c // (block * block)
    if node.get("mode", "DCR") == "DCR":
        blocks = x.reshape(n, block, block, depth, h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, depth, block, block, h, w).permute(0, 1, 4, 2, 5, 3)
    return (blocks.reshape(n, depth, h * block, w * block),)


def _space_to_depth(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    block = node.get("blocksize")
    if x.ndim != 4 or block < 1 or x.shape[2] % block or x.shape[3] % block:
        fail("shape_mismatch", f"{list(x.shape)} has no blocks of {block}")
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return (blocks.reshape(n, c * block * block, h // block, w // block),)


_ONE: Final = frozenset({1})

OPERATORS: Final[dict[str, Operator]] = {
    "Concat": Operator(_concat),
    "DepthToSpace": Operator(_depth_to_space),
    "Dropout": Operator(_dropout, host=_ONE, refuses=_refuses_dropout),
    "Expand": Operator(_expand, host=_ONE),
    "Flatten": Operator(_flatten),
    "Identity": Operator(_identity),
    "Pad": Operator(_pad, host=frozenset({1, 3}), refuses=_refuses_pad),
    "Reshape": Operator(_reshape, host=_ONE),
    "Shape": Operator(_shape, shape_only=True),
    "Size": Operator(_size, shape_only=True),
    "Slice": Operator(_slice, host=frozenset({1, 2, 3, 4})),
    "SpaceToDepth": Operator(_space_to_depth),
    "Split": Operator(_split, host=_ONE),
    "Squeeze": Operator(_squeeze, host=_ONE),
    "Tile": Operator(_tile, host=_ONE),
    "Transpose": Operator(_transpose),
    "Trilu": Operator(_trilu, host=_ONE),
    "Unsqueeze": Operator(_unsqueeze, host=_ONE),
}
