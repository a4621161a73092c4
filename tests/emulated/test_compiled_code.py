"""What the compilers made of the card's kernels gives the bits of the reference.

`tests/unit/test_exact_card.py` runs the kernels' source under Triton's interpreter; here
they are compiled as a launch on a card would compile them, with its arguments, and the PTX
that comes out is run (`emulated_card`). Every day some calls, for sm_90; all of them for
both generations, and every vector, are for `make soak` and `make soak-short`.
"""

import os
import re
from dataclasses import dataclass, field
from functools import partial
from typing import get_args

import make
import numpy as np
import pytest
import torch
from cases import CASES
from emulated_card import Compiler, EmulatedCard
from exact_runs import outcome
from ptx_program import PtxError

from shoal.compute.exact.gpu import products
from shoal.compute.exact.gpu.kernels import CardKernels
from shoal.compute.exact.kernels import BinaryName, ExactError, ReduceName, UnaryName
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import PRECISIONS

EXPECTED = make.json.loads(make.EXPECTED.read_text())
REFERENCE = ReferenceKernels()
F = np.float32
TINY, STEP = F(2.0**-126), F(2.0**-23)
AWKWARD = np.array(
    [0.0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 1.5, 2.5, -0.3, -0.7, TINY, -TINY, 1e38, -1e38], F
)
"""What functions treat in ways of their own, and where float32 ends."""
HALFWAY = np.array(
    [
        (1, STEP / 2), (1, 3 * STEP / 2), (-1, -STEP / 2), (1 + STEP, STEP / 2),  # sums
        (1 + 2.0**-12, 1 + 2.0**-12), (1 + 2.0**-12, 1 + 3 * 2.0**-12),  # and products
        (TINY, 0.5), (TINY, 1 - STEP / 2), (-TINY, 1 - STEP),
        (2.0**-63, 2.0**-63 * (1 - STEP / 2)),
        (3.4028234e38, 1),  # what all but overflows
    ],
    F,
)  # fmt: skip
"""Pairs whose results lie between two float32, or where it begins and ends."""


def drawn(seed, *shape, low=-60, high=30):
    """Float32 of very different sizes, some of them zero, none subnormal."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape) * 2.0 ** rng.integers(low, high, shape)
    x[rng.random(shape) < 0.1] = 0
    return x.astype(F)


@dataclass(frozen=True)
class Call:
    """One method of `Kernels`, and what it is given."""

    name: str
    method: str
    arguments: tuple
    options: dict = field(default_factory=dict)

    def outcome(self, kernels):
        """The bits of the result, or the error."""
        try:
            result = getattr(kernels, self.method)(*self.arguments, **self.options)
            return result.shape, np.ascontiguousarray(result).tobytes()
        except ExactError as error:
            return error.code, error.message


def calls():
    """Every kernel, on data of all sizes and on what is special to it."""
    yield Call("admit", "admit", (np.array([1e-39, -1e-45, -np.inf, 0, -0.0, 3], F),))
    yield Call("admit inf", "admit", (np.array([1, np.inf], F),))
    yield Call("admit nan", "admit", (np.array([np.inf, np.nan], F),))
    yield from elementwise_calls()
    yield from row_calls()
    yield from scatter_calls()
    yield from product_calls()


def elementwise_calls():
    x = np.concatenate([drawn(1, 1400), AWKWARD])
    middle = np.clip(x, -80, 80)
    above = np.abs(middle) + F(0.01)
    for name in get_args(UnaryName):
        call = partial(Call, method="unary")
        yield call(f"{name} middle", arguments=(name, middle))
        yield call(f"{name} above", arguments=(name, above))
        yield call(f"{name} wide", arguments=(name, np.clip(x, -1e6, 1e6)))
        yield call(f"{name} all", arguments=(name, x))
        yield call(f"{name} masked", arguments=(name, np.array([-np.inf, 1], F)))
    y = np.where(np.roll(x, 7) == 0, F(1.25), np.roll(x, 7))
    left, right = np.ascontiguousarray(HALFWAY.T)
    whole = np.round(np.clip(y, -5, 5)) + 1
    whole[whole == 0] = 7
    large = np.array([3.4028234e38], F)
    for name in get_args(BinaryName):
        call = partial(Call, method="binary")
        yield call(f"{name} all", arguments=(name, x, y))
        yield call(f"{name} above", arguments=(name, above, whole))
        yield call(f"{name} halfway", arguments=(name, left, right))
        yield call(f"{name} too large", arguments=(name, large, np.array([1.5], F)))
        yield call(f"{name} one", arguments=(name, x[:1], y[:1]))
        wide = x[:1200].reshape(6, 10, 20)
        yield call(f"{name} bias", arguments=(name, wide, y[:20]))
        yield call(f"{name} middle axis", arguments=(name, wide, y[:10].reshape(10, 1)))
        masked = np.array([-np.inf, 1], F), np.array([2, -np.inf], F)
        yield call(f"{name} masked", arguments=(name, *masked))


def row_calls():
    for rows, terms in ((5, 7), (9, 300), (16, 64), (1, 2500), (3, 1)):
        x = drawn(6, rows, terms, low=-20, high=8)
        size = f"{rows} x {terms}"
        for name in get_args(ReduceName):
            yield Call(f"{name} {size}", "reduce_rows", (name, np.abs(x)))
            yield Call(f"{name} signs {size}", "reduce_rows", (name, x))
        yield Call(f"average {size}", "average_rows", (x, np.arange(1, rows + 1)))
        for exclusive, reverse in ((False, False), (True, True), (False, True)):
            options = {"exclusive": exclusive, "reverse": reverse}
            name = f"cumsum {exclusive} {reverse} {size}"
            yield Call(name, "cumsum_rows", (x,), options)
        masked = x.copy()
        masked[0, 1:] = -np.inf
        yield Call(f"softmax {size}", "softmax_rows", (x,))
        yield Call(f"softmax masked {size}", "softmax_rows", (masked,))
        yield Call(f"softmax nothing {size}", "softmax_rows", (np.full_like(x, -np.inf),))
        yield Call(f"log_softmax {size}", "log_softmax_rows", (x,))
        w, b = drawn(7, 1, terms), drawn(8, 1, terms)
        groups = drawn(9, rows, terms)
        for gain, offset in ((None, None), (w, None), (w, b), (groups, groups)):
            given = f"{size} {'-' if gain is None else len(gain)} {offset is not None}"
            yield Call(f"layer_norm {given}", "layer_norm_rows", (x, gain, offset, 1e-5))
            yield Call(f"rms_norm {given}", "rms_norm_rows", (x, gain, 1e-6))


def scatter_calls():
    data, updates = drawn(10, 1500), drawn(11, 4000)
    where = np.random.default_rng(12).integers(0, 1500, 4000)
    yield Call("scatter", "scatter_add", (data, where, updates))
    yield Call("scatter to one", "scatter_add", (data[:1], where[:300] * 0, updates[:300]))
    x, given = drawn(13, 2, 3, 50), [drawn(seed, 3) for seed in (14, 15, 16)]
    spread = np.abs(drawn(17, 3))
    yield Call("batch_norm", "batch_norm", (x, *given, spread, 1e-5))
    yield Call("batch_norm nan", "batch_norm", (x, *given, -spread - 1, 1e-5))


def product_calls():
    masked = np.ones((3, 3), F)
    masked[1, 1] = -np.inf
    large = np.full((3, 3), 3e38, F)
    for precision in PRECISIONS.values():
        for axis in ("column", "k"):
            call = partial(Call, method="products")
            for batch, rows, terms, columns in ((1, 5, 33, 4), (2, 130, 256, 80), (1, 1, 1, 1)):
                a, b = drawn(3, batch, rows, terms), drawn(4, batch, terms, columns)
                name = f"{precision.name} {axis} {rows} x {terms} x {columns}"
                yield call(name, arguments=(a, b, precision, axis))
            given = (masked[None], np.ones((1, 3, 3), F), precision, axis)
            yield call(f"{precision.name} {axis} masked", arguments=given)
            given = (large[None], large[None], precision, axis)
            yield call(f"{precision.name} {axis} too large", arguments=given)
        a, b = drawn(18, 1, 40_000, low=-9, high=2), drawn(19, 40_000, 2, low=-9, high=2)
        yield Call(f"{precision.name} long", "product", (a, b, precision, "column"))


CALLS = {call.name: call for call in calls()}
DAILY = (
    "admit",
    "exp middle",
    "gelu middle",
    "sin wide",
    "sqrt above",
    "div above",
    "mul halfway",
    "fmod above",
    "l2 9 x 300",
    "mean 3 x 1",
    "cumsum True True 16 x 64",
    "softmax masked 9 x 300",
    "layer_norm 5 x 7 5 True",
    "scatter",
    "x20 column 5 x 33 x 4",
    "x20 k 130 x 256 x 80",
)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    compiler = Compiler(str(tmp_path_factory.mktemp("triton")), dict(os.environ))
    yield compiler
    compiler.close()


@pytest.mark.parametrize("name", DAILY)
def test_compiled_for_an_h100_or_h200_a_kernel_gives_the_reference_s_bits(name, compiler):
    card, call = EmulatedCard(compiler, 90), CALLS[name]
    expected = call.outcome(REFERENCE)
    assert isinstance(expected[0], tuple), "an error says little about the code"
    assert call.outcome(CardKernels(card)) == expected
    assert card.launched


@pytest.mark.soak
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("name", CALLS)
def test_compiled_for_either_generation_every_kernel_gives_the_reference_s_bits(
    name, arch, compiler
):
    call = CALLS[name]
    assert call.outcome(CardKernels(EmulatedCard(compiler, arch))) == call.outcome(REFERENCE)


class OtherwiseRounded(EmulatedCard):
    """Whose compiler rounds to float32 towards zero."""

    def edited(self, ptx):
        return ptx.replace("cvt.rn.f32.f64", "cvt.rz.f32.f64")


@pytest.mark.parametrize("name", ["exp middle", "softmax masked 9 x 300"])
def test_another_rounding_in_the_code_is_seen(name, compiler):
    call = CALLS[name]
    assert call.outcome(CardKernels(OtherwiseRounded(compiler, 90))) != call.outcome(REFERENCE)


def cancelling():
    """Batch normalisation that leaves of each product what rounding to float32 took from it."""
    x, scale, mean = (drawn(seed, 2000, low=-3, high=3) for seed in (22, 23, 24))
    spread, nothing = np.abs(drawn(25, 2000)) + F(0.1), np.zeros(2000, F)
    given = x.reshape(1, 2000, 1)
    offset = -REFERENCE.batch_norm(given, scale, nothing, mean, spread, 1e-5).reshape(-1)
    return Call("cancelling", "batch_norm", (given, scale, offset, mean, spread, 1e-5))


class Fusing(EmulatedCard):
    """Whose compiler fuses products with sums; what it leaves to the assembler is not fused."""

    def edited(self, ptx):
        return re.sub(r"\b(add|sub|mul)\.f64", r"\1.rn.f64", ptx)


def test_products_fused_with_sums_are_seen(compiler):
    call, fused = cancelling(), {"enable_fp_fusion": True}
    expected = call.outcome(REFERENCE)
    assert call.outcome(CardKernels(EmulatedCard(compiler, 90))) == expected
    assert call.outcome(CardKernels(Fusing(compiler, 90, **fused))) != expected
    with pytest.raises(PtxError, match=r"unknown instructions: add\.f64"):  # not yet decided
        call.outcome(CardKernels(EmulatedCard(compiler, 90, **fused)))


def sums_of_wide_digits(kernels):
    """A product whose planes of digits lie 2^30 bytes apart, most of which nobody reads."""
    card, plane = kernels._card, (1 << 30) + 16
    a, b = drawn(20, 3, 40, low=-3, high=3), drawn(21, 40, 5, low=-3, high=3)
    precision = PRECISIONS["x20"]
    left, right = (torch.from_numpy(x)[None] for x in (a, b))
    right = products.prepare_batch(card, right, precision, "column", "digits")
    lying = products._Vectors(1, 3, 40, 40, 1)
    exponents = products._exponents(card, left, None, lying, precision)
    far = torch.empty(2 * plane + left.numel(), dtype=torch.int8)
    card.launch(
        products._QUANTISE["x20", False, False, True, "digits"],
        (1, 1),
        *(left, exponents, exponents, far, *lying.layout, plane),
    )
    out = card.empty(1, 3, 5)
    card.launch(
        products._PRODUCT["x20", False, False],
        (1, 1, 1),
        *(far, right.integers, exponents, right.exponents, out),
        torch.zeros(1, dtype=torch.int32),
        *(3, 5, 40, plane, right.integers[0].numel()),
    )
    return out[0].numpy(), REFERENCE.product(a, b, precision, "column")


@pytest.mark.soak
def test_digits_of_a_matrix_of_a_gigabyte_are_found(compiler):
    given, expected = sums_of_wide_digits(CardKernels(EmulatedCard(compiler, 90)))
    assert given.tobytes() == expected.tobytes()


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_vector_has_its_id_in_compiled_code(case, compiler):
    model, inputs = case.model().SerializeToString(), case.inputs()
    kernels = CardKernels(EmulatedCard(compiler, 90))
    given = {name: outcome(model, inputs, name, kernels) for name in case.precisions}
    assert given == EXPECTED["operators"][case.name]
