"""Start a process as an ordinary user, where the tests run as root.

What the process needs (Python, its packages, these sources) may lie in directories that
only root can enter. It gets a mount namespace of its own, in which those directories
hold nothing but what it needs; nothing changes for anybody else.
"""

import ctypes
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import shoal

NOBODY = 65534
_NEW_MOUNTS, _BIND, _RECURSIVE, _PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
_LIBC = ctypes.CDLL(None, use_errno=True)


def needed():
    """Directories that the interpreter, its packages and these tests lie in."""
    repository = Path(__file__).resolve().parents[2]
    package = Path(shoal.__file__).parent
    paths = sysconfig.get_paths()
    found = [sys.base_prefix, sys.prefix, paths["purelib"], paths["platlib"]]
    return sorted({Path(p).resolve() for p in (*found, repository, package)})


def closed(path):
    """The outermost directory on the way to ``path`` that others cannot enter, or None."""
    way = [*reversed(path.parents), path]
    return next((d for d in way if not d.stat().st_mode & 0o001), None)


def run(command, **options):
    """`subprocess.run` as nobody; raises PermissionError where root may not prepare it."""
    doors = {}
    for path in needed():
        door = closed(path)
        if door is not None:
            doors.setdefault(door, []).append(path)

    def become_nobody():
        if doors:
            _check(_LIBC.unshare(_NEW_MOUNTS))
            _mount(None, "/", None, _RECURSIVE | _PRIVATE)
        for door, paths in doors.items():
            held = [(path, os.open(path, os.O_PATH)) for path in paths]
            _mount("tmpfs", str(door), b"tmpfs", 0, b"mode=755")
            for path, descriptor in held:
                path.mkdir(parents=True, exist_ok=True)
                _mount(f"/proc/self/fd/{descriptor}", str(path), None, _BIND | _RECURSIVE)
        os.chdir("/")
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)

    try:
        return subprocess.run(command, preexec_fn=become_nobody, **options)  # noqa: PLW1510
    except subprocess.SubprocessError as error:
        raise PermissionError(f"its surroundings cannot be prepared: {error}") from None


def _mount(source, target, kind, flags, data=None):
    encoded = source.encode() if source else None
    _check(_LIBC.mount(encoded, target.encode(), kind, ctypes.c_ulong(flags), data))


def _check(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
