"""One card: where tensors lie, how a kernel is launched there, and what it met.

Part of *execute*. What a kernel meets it notes on the card; the host looks when it must
(`Card.settle`), not after every kernel, and the error that came first in the program's order
is raised, whatever order the kernels ran in. Under Triton's interpreter
(``TRITON_INTERPRET=1``, read when Triton is first imported) the card is the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import torch

from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.statuses import FINE, check, first_met

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from shoal.compute.exact.gpu.variants import Variant

_BLOCK: Final = 256
"""Statuses that are made at once."""
_APART: Final = 4
"""int32s between two statuses: at 16 bytes all are aligned alike, for one compiled kernel."""
_SCALARS_LIMIT: Final = 1024


@dataclass(frozen=True, slots=True)
class Mark:
    """What was asked of the card, as an error names it.

    Attributes:
        order: Counts what was asked.
        kernel: The kernel's name, such as ``exp`` or ``product``.
        node: Where it stands in the graph; "" where nobody said.
        operator: The node's operator, likewise.
    """

    order: int
    kernel: str
    node: str
    operator: str


class Asked(Protocol):
    """What was asked for, and is computed no later than `Card.settle`."""

    def compute(self) -> torch.Tensor:
        """Compute it."""


class Card:
    """A device of torch's. One thread at a time.

    Args:
        device: Such as ``cuda:0`` (of ROCm's builds too); ``cpu`` under the interpreter.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._backend = "hip" if torch.version.hip else "cuda"
        self._count = count()
        self._place = ("", "")
        self._marks: list[tuple[Mark, ...]] = []  # of each status
        self._statuses: list[torch.Tensor] = []  # in blocks
        self._scalars: dict[bytes, torch.Tensor] = {}
        self.asked: dict[int, Asked] = {}
        """What no kernel has computed yet, by its mark's order, in that order."""

    # -- tensors ----------------------------------------------------------------------

    def take(self, array: NDArray[Any]) -> torch.Tensor:
        """An array on this card, C-contiguous, of the same shape."""
        array = np.asarray(array, order="C")
        if array.dtype == np.float32 and not array.ndim:
            return self._scalar(array)
        if not array.flags.writeable or any(stride < 0 for stride in array.strides):
            array = array.copy()  # torch has no such tensors
        return torch.from_numpy(array).to(self.device, copy=True)

    def _scalar(self, value: NDArray[np.float32]) -> torch.Tensor:
        """A scalar, copied to the card once: programs use few, and those often."""
        bits = value.tobytes()
        if bits not in self._scalars:
            if len(self._scalars) >= _SCALARS_LIMIT:
                self._scalars.clear()
            self._scalars[bits] = torch.from_numpy(value.copy()).to(self.device)
        return self._scalars[bits]

    def give(self, tensor: torch.Tensor) -> NDArray[Any]:
        """A tensor as the rest of the exact class has it.

        Raises:
            ExactError: As `settle`: nothing leaves the card that should have been an error.
        """
        self.settle()
        given: NDArray[Any] = tensor.cpu().numpy()
        return given

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Memory on this card."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    # -- kernels ------------------------------------------------------------------------

    def launch(self, variant: Variant, grid: tuple[int, ...], *arguments: Any) -> None:
        """Run a kernel; an empty grid runs nothing.

        Args:
            variant: The kernel, and its constants.
            grid: How many programs, along up to three axes.
            arguments: The others, in order: tensors and whole numbers.
        """
        if all(grid):
            variant.kernel[grid](
                *arguments, **variant.constants, **variant.options(self._backend)
            )

    # -- what they met -------------------------------------------------------------------

    def enter(self, node: str, operator: str) -> None:
        """See `Kernels.enter`."""
        self._place = (node, operator)

    def mark(self, kernel: str) -> Mark:
        """The mark of what is asked now."""
        return Mark(next(self._count), kernel, *self._place)

    def status(self, kernel: str) -> torch.Tensor:
        """Where a kernel that is launched now notes what it meets, int32."""
        return self.status_of((self.mark(kernel),))

    def status_of(self, marks: tuple[Mark, ...]) -> torch.Tensor:
        """Where a kernel notes what it meets first of several operations, int32.

        Args:
            marks: Of its operations, in order: see `statuses.first_met`.
        """
        place = len(self._marks) % _BLOCK * _APART
        if not place:
            block = torch.full((_BLOCK * _APART,), FINE, dtype=torch.int32, device=self.device)
            self._statuses.append(block)
        self._marks.append(marks)
        return self._statuses[-1][place : place + 1]

    def settle(self) -> None:
        """Compute what was asked for, and raise the first that was met since the last time.

        Raises:
            ExactError: With its place in the graph.
        """
        while self.asked:  # the last first: it takes along what it rests on
            self.asked[next(reversed(self.asked))].compute()
        if not self._marks:
            return
        marks, statuses = self._marks, torch.cat(self._statuses)[::_APART].cpu().tolist()
        self.forget()
        _raise_first(marks, statuses)

    def forget(self) -> None:
        """See `Kernels.forget`."""
        self.asked.clear()
        self._marks, self._statuses = [], []


def _raise_first(marks: Sequence[tuple[Mark, ...]], statuses: Sequence[int]) -> None:
    met = []
    for some, code in zip(marks, statuses, strict=False):  # the last block has room left
        if code != FINE:
            place, status = first_met(code, len(some))
            met.append((some[place], status))
    if not met:
        return
    mark, status = min(met, key=lambda one: one[0].order)
    try:
        check(mark.kernel, status)
    except ExactError as error:
        raise error.at(mark.node, mark.operator) from None
