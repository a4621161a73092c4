"""Exact matrix products: quantise, multiply in float64 without error, round once.

Part of *execute*; SPEC.md, "Products". Rows of the left operand and columns (or
rows) of the right one become integers below 2^20; up to `K_BLOCK` of their products
sum within float64's 53 bits, so numpy's BLAS gives the exact sum in whatever order
it likes. Longer sums are added block by block in int64.

The loops are here; `CpuProducts` in `product` cuts the work and calls BLAS.
Every loop takes a range of its arrays and returns a status of `floats`.
Powers of two stand for exponents throughout, as float64, which multiplies by them
without error: |e| stays below 400.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba.types import float32, float64, int8, int16, int32, int64

from shoal.compute.exact.cpu.compiled import inline, kernel, reads, writes
from shoal.compute.exact.cpu.floats import (
    INFINITY_BITS,
    INFINITY_BITS_64,
    exponent_of,
    from_bits,
    magnitude,
    magnitude_64,
    power_of_two,
)
from shoal.compute.exact.spec import FLOAT32_MAX, SMALLEST_NORMAL
from shoal.compute.exact.statuses import FINE, INFINITE

_COLUMNS_AT_ONCE: Final = 512
"""Columns whose maxima and scales stay in the first-level cache."""


@inline
def _scale_exponent(peak, bits, limit):
    """SPEC's e: the smallest integer with rint(peak * 2^(bits - e)) <= limit; 0 of 0."""
    exponent = exponent_of(peak)
    if np.rint(peak * power_of_two(bits - exponent)) > limit:
        exponent += 1
    return exponent


_QUANTISED = (int8, int16, int32, float64)


@kernel(
    *(
        int64(reads(float32, 2), int64, int64, int64, int64, writes(q, 2), writes(float64, 1))
        for q in _QUANTISED
    )
)
def quantise_rows(a, bits, limit, start, stop, q, power):
    """Each row of a to integers q, with power = 2^e, or 0 for a row of zeros.

    That 0, folded into another operand's columns, makes them the zeros that SPEC wants.
    """
    bits_of_a = a.view(np.int32)
    worst = FINE
    for i in range(start, stop):
        peak_bits = np.int32(0)
        for k in range(a.shape[1]):
            peak_bits = max(peak_bits, magnitude(bits_of_a[i, k]))
        if peak_bits >= INFINITY_BITS:
            worst = INFINITE
        peak = np.float64(np.int32(peak_bits).view(np.float32))
        exponent = _scale_exponent(peak, bits, limit)
        power[i] = 0.0 if peak == 0.0 else power_of_two(exponent)
        scale = power_of_two(bits - exponent)
        for k in range(a.shape[1]):
            q[i, k] = np.rint(a[i, k] * scale)
    return worst


@kernel(
    int64(
        reads(float32, 2), reads(float64, 2), int64, int64, int64, int64, int64,
        writes(float64, 2), writes(float64, 1),
    )
)  # fmt: skip
def quantise_folded_rows(a, fold, rows_per_fold, bits, limit, start, stop, q, power):
    """Each row of a times the powers of two in its row of fold, to integers."""
    products = q.view(np.int64)
    worst = FINE
    for i in range(start, stop):
        factors = fold[i // rows_per_fold]
        for k in range(a.shape[1]):
            q[i, k] = a[i, k] * factors[k]
        peak_bits = np.int64(0)
        for k in range(a.shape[1]):
            peak_bits = max(peak_bits, magnitude_64(products[i, k]))
        if peak_bits >= INFINITY_BITS_64:
            worst = INFINITE
        exponent = _scale_exponent(from_bits(peak_bits), bits, limit)
        power[i] = power_of_two(exponent)
        scale = power_of_two(bits - exponent)
        for k in range(a.shape[1]):
            q[i, k] = np.rint(q[i, k] * scale)
    return worst


@kernel(
    *(
        int64(reads(float32, 3), int64, int64, *[int64] * 4, writes(q, 3), writes(float64, 2))
        for q in _QUANTISED
    )
)
def quantise_columns(b, bits, limit, first, last, start, stop, q, power):
    """Each column of the matrices first..last to integers, columns start..stop."""
    bits_of_b = b.view(np.int32)
    peaks = np.empty(_COLUMNS_AT_ONCE, np.int32)
    scales = np.empty(_COLUMNS_AT_ONCE, np.float64)
    worst = FINE
    for index in range(first, last):
        for left in range(start, stop, _COLUMNS_AT_ONCE):
            width = min(_COLUMNS_AT_ONCE, stop - left)
            peaks[:] = 0
            for k in range(b.shape[1]):
                row = bits_of_b[index, k, left : left + width]
                for j in range(width):
                    peaks[j] = max(peaks[j], magnitude(row[j]))
            for j in range(width):
                if peaks[j] >= INFINITY_BITS:
                    worst = INFINITE
                peak = np.float64(np.int32(peaks[j]).view(np.float32))
                exponent = _scale_exponent(peak, bits, limit)
                power[index, left + j] = power_of_two(exponent)
                scales[j] = power_of_two(bits - exponent)
            for k in range(b.shape[1]):
                source = b[index, k, left : left + width]
                target = q[index, k, left : left + width]
                for j in range(width):
                    target[j] = np.rint(source[j] * scales[j])
    return worst


_COMPACT = (int8, int16, int32)


@kernel(*(int64(reads(q, 2), int64, int64, int64, int64, writes(float64, 2)) for q in _COMPACT))
def widen(q, top, left, start, stop, wide):
    """Rows start..stop of the block of q at (top, left) as float64."""
    for k in range(start, stop):
        source = q[top + k, left : left + wide.shape[1]]
        target = wide[k]
        for j in range(target.size):
            target[j] = source[j]
    return FINE


@kernel(
    *(
        int64(reads(float64, 2), int64, reads(q, 2), int64, int64, int64, writes(float64, 2))
        for q in _COMPACT
    )
)
def multiply_few(a, terms, q, top, left, width, z):
    """Z = a[:, top : top + terms] times the block of q: few rows, q read once."""
    z[:] = 0.0
    for column in range(0, width, _COLUMNS_AT_ONCE):
        count = min(_COLUMNS_AT_ONCE, width - column)
        first = left + column
        for k in range(top, top + terms - terms % 4, 4):
            q0 = q[k, first : first + count]
            q1 = q[k + 1, first : first + count]
            q2 = q[k + 2, first : first + count]
            q3 = q[k + 3, first : first + count]
            for i in range(a.shape[0]):
                a0, a1, a2, a3 = a[i, k], a[i, k + 1], a[i, k + 2], a[i, k + 3]
                sums = z[i, column : column + count]
                for j in range(count):
                    sums[j] += (a0 * q0[j] + a1 * q1[j]) + (a2 * q2[j] + a3 * q3[j])
        for k in range(top + terms - terms % 4, top + terms):
            row = q[k, first : first + count]
            for i in range(a.shape[0]):
                factor = a[i, k]
                sums = z[i, column : column + count]
                for j in range(count):
                    sums[j] += factor * row[j]
    return FINE


@kernel(
    *(
        int64(
            reads(z, 2), reads(float64, 1), reads(float64, 2), int64, float64,
            writes(float32, 2), int64, int64,
        )
        for z in (float64, int64)
    )
)  # fmt: skip
def rescale(z, row_power, column_power, rows_per_column_power, unit, out, top, left):
    """Round exact integers z times their powers of two, into the block of out at (top, left).

    z is rounded to 24 bits first, which its exponent cannot disturb; the powers are
    then exact in float64, and so are the comparisons that flush and refuse.
    """
    worst = FINE
    for i in range(z.shape[0]):
        sums = z[i]
        target = out[top + i, left : left + z.shape[1]]
        powers = column_power[(top + i) // rows_per_column_power, left : left + z.shape[1]]
        factor = row_power[top + i] * unit
        over = 0
        for j in range(sums.size):
            value = np.float64(np.float32(sums[j])) * (factor * powers[j])
            magnitude = abs(value)
            over |= magnitude > FLOAT32_MAX
            zero = np.float32(-0.0) if sums[j] < 0 else np.float32(0.0)
            target[j] = zero if magnitude < SMALLEST_NORMAL else np.float32(value)
        if over:
            worst = INFINITE
    return worst


@kernel(int64(reads(float64, 2), writes(int64, 2), int64, int64))
def add_block(z, totals, top, left):
    """Add exact integers to the block of their int64 sums at (top, left)."""
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            totals[top + i, left + j] += np.int64(z[i, j])
    return FINE
