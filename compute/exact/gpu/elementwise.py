"""Elementwise kernels of the exact class on a card: SPEC, "Elementwise" and "Functions".

Part of *execute*. float64 has over twice float32's bits and two more, so that + - * / and
sqrt in float64, rounded again to float32, are those operations rounded once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, get_args

import torch
import triton
import triton.language as tl

from shoal.compute.exact import spec
from shoal.compute.exact.gpu.functions import (
    cos64,
    erf64,
    exp64,
    fmod64,
    gelu64,
    gelu_tanh64,
    log64,
    maximum,
    minimum,
    pow64,
    sigmoid64,
    sin64,
    softplus64,
    tanh64,
)
from shoal.compute.exact.gpu.numbers import (
    FINE,
    MASKED,
    OUT_OF_RANGE,
    absolute,
    is_masked,
    nearest,
    negated,
    report,
    round32,
    status_of,
    with_sign,
)
from shoal.compute.exact.gpu.variants import Variant
from shoal.compute.exact.kernels import BinaryName, UnaryName

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.compute.exact.gpu.card import Card

_BLOCK: Final = 1024
_ANGLE_LIMIT = tl.constexpr(spec.ANGLE_LIMIT)


@triton.jit
def _function(NAME: tl.constexpr, v):  # noqa: C901  # a table of functions
    """One function of float64 values, unrounded."""
    if NAME == "abs":
        y = absolute(v)
    elif NAME == "ceil":
        n = nearest(v)
        y = with_sign(absolute(tl.where(n < v, n + 1.0, n)), v)
    elif NAME == "cos":
        y = cos64(v)
    elif NAME == "erf":
        y = erf64(v)
    elif NAME == "exp":
        y = exp64(v)
    elif NAME == "floor":
        n = nearest(v)
        y = with_sign(absolute(tl.where(n > v, n - 1.0, n)), v)
    elif NAME == "gelu":
        y = gelu64(v)
    elif NAME == "gelu_tanh":
        y = gelu_tanh64(v)
    elif NAME == "log":
        y = log64(v)
    elif NAME == "neg":
        y = negated(v)
    elif NAME == "reciprocal":
        y = 1.0 / v
    elif NAME == "relu":
        y = tl.where(v > 0.0, v, 0.0)
    elif NAME == "round":
        y = nearest(v)
    elif NAME == "sigmoid":
        y = sigmoid64(v)
    elif NAME == "sign":
        y = tl.where(v > 0.0, 1.0, tl.where(v < 0.0, -1.0, v * 0.0 + 0.0))
    elif NAME == "sin":
        y = sin64(v)
    elif NAME == "softplus":
        y = softplus64(v)
    elif NAME == "sqrt":
        y = tl.sqrt(v)
    else:
        tl.static_assert(NAME == "tanh")
        y = tanh64(v)
    return y


@triton.jit
def _operation(NAME: tl.constexpr, x, y):
    """One operation on float64 values, unrounded."""
    if NAME == "add":
        z = x + y
    elif NAME == "div":
        z = x / y
    elif NAME == "fmod":
        z = fmod64(x, y)
    elif NAME == "max":
        z = maximum(x, y)
    elif NAME == "min":
        z = minimum(x, y)
    elif NAME == "mul":
        z = x * y
    elif NAME == "pow":
        z = pow64(x, y)
    else:
        tl.static_assert(NAME == "sub")
        z = x - y
    return z


@triton.jit
def unary_kernel(x, out, status, size, NAME: tl.constexpr, BLOCK: tl.constexpr):
    """Out = NAME(x), both (size,) float32."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    given = tl.load(x + i, inside, 1.0)
    v = given.to(tl.float64)
    result = round32(_function(NAME, tl.where(is_masked(given), 1.0, v)))
    met = status_of(result)
    if NAME == "sin" or NAME == "cos":
        met = tl.where(absolute(v) > _ANGLE_LIMIT, OUT_OF_RANGE, met)
    met = tl.where(is_masked(given), MASKED, met)
    report(status, tl.where(inside, met, FINE))
    tl.store(out + i, result, inside)


@triton.jit
def binary_kernel(
    x, y, out, status, size, x_inner, x_size, y_inner, y_size,
    NAME: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Out[i] = x[i // x_inner % x_size] NAME y[i // y_inner % y_size], float32."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    left = tl.load(x + (i // x_inner) % x_size, inside, 1.0)
    right = tl.load(y + (i // y_inner) % y_size, inside, 1.0)
    result = round32(_operation(NAME, left.to(tl.float64), right.to(tl.float64)))
    met = status_of(result)
    masked = is_masked(left) | is_masked(right)
    if NAME == "add" or NAME == "max":
        met = tl.where(masked, FINE, met)
    else:
        met = tl.where(masked, MASKED, met)
    report(status, tl.where(inside, met, FINE))
    tl.store(out + i, result, inside)


@triton.jit
def admit_kernel(x, out, status, size, BLOCK: tl.constexpr):
    """Out = x, (size,) float32, with subnormals flushed; refuses +inf and what is no number."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    given = tl.load(x + i, inside, 1.0)
    bits = given.to(tl.int32, bitcast=True)
    small = (bits & 0x7F80_0000) == 0
    met = tl.where(is_masked(given) & (bits < 0), FINE, status_of(given))
    report(status, tl.where(inside, met, FINE))
    kept = tl.where(small, bits & -0x8000_0000, bits).to(tl.float32, bitcast=True)
    tl.store(out + i, kept, inside)


_ONE = {"x": "*fp32", "out": "*fp32", "status": "*i32", "size": "i64"}
_TWO = {
    "x": "*fp32", "y": "*fp32", "out": "*fp32", "status": "*i32", "size": "i64",
    "x_inner": "i64", "x_size": "i64", "y_inner": "i64", "y_size": "i64",
}  # fmt: skip
_UNARY: Final = {
    name: Variant(unary_kernel, _ONE, {"NAME": name, "BLOCK": _BLOCK})
    for name in get_args(UnaryName)
}
_BINARY: Final = {
    name: Variant(binary_kernel, _TWO, {"NAME": name, "BLOCK": _BLOCK})
    for name in get_args(BinaryName)
}
_ADMIT: Final = Variant(admit_kernel, _ONE, {"BLOCK": _BLOCK})


def variants() -> Iterator[Variant]:
    """All that this module launches."""
    yield _ADMIT
    yield from _UNARY.values()
    yield from _BINARY.values()


def admit(card: Card, x: torch.Tensor) -> torch.Tensor:
    """See `Kernels.admit`."""
    out = torch.empty_like(x)
    card.launch(_ADMIT, _blocks(x), x, out, card.status, x.numel())
    card.check("input")
    return out


def unary(card: Card, name: UnaryName, x: torch.Tensor) -> torch.Tensor:
    """See `Kernels.unary`."""
    out = torch.empty_like(x)
    card.launch(_UNARY[name], _blocks(x), x, out, card.status, x.numel())
    card.check(name)
    return out


def binary(card: Card, name: BinaryName, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """See `Kernels.binary`."""
    shape = torch.broadcast_shapes(x.shape, y.shape)
    out = card.empty(*shape)
    left, right = _repeated(x, shape), _repeated(y, shape)
    card.launch(
        _BINARY[name],
        _blocks(out),
        *(left[0], right[0], out, card.status, out.numel(), *left[1:], *right[1:]),
    )
    card.check(name)
    return out


def _repeated(x: torch.Tensor, shape: torch.Size) -> tuple[torch.Tensor, int, int]:
    """How a tensor is read where it is broadcast: element ``i // inner % size``.

    One run of its own axes amid broadcast ones is read in place, a bias or a scalar for
    instance; anything else is copied first.
    """
    sizes = (1,) * (len(shape) - x.dim()) + tuple(x.shape)
    own = [axis for axis, size in enumerate(sizes) if size != 1]
    if not own:
        return x, 1, max(1, x.numel())
    first, last = own[0], own[-1]
    if sizes[first : last + 1] == tuple(shape[first : last + 1]):
        return x, max(1, shape[last + 1 :].numel()), x.numel()
    copied = x.expand(shape).contiguous()
    return copied, 1, copied.numel()


def _blocks(x: torch.Tensor) -> tuple[int]:
    return (-(-x.numel() // _BLOCK),)
