"""Cheap float64 values of the exact class's functions that tell where they cannot decide.

Part of *execute*: `elementwise` and `rows` try these first. SPEC's sequences round each
operation and divide much; what a program sees of them is one float32. So any value
close to the specified one has the same float32, unless a border of rounding lies
between both (A. Ziv, "Fast evaluation of elementary mathematical functions with
correctly rounded last bit", 1991). Each function here gives a value within 2^-44,
relative, of the specified one (erf beyond 4: on the same side of every border), and a
*doubt*: an int64 that is negative where the float32 may differ, or where x lies outside
the domain. Doubts of a block are joined by `|`, and a block in doubt is computed anew, as
specified: one in some hundred blocks.

How the values come about is free: fused operations (a machine without them computes the
same, slowly), other polynomials, fewer divisions. Below are the bounds that hold 2^-44.
All 2^32 inputs of every function were compared: ``tests/bench/exact_exhaustive.py``.

The polynomials are Chebyshev fits by mpmath, rounded to float64; each says of what.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from shoal.compute.exact import spec
from shoal.compute.exact.cpu.compiled import inline
from shoal.compute.exact.cpu.floats import (
    INFINITY_BITS_64,
    MAGIC,
    MAGIC_BITS,
    bits_of,
    choose,
    fma,
    from_bits,
    magnitude,
    magnitude_64,
    with_sign,
)

CLOSENESS_BITS: Final = 44
"""An approximation is within 2^-CLOSENESS_BITS, relative, of the specified value."""

_CLOSENESS: Final = 2.0**-CLOSENESS_BITS

_DROPPED_BITS: Final = 29
"""Bits of a float64's mantissa that a float32 has not."""
_WINDOW_BITS: Final = 54 - CLOSENESS_BITS
_TO_WINDOW: Final = np.int64((1 << (_DROPPED_BITS - 1)) + (1 << (_WINDOW_BITS - 1)))
_OUTSIDE_WINDOW: Final = np.int64((1 << _DROPPED_BITS) - (1 << _WINDOW_BITS))

_h = float.fromhex
_EXP_TAIL: Final = (
    _h("0x1.0000000000000p-1"),
    _h("0x1.5555555553b83p-3"),
    _h("0x1.5555555555555p-5"),
    _h("0x1.1111111c42c0ep-7"),
    _h("0x1.6c16c16c16c17p-10"),
    _h("0x1.a019adc40290cp-13"),
    _h("0x1.a01a01a01a01ap-16"),
    _h("0x1.72c6e7c7a289ap-19"),
    _h("0x1.27e4fb7789f5cp-22"),
)
"""(EXP(r) - 1 - r) / r^2, |r| <= ln 2 / 2."""
_LOG1P: Final = (
    _h("0x1.ffffffffffff0p-1"),
    _h("-0x1.fffffffffffa4p-2"),
    _h("0x1.555555555f96bp-2"),
    _h("-0x1.000000001593bp-2"),
    _h("0x1.999999882bc69p-3"),
    _h("-0x1.5555552c76648p-3"),
    _h("0x1.24924ebbf590bp-3"),
    _h("-0x1.00000f6585d4cp-3"),
    _h("0x1.c71ab88708c84p-4"),
    _h("-0x1.9993f3682bbf4p-4"),
    _h("0x1.748013c309b09p-4"),
    _h("-0x1.55e2760852cdbp-4"),
    _h("0x1.39c3c0871b078p-4"),
    _h("-0x1.1d2e4b8e32177p-4"),
    _h("0x1.1386c566309f2p-4"),
    _h("-0x1.303d8389ddeb4p-4"),
    _h("0x1.1eafd09d53019p-4"),
    _h("-0x1.0a8e4accf1baep-5"),
)
"""ln(1 + f) / f, sqrt 1/2 <= 1 + f <= sqrt 2."""
_LOG1P_UNIT: Final = (
    _h("0x1.9f323ecbf985bp-1"),
    _h("-0x1.2773a5da90bedp-2"),
    _h("0x1.0f95b3dc00d42p-3"),
    _h("-0x1.1540afd53f504p-4"),
    _h("0x1.2bec9fc9ab5f2p-5"),
    _h("-0x1.50abf6e0199fep-6"),
    _h("0x1.83c501467a853p-7"),
    _h("-0x1.c72c568dd9eddp-8"),
    _h("0x1.0f131fbaff558p-8"),
    _h("-0x1.469e82fe24c59p-9"),
    _h("0x1.8cf912805a38fp-10"),
    _h("-0x1.e697dac2fae64p-11"),
    _h("0x1.30160586598f5p-11"),
    _h("-0x1.796be7e99c5f8p-12"),
    _h("0x1.99080db6b4290p-13"),
    _h("-0x1.ff26621d85cbfp-14"),
    _h("0x1.23e48f1807c40p-13"),
    _h("-0x1.71088e43f6ba9p-14"),
)
"""ln(1 + t) / t in t - 1/2, 0 <= t <= 1."""
_ERF: Final = (
    _h("0x1.6a040781a499cp-2"),
    _h("-0x1.69a0ccda3d64cp-3"),
    _h("0x1.0dabaf0613ba3p-3"),
    _h("-0x1.b92e95c2082efp-4"),
    _h("0x1.717efc7866622p-4"),
    _h("-0x1.3215d8a93e637p-4"),
    _h("0x1.ea97f1435b3b1p-5"),
    _h("-0x1.76e8662b934a6p-5"),
    _h("0x1.0ed52c746d5a7p-5"),
    _h("-0x1.7034e0d4c07fbp-6"),
    _h("0x1.d6351b2a68c30p-7"),
    _h("-0x1.1a03324524eb7p-7"),
    _h("0x1.3e159e4055495p-8"),
    _h("-0x1.51e22dc762af1p-9"),
    _h("0x1.52d2a857d3684p-10"),
    _h("-0x1.41c98e7223066p-11"),
    _h("0x1.212a99410147fp-12"),
    _h("-0x1.e8ca45225386bp-14"),
    _h("0x1.8e920ca09e5a6p-15"),
    _h("-0x1.495c9865bc3cep-16"),
    _h("0x1.e1ce46763b7c1p-18"),
    _h("-0x1.df21589961445p-20"),
    _h("0x1.597abb52dd5a5p-21"),
    _h("-0x1.05d62bdd9912dp-21"),
    _h("0x1.3bcedf8176ef3p-23"),
)
"""erf(a) / a in a^2 / 8 - 1, 0 <= a <= 4."""
_NORMAL_TAIL: Final = (
    _h("0x1.12f21ddd9f5e1p-1"),
    _h("-0x1.c44c471baa35dp-2"),
    _h("0x1.2e326945de443p-2"),
    _h("-0x1.3deb21415ed13p-3"),
    _h("0x1.e995f11ae611cp-5"),
    _h("-0x1.b78993d58acb5p-7"),
    _h("-0x1.3dd3e5ebac2b1p-11"),
    _h("0x1.8dae3a3ac0770p-10"),
    _h("-0x1.1f78fb252673bp-12"),
    _h("-0x1.2239383064814p-13"),
    _h("0x1.c329bbddb5588p-15"),
    _h("0x1.fe24169c4f23fp-17"),
    _h("-0x1.2543d55e078b4p-17"),
    _h("-0x1.413887ae1f555p-19"),
    _h("0x1.721036a49259cp-20"),
    _h("0x1.1f4edd44577c9p-21"),
    _h("-0x1.670f608474040p-23"),
    _h("-0x1.1ab95c3e70dcep-23"),
    _h("-0x1.8c58923dbfaf6p-26"),
)
"""erfc(a) e^(a^2) (a + 3) / 2 in (a - 3) / (a + 3), 0 <= a <= 10.5."""
_NORMAL: Final = (
    _h("0x1.218358aa64993p-3"),
    _h("-0x1.1fef924134cdep-4"),
    _h("0x1.a60bc350653acp-5"),
    _h("-0x1.4b2afb4960e77p-5"),
    _h("0x1.01aec8dcb5952p-5"),
    _h("-0x1.7f9b26d1baa5ep-6"),
    _h("0x1.0c12c8c1ec83fp-6"),
    _h("-0x1.5ca05d429dd28p-7"),
    _h("0x1.a48306fcedebbp-8"),
    _h("-0x1.d676896de384bp-9"),
    _h("0x1.e9156bbd1a72dp-10"),
    _h("-0x1.d9b5834bc943bp-11"),
    _h("0x1.acc6a2b8950c3p-12"),
    _h("-0x1.6bd7317ffa71ep-13"),
    _h("0x1.225cf1ccecd85p-14"),
    _h("-0x1.b5082d539854bp-16"),
    _h("0x1.3699323de2717p-17"),
    _h("-0x1.a354b6bfa43d4p-19"),
    _h("0x1.10ddf115ccc11p-20"),
    _h("-0x1.4d02653086515p-22"),
    _h("0x1.5b7cde2faad8dp-24"),
    _h("-0x1.8706d4ed477e5p-26"),
    _h("0x1.4e3389af2457fp-27"),
    _h("-0x1.525e3520ece25p-29"),
)
"""(N(x) - 1/2) / x in 2 x^2 / 25 - 1, |x| <= 5, N the normal distribution; x times its
error is below 2^-51."""
_ERF_END: Final = 4.0
"""Where erf is 1 in float32, by half of the way to the border."""
_TAIL_CENTRE: Final = 3.0
_SQRT_HALF_BITS: Final = np.int64(np.float64(spec.SQRT_HALF).view(np.int64))
_EXP_LIMIT: Final = 88.0
GELU_NEAR: Final = 5.0
"""Up to where `gelu_near` is good."""
_GELU_APART: Final = 2.0**-50
_GELU_TINY: Final = 2.0**-168
"""What is below |x| 2^-45, and not below this, belongs to a result far from flushing."""
_POW_LIMIT: Final = 32.0
_GELU_TANH_LIMIT: Final = 2.0**20
_FARTHEST: Final = -spec.EXP_LOW
"""Exponents end here: e^-104 and all below are flushed."""


@inline
def near_border(v):
    """The doubt of a value: where a midpoint of two float32 is within 2^-44, relative.

    The border of flushing, FLUSH_BELOW, is such a midpoint, so `flushed` is safe as well.
    """
    return ((bits_of(v) + _TO_WINDOW) & _OUTSIDE_WINDOW) - 1


@inline
def beyond(x, limit):
    """The doubt of an argument: where |x| > limit > 0, or x is not a number."""
    return bits_of(limit) - magnitude_64(bits_of(x))


@inline
def _not_finite(x):
    return np.int64(INFINITY_BITS_64 - 1) - magnitude_64(bits_of(x))


@inline
def _polynomial(coefficients, x):
    """Horner's rule, one rounding a step; in two loops for the reason in `functions`."""
    half = len(coefficients) // 2
    p = coefficients[len(coefficients) - 1]
    for n in range(len(coefficients) - 2, half - 1, -1):
        p = fma(p, x, coefficients[n])
    for n in range(half - 1, -1, -1):
        p = fma(p, x, coefficients[n])
    return p


@inline
def exp_within(v):
    """The exponential of -104 <= v <= 104, within 2^-46: SPEC's own series ends 2^-47 off."""
    shifted = fma(v, spec.LOG2_E, MAGIC)
    r = fma(MAGIC - shifted, spec.LN2, v)
    y = fma(_polynomial(_EXP_TAIL, r), r * r, r + 1.0)
    return from_bits(bits_of(y) + (bits_of(shifted) << 52))


@inline
def exp_closely(v):
    """The exponential of -104 <= v <= 88, within 2^-50; below, a value that is flushed.

    SPEC's own steps and coefficients, each product fused with the sum that follows: they
    differ by roundings alone, which add up to less than 2^-50.6. The first product is not
    fused, so that k is the specified one.
    """
    w = max(v, spec.EXP_LOW)
    shifted = w * spec.LOG2_E + MAGIC
    k = shifted - MAGIC
    r = fma(-k, spec.LN2_LOW, fma(-k, spec.LN2_HIGH, w))
    return from_bits(bits_of(_polynomial(spec.EXP, r)) + (bits_of(shifted) << 52))


@inline
def _split(x):
    """(f, e) with x = (1 + f) 2^e and sqrt 1/2 <= 1 + f <= sqrt 2, of a positive number."""
    exponent = (bits_of(x) - _SQRT_HALF_BITS) >> 52
    f = from_bits(bits_of(x) - (exponent << 52)) - 1.0
    return f, from_bits(exponent + MAGIC_BITS) - MAGIC


@inline
def _log(x):
    """The logarithm of a positive number, within 2^-46."""
    f, e = _split(x)
    return fma(e, spec.LN2, f * _polynomial(_LOG1P, f))


@inline
def _log_closely(x):
    """The logarithm of a positive float32, within 2^-50: SPEC's own steps, fused."""
    f, e = _split(x)
    s = f / (f + 2.0)
    return fma(e, spec.LN2, (2.0 * s) * _polynomial(spec.LOG, s * s))


@inline
def exp(x):
    """See SPEC; up to e^88."""
    y = exp_within(max(x, spec.EXP_LOW))
    return y, near_border(y) | beyond(max(x, 0.0), _EXP_LIMIT) | _not_finite(x)


@inline
def log(x):
    """See SPEC; of positive numbers."""
    y = _log(x)
    return y, near_border(y) | bits_of(x) | (bits_of(x) - 1) | _not_finite(x)


@inline
def tanh(x):
    """See SPEC. At 0.125 the numerator cancels, to 2^-45."""
    a = abs(x)
    t = exp_within(min(2.0 * a, _FARTHEST))
    small = a * _polynomial(spec.TANH, a * a)
    y = with_sign(choose(a < spec.TANH_SMALL, small, (t - 1.0) / (t + 1.0)), x)
    return y, near_border(y) | _not_finite(x)


@inline
def _sigmoid(v):
    return 1.0 / (1.0 + exp_within(min(max(-v, -_FARTHEST), _FARTHEST)))


@inline
def sigmoid(x):
    """See SPEC."""
    y = _sigmoid(x)
    return y, near_border(y) | _not_finite(x)


@inline
def softplus(x):
    """See SPEC."""
    t = exp_within(max(-abs(x), -_FARTHEST))
    y = fma(t, _polynomial(_LOG1P_UNIT, t - 0.5), max(x, 0.0))
    return y, near_border(y) | _not_finite(x)


@inline
def erf(x):
    """See SPEC: one polynomial, and no exponential. Beyond 4, a value that rounds to 1."""
    a = min(abs(x), _ERF_END)
    y = with_sign(a * _polynomial(_ERF, fma(a, 0.125 * a, -1.0)), x)
    return y, near_border(y) | _not_finite(x)


@inline
def gelu(x):
    """See SPEC: one polynomial for the tail of the normal distribution, one division."""
    a = abs(x) * spec.SQRT_HALF
    gauss = exp_within(max(-0.5 * (x * x), -_FARTHEST))
    inverse = 1.0 / (a + _TAIL_CENTRE)
    tail = (gauss * inverse) * _polynomial(_NORMAL_TAIL, (a - _TAIL_CENTRE) * inverse)
    y = x * choose(x < 0.0, tail, 1.0 - tail)
    return y, near_border(y) | _not_finite(x)


@inline
def gelu_near(x):
    """See SPEC; |x| <= 5. One polynomial for all, exact enough where N(x) is not small.

    Its distance from the specified value is up to 2^-50 |x|, and SPEC's own error, which
    is relative. So the doubt is whether both ends of that interval are one float32; what
    could be flushed is in doubt as well.
    """
    square = x * x
    normal = fma(x, _polynomial(_NORMAL, fma(square, 2.0 / GELU_NEAR**2, -1.0)), 0.5)
    y = x * normal
    apart = fma(abs(y), _CLOSENESS, abs(x) * _GELU_APART)
    ends = np.float32(y - apart).view(np.int32) ^ np.float32(y + apart).view(np.int32)
    tiny = (bits_of(apart) - bits_of(_GELU_TINY)) & -bits_of(apart)  # but not 0
    return y, -np.int64(magnitude(ends)) | tiny | beyond(x, GELU_NEAR)


@inline
def gelu_tanh(x):
    """See SPEC. The exponent is the specified one to the bit, since exp amplifies its error.

    Where SPEC has x times 0, this has x times e^-104, flushed up to the limit.
    """
    u = spec.GELU_SCALE * (x + ((spec.GELU_CUBIC * x) * x) * x)
    y = x * _sigmoid(2.0 * u)
    return y, near_border(y) | beyond(x, _GELU_TANH_LIMIT)


@inline
def _angle(x):
    """SPEC's reduced angle to the bit (its first two products are exact), n, and doubt."""
    a = abs(x)
    shifted = a * spec.TWO_OVER_PI + MAGIC
    n = shifted - MAGIC
    r = fma(-n, spec.HALF_PI[1], fma(-n, spec.HALF_PI[0], a)) - n * spec.HALF_PI[2]
    return r, bits_of(shifted), beyond(x, spec.ANGLE_LIMIT)


@inline
def _quadrant(r, n):
    """Sine of r + n pi / 2."""
    z = r * r
    even = r * _polynomial(spec.SIN, z)
    y = choose((n & 1) == 0, even, _polynomial(spec.COS, z))
    return from_bits(bits_of(y) ^ ((n & 2) << 62))


@inline
def sin(x):
    """See SPEC."""
    r, n, outside = _angle(x)
    y = _quadrant(r, n)
    y = from_bits(bits_of(y) ^ (bits_of(x) & bits_of(-0.0)))
    return y, near_border(y) | outside


@inline
def cos(x):
    """See SPEC."""
    r, n, outside = _angle(x)
    y = _quadrant(r, n + 1)
    return y, near_border(y) | outside


@inline
def pow(x, y):  # noqa: A001  # as in SPEC
    """See SPEC; of positive x. The exponent's error counts by its size, hence the limit.

    SPEC's x * x and sqrt(x) are as close to the true power as its exponential is.
    """
    v = y * _log_closely(x)
    power = exp_closely(v)
    outside = beyond(v, _POW_LIMIT) | bits_of(x) | (bits_of(x) - 1) | _not_finite(x)
    return power, near_border(power) | outside
