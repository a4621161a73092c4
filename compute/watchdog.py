"""A thread that calls out once a deadline has passed, started once and used many times.

A locked-in worker can start no thread (`shoal.compute.sandbox`), so a timer per request
would be refused.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Watchdog:
    """Calls ``bark``, from its own thread, when a block takes longer than it may.

    Args:
        bark: Called once per block; must not raise and must not wait.
    """

    def __init__(self, bark: Callable[[], None]) -> None:
        self._bark = bark
        self._changed = threading.Condition()
        self._deadline_s: float | None = None
        self._awake_at_s = math.inf

    def start(self) -> None:
        """Start the thread, which lasts as long as the process."""
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    @contextmanager
    def within(self, time_s: float) -> Iterator[None]:
        """Watch one block; blocks do not overlap.

        Args:
            time_s: How long it may take.
        """
        self._set(time.monotonic() + time_s)
        try:
            yield
        finally:
            self._set(None)

    def _set(self, deadline_s: float | None) -> None:
        with self._changed:
            self._deadline_s = deadline_s
            # To wake a thread takes longer than a small unit: it finds out by itself that
            # a later deadline than the one it sleeps until has taken its place, or none.
            if deadline_s is not None and deadline_s < self._awake_at_s:
                self._awake_at_s = deadline_s
                self._changed.notify()

    def _watch(self) -> None:
        with self._changed:
            while True:
                if self._deadline_s is None:
                    self._awake_at_s = math.inf
                    self._changed.wait()
                    continue
                self._awake_at_s = self._deadline_s
                left_s = self._deadline_s - time.monotonic()
                if left_s > 0:
                    self._changed.wait(left_s)
                    continue
                self._deadline_s = None
                # Under the lock: a block that has ended is never barked at.
                self._bark()
