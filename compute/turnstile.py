"""One at a time, the foremost rank first, and within a rank in order of arrival.

Trio's `Lock` is fair to all; a machine's owner comes before friends, and friends come
before strangers. Who is inside is never put out: a unit cannot be interrupted.
"""

from __future__ import annotations

import heapq
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Turnstile:
    """Lets one caller in at a time. Cancel-safe: who gives up waiting is passed over."""

    def __init__(self) -> None:
        self._taken = False
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, trio.Event]] = []

    @property
    def taken(self) -> bool:
        """Whether somebody is inside."""
        return self._taken

    @asynccontextmanager
    async def turn(self, rank: int) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the block runs; a lower rank goes first."""
        await self._enter(rank)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, rank: int) -> None:
        await trio.lowlevel.checkpoint()
        if not self._taken:
            self._taken = True
            return
        ticket = (rank, next(self._numbers), trio.Event())
        heapq.heappush(self._waiting, ticket)
        try:
            await ticket[2].wait()
        except trio.Cancelled:
            if ticket[2].is_set():  # its turn came at the same moment
                self._leave()
            else:
                self._waiting.remove(ticket)
                heapq.heapify(self._waiting)
            raise

    def _leave(self) -> None:
        if self._waiting:
            heapq.heappop(self._waiting)[2].set()
        else:
            self._taken = False
