"""Activations: elementwise functions with parameters.

Part of *execute*. Each is ONNX's own definition, by torch's kernel where the two agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch.nn import functional

from shoal.compute.torch_graph.node import (
    FLOATS,
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
)

_SELU: Final = (1.67326319217681884765625, 1.05070102214813232421875)


def _plain(function: Callable[[Tensor], Tensor], width: Width = Width.ANY) -> Operator:
    return Operator(lambda _, inputs, __: (function(inputs[0]),), width=width)


def _with(
    function: Callable[..., Tensor], width: Width = Width.ANY, **defaults: float
) -> Operator:
    """An operator of one input, whose attributes are the function's further arguments."""

    def compute(node: Node, inputs: Inputs, _: Run) -> Outputs:
        arguments = [node.get(name, default) for name, default in defaults.items()]
        return (function(inputs[0], *arguments),)

    return Operator(compute, width=width)


def _relu(x: Tensor) -> Tensor:
    return torch.relu(x) if x.dtype in FLOATS else x.clamp(min=0)


def _gelu(node: Node, inputs: Inputs, _: Run) -> Outputs:
    return (functional.gelu(inputs[0], approximate=node.get("approximate", "none")),)


def _prelu(_: Node, inputs: Inputs, __: Run) -> Outputs:
    x, slope = inputs
    return (torch.where(x < 0, x * slope, x),)


def _selu(x: Tensor, alpha: float, gamma: float) -> Tensor:
    return gamma * torch.where(x > 0, x, alpha * torch.expm1(x))


def _elu(x: Tensor, alpha: float) -> Tensor:
    return torch.where(x > 0, x, alpha * torch.expm1(x))


def _celu(x: Tensor, alpha: float) -> Tensor:
    return functional.celu(x, alpha)


def _shrink(x: Tensor, bias: float, threshold: float) -> Tensor:
    shrunk = torch.where(x > threshold, x - bias, torch.zeros_like(x))
    return torch.where(x < -threshold, x + bias, shrunk)


OPERATORS: Final[dict[str, Operator]] = {
    "Celu": _with(_celu, Width.WIDE, alpha=1.0),
    "Elu": _with(_elu, Width.WIDE, alpha=1.0),
    "Gelu": Operator(_gelu),
    "HardSigmoid": _with(
        lambda x, alpha, beta: (x * alpha + beta).clamp(0, 1), alpha=0.2, beta=0.5
    ),
    "HardSwish": _plain(lambda x: x * (x / 6 + 0.5).clamp(0, 1)),
    "LeakyRelu": _with(lambda x, alpha: torch.where(x < 0, x * alpha, x), alpha=0.01),
    "Mish": _plain(functional.mish, Width.WIDE),
    "PRelu": Operator(_prelu),
    "Relu": _plain(_relu),
    "Selu": _with(_selu, Width.WIDE, alpha=_SELU[0], gamma=_SELU[1]),
    "Shrink": _with(_shrink, bias=0.0, lambd=0.5),
    "Sigmoid": _plain(torch.sigmoid),
    "Softplus": _plain(functional.softplus, Width.WIDE),
    "Softsign": _plain(lambda x: x / (1 + x.abs())),
    "Tanh": _plain(torch.tanh),
    "ThresholdedRelu": _with(
        lambda x, alpha: torch.where(x > alpha, x, torch.zeros_like(x)), alpha=1.0
    ),
}
