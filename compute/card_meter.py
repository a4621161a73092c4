"""What a card's worker may use: of the card's memory, and of the machine it is in.

Part of *execute*. A driver maps the card's memory and much more into the address space,
so that this says nothing of what is used, and holding it would end every unit. In its
place torch's allocator is held: it serves all memory that executors ask for on the card.
A process that was taken over can pass by the allocator; then the card's size stops it.
"""

from __future__ import annotations

import math
import resource
import time
from contextlib import suppress
from typing import Final, Protocol

from shoal.compute.card_memory import UNUSED_BYTES
from shoal.compute.sandbox.limits import HardLimits, Meter, set_soft

FILE_BYTES: Final = 1 << 30
"""The largest file that a compiler may write; its directory is the worker's own."""

OPEN_FILES: Final = 1024


class Allocator(Protocol):
    """Of `torch.cuda`, what is used here."""

    def memory_allocated(self) -> int:
        """Bytes in use."""
        ...

    def memory_reserved(self) -> int:
        """Bytes taken from the card, in use or not."""
        ...

    def mem_get_info(self) -> tuple[int, int]:
        """Bytes of the card that are free, and all of them."""
        ...

    def set_per_process_memory_fraction(self, fraction: float) -> None:
        """Serve no more than this part of the card."""
        ...

    def empty_cache(self) -> None:
        """Give back what is not in use."""
        ...

    def synchronize(self) -> None:
        """Wait for all that was set going; raises what went wrong there."""
        ...


class CardMeter(Meter):
    """A `Meter` of which ``memory_bytes`` are the card's.

    Args:
        allocator: `torch.cuda`, once a card is reached; until then nothing is held.
    """

    def __init__(self, allocator: Allocator | None = None) -> None:
        super().__init__()
        self.allocator = allocator

    def set_hard(self, limits: HardLimits) -> None:  # noqa: ARG002  # of memory it is not
        """Set what cannot be raised again; see `Meter.set_hard`."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        size = FILE_BYTES if most == resource.RLIM_INFINITY else min(FILE_BYTES, most)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        files = OPEN_FILES if most == resource.RLIM_INFINITY else min(OPEN_FILES, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    def memory_left_bytes(self) -> int:
        """How much more of the card a unit could get; without one, nothing is held."""
        if self.allocator is None:
            return 1 << 62
        free, _ = self.allocator.mem_get_info()
        unused = self.allocator.memory_reserved() - self.allocator.memory_allocated()
        return free + unused

    def memory_used_bytes(self) -> int:
        """What this process has of the card for the programs that it holds."""
        return self.allocator.memory_allocated() if self.allocator is not None else 0

    def settle(self) -> None:
        """Wait for what a unit has set going: what fails there late is its own fault.

        Raises:
            RuntimeError: As the card's runtime says.
        """
        if self.allocator is not None:
            self.allocator.synchronize()

    def hold(self, memory_bytes: int, processor_s: float) -> None:
        """Set the limits of a request; see `Meter.hold`."""
        if self.allocator is not None:
            _, total = self.allocator.mem_get_info()
            most = self.allocator.memory_allocated() + memory_bytes
            self.allocator.set_per_process_memory_fraction(min(1.0, most / total))
        set_soft(resource.RLIMIT_CPU, math.ceil(time.process_time() + processor_s))

    def release(self) -> None:
        """Take them back, and give back what the next unit need not have."""
        if self.allocator is not None:
            with suppress(RuntimeError):  # the unit has said already that the card failed
                self.allocator.set_per_process_memory_fraction(1.0)
                unused = self.allocator.memory_reserved() - self.allocator.memory_allocated()
                if unused > UNUSED_BYTES:
                    self.allocator.empty_cache()
        set_soft(resource.RLIMIT_CPU, resource.RLIM_INFINITY)
