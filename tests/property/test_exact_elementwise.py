"""Elementwise arithmetic equals exact fractions rounded once; admission flushes."""

from __future__ import annotations

import math
from fractions import Fraction

import exact_by_fractions as slow
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.reference import ReferenceKernels

KERNELS = ReferenceKernels()
OPERATIONS = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "fmod": lambda x, y: x - y * math.trunc(x / y),
}
F = np.float32


def one(value) -> np.ndarray:
    return np.array([value], np.float32)


@given(st.sampled_from(sorted(OPERATIONS)), slow.floats(), slow.floats())
@example("mul", F(float.fromhex("0x1.fffffep-64")), F(2.0**-63))
@example("mul", F(float.fromhex("0x1.fffffep-64")), F(float.fromhex("0x1.000002p-63")))
@example("mul", F(float.fromhex("0x1.ffep-64")), F(float.fromhex("0x1.001p-63")))
@example("div", F(float.fromhex("0x1.fffffep-100")), F(2.0**27))
@example("sub", F(float.fromhex("0x1.000002p-126")), F(2.0**-126))
@example("add", F(2.0**24), F(1.0))
def test_arithmetic_is_one_rounding_of_the_true_result(name, x, y):
    assume(y != 0 or name not in {"div", "fmod"})
    true = OPERATIONS[name](Fraction(float(x)), Fraction(float(y)))
    assume(true != 0)  # a zero's sign is IEEE's and tested by itself
    try:
        expected = slow.round32(true)
    except slow.TooLargeError:
        with pytest.raises(ExactError) as caught:
            KERNELS.binary(name, one(x), one(y))
        assert caught.value.code == "infinity"
        return
    assert slow.bits_of(KERNELS.binary(name, one(x), one(y))) == slow.bits_of(one(expected))


@given(st.integers(-(2**23), 2**23), st.integers(-3, 3))
def test_a_product_near_the_flushing_border_is_rounded_before_it_is_flushed(step, other):
    x = np.nextafter(F(2.0**-63), F(1)) + F(step * 2.0**-110)
    y = F(2.0**-63) + F(other * 2.0**-86)
    expected = slow.round32(Fraction(float(x)) * Fraction(float(y)))
    assert slow.bits_of(KERNELS.binary("mul", one(x), one(y))) == slow.bits_of(one(expected))


@given(slow.floats())
def test_square_roots_and_reciprocals_are_rounded_once(x):
    assume(x != 0)
    reciprocal = slow.round32(1 / Fraction(float(x)))
    assert slow.bits_of(KERNELS.unary("reciprocal", one(x))) == slow.bits_of(one(reciprocal))
    square = Fraction(float(abs(x)))
    root = Fraction(math.isqrt((square.numerator << 600) // square.denominator), 1 << 300)
    if root * root != square:
        root += Fraction(1, 1 << 301)  # between the truncated root and the next: no tie
    assert slow.bits_of(KERNELS.unary("sqrt", one(abs(x)))) == slow.bits_of(
        one(slow.round32(root))
    )


@given(st.integers(0, 2**32 - 1))
def test_admission_keeps_normal_numbers_and_flushes_the_rest(word):
    x = np.array([word], np.uint32).view(np.float32)
    if np.isnan(x[0]) or np.isposinf(x[0]):
        with pytest.raises(ExactError) as caught:
            KERNELS.admit(x)
        assert caught.value.code == ("nan" if np.isnan(x[0]) else "infinity")
        return
    expected = word & 0x8000_0000 if word & 0x7F80_0000 == 0 else word
    assert slow.bits_of(KERNELS.admit(x)) == [expected]
