"""How every float result ends: rounded once to float32, flushed, checked.

Part of *execute*, the reference of the exact class (SPEC, "Rounding to float32" and
"Errors"); the other modules of this package compute in float64 or integers and end here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.spec import FLUSH_BELOW, K_LIMIT, SMALLEST_NORMAL

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shoal.compute.exact.kernels import Floats

    Doubles = NDArray[np.float64]


def round32(v: Doubles) -> Floats:
    """Round to 24 bits (nearest even, unbounded exponent), then flush; overflow is infinite.

    What 24 bits round to less than 2^-126 is exactly what lies below `FLUSH_BELOW`. From
    there on the conversion to float32 is the rounding.
    """
    flushed = np.where(np.abs(v) < FLUSH_BELOW, np.copysign(0.0, v), v)
    with np.errstate(over="ignore"):
        return flushed.astype(np.float32)


def admit(x: Floats) -> Floats:
    """Flush a program input or constant; see `Kernels.admit`."""
    if np.isnan(x).any():
        raise ExactError.in_kernel("nan", "input")
    if np.isposinf(x).any():
        raise ExactError.in_kernel("infinity", "input")
    subnormal = np.abs(x) < np.float32(SMALLEST_NORMAL)
    return np.where(subnormal, np.copysign(np.float32(0), x), x)


def refuse_infinite(kernel: str, *operands: Floats) -> None:
    """Refuse a mask where none may be.

    Raises:
        ExactError: ``infinity``.
    """
    if any(np.isinf(operand).any() for operand in operands):
        raise ExactError.in_kernel("infinity", kernel)


def refuse_long(kernel: str, terms: int) -> None:
    """Refuse a sum that int64 might not hold.

    Raises:
        ExactError: ``k_limit``.
    """
    if terms > K_LIMIT:
        raise ExactError.in_kernel("k_limit", kernel)


def finite(kernel: str, result: Floats, masked: NDArray[np.bool_] | bool = False) -> Floats:
    """The result, where it is finite or -inf under a mask.

    Args:
        kernel: The kernel's name, for the error.
        result: Of any shape.
        masked: Where -inf came in, so that it may go out.

    Raises:
        ExactError: ``nan``, otherwise ``infinity``.
    """
    if np.isnan(result).any():
        raise ExactError.in_kernel("nan", kernel)
    if (np.isinf(result) & ~np.asarray(masked)).any():
        raise ExactError.in_kernel("infinity", kernel)
    return result
