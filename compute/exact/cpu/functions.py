"""The functions of the exact class on one float64: SPEC, "Functions", inlined into loops.

Part of *execute*. Each line is IEEE operations in the written order, as in the
reference. Both sides of a choice are computed and one is selected, which loops over
vectors need; a side that is not wanted may overflow without harm.
"""

from __future__ import annotations

import numpy as np

from shoal.compute.exact import spec
from shoal.compute.exact.cpu.compiled import inline
from shoal.compute.exact.cpu.floats import (
    as_integer,
    bits_of,
    choose,
    split_float,
    times_power_of_two,
    with_sign,
)


@inline
def polynomial(coefficients, x):
    """Horner's rule from the highest coefficient, two roundings a step.

    In two loops, since LLVM leaves a long one as it is, and then makes no vector code.
    """
    half = len(coefficients) // 2
    p = coefficients[len(coefficients) - 1]
    for n in range(len(coefficients) - 2, half - 1, -1):
        p = p * x + coefficients[n]
    for n in range(half - 1, -1, -1):
        p = p * x + coefficients[n]
    return p


@inline
def exp64(v):
    """The exponential, e^v; 0 below -104, and e^89 (which overflows float32) above 89."""
    low = choose(v > spec.EXP_LOW, v, spec.EXP_LOW)
    w = choose(low < spec.EXP_HIGH, low, spec.EXP_HIGH)
    k = np.rint(w * spec.LOG2_E)
    r = (w - k * spec.LN2_HIGH) - k * spec.LN2_LOW
    y = times_power_of_two(polynomial(spec.EXP, r), k)
    return choose(v < spec.EXP_LOW, 0.0, y)


@inline
def log64(x):
    """The natural logarithm; -inf of zero, not a number below."""
    positive = x if x > 0.0 else 1.0
    m, e = split_float(positive)
    large = m > spec.SQRT_2
    m = 0.5 * m if large else m
    e = e + 1.0 if large else e
    s = (m - 1.0) / (m + 1.0)
    y = e * spec.LN2 + (2.0 * s) * polynomial(spec.LOG, s * s)
    otherwise = -np.inf if x == 0.0 else np.nan
    return choose(x > 0.0, y, otherwise)


@inline
def log1p64(t):
    """Ln(1 + t) for 0 <= t <= 1."""
    s = t / (2.0 + t)
    small = (2.0 * s) * polynomial(spec.LOG, s * s)
    large = log64(1.0 + t)
    return choose(t < spec.SQRT_2_LESS_1, small, large)


@inline
def tanh64(x):
    """The hyperbolic tangent."""
    a = abs(x)
    large = 1.0 - 2.0 / (exp64(2.0 * a) + 1.0)
    small = a * polynomial(spec.TANH, a * a)
    return with_sign(choose(a < spec.TANH_SMALL, small, large), x)


@inline
def sigmoid64(x):
    """1 / (1 + e^-x)."""
    t = exp64(-abs(x))
    return (1.0 if x >= 0.0 else t) / (1.0 + t)


@inline
def softplus64(x):
    """Ln(1 + e^x)."""
    return choose(x > 0.0, x, 0.0) + log1p64(exp64(-abs(x)))


@inline
def _erfc64(a, gauss):
    u = (a - spec.ERFC_CENTRE) / (a + spec.ERFC_CENTRE)
    return (gauss * polynomial(spec.ERFC, u)) / (1.0 + 2.0 * a)


@inline
def erf64(x):
    """The error function."""
    a = abs(x)
    large = 1.0 - _erfc64(a, exp64(-(a * a)))
    small = a * polynomial(spec.ERF, a * a)
    return with_sign(choose(a < spec.ERF_SMALL, small, large), x)


@inline
def gelu64(x):
    """The Gaussian error linear unit."""
    a = abs(x) * spec.SQRT_HALF
    near = 0.5 + with_sign(0.5 * abs(a * polynomial(spec.ERF, a * a)), x)
    tail = 0.5 * _erfc64(a, exp64(-0.5 * (x * x)))
    far = choose(x < 0.0, tail, 1.0 - tail)
    return x * choose(a < spec.ERF_SMALL, near, far)


@inline
def gelu_tanh64(x):
    """Its approximation by tanh, as x sigmoid(2u)."""
    u = spec.GELU_SCALE * (x + ((spec.GELU_CUBIC * x) * x) * x)
    return x * sigmoid64(2.0 * u)


@inline
def _reduced_angle(a):
    """What is left of a beyond the nearest multiple of pi / 2, and which multiple."""
    n = np.rint(a * spec.TWO_OVER_PI)
    r = ((a - n * spec.HALF_PI[0]) - n * spec.HALF_PI[1]) - n * spec.HALF_PI[2]
    return r, as_integer(n)


@inline
def sin64(x):
    """The sine, odd to the bit."""
    r, n = _reduced_angle(abs(x))
    s = r * r
    sine, cosine = r * polynomial(spec.SIN, s), polynomial(spec.COS, s)
    value = cosine if n & 1 else sine
    value = -value if n & 2 else value
    return -value if bits_of(x) < 0 else value


@inline
def cos64(x):
    """The cosine."""
    r, n = _reduced_angle(abs(x))
    s = r * r
    sine, cosine = r * polynomial(spec.SIN, s), polynomial(spec.COS, s)
    value = sine if n & 1 else cosine
    return -value if (n + 1) & 2 else value


@inline
def pow64(x, y):
    """X^y, by the value of y."""
    size = abs(x)
    whole = y == np.rint(y)
    odd = whole and abs(np.fmod(y, 2.0)) == 1.0
    power = exp64(y * log64(1.0 if size == 0.0 else size))
    if size == 0.0:
        power = 0.0 if y > 0.0 else np.inf
    if odd and bits_of(x) < 0:
        power = -power
    if x < 0.0 and not whole:
        power = np.nan
    if y == 0.0:
        power = 1.0
    if y == 2.0:
        power = x * x
    if y == 0.5:
        power = np.sqrt(x)
    return power
