"""From an ONNX graph to a plan that runs on any backend, and running it.

Part of *execute*. Making a plan refuses, by name and before anything runs, what is not
part of the exact class; it finds the dtype of every value, quantises constant operands
once, and computes once what depends on constants alone. Running it holds a value no
longer than until its last use. Every node runs, in the graph's order, so that each
backend meets the same first error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
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
    from collections.abc import Iterable

    from shoal.compute.exact.kernels import Kernels
    from shoal.compute.exact.kernels import ScaleAxis as Axis
    from shoal.compute.exact.operators.node import Array
    from shoal.compute.exact.spec import Precision
    from shoal.compute.manifest import ScaleAxis

OPSETS: Final = range(18, 24)
"""Versions of the standard operators whose meaning the table of operators has."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node to run, and the values that nobody reads after it."""

    node: Node
    frees: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """A graph made ready for one backend.

    Attributes:
        steps: What depends on the inputs, in the graph's order.
        inputs: The dtype of each input, by name.
        outputs: Names of the outputs.
        constants: Values known already, by name.
        kernels: The backend that quantised the constants and runs the steps.
    """

    steps: tuple[Step, ...]
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    kernels: Kernels

    def run(
        self, inputs: Mapping[str, Array], before_step: Callable[[], None] = lambda: None
    ) -> dict[str, Array]:
        """Run every step.

        Args:
            inputs: Arrays by input name.
            before_step: Called before each step; what it raises ends the run.

        Returns:
            Arrays by output name; they may share memory with inputs and constants.

        Raises:
            ExactError: An input is not what was declared, or a node left the exact
                class: it names the node.
        """
        values = {
            name: _admitted(name, inputs[name], dtype, "input", self.kernels)
            for name, dtype in self.inputs.items()
        }
        for step in self.steps:
            before_step()
            arrays = [self._value(name, values) for name in step.node.inputs]
            results = run_node(step.node, arrays, self.kernels)
            values.update(zip(step.node.outputs, results, strict=False))
            del arrays, results
            for name in step.frees:
                values.pop(name, None)
        return {name: self._value(name, values) for name in self.outputs}

    def _value(self, name: str, values: Mapping[str, Array]) -> Any:
        if not name:
            return None
        return values[name] if name in values else self.constants[name]


def run_node(node: Node, inputs: Sequence[Any], kernels: Kernels) -> tuple[Array, ...]:
    """Compute one node, as a run does and as a dispute does.

    Args:
        node: A node of a plan.
        inputs: Its inputs; None for an optional one that is not given.
        kernels: Any backend.

    Raises:
        ExactError: With the node's name and operator.
    """
    with _placed(node):
        return OPERATORS[node.operator].run(node, inputs, kernels)


@contextmanager
def _placed(node: Node) -> Iterator[None]:
    """Give errors their place in the graph."""
    try:
        yield
    except ExactError as error:
        raise error.at(node.name, node.operator) from None
    except (ValueError, IndexError, ArithmeticError):
        # numpy's own words differ between its versions; a receipt's may not.
        raise ExactError(
            "the shapes of its inputs do not fit it, or each other",
            code="shape_mismatch",
            node=node.name,
            operator=node.operator,
        ) from None


def make_plan(
    model: ModelProto,
    weights: Mapping[str, Array],
    precision: Precision,
    scale_axes: Iterable[ScaleAxis],
    kernels: Kernels,
    before_node: Callable[[], None] = lambda: None,
) -> Plan:
    """Make a graph ready for a backend.

    Args:
        model: Checked by `shoal.compute.program`.
        weights: Arrays for those graph inputs that the program itself brings.
        precision: Of all its products.
        scale_axes: As the manifest has them; what is missing is derived.
        kernels: The backend.
        before_node: Called before each node that is computed here; what it raises
            ends the making.

    Raises:
        ExactError: ``unsupported_operator`` or ``wrong_dtype``, before anything runs;
            otherwise what went wrong in a part that depends on constants alone.
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

    constants = {
        tensor.name: _admitted(
            tensor.name, numpy_helper.to_array(tensor), given[tensor.name], "constant", kernels
        )
        for tensor in model.graph.initializer
    }
    for name, array in weights.items():
        constants[name] = _admitted(name, array, inputs.pop(name), "constant", kernels)
    nodes = _folded(nodes, constants, kernels, before_node)
    return Plan(
        steps=_steps(nodes, outputs),
        inputs=inputs,
        outputs=outputs,
        constants=_kept(constants, nodes, outputs),
        kernels=kernels,
    )


# -- what is refused before anything runs ---------------------------------------------------


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


# -- constants ------------------------------------------------------------------------------


def _admitted(name: str, array: Array, dtype: str, what: str, kernels: Kernels) -> Array:
    """An input or constant as it enters: of its dtype, flushed, no NaN and no +inf."""
    if array.dtype.name != dtype:
        raise ExactError(
            f"the {what} {printable(name)!r} is {array.dtype.name}, and {dtype} is declared",
            code="wrong_dtype",
            node=printable(name),
            operator=what,
        )
    if dtype != "float32":
        return array
    try:
        return kernels.admit(np.asarray(array, order="C"))
    except ExactError as error:
        raise error.at(printable(name), what) from None


def _folded(
    nodes: Iterable[Node],
    constants: dict[str, Array],
    kernels: Kernels,
    before_node: Callable[[], None],
) -> list[Node]:
    """Compute what depends on constants alone, into them; gives the nodes that are left."""
    left: list[Node] = []
    for node in nodes:
        row = OPERATORS[node.operator]
        before_node()
        if all(name in constants for name in node.inputs if name):
            arrays = [constants[name] if name else None for name in node.inputs]
            results = run_node(node, arrays, kernels)
            constants.update(zip(node.outputs, results, strict=False))
        elif row.prepare and node.product and node.inputs[1] in constants:
            with _placed(node):
                prepared = row.prepare(node, constants[node.inputs[1]], kernels)
            left.append(replace(node, product=replace(node.product, prepared=prepared)))
        else:
            left.append(node)
    return left


def _kept(
    constants: Mapping[str, Array], nodes: Iterable[Node], outputs: Iterable[str]
) -> dict[str, Array]:
    """The constants that a run reads; of one that is quantised, the shape is enough."""
    shape_only: set[str] = set()
    read: set[str] = set(outputs)
    for node in nodes:
        quantised = node.product is not None and (
            node.operator == "Conv" or len(node.product.prepared) == 1
        )
        if quantised and node.product and node.product.prepared:
            shape_only.add(node.inputs[1])
            read.update(node.inputs[:1], node.inputs[2:])
        else:
            read.update(node.inputs)
    kept = {name: array for name, array in constants.items() if name in read}
    for name in shape_only - read:
        kept[name] = np.broadcast_to(np.zeros((), np.float32), constants[name].shape)
    return kept


def _steps(nodes: Sequence[Node], outputs: Iterable[str]) -> tuple[Step, ...]:
    """The nodes, each with the values that it is the last to read or nobody reads."""
    uses = Counter(name for node in nodes for name in set(node.inputs))
    uses.update(outputs)
    steps: list[Step] = []
    for node in nodes:
        for name in set(node.inputs):
            uses[name] -= 1
        touched = dict.fromkeys((*node.inputs, *node.outputs))
        steps.append(Step(node, tuple(name for name in touched if not uses[name])))
    return tuple(steps)
