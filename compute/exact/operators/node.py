"""What an operator is given: a node of the plan; and the rules that all of them share.

Part of *execute*. A `Node` is an ONNX node read once: attributes as Python values,
the dtypes of its results, and how its product is rounded where it has one. An
`Operator` is one row of the table that ``operators`` is: a function from a node and
its inputs to its outputs, which takes its float arithmetic from the kernels, and
does shapes, integers and data movement itself with numpy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, TypeAlias

import numpy as np

from shoal.compute.exact.kernels import ErrorCode, ExactError, Kernels, Prepared, ScaleAxis
from shoal.compute.exact.spec import Precision

Array: TypeAlias = np.ndarray
Inputs: TypeAlias = Sequence[Any]
"""The arrays of a node's inputs; None stands for an optional one that is not given."""
Outputs: TypeAlias = tuple[Array, ...]

ELEMENT_LIMIT: Final = 1 << 31
"""The most elements any tensor inside a program may have: 8 GiB of float32."""

FLOAT: Final = frozenset({"float32"})
SIGNED: Final = frozenset({"int8", "int16", "int32", "int64"})
UNSIGNED: Final = frozenset({"uint8", "uint16", "uint32", "uint64"})
INTEGER: Final = SIGNED | UNSIGNED
BOOL: Final = frozenset({"bool"})
NUMBER: Final = FLOAT | INTEGER
ANY: Final = NUMBER | BOOL
"""The dtypes of the exact class: float16, bfloat16 and float64 are not among them."""


@dataclass(frozen=True, slots=True)
class Product:
    """How the product of one node is rounded.

    Attributes:
        precision: That of the whole program.
        axis: The axis of the right-hand operand that carries its scales.
        prepared: The right-hand operand where it is constant, quantised once: one
            for each matrix of a batch or each group of a convolution.
    """

    precision: Precision
    axis: ScaleAxis
    prepared: tuple[Prepared, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a plan.

    Attributes:
        name: As errors and receipts name it.
        operator: The ONNX operator.
        opset: The version of the operators, where their meaning depends on it.
        attributes: Python values and arrays by attribute name.
        inputs: Names of values; "" where an optional one is not given.
        outputs: Likewise; an output that is not asked for has the name "" or is cut off.
        dtypes: The dtype of each output.
        product: Set where the operator is a product.
    """

    name: str
    operator: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dtypes: tuple[str, ...] = ()
    product: Product | None = None

    def get(self, attribute: str, default: Any = None) -> Any:
        """The value of an attribute, or ``default``."""
        return self.attributes.get(attribute, default)

    def wants(self, index: int) -> bool:
        """Whether an output of this number is asked for."""
        return len(self.outputs) > index and bool(self.outputs[index])


Run: TypeAlias = Callable[[Node, Inputs, Kernels], Outputs]


def _nothing_refused(_: Node, __: Sequence[str | None]) -> str | None:
    return None


@dataclass(frozen=True, slots=True)
class Operator:
    """One row of the table of operators.

    Attributes:
        run: Computes the outputs. It never writes into an input, and an output may
            share memory with one.
        dtypes: What the first input may be; the rest is as ONNX says.
        refuses: What of a node with inputs of these dtypes is not part of the exact
            class, such as ``the reduction 'mul'``, or None. Asked before anything runs.
        result_dtype: The dtype of the first output where ONNX's rules for the inputs
            do not give it.
        prepare: Quantises a constant right-hand operand. Where it is set, the
            operator is a product.
    """

    run: Run
    dtypes: frozenset[str] = ANY
    refuses: Callable[[Node, Sequence[str | None]], str | None] = _nothing_refused
    result_dtype: Callable[[Node, Sequence[str]], str] | None = None
    prepare: Callable[[Node, Array, Kernels], tuple[Prepared, ...]] | None = None


def fail(code: ErrorCode, message: str) -> NoReturn:
    """Refuse a node's inputs; whoever runs the node adds its name."""
    raise ExactError(message, code=code)


def within_limit(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a tensor about to be made, if it is not over the limit.

    Raises:
        ExactError: ``too_large``; ``shape_mismatch`` for a negative size.
    """
    sizes = tuple(int(size) for size in shape)
    if any(size < 0 for size in sizes):
        fail("shape_mismatch", f"a tensor of shape {list(sizes)} has a negative size")
    if math.prod(sizes) > ELEMENT_LIMIT:
        fail(
            "too_large",
            f"a tensor of shape {list(sizes)} has more than {ELEMENT_LIMIT} elements",
        )
    return sizes


def broadcast_shape(*arrays: Array) -> tuple[int, ...]:
    """The shape that arrays have together, by ONNX's (and numpy's) rule.

    Raises:
        ExactError: ``shape_mismatch`` or ``too_large``.
    """
    try:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError:
        shapes = " and ".join(str(list(array.shape)) for array in arrays)
        fail("shape_mismatch", f"the shapes {shapes} do not broadcast")
    return within_limit(shape)


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        ExactError: ``out_of_range``.
    """
    if not -rank <= axis < rank:
        fail("out_of_range", f"there is no axis {axis} in a tensor of {rank} dimensions")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Several axes counted from the front, each named once.

    Raises:
        ExactError: ``out_of_range`` or ``shape_mismatch``.
    """
    positions = tuple(axis_of(int(axis), rank) for axis in axes)
    if len(set(positions)) < len(positions):
        fail("shape_mismatch", f"the axes {list(map(int, axes))} name one axis twice")
    return positions


def integers_of(array: Array) -> list[int]:
    """The values of a small integer tensor, such as a shape or axes."""
    return [int(value) for value in array.reshape(-1)]


def dense(array: Array) -> Array:
    """The array in C order, as kernels take it; scalars stay scalars."""
    return np.asarray(array, order="C", like=array)


def as_array(value: Any) -> Array:
    """What numpy gives of arrays: a scalar becomes an array, and anything else stays."""
    return np.asarray(value) if isinstance(value, np.generic) else value


def finite(array: Array) -> Array:
    """The array, where no operator but a kernel would notice that it holds a mask's -inf.

    Raises:
        ExactError: ``infinity``.
    """
    if array.dtype == np.float32 and np.isneginf(array).any():
        fail("infinity", "one of its inputs holds -inf, which is only a mask elsewhere")
    return array


def float32(value: float) -> Array:
    """A float32 scalar of an attribute's value."""
    return np.asarray(value, np.float32)


def rows_of(array: Array, axes: Sequence[int]) -> tuple[Array, tuple[int, ...]]:
    """The array as rows over some axes, for the kernels that work on rows.

    Args:
        array: Any shape.
        axes: Positions counted from the front; their elements become one row, in
            ascending order of the axes.

    Returns:
        (rows, n), and the shape of the axes that are left.
    """
    kept = [axis for axis in range(array.ndim) if axis not in axes]
    left = tuple(array.shape[axis] for axis in kept)
    n = math.prod(array.shape[axis] for axis in axes)
    moved = array.transpose([*kept, *sorted(axes)])
    return dense(moved.reshape(math.prod(left), n)), left


def along(array: Array, axis: int, compute: Callable[[Array], Array]) -> Array:
    """Apply a kernel that maps rows to rows of the same length along one axis."""
    moved = np.moveaxis(array, axis, -1)
    rows = dense(moved.reshape(math.prod(moved.shape[:-1]), moved.shape[-1]))
    return np.moveaxis(compute(rows).reshape(moved.shape), -1, axis)
