"""Sums equal those by fractions and do not know an order; rows do not know each other."""

from __future__ import annotations

import math
from fractions import Fraction

import exact_by_fractions as slow
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shoal.compute.exact.reference import ReferenceKernels

KERNELS = ReferenceKernels()
rows_of = st.integers(1, 6).flatmap(lambda n: slow.matrices(3, n, -60, 60))
EPS = float(np.float32(1e-5))


def fractions(row) -> list[Fraction]:
    return [Fraction(float(v)) for v in row]


@given(rows_of)
def test_sums_are_what_fractions_give(x):
    n = x.shape[1]
    for name, expected in (
        ("sum", slow.sum_fixed),
        ("mean", lambda row: Fraction(float(slow.sum_fixed(row)) / n)),
        ("l1", lambda row: slow.sum_fixed([abs(v) for v in row])),
        ("l2", lambda row: Fraction(math.sqrt(slow.sum_fixed([v * v for v in row])))),
        ("sum_square", lambda row: slow.sum_fixed([v * v for v in row])),
    ):
        wanted = np.array([slow.round32(expected(fractions(row))) for row in x])
        assert slow.bits_of(KERNELS.reduce_rows(name, x)) == slow.bits_of(wanted), name


@given(rows_of, st.booleans(), st.booleans())
def test_a_running_sum_is_the_integers_of_the_whole_row(x, exclusive, reverse):
    got = KERNELS.cumsum_rows(x, exclusive=exclusive, reverse=reverse)
    for row, sums in zip(x, got, strict=True):
        values = fractions(row)[:: -1 if reverse else 1]
        largest = max(map(abs, values))
        e = math.frexp(float(largest))[1]
        q = [round(v * slow.TWO ** (40 - e)) for v in values]
        wanted = [
            slow.round32(Fraction(float(sum(q[: i + (not exclusive)]))) * slow.TWO ** (e - 40))
            for i in range(len(q))
        ]
        assert slow.bits_of(sums) == slow.bits_of(np.array(wanted[:: -1 if reverse else 1]))


@given(rows_of, st.data())
def test_no_permutation_of_a_row_changes_a_bit(x, data):
    order = np.array(data.draw(st.permutations(range(x.shape[1]))))
    back = np.argsort(order)
    moved = np.ascontiguousarray(x[:, order])
    for name in ("sum", "mean", "max", "min", "l1", "l2", "sum_square", "log_sum_exp"):
        assert slow.bits_of(KERNELS.reduce_rows(name, moved)) == slow.bits_of(
            KERNELS.reduce_rows(name, x)
        ), name
    for kernel in (
        KERNELS.softmax_rows,
        KERNELS.log_softmax_rows,
        lambda v: KERNELS.layer_norm_rows(v, None, None, EPS),
        lambda v: KERNELS.rms_norm_rows(v, None, EPS),
    ):
        assert slow.bits_of(kernel(moved)[:, back]) == slow.bits_of(kernel(x))


@given(rows_of)
def test_a_row_alone_gives_what_it_gives_in_a_batch(x):
    for kernel in (
        KERNELS.softmax_rows,
        lambda v: KERNELS.reduce_rows("mean", v),
        lambda v: KERNELS.layer_norm_rows(v, None, None, EPS),
    ):
        whole = kernel(x)
        for i in range(x.shape[0]):
            assert slow.bits_of(kernel(x[i : i + 1])) == slow.bits_of(whole[i])


@given(st.data())
def test_scatter_adds_in_no_order_and_leaves_the_rest_alone(data):
    own = data.draw(slow.matrices(1, 4, -60, 60))[0]
    updates = data.draw(slow.matrices(1, 6, -60, 60))[0]
    indices = np.array(data.draw(st.lists(st.integers(0, 3), min_size=6, max_size=6)))
    wanted = [
        slow.round32(slow.sum_fixed(fractions([v, *updates[indices == i]])))
        if i in indices
        else v
        for i, v in enumerate(own)
    ]
    order = np.array(data.draw(st.permutations(range(6))))
    assert slow.bits_of(KERNELS.scatter_add(own, indices, updates)) == slow.bits_of(
        np.array(wanted)
    )
    assert slow.bits_of(
        KERNELS.scatter_add(own, indices[order], updates[order])
    ) == slow.bits_of(np.array(wanted))


@given(st.data(), rows_of)
def test_a_mask_in_softmax_is_as_if_the_masked_were_not_there(data, x):
    mask = np.array(
        data.draw(st.lists(st.booleans(), min_size=x.shape[1], max_size=x.shape[1]))
    )
    if mask.all():
        mask[0] = False
    masked = np.where(mask, np.float32(-np.inf), x)
    got = KERNELS.softmax_rows(masked)
    assert slow.bits_of(got[:, ~mask]) == slow.bits_of(
        KERNELS.softmax_rows(np.ascontiguousarray(x[:, ~mask]))
    )
    assert not got[:, mask].any()
