"""Turns: of those that want to work on the same thing, one at a time.

As many locks as there are things being worked on, each gone with its last user.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

K = TypeVar("K")


class Turns(Generic[K]):
    """Locks by name, in order of arrival."""

    def __init__(self) -> None:
        self._locks: dict[K, trio.Lock] = {}

    def taken(self, name: K) -> bool:
        """Whether somebody has the turn now; where not, `take` gives it at once."""
        return name in self._locks

    @asynccontextmanager
    async def take(self, name: K) -> AsyncIterator[None]:
        """Wait for the turn and have it for as long as the block runs."""
        lock = self._locks.setdefault(name, trio.Lock())
        try:
            async with lock:
                yield
        finally:  # whoever was cancelled before its turn may have been the last as well
            if not lock.locked() and self._locks.get(name) is lock:
                del self._locks[name]
