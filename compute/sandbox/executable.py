"""No memory may be both writable and executable once a worker is locked in.

System call filters refuse such mappings from then on; what is there already stays. The
foreign function library keeps a page of that kind for callbacks. Those that exist are
only called, so the page can lose its write permission. None can be made or let go after
that, which is why a worker ends by ``os._exit``, without an interpreter's cleaning up.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from shoal.compute.sandbox.kernel import call

_READ_AND_EXECUTE: Final = 1 | 4


def writable_and_executable(maps: str) -> list[tuple[int, int]]:
    """Start and end of such mappings, from the text of ``/proc/PID/maps``."""
    found = []
    for line in maps.splitlines():
        span, permissions = line.split(maxsplit=2)[:2]
        if "w" in permissions and "x" in permissions:
            start, _, end = span.partition("-")
            found.append((int(start, 16), int(end, 16)))
    return found


def freeze_executable_memory() -> None:
    """Take the write permission from all memory of this process that can be executed.

    Raises:
        OSError: The kernel refused.
    """
    maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    for start, end in writable_and_executable(maps):
        call("mprotect", start, end - start, _READ_AND_EXECUTE)
