"""Matrix products of the exact class, in whole numbers: SPEC, "Products", line by line.

Part of *execute*, the reference. Every row of A and every scaled vector of B becomes
integers times a power of two; the integer product is exact; one rounding ends it.

Float64 holds every integer up to 2^53, and no partial sum of `K_BLOCK` terms is beyond
that: so a float64 product of integers is exact whatever the order, some thirty times as
fast as numpy's int64 one. Powers of two are float64 too: they multiply without error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.errors import ComputeError
from shoal.compute.exact.reference.rounding import (
    finite,
    refuse_infinite,
    refuse_long,
    round32,
)
from shoal.compute.exact.spec import K_BLOCK

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shoal.compute.exact.kernels import Floats, Integers, Prepared, ScaleAxis
    from shoal.compute.exact.reference.rounding import Doubles
    from shoal.compute.exact.spec import Precision


_ROWS: Final = 512
"""Rows of A that are multiplied at once: more take longer, by what they make of memory."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """The right operand of a product: integers and the exponents of their scales.

    Args:
        precision: What it was quantised to.
        axis: Which vectors of it carry the scales.
        integers: (K, N), as float64, which holds them exactly.
        exponents: (N,) for axis "column", (K,) for axis "k".
        zero_rows: (K,), for axis "k": which rows are nothing but zeros.
    """

    precision: Precision
    axis: ScaleAxis
    integers: Doubles
    exponents: Integers
    zero_rows: NDArray[np.bool_]

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        k, n = self.integers.shape
        return k, n


def scale_exponents(vectors: Doubles, precision: Precision) -> Integers:
    """The scale exponent e of every row of vectors, (rows, length) -> (rows,).

    The smallest integer with rint(m 2^(b - e)) <= Q, m being the row's largest magnitude.
    With 2^(t - 1) <= m < 2^t it is t, or t + 1 where m rounds to more than Q; 0 for m = 0.
    """
    largest = np.max(np.abs(vectors), axis=1, initial=0.0)
    _, t = np.frexp(largest)
    over = np.rint(np.ldexp(largest, precision.bits - t)) > precision.limit
    return np.where(largest == 0, 0, t + over).astype(np.int64)


def quantised(vectors: Doubles, exponents: Integers, precision: Precision) -> Doubles:
    """Every row of vectors in units of 2^(e - b), rounded to integers, nearest even."""
    scaled = vectors * power_of_two(precision.bits - exponents)[:, None]
    return np.rint(scaled, out=scaled)


def power_of_two(exponents: Integers) -> Doubles:
    """2^e, exactly."""
    powers: Doubles = np.ldexp(1.0, exponents)
    return powers


def prepare(b: Floats, precision: Precision, axis: ScaleAxis) -> Quantised:
    """Quantise the right operand, (K, N); see `Kernels.prepare`."""
    refuse_long("product", b.shape[0])
    refuse_infinite("product", b)
    vectors = b.astype(np.float64)
    if axis == "column":
        vectors = vectors.T
    exponents = scale_exponents(vectors, precision)
    integers = quantised(vectors, exponents, precision)
    if axis == "column":
        integers = integers.T
    zero_rows = np.all(b == 0, axis=1)
    return Quantised(precision, axis, integers, exponents, zero_rows)


def integer_sums(a: Doubles, b: Doubles) -> Integers:
    """Z: the exact product of integers |q| <= Q, (M, K) x (K, N). |Z| <= K Q^2 < 2^63.

    Raises:
        ComputeError: ``broken_blas``: each row's sum is found once more, in int64, since a
            BLAS that errs may not convict anybody.
    """
    z = np.zeros((a.shape[0], b.shape[1]), np.int64)
    for start in range(0, a.shape[1], K_BLOCK):
        terms = slice(start, start + K_BLOCK)
        z += (a[:, terms] @ b[terms]).astype(np.int64)
    row_sums = a.astype(np.int64) @ b.sum(axis=1).astype(np.int64)  # modulo 2^64, as z's
    if (z.sum(axis=1) != row_sums).any():
        raise ComputeError(
            "this machine's BLAS does not multiply whole numbers without error",
            code="broken_blas",
            hint="install another build of numpy, and look at the memory of this machine",
        )
    return z


def product(a: Floats, b: Floats | Prepared, precision: Precision, axis: ScaleAxis) -> Floats:
    """The whole product; see `Kernels.product`."""
    refuse_long("product", a.shape[1])
    right = prepare(b, precision, axis) if isinstance(b, np.ndarray) else b
    assert isinstance(right, Quantised)  # made by this backend
    assert (right.precision, right.axis) == (precision, axis)
    refuse_infinite("product", a)
    result = np.empty((a.shape[0], right.shape[1]), np.float32)
    for start in range(0, a.shape[0], _ROWS):
        rows = slice(start, start + _ROWS)
        result[rows] = _rows(a[rows], right)
    return finite("product", result)


def _rows(a: Floats, right: Quantised) -> Floats:
    """The rows of a product that are those of ``a``."""
    precision = right.precision
    left = a.astype(np.float64)
    if right.axis == "k":  # B's scales move into A's columns, exactly; zero rows of B drop out
        moved = left * power_of_two(right.exponents)
        left = np.where(right.zero_rows[None, :], 0.0, moved)
    exponents = scale_exponents(left, precision)
    z = integer_sums(quantised(left, exponents, precision), right.integers)
    # int64 to float32 rounds once, to 24 bits; the powers of two are exact in float64.
    scaled = z.astype(np.float32) * power_of_two(exponents - 2 * precision.bits)[:, None]
    if right.axis == "column":
        scaled *= power_of_two(right.exponents)
    return round32(scaled)


def products(a: Floats, b: Floats, precision: Precision, axis: ScaleAxis) -> Floats:
    """A product for each matrix of a batch; see `Kernels.products`."""
    result = np.empty((a.shape[0], a.shape[1], b.shape[2]), np.float32)
    for index in range(a.shape[0]):
        result[index] = product(a[index], b[index], precision, axis)
    return result


def integer_product(a: NDArray[np.int32], b: NDArray[np.int32]) -> NDArray[np.int32]:
    """Small integers, modulo 2^32; see `Kernels.integer_product`."""
    refuse_long("integer_product", a.shape[1])
    wide = integer_sums(a.astype(np.float64), b.astype(np.float64))
    wrapped: NDArray[np.int32] = wide.astype(np.int32)
    return wrapped
