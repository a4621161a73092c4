"""Made-up inputs: a program's kernels are compiled by them before a unit's clock starts.

Part of *execute*. What a card runs of a program of the class exact is compiled when it is
first launched (`exact.gpu.elementwise`): by the order of its operations and by how they
broadcast, not by sizes. So a run on inputs of the declared shapes, with a small size for
each that is open, compiles what units will run, as far as that does not depend on their
elements. What comes out of it is nobody's result, and what fails in it nobody's failure.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.manifest import Port

_OPEN_SIZE: Final = 2
"""For a dimension that any size fits: 1 would be broadcast where units are not."""


def made_up_inputs(ports: Sequence[Port], most_bytes: int) -> dict[str, np.ndarray] | None:
    """Inputs that a program takes, of ones.

    Args:
        ports: What it declares.
        most_bytes: Of all of them together.

    Returns:
        Arrays by name; None where a rank is open, or where they are too large.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for port in ports:
        if port.shape is None:
            return None
        shapes[port.name] = tuple(
            size if isinstance(size, int) else _OPEN_SIZE for size in port.shape
        )
    sizes = (prod(shapes[port.name]) * np.dtype(port.dtype).itemsize for port in ports)
    if sum(sizes) > most_bytes:
        return None
    # Whole numbers are places as often as not, of which the first is always there.
    return {
        port.name: np.full(shapes[port.name], np.dtype(port.dtype).kind in "fb", port.dtype)
        for port in ports
    }
