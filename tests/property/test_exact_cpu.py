"""Three ways to the same bits: the reference, the CPU's kernels, products by int8 digits.

Whatever one of them refuses, the others refuse with the same code. Shapes are small,
and large enough for several tiles, K blocks and threads where that is the point.
"""

from __future__ import annotations

from typing import get_args

import exact_by_fractions as slow
import numpy as np
import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numba.core import event

from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.digits import DigitKernels
from shoal.compute.exact.kernels import BinaryName, ExactError, ReduceName, UnaryName
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import K_LIMIT, PRECISIONS, X8, X20

REFERENCE, CPU, ONE_THREAD, DIGITS = (
    ReferenceKernels(),
    CpuKernels(3),
    CpuKernels(1),
    DigitKernels(2),
)

precisions = st.sampled_from(list(PRECISIONS.values()))
axes = st.sampled_from(["column", "k"])
sizes = st.integers(0, 9)
seeds = st.integers(0, 2**32 - 1)
masked_floats = st.one_of(slow.floats(), slow.floats(-3, 6), st.just(np.float32(-np.inf)))


@pytest.fixture(scope="module", autouse=True)
def nothing_compiles_after_the_import():
    """A worker that locked itself in could not: every signature is there from the start."""
    with event.install_recorder("numba:compile") as recorder:
        yield
    assert not recorder.buffer


def outcome(kernels, method, *args, **kwargs):
    """The bits of the result, or the code of the error."""
    try:
        result = getattr(kernels, method)(*args, **kwargs)
    except ExactError as error:
        return error.code
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    return result.shape, slow.bits_of(result)


def assert_equal(method, *args, ways=(CPU, ONE_THREAD), **kwargs):
    expected = outcome(REFERENCE, method, *args, **kwargs)
    for kernels in ways:
        assert outcome(kernels, method, *args, **kwargs) == expected


def arrays(shape, elements=None):
    return npst.arrays(
        np.float32,
        shape,
        elements=masked_floats if elements is None else elements,
        fill=st.nothing(),
    )


def wild(seed, shape, spread):
    """Normal numbers of both signs whose rows and columns differ by 2^spread, some zero."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    for axis in range(len(shape)):
        along = [1] * len(shape)
        along[axis] = shape[axis]
        x = x * 2.0 ** rng.integers(-spread, spread + 1, along)
        x = x * (rng.random(along) > 0.05)
    return REFERENCE.admit(np.clip(x, -1e38, 1e38).astype(np.float32))


# -- products -------------------------------------------------------------------------


@settings(max_examples=examples(100), deadline=None)
@given(st.data(), precisions, axes, sizes, sizes, sizes)
def test_products_of_any_values_agree(data, precision, axis, m, k, n):
    a = data.draw(slow.matrices(m, k))
    b = data.draw(slow.matrices(k, n))
    assert_equal("product", a, b, precision, axis, ways=(CPU, ONE_THREAD, DIGITS))


@given(seeds, precisions, axes, st.integers(1, 90), st.integers(1, 300), st.integers(1, 90),
       st.sampled_from([0, 3, 20]))  # fmt: skip
@settings(max_examples=examples(60), deadline=None)
def test_products_of_uneven_rows_and_columns_agree(seed, precision, axis, m, k, n, spread):
    a, b = wild(seed, (m, k), spread), wild(seed + 1, (k, n), spread)
    assert_equal("product", a, b, precision, axis, ways=(CPU, ONE_THREAD, DIGITS))
    prepared = CPU.prepare(b, precision, axis)
    assert prepared.shape == (k, n)
    assert outcome(CPU, "product", a, prepared, precision, axis) == outcome(
        REFERENCE, "product", a, b, precision, axis
    )


@pytest.mark.parametrize("axis", ["column", "k"])
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (2, 8192, 3),
        (3, 8193, 20),
        (40, 16385, 30),
        (300, 40, 1100),
        (1100, 33, 70),
        (7, 9, 5000),
    ],
)
def test_products_over_blocks_tiles_and_threads_agree(axis, m, k, n):
    a, b = wild(m, (m, k), 4), wild(n, (k, n), 4)
    assert_equal("product", a, b, X20, axis, ways=(CPU, ONE_THREAD, DIGITS))


@pytest.mark.parametrize("rows", [1, 9])
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=PRECISIONS)
def test_the_largest_sums_that_can_be_are_exact(rows, precision):
    """Every integer is Q, so a block of 8192 comes within 2 % of float64's 53 bits."""
    a = np.full((rows, 3 * 8192 - 1), precision.limit, np.float32)
    b = np.full((3 * 8192 - 1, 2), -precision.limit, np.float32)
    a[:, ::7] -= 1
    assert_equal("product", a, b, precision, "column", ways=(CPU, DIGITS))


@settings(max_examples=examples(100), deadline=None)
@given(st.data(), precisions, axes, sizes, sizes, sizes, sizes)
def test_a_batch_agrees_with_its_matrices(data, precision, axis, batch, m, k, n):
    a = wild(data.draw(seeds), (batch, m, k), 6)
    b = wild(data.draw(seeds), (batch, k, n), 6)
    expected = [
        slow.bits_of(REFERENCE.product(*pair, precision, axis))
        for pair in zip(a, b, strict=True)
    ]
    for kernels in (CPU, DIGITS):
        made = kernels.products(a, b, precision, axis)
        assert made.shape == (batch, m, n)
        assert [slow.bits_of(matrix) for matrix in made] == expected


@pytest.mark.parametrize("axis", ["column", "k"])
@pytest.mark.parametrize("shape", [(24, 70, 32, 70), (2, 20, 9000, 20), (3, 400, 400, 400)])
def test_a_batch_of_larger_matrices_agrees(axis, shape):
    batch, m, k, n = shape
    a, b = wild(1, (batch, m, k), 3), wild(2, (batch, k, n), 3)
    made = CPU.products(a, b, X20, axis)
    for index in range(batch):
        alone = ONE_THREAD.product(a[index], b[index], X20, axis)
        assert slow.bits_of(made[index]) == slow.bits_of(alone)


@settings(max_examples=examples(100), deadline=None)
@given(seeds, st.integers(0, 40), st.integers(0, 300), st.integers(0, 40))
def test_integer_products_agree(seed, m, k, n):
    rng = np.random.default_rng(seed)
    a = rng.integers(-512, 513, (m, k), dtype=np.int32)
    b = rng.integers(-512, 513, (k, n), dtype=np.int32)
    made = CPU.integer_product(a, b)
    assert made.dtype == np.int32
    assert np.array_equal(made, REFERENCE.integer_product(a, b))


@pytest.mark.parametrize("axis", ["column", "k"])
@pytest.mark.parametrize("side", ["a", "b"])
def test_infinity_in_a_product_is_refused(axis, side):
    a, b = np.ones((8, 5), np.float32), np.ones((5, 4), np.float32)
    {"a": a, "b": b}[side][2, 3] = -np.inf
    assert outcome(REFERENCE, "product", a, b, X8, axis) == "infinity"
    assert_equal("product", a, b, X8, axis, ways=(CPU, DIGITS))


@pytest.mark.parametrize("axis", ["column", "k"])
def test_infinity_in_a_product_without_columns_is_refused(axis):
    a, b = np.full((2, 3), -np.inf, np.float32), np.zeros((3, 0), np.float32)
    assert outcome(REFERENCE, "product", a, b, X8, axis) == "infinity"
    assert_equal("product", a, b, X8, axis, ways=(CPU, ONE_THREAD, DIGITS))


def test_too_many_terms_are_refused():
    a, b = np.zeros((1, K_LIMIT + 1), np.float32), np.zeros((K_LIMIT + 1, 1), np.float32)
    assert_equal("product", a, b, X20, "column", ways=(CPU, DIGITS))
    for method, args in (
        ("reduce_rows", ("sum", a)),
        ("softmax_rows", (a,)),
        ("layer_norm_rows", (a, None, None, 0.0)),
    ):
        assert outcome(CPU, method, *args) == "k_limit"


def test_read_only_operands_are_taken():
    a = np.frombuffer(np.ones(12, np.float32).tobytes(), np.float32).reshape(3, 4)
    assert_equal("product", a, a.reshape(4, 3), X20, "column", ways=(CPU, DIGITS))
    assert_equal("binary", "add", a, a[:1])
    assert_equal("layer_norm_rows", a, a[:1], None, 1e-5)


# -- elementwise ----------------------------------------------------------------------


@given(st.sampled_from(get_args(UnaryName)), st.data())
@settings(max_examples=examples(300), deadline=None)
def test_functions_of_any_value_agree(name, data):
    elements = data.draw(st.sampled_from([masked_floats, slow.floats(-12, 6), slow.floats()]))
    assert_equal("unary", name, data.draw(arrays(st.integers(0, 40), elements)))


@pytest.mark.parametrize("name", get_args(UnaryName))
def test_functions_over_their_range_agree(name):
    rng = np.random.default_rng(5)
    x = np.concatenate(
        [rng.uniform(-limit, limit, 60_000) for limit in (0.6, 9.0, 88.0, 1.0e6)]
        + [np.linspace(-110, 88, 40_001), 2.0 ** rng.uniform(-126, 126, 20_000)]
    ).astype(np.float32)
    x = REFERENCE.admit(x)
    if name in {"log", "sqrt"}:
        x = np.abs(x)
    if name in {"log", "reciprocal"}:
        x = x[x != 0]
    if name == "exp":
        x = x[x < 88]
    if name in {"sin", "cos"}:
        x = x[np.abs(x) <= 2**20]
    if name in {"gelu_tanh", "gelu"}:
        x = x[np.abs(x) < 1e30]
    assert not isinstance(outcome(REFERENCE, "unary", name, x), str)
    assert_equal("unary", name, x)


SHAPES = npst.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4, min_side=0)


@given(st.sampled_from(get_args(BinaryName)), st.data(), SHAPES)
@settings(max_examples=examples(300), deadline=None)
def test_operations_on_pairs_broadcast_and_agree(name, data, shapes):
    x, y = (data.draw(arrays(shape)) for shape in shapes.input_shapes)
    assert_equal("binary", name, x, y)


@settings(max_examples=examples(100), deadline=None)
@given(st.data(), st.sampled_from([-3, -1, 0, 0.5, 1, 2, 3, 7, 40, 0.25]), st.booleans())
def test_powers_agree(data, exponent, repeated):
    x = data.draw(arrays(st.integers(1, 20), slow.floats(-6, 6)))
    y = np.full(1 if repeated else x.shape, exponent, np.float32)
    assert_equal("binary", "pow", x, y)


@pytest.mark.parametrize("name", get_args(BinaryName))
@pytest.mark.parametrize(
    ("x_shape", "y_shape"),
    [
        ((90_000,), (90_000,)),
        ((90_000,), (1,)),
        ((1,), (90_000,)),
        ((60, 1500), (1500,)),
        ((60, 1500), (60, 1)),
        ((4, 30, 700), (4, 1, 700)),
        ((4, 30, 1, 700), (30, 5, 700)),
        ((3000, 30, 1), (30, 1)),
    ],
)
def test_operations_on_large_pairs_agree(name, x_shape, y_shape):
    x, y = wild(1, x_shape, 1), wild(2, y_shape, 1)
    if name in {"div", "fmod"}:
        y = np.where(y == 0, np.float32(1.5), y)
    if name == "pow":
        x = np.abs(x) + np.float32(0.5)
    assert_equal("binary", name, x, y)


@settings(max_examples=examples(100), deadline=None)
@given(st.integers(-40, 40), st.integers(-40, 40))
def test_results_at_the_flushing_border_agree(step, other):
    """Where float32 rounds up to 2^-126, and 24 bits of unbounded exponent do not."""
    steps = np.arange(-20, 21, dtype=np.float64)
    x = (2.0**-63 * (1 + (step + steps) * 2.0**-24)).astype(np.float32)
    y = (2.0**-63 * (1 + (other - steps) * 2.0**-24)).astype(np.float32)
    assert_equal("binary", "mul", x, y)
    assert_equal("binary", "div", x * np.float32(2.0**-40), np.float32(2.0**-40) / y)


@settings(max_examples=examples(100), deadline=None)
@given(npst.arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)))
def test_admission_agrees(x):
    assert_equal("admit", x)


# -- rows -----------------------------------------------------------------------------

rows_and_columns = st.tuples(st.integers(0, 5), st.integers(0, 12))
rows_of_any_value = rows_and_columns.flatmap(
    lambda shape: st.one_of(
        arrays(shape), arrays(shape, slow.floats()), arrays(shape, slow.floats(-8, 8))
    )
)


@given(st.sampled_from(get_args(ReduceName)), rows_of_any_value)
@settings(max_examples=examples(300), deadline=None)
def test_reductions_agree(name, x):
    assert_equal("reduce_rows", name, x)


@settings(max_examples=examples(100), deadline=None)
@given(rows_of_any_value, st.data())
def test_averages_agree(x, data):
    counts = data.draw(npst.arrays(np.int64, x.shape[0], elements=st.integers(1, 9)))
    assert_equal("average_rows", x, counts)


@settings(max_examples=examples(100), deadline=None)
@given(rows_of_any_value, st.booleans(), st.booleans())
def test_running_sums_agree(x, exclusive, reverse):
    assert_equal("cumsum_rows", x, exclusive=exclusive, reverse=reverse)


@given(rows_of_any_value)
@settings(max_examples=examples(200), deadline=None)
def test_softmax_and_its_logarithm_agree(x):
    assert_equal("softmax_rows", x)
    assert_equal("log_softmax_rows", x)


@given(rows_of_any_value, st.data(), st.sampled_from([0.0, 1e-12, 1e-5, 1.0]))
@settings(max_examples=examples(200), deadline=None)
def test_norms_agree(x, data, eps):
    rows, n = x.shape
    groups = data.draw(st.sampled_from([g for g in range(1, rows + 1) if rows % g == 0] or [1]))
    w, b = (
        data.draw(st.one_of(st.none(), arrays((groups, n), slow.floats(-20, 20))))
        for _ in range(2)
    )
    assert_equal("layer_norm_rows", x, w, b, eps)
    assert_equal("rms_norm_rows", x, w, eps)


@settings(max_examples=examples(100), deadline=None)
@given(st.data(), st.integers(0, 3), st.integers(0, 3), st.integers(0, 5))
def test_batch_normalisation_agrees(data, samples, channels, size):
    x = data.draw(arrays((samples, channels, size)))
    scale, b, mean, var = (data.draw(arrays(channels, slow.floats(-30, 30))) for _ in range(4))
    assert_equal("batch_norm", x, scale, b, mean, np.abs(var), 1e-5)


@settings(max_examples=examples(100), deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(0, 20))
def test_scattered_sums_agree(data, size, count):
    values = data.draw(arrays(size)), data.draw(arrays(count))
    indices = data.draw(npst.arrays(np.int64, count, elements=st.integers(0, size - 1)))
    assert_equal("scatter_add", values[0], indices, values[1])


@pytest.mark.parametrize("shape", [(700, 300), (3, 70_000), (50_000, 2)])
def test_large_tensors_by_rows_agree(shape):
    x = wild(3, shape, 3)
    for name in get_args(ReduceName):
        assert_equal("reduce_rows", name, np.abs(x) if name == "log_sum" else x)
    w, b = wild(4, (1, shape[1]), 1), wild(5, (1, shape[1]), 1)
    assert_equal("softmax_rows", x)
    assert_equal("log_softmax_rows", x)
    assert_equal("layer_norm_rows", x, w, b, 1e-5)
    assert_equal("rms_norm_rows", x, w, 1e-5)
    assert_equal("cumsum_rows", x, exclusive=False, reverse=False)
    masked = np.where(np.arange(shape[1]) % 3 == 1, np.float32(-np.inf), x)
    assert_equal("softmax_rows", masked)
    assert_equal("binary", "add", x, np.where(masked == -np.inf, masked, np.float32(0)))
