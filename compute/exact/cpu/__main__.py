"""Compile the CPU's kernels into their cache: ``python -m shoal.compute.exact.cpu``.

The daemon runs this once in the background, so that no worker compiles: it takes
some tens of seconds on a machine that never did it, and a second or two otherwise.
Daemons that start together take turns, and all but the first find the work done.
"""

from __future__ import annotations

import ctypes
import fcntl
import importlib
import os
import signal
from pathlib import Path

import platformdirs

_LOWEST_PRIORITY = 19
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Compile what is not in the cache yet.

    Raises:
        OSError: There is no directory to keep compiled kernels in.
    """
    os.nice(_LOWEST_PRIORITY)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    cache = Path(os.environ.get("NUMBA_CACHE_DIR") or platformdirs.user_cache_dir("shoal"))
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (cache / "compiling.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        importlib.import_module(
            "shoal.compute.exact.cpu.kernels"
        )  # compiles, or finds the work done


if __name__ == "__main__":
    main()
