"""From an ONNX model to nodes with their operators, before anything runs.

Part of *execute*. What the table of operators lacks is refused by node and name; so is what
is not valid ONNX, by onnx's own checker and by ``dtypes``. Subgraphs are read the same way:
they see the names of the graph around them.
"""

from __future__ import annotations

from collections import ChainMap, Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from shoal.compute.errors import ProgramError
from shoal.compute.graph import STANDARD_DOMAINS, printable
from shoal.compute.torch_graph.dtypes import (
    TYPE_OF_CODE,
    DtypeError,
    result_types,
    type_of_port,
)
from shoal.compute.torch_graph.node import Node, Operator

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OPSETS: Final = range(18, 24)
"""Versions of the standard operators whose meaning the table of operators has."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node, its row in the table, and the values that nobody reads after it."""

    node: Node
    row: Operator
    frees: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph as it runs.

    Attributes:
        steps: In the graph's order.
        inputs: Names, the program's weights among them.
        outputs: Names.
        initializers: The constants that lie in the graph, by name.
        captured: Names of values around it that a subgraph reads.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initializers: Mapping[str, TensorProto]
    captured: frozenset[str] = field(default_factory=frozenset)


def read(model: ModelProto, operators: Mapping[str, Operator]) -> Graph:
    """Read a model and hold it against ONNX and the table of operators.

    Args:
        model: Checked by `shoal.compute.program`.
        operators: The table.

    Raises:
        ProgramError: ``unsupported_opset``, ``unsupported_operator`` with node and
            operator, or ``invalid_model``.
    """
    versions = [o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS]
    if len(versions) != 1 or versions[0] not in OPSETS:
        raise ProgramError(
            f"the executor torch has the operators of opset {OPSETS[0]} to {OPSETS[-1]}",
            code="unsupported_opset",
            hint="convert the model with shoal before submitting it",
        )
    return _Reader(model, operators, int(versions[0])).graph(model.graph, {})


@dataclass(frozen=True, slots=True)
class _Reader:
    model: ModelProto
    operators: Mapping[str, Operator]
    opset: int

    def graph(self, proto: GraphProto, around: Mapping[str, str | None]) -> Graph:
        """Read a graph; ``around`` has the types of the values around it, by name."""
        for node in proto.node:
            self._check_operator(node)
        initializers = {tensor.name: tensor for tensor in proto.initializer}
        inputs = tuple(v.name for v in proto.input if v.name not in initializers)
        known = {value.name: type_of_port(value) for value in proto.input}
        known |= {name: TYPE_OF_CODE.get(t.data_type) for name, t in initializers.items()}
        seen = ChainMap(known, dict(around))
        nodes, captured = [], set()
        for node in proto.node:
            read = self._node(node, seen)
            types = self._types(node, seen)
            nodes.append(read)
            used = {*filter(None, read.inputs)}
            used.update(name for body in read.bodies.values() for name in body.captured)
            captured |= used - known.keys()
            for name, found in zip(read.outputs, types, strict=True):
                if name in known:
                    raise _invalid(node, f"{printable(name)!r} is given twice")
                if name:
                    known[name] = found
        outputs = tuple(value.name for value in proto.output)
        for name in outputs:
            if name not in known and name not in around:
                raise ProgramError(
                    f"nothing gives the output {printable(name)!r}", code="invalid_model"
                )
        captured |= set(outputs) - known.keys()
        frees = last_uses(nodes, outputs)
        steps = tuple(
            Step(node, self.operators[node.operator], names)
            for node, names in zip(nodes, frees, strict=True)
        )
        return Graph(steps, inputs, outputs, initializers, frozenset(captured))

    def _check_operator(self, node: NodeProto) -> None:
        if node.domain in STANDARD_DOMAINS and node.op_type in self.operators:
            return
        domain = "" if node.domain in STANDARD_DOMAINS else f"{printable(node.domain)}."
        raise _refusal(
            node, f"the executor torch has no operator {domain}{printable(node.op_type)}"
        )

    def _types(self, proto: NodeProto, known: Mapping[str, str | None]) -> list[str | None]:
        try:
            return result_types(proto, self.opset, [known.get(name) for name in proto.input])
        except DtypeError as error:
            raise _invalid(proto, str(error)) from None

    def _node(self, proto: NodeProto, known: Mapping[str, str | None]) -> Node:
        context = onnx.checker.C.CheckerContext()
        context.ir_version = self.model.ir_version
        context.opset_imports = {o.domain: o.version for o in self.model.opset_import}
        if not any(a.type == AttributeProto.GRAPH for a in proto.attribute):
            # What a subgraph captures is unknown to the checker of one node.
            try:
                onnx.checker.check_node(proto, context)
            except onnx.checker.ValidationError as error:
                raise _invalid(proto, str(error).strip().split("\n")[0]) from None
        for name in proto.input:
            if name and name not in known:
                raise _invalid(proto, f"nothing before it gives {printable(name)!r}")
        node = Node(
            name=_name(proto),
            operator=proto.op_type,
            opset=self.opset,
            attributes={
                a.name: _attribute(a) for a in proto.attribute if a.type != AttributeProto.GRAPH
            },
            inputs=tuple(proto.input),
            outputs=tuple(proto.output),
            bodies={
                a.name: self.graph(a.g, known)
                for a in proto.attribute
                if a.type == AttributeProto.GRAPH
            },
        )
        if refused := self.operators[node.operator].refuses(node):
            raise _refusal(
                proto, f"the executor torch has no {node.operator} with {printable(refused)}"
            )
        return node


def last_uses(nodes: Sequence[Node], outputs: Sequence[str]) -> list[tuple[str, ...]]:
    """For each node, the values that it is the last to read, or that nobody reads."""
    reads = [
        {*node.inputs, *(name for body in node.bodies.values() for name in body.captured)}
        for node in nodes
    ]
    uses = Counter(name for names in reads for name in names)
    uses.update(outputs)
    frees: list[tuple[str, ...]] = []
    for node, names in zip(nodes, reads, strict=True):
        uses.subtract(names)
        touched = dict.fromkeys((*names, *node.outputs))
        frees.append(tuple(name for name in touched if not uses[name]))
    return frees


def _name(node: NodeProto) -> str:
    return printable(node.name or next(filter(None, node.output), ""))


def _refusal(node: NodeProto, why: str) -> ProgramError:
    operator = printable(node.op_type)
    return ProgramError(
        f"node {_name(node)!r} ({operator}): {why}",
        code="unsupported_operator",
        hint="another executor may have it: ask for the class fp32 on a CPU",
        node=_name(node),
        operator=operator,
    )


def _invalid(node: NodeProto, why: str) -> ProgramError:
    operator = printable(node.op_type)
    return ProgramError(
        f"node {_name(node)!r} ({operator}) is not valid ONNX: {printable(why, 200)}",
        code="invalid_model",
        node=_name(node),
        operator=operator,
    )


def _attribute(attribute: AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if attribute.type == AttributeProto.STRINGS:
        return [each.decode("utf-8", "replace") for each in value]
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value
