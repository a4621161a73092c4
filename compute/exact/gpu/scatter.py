"""Scatter-add and batch normalisation on a card: SPEC, "Sums".

Part of *execute*. Adding integers has no order, so that the card may do it atomically.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
import triton
import triton.language as tl

from shoal.compute.exact.gpu.numbers import (
    FINE,
    MASKED,
    as_integer,
    exponent_of,
    is_masked,
    magnitude,
    report,
    round32,
    status_of,
    sum_scale,
    sum_value,
)
from shoal.compute.exact.gpu.variants import Variant
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.spec import K_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.compute.exact.gpu.card import Card

_BLOCK: Final = 1024


@triton.jit(do_not_specialize=("size",))
def peaks_kernel(
    x, indices, peaks, status, size: tl.int64, TARGETED: tl.constexpr, BLOCK: tl.constexpr
):
    """The largest magnitude that meets at each target, as a float32's bits."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    given = tl.load(x + i, inside, 0.0)
    target = i
    if TARGETED:
        target = tl.load(indices + i, inside, 0)
    report(status, tl.where(inside & is_masked(given), MASKED, FINE))
    tl.atomic_max(peaks + target, magnitude(given), inside)


@triton.jit(do_not_specialize=("size",))
def add_kernel(
    x, indices, peaks, sums, size: tl.int64, TARGETED: tl.constexpr, BLOCK: tl.constexpr
):
    """Sums += x in the units of each target."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    target = i
    if TARGETED:
        target = tl.load(indices + i, inside, 0)
    peak = tl.load(peaks + target, inside, 0).to(tl.float32, bitcast=True)
    scale = sum_scale(exponent_of(peak.to(tl.float64)))
    q = as_integer(tl.load(x + i, inside, 0.0).to(tl.float64) * scale)
    tl.atomic_add(sums + target, q, inside)


@triton.jit(do_not_specialize=("size",))
def settle_kernel(data, counts, peaks, sums, out, status, size: tl.int64, BLOCK: tl.constexpr):
    """Out = the sums, and what no update reaches as it was."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    peak = tl.load(peaks + i, inside, 0).to(tl.float32, bitcast=True)
    e = exponent_of(peak.to(tl.float64))
    result = round32(sum_value(tl.load(sums + i, inside, 0), e))
    reached = tl.load(counts + i, inside, 0) > 0
    result = tl.where(reached, result, tl.load(data + i, inside, 0.0))
    report(status, tl.where(inside, status_of(result), FINE))
    tl.store(out + i, result, inside)


@triton.jit(do_not_specialize=("size", "channels"))
def batch_norm_kernel(
    x, scale, b, mean, var, eps, out, status,
    size: tl.int64, channels: tl.int64, inner: tl.int64, BLOCK: tl.constexpr,
):  # fmt: skip
    """Inference batch normalisation of x, (N, channels, inner) float32."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    c = (i // inner) % channels
    given = tl.load(x + i, inside, 0.0)
    gain = tl.load(scale + c, inside, 1.0)
    offset = tl.load(b + c, inside, 0.0)
    centre = tl.load(mean + c, inside, 0.0)
    spread = tl.load(var + c, inside, 1.0)
    deviation = tl.sqrt(spread.to(tl.float64) + tl.load(eps))
    y = (given.to(tl.float64) - centre.to(tl.float64)) / deviation
    result = round32(y * gain.to(tl.float64) + offset.to(tl.float64))
    masked = is_masked(given) | is_masked(gain) | is_masked(offset)
    masked = masked | is_masked(centre) | is_masked(spread)
    met = tl.where(masked, MASKED, status_of(result))
    report(status, tl.where(inside, met, FINE))
    tl.store(out + i, result, inside)


_PEAKS: Final = {
    targeted: Variant(
        peaks_kernel,
        {"x": "*fp32", "indices": "*i64", "peaks": "*i32", "status": "*i32", "size": "i64"},
        {"TARGETED": targeted, "BLOCK": _BLOCK},
    )
    for targeted in (False, True)
}
_ADD: Final = {
    targeted: Variant(
        add_kernel,
        {"x": "*fp32", "indices": "*i64", "peaks": "*i32", "sums": "*i64", "size": "i64"},
        {"TARGETED": targeted, "BLOCK": _BLOCK},
    )
    for targeted in (False, True)
}
_SETTLE: Final = Variant(
    settle_kernel,
    {
        "data": "*fp32",
        "counts": "*i64",
        "peaks": "*i32",
        "sums": "*i64",
        "out": "*fp32",
        "status": "*i32",
        "size": "i64",
    },
    {"BLOCK": _BLOCK},
)
_BATCH_NORM: Final = Variant(
    batch_norm_kernel,
    {
        **dict.fromkeys(("x", "scale", "b", "mean", "var"), "*fp32"),
        "eps": "*fp64",
        "out": "*fp32",
        "status": "*i32",
        **dict.fromkeys(("size", "channels", "inner"), "i64"),
    },
    {"BLOCK": _BLOCK},
)


def variants() -> Iterator[Variant]:
    """All that this module launches."""
    yield from _PEAKS.values()
    yield from _ADD.values()
    yield from (_SETTLE, _BATCH_NORM)


def scatter_add(
    card: Card, data: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor
) -> torch.Tensor:
    """See `Kernels.scatter_add`."""
    size, count = data.numel(), updates.numel()
    counts = torch.bincount(indices, minlength=size)
    if size and int(counts.max()) + 1 > K_LIMIT:
        raise ExactError.in_kernel("k_limit", "scatter_add")
    status = card.status("scatter_add")
    peaks = torch.zeros(size, dtype=torch.int32, device=data.device)
    sums = torch.zeros(size, dtype=torch.int64, device=data.device)
    card.launch(_PEAKS[False], _blocks(size), data, data, peaks, status, size)
    card.launch(_PEAKS[True], _blocks(count), updates, indices, peaks, status, count)
    card.launch(_ADD[False], _blocks(size), data, data, peaks, sums, size)
    card.launch(_ADD[True], _blocks(count), updates, indices, peaks, sums, count)
    out = torch.empty_like(data)
    card.launch(_SETTLE, _blocks(size), data, counts, peaks, sums, out, status, size)
    return out


def batch_norm(
    card: Card,
    x: torch.Tensor,
    scale: torch.Tensor,
    b: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    eps: float,
) -> torch.Tensor:
    """See `Kernels.batch_norm`."""
    out = torch.empty_like(x)
    added = torch.tensor([eps], dtype=torch.float64, device=x.device)
    size, channels, inner = x.numel(), x.shape[1], x.shape[2]
    card.launch(
        _BATCH_NORM,
        _blocks(size),
        *(x, scale, b, mean, var, added, out, card.status("batch_norm"), size, channels, inner),
    )
    return out


def _blocks(size: int) -> tuple[int]:
    return (-(-size // _BLOCK),)
