"""What the card's kernels share: rounding, exponents, statuses.

Part of *execute*. Each line is one IEEE-754 operation or works on bits: kernels are
compiled with fusing of operations switched off, and nothing here may be reordered.
`MAGIC` is 1.5 * 2^52: adding it to a float64 below 2^51 rounds that to an integer
(nearest even), which then stands in the low bits of the sum.
"""

from __future__ import annotations

import triton
import triton.language as tl

from shoal.compute.exact import spec, statuses

FINE = tl.constexpr(statuses.FINE)
INFINITE = tl.constexpr(statuses.INFINITE)
NAN = tl.constexpr(statuses.NAN)
OUT_OF_RANGE = tl.constexpr(statuses.OUT_OF_RANGE)
MASKED = tl.constexpr(statuses.MASKED)

MAGIC = tl.constexpr(1.5 * 2.0**52)
MAGIC_BITS = tl.constexpr(0x4338_0000_0000_0000)
FLUSH_BELOW = tl.constexpr(spec.FLUSH_BELOW)
SUM_BITS = tl.constexpr(spec.SUM_BITS)
_INFINITY_BITS = tl.constexpr(0x7F80_0000)
_MAGNITUDE = tl.constexpr(0x7FFF_FFFF)
_SIGN_64 = tl.constexpr(-0x8000_0000_0000_0000)
_MAGNITUDE_64 = tl.constexpr(0x7FFF_FFFF_FFFF_FFFF)


@triton.jit
def bits_of(v):
    """The bits of float64 values, as int64."""
    return v.to(tl.int64, bitcast=True)


@triton.jit
def from_bits(bits):
    """The float64 of these bits."""
    return bits.to(tl.float64, bitcast=True)


@triton.jit
def absolute(v):
    """A float64 less its sign."""
    return from_bits(bits_of(v) & _MAGNITUDE_64)


@triton.jit
def negated(v):
    """A float64 with the other sign, zeros too."""
    return from_bits(bits_of(v) ^ _SIGN_64)


@triton.jit
def has_sign(v):
    """Whether a float64's sign is negative, that of -0 too."""
    return bits_of(v) < 0


@triton.jit
def with_sign(size, v):
    """``size``, which has no sign, with the sign of v."""
    return from_bits(bits_of(size) | (bits_of(v) & _SIGN_64))


@triton.jit
def nearest(v):
    """rint(v) as float64, of any magnitude, with the sign of v."""
    size = absolute(v)
    near = (size + 4503599627370496.0) - 4503599627370496.0  # 2^52: what is above is whole
    return with_sign(tl.where(size < 4503599627370496.0, near, size), v)


@triton.jit
def as_integer(v):
    """rint(v) as int64, |v| < 2^51."""
    return bits_of(v + MAGIC) - MAGIC_BITS


@triton.jit
def power_of_two(exponent):
    """2.0 ** exponent, of int64 from -1022 to 1023."""
    return from_bits((exponent + 1023) << 52)


@triton.jit
def exponent_of(peak):
    """The e with 2^(e - 1) <= peak < 2^e as int64; 0 of 0. Peak is no subnormal."""
    return tl.where(peak == 0.0, 0, (bits_of(peak) >> 52) - 1022)


@triton.jit
def round32(v):
    """Float64 as the float32 of the exact class: rounded once, flushed below 2^-126."""
    zero = from_bits(bits_of(v) & _SIGN_64)
    return tl.where(absolute(v) < FLUSH_BELOW, zero, v).to(tl.float32)


@triton.jit
def magnitude(x):
    """A float32's bits less its sign, as int32: they compare like magnitudes."""
    return x.to(tl.int32, bitcast=True) & _MAGNITUDE


@triton.jit
def status_of(result):
    """FINE, INFINITE or NAN of each float32."""
    size = magnitude(result)
    return tl.where(
        size < _INFINITY_BITS, FINE, tl.where(size == _INFINITY_BITS, INFINITE, NAN)
    )


@triton.jit
def is_masked(x):
    """Whether a float32 is infinite: among inputs, that is a mask's -inf."""
    return magnitude(x) == _INFINITY_BITS


@triton.jit
def report(statuses, status):
    """Note the greatest status of a block where the host will look.

    Args:
        statuses: Pointer to one int32.
        status: Of each element; 0 where there is none.
    """
    worst = tl.max(status.to(tl.int32))
    tl.atomic_max(statuses, worst, mask=worst > 0)


@triton.jit
def sum_scale(exponent):
    """What makes fixed-point integers of terms below 2^exponent."""
    return power_of_two((0 - exponent) + SUM_BITS)


@triton.jit
def sum_value(total, exponent):
    """The float64 that a fixed-point sum stands for."""
    return total.to(tl.float64) * power_of_two(exponent - SUM_BITS)
