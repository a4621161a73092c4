"""Integer arithmetic where numpy's differs from ONNX's: division, remainder, power.

Part of *execute*, under ``elementwise``. Results wrap around; what has no result, a
division by zero or a negative power, is refused.
"""

from __future__ import annotations

import numpy as np

from shoal.compute.exact.operators.node import Array, fail


def _refuse_zero(divisor: Array) -> None:
    if (divisor == 0).any():
        fail("out_of_range", "an integer is divided by zero")


def divided(x: Array, y: Array) -> Array:
    """X / y, rounded toward zero.

    Raises:
        ExactError: ``out_of_range`` for a zero divisor.
    """
    _refuse_zero(y)
    with np.errstate(over="ignore"):  # the least integer over -1 wraps to itself
        floor = np.floor_divide(x, y)
        inexact = floor * y != x
    return np.where(inexact & ((x < 0) != (y < 0)), floor + np.ones((), x.dtype), floor)


def remainder(x: Array, y: Array, *, fmod: bool) -> Array:
    """The remainder: with ``fmod`` of the sign of x, otherwise of the sign of y.

    Raises:
        ExactError: ``out_of_range`` for a zero divisor.
    """
    _refuse_zero(y)
    with np.errstate(over="ignore"):
        return np.fmod(x, y) if fmod else np.mod(x, y)


def power(base: Array, exponent: Array) -> Array:
    """Base to the power of exponent, wrapped to the base's dtype.

    Raises:
        ExactError: ``out_of_range`` for a negative exponent.
    """
    if (exponent < 0).any():
        fail("out_of_range", "an integer is raised to a negative power")
    wide = np.asarray(exponent).astype(np.uint64)
    result = np.ones(np.broadcast_shapes(base.shape, wide.shape), base.dtype)
    square = np.broadcast_to(base, result.shape)
    with np.errstate(over="ignore"):
        while (wide != 0).any():  # by squaring: one turn for each bit
            result = np.where((wide & 1) != 0, result * square, result)
            square = square * square
            wide = wide >> 1
    return np.asarray(result)
