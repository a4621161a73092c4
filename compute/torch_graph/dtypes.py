"""Which dtype each value of a graph has, as far as ONNX's schemas say, before anything runs.

Part of *execute*. Torch adds an integer to a float without a word, and ONNX does not: a node
whose inputs' dtypes contradict its schema is refused here. onnx's own inference of types says
the same, and crashed the process on models made to confuse it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import onnx.defs
from onnx import AttributeProto, TensorProto

from shoal.compute.tensor import DTYPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from onnx import NodeProto, ValueInfoProto

_SPECIAL: Final = {"float32": "float", "float64": "double"}

TYPE_OF_CODE: Final[Mapping[int, str]] = {
    dtype.onnx_code: f"tensor({_SPECIAL.get(dtype.name, dtype.name)})"
    for dtype in DTYPES.values()
}
"""ONNX's text for a tensor of a dtype, by its number."""

_DTYPE_ATTRIBUTES: Final = {
    "BlackmanWindow": ("output_datatype", TensorProto.FLOAT),
    "Cast": ("to", TensorProto.FLOAT),
    "EyeLike": ("dtype", 0),
    "HammingWindow": ("output_datatype", TensorProto.FLOAT),
    "HannWindow": ("output_datatype", TensorProto.FLOAT),
}
"""Where an attribute says the result's dtype; 0 is for that of the first input."""


class DtypeError(Exception):
    """A node's inputs are not of the dtypes that ONNX has for them."""


def type_of_port(value: ValueInfoProto) -> str | None:
    """The type that an input is declared with; None where that is left open."""
    return TYPE_OF_CODE.get(value.type.tensor_type.elem_type)


def result_types(node: NodeProto, opset: int, types: Sequence[str | None]) -> list[str | None]:
    """The types of a node's outputs; None for what schemas do not say.

    Args:
        node: Of the standard domain, and checked by onnx's checker.
        opset: The version of the operators.
        types: Those of its inputs; None for one that is unknown or not given.

    Raises:
        DtypeError: An input is not of a type that the operator takes, or two that
            must have one type have two.
    """
    schema = onnx.defs.get_schema(node.op_type, opset)
    allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
    bound: dict[str, str] = {}
    for index, found in enumerate(types):
        if found is None or not schema.inputs:
            continue
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        if found not in allowed.get(formal.type_str, [formal.type_str]):
            raise DtypeError(f"its input {formal.name!r} may not be a {found}")
        first = bound.setdefault(formal.type_str, found)
        if first != found and formal.is_homogeneous:
            raise DtypeError(
                f"its input {formal.name!r} is a {found}, and another one beside it a {first}"
            )
    results: list[str | None] = []
    for index in range(len(node.output)):
        formal = schema.outputs[min(index, len(schema.outputs) - 1)]
        choices = allowed.get(formal.type_str, [formal.type_str])
        if not formal.is_homogeneous:
            results.append(None)
        elif formal.type_str in bound:
            results.append(bound[formal.type_str])
        else:
            results.append(choices[0] if len(choices) == 1 else None)
    if results:
        results[0] = _by_attribute(node, types) or results[0]
    return results


def _by_attribute(node: NodeProto, types: Sequence[str | None]) -> str | None:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if node.op_type in {"Constant", "ConstantOfShape"}:
        value = attributes.get("value")
        if value is not None and value.type == AttributeProto.TENSOR:
            return TYPE_OF_CODE.get(value.t.data_type)
        return TYPE_OF_CODE[TensorProto.FLOAT] if node.op_type == "ConstantOfShape" else None
    if node.op_type not in _DTYPE_ATTRIBUTES:
        return None
    name, default = _DTYPE_ATTRIBUTES[node.op_type]
    code = attributes[name].i if name in attributes else default
    return TYPE_OF_CODE.get(code) if code else types[0]
