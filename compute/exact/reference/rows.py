"""Sums and what rests on them: reductions, softmax, norms, scatter. SPEC, "Sums".

Part of *execute*, the reference. A fixed-point sum is exact integers under one scale,
so no order of additions can change it; what surrounds it is float64 in stated order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.reference.functions import exp64, log64
from shoal.compute.exact.reference.rounding import (
    by_rows,
    finite,
    refuse_infinite,
    refuse_long,
    round32,
)
from shoal.compute.exact.spec import SUM_BITS

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.compute.exact.kernels import Floats, Integers, ReduceName
    from shoal.compute.exact.reference.rounding import Doubles


def fixed_point(v: Doubles) -> tuple[Integers, Integers]:
    """Every row in units of 2^(e - 40), rounded to integers, and every row's e.

    e is the exponent with 2^(e - 1) <= max|v| < 2^e; a row of zeros has e = 0.
    """
    _, e = np.frexp(np.max(np.abs(v), axis=1, initial=0.0))
    q = np.rint(np.ldexp(v, SUM_BITS - e[:, None])).astype(np.int64)
    return q, e.astype(np.int64)


def sum_fixed(v: Doubles) -> Doubles:
    """The fixed-point sum of every row, (rows, n) -> (rows,)."""
    q, e = fixed_point(v)
    total: Doubles = np.ldexp(np.sum(q, axis=1).astype(np.float64), e - SUM_BITS)
    return total


def _mean(v: Doubles) -> Doubles:
    return sum_fixed(v) / np.float64(v.shape[1])


def _log_sum_exp(x: Doubles) -> Doubles:
    m: Doubles = np.max(x, axis=1)
    return m + log64(sum_fixed(exp64(x - m[:, None])))


def _largest(x: Doubles) -> Doubles:
    m = np.max(x, axis=1)
    positive_zero = ((x == 0) & ~np.signbit(x)).any(axis=1)
    return np.where(m == 0, np.where(positive_zero, 0.0, -0.0), m)


_REDUCE: dict[ReduceName, Callable[[Doubles], Doubles]] = {
    "l1": lambda x: sum_fixed(np.abs(x)),
    "l2": lambda x: np.sqrt(sum_fixed(x * x)),
    "log_sum": lambda x: log64(sum_fixed(x)),
    "log_sum_exp": _log_sum_exp,
    "max": _largest,
    "mean": _mean,
    "min": lambda x: -_largest(-x),
    "sum": sum_fixed,
    "sum_square": lambda x: sum_fixed(x * x),
}
_NOTHING_TO_CHOOSE = frozenset({"log_sum_exp", "max", "mean", "min"})


def reduce_rows(name: ReduceName, x: Floats) -> Floats:
    """One number of every row; see `Kernels.reduce_rows`."""
    refuse_long(name, x.shape[1])
    refuse_infinite(name, x)
    if x.shape[0] == 0:
        return np.zeros(0, np.float32)
    if x.shape[1] == 0 and name in _NOTHING_TO_CHOOSE:
        raise ExactError.in_kernel("nan", name)
    return finite(name, round32(_REDUCE[name](x.astype(np.float64))))


def average_rows(x: Floats, counts: Integers) -> Floats:
    """Every row's sum over its count; see `Kernels.average_rows`."""
    refuse_long("average", x.shape[1])
    refuse_infinite("average", x)
    with np.errstate(invalid="ignore"):  # a window of nothing but padding: not a number
        means = sum_fixed(x.astype(np.float64)) / counts.astype(np.float64)
    return finite("average", round32(means))


def cumsum_rows(x: Floats, *, exclusive: bool, reverse: bool) -> Floats:
    """Running sums; see `Kernels.cumsum_rows`."""
    refuse_long("cumsum", x.shape[1])
    refuse_infinite("cumsum", x)
    q, e = fixed_point(x.astype(np.float64))
    if reverse:
        q = q[:, ::-1]
    sums = np.cumsum(q, axis=1)
    if exclusive:
        sums = sums - q
    if reverse:
        sums = sums[:, ::-1]
    return finite("cumsum", round32(np.ldexp(sums.astype(np.float64), e[:, None] - SUM_BITS)))


def _less_largest(x: Floats) -> Doubles:
    v = x.astype(np.float64)
    with np.errstate(invalid="ignore"):  # a row of nothing but -inf: not a number
        shifted: Doubles = v - np.max(v, axis=1, keepdims=True)
    return shifted


def softmax_rows(x: Floats) -> Floats:
    """Softmax of every row; see `Kernels.softmax_rows`."""
    refuse_long("softmax", x.shape[1])
    if x.size == 0:
        return x.copy()
    return finite("softmax", by_rows(_softmax, x))


def _softmax(x: Floats) -> Doubles:
    shifted = _less_largest(x)
    if np.isnan(shifted).any():
        raise ExactError.in_kernel("nan", "softmax")
    t = exp64(shifted)
    return t / sum_fixed(t)[:, None]


def log_softmax_rows(x: Floats) -> Floats:
    """The logarithm of softmax; see `Kernels.log_softmax_rows`."""
    refuse_long("log_softmax", x.shape[1])
    refuse_infinite("log_softmax", x)
    if x.size == 0:
        return x.copy()
    return finite("log_softmax", by_rows(_log_softmax, x))


def _log_softmax(x: Floats) -> Doubles:
    shifted = _less_largest(x)
    return shifted - log64(sum_fixed(exp64(shifted)))[:, None]


def _of_rows(weights: Floats, rows: int) -> Doubles:
    """(groups, n) -> (rows, n): row i takes weights[i % groups]."""
    repeated: Doubles = weights.astype(np.float64)[np.arange(rows) % weights.shape[0]]
    return repeated


def _normed(
    kernel: str, centred: Doubles, w: Floats | None, b: Floats | None, eps: float
) -> Floats:
    variance = _mean(centred * centred)[:, None]
    y = centred / np.sqrt(variance + eps)
    if w is not None:
        y = y * _of_rows(w, y.shape[0])
    if b is not None:
        y = y + _of_rows(b, y.shape[0])
    return finite(kernel, round32(y))


def layer_norm_rows(x: Floats, w: Floats | None, b: Floats | None, eps: float) -> Floats:
    """Layer normalisation of every row; see `Kernels.layer_norm_rows`."""
    refuse_long("layer_norm", x.shape[1])
    refuse_infinite("layer_norm", x, *(v for v in (w, b) if v is not None))
    if x.size == 0:
        return x.copy()
    v = x.astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _normed("layer_norm", v - _mean(v)[:, None], w, b, eps)


def rms_norm_rows(x: Floats, w: Floats | None, eps: float) -> Floats:
    """Root-mean-square normalisation; see `Kernels.rms_norm_rows`."""
    refuse_long("rms_norm", x.shape[1])
    refuse_infinite("rms_norm", x, *(v for v in (w,) if v is not None))
    if x.size == 0:
        return x.copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        return _normed("rms_norm", x.astype(np.float64), w, None, eps)


def batch_norm(
    x: Floats, scale: Floats, b: Floats, mean: Floats, var: Floats, eps: float
) -> Floats:
    """Inference batch normalisation, (N, C, S); see `Kernels.batch_norm`."""
    refuse_infinite("batch_norm", x, scale, b, mean, var)
    if x.size == 0:
        return x.copy()
    gain, offset, centre, spread = (
        v.astype(np.float64)[None, :, None] for v in (scale, b, mean, var)
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        y = ((x.astype(np.float64) - centre) / np.sqrt(spread + eps)) * gain + offset
    return finite("batch_norm", round32(y))


def scatter_add(data: Floats, indices: Integers, updates: Floats) -> Floats:
    """Sums at targets; see `Kernels.scatter_add`. What no update reaches keeps its bits."""
    terms = 1 + np.bincount(indices, minlength=data.size)
    refuse_long("scatter_add", int(np.max(terms, initial=0)))
    refuse_infinite("scatter_add", data, updates)
    own, added = data.astype(np.float64), updates.astype(np.float64)
    largest = np.abs(own)
    np.maximum.at(largest, indices, np.abs(added))
    _, e = np.frexp(largest)
    sums = np.rint(np.ldexp(own, SUM_BITS - e)).astype(np.int64)
    np.add.at(sums, indices, np.rint(np.ldexp(added, SUM_BITS - e[indices])).astype(np.int64))
    result = round32(np.ldexp(sums.astype(np.float64), e - SUM_BITS))
    return finite("scatter_add", np.where(terms > 1, result, data))
