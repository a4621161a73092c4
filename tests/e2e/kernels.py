"""Whose turn it is to compile the kernels of the class exact: not the tests' daemons'.

Each daemon that gets its turn spends some ten seconds of a core on the class: a process
finds the kernels compiled, its workers start anew with them, and it measures itself. Few
tests are about that. So the daemons of `tests/e2e` find another process at it, as where
another daemon of this user compiles, and offer the other classes until a test asks for
the fixture ``exact``. That other process is the one that runs the tests.
"""

import fcntl
import os
import tempfile
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import platformdirs


class Turn:
    """The turn to compile, in a cache of this process's own; it is held but for `given`.

    What was compiled for this user before is found there too.
    """

    def __init__(self):
        self._directory = tempfile.TemporaryDirectory(prefix="shoal-kernels-")
        cache_directory = Path(self._directory.name)
        users = os.environ.get("NUMBA_CACHE_DIR") or platformdirs.user_cache_dir("shoal")
        for compiled in Path(users).glob("exact-*"):
            (cache_directory / compiled.name).symlink_to(compiled)
        self._lock = (cache_directory / "compiling.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.environment = {"NUMBA_CACHE_DIR": str(cache_directory)}

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
