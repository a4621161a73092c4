"""What a worker may use of memory and processor time, held by the kernel.

Hard limits come once, when the worker is locked in: it cannot raise them. Soft limits
come with each request and are taken back after it; they end an honest worker's unit
early and with a sentence. A worker that was taken over can raise them up to the hard
ones, and then only these and the supervisor's clock stop it.
"""

from __future__ import annotations

import math
import os
import resource
import time
from dataclasses import dataclass
from typing import Final

_UNLIMITED: Final = resource.RLIM_INFINITY

_NOTHING: Final = (
    resource.RLIMIT_CORE,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_MEMLOCK,
    resource.RLIMIT_MSGQUEUE,
    resource.RLIMIT_NICE,
    resource.RLIMIT_RTPRIO,
)
"""What no unit needs: core dumps, file contents, locked memory, queues, and priority."""


@dataclass(frozen=True, slots=True)
class HardLimits:
    """What a worker may use for the rest of its life.

    Attributes:
        memory_bytes: Address space beyond what is mapped when the limit is set.
        open_files: File descriptors.
    """

    memory_bytes: int
    open_files: int = 64


class Meter:
    """Sets this process's limits, and knows what it uses.

    Made before the process locks itself in: it keeps open what it reads later.
    """

    def __init__(self) -> None:
        self._statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)

    def mapped_bytes(self) -> int:
        """The address space in use."""
        pages = int(os.pread(self._statm, 128, 0).split()[0])
        return pages * resource.getpagesize()

    def set_hard(self, limits: HardLimits) -> None:
        """Set what cannot be raised again.

        Raises:
            ValueError: A limit is below what is used already.
        """
        for kind in _NOTHING:
            resource.setrlimit(kind, (0, 0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits.open_files, limits.open_files))
        _, outer = resource.getrlimit(resource.RLIMIT_AS)
        hard = _at_most(self.mapped_bytes() + limits.memory_bytes, outer)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))

    def memory_left_bytes(self) -> int:
        """How much more address space the hard limit allows."""
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        return 1 << 62 if hard == _UNLIMITED else max(hard - self.mapped_bytes(), 0)

    def hold(self, memory_bytes: int, processor_s: float) -> None:
        """Set the soft limits of a request: so much beyond what is used now.

        Args:
            memory_bytes: Address space.
            processor_s: Processor time of all threads together; at its end the kernel
                sends SIGXCPU, which ends the process.
        """
        set_soft(resource.RLIMIT_AS, self.mapped_bytes() + memory_bytes)
        set_soft(resource.RLIMIT_CPU, math.ceil(time.process_time() + processor_s))

    def release(self) -> None:
        """Take the soft limits back."""
        set_soft(resource.RLIMIT_AS, _UNLIMITED)
        set_soft(resource.RLIMIT_CPU, _UNLIMITED)


def set_soft(kind: int, value: int) -> None:
    """Set a limit that this process may raise again, at most to its hard limit."""
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (_at_most(value, hard), hard))


def _at_most(value: int, hard: int) -> int:
    if _UNLIMITED in (value, hard):
        return hard if value == _UNLIMITED else value
    return min(value, hard)
