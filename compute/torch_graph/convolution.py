"""Conv, ConvTranspose and ConvInteger, for one to three spatial axes.

Part of *execute*. Padding that is not the same on both sides is laid out before; what a
transposed convolution has too much is cut off after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import torch
from torch.nn import functional

from shoal.compute.exact.operators.windows import windows_of
from shoal.compute.torch_graph.node import (
    Inputs,
    Node,
    Operator,
    Outputs,
    Run,
    Tensor,
    Width,
    fail,
    fitting,
    given,
    within_limit,
)
from shoal.compute.torch_graph.products import less_zero

if TYPE_CHECKING:
    from collections.abc import Callable

_CONV: Final = (functional.conv1d, functional.conv2d, functional.conv3d)
_TRANSPOSED: Final = (
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
)


def _of_rank(functions: tuple[Callable[..., Tensor], ...], x: Tensor) -> Callable[..., Tensor]:
    if not 3 <= x.ndim <= 5:
        fail("unsupported_operator", f"torch convolves no tensor of {x.ndim} dimensions")
    return functions[x.ndim - 3]


def pads_of(before: tuple[int, ...], after: tuple[int, ...]) -> list[int]:
    """Paddings of the spatial axes as `functional.pad` has them: the last axis first."""
    pairs = reversed(list(zip(before, after, strict=True)))
    return [amount for pair in pairs for amount in pair]


def convolved(node: Node, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution that a node describes, of floats."""
    convolve = _of_rank(_CONV, x)
    groups = node.get("group", 1)
    if w.ndim != x.ndim or groups < 1 or x.shape[1] != w.shape[1] * groups:
        fail("shape_mismatch", f"filters of {list(w.shape)} do not fit {list(x.shape)}")
    windows = windows_of(node, x.shape[2:], w.shape[2:])
    within_limit([x.shape[0], w.shape[0], *windows.out])
    padding: tuple[int, ...] = windows.before
    if windows.before != windows.after:
        x = functional.pad(x, pads_of(windows.before, windows.after))
        padding = (0,) * len(windows.before)
    return convolve(x, w, bias, windows.strides, padding, windows.dilations, groups)


def _conv(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, w, bias = given(inputs, 3)
    return (convolved(node, x, w, bias),)


def _conv_transpose(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, w, bias = given(inputs, 3)
    convolve = _of_rank(_TRANSPOSED, x)
    rank = x.ndim - 2
    strides = list(node.get("strides", [1] * rank))
    dilations = list(node.get("dilations", [1] * rank))
    extra = list(node.get("output_padding", [0] * rank))
    pads = list(node.get("pads", [0] * (2 * rank)))
    wanted, automatic = node.get("output_shape"), node.get("auto_pad", "NOTSET")
    if not len(strides) == len(dilations) == len(extra) == len(pads) // 2 == rank:
        fail("shape_mismatch", f"its windows do not fit {list(x.shape)}")
    whole = [
        (x.shape[2 + a] - 1) * strides[a] + (w.shape[2 + a] - 1) * dilations[a] + 1
        for a in range(rank)
    ]
    if wanted is None and automatic.startswith("SAME"):
        wanted = [x.shape[2 + a] * strides[a] for a in range(rank)]
    if wanted is not None:
        for a, size in enumerate(list(wanted)[-rank:]):
            total = max(whole[a] + extra[a] - size, 0)
            half = total // 2
            first = half if automatic == "SAME_UPPER" else total - half
            pads[a], pads[a + rank] = first, total - first
            extra[a] += max(size - whole[a] - extra[a], 0)
    elif automatic == "VALID":
        pads = [0] * (2 * rank)
    within_limit([x.shape[0], w.shape[1] * node.get("group", 1), *whole])
    y = convolve(x, w, bias, strides, 0, 0, node.get("group", 1), dilations)
    cut = functional.pad(
        y,
        pads_of(
            tuple(-first for first in pads[:rank]),
            tuple(more - last for more, last in zip(extra, pads[rank:], strict=True)),
        ),
    )
    if bias is not None and any(m > p for m, p in zip(extra, pads[rank:], strict=True)):
        # What lies beyond every window has nothing but the bias.
        for a in range(rank):
            beyond = extra[a] - pads[rank + a]
            if beyond > 0:
                place = cut.narrow(2 + a, cut.shape[2 + a] - beyond, beyond)
                place.copy_(fitting(x.shape, bias).expand_as(place))
    return (cut,)


def _conv_integer(node: Node, inputs: Inputs, _: Run) -> Outputs:
    x, w, x_zero, w_zero = given(inputs, 4)
    y = convolved(node, less_zero(x, x_zero, 1), less_zero(w, w_zero, 0), None)
    return (y.round().to(torch.int64).to(torch.int32),)


OPERATORS: Final[dict[str, Operator]] = {
    "Conv": Operator(_conv, width=Width.PRODUCT),
    "ConvInteger": Operator(_conv_integer),
    "ConvTranspose": Operator(_conv_transpose, width=Width.PRODUCT),
}
