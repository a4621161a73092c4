"""A product's output by rows, so that a large one is judged by a few of them.

Part of *verify*. Rows of a product depend on rows of its left operand alone, and channels
of a convolution on its filters (SPEC.md, "Parts of a program"): so the same operator, given
parts of its inputs, gives a part of its output, bit for bit. The part always is a run of
elements that lie together in the output's blob.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.operators.windows import windows_of
from shoal.compute.exact.plan import placed, run_node

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from shoal.compute.exact.kernels import Kernels
    from shoal.compute.exact.operators.node import Array, Node

_MATMULS: Final = frozenset({"MatMul", "MatMulInteger"})
_CONVOLUTIONS: Final = frozenset({"Conv", "ConvInteger"})


@dataclass(frozen=True, slots=True)
class ProductShape:
    """A product's output as rows.

    Attributes:
        output: Its shape.
        rows: How many rows it has: of the last axis, or of a convolution its channels.
        row_elements: Numbers in a row.
        terms: How many products each number is the sum of.
    """

    output: tuple[int, ...]
    rows: int
    row_elements: int
    terms: int

    @property
    def multiply_adds(self) -> int:
        """What the whole product costs."""
        return self.rows * self.row_elements * self.terms


def shape_of_product(
    node: Node, shapes: Sequence[tuple[int, ...] | None]
) -> ProductShape | None:
    """How a node's output falls into rows.

    Args:
        node: Any node.
        shapes: Those of its inputs.

    Returns:
        None of a node that is no product of matrices, or whose inputs do not fit.
    """
    if len(shapes) < 2 or shapes[0] is None or shapes[1] is None:
        return None
    a, b = shapes[:2]
    try:
        if node.operator in _MATMULS:
            return _matmul_shape(a, b)
        if node.operator == "Gemm":
            return _matmul_shape(*_operands(node, a, b))
        if node.operator in _CONVOLUTIONS and len(a) == len(b) > 2:
            kernel = tuple(node.get("kernel_shape", b[2:]))
            out = windows_of(node, a[2:], kernel).out
            shape = (a[0], b[0], *out)
            return ProductShape(shape, a[0] * b[0], math.prod(out), math.prod(b[1:]))
    except (ExactError, ValueError):
        pass
    return None


def _matmul_shape(a: tuple[int, ...], b: tuple[int, ...]) -> ProductShape | None:
    if min(len(a), len(b)) < 2 or a[-1] != b[-2]:
        return None
    outer = np.broadcast_shapes(a[:-2], b[:-2])
    return ProductShape((*outer, a[-2], b[-1]), math.prod(outer) * a[-2], b[-1], terms=a[-1])


def _operands(
    node: Node, a: tuple[int, ...], b: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes of Gemm's operands as they are multiplied."""
    if len(a) != 2 or len(b) != 2:
        raise ValueError
    return (a[::-1] if node.get("transA", 0) else a), (b[::-1] if node.get("transB", 0) else b)


def rows_of_product(node: Node, inputs: Sequence[Any], rows: range, kernels: Kernels) -> Array:
    """Some rows of a product's output, one after another, (elements,).

    Args:
        node: Of which `shape_of_product` gives a shape.
        inputs: All of its inputs.
        rows: Which rows of that shape.
        kernels: Any backend.

    Raises:
        ExactError: These rows err, and so the product does.
    """
    parts = {"Gemm": _gemm_parts, **dict.fromkeys(_CONVOLUTIONS, _convolution_parts)}.get(
        node.operator, _matmul_parts
    )
    with placed(node):
        found = [
            run_node(part, given, kernels)[0].reshape(-1)
            for part, given in parts(node, inputs, rows)
        ]
    return np.concatenate(found)


def _matmul_parts(
    node: Node, inputs: Sequence[Any], rows: range
) -> Iterator[tuple[Node, list[Any]]]:
    """Rows of the left-hand operand, matrix by matrix: each is a product by itself."""
    a, b, a_zero, b_zero = (*inputs, None, None)[:4]
    outer = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    left = [a]
    if a_zero is not None:  # of everything, of each row, or laid out for the rows
        by_row = a_zero.ndim == 1 and a_zero.size > 1
        left.append(np.broadcast_to(a_zero[:, None] if by_row else a_zero, a.shape))
    right = [b] if b_zero is None else [b, np.broadcast_to(b_zero, b.shape)]
    for matrix, span in _runs(rows, a.shape[-2]):
        at = np.unravel_index(matrix, outer) if outer else ()
        a_part = [np.broadcast_to(x, (*outer, *x.shape[-2:]))[at][span] for x in left]
        b_part = [np.broadcast_to(x, (*outer, *x.shape[-2:]))[at] for x in right]
        given = [a_part[0], b_part[0]]
        if node.operator == "MatMulInteger":
            given += [*a_part[1:], *[None] * (2 - len(a_part)), *b_part[1:]]
        yield node, given


def _gemm_parts(
    node: Node, inputs: Sequence[Any], rows: range
) -> Iterator[tuple[Node, list[Any]]]:
    a, b, c = (*inputs, None)[:3]
    span = slice(rows.start, rows.stop)
    across, along = a.shape[::-1] if node.get("transA", 0) else a.shape
    del along
    columns = b.shape[0] if node.get("transB", 0) else b.shape[1]
    yield (
        node,
        [
            a[:, span] if node.get("transA", 0) else a[span],
            b,
            None if c is None else np.broadcast_to(c, (across, columns))[span],
        ],
    )


def _convolution_parts(
    node: Node, inputs: Sequence[Any], rows: range
) -> Iterator[tuple[Node, list[Any]]]:
    """Filters of one group over one image."""
    x, w, *more = inputs
    groups = node.get("group", 1)
    depth, width = w.shape[1], w.shape[0] // groups
    alone = replace(node, attributes={**node.attributes, "group": 1})
    for image, channels in _runs(rows, w.shape[0]):
        edges = {channels.start, channels.stop}
        edges.update(range(0, w.shape[0], width))
        inside = sorted(e for e in edges if channels.start <= e <= channels.stop)
        for first, stop in pairwise(inside):
            group = first // width
            part = x[image : image + 1, group * depth : (group + 1) * depth]
            yield alone, [part, w[first:stop], *(_of_filters(v, first, stop) for v in more)]


def _of_filters(values: Array | None, first: int, stop: int) -> Array | None:
    """A bias, or zero points, of some filters; what has one value for all stays."""
    if values is None or values.size == 1:
        return values
    return values.reshape(-1)[first:stop]


def _runs(rows: range, per_block: int) -> Iterator[tuple[int, slice]]:
    """Rows as pieces of blocks (a batch's matrices, images): the block, and rows in it."""
    at = rows.start
    while at < rows.stop:
        block, first = divmod(at, per_block)
        stop = min(per_block, first + rows.stop - at)
        yield block, slice(first, stop)
        at += stop - first
