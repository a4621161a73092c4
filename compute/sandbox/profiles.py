"""Which system calls a locked-in worker may make, as data: one profile per kind of worker.

``CPU`` is for workers that were fully set up when they locked themselves in: libraries
loaded, kernels compiled. It allows what arithmetic takes: memory that holds data,
waiting, time, random numbers, and reading and writing what is open already. It opens
nothing, names nothing and starts nothing.

There is no profile for GPUs yet, and no executor that would use one. A driver needs
``ioctl`` and ``openat`` on its devices, and a compiler at run time needs executable
memory: a looser profile, to be written here beside this one under a name of its own,
when it can be tried on a GPU.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shoal.compute.sandbox.seccomp import Filter, Where, fails

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROT_EXEC: Final = 4
_NOT_EXECUTABLE: Final = (Where(argument=2, mask=_PROT_EXEC, values=(0,)),)

_CLONE_THREAD: Final = 0x00010000
_CLONE_FORBIDDEN: Final = (
    # TRACED (0x2000), VFORK (0x4000), PARENT (0x8000), and every new namespace:
    # NEWTIME, NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
    0x0000E080 | 0x00020000 | 0x02000000 | 0x7C000000
)
_SET_MODE_FILTER: Final = 1
_SET_NAME: Final = 15
_FCNTL: Final = (
    1030,  # F_DUPFD_CLOEXEC
    1,  # F_GETFD
    2,  # F_SETFD
    3,  # F_GETFL
    4,  # F_SETFL
    1034,  # F_GET_SEALS
)
"""Not F_SETOWN, F_SETOWN_EX or F_SETSIG: by these the kernel sends any signal to anyone."""

_MADVISE: Final = (0, 1, 2, 3, 4, 8, 14, 15, 16, 17, 20, 21)
"""NORMAL, RANDOM, SEQUENTIAL, WILLNEED, DONTNEED, FREE, (NO)HUGEPAGE, (DO)DONTDUMP, COLD,
PAGEOUT. Not REMOVE, which punches holes into shared memory, nor MERGEABLE, by which a
process learns what others hold."""

_ANYHOW: Final = (
    # what is open already
    "read", "readv", "write", "writev", "pread64", "lseek", "fstat", "close", "recvfrom",
    "recvmsg", "sendto", "sendmsg",
    # memory
    "brk", "mremap", "munmap",
    # threads
    "futex", "sched_yield", "sched_getaffinity", "getcpu", "set_robust_list", "rseq",
    "gettid", "exit", "exit_group",
    # signals of its own
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "restart_syscall",
    # time and chance
    "clock_getres", "clock_gettime", "clock_nanosleep", "gettimeofday", "nanosleep", "time",
    "getrandom",
    # about itself
    "getpid", "getuid", "geteuid", "getgid", "getegid", "getrusage", "uname",
)  # fmt: skip
"""Not newfstatat, though the C library's fstat may be that call: it takes paths as well.
Python's mmap asks for a file's size by it, and goes on without an answer.
"""


@dataclass(frozen=True, slots=True)
class Profile:
    """The calls of one kind of worker.

    Attributes:
        name: For people.
        allowed: Calls by name, each with conditions that must all hold.
        of_own_process: Calls whose argument of that number must be the process's own
            id, or one of these other values.
        errnos: Calls that fail with another errno than EPERM.
    """

    name: str
    allowed: Mapping[str, tuple[Where, ...]]
    of_own_process: Mapping[str, tuple[int, tuple[int, ...]]]
    errnos: Mapping[str, int]

    def filter(self, own_pid: int) -> Filter:
        """The filter of a process; all calls that are not allowed fail with EPERM."""
        own = {
            name: (Where(argument, (own_pid, *others)),)
            for name, (argument, others) in self.of_own_process.items()
        }
        return Filter({**self.allowed, **own}, self.errnos, fails(errno.EPERM))


CPU: Final = Profile(
    name="cpu",
    allowed={
        **dict.fromkeys(_ANYHOW, ()),
        "mmap": _NOT_EXECUTABLE,
        "mprotect": _NOT_EXECUTABLE,
        "madvise": (Where(argument=2, values=_MADVISE),),
        "fcntl": (Where(argument=1, values=_FCNTL),),
        "prctl": (Where(argument=0, values=(_SET_NAME,)),),
        # Until `NO_MORE_THREADS`, which takes these two away as well:
        "clone": (Where(0, mask=_CLONE_THREAD | _CLONE_FORBIDDEN, values=(_CLONE_THREAD,)),),
        "seccomp": (Where(argument=0, values=(_SET_MODE_FILTER,)),),
    },
    of_own_process={
        "tgkill": (0, ()),
        "prlimit64": (0, (0,)),
    },
    # Its flags lie in memory, where no filter sees them. The C library then uses clone.
    errnos={"clone3": errno.ENOSYS},
)

NO_MORE_THREADS: Final = Filter(errnos={"clone": errno.EPERM, "seccomp": errno.EPERM})
"""On top of a profile, once a worker's threads run: a thread bomb fails at its first one."""
