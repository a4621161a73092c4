"""Which dtype each value of a plan has, found before anything runs.

Part of *execute*, under ``plan``. ONNX's schemas say how the dtypes of outputs follow
from those of inputs; where an attribute decides, the operator's row says it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx.defs

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.operators.node import ANY
from shoal.compute.graph import onnx_dtype_name
from shoal.compute.tensor import DTYPE_OF_ONNX_CODE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.compute.exact.operators.node import Node, Operator

_NAME_IN_SCHEMAS: Final = {
    "float": "float32",
    "double": "float64",
    **{name: name for name in ANY - {"float32"}},
    "float16": "float16",
    "bfloat16": "bfloat16",
}


def dtype_of_code(code: int) -> str:
    """The name of a dtype by ONNX's number, whether it is known here or not."""
    known = DTYPE_OF_ONNX_CODE.get(code)
    return known.name if known else onnx_dtype_name(code)


def require(dtypes: frozenset[str], dtype: str, what: str) -> None:
    """Refuse a dtype by name.

    Raises:
        ExactError: ``wrong_dtype``.
    """
    if dtype in dtypes:
        return
    raise ExactError(
        f"{what} is {dtype}, and the exact class takes {', '.join(sorted(dtypes))} there",
        code="wrong_dtype",
        hint="convert the model to float32" if "float" in dtype else "",
    )


def result_dtypes(
    node: Node, operator: Operator, dtypes: Sequence[str | None]
) -> tuple[str, ...]:
    """The dtypes of a node's outputs.

    Args:
        node: The node; its own ``dtypes`` are not looked at.
        operator: Its row in the table.
        dtypes: Those of its inputs; None for one that is not given.

    Raises:
        ExactError: ``wrong_dtype``: the operator does not take one of them, or gives
            one that is not part of the exact class.
    """
    if dtypes and dtypes[0] is not None:
        require(operator.dtypes, dtypes[0], "its first input")
    schema = onnx.defs.get_schema(node.operator, node.opset)
    allowed = {
        constraint.type_param_str: constraint.allowed_type_strs
        for constraint in schema.type_constraints
    }
    bound: dict[str, str] = {}
    for index, dtype in enumerate(dtypes):
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        if dtype is None:
            continue
        taken = {_plain(text) for text in allowed.get(formal.type_str, [formal.type_str])}
        require(frozenset(taken & ANY), dtype, f"its input {formal.name!r}")
        if bound.setdefault(formal.type_str, dtype) != dtype and formal.is_homogeneous:
            raise ExactError(
                f"its input {formal.name!r} is {dtype}, and another one beside it is "
                f"{bound[formal.type_str]}",
                code="wrong_dtype",
            )
    results: list[str] = []
    for index in range(len(node.outputs)):
        formal = schema.outputs[min(index, len(schema.outputs) - 1)]
        if index == 0 and operator.result_dtype is not None:
            result = operator.result_dtype(node, [dtype or "" for dtype in dtypes])
        else:
            result = bound.get(formal.type_str) or _only(allowed, formal.type_str)
        require(ANY, result, "its result")
        results.append(result)
    return tuple(results)


def _only(allowed: Mapping[str, Sequence[str]], type_text: str) -> str:
    """The dtype of an output that no input decides: the only one left, as of indices."""
    left = {_plain(text) for text in allowed.get(type_text, [type_text])} & ANY
    return left.pop() if len(left) == 1 else type_text


def _plain(type_text: str) -> str:
    """``float32`` of ``tensor(float)``; what is not a plain tensor stays as it is."""
    inner = type_text.removeprefix("tensor(").removesuffix(")")
    return _NAME_IN_SCHEMAS.get(inner, type_text)
