"""What the kernels share: rounding, exponents, statuses, all without a library call.

Part of *execute*. Inlined into loops over arrays, where LLVM turns each line into
vector instructions; hence bits and selections in place of ldexp, frexp and copysign.
`MAGIC` is 1.5 * 2^52: adding it to a float64 below 2^51 rounds that to an integer
(nearest even), which then stands in the low bits of the sum.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import types
from numba.extending import intrinsic

from shoal.compute.exact.cpu.compiled import inline
from shoal.compute.exact.spec import FLUSH_BELOW, SUM_BITS
from shoal.compute.exact.statuses import FINE, INFINITE, NAN

INFINITY_BITS: Final = 0x7F80_0000
INFINITY_BITS_64: Final = 0x7FF0_0000_0000_0000
_MAGNITUDE: Final = np.int32(0x7FFF_FFFF)
_MAGNITUDE_64: Final = np.int64(0x7FFF_FFFF_FFFF_FFFF)
_SIGN_64: Final = np.int64(-0x8000_0000_0000_0000)
_MANTISSA_64: Final = np.int64((1 << 52) - 1)
_ONE_64: Final = np.int64(1023 << 52)
MAGIC: Final = 1.5 * 2.0**52
MAGIC_BITS: Final = np.int64(np.float64(MAGIC).view(np.int64))


@intrinsic
def fma(typing_context, x, y, z):
    """X * y + z, rounded once."""
    del typing_context
    if not all(operand is types.float64 for operand in (x, y, z)):
        return None

    def generate(context, builder, signature, arguments):
        del context, signature
        return builder.fma(*arguments)

    return types.float64(x, y, z), generate


@inline
def bits_of(v):
    """A float64's bits."""
    return np.float64(v).view(np.int64)


@inline
def from_bits(bits):
    """The float64 of these bits."""
    return np.int64(bits).view(np.float64)


@inline
def magnitude(bits):
    """A float32's bits less its sign: as integers, magnitudes compare like floats."""
    return bits & _MAGNITUDE


@inline
def magnitude_64(bits):
    """Likewise for float64."""
    return bits & _MAGNITUDE_64


@inline
def ordered(bits):
    """A float32's bits as an int32 in the order of floats, -0 below +0; its own inverse."""
    return bits ^ ((bits >> np.int32(31)) & _MAGNITUDE)


@inline
def status_of(peak):
    """What results are of which this is the largest magnitude's bits."""
    if peak < INFINITY_BITS:
        return FINE
    return INFINITE if peak == INFINITY_BITS else NAN


@inline
def power_of_two(exponent):
    """2.0 ** exponent of an integer from -1022 to 1023."""
    return from_bits((np.int64(exponent) + 1023) << 52)


@inline
def times_power_of_two(v, k):
    """Multiply by 2 ** k, k whole, -1022 to 1023; exact where the result is normal."""
    return v * from_bits((bits_of(k + MAGIC) + 1023) << 52)


@inline
def as_integer(v):
    """rint(v) as int64, |v| < 2^51."""
    return bits_of(v + MAGIC) - MAGIC_BITS


@inline
def exponent_of(peak):
    """The e with 2^(e - 1) <= peak < 2^e; 0 of 0."""
    if peak == 0.0:
        return np.int64(0)
    return (bits_of(peak) >> 52) - 1022


@inline
def split_float(x):
    """(m, e) with x = m 2^e and 1 <= m < 2, e as float64, of a positive normal float64."""
    bits = bits_of(x)
    m = from_bits((bits & _MANTISSA_64) | _ONE_64)
    e = from_bits((bits >> 52) - 1023 + MAGIC_BITS) - MAGIC
    return m, e


@inline
def with_sign(size, x):
    """size, which has no sign, with the sign of x."""
    return from_bits(bits_of(size) | (bits_of(x) & _SIGN_64))


@inline
def choose(condition, yes, no):
    """Select one of both. A branch between two polynomials would end vector code."""
    mask = -np.int64(condition)
    return from_bits((bits_of(yes) & mask) | (bits_of(no) & ~mask))


@inline
def flushed(v):
    """Either v, or zero of its sign where 24 bits round it below 2^-126. To be made float32."""
    zero = from_bits(bits_of(v) & _SIGN_64)
    return zero if abs(v) < FLUSH_BELOW else v


@inline
def sum_scale(exponent):
    """What makes fixed-point integers of terms below 2^exponent."""
    return power_of_two(SUM_BITS - exponent)


@inline
def sum_value(total, exponent):
    """The float64 that a fixed-point sum stands for."""
    return np.float64(total) * power_of_two(exponent - SUM_BITS)


@inline
def divided(v, by, inverse):
    """The float64 v / by to the bit, sign of zero included, inverse being the float64 1 / by.

    For many v and one by, both far from float64's ends: five operations in place of a
    division. The first step brings the quotient within one unit in its last place, and
    the second then rounds as division does (P. W. Markstein, "Computation of elementary
    functions on the IBM RISC System/6000 processor", 1990).
    """
    near = v * inverse
    near = fma(-fma(near, by, -v), inverse, near)
    return fma(-fma(near, by, -v), inverse, near)
