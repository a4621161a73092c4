"""Products of the reference equal those by fractions, and depend on nothing they should not."""

from __future__ import annotations

import exact_by_fractions as slow
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import PRECISIONS

KERNELS = ReferenceKernels()
precisions = st.sampled_from(list(PRECISIONS.values()))
axes = st.sampled_from(["column", "k"])
sizes = st.integers(0, 4)


@given(st.data(), precisions, axes, sizes, sizes, sizes)
def test_a_product_is_what_fractions_give(data, precision, axis, m, k, n):
    a = data.draw(slow.matrices(m, k))
    b = (
        data.draw(slow.matrices(n, k)).T.copy()
        if axis == "column"
        else data.draw(slow.matrices(k, n))
    )
    try:
        expected = slow.product(a, b, precision, axis)
    except slow.TooLargeError:
        with pytest.raises(ExactError) as caught:
            KERNELS.product(a, b, precision, axis)
        assert caught.value.code == "infinity"
        return
    assert slow.bits_of(KERNELS.product(a, b, precision, axis)) == slow.bits_of(expected)


@given(st.data(), precisions, axes)
def test_a_prepared_operand_and_a_permuted_k_change_no_bit(data, precision, axis):
    a = data.draw(slow.matrices(3, 5, -40, 40))
    b = data.draw(slow.matrices(5, 4, -40, 40))
    whole = KERNELS.product(a, b, precision, axis)
    prepared = KERNELS.prepare(b, precision, axis)
    order = np.array(data.draw(st.permutations(range(5))))
    assert slow.bits_of(KERNELS.product(a, prepared, precision, axis)) == slow.bits_of(whole)
    assert slow.bits_of(
        KERNELS.product(a[:, order], b[order], precision, axis)
    ) == slow.bits_of(whole)


@given(st.data(), precisions)
def test_a_masked_token_changes_no_row_that_does_not_see_it(data, precision):
    p = data.draw(slow.matrices(3, 4, -20, 0))
    v = data.draw(slow.matrices(4, 3, -30, 30))
    other = v.copy()
    other[3] = data.draw(slow.matrices(1, 3, -30, 30))[0]
    p[:, 3] = 0
    assert slow.bits_of(KERNELS.product(p, v, precision, "k")) == slow.bits_of(
        KERNELS.product(p, other, precision, "k")
    )
    assert slow.bits_of(KERNELS.product(p[:, :3], v[:3], precision, "k")) == slow.bits_of(
        KERNELS.product(p, v, precision, "k")
    )


@given(st.data(), precisions)
def test_a_token_of_zeros_has_no_influence_under_axis_k(data, precision):
    a = data.draw(slow.matrices(2, 4, -30, 30))
    b = data.draw(slow.matrices(4, 3, -30, 30))
    b[1] = 0
    keep = [0, 2, 3]
    assert slow.bits_of(KERNELS.product(a, b, precision, "k")) == slow.bits_of(
        KERNELS.product(a[:, keep], b[keep], precision, "k")
    )
