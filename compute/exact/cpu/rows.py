"""Sums along rows and what rests on them: the loops of SPEC, "Sums".

Part of *execute*; `sums` cuts the rows and hands them out. A row is read two to four
times, from the cache after the first. Terms become int64 in units of 2^(e - 40), whose
sum no order of additions can change; all else is float64 in the reference's order, or
an approximation that says where it may not decide: then the row is computed anew.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba.types import boolean, float32, float64, int64

from shoal.compute.exact.cpu.approximations import exp_closely, near_border
from shoal.compute.exact.cpu.compiled import inline, kernel, reads, writes
from shoal.compute.exact.cpu.floats import (
    INFINITY_BITS,
    MAGIC,
    MAGIC_BITS,
    as_integer,
    bits_of,
    divided,
    exponent_of,
    flushed,
    fma,
    magnitude,
    ordered,
    status_of,
    sum_scale,
    sum_value,
)
from shoal.compute.exact.cpu.functions import exp64, log64
from shoal.compute.exact.spec import SUM_BITS
from shoal.compute.exact.statuses import FINE, MASKED, NAN

REDUCTIONS: Final = {
    name: code
    for code, name in enumerate(
        (
            "sum",
            "mean",
            "l1",
            "l2",
            "sum_square",
            "log_sum",
            "log_sum_exp",
            "max",
            "min",
            "count",
        )
    )
}
"""What `reduce` does; "count" divides a sum by counts, for pooling."""
_LEAST_DIVISOR: Final = 2.0**-300
_GREATEST_DIVISOR: Final = 2.0**300
"""Between these `divided` is exact: float32 and their differences are further inside."""
_SUM_CLOSENESS_BITS: Final = 46
_EXP_CLOSENESS: Final = 2.0**-50
"""Of `exp_closely`."""
_UNITS_AT_LEAST: Final = 2.0 ** (SUM_BITS - 1) * (1.0 - _EXP_CLOSENESS)
_UNITS_AT_MOST: Final = 2.0 ** (SUM_BITS - 1) * (1.0 + _EXP_CLOSENESS)
"""What makes, of a near exponential, the least and the greatest fixed-point integer."""
_SUM, _MEAN, _L1, _L2, _SUM_SQUARE, _LOG_SUM, _LOG_SUM_EXP, _MAX, _MIN, _COUNT = range(10)


@inline
def _peak(x):
    """The bits of a float32 row's largest magnitude."""
    bits = x.view(np.int32)
    peak = np.int32(0)
    for i in range(bits.size):
        peak = max(peak, magnitude(bits[i]))
    return peak


@inline
def _as_float(bits):
    """The float32 of these bits, widened."""
    return np.float64(np.int32(bits).view(np.float32))


@inline
def _ends(x):
    """The least and the greatest of a row: -0 below +0, and what is not a number outside."""
    bits = x.view(np.int32)
    least, greatest = np.int32(0x7FFF_FFFF), np.int32(-0x80000000)
    for i in range(bits.size):
        place = ordered(bits[i])
        least, greatest = min(least, place), max(greatest, place)
    return _as_float(ordered(least)), _as_float(ordered(greatest))


@inline
def _largest(x):
    bits = x.view(np.int32)
    greatest = np.int32(-0x80000000)
    for i in range(bits.size):
        greatest = max(greatest, ordered(bits[i]))
    return _as_float(ordered(greatest))


@inline
def _fixed_sum(v, peak):
    """The fixed-point sum of a row whose largest magnitude is peak."""
    exponent = exponent_of(peak)
    scale = sum_scale(exponent)
    total = np.int64(0)
    for i in range(v.size):
        total += as_integer(np.float64(v[i]) * scale)
    return sum_value(total, exponent)


@inline
def _rounded(v, worst):
    """Give v as float32, and the worse of its status and the worst so far."""
    result = np.float32(flushed(v))
    peak = magnitude(np.int32(result.view(np.int32)))
    return result, max(worst, status_of(peak))


@inline
def _bounds_of_exp_sum(x, largest, t):
    """Fill t with near e^(x - largest); bound the fixed-point sum of the specified ones."""
    least, most = np.int64(0), np.int64(0)
    for i in range(x.size):
        t[i] = exp_closely(np.float64(x[i]) - largest)
        least += bits_of(fma(t[i], _UNITS_AT_LEAST, MAGIC)) - MAGIC_BITS
        most += bits_of(fma(t[i], _UNITS_AT_MOST, MAGIC)) - MAGIC_BITS
    return least, most


@inline
def _specified_exp_sum(x, largest, t):
    """Fill t = e^(x - largest); give its fixed-point sum. t is 1 at the largest, at most."""
    scale = sum_scale(1)
    total = np.int64(0)
    for i in range(x.size):
        t[i] = exp64(np.float64(x[i]) - largest)
        total += as_integer(t[i] * scale)
    return sum_value(total, 1)


@inline
def _exp_sum(x, largest, t):
    """The fixed-point sum of e^(x - largest), to the bit; t is scratch."""
    least, most = _bounds_of_exp_sum(x, largest, t)
    return sum_value(least, 1) if least == most else _specified_exp_sum(x, largest, t)


@inline
def _try_softmax(x, largest, t, results):
    """Softmax by near exponentials; say whether every float32 is the specified one.

    The sum is known within 2^-46, a term within 2^-50, and multiplying by the sum's
    inverse adds 2^-52: together well within what `near_border` allows.
    """
    least, most = _bounds_of_exp_sum(x, largest, t)
    if (most - least) << _SUM_CLOSENESS_BITS > least:
        return False
    inverse = 1.0 / sum_value(least, 1)
    doubts = np.int64(0)
    for i in range(t.size):
        v = t[i] * inverse
        results[i] = flushed(v)
        doubts |= near_border(v)
    return doubts >= 0


@kernel(
    int64(
        int64, reads(float32, 2), reads(int64, 1), int64, int64, writes(float32, 1)
    )
)  # fmt: skip
def reduce(name, x, counts, start, stop, out):  # noqa: C901  # a table of loops
    """One number of each row; counts are read by "count" alone."""
    n = x.shape[1]
    v = np.empty(n, np.float64)
    worst = FINE
    for row in range(start, stop):
        values = x[row]
        if name in (_MAX, _MIN):  # a loop less, since the ends show what is not finite
            least, greatest = _ends(values)
            if not (-np.inf < least and greatest < np.inf):
                worst = MASKED
            else:
                out[row], worst = _rounded(greatest if name == _MAX else least, worst)
            continue
        peak = _peak(values)
        if peak >= INFINITY_BITS:
            worst = MASKED
            continue
        if name == _LOG_SUM_EXP:
            largest = _largest(values)
            value = largest + log64(_exp_sum(values, largest, v))
        elif name in (_L2, _SUM_SQUARE):
            for i in range(n):
                v[i] = np.float64(values[i]) * np.float64(values[i])
            value = _fixed_sum(v, _as_float(peak) * _as_float(peak))
            if name == _L2:
                value = np.sqrt(value)
        elif name == _L1:
            for i in range(n):
                v[i] = abs(values[i])
            value = _fixed_sum(v, _as_float(peak))
        else:
            value = _fixed_sum(values, _as_float(peak))
            if name == _MEAN:
                value = value / np.float64(n)
            elif name == _LOG_SUM:
                value = log64(value)
            elif name == _COUNT:
                value = value / np.float64(counts[row])
        out[row], worst = _rounded(value, worst)
    return worst


@kernel(int64(reads(float32, 2), boolean, boolean, int64, int64, writes(float32, 2)))
def cumsum(x, exclusive, reverse, start, stop, out):
    """Running sums of the row's fixed-point integers."""
    n = x.shape[1]
    worst = FINE
    for row in range(start, stop):
        values, results = x[row], out[row]
        peak = _peak(values)
        if peak >= INFINITY_BITS:
            worst = MASKED
            continue
        exponent = exponent_of(_as_float(peak))
        scale = sum_scale(exponent)
        total = np.int64(0)
        for step in range(n):
            i = n - 1 - step if reverse else step
            before = total
            total += as_integer(np.float64(values[i]) * scale)
            value = sum_value(before if exclusive else total, exponent)
            results[i], worst = _rounded(value, worst)
    return worst


@kernel(int64(boolean, reads(float32, 2), int64, int64, writes(float32, 2)))
def softmax(logarithm, x, start, stop, out):
    """Softmax of each row, or its logarithm."""
    t = np.empty(x.shape[1], np.float64)
    worst = FINE
    for row in range(start, stop):
        values, results = x[row], out[row]
        if logarithm and _peak(values) >= INFINITY_BITS:
            worst = MASKED
            continue
        largest = _largest(values)
        if largest == -np.inf:
            worst = max(worst, NAN)
            continue
        if logarithm:
            shift = log64(_exp_sum(values, largest, t))
            for i in range(t.size):
                results[i] = flushed((np.float64(values[i]) - largest) - shift)
        elif not (largest < np.inf and _try_softmax(values, largest, t, results)):
            total = _specified_exp_sum(values, largest, t)
            for i in range(t.size):
                results[i] = flushed(t[i] / total)
        worst = max(worst, status_of(_peak(results)))
    return worst


@kernel(
    int64(
        boolean, reads(float32, 2), reads(float32, 2), reads(float32, 2), float64,
        int64, int64, writes(float32, 2),
    )
)  # fmt: skip
def norm(centre, x, w, b, eps, start, stop, out):
    """Each row, less its mean if centre, over its deviation, times w, plus b.

    w and b: (groups, n). The identities stand for none: 1, and -0, which changes no sign.
    Subtracting the mean keeps the order, so a row's ends have its largest magnitude.
    """
    n = x.shape[1]
    worst = FINE
    for row in range(start, stop):
        values, results = x[row], out[row]
        smallest, largest = _ends(values)
        if smallest == -np.inf or not largest < np.inf:
            worst = MASKED
            continue
        mean = 0.0
        if centre:
            mean = _fixed_sum(values, max(abs(largest), abs(smallest))) / np.float64(n)
        peak = max(abs(largest - mean), abs(smallest - mean))
        exponent = exponent_of(peak * peak)
        scale = sum_scale(exponent)
        total = np.int64(0)
        for i in range(n):
            c = np.float64(values[i]) - mean
            total += as_integer((c * c) * scale)
        variance = sum_value(total, exponent) / np.float64(n)
        deviation = np.sqrt(variance + eps)
        gain, offset = w[row % w.shape[0]], b[row % b.shape[0]]
        if _LEAST_DIVISOR < deviation < _GREATEST_DIVISOR:
            inverse = 1.0 / deviation
            for i in range(n):
                c = divided(np.float64(values[i]) - mean, deviation, inverse)
                results[i] = flushed(c * np.float64(gain[i]) + np.float64(offset[i]))
        else:
            for i in range(n):
                c = (np.float64(values[i]) - mean) / deviation
                results[i] = flushed(c * np.float64(gain[i]) + np.float64(offset[i]))
        worst = max(worst, status_of(_peak(results)))
    return worst


@kernel(
    int64(
        reads(float32, 2), reads(float32, 1), reads(float32, 1), reads(float32, 1),
        reads(float32, 1), float64, int64, int64, writes(float32, 2),
    )
)  # fmt: skip
def batch_norm(x, scale, b, mean, var, eps, start, stop, out):
    """Rows are channels of samples: row i is of channel i % channels."""
    worst = FINE
    for row in range(start, stop):
        values, results = x[row], out[row]
        channel = row % scale.size
        centre, gain = np.float64(mean[channel]), np.float64(scale[channel])
        offset = np.float64(b[channel])
        deviation = np.sqrt(np.float64(var[channel]) + eps)
        if _LEAST_DIVISOR < deviation < _GREATEST_DIVISOR:
            inverse = 1.0 / deviation
            for i in range(values.size):
                c = divided(np.float64(values[i]) - centre, deviation, inverse)
                results[i] = flushed(c * gain + offset)
        else:
            for i in range(values.size):
                c = (np.float64(values[i]) - centre) / deviation
                results[i] = flushed(c * gain + offset)
        status = status_of(_peak(results))
        if status != FINE and _peak(values) >= INFINITY_BITS:  # no finite result hides one
            status = MASKED
        worst = max(worst, status)
    return worst


@kernel(
    int64(
        reads(float32, 1), reads(int64, 1), reads(float32, 1), writes(float64, 1),
        writes(int64, 1), writes(float32, 1),
    )
)  # fmt: skip
def scatter_add(data, indices, updates, scales, sums, out):
    """Sums at targets; scales and sums are scratch as long as data, sums all zero."""
    if _peak(data) >= INFINITY_BITS or _peak(updates) >= INFINITY_BITS:
        return MASKED
    for i in range(data.size):
        out[i] = abs(data[i])
        scales[i] = 0.0
    for k in range(indices.size):
        i = indices[k]
        out[i] = max(out[i], abs(updates[k]))
        scales[i] = 1.0  # reached
    for i in range(data.size):
        if scales[i] > 0.0:
            scales[i] = sum_scale(exponent_of(np.float64(out[i])))
            sums[i] = as_integer(np.float64(data[i]) * scales[i])
    for k in range(indices.size):
        i = indices[k]
        sums[i] += as_integer(np.float64(updates[k]) * scales[i])
    worst = FINE
    for i in range(data.size):
        if scales[i] > 0.0:
            out[i], worst = _rounded(np.float64(sums[i]) / scales[i], worst)
        else:
            out[i] = data[i]
    return worst
