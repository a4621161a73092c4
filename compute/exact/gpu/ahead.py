"""One kernel compiled for one target, and what came of it: as several processes do at once.

Part of *execute*, ahead of time; `__main__` hands these out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from shoal.compute.exact.gpu.kernels import variants
from shoal.compute.exact.gpu.targets import TARGETS, compile_for, registers_of


@dataclass(frozen=True, slots=True)
class Row:
    """What came of compiling one kernel for one target.

    Attributes:
        kernel: Its name.
        target: The target's.
        size_bytes: Of the binary.
        shared_bytes: Of the memory that the threads of one program share.
        registers: Of a thread.
        spilled_bytes: Of a thread's memory in place of registers.
        seconds: How long it took; a moment, where Triton's cache had it.
        error: What failed, or "".
    """

    kernel: str
    target: str
    size_bytes: int = 0
    shared_bytes: int = 0
    registers: int = 0
    spilled_bytes: int = 0
    seconds: float = 0.0
    error: str = ""


def compile_one(name: str, target_name: str, aligned: bool) -> Row:
    """Compile one kernel for one target, see `compile_for`; what fails is said in the row."""
    (variant,) = (variant for variant in variants() if variant.name == name)
    target = TARGETS[target_name]
    began_s = time.perf_counter()
    try:
        done = compile_for(variant, target, aligned=aligned)
        registers = registers_of(done, target)
    except Exception as error:  # noqa: BLE001  # a compiler may fail in any way
        return Row(name, target_name, error=f"{type(error).__name__}: {error!s:.300}")
    too_much = done.shared_bytes > target.shared_bytes
    return Row(
        name,
        target_name,
        len(done.binary),
        done.shared_bytes,
        registers.count,
        registers.spilled_bytes,
        time.perf_counter() - began_s,
        f"it takes {done.shared_bytes} bytes of shared memory, and such a card has "
        f"{target.shared_bytes}"
        if too_much
        else "",
    )
