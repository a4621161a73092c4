"""LSTM, GRU and RNN, one step of time after another.

Part of *execute*. The products with the inputs are made for all times at once; only those
with the state are made step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch

from shoal.compute.torch_graph.node import (
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    fail,
    given,
)

_FUNCTIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softsign": torch.nn.functional.softsign,
    "Tanh": torch.tanh,
}
"""Activations without parameters."""


@dataclass(frozen=True, slots=True)
class _Weights:
    """One direction's: W (gates x hidden, input), R, both biases, peepholes."""

    w: Tensor
    r: Tensor
    w_bias: Tensor
    r_bias: Tensor
    peephole: Tensor | None


State: TypeAlias = tuple[Tensor, ...]
Cell: TypeAlias = Callable[[Node, Tensor, State, _Weights, list[Callable]], State]


def _rnn(_: Node, x: Tensor, state: State, weights: _Weights, act: list[Callable]) -> State:
    (h,) = state
    return (act[0](x + h @ weights.r.t() + weights.r_bias),)


def _gru(node: Node, x: Tensor, state: State, weights: _Weights, act: list[Callable]) -> State:
    (h,) = state
    xz, xr, xh = x.chunk(3, -1)
    rz, rr, rh = weights.r.chunk(3)
    bz, br, bh = weights.r_bias.chunk(3)
    update = act[0](xz + h @ rz.t() + bz)
    reset = act[0](xr + h @ rr.t() + br)
    if node.get("linear_before_reset", 0):
        new = act[1](xh + reset * (h @ rh.t() + bh))
    else:
        new = act[1](xh + (reset * h) @ rh.t() + bh)
    return ((1 - update) * new + update * h,)


def _lstm(node: Node, x: Tensor, state: State, weights: _Weights, act: list[Callable]) -> State:
    h, c = state
    i, o, f, new = (x + h @ weights.r.t() + weights.r_bias).chunk(4, -1)
    if weights.peephole is not None:
        pi, po, pf = weights.peephole.chunk(3)
        i, f = i + pi * c, f + pf * c
    gate = act[0](i)
    kept = 1 - gate if node.get("input_forget", 0) else act[0](f)
    c = kept * c + gate * act[1](new)
    if weights.peephole is not None:
        o = o + po * c
    return act[0](o) * act[2](c), c


@dataclass(frozen=True, slots=True)
class _Kind:
    """One operator: its cell, how many gates, which activations by default, and states."""

    cell: Cell
    gates: int
    activations: tuple[str, ...]
    states: int = 1


def _operator(kind: _Kind) -> Operator:
    def compute(node: Node, inputs: Inputs, run: Run) -> Outputs:
        x, w, r, bias, lengths, h, c, peephole = given(inputs, 8)
        batch_first = bool(node.get("layout", 0))
        if batch_first:
            x = x.transpose(0, 1)
            h = None if h is None else h.transpose(0, 1)
            c = None if c is None else c.transpose(0, 1)
        hidden, directions = r.shape[-1], w.shape[0]
        empty = x.new_zeros(directions, x.shape[1], hidden)
        starts = [empty if s is None else s for s in (h, c)[: kind.states]]
        names = [name.capitalize() for name in node.get("activations", [])]
        names = names or list(kind.activations) * directions
        each = len(kind.activations)
        if len(names) != each * directions:
            fail("shape_mismatch", f"{len(names)} activations for {directions} directions")
        outputs, ends = [], []
        for d in range(directions):
            parts = x.new_zeros(2, kind.gates * hidden) if bias is None else bias[d].chunk(2)
            weights = _Weights(
                w[d], r[d], parts[0], parts[1], None if peephole is None else peephole[d]
            )
            backwards = d == 1 or node.get("direction", "forward") == "reverse"
            act = [_FUNCTIONS[name] for name in names[d * each : (d + 1) * each]]
            state: State = tuple(start[d] for start in starts)
            ys, end = _through(node, run, kind, x, state, weights, act, lengths, backwards)
            outputs.append(ys)
            ends.append(end)
        y = torch.stack(outputs, 1)  # (time, directions, batch, hidden)
        last = [torch.stack(values) for values in zip(*ends, strict=True)]
        if batch_first:
            y = y.permute(2, 0, 1, 3)
            last = [value.transpose(0, 1) for value in last]
        return (y, *last)

    return Operator(compute, width=Width.WIDE, refuses=_refuses)


def _through(
    node: Node,
    run: Run,
    kind: _Kind,
    x: Tensor,
    state: State,
    weights: _Weights,
    act: list[Callable],
    lengths: Tensor | None,
    backwards: bool,
) -> tuple[Tensor, State]:
    """One direction: the output at each time, (time, batch, hidden), and the last states."""
    seen = x @ weights.w.t() + weights.w_bias
    ys: list[Tensor] = [x.new_zeros(x.shape[1], weights.r.shape[-1])] * x.shape[0]
    times = range(x.shape[0])
    for time in reversed(times) if backwards else times:
        run.before_node()
        new = kind.cell(node, seen[time], state, weights, act)
        ys[time] = new[0]
        if lengths is not None:
            alive = (lengths > time).unsqueeze(-1)
            ys[time] = torch.where(alive, new[0], torch.zeros_like(new[0]))
            new = tuple(torch.where(alive, n, s) for n, s in zip(new, state, strict=True))
        state = new
    return torch.stack(ys) if ys else x.new_zeros(0, x.shape[1], weights.r.shape[-1]), state


def _refuses(node: Node) -> str | None:
    strange = [n for n in node.get("activations", []) if n.capitalize() not in _FUNCTIONS]
    if strange:
        return f"the activation {strange[0]}"
    return "clip" if "clip" in node.attributes else None


OPERATORS: Final[dict[str, Operator]] = {
    "GRU": _operator(_Kind(_gru, 3, ("Sigmoid", "Tanh"))),
    "LSTM": _operator(_Kind(_lstm, 4, ("Sigmoid", "Tanh", "Tanh"), states=2)),
    "RNN": _operator(_Kind(_rnn, 1, ("Tanh",))),
}
