"""Cast and CastLike: between all dtypes that travel.

Part of *execute*. What ONNX leaves open, a float that does not fit into an integer, is left
to the device.
"""

from __future__ import annotations

from typing import Final

import torch

from shoal.compute.tensor import DTYPE_OF_ONNX_CODE
from shoal.compute.torch_graph.node import (
    FLOATS,
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    dtype_of_code,
)


def converted(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The elements as another dtype; a float becomes an integer by way of a signed one."""
    if x.dtype == dtype:
        return x
    if dtype == torch.bool:
        return x != 0
    if x.dtype in FLOATS and dtype in {torch.uint8, torch.uint16, torch.uint32}:
        x = x.to(torch.int64)  # a negative float as an unsigned integer is undefined in C
    return x.to(dtype)


def _cast(node: Node, inputs: Inputs, _: Run) -> Outputs:
    return (converted(inputs[0], dtype_of_code(node.get("to"))),)


def _cast_like(_: Node, inputs: Inputs, run: Run) -> Outputs:
    dtype = inputs[1].dtype
    if run.low and dtype == torch.bfloat16:  # that may be a float32 as a product gave it
        dtype = torch.float32
    return (converted(inputs[0], dtype),)


def _refuses(node: Node) -> str | None:
    code = node.get("to")
    return None if code in DTYPE_OF_ONNX_CODE else f"a dtype of number {code}"


OPERATORS: Final[dict[str, Operator]] = {
    "Cast": Operator(_cast, refuses=_refuses),
    "CastLike": Operator(_cast_like),
}
