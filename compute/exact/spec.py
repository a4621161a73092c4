"""The numbers of the exact class: precisions, bounds and coefficients of ``SPEC.md``.

Part of *execute*, and a leaf: every backend reads its constants here, so that none
is typed twice. The coefficients were generated once and are frozen; changing one bit
of them is a new ``SPEC_VERSION``. A test compares them with the tables in SPEC.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SPEC_VERSION: Final = "1"

K_BLOCK: Final = 8192
"""Terms whose products sum exactly in float64: K_BLOCK * Q^2 < 2^53."""
K_LIMIT: Final = 1 << 22
"""Terms that any sum may have: K_LIMIT * Q^2 < 2^63, K_LIMIT * 2^SUM_BITS < 2^63."""
SUM_BITS: Final = 40
"""Bits below the leading power of two in a fixed-point sum."""


@dataclass(frozen=True, slots=True)
class Precision:
    """How finely the operands of a product are rounded.

    Args:
        name: As programs and receipts write it.
        bits: b, the binary places of a quantised value below its scale.
        limit: Q, the largest quantised magnitude.
    """

    name: str
    bits: int
    limit: int


X20: Final = Precision("x20", 20, 1_040_319)  # three base-128 digits in [-64, 63]
X16: Final = Precision("x16", 15, 32_639)  # two base-256 digits in [-128, 127]
X8: Final = Precision("x8", 7, 127)
PRECISIONS: Final = {precision.name: precision for precision in (X20, X16, X8)}

_h = float.fromhex

# -- float32 ---------------------------------------------------------------------------
FLOAT32_MAX: Final = _h("0x1.fffffep+127")
SMALLEST_NORMAL: Final = _h("0x1p-126")
FLUSH_BELOW: Final = _h("0x1.ffffffp-127")
"""2^-126 - 2^-151: the least magnitude that 24 bits round up to 2^-126."""

# -- exp ----------------------------------------------------------------------------------
EXP_LOW: Final = -104.0
EXP_HIGH: Final = 89.0
LOG2_E: Final = _h("0x1.71547652b82fep+0")
LN2_HIGH: Final = _h("0x1.62e42fefa0000p-1")
LN2_LOW: Final = _h("0x1.cf79abc9e3b3ap-40")
EXP: Final = (
    _h("0x1.0000000000000p+0"),  # 1 / 0!
    _h("0x1.0000000000000p+0"),  # 1 / 1!
    _h("0x1.0000000000000p-1"),  # 1 / 2!
    _h("0x1.5555555555555p-3"),  # 1 / 3!
    _h("0x1.5555555555555p-5"),  # 1 / 4!
    _h("0x1.1111111111111p-7"),  # 1 / 5!
    _h("0x1.6c16c16c16c17p-10"),  # 1 / 6!
    _h("0x1.a01a01a01a01ap-13"),  # 1 / 7!
    _h("0x1.a01a01a01a01ap-16"),  # 1 / 8!
    _h("0x1.71de3a556c734p-19"),  # 1 / 9!
    _h("0x1.27e4fb7789f5cp-22"),  # 1 / 10!
    _h("0x1.ae64567f544e4p-26"),  # 1 / 11!
)
"""exp(r) = sum EXP[n] r^n for |r| <= ln(2) / 2."""

# -- log ----------------------------------------------------------------------------------
LN2: Final = _h("0x1.62e42fefa39efp-1")
SQRT_2: Final = _h("0x1.6a09e667f3bcdp+0")
SQRT_2_LESS_1: Final = _h("0x1.a827999fcef32p-2")
LOG: Final = (
    _h("0x1.0000000000000p+0"),  # 1 / 1
    _h("0x1.5555555555555p-2"),  # 1 / 3
    _h("0x1.999999999999ap-3"),  # 1 / 5
    _h("0x1.2492492492492p-3"),  # 1 / 7
    _h("0x1.c71c71c71c71cp-4"),  # 1 / 9
    _h("0x1.745d1745d1746p-4"),  # 1 / 11
    _h("0x1.3b13b13b13b14p-4"),  # 1 / 13
    _h("0x1.1111111111111p-4"),  # 1 / 15
    _h("0x1.e1e1e1e1e1e1ep-5"),  # 1 / 17
)
"""artanh(s) / s = sum LOG[n] s^(2n) for |s| <= 3 - sqrt(8)."""

# -- tanh ---------------------------------------------------------------------------------
TANH_SMALL: Final = 0.125
TANH: Final = (
    _h("0x1.0000000000000p+0"),  # 1
    _h("-0x1.5555555555555p-2"),  # -1 / 3
    _h("0x1.1111111111111p-3"),  # 2 / 15
    _h("-0x1.ba1ba1ba1ba1cp-5"),  # -17 / 315
    _h("0x1.664f4882c10fap-6"),  # 62 / 2835
    _h("-0x1.226e355e6c23dp-7"),  # -1382 / 155925
    _h("0x1.d6d3d0e157de0p-9"),  # 21844 / 6081075
    _h("-0x1.7da36452b75e3p-10"),  # -929569 / 638512875
)
"""tanh(a) / a = sum TANH[n] a^(2n) for 0 <= a < TANH_SMALL."""

# -- erf, gelu ----------------------------------------------------------------------------
ERF_SMALL: Final = 0.5
ERF: Final = (
    _h("0x1.20dd750429b6dp+0"),  # 2 / (sqrt(pi) 0! 1)
    _h("-0x1.812746b0379e7p-2"),  # -2 / (sqrt(pi) 1! 3)
    _h("0x1.ce2f21a042be2p-4"),  # 2 / (sqrt(pi) 2! 5)
    _h("-0x1.b82ce31288b51p-6"),  # -2 / (sqrt(pi) 3! 7)
    _h("0x1.565bcd0e6a53fp-8"),  # 2 / (sqrt(pi) 4! 9)
    _h("-0x1.c02db40040b86p-11"),  # -2 / (sqrt(pi) 5! 11)
    _h("0x1.f9a326f9b89b7p-14"),  # 2 / (sqrt(pi) 6! 13)
    _h("-0x1.f4d25c3e0c2ebp-17"),  # -2 / (sqrt(pi) 7! 15)
    _h("0x1.b9e6c9dc651a3p-20"),  # 2 / (sqrt(pi) 8! 17)
    _h("-0x1.5f742ec43e71ap-23"),  # -2 / (sqrt(pi) 9! 19)
    _h("0x1.fcc5720624c1cp-27"),  # 2 / (sqrt(pi) 10! 21)
)
"""erf(a) / a = sum ERF[n] a^(2n) for 0 <= a < ERF_SMALL."""
ERFC_CENTRE: Final = 2.5
ERFC: Final = (
    _h("0x1.43cc6f6c9672cp+0"),  # u^0
    _h("-0x1.f52c5d7e222f2p-4"),  # u^1
    _h("-0x1.959ac16f85889p-4"),  # u^2
    _h("0x1.42d379989b2f8p-3"),  # u^3
    _h("-0x1.a5c0c8a3fb7fep-4"),  # u^4
    _h("0x1.0c6092a5b1ad2p-5"),  # u^5
    _h("0x1.e89488c9f0acdp-11"),  # u^6
    _h("-0x1.1f2f132624780p-8"),  # u^7
    _h("0x1.01e1271584f9dp-11"),  # u^8
    _h("0x1.4b6a4747a2bd6p-11"),  # u^9
    _h("-0x1.731f157590b77p-14"),  # u^10
    _h("-0x1.dc248f9553f74p-14"),  # u^11
    _h("0x1.a5b7a5f824a93p-18"),  # u^12
    _h("0x1.7cc159fde157ap-16"),  # u^13
    _h("0x1.551b4b027b4f5p-19"),  # u^14
    _h("-0x1.1a6d5b924f75cp-18"),  # u^15
    _h("-0x1.801756c418a52p-20"),  # u^16
    _h("0x1.1bbaed71445cdp-21"),  # u^17
    _h("0x1.63ed15ec56714p-22"),  # u^18
)
"""erfc(a) exp(a^2) (1 + 2a) = sum ERFC[n] u^n, u = (a - 2.5) / (a + 2.5), a >= ERF_SMALL.

The interpolant at the 19 Chebyshev nodes of u over 0.5 <= a <= 10.5."""
SQRT_HALF: Final = _h("0x1.6a09e667f3bcdp-1")
GELU_SCALE: Final = _h("0x1.9884533d43651p-1")
"""sqrt(2 / pi)."""
GELU_CUBIC: Final = _h("0x1.6e4e26d4801f7p-5")
"""0.044715."""

# -- sin, cos -----------------------------------------------------------------------------
ANGLE_LIMIT: Final = _h("0x1p20")
TWO_OVER_PI: Final = _h("0x1.45f306dc9c883p-1")
HALF_PI: Final = (
    _h("0x1.921fb54400000p+0"),  # the leading 33 bits
    _h("0x1.0b4611a600000p-34"),  # the next 33
    _h("0x1.3198a2e037073p-69"),  # the rest
)
"""pi / 2 in three parts: a quarter-turn count below 2^20 times the first two is exact."""
SIN: Final = (
    _h("0x1.0000000000000p+0"),  # 1 / 1!
    _h("-0x1.5555555555555p-3"),  # -1 / 3!
    _h("0x1.1111111111111p-7"),  # 1 / 5!
    _h("-0x1.a01a01a01a01ap-13"),  # -1 / 7!
    _h("0x1.71de3a556c734p-19"),  # 1 / 9!
    _h("-0x1.ae64567f544e4p-26"),  # -1 / 11!
    _h("0x1.6124613a86d09p-33"),  # 1 / 13!
)
"""sin(r) / r = sum SIN[n] r^(2n) for |r| <= pi / 4."""
COS: Final = (
    _h("0x1.0000000000000p+0"),  # 1 / 0!
    _h("-0x1.0000000000000p-1"),  # -1 / 2!
    _h("0x1.5555555555555p-5"),  # 1 / 4!
    _h("-0x1.6c16c16c16c17p-10"),  # -1 / 6!
    _h("0x1.a01a01a01a01ap-16"),  # 1 / 8!
    _h("-0x1.27e4fb7789f5cp-22"),  # -1 / 10!
    _h("0x1.1eed8eff8d898p-29"),  # 1 / 12!
    _h("-0x1.93974a8c07c9dp-37"),  # -1 / 14!
)
"""cos(r) = sum COS[n] r^(2n) for |r| <= pi / 4."""
