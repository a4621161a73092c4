"""The CPU as this process may use it: instruction sets, cores, NUMA nodes, memory.

Affinity and cpusets come from the scheduler, quotas and memory limits from cgroups;
what is limited says so in the device's note.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shoal.compute.cgroups import CgroupLimits, read_limits
from shoal.compute.devices.inventory import Device
from shoal.compute.devices.kernel import read_text

if TYPE_CHECKING:
    from collections.abc import Collection

_ISA_FLAGS: Final = {
    # /proc/cpuinfo's name: ours. Those that change which kernels a runtime picks.
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512_fp16": "avx512_fp16",
    "amx_tile": "amx",
    "amx_int8": "amx_int8",
    "amx_bf16": "amx_bf16",
    "asimd": "neon",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "bf16": "bf16",
    "sve": "sve",
    "sve2": "sve2",
}


def detect_cpu(root: Path = Path("/")) -> Device:
    """Read the CPU, within the limits of this process.

    Args:
        root: Where /proc and /sys are.
    """
    return describe(read_limits(root), os.sched_getaffinity(0), root)


def describe(limits: CgroupLimits, usable: Collection[int], root: Path = Path("/")) -> Device:
    """The CPU of which these logical ones are usable, within the limits."""
    threads, cores = len(usable), _physical_cores(usable, root)
    notes: list[str] = []
    whole_cpus = limits.whole_cpus
    if limits.cpus is not None and whole_cpus is not None and limits.cpus < threads:
        threads = whole_cpus
        cores = min(cores, threads)
        notes.append(f"limited to {limits.cpus:g} CPUs by its cgroup")
    import psutil  # who is shown devices looks for none

    memory = psutil.virtual_memory()
    total_bytes, free_bytes = memory.total, memory.available
    if limits.memory_bytes is not None and limits.memory_bytes < total_bytes:
        total_bytes = limits.memory_bytes
        notes.append(f"limited to {total_bytes / 1e9:.1f} GB by its cgroup")
    if limits.memory_free_bytes is not None:
        free_bytes = min(free_bytes, limits.memory_free_bytes)
    name, flags = _name_and_flags(root / "proc/cpuinfo")
    return Device(
        id="cpu",
        kind="cpu",
        name=name,
        memory_bytes=total_bytes,
        memory_free_bytes=free_bytes,
        cores=cores,
        threads=threads,
        numa_nodes=_numa_nodes(usable, root),
        isa=tuple(ours for theirs, ours in _ISA_FLAGS.items() if theirs in flags),
        note="; ".join(notes),
    )


def usable_threads(root: Path = Path("/")) -> int:
    """How many threads this process keeps busy, by its affinity and its cgroup's quota."""
    whole_cpus = read_limits(root).whole_cpus
    usable = len(os.sched_getaffinity(0))
    return usable if whole_cpus is None else min(usable, whole_cpus)


def usable_memory_bytes(root: Path = Path("/")) -> int:
    """How much memory this process may use, by the machine and its cgroup's limit."""
    total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(total_bytes, read_limits(root).memory_bytes or total_bytes)


def _physical_cores(usable: Collection[int], root: Path) -> int:
    """How many cores these logical CPUs belong to."""
    topologies = root / "sys/devices/system/cpu"
    return len(
        {
            read_text(topologies / f"cpu{cpu}/topology/thread_siblings_list") or str(cpu)
            for cpu in usable
        }
    )


def _numa_nodes(usable: Collection[int], root: Path) -> int:
    """How many NUMA nodes have one of these; 1 where the kernel does not say."""
    nodes = root.glob("sys/devices/system/node/node[0-9]*")
    return max(sum(bool(_listed(read_text(n / "cpulist")) & {*usable}) for n in nodes), 1)


def _listed(text: str) -> set[int]:
    """The CPUs of a list such as ``0-3,8``."""
    found: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def _name_and_flags(cpuinfo: Path) -> tuple[str, frozenset[str]]:
    """The first processor's name and flags; ARM calls the latter features."""
    entries: dict[str, str] = {}
    for line in read_text(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        entries.setdefault(key.strip(), value.strip())
    name = entries.get("model name") or f"{platform.machine()} processor"
    return name, frozenset((entries.get("flags") or entries.get("Features", "")).split())
