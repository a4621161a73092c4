"""Operators that make tensors: constants, ranges, identity matrices, windows of signals.

Part of *execute*. What is as small as a shape is made on the host.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import torch

from shoal.compute.torch_graph.arrays import to_tensor
from shoal.compute.torch_graph.node import (
    FLOATS,
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    dtype_of_code,
    fail,
    integers_of,
    within_axis_limit,
    within_limit,
)

_SCALARS: Final = {
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}


def _constant(node: Node, _: Inputs, __: Run) -> Outputs:
    value = node.get("value")
    if value is None:
        name = next(name for name in node.attributes if name in _SCALARS)
        value = np.asarray(node.get(name), _SCALARS[name])
    return (to_tensor(value),)  # of constants the graph knows where they belong


def _refuses_constant(node: Node) -> str | None:
    known = {"value", *_SCALARS}
    strange = [name for name in node.attributes if name not in known]
    if not node.attributes:
        return "no value"
    return f"a {strange[0]}" if strange else None


def _constant_of_shape(node: Node, inputs: Inputs, run: Run) -> Outputs:
    sizes = within_limit(integers_of(inputs[0]))
    value = node.get("value")
    fill = to_tensor(np.zeros(1, np.float32) if value is None else value).reshape(())
    home = run.home(fill.dtype, math.prod(sizes))
    return (torch.full(sizes, fill.item(), dtype=fill.dtype, device=home),)


def _range(_: Node, inputs: Inputs, run: Run) -> Outputs:
    start, limit, delta = (each.reshape(()) for each in inputs)
    if not delta.item():
        fail("out_of_range", "the step of a range is zero")
    if start.dtype in FLOATS:
        count = math.ceil((limit.item() - start.item()) / delta.item())
    else:
        count = -((start.item() - limit.item()) // delta.item())
    (count,) = within_limit([max(count, 0)])
    home = run.home(start.dtype, count)
    places = torch.arange(count, device=home).to(start.dtype)
    return (start.to(home) + places * delta.to(home),)


def _eye_like(node: Node, inputs: Inputs, run: Run) -> Outputs:
    (x,) = inputs
    if x.ndim != 2:
        fail("shape_mismatch", f"{list(x.shape)} is no matrix")
    code = node.get("dtype")
    rows = torch.arange(x.shape[0], device=run.device).unsqueeze(-1)
    columns = torch.arange(x.shape[1], device=run.device)
    hot = columns - rows == node.get("k", 0)
    return (hot.to(x.dtype if code is None else dtype_of_code(code)),)


def _window(cosines: tuple[float, ...]) -> Operator:
    """A sum of cosines over one period: Hann's, Hamming's or Blackman's window."""

    def compute(node: Node, inputs: Inputs, run: Run) -> Outputs:
        (size,) = within_limit(integers_of(inputs[0])[:1])
        period = size if node.get("periodic", 1) else size - 1
        within_axis_limit(size)
        places = np.arange(size, dtype=np.float64) * (2 * math.pi / max(period, 1))
        y = sum((-1) ** n * weight * np.cos(n * places) for n, weight in enumerate(cosines))
        dtype = dtype_of_code(node.get("output_datatype", 1))
        return (torch.from_numpy(np.asarray(y, np.float32)).to(run.device).to(dtype),)

    return Operator(compute, host=frozenset({0}))


OPERATORS: Final[dict[str, Operator]] = {
    "BlackmanWindow": _window((0.42, 0.5, 0.08)),
    "Constant": Operator(_constant, refuses=_refuses_constant),
    "ConstantOfShape": Operator(_constant_of_shape, host=frozenset({0})),
    "EyeLike": Operator(_eye_like, shape_only=True),
    "HammingWindow": _window((25 / 46, 21 / 46)),
    "HannWindow": _window((0.5, 0.5)),
    "Range": Operator(_range, host=frozenset({0, 1, 2})),
}
