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
from shoal.compute.exact.cpu.floats import divided
from shoal.compute.exact.reference import ReferenceKernels

NAMES = (
    "cos", "erf", "exp", "gelu", "gelu_near", "gelu_tanh", "log", "sigmoid", "sin", "softplus",
    "tanh",
)  # fmt: skip
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
    if name == "gelu_near":
        return x[np.abs(x) <= approximations.GELU_NEAR]
    return x[x < 87] if name == "exp" else x


def specified_name(name):
    """The function that a second form approximates as well."""
    return name.removesuffix("_near")


def both_ways(name, x):
    """Approximations, their doubts, and the specified values, all by element."""
    approximation = getattr(approximations, name)
    specified = getattr(functions, f"{specified_name(name)}64")

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
    distance = np.abs(near - true)[away]
    allowed = 2.0**-CLOSENESS_BITS * np.abs(true)[away]
    if name == "gelu_near":
        allowed += 2.0**-50 * np.abs(x)[away]
    assert np.all(distance < allowed)
    shown = CPU.unary(specified_name(name), x).view(np.int32)
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
        expected = REFERENCE.unary(specified_name(name), block).view(np.int32)
        assert np.array_equal(CPU.unary(specified_name(name), block).view(np.int32), expected)


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


@numba.njit(error_model="numpy")
def division(v, by, quotients):
    for i in range(v.size):
        quotients[i] = divided(v[i], by, 1.0 / by)


def test_a_division_through_the_inverse_is_division_to_the_bit():
    rng = np.random.default_rng(5)
    ones = np.nextafter(2.0, 0.0)
    divisors = [1.0, ones, 1.0 + 2.0**-52, 2.0**-90 * ones, *rng.uniform(1e-9, 1e3, 60)]
    for by in divisors:
        middles = rng.uniform(1, 2, 4000) * (1 + 2.0**-53)  # quotients beside a border
        wide = rng.standard_normal(4000) * 2.0 ** rng.integers(-150, 128, 4000)
        v = np.concatenate([wide, middles * by, [by, -by, 3.0 * by, 0.0, -0.0]])
        quotients = np.empty_like(v)
        division(v, by, quotients)
        assert np.array_equal(quotients.view(np.int64), (v / by).view(np.int64)), by


def test_the_exponentials_of_softmax_are_within_their_bound():
    @numba.njit(error_model="numpy")
    def farthest(v):
        most = 0.0
        for i in range(v.size):
            true = functions.exp64(v[i])
            most = max(most, abs(approximations.exp_closely(v[i]) - true) / true)
        return most

    rng = np.random.default_rng(6)
    halves = (np.arange(-150, 126) + 0.5) / 1.4426950408889634  # where k changes
    v = np.concatenate([-rng.uniform(0, limit, 300_000) for limit in (0.4, 4, 104)])
    beside = [halves, np.nextafter(halves, 0), np.nextafter(halves, 99), [0.0, -0.0, -104.0]]
    assert farthest(np.concatenate([v, *beside])) < 2.0**-50


def rows_in_doubt(x):
    """Which rows hold a softmax that lies beside a border of float32, and hence in doubt."""
    shares = np.exp(x - x.max(1, keepdims=True, initial=-np.inf).astype(np.float64))
    shares /= shares.sum(1, keepdims=True)
    bits = shares.view(np.int64) & ((1 << 29) - 1)
    return np.flatnonzero((np.abs(bits - (1 << 28)) < 1 << 7).any(1))


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_rows_of_softmax_in_doubt_are_computed_as_specified(spread):
    x = np.random.default_rng(8).normal(0, spread, (300_000, 8)).astype(np.float32)
    x[::3, 5] = -np.inf
    x[1::3, 2] *= 20
    doubtful = rows_in_doubt(x)
    assert doubtful.size > 0, "draw more: no row takes the slow way"
    some = np.concatenate([x[doubtful], x[:30_000]])
    for method in ("softmax_rows", "log_softmax_rows"):
        if method == "log_softmax_rows":
            some = np.maximum(some, np.float32(-90))
        expected = getattr(REFERENCE, method)(some)
        assert np.array_equal(
            getattr(CPU, method)(some).view(np.int32), expected.view(np.int32)
        )
    expected = REFERENCE.reduce_rows("log_sum_exp", some)
    shown = CPU.reduce_rows("log_sum_exp", some)
    assert np.array_equal(shown.view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize(
    ("method", "apart"),
    [("softmax_rows", "-0x1.bfd5a2p-4"), ("log_softmax_rows", "-0x1.35a08p+1")],
)
def test_a_row_that_the_approximation_alone_would_get_wrong_is_as_specified(method, apart):
    """The only such pairs of numbers between 0.001 and 14 apart, found by trying them all."""
    x = np.array([[0.0, float.fromhex(apart)]], np.float32)
    expected = getattr(REFERENCE, method)(x).view(np.int32)
    assert np.array_equal(getattr(CPU, method)(x).view(np.int32), expected)


def test_long_rows_whose_sum_is_known_within_bounds_only_are_as_specified():
    """Of a flat row's integers some always lie beside a tie: the sum's bounds differ."""
    for scale in (1e-3, 0.3, 8.0):
        x = np.random.default_rng(9).normal(0, scale, (3, 50_000)).astype(np.float32)
        for method in ("softmax_rows", "log_softmax_rows"):
            expected = getattr(REFERENCE, method)(x).view(np.int32)
            assert np.array_equal(getattr(CPU, method)(x).view(np.int32), expected)


@pytest.mark.parametrize("eps", [0.0, 1e-30, 1e-5, 1e30])
def test_norms_of_any_size_are_as_specified(eps):
    eps = float(np.float32(eps))
    rng = np.random.default_rng(10)
    w, b = rng.standard_normal((2, 1, 300)).astype(np.float32)
    for exponent in (-120, -60, 0, 60):
        x = (rng.standard_normal((40, 300)) * 2.0**exponent).astype(np.float32)
        x[::4] = x[::4, :1]  # no deviation
        x[1::4, ::2] = -0.0
        if eps == 0.0:
            x = x[1:4]
        for method, weights in (
            ("layer_norm_rows", (w, b)),
            ("layer_norm_rows", (None, None)),
            ("rms_norm_rows", (w,)),
        ):
            expected = getattr(REFERENCE, method)(x, *weights, eps).view(np.int32)
            assert np.array_equal(
                getattr(CPU, method)(x, *weights, eps).view(np.int32), expected
            )


def test_powers_are_sure_only_where_they_are_right_and_ties_are_in_doubt():
    @numba.njit(error_model="numpy")
    def both(x, y, near, doubts, true):
        for i in range(x.size):
            near[i], doubts[i] = approximations.pow(np.float64(x[i]), np.float64(y[i]))
            true[i] = functions.pow64(np.float64(x[i]), np.float64(y[i]))

    rng = np.random.default_rng(12)
    x = np.exp2(rng.uniform(-30, 30, 200_000)).astype(np.float32)
    x[:50_000] = rng.uniform(0.9, 1.1, 50_000)
    y = rng.choice([3.0, -1.0, 0.5, 0.0, 2.0, 1.7, -0.3, 11.0], x.size).astype(np.float32)
    near, true = np.empty(x.size), np.empty(x.size)
    doubts = np.empty(x.size, np.int64)
    both(x, y, near, doubts, true)
    sure = doubts >= 0
    assert np.max(np.abs(near - true)[sure] / true[sure]) < 2.0**-CLOSENESS_BITS
    ties = np.arange(257, 322, 2).astype(np.float32)  # of 25 bits when cubed
    three = np.full_like(ties, 3)
    both(ties, three, near, doubts, true)
    assert np.all(doubts[: ties.size] < 0)
    outside = np.array([-2.0, 0.0, -0.0, np.inf, 2.0], np.float32)
    both(outside, np.array([3, 3, 3, 3, 99], np.float32), near, doubts, true)
    assert np.all(doubts[: outside.size] < 0)
    for xs, ys in ((ties, three), (ties, three[:1]), (x[sure], y[sure])):
        expected = REFERENCE.binary("pow", xs, ys).view(np.int32)
        assert np.array_equal(CPU.binary("pow", xs, ys).view(np.int32), expected)
