"""Products of the exact class on a card: SPEC, "Products".

Part of *execute*. Each operand becomes integers, its integers become int8 digits, and
digits are multiplied by the card's integer matrix units into int32: digit products of
equal weight share an accumulator. Their sum is the integer product, exactly, whatever the
tiling; one rounding ends it. `FLOAT64` is the other way: the integers themselves in
float64, by the vendor's own matrix product, exact as well (`spec.K_BLOCK`).

Operands lie as (batch, vectors, terms), the terms of a vector side by side: rows of A, and
columns of B. A vector's exponent is an int32; `EMPTY` stands for a vector of zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import torch
import triton
import triton.language as tl

from shoal.compute.exact.gpu.numbers import (
    FINE,
    MASKED,
    absolute,
    exponent_of,
    is_masked,
    nearest,
    power_of_two,
    report,
    round32,
    status_of,
)
from shoal.compute.exact.gpu.variants import Variant
from shoal.compute.exact.kernels import ExactError, Prepared, ScaleAxis
from shoal.compute.exact.spec import K_BLOCK, K_LIMIT, PRECISIONS, Precision

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.compute.exact.gpu.card import Card

Way = Literal["digits", "float64"]

EMPTY = tl.constexpr(-4096)
_BASE_BITS: Final = {"x20": 7, "x16": 8, "x8": 8}
DIGITS: Final = {"x20": 3, "x16": 2, "x8": 1}
"""Digits of a quantised integer: base 128 in [-64, 63], or base 256 in [-128, 127]."""

_SCALE_ROWS: Final = 8
_SCALE_TERMS: Final = 128
_TILE: Final = {"x20": (128, 64, 64), "x16": (128, 128, 64), "x8": (128, 128, 128)}
"""Rows, columns and terms of a tile. x20 has five accumulators, and so a smaller one."""
_MATRICES: Final = 65535
"""Of one launch: CUDA's limit of programs along z."""

_CHUNK: Final = 1 << 15
"""Terms whose digit products sum within int32: three of them at most 2^28 in x20, two of
them at most 2^30 in x16."""


@triton.jit
def _power(exponent):
    """2^e as float64, 0 for a vector of zeros."""
    return tl.where(exponent == EMPTY, 0.0, power_of_two(exponent.to(tl.int64)))


@triton.jit
def _values(
    x, fold, r, k, inside, terms, group, group_stride, row_stride, term_stride,
    FOLD: tl.constexpr, SIDE_BY_SIDE: tl.constexpr,
):  # fmt: skip
    """A tile of vectors as float32, and as float64 with what is folded in."""
    place = (r // group) * group_stride + (r % group) * row_stride
    along = k if SIDE_BY_SIDE else k * term_stride
    given = tl.load(x + place[:, None] + along[None, :], inside, 0.0)
    v = given.to(tl.float64)
    if FOLD:
        powers = _power(
            tl.load(fold + (r // group)[:, None] * terms + k[None, :], inside, EMPTY)
        )
        v = tl.where(is_masked(given), 0.0, v) * powers
    return given, v


@triton.jit(do_not_specialize=("rows", "group"))
def scale_kernel(
    x, fold, exponents, status, rows: tl.int64, terms: tl.int64, group: tl.int64,
    group_stride: tl.int64, row_stride: tl.int64, term_stride: tl.int64,
    BITS: tl.constexpr, LIMIT: tl.constexpr, FOLD: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr, ROWS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """The exponent of each vector's scale; refuses what is infinite.

    SIDE_BY_SIDE says that ``term_stride`` is 1, for loads of several terms at once.
    """
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    peak = tl.zeros((ROWS,), tl.float64)
    met = tl.zeros((ROWS,), tl.int32)
    for start in range(0, terms, TERMS):
        k = start + tl.arange(0, TERMS).to(tl.int64)
        inside = (r < rows)[:, None] & (k < terms)[None, :]
        given, v = _values(
            x, fold, r, k, inside, terms, group, group_stride, row_stride, term_stride, FOLD,
            SIDE_BY_SIDE,
        )  # fmt: skip
        peak = tl.maximum(peak, tl.max(tl.where(inside, absolute(v), 0.0), axis=1))
        worst = tl.where(is_masked(given), MASKED, status_of(given))
        met = tl.maximum(met, tl.max(tl.where(inside, worst, FINE).to(tl.int32), axis=1))
    e = exponent_of(peak)
    over = nearest(peak * power_of_two(BITS - e)) > LIMIT
    e = tl.where(peak == 0.0, EMPTY, tl.where(over, e + 1, e))
    report(status, tl.where(r < rows, met, FINE))
    tl.store(exponents + r, e.to(tl.int32), r < rows)


@triton.jit(do_not_specialize=("rows", "group"))
def quantise_kernel(
    x, fold, exponents, out, rows: tl.int64, terms: tl.int64, group: tl.int64,
    group_stride: tl.int64, row_stride: tl.int64, term_stride: tl.int64,
    plane: tl.int64, BITS: tl.constexpr, FOLD: tl.constexpr, BY_TERM: tl.constexpr,
    SIDE_BY_SIDE: tl.constexpr, DIGITS: tl.constexpr, BASE_BITS: tl.constexpr,
    ROWS: tl.constexpr, TERMS: tl.constexpr,
):  # fmt: skip
    """The integers of each vector: as DIGITS planes of int8, or for 0 as float64."""
    r = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    k = tl.program_id(1).to(tl.int64) * TERMS + tl.arange(0, TERMS)
    inside = (r < rows)[:, None] & (k < terms)[None, :]
    given, v = _values(
        x, fold, r, k, inside, terms, group, group_stride, row_stride, term_stride, FOLD,
        SIDE_BY_SIDE,
    )  # fmt: skip
    if BY_TERM:
        e = tl.load(exponents + (r // group)[:, None] * terms + k[None, :], inside, EMPTY)
    else:
        e = tl.load(exponents + r, r < rows, EMPTY)[:, None]
    scale = power_of_two(BITS - tl.where(e == EMPTY, 0, e).to(tl.int64))
    q = nearest(tl.where(is_masked(given), 0.0, v) * scale)
    place = out + r[:, None] * terms + k[None, :]
    if DIGITS == 0:
        tl.store(place, q, inside)
    else:
        left = q.to(tl.int32)
        half: tl.constexpr = 1 << (BASE_BITS - 1)
        for index in tl.static_range(DIGITS - 1):
            digit = ((left + half) & (2 * half - 1)) - half
            tl.store(place + index * plane, digit.to(tl.int8), inside)
            left = (left - digit) >> BASE_BITS
        tl.store(place + (DIGITS - 1) * plane, left.to(tl.int8), inside)


@triton.jit
def _finish(
    z, out, status, a_exponents, b_exponents, batch, m, n, rows, columns,
    BITS: tl.constexpr, BY_TERM: tl.constexpr,
):  # fmt: skip
    """Round exact integers once and store them."""
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    e = tl.load(a_exponents + batch * rows + m, m < rows, EMPTY)
    e = tl.where(e == EMPTY, 0, e)[:, None].to(tl.int64) - 2 * BITS
    if not BY_TERM:
        other = tl.load(b_exponents + batch * columns + n, n < columns, EMPTY)
        e = e + tl.where(other == EMPTY, 0, other)[None, :].to(tl.int64)
    # int64 to float32 rounds once, to 24 bits; the power of two is exact in float64.
    result = round32(z.to(tl.float32).to(tl.float64) * power_of_two(e))
    report(status, tl.where(inside, status_of(result), FINE))
    place = (batch * rows + m)[:, None] * columns + n[None, :]
    tl.store(out + place, result, inside)


@triton.jit(do_not_specialize=("rows",))
def digit_product_kernel(
    a, b, a_exponents, b_exponents, out, status, rows: tl.int64, columns: tl.int64,
    terms: tl.int64, a_plane: tl.int64, b_plane: tl.int64,
    BITS: tl.constexpr, BY_TERM: tl.constexpr, DIGITS: tl.constexpr, BASE_BITS: tl.constexpr,
    LONG: tl.constexpr, CHUNK: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """Out = A B of digits, (batch, rows, columns) float32.

    a is (DIGITS, batch, rows, terms) int8, b is (DIGITS, batch, columns, terms) int8.
    """
    batch = tl.program_id(2).to(tl.int64)
    across = tl.cdiv(columns, N)
    last = terms.to(tl.int32)  # within K_LIMIT: each step of the loop counts in 32 bits
    m = (tl.program_id(0) // across).to(tl.int64) * M + tl.arange(0, M)
    n = (tl.program_id(0) % across).to(tl.int64) * N + tl.arange(0, N)
    a += (batch * rows + m)[:, None] * terms
    b += (batch * columns + n)[None, :] * terms
    row_inside, column_inside = (m < rows)[:, None], (n < columns)[None, :]
    if LONG:
        z = tl.zeros((M, N), tl.int64)
        for start in range(0, last, CHUNK):
            z += _digit_sums(
                a, b, row_inside, column_inside, start, min(start + CHUNK, last), a_plane,
                b_plane, DIGITS, BASE_BITS, M, N, K,
            )  # fmt: skip
    else:
        z = _digit_sums(
            a, b, row_inside, column_inside, 0, last, a_plane, b_plane, DIGITS, BASE_BITS,
            M, N, K,
        )  # fmt: skip
    _finish(z, out, status, a_exponents, b_exponents, batch, m, n, rows, columns, BITS, BY_TERM)


@triton.jit
def _digit_sums(
    a, b, row_inside, column_inside, first, last, a_plane, b_plane,
    DIGITS: tl.constexpr, BASE_BITS: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr,
):  # fmt: skip
    """The integer product of terms first..last, (M, N) int64."""
    s0 = tl.zeros((M, N), tl.int32)
    s1 = tl.zeros((M, N), tl.int32)
    s2 = tl.zeros((M, N), tl.int32)
    s3 = tl.zeros((M, N), tl.int32)
    s4 = tl.zeros((M, N), tl.int32)
    for start in range(first, last, K):
        k = start + tl.arange(0, K)
        left, right = row_inside & (k < last)[None, :], column_inside & (k < last)[:, None]
        a0 = tl.load(a + k[None, :], left, 0)
        b0 = tl.load(b + k[:, None], right, 0)
        s0 = tl.dot(a0, b0, s0, out_dtype=tl.int32)
        if DIGITS > 1:
            a1 = tl.load(a + a_plane + k[None, :], left, 0)
            b1 = tl.load(b + b_plane + k[:, None], right, 0)
            s1 = tl.dot(a0, b1, s1, out_dtype=tl.int32)
            s1 = tl.dot(a1, b0, s1, out_dtype=tl.int32)
            s2 = tl.dot(a1, b1, s2, out_dtype=tl.int32)
        if DIGITS > 2:
            a2 = tl.load(a + 2 * a_plane + k[None, :], left, 0)
            b2 = tl.load(b + 2 * b_plane + k[:, None], right, 0)
            s2 = tl.dot(a0, b2, s2, out_dtype=tl.int32)
            s2 = tl.dot(a2, b0, s2, out_dtype=tl.int32)
            s3 = tl.dot(a1, b2, s3, out_dtype=tl.int32)
            s3 = tl.dot(a2, b1, s3, out_dtype=tl.int32)
            s4 = tl.dot(a2, b2, s4, out_dtype=tl.int32)
    z = s0.to(tl.int64)
    if DIGITS > 1:
        z += (s1.to(tl.int64) << BASE_BITS) + (s2.to(tl.int64) << (2 * BASE_BITS))
    if DIGITS > 2:
        z += (s3.to(tl.int64) << (3 * BASE_BITS)) + (s4.to(tl.int64) << (4 * BASE_BITS))
    return z


@triton.jit(do_not_specialize=("rows",))
def rounding_kernel(
    z, a_exponents, b_exponents, out, status, rows: tl.int64, columns: tl.int64,
    BITS: tl.constexpr, BY_TERM: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Out = the integers z, (batch, rows, columns) int64, scaled and rounded once."""
    batch = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0).to(tl.int64) * M + tl.arange(0, M)
    n = tl.program_id(1).to(tl.int64) * N + tl.arange(0, N)
    inside = (m < rows)[:, None] & (n < columns)[None, :]
    place = (batch * rows + m)[:, None] * columns + n[None, :]
    whole = tl.load(z + place, inside, 0)
    _finish(
        whole, out, status, a_exponents, b_exponents, batch, m, n, rows, columns, BITS, BY_TERM
    )


_LAYOUT = dict.fromkeys(
    ("rows", "terms", "group", "group_stride", "row_stride", "term_stride"), "i64"
)
_SCALE: Final = {
    (precision.name, fold, side_by_side): Variant(
        scale_kernel,
        {"x": "*fp32", "fold": "*i32", "exponents": "*i32", "status": "*i32", **_LAYOUT},
        {
            "BITS": precision.bits,
            "LIMIT": precision.limit,
            "FOLD": fold,
            "SIDE_BY_SIDE": side_by_side,
            "ROWS": _SCALE_ROWS,
            "TERMS": _SCALE_TERMS,
        },
    )
    for precision in PRECISIONS.values()
    for fold, side_by_side in ((False, False), (False, True), (True, True))
}
_WAYS: Final[tuple[Way, ...]] = ("digits", "float64")
_QUANTISE: Final = {
    (precision.name, fold, by_term, side_by_side, way): Variant(
        quantise_kernel,
        {
            "x": "*fp32",
            "fold": "*i32",
            "exponents": "*i32",
            "out": "*i8" if way == "digits" else "*fp64",
            **_LAYOUT,
            "plane": "i64",
        },
        {
            "BITS": precision.bits,
            "FOLD": fold,
            "BY_TERM": by_term,
            "SIDE_BY_SIDE": side_by_side,
            "DIGITS": DIGITS[precision.name] if way == "digits" else 0,
            "BASE_BITS": _BASE_BITS[precision.name],
            "ROWS": _SCALE_ROWS,
            "TERMS": _SCALE_TERMS,
        },
    )
    for precision in PRECISIONS.values()
    for fold, by_term, side_by_side in (
        (False, False, False),
        (False, False, True),
        (False, True, False),
        (False, True, True),
        (True, False, True),
    )
    for way in _WAYS
}
_RESULT = {"a_exponents": "*i32", "b_exponents": "*i32", "out": "*fp32", "status": "*i32"}
_SIZES = dict.fromkeys(("rows", "columns", "terms", "a_plane", "b_plane"), "i64")


def _digit_product(precision: Precision, by_term: bool, long: bool) -> Variant:
    m, n, k = _TILE[precision.name]
    return Variant(
        digit_product_kernel,
        {"a": "*i8", "b": "*i8", **_RESULT, **_SIZES},
        {
            "BITS": precision.bits,
            "BY_TERM": by_term,
            "DIGITS": DIGITS[precision.name],
            "BASE_BITS": _BASE_BITS[precision.name],
            "LONG": long,
            "CHUNK": _CHUNK,
            "M": m,
            "N": n,
            "K": k,
        },
        warps=8,
        stages=3,
    )


_PRODUCT: Final = {
    (precision.name, by_term, long): _digit_product(precision, by_term, long)
    for precision in PRECISIONS.values()
    for by_term in (False, True)
    for long in (False, True)
}
_ROUNDING: Final = {
    (precision.name, by_term): Variant(
        rounding_kernel,
        {"z": "*i64", **_RESULT, "rows": "i64", "columns": "i64"},
        {"BITS": precision.bits, "BY_TERM": by_term, "M": _SCALE_ROWS, "N": _SCALE_TERMS},
    )
    for precision in PRECISIONS.values()
    for by_term in (False, True)
}


def variants() -> Iterator[Variant]:
    """All that this module launches."""
    yield from _SCALE.values()
    yield from _QUANTISE.values()
    yield from _PRODUCT.values()
    yield from _ROUNDING.values()


@dataclass(frozen=True, slots=True)
class Quantised:
    """An operand as integers.

    Attributes:
        integers: (digits, batch, vectors, terms) int8, the least digit first; or
            (batch, vectors, terms) float64.
        exponents: (batch, vectors) int32; (batch, terms) of a right operand of axis "k".
        precision: What it was quantised to.
        axis: The axis that carries its scales, of a right operand.
        way: Which of both forms it has.
    """

    integers: torch.Tensor
    exponents: torch.Tensor
    precision: Precision
    axis: ScaleAxis
    way: Way

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N) of a right operand."""
        vectors, terms = self.integers.shape[-2:]
        return terms, vectors


@dataclass(frozen=True, slots=True)
class _Vectors:
    """How the vectors of a batch of matrices lie in memory: see `_values`."""

    batch: int
    vectors: int
    terms: int
    row_stride: int
    term_stride: int

    @property
    def layout(self) -> tuple[int, ...]:
        """The arguments from ``rows`` to ``term_stride``."""
        group = max(1, self.vectors)
        matrix = self.vectors * self.terms
        rows = self.batch * self.vectors
        return rows, self.terms, group, matrix, self.row_stride, self.term_stride

    @property
    def turned(self) -> _Vectors:
        """The same matrices, cut along the other axis."""
        return _Vectors(self.batch, self.terms, self.vectors, self.term_stride, self.row_stride)


def prepare_batch(
    card: Card, b: torch.Tensor, precision: Precision, axis: ScaleAxis, way: Way
) -> Quantised:
    """Quantise right operands, (batch, K, N)."""
    batch, terms, columns = b.shape
    _check_terms(terms)
    lying = _Vectors(batch, columns, terms, 1, columns)
    scaled = lying if axis == "column" else lying.turned
    exponents = _exponents(card, b, None, scaled, precision)
    return _quantised(card, b, None, exponents, lying, precision, axis, way, axis == "k")


def product_batch(card: Card, a: torch.Tensor, b: Quantised) -> torch.Tensor:
    """(batch, M, K) by right operands of as many matrices -> (batch, M, N)."""
    batch, rows, terms = a.shape
    columns = b.shape[1]
    _check_terms(terms)
    lying = _Vectors(batch, rows, terms, terms, 1)
    fold = b.exponents if b.axis == "k" else None
    exponents = _exponents(card, a, fold, lying, b.precision)
    out = card.empty(batch, rows, columns)
    if not terms or not out.numel():
        return out.zero_()
    by_term = b.axis == "k"
    status = card.status("product")
    left = _quantised(card, a, fold, exponents, lying, b.precision, b.axis, b.way, False)
    if b.way == "digits":
        variant = _PRODUCT[b.precision.name, by_term, terms > _CHUNK]
        tiles = -(-rows // variant.constants["M"]) * -(-columns // variant.constants["N"])
        planes = (left.integers[0].numel(), b.integers[0].numel())
        for some in _launches(batch):
            card.launch(
                variant,
                (tiles, 1, some.stop - some.start),
                *(left.integers[:, some], b.integers[:, some]),
                *(exponents[some], b.exponents[some], out[some], status),
                *(rows, columns, terms, *planes),
            )
    else:
        sums = _float64_sums(left.integers, b.integers)
        tiled = (-(-rows // _SCALE_ROWS), -(-columns // _SCALE_TERMS))
        for some in _launches(batch):
            card.launch(
                _ROUNDING[b.precision.name, by_term],
                (*tiled, some.stop - some.start),
                *(sums[some], exponents[some], b.exponents[some], out[some]),
                *(status, rows, columns),
            )
    return out


def _launches(batch: int) -> Iterator[slice]:
    """The matrices of each launch."""
    for first in range(0, batch, _MATRICES):
        yield slice(first, min(first + _MATRICES, batch))


def integer_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """(M, K) x (K, N) of int32: within 2^18 K <= 2^40, which float64 sums exactly."""
    _check_terms(a.shape[1], "integer_product")
    sums = torch.matmul(a.to(torch.float64), b.to(torch.float64))
    return sums.to(torch.int64).to(torch.int32)


def _exponents(
    card: Card,
    x: torch.Tensor,
    fold: torch.Tensor | None,
    lying: _Vectors,
    precision: Precision,
) -> torch.Tensor:
    exponents = card.empty(lying.batch, lying.vectors, dtype=torch.int32)
    card.launch(
        _SCALE[precision.name, fold is not None, lying.term_stride == 1],
        (-(-exponents.numel() // _SCALE_ROWS),),
        *(x, exponents if fold is None else fold, exponents),
        *(card.status("product"), *lying.layout),
    )
    return exponents


def _quantised(
    card: Card,
    x: torch.Tensor,
    fold: torch.Tensor | None,
    exponents: torch.Tensor,
    lying: _Vectors,
    precision: Precision,
    axis: ScaleAxis,
    way: Way,
    by_term: bool,
) -> Quantised:
    shape = (lying.batch, lying.vectors, lying.terms)
    if way == "digits":
        integers = card.empty(DIGITS[precision.name], *shape, dtype=torch.int8)
    else:
        integers = card.empty(*shape, dtype=torch.float64)
    rows = lying.batch * lying.vectors
    card.launch(
        _QUANTISE[precision.name, fold is not None, by_term, lying.term_stride == 1, way],
        (-(-rows // _SCALE_ROWS), -(-lying.terms // _SCALE_TERMS)),
        *(x, exponents if fold is None else fold, exponents, integers, *lying.layout),
        rows * lying.terms,
    )
    return Quantised(integers, exponents, precision, axis, way)


def _float64_sums(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The integer product, (batch, rows, terms) by (batch, columns, terms), int64."""
    total: torch.Tensor | None = None
    for left, right in zip(a.split(K_BLOCK, 2), b.split(K_BLOCK, 2), strict=True):
        sums = torch.matmul(left, right.transpose(1, 2)).to(torch.int64)
        total = sums if total is None else total + sums
    assert total is not None
    return total


def _check_terms(terms: int, kernel: str = "product") -> None:
    if terms > K_LIMIT:
        raise ExactError.in_kernel("k_limit", kernel)


if TYPE_CHECKING:

    def _is_prepared(quantised: Quantised) -> Prepared:
        return quantised
