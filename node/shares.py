"""What this process may use of its machine, and percentages of it.

An owner says how much a node gives as a number or as a percentage; either is of
what the daemon itself may use, so that a container's limits come first.
"""

from __future__ import annotations

import math
import os
import re

from shoal.compute.cgroups import read_limits
from shoal.node.setting_values import read_cores, read_size_bytes


def usable_cpus() -> float:
    """CPUs whose time this process may use; less than one in a small container."""
    cpus = float(len(os.sched_getaffinity(0)))
    quota = read_limits().cpus
    return cpus if quota is None else min(cpus, quota)


def usable_cores() -> int:
    """The same as a number of threads that can run at once, at least one."""
    from shoal.compute.devices import cpu

    return cpu.usable_threads()


def usable_memory_bytes() -> int:
    """Memory that this process may use, free or not."""
    from shoal.compute.devices import cpu

    return cpu.usable_memory_bytes()


def read_share(value: object) -> float:
    """Read a percentage above 0 and up to 100; raises ValueError, as `setting_values` do."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", str(value).strip())
    share = float(match[1]) / 100 if match else 0.0
    if not 0.0 < share <= 1.0:
        raise ValueError("is not a percentage above 0% and up to 100%")
    return share


def read_cores_or_share(value: object) -> int:
    """Read a number of cores, or a percentage of those that may be used: at least one."""
    if is_share(value):
        return max(1, math.floor(read_share(value) * usable_cores()))
    return read_cores(value)


def read_memory_or_share(value: object) -> int:
    """Read a size in bytes, or a percentage of the memory that may be used."""
    if is_share(value):
        return max(1, math.floor(read_share(value) * usable_memory_bytes()))
    return read_size_bytes(value)


def read_share_or_off(value: object) -> float | None:
    """Read a percentage, or ``off`` for None."""
    if value is False or str(value).strip().lower() in {"off", "no", "false"}:
        return None
    try:
        return read_share(value)
    except ValueError:
        raise ValueError("is neither a percentage such as 25% nor `off`") from None


def is_share(value: object) -> bool:
    """Whether it is written as a percentage."""
    return isinstance(value, str) and value.strip().endswith("%")
