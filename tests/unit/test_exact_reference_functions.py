"""Functions are right to 0.501 ulp; zeros, masks and errors are as SPEC.md says."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from mpmath import mpf

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.reference import ReferenceKernels

KERNELS = ReferenceKernels()
INF = np.inf
CUBIC = mpf("0.044715")


def gelu_tanh(x):
    return x / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (x + CUBIC * x**3)))


TRUE = {  # name: (the function, where the float32 result is a normal number)
    "exp": (mpmath.exp, (-87, 88.7)),
    "log": (mpmath.log, (1e-3, 50)),
    "tanh": (mpmath.tanh, (-10, 10)),
    "sigmoid": (lambda x: 1 / (1 + mpmath.exp(-x)), (-87, 30)),
    "softplus": (lambda x: mpmath.log1p(mpmath.exp(x)), (-87, 40)),
    "erf": (mpmath.erf, (-5, 5)),
    "gelu": (lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2, (-13, 8)),
    "gelu_tanh": (gelu_tanh, (-9, 8)),
    "sin": (mpmath.sin, (-(2**20), 2**20)),
    "cos": (mpmath.cos, (-(2**20), 2**20)),
}


def f32(*values) -> np.ndarray:
    return np.array(values, np.float32)


def ulps(true, got) -> float:
    exponent = mpmath.frexp(true)[1]
    return float(abs(true - mpf(float(got))) / mpmath.ldexp(1, exponent - 24))


def samples(name) -> np.ndarray:
    """Over the range, around one, near zero and at the borders of the pieces."""
    low, high = TRUE[name][1]
    rng = np.random.default_rng(3)
    near = rng.uniform(-1e-3, 1e-3, 50) + (1.0 if name == "log" else 0.0)
    pieces = [s * v for v in (0.125, 0.5, 0.70710678, 0.34657359, 1.41421356) for s in (-1, 1)]
    borders = [
        np.float32(v) + np.float32(k * 2.0**-26) for v in pieces for k in (-2, -1, 0, 1, 2)
    ]
    x = np.concatenate([rng.uniform(low, high, 250), rng.uniform(-2, 2, 250), near, borders])
    x = x.astype(np.float32)
    return x[(x >= low) & (x <= high) & (x != 0)]


@pytest.mark.parametrize("name", TRUE)
def test_a_function_is_right_to_half_an_ulp_and_a_thousandth(name):
    function, _ = TRUE[name]
    x = samples(name)
    assert x.size > 250
    y = KERNELS.unary(name, x)
    with mpmath.workprec(120):
        worst = max(ulps(function(mpf(float(v))), w) for v, w in zip(x, y, strict=True))
    assert worst <= 0.501


def test_a_power_is_right_to_half_an_ulp_and_a_thousandth():
    rng = np.random.default_rng(4)
    x = rng.uniform(0.01, 30, 400).astype(np.float32)
    y = rng.uniform(-10, 10, 400).astype(np.float32)
    got = KERNELS.binary("pow", x, y)
    with mpmath.workprec(120):
        true = [mpf(float(a)) ** mpf(float(b)) for a, b in zip(x, y, strict=True)]
        assert max(map(ulps, true, got)) <= 0.501


@pytest.mark.parametrize("name", ["exp", "tanh", "sigmoid", "softplus", "erf", "log"])
def test_a_rising_function_never_falls_between_neighbours(name):
    start = {"log": 1.41421, "exp": 0.34657, "tanh": 0.12499, "erf": 0.49999}.get(name, 0.7)
    x = np.arange(np.float32(start).view(np.uint32), np.float32(start).view(np.uint32) + 4000)
    y = KERNELS.unary(name, x.astype(np.uint32).view(np.float32))
    assert (np.diff(y) >= 0).all()


@pytest.mark.parametrize(
    ("name", "x", "wanted"),
    [
        ("exp", -88, 0.0),  # flushed
        ("exp", -0.0, 1.0),
        ("exp", -3e38, 0.0),
        ("sqrt", -0.0, -0.0),
        ("tanh", -0.0, -0.0),
        ("tanh", 3e38, 1.0),
        ("erf", -0.0, -0.0),
        ("erf", -3e38, -1.0),
        ("gelu", -0.0, -0.0),
        ("gelu", -3e38, -0.0),
        ("gelu", 3e38, 3e38),
        ("gelu_tanh", -3e38, -0.0),
        ("gelu_tanh", 3e38, 3e38),
        ("softplus", 3e38, 3e38),
        ("softplus", -3e38, 0.0),
        ("sigmoid", -3e38, 0.0),
        ("sigmoid", 3e38, 1.0),
        ("sin", -0.0, -0.0),
        ("cos", -0.0, 1.0),
        ("relu", -0.0, 0.0),
        ("relu", -3, 0.0),
        ("sign", -0.0, 0.0),
        ("sign", -3, -1.0),
        ("ceil", -0.5, -0.0),
        ("floor", -0.0, -0.0),
        ("round", 2.5, 2.0),
        ("round", -0.5, -0.0),
        ("neg", 0.0, -0.0),
        ("abs", -0.0, 0.0),
    ],
)
def test_a_function_at_its_edges(name, x, wanted):
    got = KERNELS.unary(name, f32(x))
    assert got.view(np.uint32)[0] == f32(wanted).view(np.uint32)[0]


@pytest.mark.parametrize(
    ("name", "x", "y", "wanted"),
    [
        ("max", -0.0, 0.0, 0.0),
        ("max", 0.0, -0.0, 0.0),
        ("min", -0.0, 0.0, -0.0),
        ("min", 0.0, -0.0, -0.0),
        ("max", -INF, -5, -5),
        ("max", -INF, -INF, -INF),
        ("add", -INF, 3e38, -INF),
        ("add", -INF, -INF, -INF),
        ("add", -0.0, -0.0, -0.0),
        ("add", 1, -1, 0.0),
        ("sub", 0.0, 0.0, 0.0),
        ("mul", -0.0, 3, -0.0),
        ("div", -0.0, 3, -0.0),
        ("fmod", -6, 3, -0.0),
        ("fmod", 5.5, -3, 2.5),
        ("pow", -3, 2, 9),
        ("pow", 4, 0.5, 2),
        ("pow", -0.0, 0.5, -0.0),
        ("pow", -2, 3, -8),
        ("pow", -2, 4, 16),
        ("pow", -2, -1, -0.5),
        ("pow", -7, 0, 1),
        ("pow", 0, 0, 1),
        ("pow", -0.0, 3, -0.0),
        ("pow", -0.0, 4, 0.0),
        ("pow", 0.5, 3e38, 0),
        ("pow", -1, 3e38, 1),
    ],
)
def test_an_operation_at_its_edges(name, x, y, wanted):
    got = KERNELS.binary(name, f32(x), f32(y))
    assert got.view(np.uint32)[0] == f32(wanted).view(np.uint32)[0]


@pytest.mark.parametrize(
    ("name", "operands", "code"),
    [
        ("log", [0], "infinity"),
        ("log", [-1], "nan"),
        ("sqrt", [-1], "nan"),
        ("exp", [89], "infinity"),
        ("exp", [-INF], "infinity"),
        ("relu", [-INF], "infinity"),
        ("reciprocal", [0], "infinity"),
        ("sin", [2.0**20 + 1], "out_of_range"),
        ("cos", [-(2.0**20) - 1], "out_of_range"),
        ("sin", [-INF], "infinity"),
        ("add", [3e38, 3e38], "infinity"),
        ("add", [-3e38, -3e38], "infinity"),
        ("mul", [-INF, 0], "infinity"),
        ("min", [-INF, 0], "infinity"),
        ("div", [1, -INF], "infinity"),
        ("div", [1, 0], "infinity"),
        ("div", [0, 0], "nan"),
        ("fmod", [1, 0], "nan"),
        ("pow", [0, -1], "infinity"),
        ("pow", [-2, 1.5], "nan"),
        ("pow", [10, 39], "infinity"),
    ],
)
def test_what_has_no_number_is_an_error_with_its_code(name, operands, code):
    call = KERNELS.unary if len(operands) == 1 else KERNELS.binary
    with pytest.raises(ExactError) as caught:
        call(name, *(f32(v) for v in operands))
    assert caught.value.code == code


def test_not_a_number_goes_before_infinity_wherever_it_lies():
    for x in (f32(1, 0), f32(0, 1)):
        with pytest.raises(ExactError) as caught:
            KERNELS.binary("div", x, f32(0))
        assert caught.value.code == "nan"


def test_an_overflow_beside_a_mask_is_still_an_overflow():
    with pytest.raises(ExactError) as caught:
        KERNELS.binary("add", f32(-INF, -3e38), f32(0, -3e38))
    assert caught.value.code == "infinity"


def test_an_error_takes_its_place_in_the_graph():
    error = ExactError.in_kernel("nan", "div").at("/layer/Div", "Div")
    assert (error.code, error.node, error.operator) == ("nan", "/layer/Div", "Div")
    assert str(error) == "div met or gave a value that is not a number"
