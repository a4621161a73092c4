"""The worker of a card that is made up: a CPU computes, and it fails as cards do.

The test build of ``shoal.compute.worker``: locked in by the profile ``gpu``, with one
executor in its table, which runs programs on the CPU and raises what torch and Triton
raise, in their words, where the first number of an input asks for it. While it is measured
it fails where the size that is asked for says so.
"""

import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from shoal.compute import measuring, worker
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors import probing
from shoal.compute.executors.base import NumericClass
from shoal.compute.executors.onnxruntime import OnnxRuntime
from shoal.compute.executors.table import Entry

FINE, OUT_OF_MEMORY, HANGS, BROKEN, GONE, DIES, IN_OTHER_WORDS, LATE = (
    *(0.0, 1e3, 2e3, 3e3, 4e3, 5e3, 6e3, 7e3),
)
HOARDS, SHARES, HAS_A_CHILD_HOARD, LEAVES_BEHIND = 8e3, 9e3, 10e3, 11e3

HOARD_BYTES = 256 << 20
"""What the last four take of the machine's memory."""

BEHIND = []

SIZE_FULL, SIZE_BROKEN, SIZE_GONE, SIZE_ODD, SIZE_SLOW = 17, 18, 19, 20, 21
"""Of what is measured."""

GONE_IS = Path(os.environ.get("FAULTY_CARD", "/nowhere")).exists()
"""Whether the card is gone; looked at while files may still be opened."""


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


class AcceleratorError(RuntimeError):
    """The same."""


class MadeUpMemory:
    """In place of `torch.cuda`: nothing is ever taken of 64 GB."""

    def __init__(self):
        self.fails_late = False

    def memory_allocated(self):
        return 0

    memory_reserved = memory_allocated

    def mem_get_info(self):
        return 1 << 36, 1 << 36

    def set_per_process_memory_fraction(self, _):
        if self.fails_late:
            raise AcceleratorError("CUDA error: unspecified launch failure")

    empty_cache = memory_allocated

    def synchronize(self):
        self.set_per_process_memory_fraction(1.0)


CARD = MadeUpMemory()
FULL = OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 64.00 GiB. GPU 0 has a total capacity of 79.11 GiB "
    "of which 3.00 GiB is free."
)
ASTRAY = AcceleratorError(
    "CUDA error: an illegal memory access was encountered\nCompile with "
    "`TORCH_USE_CUDA_DSA` to enable device-side assertions."
)
ECC = AcceleratorError("HIP error: uncorrectable ECC error encountered")

WHILE_MEASURED = {
    SIZE_FULL: FULL,
    SIZE_BROKEN: ASTRAY,
    SIZE_GONE: ECC,
    SIZE_ODD: ValueError("the library does not know this shape"),
}


def answer(request, executors, *, card=False, measure=measuring.answer):
    """In place of what measures."""
    size = getattr(request, "size", 0)
    if size in WHILE_MEASURED:
        raise WHILE_MEASURED[size]
    if size == SIZE_SLOW:
        time.sleep(0.5)
    return measure(request, executors, card=card)


def hoard(first):
    """Take of the machine's memory, where a number asks for it."""
    if first == HOARDS:
        BEHIND.append(bytearray(b"x") * HOARD_BYTES)
        time.sleep(60)
    elif first == SHARES:  # as what a driver pins is
        shared = mmap.mmap(-1, HOARD_BYTES)
        for _ in range(HOARD_BYTES >> 20):
            shared.write(b"x" * (1 << 20))
        time.sleep(60)
    elif first == HAS_A_CHILD_HOARD:
        code = f"import time; x = bytearray(b'x') * {HOARD_BYTES}; time.sleep(60)"
        subprocess.run([sys.executable, "-I", "-S", "-c", code], check=False)
    elif first == LEAVES_BEHIND:
        BEHIND.append(bytearray(b"x") * HOARD_BYTES)


class Faulty(OnnxRuntime):
    """Runs programs, or fails."""

    def run(self, handle, inputs):
        match float(np.ravel(next(iter(inputs.values())))[0]):
            case first if first == OUT_OF_MEMORY:
                raise FULL
            case first if first == HANGS:
                while True:  # a kernel that never ends holds the thread that waits for it
                    time.sleep(60)
            case first if first == BROKEN:
                raise ASTRAY
            case first if first == GONE:
                raise ECC
            case first if first == IN_OTHER_WORDS:
                try:
                    raise AcceleratorError("CUDA error: misaligned address")
                except AcceleratorError:
                    raise ProgramError(
                        "the program failed: misaligned address", node="n", operator="Add"
                    ) from None
            case first if first == DIES:
                os.abort()
            case first if first == LATE:  # when whoever looks next hears of it
                CARD.fails_late = True
            case first:
                hoard(first)
        return super().run(handle, inputs)


def reach(card):
    """In place of torch's look at the card."""
    if GONE_IS:
        raise ComputeError("torch finds 0 cards where this one is to be found", code="gone")


class OnMadeUpCard(worker.Worker):
    """Of whose memory nothing is ever used."""

    def _reached(self):
        if not self._executors.reach():
            return False
        self._enforcer.meter.allocator = CARD
        return True


if __name__ == "__main__":
    entry = Entry(
        "faulty",
        NumericClass.FP32,
        (),
        lambda start: lambda: Faulty(threads=1),
        by_torch="PAST_TORCH" not in os.environ,
    )
    probing.entries = lambda _: (entry,)
    probing.check_reach = reach
    measuring.answer = answer
    worker.main(OnMadeUpCard)
