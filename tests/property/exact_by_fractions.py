"""The exact class once more, in Python integers and fractions: slow, literal, independent.

It shares nothing with the reference but SPEC.md's sentences: scales are found by trying
exponents, sums are Python's, and rounding is `round` of a fraction, nearest even.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

TWO = Fraction(2)


class TooLargeError(ArithmeticError):
    """A result of 2^128 or more."""


def round_bits(v: Fraction, bits: int) -> Fraction:
    """To so many significant bits, nearest even, whatever the exponent."""
    if v == 0:
        return v
    exponent = math.floor(math.log2(abs(v.numerator))) - math.floor(math.log2(v.denominator))
    while abs(v) >= TWO**exponent:
        exponent += 1
    while abs(v) < TWO ** (exponent - 1):
        exponent -= 1
    unit = TWO ** (exponent - bits)
    return round(v / unit) * unit


def round32(v: Fraction) -> np.float32:
    rounded = round_bits(v, 24)
    if abs(rounded) >= TWO**128:
        raise TooLargeError
    if abs(rounded) < TWO**-126:
        return np.float32(-0.0 if v < 0 else 0.0)
    return np.float32(float(rounded))


def scale(vector: list[Fraction], bits: int, limit: int) -> int:
    """The smallest e with rint(m 2^(b - e)) <= Q, found by trying."""
    largest = max((abs(v) for v in vector), default=Fraction(0))
    if largest == 0:
        return 0
    e = 400
    while round(largest * TWO ** (bits - e + 1)) <= limit:
        e -= 1
    return e


def product(a: np.ndarray, b: np.ndarray, precision, axis: str) -> np.ndarray:
    """C = A B as SPEC says, element by element."""
    bits, limit = precision.bits, precision.limit
    left = [[Fraction(float(v)) for v in row] for row in a]
    right = [[Fraction(float(v)) for v in row] for row in b]
    k, n = b.shape
    if axis == "column":
        columns = [[right[i][j] for i in range(k)] for j in range(n)]
        b_scales = [scale(column, bits, limit) for column in columns]
        q_b = [
            [round(right[i][j] * TWO ** (bits - b_scales[j])) for j in range(n)]
            for i in range(k)
        ]
    else:
        row_scales = [scale(row, bits, limit) for row in right]
        q_b = [
            [round(v * TWO ** (bits - e)) for v in row]
            for row, e in zip(right, row_scales, strict=True)
        ]
        left = [
            [
                v * TWO**e if any(row) else Fraction(0)
                for v, e, row in zip(values, row_scales, right, strict=True)
            ]
            for values in left
        ]
        b_scales = [0] * n
    result = np.zeros((a.shape[0], n), np.float32)
    for i, row in enumerate(left):
        e = scale(row, bits, limit)
        q_a = [round(v * TWO ** (bits - e)) for v in row]
        for j in range(n):
            z = sum(q_a[t] * q_b[t][j] for t in range(k))
            power = e + b_scales[j] - 2 * bits if axis == "column" else e - 2 * bits
            result[i, j] = round32(round_bits(Fraction(z), 24) * TWO**power)
    return result


def sum_fixed(values: list[Fraction]) -> Fraction:
    """The fixed-point sum, its int64 total rounded to float64."""
    largest = max((abs(v) for v in values), default=Fraction(0))
    if largest == 0:
        return Fraction(0)
    e = 1100
    while largest < TWO ** (e - 1):
        e -= 1
    total = sum(round(v * TWO ** (40 - e)) for v in values)
    return Fraction(float(total)) * TWO ** (e - 40)


def bits_of(x: np.ndarray) -> list[int]:
    return np.ascontiguousarray(x, np.float32).view(np.uint32).ravel().tolist()


def floats(low: int = -126, high: int = 127) -> st.SearchStrategy[np.float32]:
    """Float32 values of the exact class: normal with 2^low <= |x| < 2^(high + 1), or zeros."""
    mantissa = st.one_of(
        st.integers(1 << 23, (1 << 24) - 1),
        st.sampled_from([1 << 23, (1 << 23) + 1, (1 << 24) - 1, 3 << 22]),
    )
    normal = st.builds(
        lambda m, e, sign: np.float32(sign * math.ldexp(m, e - 23)),
        mantissa,
        st.integers(low, high),
        st.sampled_from([-1, 1]),
    )
    return st.one_of(
        normal, normal, normal, st.sampled_from([np.float32(0.0), np.float32(-0.0)])
    )


@st.composite
def matrices(draw, rows: int, columns: int, low: int = -126, high: int = 127) -> np.ndarray:
    """(rows, columns) whose rows differ in exponent range, some of them zero."""
    result = np.zeros((rows, columns), np.float32)
    for i in range(rows):
        if draw(st.integers(0, 5)) == 0:
            continue
        centre = draw(st.integers(low, high))
        spread = draw(st.sampled_from([0, 2, 12, 60]))
        row = floats(max(low, centre - spread), min(high, centre + spread))
        for j in range(columns):
            result[i, j] = draw(row)
    return result
