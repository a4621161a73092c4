"""What a container allows: the memory and CPU limits of this process's cgroups.

A container sees the whole machine in /proc; what it may use stands in its cgroup,
version 2 or 1, or both at once. Limits of all enclosing groups count, so the path is
walked up. Where a hierarchy is mounted stands in /proc/self/mountinfo: a container
often has but a part of it mounted, and then its own path leads nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_UNLIMITED_V1_BYTES: Final = 1 << 60  # version 1 writes a number near 2⁶³ for "none"
_CONTROLLERS: Final = frozenset({"memory", "cpu"})


@dataclass(frozen=True, slots=True)
class CgroupLimits:
    """The tightest limits found; None where there is none.

    Attributes:
        memory_bytes: What the groups' processes may use together.
        memory_free_bytes: What is left of that in the fullest group, file cache that
            the kernel would give up counted as free.
        cpus: How many CPUs' time they may use.
    """

    memory_bytes: int | None = None
    memory_free_bytes: int | None = None
    cpus: float | None = None

    @property
    def whole_cpus(self) -> int | None:
        """How many threads make full use of ``cpus``."""
        return None if self.cpus is None else max(math.ceil(self.cpus), 1)


@dataclass(frozen=True, slots=True)
class _Mount:
    """A hierarchy, or the part of one below ``top``, mounted at ``place``."""

    controllers: frozenset[str]
    """Those of version 1; empty for version 2."""

    top: str
    place: Path


def read_limits(root: Path = Path("/")) -> CgroupLimits:
    """Read the limits of this process.

    Args:
        root: Where /proc and /sys are.
    """
    memory: list[int] = []
    free: list[int] = []
    cpus: list[float] = []
    for directory in _directories(root):
        limit = _memory_limit_bytes(directory)
        if limit is not None:
            memory.append(limit)
            free.append(max(limit - _used_bytes(directory), 0))
        quota = _cpu_quota(directory)
        if quota is not None:
            cpus.append(quota)
    return CgroupLimits(
        min(memory, default=None), min(free, default=None), min(cpus, default=None)
    )


def _directories(root: Path) -> Iterator[Path]:
    """The directories of this process's groups, innermost first, for each hierarchy."""
    mounts = _mounts(root)
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, entry = line.partition(":")
        names, colon, path = entry.partition(":")
        controllers = frozenset(filter(None, names.split(",")))
        if not colon or (controllers and not controllers & _CONTROLLERS):
            continue
        usual = _Mount(controllers, "/", root / "sys/fs/cgroup" / names)
        mount = next((m for m in mounts if _is_of(m, controllers)), usual)
        inner = mount.place / _below(mount.top, path)
        yield from (
            d for d in (inner, *inner.parents) if d.is_relative_to(mount.place) and d.is_dir()
        )


def _is_of(mount: _Mount, controllers: frozenset[str]) -> bool:
    return bool(mount.controllers & controllers) or not (mount.controllers or controllers)


def _below(top: str, path: str) -> str:
    """``path`` as seen from a mount whose top is ``top``; "" where it lies outside."""
    inside = path == top or path.startswith(f"{top.rstrip('/')}/")
    return path[len(top.rstrip("/")) :].lstrip("/") if inside and ".." not in path else ""


def _mounts(root: Path) -> list[_Mount]:
    """The cgroup hierarchies in sight (proc(5), mountinfo)."""
    mounts = []
    for line in _text(root / "proc/self/mountinfo").splitlines():
        fields, _, rest = line.partition(" - ")
        match fields.split(), rest.split():
            case [_, _, _, top, place, *_], ["cgroup" | "cgroup2" as kind, _source, options]:
                named = frozenset(options.split(",")) & _CONTROLLERS
                if named or kind == "cgroup2":
                    where = root / _unescaped(place).lstrip("/")
                    mounts.append(_Mount(named, _unescaped(top), where))
    return mounts


def _unescaped(text: str) -> str:
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        text = text.replace(code, character)
    return text


def _memory_limit_bytes(directory: Path) -> int | None:
    """The group's limit; ``memory.high`` counts, as beyond it every process crawls."""
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [_number(directory / name) for name in names]
    return min((n for n in limits if n is not None and n < _UNLIMITED_V1_BYTES), default=None)


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
    if quota.isdecimal() and period.isdecimal() and int(quota) and int(period):
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
