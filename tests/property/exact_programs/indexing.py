"""Calls of the operators of `shoal.compute.exact.operators.indexing`."""

from __future__ import annotations

import numpy as np

from exact_programs.program import Call
from exact_programs.source import Source, int64s


def gather(source: Source) -> Call:
    shape = source.shape(1)
    axis = source.axis(len(shape))
    x = source.array(shape, source.dtype(), masks=True)
    indices = source.below(
        shape[axis % len(shape)], source.shape(most=2), source.pick("int64", "int32")
    )
    return Call((x, indices), {"axis": axis})


def gather_elements(source: Source) -> Call:
    shape = source.shape(1)
    axis, indices = _along_an_axis(source, shape)
    return Call((source.array(shape, source.dtype(), masks=True), indices), {"axis": axis})


def _along_an_axis(source: Source, shape: tuple[int, ...]) -> tuple[int, np.ndarray]:
    """An axis, and indices along it that cover some of the others."""
    axis = source.axis(len(shape))
    place = axis % len(shape)
    part = [source.integer(0, size) for size in shape]
    part[place] = source.side() if shape[place] else 0
    dtype = source.pick("int64", "int32")
    return axis, source.below(shape[place], tuple(part), dtype)


def _tuples(source: Source, outer: tuple[int, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """Index tuples, (*outer, len(sizes))."""
    columns = [source.below(size, outer) for size in sizes]
    return np.stack(columns, axis=-1) if columns else np.zeros((*outer, 0), np.int64)


def gather_nd(source: Source) -> Call:
    """Slices, or elements, of each of a batch."""
    shape = source.shape(1)
    batch = source.integer(0, len(shape) - 1)
    depth = source.integer(0 if source.rarely() else 1, len(shape) - batch)
    outer = (*shape[:batch], *source.shape(most=2))
    if 0 in shape[batch : batch + depth]:
        outer = (*outer, 0)
    indices = _tuples(source, outer, shape[batch : batch + depth])
    return Call(
        (source.array(shape, source.dtype(), masks=True), indices), {"batch_dims": batch}
    )


def _scatter(
    source: Source, shape: tuple[int, ...], indices: np.ndarray, part: tuple[int, ...], **how
) -> Call:
    reduction = source.pick("none", "add", "max", "min", *(("mul",) if source.rarely() else ()))
    dtype, masks = source.dtype(), reduction == "none"
    part = (*part, 1) if source.rarely() else part
    values, updates = (source.array(size, dtype, masks=masks) for size in (shape, part))
    named = {"reduction": reduction}
    return Call(
        (values, indices, updates), {**how, **(source.pick({}, named) if masks else named)}
    )


def scatter_elements(source: Source) -> Call:
    shape = source.shape(1)
    axis, indices = _along_an_axis(source, shape)
    return _scatter(source, shape, indices, indices.shape, axis=axis)


def scatter_nd(source: Source) -> Call:
    shape = source.shape(1)
    depth = source.integer(1, len(shape))
    outer = source.shape(most=2) if 0 not in shape[:depth] else (0,)
    indices = _tuples(source, outer, shape[:depth])
    return _scatter(source, shape, indices, (*outer, *shape[depth:]))


def choice(source: Source) -> Call:
    """ArgMax and ArgMin."""
    shape = source.shape(1)
    attributes = {name: source.flag() for name in ("keepdims", "select_last_index")}
    return Call(
        (source.array(shape, source.dtype()),), {"axis": source.axis(len(shape)), **attributes}
    )


def top_k(source: Source) -> Call:
    shape = source.shape(1)
    axis = source.axis(len(shape))
    count = source.integer(0, shape[axis % len(shape)] + source.rarely())
    attributes = {"largest": source.flag(), "sorted": source.flag()}
    return Call(
        (source.array(shape, source.dtype()), int64s([count])),
        {"axis": axis, **attributes},
        source.pick((True, True), (True, False), (False, True)),
    )


CALLS = {
    "ArgMax": choice,
    "ArgMin": choice,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "TopK": top_k,
}
