"""The kernel's calls that Python does not wrap, by name: a table and one function.

Numbers are those of the kernel's own headers (``asm/unistd_64.h`` for x86_64,
``asm-generic/unistd.h`` for aarch64); they never change. Only what a profile allows
or the sandbox itself calls is listed, on the architectures that shoal knows.
"""

from __future__ import annotations

import ctypes
import os
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Architecture:
    """What a filter must know about a machine.

    Attributes:
        name: As ``uname -m`` has it.
        audit: The kernel's constant for it, ``AUDIT_ARCH_*``.
        syscalls: Numbers by name; a call that the architecture lacks is not there.
        first_foreign: From this number on, calls are another ABI's (x32 on x86_64),
            or None.
    """

    name: str
    audit: int
    syscalls: Mapping[str, int]
    first_foreign: int | None = None


_X86_64_AND_AARCH64: Final = {
    "brk": (12, 214),
    "capset": (126, 91),
    "clock_getres": (229, 114),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "clone": (56, 220),
    "clone3": (435, 435),
    "close": (3, 57),
    "exit": (60, 93),
    "exit_group": (231, 94),
    "fcntl": (72, 25),
    "fstat": (5, 80),
    "futex": (202, 98),
    "getcpu": (309, 168),
    "getegid": (108, 177),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getpid": (39, 172),
    "getrandom": (318, 278),
    "getrusage": (98, 165),
    "gettid": (186, 178),
    "gettimeofday": (96, 169),
    "getuid": (102, 174),
    "landlock_create_ruleset": (444, 444),
    "landlock_restrict_self": (446, 446),
    "lseek": (8, 62),
    "madvise": (28, 233),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "nanosleep": (35, 101),
    "prctl": (157, 167),
    "pread64": (17, 67),
    "prlimit64": (302, 261),
    "read": (0, 63),
    "readv": (19, 65),
    "recvfrom": (45, 207),
    "recvmsg": (47, 212),
    "restart_syscall": (219, 128),
    "rseq": (334, 293),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    "seccomp": (317, 277),
    "sendmsg": (46, 211),
    "sendto": (44, 206),
    "set_robust_list": (273, 99),
    "sigaltstack": (131, 132),
    "tgkill": (234, 131),
    "time": (201, None),
    "uname": (63, 160),
    "write": (1, 64),
    "writev": (20, 66),
}

X86_64: Final = Architecture(
    "x86_64",
    audit=0xC000003E,
    syscalls={name: x86 for name, (x86, _) in _X86_64_AND_AARCH64.items()},
    first_foreign=0x40000000,
)
AARCH64: Final = Architecture(
    "aarch64",
    audit=0xC00000B7,
    syscalls={n: arm for n, (_, arm) in _X86_64_AND_AARCH64.items() if arm is not None},
)


def architecture() -> Architecture | None:
    """The one that this process runs on, or None where no filter was written for it."""
    sixty_four_bits = ctypes.sizeof(ctypes.c_void_p) == 8
    known = {known.name: known for known in (X86_64, AARCH64)}
    return known.get(platform.machine()) if sixty_four_bits else None


_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def call(name: str, *arguments: int | ctypes.Array[ctypes.c_char] | bytes | None) -> int:
    """Make a system call on this thread.

    Raises:
        OSError: The kernel refused, with its errno; ENOSYS where shoal has no number.
    """
    here = architecture()
    if here is None:
        raise OSError(38, f"no system calls are listed for {platform.machine()}")
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _LIBC.syscall(ctypes.c_long(here.syscalls[name]), *words)
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), name)
    return result
