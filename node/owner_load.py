"""How much of the machine the owner's own processes use: an effect, read from /proc.

The owner's are all processes that this node can see, without the daemon and what
it started, without the kernel's own threads, and without those of a lower
priority than usual (``nice`` above 0, or SCHED_IDLE): they say themselves that
they can wait, and workers of other daemons are among them. In a container only
its own processes are to be seen.

A process's time is counted with that of its children which have ended, so that a
build of a thousand short processes is seen too. What follows from a figure is
decided by `node.owner`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_KERNEL_THREAD: Final = 0x00200000
"""PF_KTHREAD among a process's flags."""

_SCHED_IDLE: Final = 5


@dataclass(frozen=True, slots=True)
class Process:
    """What is looked at of one process; ``ticks`` is its time with its dead children's."""

    parent: int
    ticks: int
    yielding: bool


def read_process(stat: bytes) -> tuple[int, Process] | None:
    """Read one ``/proc/PID/stat`` (proc(5)); None for a thread of the kernel.

    Raises:
        ValueError: It is none.
    """
    pid, _, rest = stat.partition(b" (")
    fields = rest.rpartition(b")")[2].split(maxsplit=39)  # from the third field on
    if len(fields) < 39:
        raise ValueError(stat[:80])
    if int(fields[6]) & _KERNEL_THREAD:
        return None
    ticks = sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    yielding = int(fields[16]) > 0 or int(fields[38]) == _SCHED_IDLE
    return int(pid), Process(parent=int(fields[1]), ticks=ticks, yielding=yielding)


def owners_ticks(processes: Mapping[int, Process], own: int) -> int:
    """The time of all processes but ``own`` and its descendants, and the yielding ones."""
    ours = {own: True}

    def is_ours(pid: int) -> bool:
        """Whether ``own`` is among the ancestors; the list may even hold a ring."""
        line = []
        while pid not in ours and pid in processes:
            ours[pid] = False
            line.append(pid)
            pid = processes[pid].parent
        found = ours.get(pid, False)
        ours.update(dict.fromkeys(line, found))
        return found

    return sum(
        process.ticks
        for pid, process in processes.items()
        if not process.yielding and not is_ours(pid)
    )


class OwnersUse:
    """Measures what the owner's processes took between one look and the next.

    Args:
        cores: How many cores' time is the whole machine.
        proc: Where the processes are listed.
        clock: In seconds, never going back.
    """

    def __init__(
        self,
        cores: float,
        proc: Path = Path("/proc"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cores = cores
        self._proc = proc
        self._clock = clock
        self._ticks_per_s = os.sysconf("SC_CLK_TCK")
        self._last: tuple[float, int] | None = None

    def measure(self) -> float | None:
        """The share of the machine, from 0 to 1, since the last call; it blocks.

        Some milliseconds where hundreds of processes run. None at the first call,
        and where nothing can be read.
        """
        at_s, ticks = self._clock(), owners_ticks(dict(self._read()), os.getpid())
        last, self._last = self._last, (at_s, ticks)
        if last is None or at_s <= last[0] or ticks == 0:
            return None
        used_s = (ticks - last[1]) / self._ticks_per_s
        return min(1.0, max(0.0, used_s / (at_s - last[0]) / self._cores))

    def _read(self) -> Iterable[tuple[int, Process]]:
        try:
            names = os.listdir(self._proc)  # noqa: PTH208  # names alone, and quickly
        except OSError:
            return
        for name in filter(str.isdecimal, names):
            try:
                found = read_process(_read_at_once(f"{self._proc}/{name}/stat"))
            except (OSError, ValueError):  # it has ended meanwhile
                continue
            if found is not None:
                yield found


def _read_at_once(path: str) -> bytes:
    """A short file's bytes; without Python's buffers, for there may be hundreds of them."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 4096)
    finally:
        os.close(file)
