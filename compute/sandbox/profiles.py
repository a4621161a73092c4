"""Which system calls a locked-in worker may make, as data: one profile per kind of worker.

``CPU`` is for workers that were fully set up when they locked themselves in: libraries
loaded, kernels compiled. It allows what arithmetic takes: memory that holds data,
waiting, time, random numbers, and reading and writing what is open already. It opens
nothing, names nothing and starts nothing.

``GPU`` is for workers that run units on a card, and is looser. A driver opens its devices
when it likes and talks to them by ``ioctl``; kernels are compiled while a unit is prepared,
which takes executable memory, files and other programs. Which calls the drivers of two
vendors make is not written down anywhere, so that profile lists what is refused: all that
reaches other processes, the network, or the machine as a whole. Files are Landlock's
(`shoal.compute.sandbox.places`).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shoal.compute.sandbox.seccomp import ALLOW, Filter, Where, fails

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
        errnos: Calls that fail with an errno of their own.
        others: What happens to every other call.
        closing: What is loaded on top, once the worker's own threads run.
        makes_code: Whether memory may be written and executed.
    """

    name: str
    allowed: Mapping[str, tuple[Where, ...]]
    of_own_process: Mapping[str, tuple[int, tuple[int, ...]]]
    errnos: Mapping[str, int]
    others: int = fails(errno.EPERM)
    closing: Filter | None = None
    makes_code: bool = False

    def filter(self, own_pid: int) -> Filter:
        """The filter of a process; a call whose conditions do not hold fails with EPERM."""
        own = {
            name: (Where(argument, (own_pid, *others)),)
            for name, (argument, others) in self.of_own_process.items()
        }
        allowed = {**self.allowed, **own}
        return Filter(allowed, self.errnos, self.others, unmet=fails(errno.EPERM))


NO_MORE_THREADS: Final = Filter(errnos={"clone": errno.EPERM, "seccomp": errno.EPERM})
"""On top of a profile, once a worker's threads run: a thread bomb fails at its first one."""


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
    closing=NO_MORE_THREADS,
)

_NEW_NAMESPACES: Final = 0x7E020000
"""NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""

_TRACED_OR_PARENT: Final = 0x2000 | 0x8000

_DRIVERS: Final = (
    0x0000,  # NVIDIA's unified memory, whose requests are bare numbers
    0x4600,  # 'F': NVIDIA's cards
    0x6D00,  # 'm': NVIDIA's mode setting
    0x4B00,  # 'K': AMD's kfd, through which its cards compute
    0x6400,  # 'd': DRM, AMD's memory
    0x6200,  # 'b': buffers that drivers share
    0x4700,  # 'G': Windows' cards, under its subsystem for Linux
    0x5400,  # 'T': whether this is a terminal; non-blocking, close on exec
)
"""The second byte of an ``ioctl``'s number, which says whose it is. Not 0x89, by which the
kernel sends signals to whom it is told."""

_GPU_REFUSED: Final = (
    # what reaches the network past the filter
    "io_uring_setup", "io_uring_enter", "io_uring_register",
    # other processes: their memory, their files, their signals, their share of the machine
    "ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "kcmp",
    "pidfd_open", "pidfd_getfd", "pidfd_send_signal", "kill", "tkill", "rt_sigqueueinfo",
    "rt_tgsigqueueinfo", "ioprio_set", "sched_setscheduler", "sched_setparam",
    "sched_setattr", "migrate_pages", "move_pages",
    # leaving the session, by which the whole worker is ended
    "setsid", "setpgid",
    # the machine
    "unshare", "setns", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree",
    "fsopen", "fsmount", "fsconfig", "fspick", "mount_setattr", "open_by_handle_at",
    "bpf", "perf_event_open", "userfaultfd", "keyctl", "add_key", "request_key",
    "init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot",
    "swapon", "swapoff", "acct", "quotactl", "settimeofday", "clock_settime", "adjtimex",
    "clock_adjtime", "sethostname", "setdomainname", "syslog", "iopl", "ioperm", "personality",
)  # fmt: skip

_UNIX: Final = (Where(0, values=(1,)), Where(1, mask=0xF, values=(1, 5)))
"""Streams and packets in sequence, which reach nobody unless they connect. A datagram would."""

GPU: Final = Profile(
    name="gpu",
    allowed={
        "ioctl": (Where(argument=1, mask=0xFF00, values=_DRIVERS),),
        "clone": (Where(0, mask=_NEW_NAMESPACES | _TRACED_OR_PARENT, values=(0,)),),
        # Not F_SETOWN and the like; locks, pipes and seals as well, which compilers use.
        "fcntl": (Where(1, values=(*_FCNTL, 0, 5, 6, 7, 36, 37, 38, 1031, 1032, 1033)),),
        "sched_setaffinity": (Where(argument=0, values=(0,)),),
        # CUDA's library listens on a socket of its own, for debuggers and the like.
        "socket": _UNIX,
        "socketpair": _UNIX,
        "setpriority": (Where(argument=0, values=(0,)), Where(argument=1, values=(0,))),
    },
    of_own_process={
        "prlimit64": (0, (0,)),
    },
    errnos={
        **dict.fromkeys(_GPU_REFUSED, errno.EPERM),
        "clone3": errno.ENOSYS,
        "connect": errno.ECONNREFUSED,  # as where nobody listens, which CUDA's library expects
    },
    others=ALLOW,
    makes_code=True,
)
"""Looser: see `shoal.compute.sandbox`'s documentation, which says what is not covered."""
