"""From an ONNX graph to nodes of the exact class, before anything runs.

Part of *execute*, and of *verify*: a plan is made of these nodes, and a dispute reads one
of them without the rest of the program's weights. What is not part of the class is refused
by name; the dtype of every value is found; a product gets its precision and its scale axis.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from shoal.compute.errors import ProgramError
from shoal.compute.exact.axes import PRODUCTS, scale_axes_of
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.operators import OPERATORS
from shoal.compute.exact.operators.dtypes import dtype_of_code, require, result_dtypes
from shoal.compute.exact.operators.node import ANY, Node, Product
from shoal.compute.graph import STANDARD_DOMAINS, fed_inputs, printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from shoal.compute.exact.kernels import ScaleAxis as Axis
    from shoal.compute.exact.spec import Precision
    from shoal.compute.manifest import ScaleAxis

OPSETS: Final = range(18, 24)
"""Versions of the standard operators whose meaning the table of operators has."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph as the exact class reads it.

    Attributes:
        nodes: Every node, in the graph's order.
        opset: The version of its operators.
        inputs: The dtype of each input by name, the program's weights among them.
        initializers: The constants that lie in the graph, by name.
        outputs: Names of the outputs.
        dtypes: The dtype of every value, by name.
    """

    nodes: tuple[Node, ...]
    opset: int
    inputs: Mapping[str, str]
    initializers: Mapping[str, TensorProto]
    outputs: tuple[str, ...]
    dtypes: Mapping[str, str]


def read(model: ModelProto, precision: Precision, scale_axes: Iterable[ScaleAxis]) -> Graph:
    """Read a graph and hold it against ONNX and the table of operators.

    Args:
        model: Checked by `shoal.compute.program`.
        precision: Of all its products.
        scale_axes: As the manifest has them; what is missing is derived.

    Raises:
        ExactError: ``unsupported_operator`` or ``wrong_dtype``.
        ProgramError: The graph is not a valid one.
    """
    opset = _opset(model)
    for node in model.graph.node:
        _check_operator(node)
    axes = _axes(model.graph, scale_axes)
    inputs = _declared_inputs(model)
    given = {tensor.name: _tensor_dtype(tensor) for tensor in model.graph.initializer}
    dtypes = {**inputs, **given}
    nodes = [_checked(node, opset, dtypes, model, precision, axes) for node in model.graph.node]
    outputs = tuple(value.name for value in model.graph.output)
    for name in outputs:
        if name not in dtypes:
            raise ProgramError(
                f"nothing gives the output {printable(name)!r}", code="invalid_model"
            )
    return Graph(
        nodes=tuple(nodes),
        opset=opset,
        inputs=inputs,
        initializers={tensor.name: tensor for tensor in model.graph.initializer},
        outputs=outputs,
        dtypes=dtypes,
    )


def _opset(model: ModelProto) -> int:
    versions = [o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS]
    if len(versions) != 1 or versions[0] not in OPSETS:
        raise ProgramError(
            f"the exact class has the operators of opset {OPSETS[0]} to {OPSETS[-1]}",
            code="unsupported_opset",
            hint="convert the model with shoal before submitting it",
        )
    return int(versions[0])


def _check_operator(node: NodeProto) -> None:
    if node.domain not in STANDARD_DOMAINS or node.op_type not in OPERATORS:
        domain = "" if node.domain in STANDARD_DOMAINS else f"{printable(node.domain)}."
        raise _refusal(
            node, f"the operator {domain}{printable(node.op_type)} is not in the exact class"
        )


def _name(node: NodeProto) -> str:
    return str(node.name or next(filter(None, node.output), ""))


def _axes(graph: GraphProto, written: Iterable[ScaleAxis]) -> dict[str, Axis]:
    """The scale axis of each product by its output: as written, otherwise derived."""
    if any(node.op_type in PRODUCTS and not node.output for node in graph.node):
        raise ProgramError("a product has no output", code="invalid_model")
    axes = {axis.product: axis.axis for axis in scale_axes_of(graph)}
    convolved = {node.output[0] for node in graph.node if node.op_type == "Conv"}
    for axis in written:
        if axis.product not in axes or (axis.axis == "k" and axis.product in convolved):
            raise ProgramError(
                f"the scale axis {axis.axis!r} that the manifest gives to "
                f"{printable(axis.product)!r} does not fit the graph",
                code="manifest_mismatch",
                hint="convert the model again with this version of shoal",
            )
        axes[axis.product] = axis.axis
    return axes


def _refusal(node: NodeProto, message: str) -> ExactError:
    return ExactError(
        message,
        code="unsupported_operator",
        hint="run it in the class fp32, or export the model without it",
        node=printable(_name(node)),
        operator=printable(node.op_type),
    )


def _declared_inputs(model: ModelProto) -> dict[str, str]:
    """The dtype of each graph input that is fed, weights among them."""
    inputs = {
        value.name: dtype_of_code(value.type.tensor_type.elem_type)
        for value in fed_inputs(model.graph)
    }
    for name, dtype in inputs.items():
        _require(dtype, name, "input")
    return inputs


def _tensor_dtype(tensor: TensorProto) -> str:
    dtype = dtype_of_code(tensor.data_type)
    _require(dtype, tensor.name, "constant")
    return dtype


def _require(dtype: str, name: str, what: str) -> None:
    try:
        require(ANY, dtype, f"the {what} {printable(name)!r}")
    except ExactError as error:
        raise error.at(printable(name), what) from None


def _checked(
    proto: NodeProto,
    opset: int,
    dtypes: dict[str, str],
    model: ModelProto,
    precision: Precision,
    axes: Mapping[str, Axis],
) -> Node:
    """Read one node, hold it against ONNX and the table, and note its results' dtypes."""
    name, operator = printable(_name(proto)), proto.op_type
    row = OPERATORS[operator]
    _check_valid(proto, model)
    for value in proto.input:
        if value and value not in dtypes:
            raise _invalid(proto, f"nothing before it gives {printable(value)!r}")
    node = Node(
        name=name,
        operator=operator,
        opset=opset,
        attributes={a.name: _attribute(a) for a in proto.attribute},
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
    )
    taken = [dtypes.get(value) for value in node.inputs]
    if refused := row.refuses(node, taken):
        raise _refusal(proto, f"{operator} with {refused} is not in the exact class")
    try:
        results = result_dtypes(node, row, taken)
    except ExactError as error:
        raise error.at(name, operator) from None
    for value, dtype in zip(node.outputs, results, strict=True):
        if value in dtypes:
            raise _invalid(proto, f"{printable(value)!r} is given twice")
        if value:
            dtypes[value] = dtype
    product = Product(precision, axes[proto.output[0]]) if operator in PRODUCTS else None
    return replace(node, dtypes=results, product=product)


def _check_valid(proto: NodeProto, model: ModelProto) -> None:
    context = onnx.checker.C.CheckerContext()
    context.ir_version = model.ir_version
    context.opset_imports = {opset.domain: opset.version for opset in model.opset_import}
    try:
        onnx.checker.check_node(proto, context)
    except onnx.checker.ValidationError as error:
        raise _invalid(proto, printable(str(error).strip().split("\n")[0], 200)) from None


def _invalid(proto: NodeProto, why: str) -> ProgramError:
    name, operator = printable(_name(proto)), printable(proto.op_type)
    return ProgramError(
        f"node {name!r} ({operator}) is not valid ONNX: {why}",
        code="invalid_model",
        node=name,
        operator=operator,
    )


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else value
