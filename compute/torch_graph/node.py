"""What an operator is given: a node, its inputs as tensors, and the run it is part of.

Part of *execute*. A value is one torch tensor, which lies on the *device* or, where it is
part of a shape, on the *host*: sizes that are computed from sizes never leave it, so that a
card does not have to finish its queue at every Reshape (`shoal.compute.torch_graph.graph`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeAlias

import torch

from shoal.compute.errors import ProgramError
from shoal.compute.tensor import DTYPE_OF_ONNX_CODE

if TYPE_CHECKING:
    from shoal.compute.torch_graph.reading import Graph

Tensor: TypeAlias = torch.Tensor
Inputs: TypeAlias = Sequence[Any]
"""The tensors of a node's inputs; None stands for an optional one that is not given."""
Outputs: TypeAlias = tuple[Any, ...]

HOST: Final = torch.device("cpu")

HOST_LIMIT: Final = 64
"""Elements: what is larger is no shape, and lies on the device."""

ELEMENT_LIMIT: Final = 1 << 31
"""The most elements of a tensor whose size an input chooses: 8 GiB of float32."""

READ_LIMIT: Final = 1 << 16
"""Elements of an input that is read as Python numbers, each some 40 bytes of the host's memory,
which nothing but the machine bounds for a card's worker."""

AXIS_LIMIT: Final = 1 << 24
"""Elements along one axis for which indices or weights are found on the host, likewise."""

FLOATS: Final = frozenset({torch.float32, torch.float64, torch.float16, torch.bfloat16})
WIDE_UNSIGNED: Final = frozenset({torch.uint16, torch.uint32, torch.uint64})
"""Dtypes that torch stores and hardly computes with."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a graph.

    Attributes:
        name: As errors have it.
        operator: The ONNX operator.
        opset: The version of the operators.
        attributes: Python values, and arrays for tensors, by name.
        inputs: Names of values; "" where an optional one is not given.
        outputs: Likewise.
        bodies: Subgraphs, by attribute name.
    """

    name: str
    operator: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bodies: Mapping[str, Graph] = field(default_factory=dict)

    def get(self, attribute: str, default: Any = None) -> Any:
        """The value of an attribute, or ``default``."""
        return self.attributes.get(attribute, default)

    def wants(self, index: int) -> bool:
        """Whether an output of this number is asked for."""
        return len(self.outputs) > index and bool(self.outputs[index])


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something that must have been true on the device, to be looked at when a run ends."""

    node: Node
    code: str
    message: str
    held: Tensor


@dataclass(slots=True)
class Run:
    """One run of a graph.

    Attributes:
        device: Where its tensors lie.
        low: Whether it is of the class ``low``: products in bfloat16.
        before_node: Called before each node; what it raises ends the run.
        lazy: Look at no value before the end, not even on the host: a graph that is
            being compiled has none.
        doubts: What is to be looked at when the device is done.
    """

    device: torch.device
    low: bool = False
    before_node: Callable[[], None] = lambda: None
    lazy: bool = False
    doubts: list[Doubt] = field(default_factory=list)

    def require(self, node: Node, held: Tensor, code: str, message: str) -> None:
        """Refuse the node's inputs unless a one-element bool tensor is true.

        On a card that is found out at the end of the run: looking at once would make the
        host wait, and an index out of range would take the whole device down.

        Raises:
            ProgramError: At once, where the tensor lies on the host.
        """
        if held.device == HOST and not self.lazy:
            if not held.item():
                fail(code, message)
        else:
            self.doubts.append(Doubt(node, code, message, held))

    def home(self, dtype: torch.dtype, elements: int) -> torch.device:
        """Where a new tensor belongs: the host, if it is as small as a shape."""
        return HOST if dtype not in FLOATS and elements <= HOST_LIMIT else self.device


class Width(Enum):
    """In what the class ``low`` computes an operator on float32 tensors."""

    ANY = auto()
    """As they come; float32, where they come as both."""

    PRODUCT = auto()
    """bfloat16, added up in float32 by the hardware."""

    WIDE = auto()
    """float32: sums, means, norms, and functions that grow fast."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One row of the table of operators.

    Attributes:
        run: Computes the outputs. It never writes into an input.
        host: Inputs, by number, that it reads as Python numbers: shapes, axes, counts.
        width: What the class ``low`` makes of it.
        shape_only: It asks its inputs for their shapes alone, so these stay where they are.
        refuses: What of a node is not implemented, such as ``antialias=1``, or None.
            Asked before anything runs.
    """

    run: Callable[[Node, Inputs, Run], Outputs]
    host: frozenset[int] = frozenset()
    width: Width = Width.ANY
    shape_only: bool = False
    refuses: Callable[[Node], str | None] = lambda _: None


def fail(code: str, message: str) -> NoReturn:
    """Refuse a node's inputs; whoever runs the node adds its name."""
    raise ProgramError(message, code=code)


_TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = {
    name: getattr(torch, name)
    for name in (
        "float32", "float64", "float16", "bfloat16", "bool", "int8", "int16", "int32",
        "int64", "uint8", "uint16", "uint32", "uint64",
    )
}  # fmt: skip


def dtype_named(name: str) -> torch.dtype:
    """Torch's dtype for one that travels."""
    return _TORCH_DTYPES[name]


def dtype_of_code(code: int) -> torch.dtype:
    """Torch's dtype for ONNX's number.

    Raises:
        ProgramError: ``wrong_dtype``.
    """
    known = DTYPE_OF_ONNX_CODE.get(code)
    if known is None:
        fail("wrong_dtype", f"ONNX's dtype number {code} is none that programs may have")
    return _TORCH_DTYPES[known.name]


def given(inputs: Inputs, count: int) -> tuple[Any, ...]:
    """The inputs filled up with None to a number of them."""
    return (*inputs, *[None] * count)[:count]


def integers_of(tensor: Tensor) -> list[int]:
    """The elements of a tensor on the host."""
    return [int(value) for value in tensor.reshape(-1).tolist()]


def axis_of(axis: int, rank: int) -> int:
    """An axis counted from the front.

    Raises:
        ProgramError: ``out_of_range``.
    """
    if not -rank <= axis < rank:
        fail("out_of_range", f"there is no axis {axis} in a tensor of {rank} dimensions")
    return axis % rank


def axes_of(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    """Several axes counted from the front, each named once.

    Raises:
        ProgramError: ``out_of_range``.
    """
    counted = tuple(axis_of(axis, rank) for axis in axes)
    if len(set(counted)) != len(counted):
        fail("out_of_range", f"the axes {list(axes)} name one axis twice")
    return counted


def within_limit(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a tensor about to be made, if it is not over the limit.

    Raises:
        ProgramError: ``too_large``; ``shape_mismatch`` for a negative size.
    """
    sizes = tuple(int(size) for size in shape)
    if any(size < 0 for size in sizes):
        fail("shape_mismatch", f"a tensor of shape {list(sizes)} has a negative size")
    # An empty tensor's other sizes are bounded too: loops run over them.
    if math.prod(max(size, 1) for size in sizes) > ELEMENT_LIMIT:
        fail("too_large", f"a tensor of {list(sizes)} has more than {ELEMENT_LIMIT} elements")
    return sizes


def within_axis_limit(size: int) -> None:
    """Refuse to find something on the host for each element of an axis that is too long.

    Raises:
        ProgramError: ``too_large``.
    """
    if size > AXIS_LIMIT:
        fail("too_large", f"an axis of {size} elements is over {AXIS_LIMIT} for this operator")


def fitting(shape: Sequence[int], value: Tensor) -> Tensor:
    """A vector of channels, reshaped so that it broadcasts over (N, C, …)."""
    return value.reshape(-1, *[1] * (len(shape) - 2))
