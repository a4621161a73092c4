"""One card: where tensors lie, how a kernel is launched there, and what it met.

Part of *execute*. Under Triton's interpreter (``TRITON_INTERPRET=1``, read when Triton is
first imported) the card is the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shoal.compute.exact.statuses import FINE, check

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shoal.compute.exact.gpu.variants import Variant


class Card:
    """A device of torch's. One thread at a time.

    Args:
        device: Such as ``cuda:0`` (of ROCm's builds too); ``cpu`` under the interpreter.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._backend = "hip" if torch.version.hip else "cuda"
        self.status = torch.full((1,), FINE, dtype=torch.int32, device=self.device)
        """The greatest status that kernels met since `check`, (1,) int32."""

    def take(self, array: NDArray[Any]) -> torch.Tensor:
        """An array on this card, C-contiguous."""
        array = np.ascontiguousarray(array)
        if not array.flags.writeable:  # torch has no read-only tensors, and would warn
            array = array.copy()
        return torch.from_numpy(array).to(self.device)

    def give(self, tensor: torch.Tensor) -> NDArray[Any]:
        """A tensor as the rest of the exact class has it."""
        given: NDArray[Any] = tensor.cpu().numpy()
        return given

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Memory on this card."""
        return torch.empty(shape, dtype=dtype, device=self.device)

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

    def check(self, kernel: str) -> None:
        """Raise what the kernels met since the last time, and forget it.

        Raises:
            ExactError: They met what the exact class does not have.
        """
        status = int(self.status)
        self.status.fill_(FINE)
        check(kernel, status)
