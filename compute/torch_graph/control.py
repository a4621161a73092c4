"""If, Loop and Scan: subgraphs that see the values of the graph around them.

Part of *execute*. A condition is read on the host; a Loop is the one operator whose work no
size bounds, so `Run.before_node` is asked before each of its turns, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch

from shoal.compute.torch_graph.node import (
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    axis_of,
    fail,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shoal.compute.torch_graph.node import Tensor
    from shoal.compute.torch_graph.reading import Graph

    Enter = Callable[[Graph, Mapping[str, Any]], list[Tensor]]
    """Runs a subgraph on values by name: its inputs', those around it being known."""

CONTROL: Final = frozenset({"If", "Loop", "Scan"})


def run_control(node: Node, inputs: Inputs, run: Run, enter: Enter) -> Outputs:
    """Compute one node that has subgraphs."""
    if node.operator == "If":
        (condition,) = inputs
        branch = "then_branch" if bool(condition.reshape(()).item()) else "else_branch"
        return tuple(enter(node.bodies[branch], {}))
    return (_loop if node.operator == "Loop" else _scan)(node, inputs, run, enter)


def _loop(node: Node, inputs: Inputs, run: Run, enter: Enter) -> Outputs:
    trips, condition, *carried = inputs
    body = node.bodies["body"]
    limit = None if trips is None else int(trips.reshape(()).item())
    going = condition is None or bool(condition.reshape(()).item())
    scanned: list[list[Tensor]] = [[] for _ in body.outputs[1 + len(carried) :]]
    if len(body.inputs) != 2 + len(carried):
        fail(
            "invalid_model", f"its body takes {len(body.inputs)} values, not {len(carried) + 2}"
        )
    turn = 0
    while going and (limit is None or turn < limit):
        run.before_node()
        values = [torch.tensor(turn), torch.tensor(data=True), *carried]
        again, *results = enter(body, dict(zip(body.inputs, values, strict=True)))
        carried, rows = results[: len(carried)], results[len(carried) :]
        for column, row in zip(scanned, rows, strict=True):
            column.append(row)
        turn += 1
        # Where the body always says yes, nothing has to be waited for: it is on the host.
        going = bool(again.reshape(()).item())
    return (*carried, *(_stacked(column, 0) for column in scanned))


def _stacked(rows: list[Tensor], axis: int) -> Tensor:
    if not rows:
        fail("unsupported_operator", "a loop of no turns gives no rows of a known shape")
    return torch.stack(rows, axis)


def _scan(node: Node, inputs: Inputs, run: Run, enter: Enter) -> Outputs:
    body, count = node.bodies["body"], node.get("num_scan_inputs")
    states, scanned = list(inputs[:-count]), list(inputs[-count:])
    axes = [
        axis_of(axis, x.ndim)
        for axis, x in zip(node.get("scan_input_axes", [0] * count), scanned, strict=True)
    ]
    ways = node.get("scan_input_directions", [0] * count)
    lengths = {x.shape[axis] for axis, x in zip(axes, scanned, strict=True)}
    if len(lengths) != 1 or len(body.inputs) != len(inputs):
        fail("shape_mismatch", f"sequences of the lengths {sorted(lengths)} do not go together")
    (length,) = lengths
    made = len(body.outputs) - len(states)
    columns: list[list[Tensor]] = [[] for _ in range(made)]
    for turn in range(length):
        run.before_node()
        rows = [
            x.select(axis, length - 1 - turn if way else turn)
            for x, axis, way in zip(scanned, axes, ways, strict=True)
        ]
        results = enter(body, dict(zip(body.inputs, [*states, *rows], strict=True)))
        states = results[: len(states)]
        for column, row in zip(columns, results[len(states) :], strict=True):
            column.append(row)
    out_ways = node.get("scan_output_directions", [0] * made)
    out_axes = node.get("scan_output_axes", [0] * made)
    stacked = [
        _stacked(column[::-1] if way else column, axis)
        for column, way, axis in zip(columns, out_ways, out_axes, strict=True)
    ]
    return (*states, *stacked)


def _unreachable(node: Node, _: Inputs, __: Run) -> Outputs:
    raise AssertionError(f"{node.operator} is run by the graph, which knows its subgraphs")


OPERATORS: Final[dict[str, Operator]] = {
    "If": Operator(_unreachable, host=frozenset({0})),
    "Loop": Operator(_unreachable, host=frozenset({0, 1})),
    "Scan": Operator(_unreachable),
}
