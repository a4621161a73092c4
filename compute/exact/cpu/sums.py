"""Sums along rows on the CPU: shapes and refusals of `Kernels`, over the loops of `rows`.

Part of *execute*. Rows are spread over the threads; one row is one thread's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.exact.cpu import rows as loops
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.spec import K_LIMIT
from shoal.compute.exact.statuses import MASKED, NAN, check

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.compute.exact.cpu.threads import Threads
    from shoal.compute.exact.kernels import Floats, Integers, ReduceName

_NOTHING_TO_CHOOSE: Final = frozenset({"log_sum_exp", "max", "mean", "min"})
_NO_COUNTS: Final = np.empty(0, np.int64)


def reduce_rows(name: ReduceName, x: Floats, threads: Threads) -> Floats:
    """See `Kernels.reduce_rows`."""
    _refuse_long(name, x.shape[1])
    out = np.empty(x.shape[0], np.float32)
    if x.shape[0] > 0 and x.shape[1] == 0 and name in _NOTHING_TO_CHOOSE:
        check(name, NAN)
    code = loops.REDUCTIONS[name]
    _over_rows(
        name,
        x,
        lambda start, stop: loops.reduce(code, x, _NO_COUNTS, start, stop, out),
        threads,
        cost=4 if name == "log_sum_exp" else 1,
    )
    return out


def average_rows(x: Floats, counts: Integers, threads: Threads) -> Floats:
    """See `Kernels.average_rows`."""
    _refuse_long("average", x.shape[1])
    out = np.empty(x.shape[0], np.float32)
    code = loops.REDUCTIONS["count"]
    _over_rows(
        "average",
        x,
        lambda start, stop: loops.reduce(code, x, counts, start, stop, out),
        threads,
    )
    return out


def cumsum_rows(x: Floats, exclusive: bool, reverse: bool, threads: Threads) -> Floats:
    """See `Kernels.cumsum_rows`."""
    _refuse_long("cumsum", x.shape[1])
    out = np.empty_like(x)
    _over_rows(
        "cumsum",
        x,
        lambda start, stop: loops.cumsum(x, exclusive, reverse, start, stop, out),
        threads,
    )
    return out


def softmax_rows(x: Floats, threads: Threads, *, logarithm: bool) -> Floats:
    """See `Kernels.softmax_rows` and `Kernels.log_softmax_rows`."""
    kernel = "log_softmax" if logarithm else "softmax"
    _refuse_long(kernel, x.shape[1])
    out = np.empty_like(x)
    if x.size > 0:
        _over_rows(
            kernel,
            x,
            lambda start, stop: loops.softmax(logarithm, x, start, stop, out),
            threads,
            cost=4,
        )
    return out


def layer_norm_rows(
    x: Floats, w: Floats | None, b: Floats | None, eps: float, threads: Threads
) -> Floats:
    """See `Kernels.layer_norm_rows`."""
    return _norm("layer_norm", x, w, b, eps, threads)


def rms_norm_rows(x: Floats, w: Floats | None, eps: float, threads: Threads) -> Floats:
    """See `Kernels.rms_norm_rows`."""
    return _norm("rms_norm", x, w, None, eps, threads)


def _norm(
    kernel: str, x: Floats, w: Floats | None, b: Floats | None, eps: float, threads: Threads
) -> Floats:
    _refuse_long(kernel, x.shape[1])
    identities = ((1, x.shape[1]), np.float32(1.0)), ((1, x.shape[1]), np.float32(-0.0))
    weights = [
        np.full(*identity) if v is None else v
        for v, identity in zip((w, b), identities, strict=True)
    ]
    _refuse_masks(kernel, *weights)
    out = np.empty_like(x)
    if x.size > 0:
        centre = kernel == "layer_norm"
        _over_rows(
            kernel,
            x,
            lambda start, stop: loops.norm(centre, x, *weights, eps, start, stop, out),
            threads,
            cost=2,
        )
    return out


def batch_norm(
    x: Floats,
    scale: Floats,
    b: Floats,
    mean: Floats,
    var: Floats,
    eps: float,
    threads: Threads,
) -> Floats:
    """See `Kernels.batch_norm`."""
    _refuse_masks("batch_norm", scale, b, mean, var)
    out = np.empty_like(x)
    if x.size > 0:
        samples, channels, size = x.shape
        channel_rows = x.reshape(samples * channels, size)
        results = out.reshape(samples * channels, size)
        statistics = scale, b, mean, var, eps
        _over_rows(
            "batch_norm",
            channel_rows,
            lambda start, stop: loops.batch_norm(
                channel_rows, *statistics, start, stop, results
            ),
            threads,
        )
    return out


def scatter_add(data: Floats, indices: Integers, updates: Floats) -> Floats:
    """See `Kernels.scatter_add`. By one thread: targets may coincide."""
    largest = (
        int(np.max(np.bincount(indices, minlength=1))) if indices.size > K_LIMIT - 1 else 0
    )
    _refuse_long("scatter_add", 1 + largest)
    out = np.empty_like(data)
    scales, sums = np.empty(data.size, np.float64), np.zeros(data.size, np.int64)
    check("scatter_add", loops.scatter_add(data, indices, updates, scales, sums, out))
    return out


def _over_rows(
    kernel: str, x: Floats, part: Callable[[int, int], int], threads: Threads, cost: int = 1
) -> None:
    """Spread the rows of x over the threads; cost is of an element, in nanoseconds."""
    check(kernel, threads.split(part, x.shape[0], cost=max(1, x.shape[1] * cost)))


def _refuse_long(kernel: str, terms: int) -> None:
    if terms > K_LIMIT:
        raise ExactError.in_kernel("k_limit", kernel)


def _refuse_masks(kernel: str, *operands: Floats) -> None:
    if any(np.isinf(operand).any() for operand in operands):
        check(kernel, MASKED)
