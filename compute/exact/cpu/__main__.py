"""Compile the CPU's kernels into the cache: ``python -m shoal.compute.exact.cpu``.

The daemon runs this once in the background, so that no worker compiles: it takes
some tens of seconds on a machine that never did it, and a second or two otherwise.
Daemons that start together take turns, and all but the first find the work done.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import tempfile
from pathlib import Path

_LOWEST_PRIORITY = 19
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Compile what is not in the cache yet; gives the process's exit code."""
    os.nice(_LOWEST_PRIORITY)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with (Path(tempfile.gettempdir()) / f"shoal-exact-{os.getuid()}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        from shoal.compute.exact.cpu import CpuKernels
        from shoal.compute.exact.cpu.compiled import CACHE_DIRECTORY

        CpuKernels(threads=1).warm_up()
    if CACHE_DIRECTORY is None:
        print("there is no directory to keep compiled kernels in", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
