"""Rows: against float64, at their borders, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import K_LIMIT

KERNELS = ReferenceKernels()
INF = np.inf
EPS = float(np.float32(1e-5))
RNG = np.random.default_rng(5)
X = (RNG.standard_normal((6, 40)) * 3).astype(np.float32)
X64 = X.astype(np.float64)


def f32(*values) -> np.ndarray:
    return np.array(values, np.float32)


def close(got, wanted) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-7, atol=1e-9)


def soft(x) -> np.ndarray:
    t = np.exp(x - x.max(-1, keepdims=True))
    return t / t.sum(-1, keepdims=True)


def test_rows_are_what_float64_says():
    close(KERNELS.reduce_rows("sum", X), X64.sum(1))
    close(KERNELS.reduce_rows("mean", X), X64.mean(1))
    close(KERNELS.reduce_rows("l1", X), np.abs(X64).sum(1))
    close(KERNELS.reduce_rows("l2", X), np.sqrt((X64**2).sum(1)))
    close(KERNELS.reduce_rows("sum_square", X), (X64**2).sum(1))
    close(KERNELS.reduce_rows("log_sum", np.abs(X)), np.log(np.abs(X64).sum(1)))
    close(KERNELS.reduce_rows("log_sum_exp", X), np.log(np.exp(X64).sum(1)))
    close(KERNELS.cumsum_rows(X, exclusive=False, reverse=False), X64.cumsum(1))
    close(KERNELS.average_rows(X, np.arange(1, 7)), X64.sum(1) / np.arange(1, 7))
    close(KERNELS.softmax_rows(X), soft(X64))
    close(KERNELS.log_softmax_rows(X), np.log(soft(X64)))


def test_norms_are_what_float64_says_and_take_weights_by_group():
    w, b = X[:2] + 1, X[2:4]
    w64, b64 = (np.tile(v.astype(np.float64), (3, 1)) for v in (w, b))
    centred = X64 - X64.mean(1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(1, keepdims=True) + EPS)
    close(KERNELS.layer_norm_rows(X, w, b, EPS), normed * w64 + b64)
    close(KERNELS.layer_norm_rows(X, None, None, EPS), normed)
    rms = X64 / np.sqrt((X64**2).mean(1, keepdims=True) + EPS)
    close(KERNELS.rms_norm_rows(X, w, EPS), rms * w64)
    x = X.reshape(2, 3, 40)
    scale, offset, mean, var = X[:4, :3]
    s64, o64, m64, v64 = (
        v.astype(np.float64)[:, None] for v in (scale, offset, mean, np.abs(var))
    )
    wanted = (x.astype(np.float64) - m64) / np.sqrt(v64 + EPS) * s64 + o64
    close(KERNELS.batch_norm(x, scale, offset, mean, np.abs(var), EPS), wanted)


def test_the_largest_and_smallest_zero_do_not_depend_on_the_order():
    for row in (f32([0.0, -0.0]), f32([-0.0, 0.0])):
        assert not np.signbit(KERNELS.reduce_rows("max", row))[0]
        assert np.signbit(KERNELS.reduce_rows("min", row))[0]
    assert np.signbit(KERNELS.reduce_rows("max", f32([-0.0, -0.0, -1])))[0]
    assert not np.signbit(KERNELS.reduce_rows("sum", f32([-0.0, -0.0])))[0]


def test_a_sum_cancels_exactly_where_a_float_would_not():
    row = f32([2.0**24, 1, -(2.0**24), 1])
    assert KERNELS.reduce_rows("sum", row)[0] == 2


def test_a_masked_softmax_gives_zeros_and_a_row_of_masks_is_no_number():
    got = KERNELS.softmax_rows(f32([0, -INF, 0, -INF]))
    assert got.tolist() == [[0.5, 0, 0.5, 0]]
    with pytest.raises(ExactError) as caught:
        KERNELS.softmax_rows(f32([0, 0], [-INF, -INF]))
    assert caught.value.code == "nan"


@pytest.mark.parametrize(
    "call",
    [
        lambda x: KERNELS.reduce_rows("max", x),
        lambda x: KERNELS.reduce_rows("sum", x),
        lambda x: KERNELS.cumsum_rows(x, exclusive=False, reverse=False),
        lambda x: KERNELS.average_rows(x, np.array([1])),
        KERNELS.log_softmax_rows,
        lambda x: KERNELS.layer_norm_rows(x, None, None, EPS),
        lambda x: KERNELS.rms_norm_rows(x, None, EPS),
        lambda x: KERNELS.scatter_add(x[0], np.array([0]), f32(1)),
        lambda x: KERNELS.batch_norm(x[None], f32(1), f32(1), f32(1), f32(1), EPS),
    ],
)
def test_a_mask_anywhere_else_is_refused(call):
    with pytest.raises(ExactError) as caught:
        call(f32([1, -INF]))
    assert caught.value.code == "infinity"


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: KERNELS.reduce_rows("sum", f32([3e38, 3e38])), "infinity"),
        (lambda: KERNELS.reduce_rows("log_sum", f32([1, -1])), "infinity"),
        (lambda: KERNELS.reduce_rows("log_sum", f32([1, -2])), "nan"),
        (lambda: KERNELS.layer_norm_rows(f32([1, 1]), None, None, 0.0), "nan"),
        (lambda: KERNELS.rms_norm_rows(f32([0, 0]), None, 0.0), "nan"),
        (lambda: KERNELS.scatter_add(f32(3e38), np.array([0]), f32(3e38)), "infinity"),
    ],
)
def test_what_has_no_number_is_an_error_with_its_code(call, code):
    with pytest.raises(ExactError) as caught:
        call()
    assert caught.value.code == code


def test_rows_of_nothing():
    nothing = np.zeros((2, 0), np.float32)
    assert KERNELS.reduce_rows("sum", nothing).tolist() == [0, 0]
    assert KERNELS.softmax_rows(nothing).shape == (2, 0)
    assert KERNELS.log_softmax_rows(nothing).shape == (2, 0)
    assert KERNELS.layer_norm_rows(nothing, None, None, EPS).shape == (2, 0)
    assert KERNELS.cumsum_rows(nothing, exclusive=True, reverse=True).shape == (2, 0)
    for name in ("mean", "max", "min", "log_sum_exp"):
        with pytest.raises(ExactError) as caught:
            KERNELS.reduce_rows(name, nothing)
        assert caught.value.code == "nan"
        assert KERNELS.reduce_rows(name, np.zeros((0, 0), np.float32)).shape == (0,)
    assert KERNELS.scatter_add(f32(), np.zeros(0, np.int64), f32()).shape == (0,)


def test_more_terms_than_the_limit_are_refused():
    long = np.broadcast_to(np.float32(1), (1, K_LIMIT + 1))
    for call in (
        lambda: KERNELS.reduce_rows("sum", long),
        lambda: KERNELS.softmax_rows(long),
        lambda: KERNELS.layer_norm_rows(long, None, None, EPS),
        lambda: KERNELS.cumsum_rows(long, exclusive=False, reverse=False),
        lambda: KERNELS.scatter_add(f32(0), np.zeros(K_LIMIT, np.int64), long[0, 1:]),
    ):
        with pytest.raises(ExactError) as caught:
            call()
        assert caught.value.code == "k_limit"


def test_what_no_update_reaches_keeps_its_bits():
    got = KERNELS.scatter_add(f32(-0.0, -0.0), np.array([1]), f32(-0.0))
    assert np.signbit(got).tolist() == [True, False]
