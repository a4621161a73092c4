"""Reading an ONNX model: its parse, its walk, and the ports it has.

Used where a model is checked, converted or loaded, which is in a client's process
or a worker's, never in the daemon's: this module imports onnx.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from shoal.compute.errors import ProgramError
from shoal.compute.manifest import Port
from shoal.compute.tensor import DTYPE_OF_ONNX_CODE, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from onnx import SparseTensorProto, ValueInfoProto

    from shoal.crypto.content import Buffer

STANDARD_DOMAINS: Final = frozenset({"", "ai.onnx"})
"""Two spellings of the standard operators' domain."""

_WALK_DEPTH_LIMIT: Final = 64
"""The walk goes no deeper; what validity allows is less (`shoal.compute.program`)."""

Part: TypeAlias = "GraphProto | NodeProto | TensorProto | SparseTensorProto"


@dataclass(frozen=True, slots=True)
class Site:
    """One part of a model, and where it is.

    ``depth`` counts the subgraphs around it; ``node`` is the node that it is, or
    that holds it as an attribute.
    """

    part: Part
    depth: int
    node: NodeProto | None = None

    @property
    def node_name(self) -> str:
        """The node's name, or the first output's where it has none."""
        if self.node is None:
            return ""
        return printable(self.node.name or next(iter(self.node.output), ""))

    @property
    def operator(self) -> str:
        """The node's operator, or ""."""
        return "" if self.node is None else printable(self.node.op_type)

    def __str__(self) -> str:
        if self.node is not None:
            return f"node {self.node_name!r} ({self.operator or 'no operator'})"
        if isinstance(self.part, TensorProto):
            return f"initializer {printable(self.part.name)!r}"
        return "the graph"


def parse(model: Buffer) -> ModelProto:
    """Read an ONNX file's bytes.

    Raises:
        ProgramError: There are none, or they are not an ONNX model.
    """
    if not len(model):
        raise ProgramError(
            "the model has 0 bytes", code="empty_model", hint="was the file written to its end?"
        )
    try:
        return ModelProto.FromString(bytes(model))
    except DecodeError:
        raise ProgramError(
            f"this is not an ONNX model: its {len(model)} bytes do not parse as protobuf",
            code="malformed_model",
            hint="give a file that onnx.save or torch.onnx.export wrote, and wrote to its end",
        ) from None


def walk(graph: GraphProto) -> Iterator[Site]:
    """Every graph, node and tensor, each graph before what it holds.

    A reader that meets a graph too deep stops there: the walk goes on only when
    asked for the next site.
    """
    yield from _walk_graph(graph, depth=0, holder=None)


def _walk_graph(graph: GraphProto, depth: int, holder: NodeProto | None) -> Iterator[Site]:
    yield Site(graph, depth, holder)
    if depth >= _WALK_DEPTH_LIMIT:
        return
    yield from (Site(tensor, depth) for tensor in graph.initializer)
    yield from (Site(tensor, depth) for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield Site(node, depth, node)
        for attribute in node.attribute:
            yield from _walk_attribute(attribute, depth, node)


def _walk_attribute(attribute: AttributeProto, depth: int, node: NodeProto) -> Iterator[Site]:
    # What is filled counts, not what `type` claims: a reader may look at either.
    for field, value in attribute.ListFields():
        values: Iterable[object] = value if field.is_repeated else (value,)
        if field.name in {"g", "graphs"}:
            for graph in values:
                assert isinstance(graph, GraphProto)
                yield from _walk_graph(graph, depth + 1, node)
        elif field.name in {"t", "tensors", "sparse_tensor", "sparse_tensors"}:
            for tensor in values:
                yield Site(tensor, depth, node)  # type: ignore[arg-type]


def tensor_spec_of(tensor: TensorProto) -> TensorSpec:
    """The dtype and shape that a tensor in a model claims.

    Raises:
        ProgramError: They are not those of any tensor that travels.
    """
    dtype = DTYPE_OF_ONNX_CODE.get(tensor.data_type)
    name = dtype.name if dtype else onnx_dtype_name(tensor.data_type)
    return TensorSpec(name, tuple(tensor.dims))


def port_of(value: ValueInfoProto) -> Port:
    """The port that a graph's input or output is.

    Raises:
        ProgramError: It is not a tensor of a dtype that travels.
    """
    if not value.type.HasField("tensor_type"):
        kind = value.type.WhichOneof("value") or "value of no stated type"
        raise ProgramError(
            f"{printable(value.name)!r} is a {kind}, and programs take and give tensors only",
            code="not_a_tensor",
        )
    tensor = value.type.tensor_type
    dtype = DTYPE_OF_ONNX_CODE.get(tensor.elem_type)
    if dtype is None:
        raise ProgramError(
            f"{printable(value.name)!r} is a tensor of {onnx_dtype_name(tensor.elem_type)}, "
            "which does not travel",
            code="unsupported_dtype",
            hint="convert it to numbers inside or outside of the model",
        )
    shape: tuple[int | str, ...] | None = None
    if tensor.HasField("shape"):
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else dim.dim_param
            for dim in tensor.shape.dim
        )
    return Port(name=value.name, dtype=dtype.name, shape=shape)


def fed_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that a user feeds: those with no initializer of the same name."""
    given = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in given]


def onnx_dtype_name(code: int) -> str:
    """ONNX's name for a dtype number, known here or not."""
    names: dict[int, str] = {number: name for name, number in TensorProto.DataType.items()}
    return names.get(code, f"dtype {code}").lower()


def printable(text: str | bytes, limit: int = 80) -> str:
    """Text out of a stranger's model, cut and cleaned for a sentence.

    Protobuf gives bytes where a text is not UTF-8.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    return "".join(c if c.isprintable() else "?" for c in text[:limit])
