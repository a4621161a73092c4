"""A card's memory: tensors at addresses of their own, and what a program's threads share."""

import numpy as np
from ptx_program import PtxError

_FIRST = 0x7F00_0000_0000
_GAP = 1 << 20
_ALIGNED = 512
"""As PyTorch's allocator on a card aligns what it gives."""
_SYSTEM_BYTES = 1024
"""Of shared memory, before what is a kernel's: so on sm_90, and as aligned."""
_UNWRITTEN = 0xA5

WIDE = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class GlobalMemory:
    """Tensors' memory. Addresses are far apart, so that none is reached by way of another."""

    def __init__(self) -> None:
        self._next = _FIRST
        self._blocks: list[tuple[int, np.ndarray]] = []

    def place(self, memory: np.ndarray) -> int:
        """The address of some bytes, (n,) uint8."""
        address = self._next
        self._blocks.append((address, memory))
        self._next += (len(memory) + _GAP + _ALIGNED - 1) // _ALIGNED * _ALIGNED
        return address

    def view(self, addresses: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        """Memory as words of a size, and which of them lie at these addresses.

        Raises:
            PtxError: One is not aligned, or in no tensor, or they are not all in one.
        """
        low, high = int(addresses.min()), int(addresses.max())
        for start, memory in self._blocks:
            if start <= low and high + size <= start + len(memory):
                return _words(memory, addresses - np.uint64(start), size)
        raise PtxError(f"{size} bytes at {low:#x} to {high:#x} are in no tensor")


class SharedMemory:
    """What the threads of each program share: one stretch after another.

    Args:
        size: Of one program's, in bytes.
        programs: How many.
        threads: Of each.
    """

    base = _SYSTEM_BYTES

    def __init__(self, size: int, programs: int, threads: int) -> None:
        self._size = (size + 15) // 16 * 16
        self._threads = threads
        self._memory = np.full(self._size * programs, _UNWRITTEN, np.uint8)

    def view(
        self, addresses: np.ndarray, size: int, lanes: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Memory as words of a size, and which of them lie at these lanes' addresses.

        Raises:
            PtxError: One is not aligned, or beyond the program's own.
        """
        places = addresses.astype(np.int64) - self.base
        if places.min() < 0 or places.max() + size > self._size:
            raise PtxError(f"{size} bytes beyond {self._size} of shared memory")
        mine = lanes // self._threads * self._size
        return _words(self._memory, places + mine, size)


def _words(memory: np.ndarray, places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    places = places.astype(np.int64)
    if (places % size).any():
        raise PtxError(f"an address is not a multiple of {size} bytes")
    return memory[: len(memory) // size * size].view(WIDE[size]), places // size
