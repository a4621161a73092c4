"""Windows over images: where they lie, and views of what they see.

Part of *execute*, under convolution and pooling: strides, dilations, paddings and
their automatic forms, for any number of spatial axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shoal.compute.exact.operators.node import Array, Node, fail, within_limit

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Windows:
    """How windows lie over the spatial axes of an image; one entry per axis.

    Attributes:
        kernel: The window's size, in elements that it reads.
        strides: The distance between two windows.
        dilations: The distance between two elements of a window.
        before: Padding before the first element.
        after: Padding after the last one, as the node has it.
        reach: Padding after the last one that the last window reaches; more or less
            than ``after`` where sizes do not divide.
        out: The number of windows.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    reach: tuple[int, ...]
    out: tuple[int, ...]

    def padded(self, x: Array, fill: object = 0) -> Array:
        """(N, C, *spatial) with the padding that the windows reach."""
        widths = [(0, 0), (0, 0), *zip(self.before, self.reach, strict=True)]
        within_limit([size + sum(width) for size, width in zip(x.shape, widths, strict=True)])
        if not any(map(sum, widths)):
            return x
        return np.pad(x, widths, constant_values=fill)  # type: ignore[call-overload]

    def view(self, padded: Array) -> Array:
        """(N, C, *out, *kernel): what each window sees, without a copy."""
        spans = tuple(
            (size - 1) * gap + 1 for size, gap in zip(self.kernel, self.dilations, strict=True)
        )
        axes = tuple(range(2, padded.ndim))
        every = np.lib.stride_tricks.sliding_window_view(padded, spans, axes)
        chosen = [
            slice(0, n * step, step) for n, step in zip(self.out, self.strides, strict=True)
        ]
        thinned = [slice(None, None, gap) for gap in self.dilations]
        return every[(slice(None), slice(None), *chosen, *thinned)]


def windows_of(node: Node, spatial: Sequence[int], kernel: Sequence[int]) -> Windows:
    """The windows that a node's attributes describe.

    Args:
        node: A convolution or a pooling.
        spatial: The image's sizes.
        kernel: The window's sizes.

    Raises:
        ExactError: ``shape_mismatch`` where they do not fit.
    """
    rank = len(spatial)
    strides = tuple(node.get("strides", [1] * rank))
    dilations = tuple(node.get("dilations", [1] * rank))
    pads = list(node.get("pads", [0] * (2 * rank)))
    if (
        not len(kernel) == len(strides) == len(dilations) == len(pads) // 2 == rank
        or min((*kernel, *strides, *dilations), default=1) < 1
        or min(pads, default=0) < 0
    ):
        fail("shape_mismatch", f"its windows do not fit images of {list(spatial)}")
    automatic, upward = node.get("auto_pad", "NOTSET"), bool(node.get("ceil_mode", 0))
    before, after, reach, out = [], [], [], []
    for axis, size in enumerate(spatial):
        span, step = (kernel[axis] - 1) * dilations[axis] + 1, strides[axis]
        if automatic in {"SAME_UPPER", "SAME_LOWER"}:
            count = -(-size // step)
            total = max((count - 1) * step + span - size, 0)
            first = total // 2 if automatic == "SAME_UPPER" else total - total // 2
            last = total - first
        else:
            first, last = (0, 0) if automatic == "VALID" else (pads[axis], pads[axis + rank])
            room = size + first + last - span
            if room < 0:
                fail("shape_mismatch", f"a window of {span} is larger than an axis of {size}")
            count = (-(-room // step) if upward else room // step) + 1
            if upward and (count - 1) * step >= size + first:
                count -= 1  # it would begin in the padding
        before.append(first)
        after.append(last)
        reach.append(max((count - 1) * step + span - size - first, 0))
        out.append(count)
    return Windows(
        tuple(kernel), strides, dilations, tuple(before), tuple(after), tuple(reach), tuple(out)
    )
