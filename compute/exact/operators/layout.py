"""Operators that only arrange elements: shapes, axes, joining and cutting.

Part of *execute*. No arithmetic, so any dtype passes, and a mask's -inf too. Results
are often views of the inputs: nothing writes into a value once it is made.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.exact.operators.node import (
    Array,
    Inputs,
    Node,
    Operator,
    Outputs,
    axes_of,
    axis_of,
    fail,
    integers_of,
    within_limit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.exact.kernels import Kernels


def identity(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
    """Identity."""
    return (inputs[0],)


def dropout(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Dropout at inference: everything is kept."""
    x = inputs[0]
    return (x, np.ones(x.shape, np.bool_)) if node.wants(1) else (x,)


def _refuses_dropout(node: Node, _: Sequence[str | None]) -> str | None:
    return "a training_mode input" if any(node.inputs[2:]) else None


def reshape(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Reshape: 0 copies a size (unless ``allowzero``), one -1 is what is left."""
    x, shape = inputs
    sizes = integers_of(shape)
    if not node.get("allowzero", 0):
        if any(size == 0 and axis >= x.ndim for axis, size in enumerate(sizes)):
            fail("shape_mismatch", f"the shape {sizes} copies a size that {x.shape} lacks")
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    known = math.prod(size for size in sizes if size != -1)
    if sizes.count(-1) == 1 and known and not x.size % known:
        sizes[sizes.index(-1)] = x.size // known
    if any(size < 0 for size in sizes) or math.prod(sizes) != x.size:
        fail("shape_mismatch", f"{list(x.shape)} cannot be reshaped to {integers_of(shape)}")
    return (x.reshape(sizes),)


def _axes_input(inputs: Inputs, rank: int) -> tuple[int, ...] | None:
    if len(inputs) < 2 or inputs[1] is None:
        return None
    return axes_of(integers_of(inputs[1]), rank)


def squeeze(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
    """Squeeze: the axes named, or all of size 1."""
    x = inputs[0]
    axes = _axes_input(inputs, x.ndim)
    if axes is None:
        axes = tuple(axis for axis, size in enumerate(x.shape) if size == 1)
    if any(x.shape[axis] != 1 for axis in axes):
        fail("shape_mismatch", f"an axis of {list(x.shape)} to be squeezed is not 1")
    return (x.reshape([size for axis, size in enumerate(x.shape) if axis not in axes]),)


def unsqueeze(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
    """Unsqueeze: the axes are positions in the result."""
    x, axes = inputs
    positions = axes_of(integers_of(axes), x.ndim + axes.size)
    sizes = iter(x.shape)
    return (
        x.reshape([1 if i in positions else next(sizes) for i in range(x.ndim + axes.size)]),
    )


def flatten(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Flatten to two dimensions."""
    (x,) = inputs
    axis = node.get("axis", 1)
    if not -x.ndim <= axis <= x.ndim:
        fail("out_of_range", f"there is no axis {axis} in a tensor of {x.ndim} dimensions")
    axis = axis + x.ndim if axis < 0 else axis
    return (x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:])),)


def transpose(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Transpose."""
    (x,) = inputs
    perm = node.get("perm", list(range(x.ndim))[::-1])
    if sorted(perm) != list(range(x.ndim)):
        fail("shape_mismatch", f"{list(perm)} does not permute {x.ndim} dimensions")
    return (x.transpose(perm),)


def expand(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
    """Expand: both ways, so a size of the tensor may exceed the one asked for."""
    x, shape = inputs
    sizes = integers_of(shape)
    try:
        target = np.broadcast_shapes(x.shape, within_limit(sizes))
    except ValueError:
        fail("shape_mismatch", f"{list(x.shape)} cannot be expanded to {sizes}")
    return (np.broadcast_to(x, within_limit(target)),)


def tile(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
    """Tile."""
    x, repeats = inputs
    times = integers_of(repeats)
    if len(times) != x.ndim or any(n < 0 for n in times):
        fail("shape_mismatch", f"{times} does not say how often to repeat {list(x.shape)}")
    within_limit([size * n for size, n in zip(x.shape, times, strict=True)])
    return (np.tile(x, times),)


def concat(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Concat."""
    axis = axis_of(node.get("axis"), inputs[0].ndim)
    rest = {x.shape[:axis] + x.shape[axis + 1 :] for x in inputs}
    if len(rest) > 1 or len({x.ndim for x in inputs}) > 1:
        shapes = ", ".join(str(list(x.shape)) for x in inputs[:4])
        fail("shape_mismatch", f"tensors of {shapes} cannot be joined along axis {axis}")
    joined = sum(x.shape[axis] for x in inputs)
    within_limit([*inputs[0].shape[:axis], joined, *inputs[0].shape[axis + 1 :]])
    return (np.concatenate(inputs, axis),)


def split(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Split: by sizes, or into equal parts of which the last may be smaller."""
    x = inputs[0]
    axis = axis_of(node.get("axis", 0), x.ndim)
    length = x.shape[axis]
    if len(inputs) > 1 and inputs[1] is not None:
        sizes = integers_of(inputs[1])
    else:
        parts = node.get("num_outputs", len(node.outputs))
        if parts < 1:
            fail("shape_mismatch", f"nothing can be split into {parts} parts")
        size = -(-length // parts)
        sizes = [min(size, length - size * i) for i in range(parts)]
    if sum(sizes) != length or any(size < 0 for size in sizes):
        fail("shape_mismatch", f"{length} elements cannot be split into {sizes}")
    if len(sizes) != len(node.outputs):
        fail("shape_mismatch", f"{len(sizes)} parts do not fit {len(node.outputs)} outputs")
    ends = list(accumulate(sizes))
    return tuple(_cut(x, axis, slice(end - n, end)) for end, n in zip(ends, sizes, strict=True))


def _cut(x: Array, axis: int, part: slice) -> Array:
    return x[(slice(None),) * axis + (part,)]


def slice_(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
    """Slice: starts and ends are clamped to the tensor, steps may be negative."""
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    first, last = integers_of(starts), integers_of(ends)
    which = integers_of(axes) if axes is not None else range(len(first))
    strides = integers_of(steps) if steps is not None else [1] * len(first)
    if not len(first) == len(last) == len(which) == len(strides):
        fail("shape_mismatch", "starts, ends, axes and steps have different lengths")
    if 0 in strides:
        fail("out_of_range", "a step is zero")
    for axis, start, end, step in zip(
        axes_of(which, x.ndim), first, last, strides, strict=True
    ):
        x = _cut(x, axis, _clamped(start, end, step, x.shape[axis]))
    return (x,)


def _clamped(start: int, end: int, step: int, length: int) -> slice:
    start = start + length if start < 0 else start
    end = end + length if end < 0 else end
    if step > 0:
        return slice(min(max(start, 0), length), min(max(end, 0), length), step)
    start, end = min(max(start, -1), length - 1), min(max(end, -1), length - 1)
    # Before the first element is -1 here, which Python would take for the last one.
    return slice(start, end if end >= 0 else None, step) if start >= 0 else slice(0, 0)


_PAD_MODES: Final = {
    "constant": "constant",
    "edge": "edge",
    "reflect": "reflect",
    "wrap": "wrap",
}


def pad(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Pad: negative amounts cut."""
    x, pads, value, axes = (*inputs, None, None)[:4]
    which = axes_of(integers_of(axes), x.ndim) if axes is not None else range(x.ndim)
    amounts = integers_of(pads)
    if len(amounts) != 2 * len(which):
        fail("shape_mismatch", f"{len(amounts)} pads do not fit {len(which)} axes")
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(which):
        before[axis], after[axis] = amounts[i], amounts[i + len(which)]
    for axis in range(x.ndim):
        cut = slice(max(-before[axis], 0), max(x.shape[axis] + min(after[axis], 0), 0))
        x = _cut(x, axis, cut)
    widths = [(max(b, 0), max(a, 0)) for b, a in zip(before, after, strict=True)]
    within_limit([size + sum(width) for size, width in zip(x.shape, widths, strict=True)])
    return (_padded(x, widths, node.get("mode", "constant"), value),)


def _padded(
    x: Array, widths: Sequence[tuple[int, int]], mode: str, value: Array | None
) -> Array:
    if mode == "constant":
        fill = np.zeros((), x.dtype) if value is None else value.reshape(())
        return np.pad(x, widths, constant_values=fill)
    if any(not size and sum(width) for size, width in zip(x.shape, widths, strict=True)):
        fail("shape_mismatch", f"an empty tensor cannot be padded in the mode {mode!r}")
    return np.pad(x, widths, mode=_PAD_MODES[mode])  # type: ignore[call-overload]


def _refuses_pad(node: Node, _: Sequence[str | None]) -> str | None:
    mode = node.get("mode", "constant")
    return None if mode in _PAD_MODES else f"the mode {mode!r}"


def shape(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Shape, or a part of it."""
    (x,) = inputs
    start, end = node.get("start", 0), node.get("end", x.ndim)
    part = x.shape[_clamped(start, end, 1, x.ndim)]
    return (np.array(part, np.int64),)


def size(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
    """Size."""
    return (np.array(inputs[0].size, np.int64),)


def trilu(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Trilu: one triangle of each matrix, zeros elsewhere."""
    x, k = (*inputs, None)[:2]
    if x.ndim < 2:
        fail("shape_mismatch", "Trilu takes matrices")
    rows, columns = x.shape[-2:]
    diagonal = 0 if k is None else integers_of(k)[0]
    diagonal = min(max(diagonal, -rows), columns)
    upper = bool(node.get("upper", 1))
    below = np.tri(rows, columns, diagonal - 1 if upper else diagonal, dtype=np.bool_)
    return (np.where(~below if upper else below, x, np.zeros((), x.dtype)),)


def depth_to_space(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """DepthToSpace: blocks of channels become blocks of pixels."""
    (x,) = inputs
    block = node.get("blocksize")
    if x.ndim != 4 or block < 1 or x.shape[1] % (block * block):
        fail("shape_mismatch", f"{list(x.shape)} has no blocks of {block}")
    n, c, h, w = x.shape
    depth = c // (block * block)
    if node.get("mode", "DCR") == "DCR":
        blocks = x.reshape(n, block, block, depth, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, depth, block, block, h, w).transpose(0, 1, 4, 2, 5, 3)
    return (blocks.reshape(n, depth, h * block, w * block),)


def space_to_depth(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """SpaceToDepth: blocks of pixels become blocks of channels."""
    (x,) = inputs
    block = node.get("blocksize")
    if x.ndim != 4 or block < 1 or x.shape[2] % block or x.shape[3] % block:
        fail("shape_mismatch", f"{list(x.shape)} has no blocks of {block}")
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // block, block, w // block, block).transpose(0, 3, 5, 1, 2, 4)
    return (blocks.reshape(n, c * block * block, h // block, w // block),)


OPERATORS: Final[dict[str, Operator]] = {
    "Concat": Operator(concat),
    "DepthToSpace": Operator(depth_to_space),
    "Dropout": Operator(dropout, refuses=_refuses_dropout),
    "Expand": Operator(expand),
    "Flatten": Operator(flatten),
    "Identity": Operator(identity),
    "Pad": Operator(pad, refuses=_refuses_pad),
    "Reshape": Operator(reshape),
    "Shape": Operator(shape),
    "Size": Operator(size),
    "Slice": Operator(slice_),
    "SpaceToDepth": Operator(space_to_depth),
    "Split": Operator(split),
    "Squeeze": Operator(squeeze),
    "Tile": Operator(tile),
    "Transpose": Operator(transpose),
    "Trilu": Operator(trilu),
    "Unsqueeze": Operator(unsqueeze),
}
