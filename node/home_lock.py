"""Which daemon holds a home: one at a time, told by the lock file in it.

It says which process that is and on which socket it answers, so that a client finds a
daemon whose socket depends on a variable that the client's shell has not got. Every client
looks here; the key of a home (`node.home`) is for its daemon alone.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.node.config import Config


@dataclass(frozen=True, slots=True)
class Holder:
    """The daemon that holds a home.

    Attributes:
        pid: Its process.
        socket: Where it serves its local API.
    """

    pid: int
    socket: Path


@contextmanager
def hold_home(config: Config) -> Iterator[None]:
    """Be the only daemon on this home for as long as the block runs.

    Raises:
        ConfigError: ``home_in_use``, naming the process that holds it.
    """
    with _lock_path(config.home).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise home_in_use(config.home, _read(lock)) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n{config.socket}\n")
        lock.flush()
        try:
            yield
        finally:
            lock.truncate(0)


def holder_of(home: Path) -> Holder | None:
    """Find the daemon that holds ``home``; None where none does, or nobody may know."""
    try:
        with _lock_path(home).open() as lock:
            holder = _read(lock)
            # What a killed daemon left is told by its lock. That is tried only where
            # a process has the number, so as not to hold it when a daemon starts.
            if holder is None or not Path(f"/proc/{holder.pid}").exists():
                return None
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return holder
    except OSError:
        pass
    return None


def home_in_use(home: Path, holder: Holder | None) -> ConfigError:
    """The error for a second daemon on one home."""
    process = holder.pid if holder else "unknown"
    return ConfigError(
        f"another daemon (process {process}) uses the home {home}",
        code="home_in_use",
        hint="use it, end it with `shoal down`, or give this one another --home",
    )


def _lock_path(home: Path) -> Path:
    return home / "lock"


def _read(lock: TextIO) -> Holder | None:
    lock.seek(0)
    pid, _, socket = lock.read().rstrip("\n").partition("\n")
    return Holder(int(pid), Path(socket)) if pid.isdecimal() and socket else None
