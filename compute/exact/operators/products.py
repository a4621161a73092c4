"""MatMul, Gemm and MatMulInteger: matrices found in tensors, each product by itself.

Part of *execute*. Where the right-hand operand is one matrix, all rows of the left-hand
tensor meet it at once: a row's scale is its own, so that is the same as one by one.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.exact.operators.node import (
    FLOAT,
    Array,
    Inputs,
    Node,
    Operator,
    Outputs,
    Product,
    dense,
    fail,
    float32,
    within_limit,
)
from shoal.compute.exact.spec import K_LIMIT

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.compute.exact.kernels import Kernels, Prepared


def _check_fit(a: Array, b: Array) -> None:
    """Matrices, at least two-dimensional, that can be multiplied."""
    if a.shape[-1] != b.shape[-2]:
        fail("shape_mismatch", f"{list(a.shape)} and {list(b.shape)} cannot be multiplied")
    if a.shape[-1] > K_LIMIT:
        fail("k_limit", f"a sum of {a.shape[-1]} products is over {K_LIMIT}")


def _batches(a: Array, b: Array) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        fail("shape_mismatch", f"{list(a.shape)} and {list(b.shape)} cannot be multiplied")


def _matmul(
    a: Array,
    b: Array,
    whole: Callable[[Array, Array], Array],
    batch: Callable[[Array, Array], Array],
) -> Array:
    """The matmul of numpy, over one product of matrices and one of batches of them."""
    if not a.ndim or not b.ndim:
        fail("shape_mismatch", "a scalar is no matrix")
    vector_a, vector_b = a.ndim == 1, b.ndim == 1
    a = a[None, :] if vector_a else a
    b = b[:, None] if vector_b else b
    _check_fit(a, b)
    outer = _batches(a, b)
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    shape = within_limit([*outer, m, n])
    if math.prod(b.shape[:-2]) == 1:
        y = whole(dense(a).reshape(math.prod(outer) * m, k), b.reshape(k, n))
    else:
        count = math.prod(outer)
        y = batch(
            dense(np.broadcast_to(a, (*outer, m, k))).reshape(count, m, k),
            dense(np.broadcast_to(b, (*outer, k, n))).reshape(count, k, n),
        )
    y = y.reshape(shape)
    y = y[..., 0] if vector_b else y
    return y[..., 0, :] if vector_a and not vector_b else y[..., 0] if vector_a else y


def matmul(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """MatMul of floats by the exact product; of integers, modulo their size."""
    a, b = inputs
    if a.dtype != np.float32:
        return (_matmul(a, b, np.matmul, np.matmul),)
    how = node.product
    assert how is not None

    def whole(rows: Array, matrix: Array) -> Array:
        operand = how.prepared[0] if how.prepared else dense(matrix)
        return kernels.product(rows, operand, how.precision, how.axis)

    def batch(left: Array, right: Array) -> Array:
        if how.prepared and len(how.prepared) == len(left):
            return np.stack(
                [
                    kernels.product(matrix, operand, how.precision, how.axis)
                    for matrix, operand in zip(left, how.prepared, strict=True)
                ]
            )
        return kernels.products(left, right, how.precision, how.axis)

    return (_matmul(a, b, whole, batch),)


def _prepare_matmul(node: Node, b: Array, kernels: Kernels) -> tuple[Prepared, ...]:
    if b.dtype != np.float32 or not b.ndim or not b.size:
        return ()
    matrices = b[:, None] if b.ndim == 1 else b.reshape(-1, *b.shape[-2:])
    matrices = matrices[None] if b.ndim == 1 else matrices
    return _prepared(matrices, node.product, kernels)


def _prepared(matrices: Array, how: Product | None, kernels: Kernels) -> tuple[Prepared, ...]:
    assert how is not None
    return tuple(kernels.prepare(dense(m), how.precision, how.axis) for m in matrices)


def gemm(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """Gemm: the product, times alpha, plus beta times C, each rounded by itself."""
    a, b, c = (*inputs, None)[:3]
    how = node.product
    assert how is not None
    if a.ndim != 2 or b.ndim != 2:
        fail("shape_mismatch", "Gemm takes matrices")
    a = a.T if node.get("transA", 0) else a
    b = b.T if node.get("transB", 0) else b
    _check_fit(a, b)
    shape = within_limit([a.shape[0], b.shape[1]])
    operand = how.prepared[0] if how.prepared else dense(b)
    y = kernels.product(dense(a), operand, how.precision, how.axis)
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if alpha != 1:
        y = kernels.binary("mul", y, float32(alpha))
    if c is not None:
        try:
            np.broadcast_to(c, shape)
        except ValueError:
            fail("shape_mismatch", f"{list(c.shape)} cannot be added to {list(shape)}")
        if beta != 1:
            c = kernels.binary("mul", dense(c), float32(beta))
        y = kernels.binary("add", y, dense(c))
    return (y,)


def _prepare_gemm(node: Node, b: Array, kernels: Kernels) -> tuple[Prepared, ...]:
    if b.ndim != 2:
        return ()
    matrix = b.T if node.get("transB", 0) else b
    return _prepared(matrix[None], node.product, kernels)


def integer_matmul(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """MatMulInteger: both less their zero points, multiplied into int32."""
    a, b, a_zero, b_zero = (*inputs, None, None)[:4]
    a, b = a.astype(np.int32), b.astype(np.int32)
    try:
        if a_zero is not None:  # of everything, of each row, or laid out for the rows
            zero = a_zero.astype(np.int32)
            a = a - (zero[:, None] if zero.ndim == 1 and zero.size > 1 else zero)
        if b_zero is not None:  # of everything, or of each column
            b = b - b_zero.astype(np.int32)
    except ValueError:
        fail("shape_mismatch", "its zero points do not fit its matrices")

    def batch(left: Array, right: Array) -> Array:
        y = np.zeros((len(left), left.shape[1], right.shape[2]), np.int32)
        for i in range(len(left)):
            y[i] = kernels.integer_product(left[i], right[i])
        return y

    def whole(rows: Array, matrix: Array) -> Array:
        return kernels.integer_product(rows, dense(matrix))

    return (_matmul(a, b, whole, batch),)


_BYTES: Final = frozenset({"int8", "uint8"})

OPERATORS: Final[dict[str, Operator]] = {
    "Gemm": Operator(gemm, FLOAT, prepare=_prepare_gemm),
    "MatMul": Operator(
        matmul,
        FLOAT | frozenset({"int32", "int64", "uint32", "uint64"}),
        prepare=_prepare_matmul,
    ),
    "MatMulInteger": Operator(integer_matmul, _BYTES),
}
