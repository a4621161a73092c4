"""Turns: of those that want to work on the same thing, so many at a time.

As many limiters as there are things being worked on, each gone with its last user.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

K = TypeVar("K")


class Turns(Generic[K]):
    """Limiters by name, in order of arrival.

    Args:
        at_once: How many have a turn at the same thing.
    """

    def __init__(self, at_once: int = 1) -> None:
        self._at_once = at_once
        self._limiters: dict[K, trio.CapacityLimiter] = {}

    def taken(self, name: K) -> bool:
        """Whether somebody has a turn now; where not, `take` gives one at once."""
        return name in self._limiters

    @asynccontextmanager
    async def take(self, name: K) -> AsyncIterator[None]:
        """Wait for a turn and have it for as long as the block runs."""
        limiter = self._limiters.setdefault(name, trio.CapacityLimiter(self._at_once))
        try:
            async with limiter:
                yield
        finally:  # whoever was cancelled before its turn may have been the last as well
            if not limiter.borrowed_tokens and self._limiters.get(name) is limiter:
                del self._limiters[name]
