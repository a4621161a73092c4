"""Products of matrices, of floats and of integers.

Part of *execute*. Torch has no integer products on cards: they are computed in float64,
which is exact for bytes as long as a sum has fewer than 2³⁷ terms.
"""

from __future__ import annotations

from typing import Final

import torch

from shoal.compute.torch_graph.node import (
    FLOATS,
    HOST,
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    fail,
    given,
)


def _matmul(_: Node, inputs: Inputs, __: Run) -> Outputs:
    a, b = inputs
    if not a.ndim or not b.ndim:
        fail("shape_mismatch", "a scalar is no matrix")
    if a.dtype in FLOATS or a.device == HOST:
        return (torch.matmul(a, b),)
    if a.dtype in {torch.int64, torch.uint64}:
        fail("wrong_dtype", f"torch has no product of {a.dtype} on {a.device.type}")
    return (torch.matmul(a.double(), b.double()).to(torch.int64).to(a.dtype),)


def _gemm(node: Node, inputs: Inputs, _: Run) -> Outputs:
    a, b, c = given(inputs, 3)
    if a.ndim != 2 or b.ndim != 2:
        fail("shape_mismatch", "Gemm takes matrices")
    a = a.t() if node.get("transA", 0) else a
    b = b.t() if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    if a.dtype not in FLOATS:
        alpha, beta = int(alpha), int(beta)
    if c is None or not beta:
        y = torch.mm(a, b)
        return (y if alpha == 1 else y * alpha,)
    return (torch.addmm(c, a, b, beta=beta, alpha=alpha),)


def _einsum(node: Node, inputs: Inputs, _: Run) -> Outputs:
    return (torch.einsum(node.get("equation").replace(" ", ""), *inputs),)


def less_zero(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Integers less their zero point, as float64; one for all, or one for each of an axis."""
    wide = x.double()
    if zero is None:
        return wide
    if zero.numel() == 1 or zero.ndim > 1:
        return wide - (zero.double() if zero.ndim > 1 else zero.double().reshape(()))
    shape = [1] * x.ndim
    shape[axis] = -1
    return wide - zero.double().reshape(shape)


def _matmul_integer(_: Node, inputs: Inputs, __: Run) -> Outputs:
    a, b, a_zero, b_zero = given(inputs, 4)
    left = less_zero(a, a_zero, a.ndim - 2)
    right = less_zero(b, b_zero, b.ndim - 1)
    return (torch.matmul(left, right).to(torch.int64).to(torch.int32),)


def _det(_: Node, inputs: Inputs, __: Run) -> Outputs:
    return (torch.linalg.det(inputs[0]),)


OPERATORS: Final[dict[str, Operator]] = {
    "Det": Operator(_det, width=Width.WIDE),
    "Einsum": Operator(_einsum, width=Width.PRODUCT),
    "Gemm": Operator(_gemm, width=Width.PRODUCT),
    "MatMul": Operator(_matmul, width=Width.PRODUCT),
    "MatMulInteger": Operator(_matmul_integer),
}
