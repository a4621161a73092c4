"""A graph made ready for a device, and running it there.

Part of *execute*. Making a plan places constants on the device once, and computes once what
depends on constants alone. Running it holds a value no longer than until its last use.

Where a value lies: on the device, unless it is as small as a shape. A node whose inputs all
lie on the host is computed there, so that arithmetic on sizes costs the device nothing; a
node with anything on the device has everything brought there. What an operator reads as
Python numbers (`Operator.host`) is brought to the host, which waits only where these numbers
depend on data.

The class ``low`` carries float32 values as bfloat16 where a product gave them, and casts by
`Operator.width`; outputs get the dtype that is declared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import torch
from onnx import TensorProto, numpy_helper

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.torch_graph.arrays import to_tensor
from shoal.compute.torch_graph.control import CONTROL, run_control
from shoal.compute.torch_graph.errors import FAILURES, translated
from shoal.compute.torch_graph.node import (
    FLOATS,
    HOST,
    HOST_LIMIT,
    READ_LIMIT,
    Node,
    Run,
    Tensor,
    Width,
    fail,
    within_limit,
)
from shoal.compute.torch_graph.reading import Graph, Step, last_uses

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy as np

_CARRIED: Final = frozenset({torch.float32, torch.bfloat16})
"""The dtypes between which the class ``low`` casts."""


@dataclass(slots=True)
class Plan:
    """A graph made ready.

    Attributes:
        steps: What depends on the inputs, in the graph's order.
        inputs: Names.
        outputs: Names.
        constants: Values that are known already, by name, where they belong.
        bodies: The plans of subgraphs, by their identity.
        copies: Constants as some node needed them: elsewhere, or of another dtype.
    """

    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, Tensor]
    bodies: dict[int, Plan]
    copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(default_factory=dict)

    def run(self, inputs: Mapping[str, Tensor], run: Run) -> list[Tensor]:
        """Run every step.

        Args:
            inputs: Tensors by input name, placed by `placed_input`.
            run: The device and the class, the plan's own.

        Returns:
            The outputs in their order; `settle` says whether they hold.

        Raises:
            ProgramError: An operator refused its inputs, by node.
            ComputeError: ``memory_limit`` or ``device_lost``, by node.
        """
        return _walked(self, _Scope(dict(inputs), self, None), run)


@dataclass(slots=True)
class _Scope:
    """The values of one graph while it runs, and the scope around it."""

    values: dict[str, Tensor]
    plan: Plan
    around: _Scope | None

    def find(self, name: str) -> tuple[Tensor, Plan | None]:
        """A value, and the plan it is a constant of, if it is one."""
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name], None
            if name in scope.plan.constants:
                return scope.plan.constants[name], scope.plan
            scope = scope.around
        raise KeyError(name)


def _walked(plan: Plan, scope: _Scope, run: Run) -> list[Tensor]:
    for step in plan.steps:
        run.before_node()
        results = _computed(step, scope, run)
        scope.values.update(zip(step.node.outputs, results, strict=False))
        del results
        for name in step.frees:
            scope.values.pop(name, None)
    return [scope.find(name)[0] for name in plan.outputs]


def _computed(step: Step, scope: _Scope, run: Run) -> Sequence[Tensor]:
    """Compute one node; what fails gets its place in the graph."""
    node = step.node
    try:
        arrays = _gathered(step, scope, run)
        if node.operator in CONTROL:
            return run_control(
                node,
                arrays,
                run,
                lambda body, values: _walked(
                    plan := scope.plan.bodies[id(body)], _Scope(dict(values), plan, scope), run
                ),
            )
        results = step.row.run(node, arrays, run)
        _check_results(node, results)
    except (ProgramError, ComputeError) as error:
        if not error.node and error.code != "terminated":
            error.node, error.operator = node.name, node.operator
            error.message = f"node {node.name!r} ({node.operator}): {error.message}"
        raise
    except FAILURES as error:
        raise translated(error, node) from None
    return [_settled_down(result, run) for result in results]


def _check_results(node: Node, results: Sequence[Tensor]) -> None:
    if any(node.outputs[len(results) :]):
        fail("invalid_model", f"it gives {len(results)} outputs, and more have names")
    for result in results:
        if not result.numel():  # loops may run over the sizes of what is empty
            within_limit(result.shape)


def _settled_down(result: Tensor, run: Run) -> Tensor:
    """A result of the host's, moved to the device if it is too large for a shape."""
    if result.device == HOST and run.device != HOST and result.numel() > HOST_LIMIT:
        return result.to(run.device)
    return result


def _gathered(step: Step, scope: _Scope, run: Run) -> list[Any]:
    """A node's inputs, where and as it takes them."""
    found = [scope.find(name) if name else (None, None) for name in step.node.inputs]
    stay = step.row.shape_only or step.node.operator in CONTROL
    data = [x for i, (x, _) in enumerate(found) if x is not None and i not in step.row.host]
    home = None if stay else (HOST if all(x.device == HOST for x in data) else run.device)
    dtype = _carried_dtype(step.row.width, data) if run.low and not stay else None
    arrays: list[Any] = []
    for i, (name, (x, constant)) in enumerate(zip(step.node.inputs, found, strict=True)):
        if x is None:
            arrays.append(None)
            continue
        if i in step.row.host:
            if x.numel() > READ_LIMIT:
                fail("too_large", f"input {i} has {x.numel()} elements, over {READ_LIMIT}")
            place, kind = HOST, x.dtype
        else:
            place = home or x.device
            kind = dtype if dtype is not None and x.dtype in _CARRIED else x.dtype
        if place == x.device and kind == x.dtype:
            arrays.append(x)
        elif constant is None:
            arrays.append(x.to(device=place, dtype=kind))
        else:
            key = (name, place, kind)
            if key not in constant.copies:
                constant.copies[key] = x.to(device=place, dtype=kind)
            arrays.append(constant.copies[key])
    return arrays


def _carried_dtype(width: Width, data: Sequence[Tensor]) -> torch.dtype | None:
    """What the class ``low`` makes of a node's float32 and bfloat16 inputs."""
    if width is Width.PRODUCT:
        return torch.bfloat16
    if width is Width.WIDE:
        return torch.float32
    kinds = {x.dtype for x in data} & _CARRIED
    return torch.float32 if len(kinds) > 1 else None


def settle(run: Run) -> None:
    """Look at what must have been true on the device: this waits for it.

    Raises:
        ProgramError: Something was not, by node.
        ComputeError: ``device_lost``.
    """
    if not run.doubts:
        return
    doubts, run.doubts = run.doubts, []
    try:
        held = torch.stack([doubt.held.reshape(()).to(run.device) for doubt in doubts]).tolist()
    except FAILURES as error:
        raise translated(error) from None
    for doubt, kept in zip(doubts, held, strict=True):
        if not kept:
            node = doubt.node
            raise ProgramError(
                f"node {node.name!r} ({node.operator}): {doubt.message}",
                code=doubt.code,
                node=node.name,
                operator=node.operator,
            )


def placed_input(array: np.ndarray, device: torch.device) -> Tensor:
    """An input of the program on the device, or on the host if it may be a shape."""
    tensor = to_tensor(array)
    if tensor.dtype not in FLOATS and tensor.ndim <= 1 and tensor.numel() <= HOST_LIMIT:
        return tensor
    return tensor.to(device)


def make_plan(
    graph: Graph, weights: Mapping[str, np.ndarray], run: Run, *, parameters: bool = True
) -> Plan:
    """Make a graph ready for a device.

    Args:
        graph: As `reading.read` gives it.
        weights: Arrays for those of its inputs that the program itself brings.
        run: The device and the class; ``before_node`` may end the making.
        parameters: False for a subgraph, whose constants are few.

    Raises:
        ComputeError: ``memory_limit`` or ``device_lost``.
    """
    arrays = {
        **{name: _array(tensor) for name, tensor in graph.initializers.items()},
        **weights,
    }
    try:
        constants = {name: _placed_constant(to_tensor(a), run) for name, a in arrays.items()}
    except FAILURES as error:
        raise translated(error) from None
    plan = Plan(
        steps=graph.steps,
        inputs=tuple(name for name in graph.inputs if name not in weights),
        outputs=graph.outputs,
        constants=constants,
        bodies={
            id(body): make_plan(body, {}, run, parameters=False)
            for step in graph.steps
            for body in step.node.bodies.values()
        },
    )
    left = _folded(plan, run)
    frees = last_uses([step.node for step in left], graph.outputs)
    plan.steps = tuple(
        Step(step.node, step.row, names) for step, names in zip(left, frees, strict=True)
    )
    _keep_what_is_read(plan)
    if run.low and parameters:
        _narrow_parameters(plan)
    return plan


def _array(tensor: TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor)


def _placed_constant(x: Tensor, run: Run) -> Tensor:
    if run.device == HOST or (x.ndim <= 1 and x.numel() <= HOST_LIMIT):
        return x
    return x.to(run.device)


def _folded(plan: Plan, run: Run) -> list[Step]:
    """Compute what depends on constants alone, into them; gives the steps that are left.

    What errs is left as it is: it errs when its turn comes in a run.
    """
    left: list[Step] = []
    for step in plan.steps:
        node = step.node
        run.before_node()
        if node.bodies or not all(name in plan.constants for name in node.inputs if name):
            left.append(step)
            continue
        try:
            results = _computed(step, _Scope({}, plan, None), run)
            settle(run)
        except ProgramError:
            run.doubts.clear()
            left.append(step)
            continue
        for name, result in zip(node.outputs, results, strict=False):
            if name:
                plan.constants[name] = _placed_constant(result, run)
    plan.copies.clear()
    return left


def _names_read(steps: Iterable[Step]) -> set[str]:
    return {
        name
        for step in steps
        for names in (step.node.inputs, *(b.captured for b in step.node.bodies.values()))
        for name in names
    }


def _keep_what_is_read(plan: Plan) -> None:
    kept = _names_read(plan.steps) | set(plan.outputs)
    plan.constants = {name: x for name, x in plan.constants.items() if name in kept}


def _narrow_parameters(plan: Plan) -> None:
    """Hold in bfloat16 what products alone read."""
    products = _reads_of(plan.steps, product=True)
    others = _reads_of(plan.steps, product=False) | set(plan.outputs)
    for name in products - others:
        x = plan.constants.get(name)
        if x is not None and x.dtype == torch.float32:
            plan.constants[name] = x.to(torch.bfloat16)


def _reads_of(steps: Sequence[Step], *, product: bool) -> set[str]:
    return _names_read(s for s in steps if (s.row.width is Width.PRODUCT) is product)
