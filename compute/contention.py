"""How much of a measurement went to others: what else the machine did meanwhile.

A device that is measured beside other work looks slower than it is, perhaps by twenty
times, and what was measured is claimed for a week. So the daemon looks before and after
each piece: how long the worker's threads had a processor, how long they waited for one,
what a hypervisor withheld, whether the processor was throttled by its heat. What follows
is one pure function, `disturbance`. What others do on a card itself is not seen.

Sources: ``/proc/PID/task/*/schedstat`` (the kernel's sched-stats.rst) and ``/proc/stat``
(proc(5)). Where the kernel keeps no such figures nothing is said of anything.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

WAITED_SHARE: Final = 0.25
"""Of the time in which its threads could run. A device loses a quarter of its rate by that,
and by half as much the usual daemons of an idle machine make themselves felt."""

STOLEN_SHARE: Final = 0.1
"""Of the machine's processors, by a hypervisor."""

QUIET_SHARE: Final = 0.2
"""Of the machine's processors that may be in use where a device is measured again: the
worker waits for nobody then."""

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_IDLE: Final = (3, 4)  # idle and iowait among the fields of a line of /proc/stat
_STOLEN: Final = 7


@dataclass(frozen=True, slots=True)
class Look:
    """What was counted until one moment; `Contention` is what lies between two.

    Attributes:
        at_s: When, on a monotonic clock.
        ran_s: How long the process's threads have had a processor.
        waited_s: How long they have waited for one.
        busy_s: How long the processors that this process may use have done something.
        stolen_s: How long they were withheld.
        processors: How many these are.
        throttled: How often heat slowed one of them down.
    """

    at_s: float = 0.0
    ran_s: float = 0.0
    waited_s: float = 0.0
    busy_s: float = 0.0
    stolen_s: float = 0.0
    processors: int = 1
    throttled: int = 0


@dataclass(frozen=True, slots=True)
class Contention:
    """What others took while something was measured.

    Attributes:
        waited_share: Of the time in which the process's threads could have run.
        stolen_share: Of its processors' time, by a hypervisor.
        throttled: Whether heat slowed one of them down.
    """

    waited_share: float = 0.0
    stolen_share: float = 0.0
    throttled: bool = False


# --- decisions: pure ------------------------------------------------------------------


def contention(spans: Iterable[tuple[Look, Look]]) -> Contention:
    """What was taken in all of these spans together."""
    ran_s = waited_s = stolen_s = processors_s = 0.0
    throttled = False
    for first, last in spans:
        ran_s += max(0.0, last.ran_s - first.ran_s)
        waited_s += max(0.0, last.waited_s - first.waited_s)
        stolen_s += max(0.0, last.stolen_s - first.stolen_s)
        processors_s += (last.at_s - first.at_s) * last.processors
        throttled = throttled or last.throttled > first.throttled
    return Contention(
        waited_share=waited_s / (ran_s + waited_s) if waited_s else 0.0,
        stolen_share=min(1.0, stolen_s / processors_s) if processors_s > 0 else 0.0,
        throttled=throttled,
    )


def disturbance(found: Contention) -> str:
    """Why figures may be too low that were taken beside this; "" where they are not."""
    if found.waited_share >= WAITED_SHARE:
        return (
            f"other work had the processors for {found.waited_share:.0%} of the time in which "
            "the device could have been at it"
        )
    if found.stolen_share >= STOLEN_SHARE:
        return f"the hypervisor withheld {found.stolen_share:.0%} of the processors' time"
    if found.throttled:
        return "the processor was slowed down by its heat"
    return ""


def is_quiet(first: Look, last: Look) -> bool:
    """Whether the machine did next to nothing between two looks."""
    processors_s = (last.at_s - first.at_s) * last.processors
    return processors_s > 0 and last.busy_s - first.busy_s <= QUIET_SHARE * processors_s


def read_schedstats(texts: Iterable[str]) -> tuple[float, float]:
    """Seconds that threads ran, and that they waited, by their ``schedstat``.

    Raises:
        ValueError: They are none.
    """
    ran_ns = waited_ns = 0
    for text in texts:
        ran, waited, *_ = map(int, text.split())
        ran_ns, waited_ns = ran_ns + ran, waited_ns + waited
    return ran_ns / 1e9, waited_ns / 1e9


def read_stat(text: str, usable: Iterable[int]) -> tuple[float, float]:
    """Seconds that processors were busy, and that they were withheld, by ``/proc/stat``.

    Raises:
        ValueError: It is none.
    """
    wanted = {f"cpu{number}" for number in usable}
    busy = stolen = 0
    for line in text.splitlines():
        name, *fields = line.split()
        if name in wanted:
            ticks = [int(field) for field in fields[: _STOLEN + 1]]  # then guests, again
            busy += sum(ticks) - sum(ticks[place] for place in _IDLE)
            stolen += ticks[_STOLEN]
    return busy / _TICKS_PER_S, stolen / _TICKS_PER_S


# --- effects --------------------------------------------------------------------------


def look(pid: int | None = None) -> Look:
    """Look at the machine, and at one of its processes; some 0.1 ms, and 20 µs a thread."""
    usable = os.sched_getaffinity(0)
    ran_s = waited_s = busy_s = stolen_s = 0.0
    with suppress(OSError, ValueError, IndexError):
        stat = Path("/proc/stat").read_text(encoding="ascii")
        busy_s, stolen_s = read_stat(stat, usable)
    if pid is not None:
        with suppress(OSError, ValueError):
            ran_s, waited_s = read_schedstats(_schedstats(pid))
    return Look(
        time.monotonic(), ran_s, waited_s, busy_s, stolen_s, len(usable), _throttled(usable)
    )


def _schedstats(pid: int) -> Iterable[str]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            yield (task / "schedstat").read_text(encoding="ascii")


def _throttled(usable: Iterable[int]) -> int:
    count = 0
    for number in usable:
        counter = Path(
            f"/sys/devices/system/cpu/cpu{number}/thermal_throttle/core_throttle_count"
        )
        try:
            count += int(counter.read_text(encoding="ascii"))
        except (OSError, ValueError):
            break  # a processor that counts none of it
    return count
