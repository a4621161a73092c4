"""Operators that choose elements by index, or put them there.

Part of *execute*. An index out of range is the program's fault, and on a card it would
take the device down: indices are clamped, and whether one had to be is looked at when the
run ends (`Run.require`).
"""

from __future__ import annotations

import math
from typing import Final

import torch

from shoal.compute.torch_graph.node import (
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    axis_of,
    fail,
    integers_of,
    within_limit,
)


def _within(node: Node, index: Tensor, size: int | Tensor, run: Run) -> Tensor:
    """Indices into an axis, negative ones counted from its end."""
    index = index.to(torch.int64)
    if not index.numel():
        return index
    if isinstance(size, int) and not size:
        fail("out_of_range", "an index points into an empty axis")
    index = torch.where(index < 0, index + size, index)
    held = ((index >= 0) & (index < size)).all()
    run.require(node, held, "out_of_range", "an index is out of range")
    highest = size - 1
    if isinstance(highest, Tensor):
        return index.clamp(min=0).minimum(highest)
    return index.clamp(0, highest)


def _gather(node: Node, inputs: Inputs, run: Run) -> Outputs:
    x, index = inputs
    axis = axis_of(node.get("axis", 0), x.ndim)
    within_limit([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]])
    flat = _within(node, index, x.shape[axis], run).reshape(-1)
    y = x.index_select(axis, flat)
    return (y.reshape([*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]]),)


def _gather_elements(node: Node, inputs: Inputs, run: Run) -> Outputs:
    x, index = inputs
    axis = axis_of(node.get("axis", 0), x.ndim)
    return (x.gather(axis, _within(node, index, x.shape[axis], run)),)


def _flat_index(node: Node, index: Tensor, shape: tuple[int, ...], run: Run) -> Tensor:
    """The last axis of an index, a place in a tensor of a shape, as one number."""
    if index.numel() and not all(shape):
        fail("out_of_range", "an index points into an empty tensor")
    sizes = torch.tensor(shape, dtype=torch.int64, device=index.device)
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    weights = torch.tensor(strides, dtype=torch.int64, device=index.device)
    return (_within(node, index, sizes, run) * weights).sum(-1)


def _gather_nd(node: Node, inputs: Inputs, run: Run) -> Outputs:
    x, index = inputs
    batch = node.get("batch_dims", 0)
    depth = index.shape[-1]
    if batch + depth > x.ndim or batch >= index.ndim or x.shape[:batch] != index.shape[:batch]:
        fail("shape_mismatch", f"{list(index.shape)} does not index {list(x.shape)}")
    batches = math.prod(x.shape[:batch])
    indexed, rest = tuple(x.shape[batch : batch + depth]), x.shape[batch + depth :]
    flat = _flat_index(node, index, indexed, run).reshape(batches, -1)
    base = torch.arange(batches, device=flat.device).unsqueeze(-1) * math.prod(indexed)
    rows = x.reshape(batches * math.prod(indexed), math.prod(rest))
    y = rows.index_select(0, (flat + base).reshape(-1))
    return (y.reshape([*index.shape[:-1], *rest]),)


_REDUCTIONS: Final = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _scatter_elements(node: Node, inputs: Inputs, run: Run) -> Outputs:
    x, index, updates = inputs
    axis = axis_of(node.get("axis", 0), x.ndim)
    places = _within(node, index, x.shape[axis], run)
    reduction = node.get("reduction", "none")
    if reduction == "none":
        return (x.scatter(axis, places, updates),)
    return (x.scatter_reduce(axis, places, updates, _REDUCTIONS[reduction]),)


def _scatter_nd(node: Node, inputs: Inputs, run: Run) -> Outputs:
    x, index, updates = inputs
    depth = index.shape[-1]
    if depth > x.ndim or list(updates.shape) != [*index.shape[:-1], *x.shape[depth:]]:
        fail("shape_mismatch", f"{list(updates.shape)} does not fit its indices")
    indexed, rest = tuple(x.shape[:depth]), math.prod(x.shape[depth:])
    flat = _flat_index(node, index, indexed, run).reshape(-1)
    rows = x.reshape(math.prod(indexed), rest)
    new = updates.reshape(flat.numel(), rest)
    reduction = node.get("reduction", "none")
    if reduction == "none":
        rows = rows.index_copy(0, flat, new)
    else:
        places = flat.unsqueeze(-1).expand(-1, rest)
        rows = rows.scatter_reduce(0, places, new, _REDUCTIONS[reduction])
    return (rows.reshape(x.shape),)


def _one_hot(node: Node, inputs: Inputs, _: Run) -> Outputs:
    index, depth, values = inputs
    count = int(depth.reshape(-1)[0].item())
    axis = axis_of(node.get("axis", -1), index.ndim + 1)
    within_limit([*index.shape, count])
    index = index.to(torch.int64)
    index = torch.where(index < 0, index + count, index).unsqueeze(axis)
    places = torch.arange(count, device=index.device)
    hot = index == places.reshape([-1 if a == axis else 1 for a in range(index.ndim)])
    off, on = values.reshape(-1)[0], values.reshape(-1)[1]
    return (torch.where(hot, on, off),)


def _non_zero(_: Node, inputs: Inputs, __: Run) -> Outputs:
    return (torch.nonzero(inputs[0]).t(),)


def _compress(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, condition = inputs
    axis = node.get("axis")
    if axis is None:
        x, axis = x.reshape(-1), 0
    axis = axis_of(axis, x.ndim)
    kept = torch.nonzero(condition.reshape(-1)).reshape(-1)
    if condition.numel() > x.shape[axis]:
        fail("shape_mismatch", f"{condition.numel()} conditions for {x.shape[axis]} elements")
    return (x.index_select(axis, kept),)


def _top_k(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, k = inputs
    axis = axis_of(node.get("axis", -1), x.ndim)
    (count,) = integers_of(k)
    if not 0 <= count <= x.shape[axis]:
        fail("out_of_range", f"{count} elements of {x.shape[axis]} are asked for")
    # Sorted stably: of equal elements the first comes first, which torch.topk leaves open.
    values, places = x.sort(dim=axis, descending=bool(node.get("largest", 1)), stable=True)
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


def _arg(largest: bool) -> Operator:
    def compute(node: Node, inputs: Inputs, _: Run) -> Outputs:
        (x,) = inputs
        axis = axis_of(node.get("axis", 0), x.ndim)
        size, last = x.shape[axis], node.get("select_last_index", 0)
        seen = x.flip(axis) if last else x
        choose = torch.argmax if largest else torch.argmin
        found = choose(seen, dim=axis, keepdim=bool(node.get("keepdims", 1)))
        return (size - 1 - found if last else found,)

    return Operator(compute)


def _cum_sum(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, which = inputs
    axis = axis_of(integers_of(which)[0], x.ndim)
    backwards = bool(node.get("reverse", 0))
    seen = x.flip(axis) if backwards else x
    sums = torch.cumsum(seen, axis, dtype=x.dtype)
    if node.get("exclusive", 0) and x.shape[axis]:
        first = torch.zeros_like(sums.narrow(axis, 0, 1))
        sums = torch.cat([first, sums.narrow(axis, 0, x.shape[axis] - 1)], axis)
    return (sums.flip(axis) if backwards else sums,)


def _reverse_sequence(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, lengths = inputs
    time, batch = node.get("time_axis", 0), node.get("batch_axis", 1)
    steps = torch.arange(x.shape[time], device=x.device).unsqueeze(-1)
    ends = lengths.to(torch.int64).unsqueeze(0)
    places = torch.where(steps < ends, ends - 1 - steps, steps)  # (time, batch)
    if batch < time:
        places = places.t()
    shape = [size if axis in {time, batch} else 1 for axis, size in enumerate(x.shape)]
    return (x.gather(time, places.reshape(shape).expand(x.shape)),)


def _unique(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    if node.get("axis") is None:
        x, axis = x.reshape(-1), 0
    else:
        axis = axis_of(node.get("axis"), x.ndim)
    values, inverse, counts = torch.unique(x, True, True, True, dim=axis)  # sorted
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel())
    first = first.scatter_reduce(0, inverse, places, "amin")
    if not node.get("sorted", 1):  # in the order in which they come
        order = first.argsort()
        ranks = torch.arange(order.numel(), device=x.device)
        inverse = torch.empty_like(order).scatter(0, order, ranks)[inverse]
        values, first, counts = values.index_select(axis, order), first[order], counts[order]
    return values, first, inverse, counts


def _hardmax(node: Node, inputs: Inputs, _: Run) -> Outputs:
    (x,) = inputs
    axis = axis_of(node.get("axis", -1), x.ndim)
    places = x.argmax(dim=axis, keepdim=True)
    return (torch.zeros_like(x).scatter(axis, places, 1),)


def _refuses_reduction(node: Node) -> str | None:
    reduction = node.get("reduction", "none")
    return None if reduction in {"none", *_REDUCTIONS} else f"the reduction {reduction!r}"


OPERATORS: Final[dict[str, Operator]] = {
    "ArgMax": _arg(largest=True),
    "ArgMin": _arg(largest=False),
    "Compress": Operator(_compress),
    "CumSum": Operator(_cum_sum, host=frozenset({1}), width=Width.WIDE),
    "Gather": Operator(_gather),
    "GatherElements": Operator(_gather_elements),
    "GatherND": Operator(_gather_nd),
    "Hardmax": Operator(_hardmax),
    "NonZero": Operator(_non_zero),
    "OneHot": Operator(_one_hot, host=frozenset({1})),
    "ReverseSequence": Operator(_reverse_sequence),
    "ScatterElements": Operator(_scatter_elements, refuses=_refuses_reduction),
    "ScatterND": Operator(_scatter_nd, refuses=_refuses_reduction),
    "TopK": Operator(_top_k, host=frozenset({1})),
    "Unique": Operator(_unique),
}
