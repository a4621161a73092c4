"""How a worker yields to the owner's own processes: the priority of all its threads.

Set once a worker is ready: starting at the lowest priority on a busy machine would
take minutes (nice 19 beside four busy loops on two cores made three million turns
of a loop take 12 s in place of 0.1 s). SCHED_IDLE is not used: it gave a worker a
fifth of even that, and a node steps back for its owner before such a unit ends.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

LOWEST: Final = 19
STARTING: Final = 5
"""While a worker imports its libraries: the daemon's heartbeat still comes first."""

_TRIES: Final = 3
_PAUSE_S: Final = 0.12
"""The kernel changes one autogroup in a tenth of a second."""


def yield_to_owner(niceness: int) -> None:
    """Give this process, with all its threads, a lower priority; it never fails.

    Args:
        niceness: From `STARTING` to `LOWEST`. A higher priority than a process has
            is not to be had again.
    """
    for thread in os.listdir("/proc/self/task"):  # noqa: PTH208  # names alone
        with suppress(OSError):  # it has ended, or has less already
            os.setpriority(os.PRIO_PROCESS, int(thread), niceness)
    _yield_as_session(niceness)
    with suppress(ImportError, OSError):
        import psutil

        with suppress(psutil.Error):
            psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def _yield_as_session(niceness: int) -> None:
    """The same for the session as a whole.

    Where the kernel groups tasks by session (sched(7), "The autogroup feature"), a
    process's own niceness counts within its session only, and a worker has its own.
    """
    group = Path("/proc/self/autogroup")
    for _ in range(_TRIES):
        try:
            group.write_text(str(niceness), encoding="ascii")
        except BlockingIOError:
            time.sleep(_PAUSE_S)
        except OSError:  # there is no such feature, or not in this container
            return
        else:
            return
