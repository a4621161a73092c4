"""Gather, scatter and choosing by value: ArgMax, TopK.

Part of *execute*. Indices are checked before anything is read through them. What is
gathered or overwritten is moved, not computed, so -inf passes; floats that are added
go to the kernels, and where they are compared the order of equal ones is stated.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.exact.operators.node import (
    ANY,
    NUMBER,
    Array,
    Inputs,
    Node,
    Operator,
    Outputs,
    as_array,
    axis_of,
    dense,
    fail,
    finite,
    integers_of,
    within_limit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.exact.kernels import Kernels


def _checked(indices: Array, length: int) -> Array:
    """Indices into an axis, counted from its front."""
    if indices.size and (int(indices.min()) < -length or int(indices.max()) >= length):
        fail("out_of_range", f"an index is outside of an axis of {length}")
    return np.where(indices < 0, indices + length, indices).astype(np.int64)


def gather(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Gather: whole slices along one axis."""
    x, indices = inputs
    axis = axis_of(node.get("axis", 0), x.ndim)
    within_limit([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])
    return (as_array(np.take(x, _checked(indices, x.shape[axis]), axis)),)


def gather_elements(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """GatherElements: one element for each index."""
    x, indices = inputs
    axis = axis_of(node.get("axis", 0), x.ndim)
    _check_cover(indices.shape, x.shape, axis)
    return (x[_positions(_checked(indices, x.shape[axis]), axis)],)


def _check_cover(part: tuple[int, ...], whole: tuple[int, ...], axis: int) -> None:
    """What is indexed along one axis lies within the others."""
    if len(part) != len(whole) or any(
        size > limit
        for i, (size, limit) in enumerate(zip(part, whole, strict=True))
        if i != axis
    ):
        fail("shape_mismatch", f"indices {list(part)} do not lie within {list(whole)}")


def _positions(indices: Array, axis: int) -> tuple[Array, ...]:
    """For each axis the coordinates that ``indices``, along ``axis``, point to."""
    grid = np.ogrid[tuple(slice(size) for size in indices.shape)]
    return tuple(indices if i == axis else along for i, along in enumerate(grid))


def gather_nd(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """GatherND: a slice for each index tuple."""
    x, indices = inputs
    batch = node.get("batch_dims", 0)
    if not 0 <= batch < min(x.ndim, indices.ndim) or x.shape[:batch] != indices.shape[:batch]:
        fail("shape_mismatch", f"{list(x.shape)} and {list(indices.shape)} share no batch")
    depth = indices.shape[-1]
    if not 1 <= depth <= x.ndim - batch:
        fail("shape_mismatch", f"index tuples of {depth} do not fit {list(x.shape)}")
    result = within_limit([*indices.shape[:-1], *x.shape[batch + depth :]])
    count = math.prod(x.shape[:batch])
    tuples = indices.reshape(count, math.prod(indices.shape[batch:-1]), depth)
    flat = _flat_targets(tuples, x.shape[batch : batch + depth])
    slices = math.prod(x.shape[batch : batch + depth])
    rows = x.reshape(count, slices, *x.shape[batch + depth :])
    return (rows[np.arange(count)[:, None], flat].reshape(result),)


def _flat_targets(tuples: Array, sizes: tuple[int, ...]) -> Array:
    """Index tuples on the last axis, checked, as positions among prod(sizes) slices."""
    flat = np.zeros(tuples.shape[:-1], np.int64)
    for i, size in enumerate(sizes):
        flat = flat * size + _checked(tuples[..., i], size)
    return flat


# -- scatter ----------------------------------------------------------------------------


def _refuses_reduction(node: Node, _: Sequence[str | None]) -> str | None:
    reduction = node.get("reduction", "none")
    known = reduction in {"none", "add", "min", "max"}
    return None if known else f"the reduction {reduction!r}"


def scatter_elements(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """ScatterElements: where indices repeat without a reduction, the last one stands."""
    x, indices, updates = inputs
    axis = axis_of(node.get("axis", 0), x.ndim)
    _check_cover(indices.shape, x.shape, axis)
    if updates.shape != indices.shape:
        fail(
            "shape_mismatch", f"{list(updates.shape)} updates for {list(indices.shape)} indices"
        )
    places = _positions(_checked(indices, x.shape[axis]), axis)
    flat = np.zeros(indices.shape, np.int64)
    for place, size in zip(places, x.shape, strict=True):
        flat = flat * size + place
    return (_scattered(node, x, flat.reshape(-1), updates.reshape(-1), kernels),)


def scatter_nd(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """ScatterND: a slice is written for each index tuple."""
    x, indices, updates = inputs
    depth = indices.shape[-1] if indices.ndim else 0
    if not 1 <= depth <= x.ndim:
        fail("shape_mismatch", f"index tuples of {depth} do not fit {list(x.shape)}")
    if updates.shape != (*indices.shape[:-1], *x.shape[depth:]):
        fail(
            "shape_mismatch", f"{list(updates.shape)} updates for {list(indices.shape)} indices"
        )
    width = math.prod(x.shape[depth:])
    starts = _flat_targets(indices, x.shape[:depth]).reshape(-1, 1) * width
    flat = (starts + np.arange(width, dtype=np.int64)).reshape(-1)
    return (_scattered(node, x, flat, updates.reshape(-1), kernels),)


def _scattered(node: Node, x: Array, flat: Array, updates: Array, kernels: Kernels) -> Array:
    """A copy of x with the updates at flat positions, reduced as the node says."""
    reduction = node.get("reduction", "none")
    if reduction == "add" and x.dtype == np.float32:
        result = kernels.scatter_add(dense(x).reshape(-1), flat, dense(updates))
        return result.reshape(x.shape)
    result = x.flatten()
    if reduction == "none":
        # numpy leaves open which of two equal indices stands: keep the last one's.
        last = flat.size - 1 - np.unique(flat[::-1], return_index=True)[1]
        result[flat[last]] = updates[last]
    elif reduction == "add":
        np.add.at(result, flat, updates)
    else:
        order = np.minimum if reduction == "min" else np.maximum
        keys = _ordered(finite(result))
        order.at(keys, flat, _ordered(finite(updates)))
        result = _unordered(keys, x.dtype)
    return result.reshape(x.shape)


def _ordered(x: Array) -> Array:
    """Integers in the order of the floats, -0 below +0; integers stay as they are."""
    if x.dtype != np.float32:
        return x
    bits = x.view(np.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _unordered(keys: Array, dtype: np.dtype[np.generic]) -> Array:
    """The reverse of `_ordered`, which is its own inverse."""
    if dtype != np.float32:
        return keys
    return (keys ^ ((keys >> 31) & 0x7FFFFFFF)).view(np.float32)


# -- choosing by value --------------------------------------------------------------------


def _arg(largest: bool, node: Node, x: Array) -> Array:
    axis = axis_of(node.get("axis", 0), x.ndim)
    if not x.shape[axis]:
        fail("shape_mismatch", "there is no largest or smallest of nothing")
    choose = np.argmax if largest else np.argmin
    if node.get("select_last_index", 0):
        index = x.shape[axis] - 1 - choose(np.flip(x, axis), axis)
    else:
        index = choose(x, axis)
    result = np.asarray(index, np.int64)
    return np.expand_dims(result, axis) if node.get("keepdims", 1) else result


def arg_max(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """ArgMax: of equal ones the first, or the last where asked for."""
    return (_arg(largest=True, node=node, x=finite(inputs[0])),)


def arg_min(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """ArgMin: of equal ones the first, or the last where asked for."""
    return (_arg(largest=False, node=node, x=finite(inputs[0])),)


def top_k(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """TopK: in order, of equal ones the lower index first."""
    x, count = finite(inputs[0]), integers_of(inputs[1])
    axis = axis_of(node.get("axis", -1), x.ndim)
    if len(count) != 1 or not 0 <= count[0] <= x.shape[axis]:
        fail("out_of_range", f"there are no {count} elements along an axis of {x.shape[axis]}")
    keys = x
    if node.get("largest", 1):
        keys = -x if x.dtype == np.float32 else np.invert(x)  # the reverse order, no overflow
    order = np.argsort(keys, axis, kind="stable").take(range(count[0]), axis)
    return np.take_along_axis(x, order, axis), order.astype(np.int64)


OPERATORS: Final[dict[str, Operator]] = {
    "ArgMax": Operator(arg_max, NUMBER),
    "ArgMin": Operator(arg_min, NUMBER),
    "Gather": Operator(gather, ANY),
    "GatherElements": Operator(gather_elements, ANY),
    "GatherND": Operator(gather_nd, ANY),
    "ScatterElements": Operator(scatter_elements, NUMBER, refuses=_refuses_reduction),
    "ScatterND": Operator(scatter_nd, NUMBER, refuses=_refuses_reduction),
    "TopK": Operator(top_k, NUMBER),
}
