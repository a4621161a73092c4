"""Which axis of B carries the scale in each product of a program: a pure look at its graph.

The axis is part of the program, so that a row of an output never depends on rows it
should not see. Where A comes from a Softmax (P·V of attention), the scale goes along
K: there each index of K is a token. Everywhere else it goes with B's columns: an
output channel of a constant weight, or a token of Q·Kᵀ. `compute.convert` writes the
axes into the manifest, named by the product's output; SPEC.md, "Axes", is the rule.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shoal.compute.manifest import ScaleAxis

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

PRODUCTS: Final = frozenset({"MatMul", "Gemm", "Conv"})
"""Operators whose sums of products are exact; each has one scale axis."""

MOVES: Final = frozenset(
    {
        "Cast",
        "Dropout",
        "Expand",
        "Flatten",
        "Identity",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators that only move their first input's values about; looked through for a Softmax."""


def scale_axes_of(graph: GraphProto) -> tuple[ScaleAxis, ...]:
    """The axis of each product in ``graph``, sorted by the product's output."""
    producers = {name: node for node in graph.node for name in node.output}
    return tuple(
        sorted(
            (
                ScaleAxis(node.output[0], "k" if _from_softmax(node, producers) else "column")
                for node in graph.node
                if node.op_type in PRODUCTS
            ),
            key=lambda axis: axis.product,
        )
    )


def _from_softmax(product: NodeProto, producers: dict[str, NodeProto]) -> bool:
    """Whether A is a Softmax, looking through moves, and through Where at both its values.

    Exporters guard a softmax whose row is masked whole by Where(IsNaN(p), 0, p).
    """
    if product.op_type != "MatMul":
        return False
    names = [product.input[0]]
    while names:
        node = producers.get(names.pop())
        match node.op_type if node is not None else None:
            case "Softmax":
                return True
            case "Where":
                names += node.input[1:]
            case moved if moved in MOVES:
                names.append(node.input[0])
    return False
