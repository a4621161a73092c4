"""One at a time: the foremost rank first, and within a rank each requester its share.

Trio's `Lock` is fair to tasks; here it is the seconds inside that are shared out
(`compute.fair_queue`). Who is inside is never put out: a unit cannot be interrupted. Ranks
are strict, so that what has to come to its turn some day says how long it waits at each.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from shoal.compute.fair_queue import FairQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Turnstile:
    """Lets one caller in at a time. Cancel-safe: who gives up waiting is passed over."""

    def __init__(self) -> None:
        self._taken = False
        self._queue: FairQueue[trio.Event] = FairQueue()

    @property
    def taken(self) -> bool:
        """Whether somebody is inside."""
        return self._taken

    @asynccontextmanager
    async def turn(
        self, rank: int, requester: str = "", patience_s: float = math.inf
    ) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the block runs; it is charged for its time.

        Args:
            rank: A lower one goes first.
            requester: Whose turn it is.
            patience_s: After so long at a rank it goes on waiting at the one before.
        """
        rank = await self._enter(rank, requester, patience_s)
        began_s = trio.current_time()
        try:
            yield
        finally:
            self._queue.charge(rank, requester, trio.current_time() - began_s)
            self._leave()

    async def _enter(self, rank: int, requester: str, patience_s: float) -> int:
        """Wait for a turn; gives the rank at which it came."""
        await trio.lowlevel.checkpoint()
        come = trio.Event()
        self._queue.add(rank, requester, come)
        if not self._taken:
            self._leave()
            return rank
        try:
            while not come.is_set():
                with trio.move_on_after(patience_s if rank > 0 else math.inf):
                    await come.wait()
                if not come.is_set():
                    self._queue.remove(rank, requester, come)
                    rank -= 1
                    self._queue.add(rank, requester, come)
        except trio.Cancelled:
            if come.is_set():  # its turn came at the same moment
                self._queue.charge(rank, requester, 0.0)
                self._leave()
            else:
                self._queue.remove(rank, requester, come)
            raise
        return rank

    def _leave(self) -> None:
        """Let the next one in."""
        self._taken = len(self._queue) > 0
        if self._taken:
            self._queue.take().set()
