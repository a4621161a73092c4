"""From the nodes of a graph to a plan that runs on any backend, and running it.

Part of *execute*. Making a plan quantises constant operands once, and computes once what
depends on constants alone. Running it holds a value no longer than until its last use.
What errs does so in its turn, a node of constants alone too, so that each backend names
the same first error: the first in the graph's order, also where it raises errors late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from onnx import ModelProto, numpy_helper

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.operators import OPERATORS
from shoal.compute.exact.operators.node import Node
from shoal.compute.exact.reading import read
from shoal.compute.graph import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.compute.exact.kernels import Kernels
    from shoal.compute.exact.operators.node import Array
    from shoal.compute.exact.spec import Precision
    from shoal.compute.manifest import ScaleAxis

Values: TypeAlias = Mapping[str, np.ndarray]
"""What is alive at some place of a run, by name."""


@dataclass(frozen=True, slots=True)
class Step:
    """One node to run, its place in the graph, and the values that nobody reads after it."""

    index: int
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
        node_count: Nodes of the graph, those that were computed already among them.
    """

    steps: tuple[Step, ...]
    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    constants: Mapping[str, Array]
    kernels: Kernels
    node_count: int

    def run(
        self,
        inputs: Mapping[str, Array],
        before_step: Callable[[], None] = lambda: None,
        reached: Callable[[int, Values], None] = lambda _, __: None,
    ) -> dict[str, Array]:
        """Run every step.

        Args:
            inputs: Arrays by input name.
            before_step: Called before each step; what it raises ends the run.
            reached: Told, before each step, its place in the graph and what is alive
                there; and the number of nodes at the end. Constants are not told.

        Returns:
            Arrays by output name; they may share memory with inputs and constants.

        Raises:
            ExactError: An input is not what was declared, or a node left the exact
                class: it names the node.
        """
        with settled(self.kernels):
            values = {
                name: admitted(name, inputs[name], dtype, "input", self.kernels)
                for name, dtype in self.inputs.items()
            }
            for step in self.steps:
                before_step()
                reached(step.index, values)
                arrays = [self._value(name, values) for name in step.node.inputs]
                results = run_node(step.node, arrays, self.kernels)
                values.update(zip(step.node.outputs, results, strict=False))
                del arrays, results
                for name in step.frees:
                    values.pop(name, None)
            reached(self.node_count, values)
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
        kernels: Any backend; it may raise what it meets later, see `Kernels.settle`.

    Raises:
        ExactError: With the node's name and operator, or those of an earlier one.
    """
    with placed(node.name, node.operator, kernels):
        return OPERATORS[node.operator].run(node, inputs, kernels)


@contextmanager
def placed(node: str, operator: str, kernels: Kernels) -> Iterator[None]:
    """Give the errors of a block their place in the graph, behind those met before it."""
    kernels.enter(node, operator)
    try:
        yield
    except ExactError as error:
        kernels.settle()
        raise error.at(node, operator) from None
    except (ValueError, IndexError, ArithmeticError):
        kernels.settle()
        # numpy's own words differ between its versions; a receipt's may not.
        raise ExactError(
            "the shapes of its inputs do not fit it, or each other",
            code="shape_mismatch",
            node=node,
            operator=operator,
        ) from None


@contextmanager
def settled(kernels: Kernels) -> Iterator[None]:
    """Raise what a block met at its end, at the latest; nothing of it is left for the next."""
    try:
        yield
        kernels.settle()
    finally:
        kernels.forget()


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
            or a constant is not of the exact class.
        ProgramError: The graph is not a valid one.
    """
    graph = read(model, precision, scale_axes)
    inputs = dict(graph.inputs)
    with settled(kernels):
        constants = {
            name: admitted(
                name, numpy_helper.to_array(tensor), graph.dtypes[name], "constant", kernels
            )
            for name, tensor in graph.initializers.items()
        }
        for name, array in weights.items():
            constants[name] = admitted(name, array, inputs.pop(name), "constant", kernels)
        kernels.settle()
        left = _folded(graph.nodes, constants, kernels, before_node)
    return Plan(
        steps=_steps(left, graph.outputs),
        inputs=inputs,
        outputs=graph.outputs,
        constants=_kept(constants, left.values(), graph.outputs),
        kernels=kernels,
        node_count=len(graph.nodes),
    )


# -- constants ------------------------------------------------------------------------------


def admitted(name: str, array: Array, dtype: str, what: str, kernels: Kernels) -> Array:
    """An input or constant as it enters: of its dtype, flushed, no NaN and no +inf.

    Args:
        name: Its name in the graph.
        array: Any strides.
        dtype: The one declared.
        what: "input" or "constant", which an error has in place of an operator.
        kernels: Any backend.

    Raises:
        ExactError: ``wrong_dtype``, ``nan`` or ``infinity``.
    """
    with placed(printable(name), what, kernels):
        if array.dtype.name != dtype:
            raise ExactError(
                f"the {what} {printable(name)!r} is {array.dtype.name}, and {dtype} is "
                "declared",
                code="wrong_dtype",
            )
        return kernels.admit(np.asarray(array, order="C")) if dtype == "float32" else array


def _folded(
    nodes: Iterable[Node],
    constants: dict[str, Array],
    kernels: Kernels,
    before_node: Callable[[], None],
) -> dict[int, Node]:
    """Compute what depends on constants alone, into them; gives the nodes that are left.

    What errs is left as it is: it errs when its turn comes in a run, and not before nodes
    that stand before it.
    """
    left: dict[int, Node] = {}
    for index, node in enumerate(nodes):
        left[index] = node
        row = OPERATORS[node.operator]
        before_node()
        with suppress(ExactError):
            if all(name in constants for name in node.inputs if name):
                arrays = [constants[name] if name else None for name in node.inputs]
                results = run_node(node, arrays, kernels)
                kernels.settle()
                constants.update(zip(node.outputs, results, strict=False))
                del left[index]
            elif row.prepare and node.product and node.inputs[1] in constants:
                with placed(node.name, node.operator, kernels):
                    prepared = row.prepare(node, constants[node.inputs[1]], kernels)
                    kernels.settle()
                left[index] = replace(node, product=replace(node.product, prepared=prepared))
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


def _steps(nodes: Mapping[int, Node], outputs: Iterable[str]) -> tuple[Step, ...]:
    """The nodes by their place, each with the values that nobody reads after it."""
    frees = last_uses(nodes.values(), outputs)
    return tuple(
        Step(index, node, names)
        for (index, node), names in zip(nodes.items(), frees, strict=True)
    )


def last_uses(nodes: Iterable[Node], outputs: Iterable[str]) -> list[tuple[str, ...]]:
    """For each node, the values that it is the last to read, or that nobody reads."""
    nodes = tuple(nodes)
    uses = Counter(name for node in nodes for name in set(node.inputs))
    uses.update(outputs)
    frees: list[tuple[str, ...]] = []
    for node in nodes:
        for name in set(node.inputs):
            uses[name] -= 1
        touched = dict.fromkeys((*node.inputs, *node.outputs))
        frees.append(tuple(name for name in touched if not uses[name]))
    return frees
