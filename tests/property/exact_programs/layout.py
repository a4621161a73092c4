"""Calls of the operators of `shoal.compute.exact.operators.layout` and ``sources``."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from exact_programs.program import Call
from exact_programs.source import Source, code_of, int64s
from shoal.compute.exact.operators.node import ANY


def any_tensor(source: Source, shape: tuple[int, ...]) -> np.ndarray:
    """What may be moved: any dtype, masks too."""
    return source.array(shape, source.dtype(), masks=True)


def moved(source: Source) -> Call:
    """Identity, Size: a tensor and nothing else."""
    return Call((any_tensor(source, source.shape()),))


def dropout(source: Source) -> Call:
    ratio = source.pick(None, np.array(0.5, np.float32))
    inputs = (source.floats(source.shape(), masks=True), ratio)
    return Call(inputs, outputs=source.pick((True,), (True, True), (False, True)))


def reshape(source: Source) -> Call:
    """Sizes regrouped, copied by 0, inferred by -1; rarely ones that do not fit."""
    shape = source.shape()
    x = any_tensor(source, shape)
    axis = source.integer(0, len(shape))
    sizes = [math.prod(shape[:axis]), math.prod(shape[axis:])]
    sizes = source.pick(sizes, sizes[::-1], [*shape], [*shape, 1], [x.size])
    if sizes and source.flag():
        sizes[source.integer(0, len(sizes) - 1)] = -1
    allow_zero = source.flag()
    if not allow_zero and shape and sizes and sizes[0] == shape[0] and source.flag():
        sizes[0] = 0
    if source.rarely():
        sizes.append(source.pick(2, -1, -2, 0))
    return Call((x, int64s(sizes)), {"allowzero": allow_zero})


def squeeze(source: Source) -> Call:
    shape = tuple(source.pick(1, 1, 2, 3, 0) for _ in range(source.integer(0, 4)))
    ones = [axis for axis, size in enumerate(shape) if size == 1]
    axes = [axis - source.pick(0, len(shape)) for axis in ones if source.flag()]
    if source.rarely():
        axes = source.axes(len(shape))
    return Call((any_tensor(source, shape), source.pick(None, int64s(axes))))


def unsqueeze(source: Source) -> Call:
    shape = source.shape(most=3)
    rank = len(shape) + source.integer(0, 2)
    places = source.draw(st.permutations(range(rank)))[: rank - len(shape)]
    axes = [axis - source.pick(0, rank) for axis in places]
    axes = [*axes[:-1], rank] if axes and source.rarely() else axes
    return Call((any_tensor(source, shape), int64s(axes)))


def flatten(source: Source) -> Call:
    shape = source.shape()
    beyond = len(shape) + 1 if source.rarely() else len(shape)
    return Call((any_tensor(source, shape),), {"axis": source.integer(-beyond, beyond)})


def transpose(source: Source) -> Call:
    shape = source.shape(1)
    order = source.draw(st.permutations(range(len(shape))))
    order = [0] * len(shape) if source.rarely() else order
    return Call((any_tensor(source, shape),), source.pick({}, {"perm": order}))


def expand(source: Source) -> Call:
    shape, target = source.shapes(2)
    return Call((any_tensor(source, shape), int64s(target)))


def tile(source: Source) -> Call:
    shape = source.shape(most=3)
    times = [source.pick(1, 2, 3, 0) for _ in shape]
    times = [*times, 1] if source.rarely() else times
    return Call((any_tensor(source, shape), int64s(times)))


def concat(source: Source) -> Call:
    shape, dtype = source.shape(1), source.dtype()
    axis = source.axis(len(shape))
    place = axis % len(shape)
    parts = []
    for _ in range(source.integer(1, 4)):
        part = (*shape[:place], source.side(), *shape[place + 1 :])
        part = (*part, 1) if source.rarely() else part
        parts.append(source.array(part, dtype, masks=True))
    return Call(tuple(parts), {"axis": axis})


def split(source: Source) -> Call:
    """By sizes, or into so many parts, which may leave nothing for the last ones."""
    parts = source.integer(1, 4)
    outputs = (True,) * parts
    if source.flag():
        shape = list(source.shape(1))
        axis = source.axis(len(shape))
        shape[axis % len(shape)] = max(source.integer(0, 9), parts if source.flag() else 0)
        x = any_tensor(source, tuple(shape))
        return Call((x,), {"axis": axis, "num_outputs": parts}, outputs)
    sizes = [source.pick(1, 2, 3, 0) for _ in range(parts)]
    shape = list(source.shape(1))
    axis = source.axis(len(shape))
    shape[axis % len(shape)] = sum(sizes) + source.rarely()
    return Call((any_tensor(source, tuple(shape)), int64s(sizes)), {"axis": axis}, outputs)


def slice_(source: Source) -> Call:
    """Starts and ends on either side of the tensor, steps of either sign."""
    shape = source.shape(1)
    x = any_tensor(source, shape)
    axes = source.pick(None, source.axes(len(shape)))
    count = len(shape) if axes is None else len(axes)
    dtype = source.pick("int64", "int32")
    far = np.iinfo(dtype)
    steps = [source.pick(1, -1, 2, -3, 1, -1, 2, far.max, far.min) for _ in range(count)]
    ends = [
        [source.integer(-7, 7) if source.flag() else whole for whole in wholes]
        for wholes in (
            [far.min if step > 0 else far.max for step in steps],
            [far.max if step > 0 else far.min for step in steps],
        )
    ]
    steps = [0] * count if source.rarely() else steps
    steps = source.pick(steps, None)
    given = (*ends, axes, steps)
    return Call((x, *(None if v is None else np.array(v, dtype) for v in given)))


def pad(source: Source) -> Call:
    """Of every mode; negative amounts cut."""
    shape, dtype = source.shape(1, 3), source.dtype()
    mode = source.pick(*("constant", "reflect", "edge"), *(("wrap",) * (source.opset > 18)))
    axes = source.pick(None, source.axes(len(shape)))
    count = len(shape) if axes is None else len(axes)
    amounts = [source.pick(0, 1, 2, 3, 5, -1) for _ in range(2 * count)]
    amounts = amounts[1:] if source.rarely() else amounts
    value = source.pick(None, source.array((), dtype, masks=True))
    return Call(
        (
            source.array(shape, dtype, masks=True),
            int64s(amounts),
            value if mode == "constant" else None,
            None if axes is None else int64s(axes),
        ),
        source.pick({}, {"mode": mode}) if mode == "constant" else {"mode": mode},
    )


def shape_of(source: Source) -> Call:
    part = {name: source.integer(-6, 6) for name in ("start", "end") if source.flag()}
    return Call((any_tensor(source, source.shape()),), part)


def trilu(source: Source) -> Call:
    shape = source.shape(1 if source.rarely() else 2)
    far = np.iinfo(np.int64)
    diagonal = source.pick(None, source.integer(-6, 6), far.min, far.max)
    k = None if diagonal is None else np.array(diagonal, np.int64)
    return Call((any_tensor(source, shape), k), source.pick({}, {"upper": source.flag()}))


def depth_to_space(source: Source) -> Call:
    block = source.integer(1, 3)
    depth = source.side() * block**2 + source.rarely()
    attributes = source.pick({}, {"mode": "DCR"}, {"mode": "CRD"})
    shape = (source.side(), depth, source.side(), source.side())
    return Call((any_tensor(source, shape),), {"blocksize": block, **attributes})


def space_to_depth(source: Source) -> Call:
    block = source.integer(1, 3)
    rows = source.side() * block + source.rarely()
    shape = (source.side(), source.side(), rows, source.side() * block)
    return Call((any_tensor(source, shape),), {"blocksize": block})


# -- tensors out of attributes and sizes ----------------------------------------------------


def constant(source: Source) -> Call:
    name = source.pick("value", "value_float", "value_floats", "value_int", "value_ints")
    shape = source.shape()
    if name == "value":
        dtype = source.pick("float32", *sorted(ANY))
        return Call((), {name: source.array(shape, dtype, masks=True)})
    dtype = "float32" if "float" in name else "int64"
    values = source.array((source.integer(1, 5),), dtype, masks=True).tolist()
    return Call((), {name: values if name.endswith("s") else values[0]})


def constant_of_shape(source: Source) -> Call:
    shape = int64s(source.shape())
    if source.rarely():
        shape = int64s([source.pick(-1, 1 << 40), 3])
    if source.flag():
        return Call((shape,))
    return Call((shape,), {"value": source.array((1,), source.pick("float32", *sorted(ANY)))})


def eye_like(source: Source) -> Call:
    shape = source.shape(1 if source.rarely() else 2, 2)
    x = source.array(shape, source.dtype())
    to = source.pick(None, *sorted(ANY))
    attributes = {} if to is None else {"dtype": code_of(to)}
    return Call((x,), {**attributes, **source.pick({}, {"k": source.integer(-6, 6)})})


def one_hot(source: Source) -> Call:
    """Indices of any number dtype, in range and beyond it."""
    shape, depth = source.shape(most=3), source.integer(0, 5)
    indices = source.array(shape, source.dtype("float32", "int32", "int64", "uint8"))
    if indices.dtype == np.float32:
        indices = np.rint(np.clip(indices, -100, 100))
    values = source.array((2,), source.pick("float32", *sorted(ANY)), masks=True)
    depths = np.array(depth, source.pick("int64", "int32", "float32", "uint8"))
    depths = source.pick(depths, depths.reshape(1))
    return Call((indices, depths, values), {"axis": source.axis(len(shape) + 1)})


def range_(source: Source) -> Call:
    """Whole steps, or floats; rarely none at all."""
    dtype = source.dtype()
    step = source.pick(1, -1, 2, -3) if not source.rarely() else 0
    start, count = source.integer(-9, 9), source.integer(-2, 9)
    given = [start, start + count * step, step]
    if dtype == "float32":
        given = np.array(given, np.float32) * np.float32(source.pick(1, 0.1, 1e-30, 3e7))
    return Call(tuple(np.array(value, dtype) for value in given))


CALLS = {
    "Concat": concat,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "DepthToSpace": depth_to_space,
    "Dropout": dropout,
    "Expand": expand,
    "EyeLike": eye_like,
    "Flatten": flatten,
    "Identity": moved,
    "OneHot": one_hot,
    "Pad": pad,
    "Range": range_,
    "Reshape": reshape,
    "Shape": shape_of,
    "Size": moved,
    "Slice": slice_,
    "SpaceToDepth": space_to_depth,
    "Split": split,
    "Squeeze": squeeze,
    "Tile": tile,
    "Transpose": transpose,
    "Trilu": trilu,
    "Unsqueeze": unsqueeze,
}
