"""Reductions, running sums and softmax: along axes that are made into rows.

Part of *execute*. Floats go to the kernels row by row; integers wrap around in numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.exact.operators.node import (
    BOOL,
    FLOAT,
    NUMBER,
    Array,
    Inputs,
    Node,
    Operator,
    Outputs,
    along,
    axes_of,
    axis_of,
    fail,
    integers_of,
    rows_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.compute.exact.kernels import Kernels, ReduceName

_WIDE: Final = frozenset({"int32", "int64", "uint32", "uint64"})


def _axes(node: Node, inputs: Inputs, rank: int) -> tuple[int, ...] | None:
    """The axes to reduce; None where the node says that no axes mean no reduction."""
    given = inputs[1] if len(inputs) > 1 else None
    if given is not None and given.size:
        return axes_of(integers_of(given), rank)
    return None if node.get("noop_with_empty_axes", 0) else tuple(range(rank))


def _kept(x: Array, result: Array, axes: tuple[int, ...], node: Node) -> Array:
    """The result with its reduced axes as ones, where the node keeps them."""
    left = [size for axis, size in enumerate(x.shape) if axis not in axes]
    ones = [1 if axis in axes else size for axis, size in enumerate(x.shape)]
    return result.reshape(ones if node.get("keepdims", 1) else left)


def reduction(
    name: ReduceName,
    integers: Callable[[Array], Array] | None = None,
    dtypes: frozenset[str] = FLOAT,
) -> Operator:
    """One of the kernels that reduce rows; integers by numpy, over the rows' axis."""

    def run(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
        x = inputs[0]
        axes = _axes(node, inputs, x.ndim)
        if axes is None:
            # Each element is a row by itself; of these four it is its own result.
            if name in {"sum", "max", "min", "mean"}:
                return (x,)
            axes = ()
        rows, _ = rows_of(x, axes)
        if x.dtype == np.float32:
            return (_kept(x, kernels.reduce_rows(name, rows), axes, node),)
        assert integers is not None
        return (_kept(x, integers(rows).astype(x.dtype), axes, node),)

    return Operator(run, dtypes)


def product(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """ReduceProd, of integers only: a float product depends on its order."""
    x = inputs[0]
    axes = _axes(node, inputs, x.ndim)
    if axes is None:
        return (x,)
    rows, _left = rows_of(x, axes)
    return (_kept(x, np.prod(rows, axis=1, dtype=x.dtype), axes, node),)


def cumulative_sum(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """CumSum."""
    x, axis = inputs
    exclusive, reverse = bool(node.get("exclusive", 0)), bool(node.get("reverse", 0))
    position = axis_of(integers_of(axis)[0], x.ndim) if axis.size == 1 else None
    if position is None:
        fail("shape_mismatch", "the axis of CumSum is not a scalar")

    def floats(rows: Array) -> Array:
        return kernels.cumsum_rows(rows, exclusive=exclusive, reverse=reverse)

    def integers(rows: Array) -> Array:
        rows = rows[:, ::-1] if reverse else rows
        sums = np.cumsum(rows, axis=1, dtype=rows.dtype)
        sums = sums - rows if exclusive else sums
        return sums[:, ::-1] if reverse else sums

    return (along(x, position, floats if x.dtype == np.float32 else integers),)


def softmax(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """Softmax: a mask's -inf gives 0."""
    (x,) = inputs
    return (along(x, axis_of(node.get("axis", -1), x.ndim), kernels.softmax_rows),)


def log_softmax(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """LogSoftmax."""
    (x,) = inputs
    return (along(x, axis_of(node.get("axis", -1), x.ndim), kernels.log_softmax_rows),)


def global_average(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """GlobalAveragePool: the mean of each channel."""
    return (_per_channel("mean", inputs[0], kernels),)


def global_max(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """GlobalMaxPool: the largest of each channel."""
    return (_per_channel("max", inputs[0], kernels),)


def _per_channel(name: ReduceName, x: Array, kernels: Kernels) -> Array:
    if x.ndim < 2:
        fail("shape_mismatch", f"{list(x.shape)} has no channels")
    rows, _ = rows_of(x, range(2, x.ndim))
    return kernels.reduce_rows(name, rows).reshape(*x.shape[:2], *[1] * (x.ndim - 2))


def _sum_of_integers(rows: Array) -> Array:
    return np.sum(rows, axis=1, dtype=rows.dtype)


def _largest(rows: Array) -> Array:
    """Of nothing: the least value of the dtype, as ONNX says."""
    least = False if rows.dtype == np.bool_ else np.iinfo(rows.dtype).min
    return np.max(rows, axis=1, initial=least)


def _smallest(rows: Array) -> Array:
    """Of nothing: the greatest value of the dtype."""
    greatest = True if rows.dtype == np.bool_ else np.iinfo(rows.dtype).max
    return np.min(rows, axis=1, initial=greatest)


OPERATORS: Final[dict[str, Operator]] = {
    "CumSum": Operator(cumulative_sum, FLOAT | _WIDE),
    "GlobalAveragePool": Operator(global_average, FLOAT),
    "GlobalMaxPool": Operator(global_max, FLOAT),
    "LogSoftmax": Operator(log_softmax, FLOAT),
    "ReduceL1": reduction("l1", lambda x: _sum_of_integers(np.abs(x)), FLOAT | _WIDE),
    "ReduceL2": reduction("l2"),
    "ReduceLogSum": reduction("log_sum"),
    "ReduceLogSumExp": reduction("log_sum_exp"),
    "ReduceMax": reduction("max", _largest, NUMBER | BOOL),
    "ReduceMean": reduction("mean"),
    "ReduceMin": reduction("min", _smallest, NUMBER | BOOL),
    "ReduceProd": Operator(product, _WIDE),
    "ReduceSum": reduction("sum", _sum_of_integers, FLOAT | _WIDE),
    "ReduceSumSquare": reduction(
        "sum_square", lambda x: _sum_of_integers(x * x), FLOAT | _WIDE
    ),
    "Softmax": Operator(softmax, FLOAT),
}
