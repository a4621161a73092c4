"""Sums along rows and what rests on them, on a card: SPEC, "Sums".

Part of *execute*. A tile is some rows by some of their values. A row is read two to five
times, from the card's cache after the first. Its terms become int64 in units of
2^(e - 40), whose sum no order of additions can change; all else is float64 in the order
that SPEC writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

import torch
import triton
import triton.language as tl

from shoal.compute.exact.gpu.functions import exp64, log64
from shoal.compute.exact.gpu.numbers import (
    FINE,
    MASKED,
    NAN,
    absolute,
    as_integer,
    exponent_of,
    is_masked,
    report,
    round32,
    status_of,
    sum_scale,
    sum_value,
)
from shoal.compute.exact.gpu.variants import Variant
from shoal.compute.exact.kernels import ExactError, ReduceName
from shoal.compute.exact.spec import K_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shoal.compute.exact.gpu.card import Card

_TILES: Final = ((8, 128), (1, 1024))
"""Rows and values of a tile: for short rows, and for long ones."""
_NOTHING_TO_CHOOSE: Final = frozenset({"log_sum_exp", "max", "mean", "min"})


@triton.jit
def _load(x, rows, n, r, start, N: tl.constexpr, other):
    """A tile of x, (rows, n) float32, and where it is inside."""
    i = start + tl.arange(0, N).to(tl.int64)
    inside = (r < rows)[:, None] & (i < n)[None, :]
    return tl.load(x + r[:, None] * n + i[None, :], inside, other), inside


@triton.jit
def _term(WHAT: tl.constexpr, v, centre):
    """What is summed of each value: itself, its magnitude, its square, or a function."""
    if WHAT == "value":
        t = v
    elif WHAT == "size":
        t = absolute(v)
    elif WHAT == "square":
        t = v * v
    elif WHAT == "centred square":
        c = v - centre[:, None]
        t = c * c
    else:
        tl.static_assert(WHAT == "exp")
        t = exp64(v - centre[:, None])
    return t


@triton.jit
def _peak(x, rows, n, r, centre, WHAT: tl.constexpr, R: tl.constexpr, N: tl.constexpr):
    """The largest magnitude among each row's terms, (R,) float64."""
    peak = tl.zeros((R,), tl.float64)
    for start in range(0, n, N):
        given, inside = _load(x, rows, n, r, start, N, 0.0)
        t = absolute(_term(WHAT, given.to(tl.float64), centre))
        peak = tl.maximum(peak, tl.max(tl.where(inside, t, 0.0), axis=1))
    return peak


@triton.jit
def _sum_in_units(
    x, rows, n, r, centre, e, WHAT: tl.constexpr, R: tl.constexpr, N: tl.constexpr
):
    """The fixed-point sum of each row's terms in units of 2^(e - 40), as float64."""
    total = tl.zeros((R,), tl.int64)
    scale = sum_scale(e)[:, None]
    for start in range(0, n, N):
        given, inside = _load(x, rows, n, r, start, N, 0.0)
        t = _term(WHAT, given.to(tl.float64), centre)
        total += tl.sum(tl.where(inside, as_integer(t * scale), 0), axis=1)
    return sum_value(total, e)


@triton.jit
def _sum_fixed(x, rows, n, r, centre, WHAT: tl.constexpr, R: tl.constexpr, N: tl.constexpr):
    """The fixed-point sum of each row's terms, (R,) float64."""
    if WHAT == "exp":  # the largest term is e^0
        e = tl.full((R,), 1, tl.int64)
    else:
        e = exponent_of(_peak(x, rows, n, r, centre, WHAT, R, N))
    return _sum_in_units(x, rows, n, r, centre, e, WHAT, R, N)


@triton.jit
def _extreme(x, rows, n, r, LARGEST: tl.constexpr, R: tl.constexpr, N: tl.constexpr):
    """The largest or the smallest of each row, +0 above -0, (R,) float64."""
    # As integers in the order of floats: no maximum of floats tells the zeros apart.
    worst: tl.constexpr = -0x8000_0000 if LARGEST else 0x7FFF_FFFF
    best = tl.full((R,), worst, tl.int32)
    for start in range(0, n, N):
        given, inside = _load(x, rows, n, r, start, N, 0.0)
        bits = given.to(tl.int32, bitcast=True)
        place = tl.where(inside, bits ^ ((bits >> 31) & 0x7FFF_FFFF), worst)
        if LARGEST:
            best = tl.maximum(best, tl.max(place, axis=1))
        else:
            best = tl.minimum(best, tl.min(place, axis=1))
    bits = best ^ ((best >> 31) & 0x7FFF_FFFF)
    return bits.to(tl.float32, bitcast=True).to(tl.float64)


@triton.jit
def _masked(x, rows, n, r, R: tl.constexpr, N: tl.constexpr):
    """MASKED of each row that has an infinite value, otherwise FINE."""
    met = tl.zeros((R,), tl.int32)
    for start in range(0, n, N):
        given, inside = _load(x, rows, n, r, start, N, 0.0)
        met = tl.maximum(met, tl.max(tl.where(inside & is_masked(given), MASKED, FINE), axis=1))
    return met


@triton.jit(do_not_specialize=("rows",))
def reduce_kernel(
    x, counts, out, status, rows: tl.int64, n: tl.int64,
    NAME: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Out = one number of each row of x, (rows, n); counts are read by "average" alone."""
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    none = tl.zeros((R,), tl.float64)
    if NAME == "max" or NAME == "min":
        y = _extreme(x, rows, n, r, NAME == "max", R, N)
    elif NAME == "l1":
        y = _sum_fixed(x, rows, n, r, none, "size", R, N)
    elif NAME == "l2":
        y = tl.sqrt(_sum_fixed(x, rows, n, r, none, "square", R, N))
    elif NAME == "sum_square":
        y = _sum_fixed(x, rows, n, r, none, "square", R, N)
    elif NAME == "log_sum_exp":
        largest = _extreme(x, rows, n, r, True, R, N)
        y = largest + log64(_sum_fixed(x, rows, n, r, largest, "exp", R, N))
    else:
        y = _sum_fixed(x, rows, n, r, none, "value", R, N)
        if NAME == "mean":
            y = y / n.to(tl.float64)
        elif NAME == "average":
            y = y / tl.load(counts + r, r < rows, 1).to(tl.float64)
        elif NAME == "log_sum":
            y = log64(y)
        else:
            tl.static_assert(NAME == "sum")
    result = round32(y)
    met = tl.maximum(_masked(x, rows, n, r, R, N), status_of(result))
    report(status, tl.where(r < rows, met, FINE))
    tl.store(out + r, result, r < rows)


@triton.jit(do_not_specialize=("rows",))
def cumsum_kernel(
    x, out, status, rows: tl.int64, n: tl.int64,
    EXCLUSIVE: tl.constexpr, REVERSE: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Running sums along each row of x, (rows, n), in the units of the whole row."""
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    e = exponent_of(_peak(x, rows, n, r, tl.zeros((R,), tl.float64), "value", R, N))
    met = _masked(x, rows, n, r, R, N)
    scale = sum_scale(e)[:, None]
    before = tl.zeros((R,), tl.int64)
    for start in range(0, n, N):
        i = start + tl.arange(0, N).to(tl.int64)
        inside = (r < rows)[:, None] & (i < n)[None, :]
        if REVERSE:
            i = n - 1 - i
        place = r[:, None] * n + i[None, :]
        q = as_integer(tl.load(x + place, inside, 0.0).to(tl.float64) * scale)
        q = tl.where(inside, q, 0)
        sums = before[:, None] + tl.cumsum(q, axis=1)
        before += tl.sum(q, axis=1)
        if EXCLUSIVE:
            sums -= q
        result = round32(sum_value(sums, e[:, None]))
        worst = tl.where(inside, status_of(result), FINE)
        met = tl.maximum(met, tl.max(worst, axis=1))
        tl.store(out + place, result, inside)
    report(status, tl.where(r < rows, met, FINE))


@triton.jit(do_not_specialize=("rows",))
def softmax_kernel(
    x, out, status, rows: tl.int64, n: tl.int64,
    LOGARITHM: tl.constexpr, R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Softmax of each row of x, (rows, n), or its logarithm, which refuses a mask."""
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    largest = _extreme(x, rows, n, r, True, R, N)
    nothing = largest == float("-inf")
    largest = tl.where(nothing, 0.0, largest)
    total = _sum_fixed(x, rows, n, r, largest, "exp", R, N)
    # A row of nothing but -inf would divide by zero; it is an error already.
    total = tl.where(nothing, 1.0, total)
    met = tl.where(nothing, NAN, FINE)
    if LOGARITHM:
        met = tl.maximum(met, _masked(x, rows, n, r, R, N))
        total = log64(total)
    for start in range(0, n, N):
        i = start + tl.arange(0, N).to(tl.int64)
        given, inside = _load(x, rows, n, r, start, N, 0.0)
        d = given.to(tl.float64) - largest[:, None]
        y = d - total[:, None] if LOGARITHM else exp64(d) / total[:, None]
        result = round32(y)
        worst = tl.where(inside & (nothing == 0)[:, None], status_of(result), FINE)
        met = tl.maximum(met, tl.max(worst, axis=1))
        tl.store(out + r[:, None] * n + i[None, :], result, inside)
    report(status, tl.where(r < rows, met, FINE))


@triton.jit(do_not_specialize=("rows",))
def norm_kernel(
    x, w, b, out, status, rows: tl.int64, n: tl.int64,
    w_groups: tl.int64, b_groups: tl.int64, eps,
    CENTRED: tl.constexpr, WEIGHTED: tl.constexpr, OFFSET: tl.constexpr,
    R: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Each row of x less its mean over its deviation, or over its root mean square.

    x and out are (rows, n) float32; w is (w_groups, n) and b (b_groups, n), where row i
    takes row i % groups; eps is (1,) float64.
    """
    r = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    centre = tl.zeros((R,), tl.float64)
    count = n.to(tl.float64)
    if CENTRED:
        centre = _sum_fixed(x, rows, n, r, centre, "value", R, N) / count
        square = _sum_fixed(x, rows, n, r, centre, "centred square", R, N)
    else:
        square = _sum_fixed(x, rows, n, r, centre, "square", R, N)
    deviation = tl.sqrt(square / count + tl.load(eps))
    met = _masked(x, rows, n, r, R, N)
    for start in range(0, n, N):
        i = start + tl.arange(0, N).to(tl.int64)
        given, inside = _load(x, rows, n, r, start, N, 0.0)
        v = given.to(tl.float64)
        if CENTRED:
            v = v - centre[:, None]
        y = v / deviation[:, None]
        worst = tl.zeros((R, N), tl.int32)
        if WEIGHTED:
            gain = tl.load(w + (r % w_groups)[:, None] * n + i[None, :], inside, 1.0)
            worst = tl.maximum(worst, tl.where(is_masked(gain), MASKED, FINE))
            y = y * gain.to(tl.float64)
        if OFFSET:
            offset = tl.load(b + (r % b_groups)[:, None] * n + i[None, :], inside, 0.0)
            worst = tl.maximum(worst, tl.where(is_masked(offset), MASKED, FINE))
            y = y + offset.to(tl.float64)
        result = round32(y)
        worst = tl.maximum(worst, status_of(result))
        met = tl.maximum(met, tl.max(tl.where(inside, worst, FINE), axis=1))
        tl.store(out + r[:, None] * n + i[None, :], result, inside)
    report(status, tl.where(r < rows, met, FINE))


_SIZES = {"rows": "i64", "n": "i64"}
_REDUCTIONS: Final = (*get_args(ReduceName), "average")


def _tiled(tile: tuple[int, int]) -> dict[str, int]:
    return {"R": tile[0], "N": tile[1]}


_REDUCE: Final = {
    (name, tile): Variant(
        reduce_kernel,
        {"x": "*fp32", "counts": "*i64", "out": "*fp32", "status": "*i32", **_SIZES},
        {"NAME": name, **_tiled(tile)},
    )
    for name in _REDUCTIONS
    for tile in _TILES
}
_CUMSUM: Final = {
    (exclusive, reverse, tile): Variant(
        cumsum_kernel,
        {"x": "*fp32", "out": "*fp32", "status": "*i32", **_SIZES},
        {"EXCLUSIVE": exclusive, "REVERSE": reverse, **_tiled(tile)},
    )
    for exclusive in (False, True)
    for reverse in (False, True)
    for tile in _TILES
}
_SOFTMAX: Final = {
    (logarithm, tile): Variant(
        softmax_kernel,
        {"x": "*fp32", "out": "*fp32", "status": "*i32", **_SIZES},
        {"LOGARITHM": logarithm, **_tiled(tile)},
    )
    for logarithm in (False, True)
    for tile in _TILES
}
_NORM: Final = {
    (centred, weighted, offset, tile): Variant(
        norm_kernel,
        {
            "x": "*fp32",
            "w": "*fp32",
            "b": "*fp32",
            "out": "*fp32",
            "status": "*i32",
            **_SIZES,
            "w_groups": "i64",
            "b_groups": "i64",
            "eps": "*fp64",
        },
        {"CENTRED": centred, "WEIGHTED": weighted, "OFFSET": offset, **_tiled(tile)},
    )
    for centred in (False, True)
    for weighted in (False, True)
    for offset in (False, True)
    for tile in _TILES
    if centred or not offset
}


def variants() -> Iterator[Variant]:
    """All that this module launches."""
    tables: tuple[Mapping[object, Variant], ...] = (_REDUCE, _CUMSUM, _SOFTMAX, _NORM)
    for table in tables:
        yield from table.values()


def reduce_rows(card: Card, name: ReduceName, x: torch.Tensor) -> torch.Tensor:
    """See `Kernels.reduce_rows`."""
    _check_terms(x, name)
    out = card.empty(x.shape[0])
    if not x.shape[1] and out.numel() and name in _NOTHING_TO_CHOOSE:
        raise ExactError.in_kernel("nan", name)
    variant = _REDUCE[name, _tile_for(x)]
    card.launch(variant, _tiles(x), x, x, out, card.status(name), *x.shape)
    return out


def average_rows(card: Card, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """See `Kernels.average_rows`."""
    _check_terms(x, "average")
    out = card.empty(x.shape[0])
    variant = _REDUCE["average", _tile_for(x)]
    card.launch(variant, _tiles(x), x, counts, out, card.status("average"), *x.shape)
    return out


def cumsum_rows(card: Card, x: torch.Tensor, exclusive: bool, reverse: bool) -> torch.Tensor:
    """See `Kernels.cumsum_rows`."""
    _check_terms(x, "cumsum")
    out = torch.empty_like(x)
    variant = _CUMSUM[exclusive, reverse, _tile_for(x)]
    card.launch(variant, _tiles(x), x, out, card.status("cumsum"), *x.shape)
    return out


def softmax_rows(card: Card, x: torch.Tensor, *, logarithm: bool) -> torch.Tensor:
    """See `Kernels.softmax_rows` and `Kernels.log_softmax_rows`."""
    name = "log_softmax" if logarithm else "softmax"
    _check_terms(x, name)
    out = torch.empty_like(x)
    if out.numel():
        variant = _SOFTMAX[logarithm, _tile_for(x)]
        card.launch(variant, _tiles(x), x, out, card.status(name), *x.shape)
    return out


def norm_rows(
    card: Card,
    x: torch.Tensor,
    w: torch.Tensor | None,
    b: torch.Tensor | None,
    eps: float,
    *,
    centred: bool,
) -> torch.Tensor:
    """See `Kernels.layer_norm_rows` and `Kernels.rms_norm_rows`."""
    name = "layer_norm" if centred else "rms_norm"
    _check_terms(x, name)
    out = torch.empty_like(x)
    if out.numel():
        variant = _NORM[centred, w is not None, b is not None, _tile_for(x)]
        added = torch.tensor([eps], dtype=torch.float64, device=x.device)
        gain, offset = x if w is None else w, x if b is None else b
        card.launch(
            variant,
            _tiles(x),
            *(x, gain, offset, out, card.status(name), *x.shape),
            *(gain.shape[0], offset.shape[0], added),
        )
    return out


def _tile_for(x: torch.Tensor) -> tuple[int, int]:
    return _TILES[0] if x.shape[1] <= _TILES[0][1] * 2 else _TILES[1]


def _tiles(x: torch.Tensor) -> tuple[int]:
    return (-(-x.shape[0] // _tile_for(x)[0]),)


def _check_terms(x: torch.Tensor, kernel: str) -> None:
    if x.shape[1] > K_LIMIT:
        raise ExactError.in_kernel("k_limit", kernel)
