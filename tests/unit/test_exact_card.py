"""The card's kernels under Triton's interpreter give the bits of the reference.

The same source that is compiled for cards (`tests/unit/test_exact_card_targets.py`), run
on the CPU by numpy. What the interpreter does not show is the compilers' part: fused
operations, the integer matrix units, atomic additions; `tests/gpu` shows those on a card.
"""

from typing import get_args

import make
import numpy as np
import pytest
from cases import CASES
from exact_runs import outcome

from shoal.compute.exact.gpu import products
from shoal.compute.exact.gpu.card import Card
from shoal.compute.exact.gpu.kernels import CardKernels, variants
from shoal.compute.exact.kernels import BinaryName, ExactError, ReduceName, UnaryName
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import PRECISIONS

# As it divides by zero where a card would, before the kernel looks at the result.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")

EXPECTED = make.json.loads(make.EXPECTED.read_text())
REFERENCE = ReferenceKernels()
AWKWARD = np.array(
    [0.0, -0.0, 1, -1, 2, -2, 0.5, -0.5, 1.5, 2.5, -0.3, -0.7, 2.0**-126, 1e38, -1e38],
    np.float32,
)


@pytest.fixture(scope="module", params=["digits", "float64"])
def kernels(request):
    return CardKernels(Card("cpu"), request.param)


@pytest.fixture(scope="module")
def card_kernels():
    return CardKernels(Card("cpu"))


def drawn(rng, *shape):
    """Float32 of very different sizes, some of them zero, none subnormal."""
    x = rng.normal(size=shape) * 2.0 ** rng.integers(-60, 30, shape)
    x[rng.random(shape) < 0.1] = 0
    return x.astype(np.float32)


def given_by(call):
    """The bits of a result, or the error."""
    try:
        result = call()
        return result.shape, np.asarray(result, order="C").tobytes()
    except ExactError as error:  # a card's is raised where its elements are asked for
        return error.code, error.message


def assert_same(kernels, method, *arguments, **options):
    expected = given_by(lambda: getattr(REFERENCE, method)(*arguments, **options))
    assert given_by(lambda: getattr(kernels, method)(*arguments, **options)) == expected


@pytest.mark.parametrize("axis", ["column", "k"])
def test_more_matrices_than_one_launch_takes_are_multiplied_in_several(
    kernels, axis, monkeypatch
):
    monkeypatch.setattr(products, "_MATRICES", 2)
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(5, 3, 7)).astype("f4"), rng.normal(size=(5, 7, 9)).astype("f4")
    assert_same(kernels, "products", a, b, PRECISIONS["x16"], axis)


LONG = {"MatMul/a long sum"}
VECTORS = [
    pytest.param(case, id=case.name, marks=[pytest.mark.soak] * (case.name in LONG))
    for case in CASES
]


@pytest.mark.parametrize("case", VECTORS)
def test_every_vector_has_the_id_that_all_backends_give(case, card_kernels):
    model, inputs = case.model().SerializeToString(), case.inputs()
    given = {name: outcome(model, inputs, name, card_kernels) for name in case.precisions}
    assert given == EXPECTED["operators"][case.name]


@pytest.mark.parametrize("name", get_args(UnaryName))
def test_a_function_of_every_element_is_the_reference_s(name, card_kernels):
    rng = np.random.default_rng(1)
    x = np.concatenate([drawn(rng, 700), AWKWARD])
    for given in (x, np.clip(x, -80, 80), np.abs(np.clip(x, -80, 80)) + np.float32(0.01)):
        assert_same(card_kernels, "unary", name, given)
    assert_same(card_kernels, "unary", name, np.array([-np.inf, 1], np.float32))
    assert_same(card_kernels, "unary", name, np.zeros((0, 3), np.float32))


@pytest.mark.parametrize("name", get_args(BinaryName))
def test_an_operation_on_pairs_is_the_reference_s_however_it_is_broadcast(name, card_kernels):
    rng = np.random.default_rng(2)
    x = np.concatenate([drawn(rng, 585), AWKWARD]).reshape(6, 5, 20)
    y = np.where(np.roll(x, 7) == 0, np.float32(1.25), np.roll(x, 7))
    for left, right in (
        (x, y),
        (np.abs(np.clip(x, -9, 9)) + np.float32(0.1), np.round(np.clip(y, -5, 5)) + 1),
        (x, y[0, 0]),
        (x, y[:, :1, :1]),
        (x, y[:, :1, :]),
        (x[:1, :, :1], y[:, :1, :]),
        (x, y[0, 0, 0].reshape(())),
        (np.array([-np.inf, 1], np.float32), np.array([2, -np.inf], np.float32)),
    ):
        assert_same(card_kernels, "binary", name, left, right)


def test_what_enters_is_flushed_and_what_may_not_enter_is_refused(card_kernels):
    for values in ([1e-39, -1e-40, -np.inf, 0, -0.0, 3], [np.inf], [np.nan, np.inf]):
        assert_same(card_kernels, "admit", np.array(values, np.float32))


SMALL = ((1, 5, 33, 4), (1, 0, 3, 3), (1, 3, 0, 3))
LARGE = ((3, 17, 64, 70), (2, 1, 300, 3))
"""Of which `make test` looks at the precision with the most digits alone."""

PRODUCTS = [
    pytest.param(
        sizes,
        precision,
        id=f"{sizes}-{precision.name}",
        marks=[pytest.mark.soak] * (sizes in LARGE and precision.name != "x20"),
    )
    for sizes in (*SMALL, *LARGE)
    for precision in PRECISIONS.values()
]


@pytest.mark.parametrize("axis", ["column", "k"])
@pytest.mark.parametrize(("sizes", "precision"), PRODUCTS)
def test_products_are_the_reference_s(sizes, axis, precision, kernels):
    rng = np.random.default_rng(3)
    batch, rows, terms, columns = sizes
    a, b = drawn(rng, batch, rows, terms), drawn(rng, batch, terms, columns)
    if terms > 2 and rows:  # vectors of zeros have a rule of their own
        b[:, 2, :], b[:, :, 1], a[:, 0] = 0, 0, 0
    assert_same(kernels, "products", a, b, precision, axis)
    assert_same(kernels, "product", a[0], b[0], precision, axis)


@pytest.mark.parametrize("axis", ["column", "k"])
def test_a_product_with_a_mask_or_beyond_float32_is_the_same_error(axis, kernels):
    fine, masked = np.ones((3, 3), np.float32), np.ones((3, 3), np.float32)
    masked[1, 1] = -np.inf
    large = np.full((3, 3), 3e38, np.float32)
    for a, b in ((masked, fine), (fine, masked), (large, large)):
        assert_same(kernels, "product", a, b, PRECISIONS["x16"], axis)


def test_sums_longer_than_int32_holds_are_added_in_int64(card_kernels, monkeypatch):
    rng = np.random.default_rng(4)
    a, b = drawn(rng, 2, 200), drawn(rng, 200, 3)
    monkeypatch.setattr(products, "_CHUNK", 64)
    for precision in PRECISIONS.values():
        variant = products._digit_product(precision, False, True)
        monkeypatch.setitem(products._PRODUCT, (precision.name, False, True), variant)
        assert_same(card_kernels, "product", a, b, precision, "column")


def test_products_of_small_integers_wrap_around(card_kernels):
    rng = np.random.default_rng(5)
    a, b = (rng.integers(-512, 513, shape, np.int32) for shape in ((5, 700), (700, 4)))
    assert_same(card_kernels, "integer_product", a, b)


@pytest.mark.parametrize("name", get_args(ReduceName))
@pytest.mark.parametrize(
    "shape",
    [
        (5, 7),
        (9, 130),
        pytest.param((17, 300), marks=pytest.mark.soak),
        (2, 2500),
        (3, 0),
        (0, 3),
    ],
    ids=str,
)
def test_one_number_of_every_row_is_the_reference_s(shape, name, card_kernels):
    x = drawn(np.random.default_rng(6), *shape)
    for given in (x, np.abs(x), np.clip(x, -1, 1)):
        assert_same(card_kernels, "reduce_rows", name, given)
    if x.size:
        x[0, 0] = -np.inf
        assert_same(card_kernels, "reduce_rows", name, x)


@pytest.mark.parametrize("shape", [(5, 7), (9, 300), (2, 2500), (0, 4), (3, 0)], ids=str)
def test_what_is_made_of_whole_rows_is_the_reference_s(shape, card_kernels):
    rng = np.random.default_rng(7)
    x = (rng.normal(size=shape) * 8).astype(np.float32)
    x[rng.random(shape) < 0.1] = 0
    w, b = (drawn(rng, 1, shape[1]) for _ in range(2))
    groups = np.clip(drawn(rng, max(1, shape[0]), shape[1]), -1e6, 1e6)
    counts = rng.integers(1, 9, shape[0])
    assert_same(card_kernels, "average_rows", x, counts)
    for exclusive in (False, True):
        for reverse in (False, True):
            assert_same(card_kernels, "cumsum_rows", x, exclusive=exclusive, reverse=reverse)
    assert_same(card_kernels, "softmax_rows", x)
    assert_same(card_kernels, "log_softmax_rows", x)
    for gain, offset in ((None, None), (w, None), (w, b), (groups, groups)):
        assert_same(card_kernels, "layer_norm_rows", x, gain, offset, 1e-5)
        assert_same(card_kernels, "rms_norm_rows", x, gain, 1e-6)
    if x.size:
        x[0, :] = -np.inf
        for method in ("softmax_rows", "log_softmax_rows"):
            assert_same(card_kernels, method, x)
        x[0, 1:] = 1
        assert_same(card_kernels, "softmax_rows", x)


def test_batch_normalisation_and_scattered_sums_are_the_reference_s(card_kernels):
    rng = np.random.default_rng(8)
    x, statistics = drawn(rng, 2, 3, 50), [drawn(rng, 3) for _ in range(3)]
    spread = np.abs(drawn(rng, 3))
    assert_same(card_kernels, "batch_norm", x, *statistics, spread, 1e-5)
    assert_same(card_kernels, "batch_norm", x, *statistics, -spread - 1, 1e-5)
    data, updates = drawn(rng, 1500), drawn(rng, 4000)
    assert_same(card_kernels, "scatter_add", data, rng.integers(0, 1500, 4000), updates)
    assert_same(card_kernels, "scatter_add", data, np.zeros(0, np.int64), updates[:0])


def test_each_kernel_as_it_is_compiled_has_a_name_of_its_own():
    names = [variant.name for variant in variants()]
    assert len(set(names)) == len(names)
