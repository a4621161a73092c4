"""One operator with its inputs, as a program that any backend of the exact class can run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx.defs
from onnx import helper, numpy_helper

from shoal.compute.errors import ProgramError
from shoal.compute.exact.plan import make_plan
from shoal.compute.exact.spec import PRECISIONS
from shoal.compute.manifest import ScaleAxis


@dataclass(frozen=True)
class Call:
    """What an operator is called with.

    Attributes:
        inputs: Arrays, or None for an optional one that is not given.
        attributes: Python values; arrays become tensors.
        outputs: Which of the outputs are asked for.
    """

    inputs: tuple[np.ndarray | None, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    outputs: tuple[bool, ...] = (True,)


@dataclass(frozen=True)
class Failure:
    """An error as a receipt has it."""

    code: str
    node: str
    operator: str


@dataclass(frozen=True)
class Program:
    """A graph of one node; ``constant`` are those of its inputs that the program brings."""

    operator: str
    opset: int
    call: Call
    constant: frozenset[str]
    precision: str
    axis: str | None

    @cached_property
    def inputs(self) -> dict[str, np.ndarray]:
        """Arrays by the name of the input."""
        return {
            f"i{number}": np.asarray(array)  # numpy turns arrays of no axes into scalars
            for number, array in enumerate(self.call.inputs)
            if array is not None
        }

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs that are asked for."""
        return tuple(f"o{i}" for i, wanted in enumerate(self.call.outputs) if wanted)

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The program as ONNX has it."""
        node = helper.make_node(
            self.operator,
            [
                "" if array is None else f"i{number}"
                for number, array in enumerate(self.call.inputs)
            ],
            [
                f"o{i}" if wanted or not self._is_optional(i) else ""
                for i, wanted in enumerate(self.call.outputs)
            ],
            "the_node",
            **{
                name: numpy_helper.from_array(value) if isinstance(value, np.ndarray) else value
                for name, value in self.call.attributes.items()
            },
        )
        inputs = [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in self.inputs.items()
        ]
        outputs = [onnx.ValueInfoProto(name=name) for name in self.outputs]
        return helper.make_model(
            helper.make_graph([node], "g", inputs, outputs),
            opset_imports=[helper.make_opsetid("", self.opset)],
            ir_version=10,
        )

    def _is_optional(self, output: int) -> bool:
        formal = onnx.defs.get_schema(self.operator, self.opset).outputs
        return formal[min(output, len(formal) - 1)].option.name == "Optional"

    def run(self, kernels) -> dict[str, np.ndarray] | Failure:
        """What one way of computing makes of it: arrays by name, or the error."""
        weights = {name: self.inputs[name] for name in self.constant}
        fed = {name: array for name, array in self.inputs.items() if name not in weights}
        axes = () if self.axis is None else (ScaleAxis(self.outputs[0], self.axis),)
        try:
            plan = make_plan(self.model, weights, PRECISIONS[self.precision], axes, kernels)
            return plan.run(fed)
        except ProgramError as error:
            return Failure(error.code, error.node, error.operator)
