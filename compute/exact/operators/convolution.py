"""Conv and ConvInteger: rows of windows times filters, group by group.

Part of *execute*. A row of the left-hand operand is what one window sees, padding
included, so it carries its own scale and no window depends on another (DESIGN, "The
exact class"). Rows are made in bounded portions; that changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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
    within_limit,
)
from shoal.compute.exact.operators.windows import windows_of
from shoal.compute.exact.spec import K_LIMIT

if TYPE_CHECKING:
    from shoal.compute.exact.kernels import Kernels, Prepared

_PORTION: Final = 1 << 23
"""Elements of window rows that are laid out at once."""


def _filters(w: Array, groups: int) -> Array:
    """(M, C / groups, *kernel) as (groups, K, M / groups)."""
    if groups < 1 or w.shape[0] % groups:
        fail("shape_mismatch", f"{w.shape[0]} filters do not make {groups} groups")
    k = math.prod(w.shape[1:])
    return w.reshape(groups, w.shape[0] // groups, k).transpose(0, 2, 1)


def _portions(images: int, first: int, row_elements: int) -> Iterator[tuple[slice, slice]]:
    """Images and slabs of their first axis whose window rows fit into one portion."""
    slabs = max(_PORTION // max(row_elements, 1), 1)
    at_once = max(slabs // max(first, 1), 1)
    for image in range(0, images, at_once):
        for slab in range(0, first, slabs):
            yield slice(image, image + at_once), slice(slab, slab + slabs)


def _convolved(
    node: Node, x: Array, w: Array, dtype: type, multiply: Callable[[Array, int], Array]
) -> Array:
    """The convolution, where ``multiply`` gives window rows times one group's filters."""
    groups = node.get("group", 1)
    if x.ndim < 3 or w.ndim != x.ndim or x.shape[1] != w.shape[1] * groups:
        fail("shape_mismatch", f"filters of {list(w.shape)} do not fit {list(x.shape)}")
    kernel = node.get("kernel_shape", w.shape[2:])
    if tuple(kernel) != w.shape[2:]:
        fail("shape_mismatch", f"filters of {list(w.shape)} are not of {list(kernel)}")
    depth, width = w.shape[1], w.shape[0] // max(groups, 1)
    if depth * math.prod(kernel) > K_LIMIT:
        fail("k_limit", f"a window of {depth * math.prod(kernel)} elements is over {K_LIMIT}")
    windows = windows_of(node, x.shape[2:], kernel)
    y = np.zeros(within_limit([x.shape[0], w.shape[0], *windows.out]), dtype, like=x)
    seen = windows.view(windows.padded(x))
    rank = len(kernel)
    # (N, C, *out, *kernel) -> (N, *out, C, *kernel): a row reads as the filters lie
    order = [0, *range(2, 2 + rank), 1, *range(2 + rank, 2 + 2 * rank)]
    slab_elements = math.prod(windows.out[1:]) * depth * math.prod(kernel)
    for group in range(groups):
        part = seen[:, group * depth : (group + 1) * depth].transpose(order)
        target = y[:, group * width : (group + 1) * width]
        for images, slab in _portions(x.shape[0], windows.out[0], slab_elements):
            portion = part[images, slab]
            rows = portion.reshape(math.prod(portion.shape[: 1 + rank]), -1)
            result = multiply(dense(rows), group).reshape(*portion.shape[: 1 + rank], width)
            target[images, :, slab] = np.moveaxis(result, -1, 1)
    return y


def convolution(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """Conv: the bias is added by a rounding of its own."""
    x, w, bias = (*inputs, None)[:3]
    how = node.product
    assert how is not None
    filters = how.prepared or [dense(f) for f in _filters(w, node.get("group", 1))]

    def multiply(rows: Array, group: int) -> Array:
        return kernels.product(rows, filters[group], how.precision, how.axis)

    y = _convolved(node, x, w, np.float32, multiply)
    if bias is not None:
        if bias.shape != (w.shape[0],):
            fail("shape_mismatch", f"{list(bias.shape)} is no bias of {w.shape[0]} filters")
        y = kernels.binary("add", y, bias.reshape(-1, *[1] * (y.ndim - 2)))
    return (y,)


def _prepare(node: Node, w: Array, kernels: Kernels) -> tuple[Prepared, ...]:
    assert node.product is not None
    return tuple(
        kernels.prepare(dense(f), node.product.precision, node.product.axis)
        for f in _filters(w, node.get("group", 1))
    )


def integer_convolution(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """ConvInteger: what lies in the padding is the zero point."""
    x, w, x_zero, w_zero = (*inputs, None, None)[:4]
    if x_zero is not None and x_zero.size != 1:
        fail("shape_mismatch", "the zero point of the image is not a scalar")
    x = x.astype(np.int32) - (0 if x_zero is None else x_zero.astype(np.int32).reshape(()))
    w = w.astype(np.int32)
    if w_zero is not None:
        if w_zero.size not in {1, w.shape[0]}:
            fail("shape_mismatch", f"{w_zero.size} zero points for {w.shape[0]} filters")
        w = w - w_zero.astype(np.int32).reshape(-1, *[1] * (w.ndim - 1))
    filters = [dense(f) for f in _filters(w, node.get("group", 1))]

    def multiply(rows: Array, group: int) -> Array:
        return kernels.integer_product(rows, filters[group])

    return (_convolved(node, x, w, np.int32, multiply),)


OPERATORS: Final[dict[str, Operator]] = {
    "Conv": Operator(convolution, FLOAT, prepare=_prepare),
    "ConvInteger": Operator(integer_convolution, frozenset({"int8", "uint8"})),
}
