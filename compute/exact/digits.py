"""Exact products a second way: int8 digits, int32 sums, as integer matrix units do it.

Part of *execute*, and of the tests: an independent check of the float64 way, and the
arithmetic that GPU backends use. A quantised integer is split into balanced digits,

* x20: three of base 128 in [-64, 63], x16: two of base 256 in [-128, 127], x8: one;

every pair of digit matrices is multiplied into int32, at most `_BLOCK` terms at a time
so that 128 * 128 * _BLOCK < 2^31, and the pairs are put together in int64. All but
products is the CPU backend's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numba.types import int8, int32, int64

from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.cpu.compiled import kernel, reads, writes
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.spec import K_LIMIT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shoal.compute.exact.kernels import Floats, Integers, ScaleAxis
    from shoal.compute.exact.spec import Precision

_BASES: Final = {"x20": (128, 3), "x16": (256, 2), "x8": (256, 1)}
"""Of each precision: the base of its digits, and how many there are."""
_BLOCK: Final = 1 << 16


@kernel(int64(reads(int8, 2), reads(int8, 2), writes(int32, 2)))
def _digit_product(a: NDArray[np.int8], b: NDArray[np.int8], sums: NDArray[np.int32]) -> int:
    """Fill sums = a b, in int32."""
    sums[:] = 0
    for i in range(a.shape[0]):
        row = sums[i]
        for k in range(a.shape[1]):
            digit = np.int32(a[i, k])
            for j in range(row.size):
                row[j] = np.int32(row[j] + np.int32(digit * np.int32(b[k, j])))
    return 0


def digits_of(q: Integers, precision: Precision) -> list[NDArray[np.int8]]:
    """Balanced digits of quantised integers, the least significant first.

    Args:
        q: Integers of magnitude at most ``precision.limit``.
        precision: Says the base and the count.
    """
    base, count = _BASES[precision.name]
    digits = []
    for _ in range(count):
        digit = (q + base // 2) % base - base // 2
        digits.append(np.ascontiguousarray(digit, np.int8))
        q = (q - digit) // base
    assert not q.any(), "quantised over the limit"
    return digits


def integer_sums(a: Integers, b: Integers, precision: Precision) -> Integers:
    """(M, K) x (K, N) of quantised integers, exactly."""
    base, _ = _BASES[precision.name]
    total = np.zeros((a.shape[0], b.shape[1]), np.int64)
    sums = np.empty(total.shape, np.int32)
    for start in range(0, a.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        right = digits_of(b[block], precision)
        for i, left in enumerate(digits_of(a[:, block], precision)):
            for j, other in enumerate(right):
                _digit_product(left, other, sums)
                total += sums.astype(np.int64) * base ** (i + j)
    return total


@dataclass(frozen=True, slots=True)
class DigitOperand:
    """A right operand in integers.

    Args:
        integers: (K, N).
        exponents: (N,) or (K,): of the vectors that carry scales.
        empty: Likewise: which of them are zero.
        precision: What it was quantised to.
        axis: Which axis carries the scales.
    """

    integers: Integers
    exponents: Integers
    empty: NDArray[np.bool_]
    precision: Precision
    axis: ScaleAxis

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        k, n = self.integers.shape
        return k, n


def _quantise(
    vectors: NDArray[np.float64], precision: Precision
) -> tuple[Integers, Integers, NDArray[np.bool_]]:
    """Rows to integers, their exponents, and which are zero."""
    if np.isinf(vectors).any():
        raise ExactError.in_kernel("infinity", "product")
    peaks = np.max(np.abs(vectors), axis=1, initial=0.0)
    _, exponents = np.frexp(peaks)
    too_large = np.rint(np.ldexp(peaks, precision.bits - exponents)) > precision.limit
    exponents = (exponents + too_large).astype(np.int64)
    scaled = np.ldexp(vectors, (precision.bits - exponents)[:, None])
    return np.rint(scaled).astype(np.int64), exponents, peaks == 0.0


class DigitKernels(CpuKernels):
    """`CpuKernels` with products by digits."""

    def prepare(  # type: ignore[override]  # opaque: what it gives goes to this class only
        self, b: Floats, precision: Precision, axis: ScaleAxis
    ) -> DigitOperand:
        """See `Kernels.prepare`."""
        if b.shape[0] > K_LIMIT:
            raise ExactError.in_kernel("k_limit", "product")
        vectors = b.astype(np.float64)
        if axis == "column":
            integers, exponents, empty = _quantise(vectors.T, precision)
            return DigitOperand(integers.T, exponents, empty, precision, axis)
        return DigitOperand(*_quantise(vectors, precision), precision, axis)

    def product(  # type: ignore[override]  # likewise
        self, a: Floats, b: Floats | DigitOperand, precision: Precision, axis: ScaleAxis
    ) -> Floats:
        """See `Kernels.product`."""
        right = self.prepare(b, precision, axis) if isinstance(b, np.ndarray) else b
        if np.isinf(a).any():
            raise ExactError.in_kernel("infinity", "product")
        left = a.astype(np.float64)
        if axis == "k":
            left = np.ldexp(left, right.exponents)
            left[:, right.empty] = 0.0
        q, exponents, _ = _quantise(left, precision)
        sums = integer_sums(q, right.integers, precision)
        powers = exponents[:, None] - 2 * precision.bits
        if axis == "column":
            powers = powers + right.exponents
        value = np.ldexp(sums.astype(np.float32).astype(np.float64), powers)
        if (np.abs(value) >= 2.0**128).any():
            raise ExactError.in_kernel("infinity", "product")
        tiny = np.abs(value) < 2.0**-126
        return np.where(tiny, np.copysign(0.0, value), value).astype(np.float32)

    def products(self, a: Floats, b: Floats, precision: Precision, axis: ScaleAxis) -> Floats:
        """See `Kernels.products`."""
        out = np.empty((a.shape[0], a.shape[1], b.shape[2]), np.float32)
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            out[index] = self.product(left, right, precision, axis)
        return out
