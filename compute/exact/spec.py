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
