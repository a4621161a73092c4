"""Approximations beside the specified sequences: close, and never both sure and wrong.

``tests/bench/exact_exhaustive.py`` compares all float32; these draw from them, and look
at what a block does that holds one value in doubt.
"""

from __future__ import annotations

import numba
import numpy as np
import pytest

from shoal.compute.exact.cpu import CpuKernels, approximations, functions
from shoal.compute.exact.cpu.approximations import CLOSENESS_BITS
from shoal.compute.exact.reference import ReferenceKernels

NAMES = ("cos", "erf", "exp", "gelu", "gelu_tanh", "log", "sigmoid", "sin", "softplus", "tanh")
CPU = CpuKernels(1)
REFERENCE = ReferenceKernels()


def values_of(name, size=30_000):
    """Arguments over the whole domain, most of them where the function bends."""
    rng = np.random.default_rng(11)
    x = np.concatenate(
        [rng.uniform(-limit, limit, size) for limit in (0.3, 4.0, 15.0, 87.0)]
        + [2.0 ** rng.uniform(-126, 19, 20_000) * rng.choice([-1, 1], 20_000)]
    ).astype(np.float32)
    if name == "log":
        return np.abs(x[x != 0])
    return x[x < 87] if name == "exp" else x


def both_ways(name, x):
    """Approximations, their doubts, and the specified values, all by element."""
    approximation, specified = getattr(approximations, name), getattr(functions, f"{name}64")

    @numba.njit(error_model="numpy")
    def compute(x, near, doubts, true):
        for i in range(x.size):
            near[i], doubts[i] = approximation(np.float64(x[i]))
            true[i] = specified(np.float64(x[i]))

    near, doubts, true = np.empty(x.size), np.empty(x.size, np.int64), np.empty(x.size)
    compute(x, near, doubts, true)
    return near, doubts < 0, true


@pytest.mark.parametrize("name", NAMES)
def test_an_approximation_is_within_its_bound_and_sure_only_where_it_is_right(name):
    x = values_of(name)
    near, doubtful, true = both_ways(name, x)
    away = np.abs(true) >= 2.0**-126
    if name == "erf":
        away &= np.abs(x) <= 4
    distance = np.abs(near - true)[away] / np.abs(true)[away]
    assert distance.max() < 2.0**-CLOSENESS_BITS
    shown = CPU.unary(name, x).view(np.int32)
    rounded = np.where(np.abs(near) < 2.0**-126, np.copysign(0.0, near), near)
    sure = ~doubtful & (np.abs(near) >= 2.0**-126)
    assert np.array_equal(rounded[sure].astype(np.float32).view(np.int32), shown[sure])
    assert np.mean(doubtful) < 0.01


@pytest.mark.parametrize("name", NAMES)
def test_a_block_that_holds_a_value_in_doubt_is_computed_as_specified(name):
    x = values_of(name, 2_000_000)  # one in half a million is in doubt
    doubtful = np.flatnonzero(both_ways(name, x)[1])
    assert doubtful.size > 0, "draw more: nothing takes the slow way"
    for where in doubtful[:5]:
        block = x[max(0, where - 40) : where + 1]
        expected = REFERENCE.unary(name, block).view(np.int32)
        assert np.array_equal(CPU.unary(name, block).view(np.int32), expected)


def test_a_value_beside_a_midpoint_of_float32_is_in_doubt_and_one_apart_is_not():
    @numba.njit
    def doubt(v):
        return approximations.near_border(v) < 0

    midpoint = 1.0 + 2.0**-24
    inside, outside = 2.0**-CLOSENESS_BITS, 2.0 ** (2 - CLOSENESS_BITS)
    for scale in (1.0, -1.0, 2.0**-126, 2.0**60):
        for side in (-1.0, 1.0):
            assert doubt(scale * (midpoint + side * inside / 2))
            assert not doubt(scale * (midpoint + side * outside))
    flush_border = 2.0**-126 - 2.0**-151
    assert doubt(flush_border * (1 + 2.0**-46))
    assert not doubt(1.0)
    assert not doubt(0.0)
