"""Resize: along each axis by itself, as sums of chosen elements.

Part of *execute*. Which elements, and by what weights, follows from sizes alone, so it is
found on the host in float64: one for ``nearest``, two for ``linear``, four for ``cubic``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from shoal.compute.torch_graph.node import (
    FLOATS,
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    axes_of,
    fail,
    given,
    integers_of,
    within_axis_limit,
    within_limit,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_NEAREST: Final = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_TRANSFORMS: Final = frozenset({
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
})  # fmt: skip


def _resize(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, __, scales, sizes = given(inputs, 4)
    which = axes_of(node.get("axes", range(x.ndim)), x.ndim)
    old = [x.shape[axis] for axis in which]
    if scales is not None and scales.numel():
        factors = [float(f) for f in scales.reshape(-1).tolist()]
        if len(factors) != len(which) or not all(f > 0 and math.isfinite(f) for f in factors):
            fail("shape_mismatch", f"{factors} does not scale {list(x.shape)}")
        new = [math.floor(size * f) for size, f in zip(old, factors, strict=True)]
    elif sizes is not None:
        new = integers_of(sizes)
        if len(new) != len(which) or not all(old):
            fail("shape_mismatch", f"{new} does not resize {list(x.shape)}")
        factors = [after / before for before, after in zip(old, new, strict=True)]
        new, factors = _proportioned(node, old, new, factors)
    else:
        fail("shape_mismatch", "neither scales nor sizes are given")
    shape = list(x.shape)
    for axis, after, factor in zip(which, new, factors, strict=True):
        shape[axis] = after
        within_limit(shape)
        if after != x.shape[axis] or factor != 1:
            within_axis_limit(after)
            x = _along(node, x, axis, after, factor)
    return (x,)


def _proportioned(
    node: Node, old: Sequence[int], new: list[int], factors: list[float]
) -> tuple[list[int], list[float]]:
    policy = node.get("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch":
        return new, factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(size * factor + 0.5) for size in old], [factor] * len(old)


def _coordinates(mode: str, old: int, new: int, factor: float) -> NDArray[np.float64]:
    """Where each new element lies among the old ones."""
    places = np.arange(new, dtype=np.float64)
    if mode == "align_corners":
        # The size that the scale asks for, before it was cut to a whole number.
        return places * ((old - 1) / (factor * old - 1)) if new > 1 else places * 0
    if mode == "asymmetric":
        return places / factor
    if mode == "pytorch_half_pixel" and new <= 1:
        return places * 0
    shifted = (places + 0.5) / factor - 0.5
    if mode == "half_pixel_symmetric":  # sizes were rounded: keep the middle in the middle
        shifted += old / 2 * (1 - new / (factor * old))
    return shifted


def _cubic(distance: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    d = np.abs(distance)
    near = (a + 2) * d**3 - (a + 3) * d**2 + 1
    far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def _along(node: Node, x: Tensor, axis: int, new: int, factor: float) -> Tensor:
    old, mode = x.shape[axis], node.get("mode", "nearest")
    if not old:
        fail("shape_mismatch", "an empty axis cannot be resized")
    transform = node.get("coordinate_transformation_mode", "half_pixel")
    where = _coordinates(transform, old, new, factor)
    if mode == "nearest":
        chosen = _NEAREST[node.get("nearest_mode", "round_prefer_floor")](where)
        return x.index_select(axis, _index(chosen, old, x))
    base = np.floor(where)
    if mode == "linear":
        terms = [(base, 1 - (where - base)), (base + 1, where - base)]
    else:
        a = node.get("cubic_coeff_a", -0.75)
        terms = [(base + n, _cubic(where - base - n, a)) for n in (-1, 0, 1, 2)]
        if node.get("exclude_outside", 0):
            terms = [(i, np.where((i >= 0) & (i < old), w, 0.0)) for i, w in terms]
            total = sum(weights for _, weights in terms)
            terms = [(i, w / total) for i, w in terms]
    dtype = x.dtype
    wide = x if dtype in {torch.float32, torch.float64} else x.float()
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    y = torch.zeros((), dtype=wide.dtype, device=x.device)
    for index, weights in terms:
        factors = torch.from_numpy(weights).to(device=x.device, dtype=wide.dtype)
        y = y + wide.index_select(axis, _index(index, old, x)) * factors.reshape(shape)
    return y.to(dtype) if dtype in FLOATS else y.round().to(dtype)


def _index(places: NDArray[np.float64], size: int, x: Tensor) -> Tensor:
    inside = np.clip(places, 0, size - 1).astype(np.int64)
    return torch.from_numpy(inside).to(x.device)


def _refuses(node: Node) -> str | None:
    transform = node.get("coordinate_transformation_mode", "half_pixel")
    if transform not in _TRANSFORMS:
        return f"coordinates of the kind {transform!r}"
    return "antialias" if node.get("antialias", 0) else None


OPERATORS: Final[dict[str, Operator]] = {
    "Resize": Operator(_resize, host=frozenset({1, 2, 3}), width=Width.WIDE, refuses=_refuses),
}
