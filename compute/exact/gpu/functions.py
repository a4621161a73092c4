"""Functions of the exact class on a card: SPEC, "Functions", in the written order.

Part of *execute*. Names ending in 64 take and give float64, unrounded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from shoal.compute.exact import spec
from shoal.compute.exact.gpu.numbers import (
    absolute,
    bits_of,
    from_bits,
    has_sign,
    nearest,
    negated,
    power_of_two,
    with_sign,
)

_EXP_LOW = tl.constexpr(spec.EXP_LOW)
_EXP_HIGH = tl.constexpr(spec.EXP_HIGH)
_LOG2_E = tl.constexpr(spec.LOG2_E)
_LN2_HIGH = tl.constexpr(spec.LN2_HIGH)
_LN2_LOW = tl.constexpr(spec.LN2_LOW)
_LN2 = tl.constexpr(spec.LN2)
_SQRT_2 = tl.constexpr(spec.SQRT_2)
_SQRT_2_LESS_1 = tl.constexpr(spec.SQRT_2_LESS_1)
_TANH_SMALL = tl.constexpr(spec.TANH_SMALL)
_ERF_SMALL = tl.constexpr(spec.ERF_SMALL)
_ERFC_CENTRE = tl.constexpr(spec.ERFC_CENTRE)
_SQRT_HALF = tl.constexpr(spec.SQRT_HALF)
_GELU_SCALE = tl.constexpr(spec.GELU_SCALE)
_GELU_CUBIC = tl.constexpr(spec.GELU_CUBIC)
_TWO_OVER_PI = tl.constexpr(spec.TWO_OVER_PI)
_HALF_PI = tl.constexpr(spec.HALF_PI)
_EXP = tl.constexpr(spec.EXP)
_LOG = tl.constexpr(spec.LOG)
_TANH = tl.constexpr(spec.TANH)
_ERF = tl.constexpr(spec.ERF)
_ERFC = tl.constexpr(spec.ERFC)
_SIN = tl.constexpr(spec.SIN)
_COS = tl.constexpr(spec.COS)
_EXP_DEGREE = tl.constexpr(len(spec.EXP) - 1)
_LOG_DEGREE = tl.constexpr(len(spec.LOG) - 1)
_TANH_DEGREE = tl.constexpr(len(spec.TANH) - 1)
_ERF_DEGREE = tl.constexpr(len(spec.ERF) - 1)
_ERFC_DEGREE = tl.constexpr(len(spec.ERFC) - 1)
_SIN_DEGREE = tl.constexpr(len(spec.SIN) - 1)
_COS_DEGREE = tl.constexpr(len(spec.COS) - 1)
_MANTISSA_64 = tl.constexpr((1 << 52) - 1)
_ONE_64 = tl.constexpr(1023 << 52)
_IMPLICIT_64 = tl.constexpr(1 << 52)
_BELOW_24 = tl.constexpr(52 - 23)


@triton.jit
def polynomial(coefficients: tl.constexpr, DEGREE: tl.constexpr, x):
    """Horner's rule from the highest coefficient: p = (p * x) + c, two roundings a step."""
    p = x * coefficients[DEGREE] + coefficients[DEGREE - 1]
    for i in tl.static_range(DEGREE - 2, -1, -1):
        p = p * x + coefficients[i]
    return p


@triton.jit
def exp64(v):
    """e^v; 0 below -104, and e^89 (which overflows float32) above 89."""
    w = tl.where(v < _EXP_LOW, _EXP_LOW, tl.where(v > _EXP_HIGH, _EXP_HIGH, v))
    k = nearest(w * _LOG2_E)
    r = (w - k * _LN2_HIGH) - k * _LN2_LOW
    y = polynomial(_EXP, _EXP_DEGREE, r) * power_of_two(k.to(tl.int64))
    return tl.where(v < _EXP_LOW, 0.0, y)


@triton.jit
def log64(x):
    """The natural logarithm; -inf of zero, not a number below."""
    bits = bits_of(tl.where(x > 0.0, x, 1.0))
    m = from_bits((bits & _MANTISSA_64) | _ONE_64)
    e = ((bits >> 52) - 1023).to(tl.float64)
    large = m > _SQRT_2
    m = tl.where(large, 0.5 * m, m)
    e = tl.where(large, e + 1.0, e)
    s = (m - 1.0) / (m + 1.0)
    y = e * _LN2 + (2.0 * s) * polynomial(_LOG, _LOG_DEGREE, s * s)
    return tl.where(x > 0.0, y, tl.where(x == 0.0, float("-inf"), float("nan")))


@triton.jit
def log1p64(t):
    """ln(1 + t) for 0 <= t <= 1."""
    s = t / (2.0 + t)
    small = (2.0 * s) * polynomial(_LOG, _LOG_DEGREE, s * s)
    return tl.where(t < _SQRT_2_LESS_1, small, log64(1.0 + t))


@triton.jit
def tanh64(x):
    """The hyperbolic tangent."""
    a = absolute(x)
    large = 1.0 - 2.0 / (exp64(2.0 * a) + 1.0)
    small = tl.where(a < _TANH_SMALL, a, _TANH_SMALL)  # elsewhere unused
    small = small * polynomial(_TANH, _TANH_DEGREE, small * small)
    return with_sign(tl.where(a < _TANH_SMALL, small, large), x)


@triton.jit
def sigmoid64(x):
    """1 / (1 + e^-x)."""
    t = exp64(negated(absolute(x)))
    return tl.where(x >= 0.0, 1.0, t) / (1.0 + t)


@triton.jit
def softplus64(x):
    """ln(1 + e^x)."""
    return tl.where(x > 0.0, x, 0.0) + log1p64(exp64(negated(absolute(x))))


@triton.jit
def _erf_small64(a):
    """erf(a) for 0 <= a < 1/2."""
    a = tl.where(a < _ERF_SMALL, a, _ERF_SMALL)
    return a * polynomial(_ERF, _ERF_DEGREE, a * a)


@triton.jit
def _erfc64(a, gauss):
    """1 - erf(a) for a >= 1/2, given e^(-a^2)."""
    u = (a - _ERFC_CENTRE) / (a + _ERFC_CENTRE)
    return (gauss * polynomial(_ERFC, _ERFC_DEGREE, u)) / (1.0 + 2.0 * a)


@triton.jit
def erf64(x):
    """The error function."""
    a = absolute(x)
    large = 1.0 - _erfc64(a, exp64(negated(a * a)))
    return with_sign(tl.where(a < _ERF_SMALL, _erf_small64(a), large), x)


@triton.jit
def gelu64(x):
    """The Gaussian error linear unit: x times the normal distribution function of x."""
    a = absolute(x) * _SQRT_HALF
    near = 0.5 + with_sign(0.5 * _erf_small64(a), x)
    tail = 0.5 * _erfc64(a, exp64(-0.5 * (x * x)))
    far = tl.where(x < 0.0, tail, 1.0 - tail)
    return x * tl.where(a < _ERF_SMALL, near, far)


@triton.jit
def gelu_tanh64(x):
    """GELU's approximation by tanh, in the form x sigmoid(2u) that does not cancel."""
    u = _GELU_SCALE * (x + ((_GELU_CUBIC * x) * x) * x)
    return x * sigmoid64(2.0 * u)


@triton.jit
def _quarters(a):
    """Sine and cosine of the rest after quarter turns, and how many, of 0 <= a <= 2^20."""
    n = nearest(a * _TWO_OVER_PI)
    r = ((a - n * _HALF_PI[0]) - n * _HALF_PI[1]) - n * _HALF_PI[2]
    s = r * r
    sine = r * polynomial(_SIN, _SIN_DEGREE, s)
    return sine, polynomial(_COS, _COS_DEGREE, s), n.to(tl.int64) & 3


@triton.jit
def sin64(x):
    """The sine, odd to the bit: sin(-0) is -0."""
    sine, cosine, quarter = _quarters(absolute(x))
    size = tl.where((quarter & 1) == 0, sine, cosine)
    size = tl.where(quarter >= 2, negated(size), size)
    return tl.where(has_sign(x), negated(size), size)


@triton.jit
def cos64(x):
    """The cosine."""
    sine, cosine, quarter = _quarters(absolute(x))
    size = tl.where((quarter & 1) == 0, cosine, sine)
    return tl.where((quarter == 1) | (quarter == 2), negated(size), size)


@triton.jit
def pow64(x, y):
    """x^y, by the value of y: x x for 2, sqrt(x) for 1/2, otherwise by exp and log."""
    size = absolute(x)
    whole = y == nearest(y)
    small = absolute(y) < 16777216.0  # whole float32 values beyond 2^24 are even
    odd = whole & small & ((tl.where(small, y, 0.0).to(tl.int64) & 1) == 1)
    power = exp64(y * log64(tl.where(size == 0.0, 1.0, size)))
    power = tl.where(size == 0.0, tl.where(y > 0.0, 0.0, float("inf")), power)
    power = tl.where(odd & has_sign(x), negated(power), power)
    power = tl.where((x < 0.0) & (whole == 0), float("nan"), power)
    power = tl.where(y == 0.0, 1.0, power)
    power = tl.where(y == 2.0, x * x, power)
    return tl.where(y == 0.5, tl.sqrt(x), power)


@triton.jit
def maximum(x, y):
    """The larger one; +0 is larger than -0."""
    tie = tl.where(has_sign(x), y, x)
    return tl.where(x == y, tie, tl.where(x > y, x, y))


@triton.jit
def minimum(x, y):
    """The smaller one; -0 is smaller than +0."""
    tie = tl.where(has_sign(x), x, y)
    return tl.where(x == y, tie, tl.where(x < y, x, y))


@triton.jit
def fmod64(x, y):
    """C's fmod of float32 values, exact: by integers, since no quotient holds all of it."""
    fits = absolute(y) > 0.0
    bits = bits_of(absolute(tl.where(x == 0.0, 1.0, x)))
    by = bits_of(absolute(tl.where(fits, y, 1.0)))
    m = ((bits & _MANTISSA_64) | _IMPLICIT_64) >> _BELOW_24
    n = ((by & _MANTISSA_64) | _IMPLICIT_64) >> _BELOW_24
    shift = (bits >> 52) - (by >> 52)
    power = tl.full(m.shape, 2, tl.int64) % n
    rest = m % n
    left = tl.where(shift > 0, shift, 0)
    for _ in tl.static_range(8):  # 2^shift mod n, shift < 2^8, by squaring
        rest = tl.where((left & 1) == 1, (rest * power) % n, rest)
        power = (power * power) % n
        left = left >> 1
    unit = (by >> 52) - (1023 + 23)  # of y's last place, a power of two
    size = rest.to(tl.float64) * power_of_two(unit)
    size = tl.where((shift < 0) | (x == 0.0), absolute(x), size)
    return tl.where(fits, with_sign(size, x), float("nan"))
