"""Borders of the product: scales at powers of two and at Q, long K, what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shoal.compute.errors import ComputeError
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.reference.products import integer_sums, quantised, scale_exponents
from shoal.compute.exact.spec import K_BLOCK, K_LIMIT, PRECISIONS, X8, X16, X20

KERNELS = ReferenceKernels()


def f32(*values) -> np.ndarray:
    return np.array(values, np.float32)


@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=lambda p: p.name)
@pytest.mark.parametrize("t", [-126, -1, 0, 1, 20, 127])
def test_the_scale_changes_at_powers_of_two_and_at_q(precision, t):
    top = math.ldexp(1.0, t)
    unit = math.ldexp(1.0, t - precision.bits)  # of a vector with largest in [2^(t-1), 2^t)
    at_q = precision.limit * unit
    cases = [
        (top, t + 1),
        (math.nextafter(top, 0), t + 1),  # rounds to 2^b > Q
        (at_q, t),
        (at_q + 0.49 * unit, t),
        (at_q + 0.51 * unit, t + 1),
        # exactly between Q and Q + 1: Q is odd, so the tie rounds up, over Q
        (at_q + 0.5 * unit, t + 1),
        (top / 2, t),
    ]
    vectors = np.array([[-m] for m, _ in cases])
    exponents = scale_exponents(vectors, precision)
    assert exponents.tolist() == [e for _, e in cases]
    integers = quantised(vectors, exponents, precision)
    assert np.abs(integers).max() <= precision.limit


@pytest.mark.parametrize("terms", [K_BLOCK - 1, K_BLOCK, K_BLOCK + 1, 2 * K_BLOCK + 3])
@pytest.mark.parametrize("precision", PRECISIONS.values(), ids=lambda p: p.name)
def test_sums_of_the_largest_integers_are_those_of_int64(precision, terms):
    q = precision.limit
    drawn = np.random.default_rng(terms).integers(-q, q, (3, terms), endpoint=True)
    drawn[0] = q
    want = drawn @ drawn.T
    got = integer_sums(drawn.astype(np.float64), drawn.T.astype(np.float64))
    assert got.tolist() == want.tolist()


def test_a_product_of_integers_that_was_rounded_is_not_used():
    big = np.array([[2.0**30 + 1, 1.0]])  # its square needs 61 bits, so float64 rounds it
    with pytest.raises(ComputeError, match="without error") as raised:
        integer_sums(big, big.T)
    assert raised.value.code == "broken_blas"


def test_zero_rows_and_negative_zeros_have_scale_zero():
    assert scale_exponents(np.array([[0.0, -0.0], [1.0, 0.0]]), X20).tolist() == [0, 1]
    got = KERNELS.product(f32([0, -0.0], [1, 2]), f32([-0.0, 3], [0, 4]), X20, "column")
    assert got.tolist() == [[0, 0], [0, 11]]
    assert not np.signbit(got).any()


@pytest.mark.parametrize("axis", ["column", "k"])
def test_a_product_over_nothing_is_positive_zero(axis):
    got = KERNELS.product(np.zeros((2, 0), np.float32), np.zeros((0, 3), np.float32), X8, axis)
    assert got.shape == (2, 3)
    assert not got.view(np.uint32).any()
    empty = KERNELS.product(np.zeros((0, 2), np.float32), np.ones((2, 3), np.float32), X8, axis)
    assert empty.shape == (0, 3)


def test_channels_far_apart_keep_their_own_precision():
    b = f32([1e30, 3e-30], [-2e30, 5e-30])
    got = KERNELS.product(f32([1, 1]), b, X20, "column")
    np.testing.assert_allclose(got, [[-1e30, 8e-30]], rtol=3e-6)


@pytest.mark.parametrize("axis", ["column", "k"])
def test_z_beyond_2_to_the_53_is_rounded_once(axis):
    # Z = 2^54 + 2^30 + 1. To 24 bits that is just above a tie. A float64 drops the 1 (its
    # unit is 4 here), and rounding that again would go down to even.
    k = 2**16 + 2
    assert k > 8 * K_BLOCK
    a = np.full((1, k), 2.0**19, np.float32)
    b = np.full((k, 2), 2.0**19, np.float32)  # the second column: equal scales for axis k
    a[0, -2:] = b[-2:, 0] = 2.0**15, 1
    z = 2**54 + 2**30 + 1
    assert sum(int(x) * int(y) for x, y in zip(a[0], b[:, 0], strict=True)) == z
    assert int(np.float32(np.float64(z))) == 2**54
    assert int(KERNELS.product(a, b, X20, axis)[0, 0]) == 2**54 + 2**31


def test_small_results_are_flushed_after_rounding_and_large_ones_refused():
    tiny = f32([2.0**-63])
    assert KERNELS.product(tiny, tiny, X20, "column")[0, 0] == np.float32(2.0**-126)
    got = KERNELS.product(-tiny, tiny / 2, X20, "column")
    assert got[0, 0] == 0
    assert np.signbit(got[0, 0])
    huge = f32([2.0**64])
    with pytest.raises(ExactError) as caught:
        KERNELS.product(huge, huge, X20, "column")
    assert caught.value.code == "infinity"


def test_a_mask_in_a_product_is_refused():
    for a, b in ((-np.inf, 1), (1, -np.inf)):
        for axis in ("column", "k"):
            with pytest.raises(ExactError) as caught:
                KERNELS.product(f32([a]), f32([b]), X16, axis)
            assert caught.value.code == "infinity"


def test_more_terms_than_the_limit_are_refused_before_anything_is_read():
    a = np.broadcast_to(np.float32(1), (1, K_LIMIT + 1))
    b = np.broadcast_to(np.float32(1), (K_LIMIT + 1, 1))
    for call in (
        lambda: KERNELS.product(a, b, X8, "column"),
        lambda: KERNELS.prepare(b, X8, "k"),
        lambda: KERNELS.integer_product(a.astype(np.int32), b.astype(np.int32)),
    ):
        with pytest.raises(ExactError) as caught:
            call()
        assert caught.value.code == "k_limit"


def test_integer_products_wrap_into_32_bits():
    a = np.full((1, 40_000), 255, np.int32)
    got = KERNELS.integer_product(a, a.T)
    assert got.dtype == np.int32
    assert got[0, 0] == (40_000 * 255 * 255 + 2**31) % 2**32 - 2**31


def test_products_of_a_batch_are_the_products_of_its_matrices():
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, 2, 5)).astype(np.float32)
    b = rng.standard_normal((3, 5, 4)).astype(np.float32)
    got = KERNELS.products(a, b, X20, "k")
    for i in range(3):
        assert np.array_equal(got[i], KERNELS.product(a[i], b[i], X20, "k"))
