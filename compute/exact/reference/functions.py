"""Elementwise arithmetic of the exact class: SPEC, "Elementwise" and "Functions".

Part of *execute*, the reference. Functions are float64 arithmetic in a stated order:
each line below is one or more IEEE operations, each rounded by itself, none fused.
The names ending in 64 take and give float64, unrounded; the row kernels use them too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shoal.compute.exact import spec
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.reference.rounding import finite, refuse_infinite, rounded

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.compute.exact.kernels import BinaryName, Floats, UnaryName
    from shoal.compute.exact.reference.rounding import Doubles


def polynomial(coefficients: tuple[float, ...], x: Doubles) -> Doubles:
    """Horner's rule from the highest coefficient: p = (p * x) + c, two roundings a step."""
    p = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        p *= x
        p += c
    return p


def exp64(v: Doubles) -> Doubles:
    """e^v; 0 below -104, and e^89 (which overflows float32) above 89."""
    w = np.clip(v, spec.EXP_LOW, spec.EXP_HIGH)
    k = np.rint(w * spec.LOG2_E)
    r = (w - k * spec.LN2_HIGH) - k * spec.LN2_LOW
    y = np.ldexp(polynomial(spec.EXP, r), k.astype(np.int32))
    return np.where(v < spec.EXP_LOW, 0.0, y)


def log64(x: Doubles) -> Doubles:
    """The natural logarithm; -inf of zero, not a number below."""
    half, t = np.frexp(np.where(x > 0, x, 1.0))
    m, e = 2.0 * half, t - 1  # x = m 2^e, 1 <= m < 2
    large = m > spec.SQRT_2
    m, e = np.where(large, 0.5 * m, m), e + large
    s = (m - 1.0) / (m + 1.0)
    y = e * spec.LN2 + (2.0 * s) * polynomial(spec.LOG, s * s)
    return np.where(x > 0, y, np.where(x == 0, -np.inf, np.nan))


def log1p64(t: Doubles) -> Doubles:
    """ln(1 + t) for 0 <= t <= 1."""
    s = t / (2.0 + t)
    small = (2.0 * s) * polynomial(spec.LOG, s * s)
    return np.where(t < spec.SQRT_2_LESS_1, small, log64(1.0 + t))


def tanh64(x: Doubles) -> Doubles:
    """The hyperbolic tangent."""
    a = np.abs(x)
    large = 1.0 - 2.0 / (exp64(2.0 * a) + 1.0)
    small = np.minimum(a, spec.TANH_SMALL)  # elsewhere unused; kept from overflowing
    small = small * polynomial(spec.TANH, small * small)
    return np.copysign(np.where(a < spec.TANH_SMALL, small, large), x)


def sigmoid64(x: Doubles) -> Doubles:
    """1 / (1 + e^-x)."""
    t = exp64(-np.abs(x))
    return np.where(x >= 0, 1.0, t) / (1.0 + t)


def softplus64(x: Doubles) -> Doubles:
    """ln(1 + e^x)."""
    return np.maximum(x, 0.0) + log1p64(exp64(-np.abs(x)))


def _erf_small64(a: Doubles) -> Doubles:
    """erf(a) for 0 <= a < 1/2."""
    a = np.minimum(a, spec.ERF_SMALL)
    return a * polynomial(spec.ERF, a * a)


def _erfc64(a: Doubles, gauss: Doubles) -> Doubles:
    """1 - erf(a) for a >= 1/2, given e^(-a^2)."""
    u = (a - spec.ERFC_CENTRE) / (a + spec.ERFC_CENTRE)
    return (gauss * polynomial(spec.ERFC, u)) / (1.0 + 2.0 * a)


def erf64(x: Doubles) -> Doubles:
    """The error function."""
    a = np.abs(x)
    large = 1.0 - _erfc64(a, exp64(-(a * a)))
    return np.copysign(np.where(a < spec.ERF_SMALL, _erf_small64(a), large), x)


def gelu64(x: Doubles) -> Doubles:
    """The Gaussian error linear unit: x times the normal distribution function of x."""
    a = np.abs(x) * spec.SQRT_HALF
    near = 0.5 + np.copysign(0.5 * _erf_small64(a), x)
    tail = 0.5 * _erfc64(a, exp64(-0.5 * (x * x)))
    far = np.where(x < 0, tail, 1.0 - tail)
    return x * np.where(a < spec.ERF_SMALL, near, far)


def gelu_tanh64(x: Doubles) -> Doubles:
    """GELU's approximation by tanh, in the form x sigmoid(2u) that does not cancel."""
    u = spec.GELU_SCALE * (x + ((spec.GELU_CUBIC * x) * x) * x)
    return x * sigmoid64(2.0 * u)


def _sin_cos64(a: Doubles) -> tuple[Doubles, Doubles]:
    """Sine and cosine of 0 <= a <= 2^20."""
    n = np.rint(a * spec.TWO_OVER_PI)
    first, second, third = spec.HALF_PI
    r = ((a - n * first) - n * second) - n * third
    s = r * r
    sine, cosine = r * polynomial(spec.SIN, s), polynomial(spec.COS, s)
    quadrant = [n % 4 == q for q in range(4)]
    return (
        np.select(quadrant, [sine, cosine, -sine, -cosine]),
        np.select(quadrant, [cosine, -sine, -cosine, sine]),
    )


def sin64(x: Doubles) -> Doubles:
    """The sine, odd to the bit: sin(-0) is -0."""
    sine, _ = _sin_cos64(np.abs(x))
    return np.where(np.signbit(x), -sine, sine)


def cos64(x: Doubles) -> Doubles:
    """The cosine."""
    _, cosine = _sin_cos64(np.abs(x))
    return cosine


def pow64(x: Doubles, y: Doubles) -> Doubles:
    """x^y, by the value of y: x x for 2, sqrt(x) for 1/2, otherwise by exp and log."""
    size = np.abs(x)
    whole = y == np.rint(y)
    odd = whole & (np.abs(np.fmod(y, 2.0)) == 1)
    power = exp64(y * log64(np.where(size == 0, 1.0, size)))
    power = np.where(size == 0, np.where(y > 0, 0.0, np.inf), power)
    power = np.where(odd & np.signbit(x), -power, power)
    power = np.where((x < 0) & ~whole, np.nan, power)
    power = np.where(y == 0, 1.0, power)
    power = np.where(y == 2.0, x * x, power)
    return np.where(y == 0.5, np.sqrt(x), power)


def maximum(x: Doubles, y: Doubles) -> Doubles:
    """The larger one; +0 is larger than -0."""
    tie = np.where(np.signbit(x), y, x)
    return np.where(x == y, tie, np.where(x > y, x, y))


def minimum(x: Doubles, y: Doubles) -> Doubles:
    """The smaller one; -0 is smaller than +0."""
    tie = np.where(np.signbit(x), x, y)
    return np.where(x == y, tie, np.where(x < y, x, y))


# Float64 has over twice float32's bits and two more, so + - * / and sqrt in float64,
# rounded again to float32, are those operations rounded once (SPEC, "Elementwise").
_UNARY: dict[UnaryName, Callable[[Doubles], Doubles]] = {
    "abs": np.abs,
    "ceil": np.ceil,
    "cos": cos64,
    "erf": erf64,
    "exp": exp64,
    "floor": np.floor,
    "gelu": gelu64,
    "gelu_tanh": gelu_tanh64,
    "log": log64,
    "neg": np.negative,
    "reciprocal": lambda x: 1.0 / x,
    "relu": lambda x: np.where(x > 0, x, 0.0),
    "round": np.rint,
    "sigmoid": sigmoid64,
    "sign": lambda x: (x > 0) * 1.0 - (x < 0) * 1.0,
    "sin": sin64,
    "softplus": softplus64,
    "sqrt": np.sqrt,
    "tanh": tanh64,
}
_BINARY: dict[BinaryName, Callable[[Doubles, Doubles], Doubles]] = {
    "add": np.add,
    "div": np.divide,
    "fmod": np.fmod,
    "max": maximum,
    "min": minimum,
    "mul": np.multiply,
    "pow": pow64,
    "sub": np.subtract,
}


def unary(name: UnaryName, x: Floats) -> Floats:
    """One function of every element; see `Kernels.unary`."""
    refuse_infinite(name, x)
    if name in {"sin", "cos"} and (np.abs(x) > spec.ANGLE_LIMIT).any():
        raise ExactError.in_kernel("out_of_range", name)
    with np.errstate(divide="ignore", invalid="ignore"):
        return finite(name, rounded(_UNARY[name], x))


def binary(name: BinaryName, x: Floats, y: Floats) -> Floats:
    """One operation on every pair, broadcast; see `Kernels.binary`."""
    masked: np.ndarray | bool = False
    if name in {"add", "max"}:
        masked = np.isneginf(x) | np.isneginf(y)
    else:
        refuse_infinite(name, x, y)
    with np.errstate(divide="ignore", invalid="ignore"):
        result = rounded(_BINARY[name], x, y)
    return finite(name, result, masked)
