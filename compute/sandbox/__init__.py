"""The sandbox: what a worker takes away from itself before it sees a stranger's bytes.

Part of *execute*. `features` says what this kernel offers, `lock_in` uses it: no new
privileges and no capabilities, Landlock without any right, and a list of the system
calls that are allowed, in that order. Landlock and capabilities are each thread's own,
so this is done while there is one thread; threads started afterwards are held too.
When the worker's own threads run, `Lock.close` sets the hard limits and takes the
starting of threads away as well. None of it can be undone by the process. A card's
worker keeps more, by the profile `GPU`.

What no sandbox of a process covers, and how this one is tested: docs/SANDBOX.md.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shoal.compute.sandbox import landlock, seccomp
from shoal.compute.sandbox.executable import freeze_executable_memory
from shoal.compute.sandbox.kernel import architecture, call
from shoal.compute.sandbox.limits import HardLimits, Meter
from shoal.compute.sandbox.places import of_card_worker
from shoal.compute.sandbox.profiles import CPU, GPU, Profile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.compute.sandbox.landlock import Rule
    from shoal.compute.sandbox.seccomp import Filter

__all__ = [
    "CPU",
    "GPU",
    "Feature",
    "HardLimits",
    "Lock",
    "Meter",
    "Profile",
    "features",
    "lock_in",
    "of_card_worker",
    "strangers_welcome",
]

_SET_NO_NEW_PRIVS, _GET_NO_NEW_PRIVS = 38, 39
_CAPABILITY_VERSION_3: Final = 0x20080522

_HINTS: Final = {
    ("landlock", errno.ENOSYS): "use Linux 5.13 or newer, built with CONFIG_SECURITY_LANDLOCK",
    ("landlock", errno.EOPNOTSUPP): "add landlock to the kernel's boot parameter `lsm=`",
    ("seccomp", errno.ENOSYS): "use a kernel that was built with CONFIG_SECCOMP_FILTER",
    ("seccomp", errno.EINVAL): "use Linux 4.14 or newer, built with CONFIG_SECCOMP_FILTER",
    ("memfd sealing", errno.ENOSYS): "use Linux 3.17 or newer, built with CONFIG_MEMFD_CREATE",
}
_HINT_FOR_REFUSALS: Final = (
    "an outer sandbox refuses it: does the container's seccomp profile let it through?"
)


@dataclass(frozen=True, slots=True)
class Feature:
    """Something of the kernel's that the sandbox is made of.

    Attributes:
        name: Such as ``landlock``.
        offered: Whether it can be used here.
        message: Which version, or why not.
        hint: The next step where it is not offered.
        required: Whether strangers' work depends on it.
    """

    name: str
    offered: bool
    message: str
    hint: str = ""
    required: bool = True


@dataclass(frozen=True, slots=True)
class Lock:
    """How far this process is locked in.

    Attributes:
        landlock_abi: The ABI in force, or 0.
        filtered: Whether system calls are filtered.
        missing: Why something is not in force.
        profile: The profile's name.
        closing: What `close` loads.
    """

    landlock_abi: int = 0
    filtered: bool = False
    missing: tuple[str, ...] = ()
    profile: str = CPU.name
    closing: Filter | None = CPU.closing

    @property
    def complete(self) -> bool:
        """Whether strangers' programs may run here."""
        return self.landlock_abi > 0 and self.filtered and not self.missing

    def __str__(self) -> str:
        held = [f"landlock {self.landlock_abi}"] * (self.landlock_abi > 0)
        held += ["seccomp"] * self.filtered
        looser = f"profile {self.profile} (looser): " if self.profile != CPU.name else ""
        return looser + "; ".join([", ".join(held) or "not sandboxed", *self.missing])

    def close(self, meter: Meter, limits: HardLimits) -> Lock:
        """Set the hard limits, and load what the profile closes with.

        Raises:
            OSError: The kernel refused what it had allowed before.
        """
        meter.set_hard(limits)
        here = architecture()
        if self.filtered and here is not None and self.closing is not None:
            seccomp.load(self.closing, here)
        return self


def features() -> tuple[Feature, ...]:
    """What this kernel offers to this process; changes nothing."""
    return (
        _look("landlock", lambda: f"ABI {landlock.abi()}"),
        _look("seccomp", _seccomp),
        _look("no_new_privs", _no_new_privs),
        _look("memfd sealing", _memfd_sealing),
    )


def strangers_welcome(found: tuple[Feature, ...]) -> bool:
    """Whether a worker could be locked in as strangers' programs demand it."""
    return all(feature.offered for feature in found if feature.required)


def lock_in(profile: Profile, rules: Sequence[Rule] = ()) -> Lock:
    """Lock this process in, as far as the kernel can. There is no way back.

    What is missing is said in the result and not raised: a node still works for its
    own user without a sandbox.

    Args:
        profile: What stays allowed.
        rules: Which files do; without any, none.
    """
    lock = Lock(profile=profile.name, closing=profile.closing)
    try:
        threads = len(list(Path("/proc/self/task").iterdir()))
        if threads > 1:
            missing = (f"landlock: {threads} threads run already, and it holds for one",)
            lock = replace(lock, missing=missing)
        if not profile.makes_code:
            freeze_executable_memory()
        call("prctl", _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _drop_capabilities()
    except OSError as error:
        return _without(lock, "no_new_privs", error)
    try:
        lock = replace(lock, landlock_abi=landlock.restrict(rules))
    except OSError as error:
        lock = _without(lock, "landlock", error)
    try:
        here = architecture()
        if here is None:
            raise OSError(errno.ENOSYS, f"there is no filter for {platform.machine()}")
        seccomp.load(profile.filter(os.getpid()), here)
        return replace(lock, filtered=True)
    except OSError as error:
        return _without(lock, "seccomp", error)


def _without(lock: Lock, name: str, error: OSError) -> Lock:
    return replace(lock, missing=(*lock.missing, f"{name}: {error.strerror}"))


def _look(name: str, look: Callable[[], str]) -> Feature:
    try:
        return Feature(name, offered=True, message=look())
    except OSError as error:
        refused = error.errno in (errno.EPERM, errno.EACCES)
        hint = _HINT_FOR_REFUSALS if refused else _HINTS.get((name, error.errno or 0), "")
        message = f"not to be had: {error.strerror}"
        return Feature(name, offered=False, message=message, hint=hint)


def _seccomp() -> str:
    here = architecture()
    if here is None:
        raise OSError(errno.ENOEXEC, f"shoal has no filter for {platform.machine()}")
    seccomp.check_available()
    return f"filters for {here.name}"


def _no_new_privs() -> str:
    return "already set" if call("prctl", _GET_NO_NEW_PRIVS, 0, 0, 0, 0) else "can be set"


def _memfd_sealing() -> str:
    descriptor = os.memfd_create("shoal-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    finally:
        os.close(descriptor)
    return "works"


def _drop_capabilities() -> None:
    """Give up what root may do beyond other users: raising hard limits, among the rest."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    call("capset", ctypes.create_string_buffer(header), bytes(24))
