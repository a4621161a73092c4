"""How every float result ends: rounded once to float32, flushed, checked.

Part of *execute*, the reference of the exact class (SPEC, "Rounding to float32" and
"Errors"); the other modules of this package compute in float64 or integers and end here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.spec import FLUSH_BELOW, K_LIMIT, SMALLEST_NORMAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from shoal.compute.exact.kernels import Floats

    Doubles = NDArray[np.float64]

_PIECE: Final = 1 << 14
"""Elements that a function is given at once: what it makes of them stays in cache."""


def round32(v: Doubles) -> Floats:
    """Round to 24 bits (nearest even, unbounded exponent), then flush; overflow is infinite.

    What 24 bits round to less than 2^-126 is exactly what lies below `FLUSH_BELOW`. From
    there on the conversion to float32 is the rounding.
    """
    tiny = np.abs(v) < FLUSH_BELOW
    if tiny.any():
        v = np.where(tiny, np.copysign(0.0, v), v)
    with np.errstate(over="ignore"):
        return v.astype(np.float32)


def rounded(function: Callable[..., Doubles], *operands: Floats) -> Floats:
    """``round32(function(...))`` of operands that are broadcast, element by element."""
    count = len(operands)
    pieces = np.nditer(
        (*operands, None),
        flags=("external_loop", "buffered", "zerosize_ok"),
        op_flags=(*[("readonly",)] * count, ("writeonly", "allocate")),
        op_dtypes=(*[np.float64] * count, np.float32),
        order="C",
        casting="same_kind",
        buffersize=_PIECE,
    )
    with pieces:
        for *given, result in pieces:
            result[...] = round32(function(*given))
        whole: Floats = pieces.operands[count]
    return whole


def by_rows(function: Callable[[Floats], Doubles], x: Floats) -> Floats:
    """``round32(function(x))`` of a function that takes each row by itself."""
    result = np.empty_like(x)
    step = max(1, _PIECE // max(1, x.shape[1]))
    for start in range(0, x.shape[0], step):
        rows = slice(start, start + step)
        result[rows] = round32(function(x[rows]))
    return result


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
    if np.isfinite(result).all():
        return result
    if np.isnan(result).any():
        raise ExactError.in_kernel("nan", kernel)
    if (np.isinf(result) & ~np.asarray(masked)).any():
        raise ExactError.in_kernel("infinity", kernel)
    return result
