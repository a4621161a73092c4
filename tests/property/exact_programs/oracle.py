"""What an operator gives by someone else's words: `onnx.reference`, or a loop over elements.

The loops stand where onnx.reference fails or errs: on empty tensors, negative pads,
per-row zero points, integers that it multiplies as float64, windows over padding. They
go element by element through Python integers, and share nothing with
`shoal.compute.exact.operators`.
"""

from __future__ import annotations

import itertools
import math
import warnings
from typing import TYPE_CHECKING

import numpy as np
from onnx.reference import ReferenceEvaluator

from shoal.compute.exact.reference import ReferenceKernels

if TYPE_CHECKING:
    from collections.abc import Callable

    from exact_programs.program import Program

    Results = list[np.ndarray]

ROUNDED_GAPS = {
    "DequantizeLinear": "opset 18 is missing",
    "GlobalAveragePool": "a mean of no channels divides by zero",
    "GroupNormalization": "an empty tensor cannot be regrouped",
    "Mean": "a later input may not broadcast the first",
    "ReduceLogSumExp": "of a single element it gives no array",
    "Softsign": "of a tensor of no axes it gives no array",
}
"""Where onnx.reference raises, on operators whose shapes alone are compared."""


def results_by_onnx(program: Program) -> Results | None:
    """The outputs that are asked for, of inputs flushed as they enter.

    None where nothing is known, which only the operators of `ROUNDED_GAPS` may have.
    """
    flushed = {
        name: ReferenceKernels.admit(array) if array.dtype == np.float32 else array
        for name, array in program.inputs.items()
    }
    if program.operator in _LOOPS:
        given = [flushed.get(f"i{number}") for number in range(len(program.call.inputs))]
        results = _LOOPS[program.operator](program.call.attributes, *given)
        wanted = program.call.outputs
        return [array for array, asked in zip(results, wanted, strict=False) if asked]
    if program.operator == "CumSum":  # onnx.reference takes an axis of no axes only
        flushed["i1"] = flushed["i1"].reshape(())
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            results = ReferenceEvaluator(program.model).run(None, flushed)
        except (ArithmeticError, IndexError, RuntimeError, TypeError, ValueError):
            if program.operator in ROUNDED_GAPS:
                return None
            raise
    return [np.asarray(array) for array in results]


def _filled(shape, dtype, element: Callable[[tuple[int, ...]], object]) -> np.ndarray:
    result = np.zeros(shape, dtype)
    for place in np.ndindex(*result.shape):
        result[place] = element(place)
    return result


def _flatten(attributes, x) -> Results:
    axis = attributes["axis"] + (x.ndim if attributes["axis"] < 0 else 0)
    return [x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))]


def _gather_elements(attributes, x, indices) -> Results:
    axis = attributes["axis"] % x.ndim

    def element(place):
        return x[(*place[:axis], indices[place], *place[axis + 1 :])]

    return [_filled(indices.shape, x.dtype, element)]


def _one_hot(attributes, indices, depth, values) -> Results:
    rank, size = indices.ndim + 1, int(depth.reshape(())[()])
    axis = attributes["axis"] % rank

    def element(place):
        index = int(indices[(*place[:axis], *place[axis + 1 :])])
        return values[int(place[axis] in {index, index + size} and -size <= index < size)]

    shape = (*indices.shape[:axis], size, *indices.shape[axis:])
    return [_filled(shape, values.dtype, element)]


def _trilu(attributes, x, k) -> Results:
    diagonal, upper = 0 if k is None else int(k[()]), attributes.get("upper", 1)

    def element(place):
        beyond = place[-1] - place[-2] - diagonal
        return x[place] if (beyond >= 0 if upper else beyond <= 0) else 0

    return [_filled(x.shape, x.dtype, element)]


def _pad(attributes, x, amounts, value, axes) -> Results:
    """Cut first; then each index is traced back to where its element is from."""
    which = range(x.ndim) if axes is None else [int(axis) % x.ndim for axis in axes]
    pads = dict.fromkeys(range(x.ndim), (0, 0))
    pads |= {
        axis: (int(amounts[i]), int(amounts[i + len(which)])) for i, axis in enumerate(which)
    }
    for axis, (before, after) in pads.items():
        kept = range(max(-before, 0), x.shape[axis] + min(after, 0))
        x = x.take(np.array(kept, np.int64), axis)
    before = [max(pads[axis][0], 0) for axis in range(x.ndim)]
    shape = [before[axis] + size + max(pads[axis][1], 0) for axis, size in enumerate(x.shape)]
    mode = attributes.get("mode", "constant")

    def origin(index, size):
        if mode == "constant":
            return index if 0 <= index < size else None
        if mode == "edge":
            return min(max(index, 0), size - 1)
        if mode == "wrap":
            return index % size
        index %= max(2 * size - 2, 1)
        return min(index, 2 * size - 2 - index)

    def element(place):
        back = [origin(i - b, n) for i, b, n in zip(place, before, x.shape, strict=True)]
        if None in back:
            return 0 if value is None else value[()]
        return x[tuple(back)]

    return [_filled(shape, x.dtype, element)]


def _gather_nd(attributes, x, indices) -> Results:
    batch, depth = attributes["batch_dims"], indices.shape[-1]
    outer = indices.shape[:-1]

    def element(place):
        chosen = indices[place[: len(outer)]].tolist()
        return x[(*place[:batch], *chosen, *place[len(outer) :])]

    return [_filled((*outer, *x.shape[batch + depth :]), x.dtype, element)]


def _shape(attributes, x) -> Results:
    start, end = attributes.get("start", 0), attributes.get("end", x.ndim)
    start, end = (max(at + x.ndim, 0) if at < 0 else at for at in (start, end))
    return [np.array(x.shape[start:end], np.int64)]


def _power(_, x, y) -> Results:
    if x.dtype == np.float32:  # its shape: the values are rounded
        return [np.zeros(np.broadcast_shapes(x.shape, y.shape), np.float32)]
    x, y = np.broadcast_arrays(x, y)
    powers = [pow(int(base), int(n), 1 << 64) for base, n in zip(x.flat, y.flat, strict=True)]
    return [np.array(powers, np.uint64).reshape(x.shape).astype(x.dtype)]


def _range(_, start, limit, step) -> Results:
    if start.dtype == np.float32:  # where onnx.reference counts in float64
        count = max(math.ceil((limit - start) / step), 0)
        return [start + np.arange(count, dtype=np.float32) * step]
    return [np.array(range(int(start), int(limit), int(step)), start.dtype)]


def _constant(attributes) -> Results:
    """Flushed, as constants are when they enter."""
    ((name, value),) = attributes.items()
    dtypes = {"value_float": np.float32, "value_int": np.int64}
    array = np.asarray(value, dtypes.get(name.removesuffix("s")))
    return [ReferenceKernels.admit(array) if array.dtype == np.float32 else array]


def _constant_of_shape(attributes, shape) -> Results:
    value = np.asarray(attributes.get("value", np.zeros(1, np.float32)))
    (value,) = _constant({"value": value})
    return [np.full(shape.tolist(), value[0])]


def _global_max_pool(_, x) -> Results:
    return [x.max(axis=tuple(range(2, x.ndim)), keepdims=True, initial=-np.inf)]


def _reduce_sum_square(attributes, x, axes) -> Results:
    none = axes is None or not axes.size
    over = tuple(range(x.ndim)) if none else tuple(int(axis) for axis in axes)
    over = () if none and attributes["noop_with_empty_axes"] else over
    keep = bool(attributes["keepdims"])
    return [np.asarray(np.sum(x * x, axis=over, dtype=x.dtype, keepdims=keep))]


def _matmul_integer(_, a, b, a_zero, b_zero) -> Results:
    a, b = a.astype(np.int64), b.astype(np.int64)
    if a_zero is not None:
        a = a - (int(a_zero.item()) if a_zero.size == 1 else a_zero.astype(np.int64)[:, None])
    if b_zero is not None:
        b = b - b_zero.astype(np.int64)
    return [np.asarray(np.matmul(a, b)).astype(np.int32)]


# -- windows --------------------------------------------------------------------------------


def _windows(attributes, spatial, kernel):
    """For each axis: for each window, the positions that it reads, in the image or not."""
    rank, lines = len(spatial), []
    for axis, size in enumerate(spatial):
        step = attributes.get("strides", [1] * rank)[axis]
        gap = attributes.get("dilations", [1] * rank)[axis]
        span = gap * (kernel[axis] - 1) + 1
        kind = attributes.get("auto_pad", "NOTSET")
        first, last = 0, 0
        if kind == "NOTSET" and "pads" in attributes:
            first, last = attributes["pads"][axis], attributes["pads"][axis + rank]
        if kind.startswith("SAME"):
            count = math.ceil(size / step)
            total = max(step * (count - 1) + span - size, 0)
            first = total // 2 if kind == "SAME_UPPER" else math.ceil(total / 2)
        else:
            room = (size + first + last - span) / step
            count = (math.ceil(room) if attributes.get("ceil_mode") else math.floor(room)) + 1
            if attributes.get("ceil_mode") and step * (count - 1) - first >= size:
                count -= 1  # the last one would begin beyond the image
        lines.append(
            [[step * i - first + gap * j for j in range(kernel[axis])] for i in range(count)]
        )
    return lines


def _seen(lines, place, spatial):
    """The positions in the image that one window sees, each with its place in the kernel."""
    chosen = [list(enumerate(line[i])) for line, i in zip(lines, place, strict=True)]
    for pairs in itertools.product(*chosen):
        position = tuple(at for _, at in pairs)
        if all(0 <= at < size for at, size in zip(position, spatial, strict=True)):
            yield tuple(number for number, _ in pairs), position


def _max_pool(attributes, x) -> Results:
    spatial = x.shape[2:]
    lines = _windows(attributes, spatial, attributes["kernel_shape"])
    shape = (*x.shape[:2], *map(len, lines))
    values, indices = np.zeros(shape, x.dtype), np.zeros(shape, np.int64)
    order = "F" if attributes["storage_order"] else "C"
    for place in np.ndindex(*shape):
        image, channel, *window = place
        best = None
        for _, position in _seen(lines, window, spatial):
            if best is None or x[image, channel][position] > x[image, channel][best]:
                best = position
        if best is None:  # nothing but padding: the least value there is, and no index
            values[place] = np.iinfo(x.dtype).min
            number = -1
        else:
            values[place] = x[image, channel][best]
            number = int(np.ravel_multi_index(best, spatial, order=order))
        plane = image * x.shape[1] + channel
        indices[place] = plane * math.prod(spatial) + number
    return [values, indices]


def _convolution_of_integers(attributes, x, w, x_zero, w_zero) -> Results:
    spatial, groups = x.shape[2:], attributes["group"]
    lines = _windows(attributes, spatial, w.shape[2:])
    x = x.astype(np.int64) - (0 if x_zero is None else int(x_zero))
    zeros = np.broadcast_to(0 if w_zero is None else w_zero.astype(np.int64), w.shape[:1])
    w = w.astype(np.int64) - zeros.reshape(-1, *[1] * (w.ndim - 1))
    depth, width = w.shape[1], w.shape[0] // groups

    def element(place):
        image, number, *window = place
        start = number // width * depth
        return sum(
            int(w[(number, c, *part)]) * int(x[(image, start + c, *position)])
            for part, position in _seen(lines, window, spatial)
            for c in range(depth)
        )

    return [_filled((x.shape[0], w.shape[0], *map(len, lines)), np.int32, element)]


def _average_pool(attributes, x) -> Results:
    """Its shape: the values are rounded, and compared elsewhere."""
    lines = _windows(attributes, x.shape[2:], attributes["kernel_shape"])
    return [np.zeros((*x.shape[:2], *map(len, lines)), np.float32)]


_LOOPS: dict[str, Callable[..., Results]] = {
    "AveragePool": _average_pool,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "ConvInteger": _convolution_of_integers,
    "Flatten": _flatten,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "GlobalMaxPool": _global_max_pool,
    "MatMulInteger": _matmul_integer,
    "MaxPool": _max_pool,
    "OneHot": _one_hot,
    "Pad": _pad,
    "Pow": _power,
    "Range": _range,
    "ReduceSumSquare": _reduce_sum_square,
    "Shape": _shape,
    "Trilu": _trilu,
}
