"""The operators of the exact class: ONNX operator to function, for every backend.

Part of *execute*. Shapes, attributes, dtypes, integers and the movement of elements
are here, once; the float arithmetic is a backend's (``kernels``). What is not in this
table is refused by name before anything runs (``plan``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shoal.compute.exact.operators import (
    casts,
    convolution,
    elementwise,
    indexing,
    layout,
    normalisation,
    pooling,
    products,
    quantisation,
    reductions,
    sources,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.compute.exact.operators.node import Operator

OPERATORS: Final[Mapping[str, Operator]] = {
    **casts.OPERATORS,
    **convolution.OPERATORS,
    **elementwise.OPERATORS,
    **indexing.OPERATORS,
    **layout.OPERATORS,
    **normalisation.OPERATORS,
    **pooling.OPERATORS,
    **products.OPERATORS,
    **quantisation.OPERATORS,
    **reductions.OPERATORS,
    **sources.OPERATORS,
}
