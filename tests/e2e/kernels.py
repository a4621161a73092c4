"""Whose turn it is to compile the kernels of the class exact: not the tests' daemons'.

Each daemon that gets its turn spends some ten seconds of a core on the class: a process
finds the kernels compiled, its workers start anew with them, and it measures itself. Few
tests are about that. So the daemons of `tests/e2e` find another process at it, as where
another daemon of this user compiles, and offer the other classes. That other process is the
one that runs the tests. Where a test asks for the fixture ``exact``, those that it starts
find nobody; for ``exact_swarm`` those that wait have their turn, and they are three.
"""

import fcntl
import os
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import platformdirs
import pytest


class Turn:
    """The turn to compile, in caches of this process's own: one where it is held, one free.

    What was compiled for this user before is found in both.
    """

    def __init__(self):
        self._directory = tempfile.TemporaryDirectory(prefix="shoal-kernels-")
        root = Path(self._directory.name)
        self._held, self._free = root / "held", root / "free"
        users = os.environ.get("NUMBA_CACHE_DIR") or platformdirs.user_cache_dir("shoal")
        for place in (self._held, self._free):
            place.mkdir()
            for compiled in Path(users).glob("exact-*"):
                (place / compiled.name).symlink_to(compiled)
        self._lock = (self._held / "compiling.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._place = self._held

    @property
    def environment(self):
        """What a daemon that is started now has to have in its environment."""
        return {"NUMBA_CACHE_DIR": str(self._place)}

    @contextmanager
    def free(self):
        """Daemons that are started meanwhile find nobody at it."""
        before, self._place = self._place, self._free
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            try:
                yield
            finally:
                self._place = before

    @contextmanager
    def given(self):
        """Let daemons have it: those that wait go on, and keep what they get by it."""
        fcntl.flock(self._lock, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_EX)


turn = cache(Turn)
"""Gives the one turn of this process."""
