"""The table of operators: ONNX operator to what it is in torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from shoal.compute.torch_graph import (
    activations,
    attention,
    casts,
    control,
    convolution,
    elementwise,
    images,
    indexing,
    layout,
    losses,
    normalisation,
    pooling,
    products,
    quantisation,
    recurrent,
    reductions,
    resize,
    sources,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.compute.torch_graph.node import Operator

OPERATORS: Final[Mapping[str, Operator]] = {
    **activations.OPERATORS,
    **attention.OPERATORS,
    **casts.OPERATORS,
    **control.OPERATORS,
    **convolution.OPERATORS,
    **elementwise.OPERATORS,
    **images.OPERATORS,
    **indexing.OPERATORS,
    **layout.OPERATORS,
    **losses.OPERATORS,
    **normalisation.OPERATORS,
    **pooling.OPERATORS,
    **products.OPERATORS,
    **quantisation.OPERATORS,
    **recurrent.OPERATORS,
    **reductions.OPERATORS,
    **resize.OPERATORS,
    **sources.OPERATORS,
}
