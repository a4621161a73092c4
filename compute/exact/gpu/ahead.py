"""One kernel compiled for one target, and what came of it: as several processes do at once.

Part of *execute*, ahead of time; `__main__` hands these out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from shoal.compute.exact.gpu.kernels import variants
from shoal.compute.exact.gpu.targets import TARGETS, compile_for


@dataclass(frozen=True, slots=True)
class Row:
    """What came of compiling one kernel for one target."""

    kernel: str
    target: str
    size_bytes: int = 0
    shared_bytes: int = 0
    seconds: float = 0.0
    error: str = ""


def compile_one(name: str, target_name: str) -> Row:
    """Compile one kernel for one target; what fails is said in the row."""
    (variant,) = (variant for variant in variants() if variant.name == name)
    target = TARGETS[target_name]
    began_s = time.perf_counter()
    try:
        done = compile_for(variant, target)
    except Exception as error:  # noqa: BLE001  # a compiler may fail in any way
        return Row(name, target_name, error=f"{type(error).__name__}: {error!s:.300}")
    too_much = done.shared_bytes > target.shared_bytes
    return Row(
        name,
        target_name,
        len(done.binary),
        done.shared_bytes,
        time.perf_counter() - began_s,
        f"it takes {done.shared_bytes} bytes of shared memory, and such a card has "
        f"{target.shared_bytes}"
        if too_much
        else "",
    )
