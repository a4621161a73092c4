"""What a container allows: the memory and CPU limits of this process's cgroups.

A container sees the whole machine in /proc; what it may use stands in its cgroup,
version 2 or 1. Limits of all enclosing groups count, so the path is walked up.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNLIMITED_V1_BYTES: Final = 1 << 60  # version 1 writes a number near 2⁶³ for "none"


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """The tightest limits found; None where there is none.

    ``memory_used_bytes`` belongs to the group with the tightest memory limit, without
    the file cache that the kernel would give up.
    """

    memory_bytes: int | None = None
    memory_used_bytes: int = 0
    cpus: float | None = None


def read_limits(root: Path = Path("/")) -> CgroupLimits:
    """Read the limits of this process.

    Args:
        root: Where /proc and /sys are.
    """
    memory_bytes: int | None = None
    memory_used_bytes = 0
    cpus: float | None = None
    for directory in _directories(root):
        limit = _number(directory / "memory.max") or _number(
            directory / "memory.limit_in_bytes"
        )
        if limit and limit < min(memory_bytes or _UNLIMITED_V1_BYTES, _UNLIMITED_V1_BYTES):
            memory_bytes, memory_used_bytes = limit, _used_bytes(directory)
        quota = _cpu_quota(directory)
        if quota:
            cpus = min(quota, cpus or quota)
    return CgroupLimits(memory_bytes, memory_used_bytes, cpus)


def _directories(root: Path) -> Iterator[Path]:
    """The directories of this process's groups, innermost first, for each controller."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, entry = line.partition(":")
        controllers, colon, path = entry.partition(":")
        if not colon or (controllers and not {"memory", "cpu"} & set(controllers.split(","))):
            continue
        base = mount / controllers if controllers else mount
        # Inside a container the path may be the host's, and only the base is there.
        inner = base / path.lstrip("/")
        yield from (d for d in (inner, *inner.parents) if d.is_relative_to(base) and d.is_dir())


def _used_bytes(directory: Path) -> int:
    used = _number(directory / "memory.current") or _number(directory / "memory.usage_in_bytes")
    statistics = dict(
        line.split(" ", 1)
        for line in _text(directory / "memory.stat").splitlines()
        if " " in line
    )
    cache = statistics.get("total_inactive_file") or statistics.get("inactive_file", "0")
    return max((used or 0) - int(cache), 0)


def _cpu_quota(directory: Path) -> float | None:
    """How many CPUs' time the group may use."""
    quota, _, period = _text(directory / "cpu.max").strip().partition(" ")
    if not quota:
        quota = _text(directory / "cpu.cfs_quota_us").strip()
        period = _text(directory / "cpu.cfs_period_us").strip()
    if quota.isdecimal() and period.isdecimal() and int(period):
        return int(quota) / int(period)
    return None  # "max", -1 or no such file


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
