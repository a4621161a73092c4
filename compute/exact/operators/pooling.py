"""MaxPool and AveragePool.

Part of *execute*. A maximum is exact in any order, so it runs over the positions of
the window; an average is a fixed-point sum of each window over its count.
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
    dense,
    fail,
    finite,
    within_limit,
)
from shoal.compute.exact.operators.windows import Windows, windows_of

if TYPE_CHECKING:
    from shoal.compute.exact.kernels import Kernels


def _windows(node: Node, x: Array) -> Windows:
    if x.ndim < 3:
        fail("shape_mismatch", f"{list(x.shape)} is no batch of images")
    return windows_of(node, x.shape[2:], node.get("kernel_shape"))


def average_pool(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """AveragePool: over what lies in the image, or over its padding too."""
    (x,) = inputs
    windows = _windows(node, x)
    shape = within_limit([*x.shape[:2], *windows.out])
    seen = windows.view(windows.padded(x))
    within_limit(seen.shape)
    rows = dense(seen).reshape(math.prod(shape), math.prod(windows.kernel))
    counts = _counts(node, windows, x.shape[2:])
    repeated = np.tile(counts.reshape(-1), math.prod(shape[:2]))
    return (kernels.average_rows(rows, repeated).reshape(shape),)


def _counts(node: Node, windows: Windows, spatial: tuple[int, ...]) -> Array:
    """How many elements each window counts: those beyond all padding never count."""
    inside = np.ones((1, 1, *spatial), np.int64)
    if node.get("count_include_pad", 0):
        widths = [(0, 0), (0, 0), *zip(windows.before, windows.after, strict=True)]
        inside = np.pad(inside, widths, constant_values=1)
        beyond = [
            max(reach - after, 0)
            for reach, after in zip(windows.reach, windows.after, strict=True)
        ]
        inside = np.pad(inside, [(0, 0), (0, 0), *((0, n) for n in beyond)])
    else:
        inside = windows.padded(inside)
    rank = len(spatial)
    return np.sum(windows.view(inside), axis=tuple(range(2 + rank, 2 + 2 * rank)))


def max_pool(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """MaxPool, with the positions of the largest (the first of equal ones) if asked for."""
    x = finite(inputs[0])
    windows = _windows(node, x)
    shape = within_limit([*x.shape[:2], *windows.out])
    is_float = x.dtype == np.float32
    lowest = np.float32(-np.inf) if is_float else np.iinfo(x.dtype).min
    seen = windows.view(windows.padded(x, lowest))
    first, *others = np.ndindex(*windows.kernel)
    best = dense(seen[(..., *first)])
    for place in others:
        candidate = dense(seen[(..., *place)])
        best = (
            kernels.binary("max", best, candidate) if is_float else np.maximum(best, candidate)
        )
    best = finite(best).reshape(shape)
    if not node.wants(1):
        return (best,)
    return best, _indices(node, windows, x, seen, best)


def _indices(node: Node, windows: Windows, x: Array, seen: Array, best: Array) -> Array:
    """Positions, in the flattened input, of each window's first element that is ``best``."""
    spatial = x.shape[2:]
    order = spatial if not node.get("storage_order", 0) else spatial[::-1]
    numbers = np.arange(math.prod(spatial), dtype=np.int64).reshape(order)
    numbers = numbers if not node.get("storage_order", 0) else numbers.T
    places = windows.view(windows.padded(numbers[None, None], -1))
    found = np.full(best.shape, -1, np.int64)
    for place in np.ndindex(*windows.kernel):
        number = np.broadcast_to(places[(..., *place)], best.shape)
        hit = (found < 0) & (number >= 0) & (seen[(..., *place)] == best)
        found = np.where(hit, number, found)
    planes = np.arange(math.prod(x.shape[:2]), dtype=np.int64) * math.prod(spatial)
    return found + planes.reshape(*x.shape[:2], *[1] * len(spatial))


OPERATORS: Final[dict[str, Operator]] = {
    "AveragePool": Operator(average_pool, FLOAT),
    "MaxPool": Operator(max_pool, FLOAT | frozenset({"int8", "uint8"})),
}
