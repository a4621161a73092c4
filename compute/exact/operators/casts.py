"""Cast and CastLike: between float32, integers and bool.

Part of *execute*. An integer becomes the nearest float32 (ties to even); a float loses
its fraction and must then fit, since ONNX leaves open what becomes of one that does
not. float16, bfloat16 and float64 are no dtypes of the exact class; the plan refuses
them before this runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from shoal.compute.exact.operators.dtypes import dtype_of_code
from shoal.compute.exact.operators.node import (
    ANY,
    Array,
    Inputs,
    Node,
    Operator,
    Outputs,
    fail,
    finite,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.exact.kernels import Kernels


def converted(x: Array, dtype: str) -> Array:
    """The elements as another dtype.

    Raises:
        ExactError: ``out_of_range`` for a float that does not fit, ``infinity`` for -inf
            into integers.
    """
    target = np.dtype(dtype)
    if x.dtype == target or x.dtype.kind != "f":
        return x.astype(target, copy=False)
    if target.kind == "b":
        return finite(x) != 0
    whole = np.trunc(finite(x)).astype(np.float64)
    bounds = np.iinfo(target)
    # The upper bound plus one is a power of two, which float64 holds; itself it may not.
    if ((whole < float(bounds.min)) | (whole >= 2.0 ** int(bounds.max).bit_length())).any():
        fail("out_of_range", f"a float is cast to {dtype}, which cannot hold it")
    return whole.astype(target)


def cast(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """Cast: the plan read the dtype from the attribute or the second input."""
    return (converted(inputs[0], node.dtypes[0]),)


def _cast_to(node: Node, _: Sequence[str]) -> str:
    return dtype_of_code(node.get("to"))


OPERATORS: Final[dict[str, Operator]] = {
    "Cast": Operator(cast, ANY, result_dtype=_cast_to),
    "CastLike": Operator(cast, ANY, result_dtype=lambda _, dtypes: dtypes[1]),
}
