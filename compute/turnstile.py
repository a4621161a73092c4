"""Few at a time: the foremost rank first, and within a rank each requester its share.

Trio's `Lock` is fair to tasks; here it is the seconds inside that are shared out
(`compute.fair_queue`). Who is inside is never put out: a unit cannot be interrupted. Ranks
are strict, so that what has to come to its turn some day says how long it waits at each.

Whoever is next waits until what it wants fits beside those inside (`Claim`), and nobody
who wants less passes it by: else what is large would wait for ever. Alone, anything fits.
"""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from shoal.compute.fair_queue import FairQueue

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Claim:
    """What somebody wants who waits; this one wants nothing but a place.

    Attributes:
        alone: Nobody else is to be inside.
    """

    alone = False

    def fits(self) -> bool:
        """Whether there is enough now; asked while others are inside."""
        return True

    def enter(self) -> None:
        """Take it: its turn has come."""

    def leave(self) -> None:
        """Give it back. Called once for each `enter`."""


class Alone(Claim):
    """Wants to be the only one."""

    alone = True


class Turnstile:
    """Lets few callers in at a time. Cancel-safe: who gives up waiting is passed over.

    Args:
        places: How many, at most.
    """

    def __init__(self, places: int = 1) -> None:
        self._places = places
        self._inside: list[Claim] = []
        self._queue: FairQueue[tuple[trio.Event, Claim]] = FairQueue()

    @property
    def taken(self) -> bool:
        """Whether somebody is inside."""
        return bool(self._inside)

    @asynccontextmanager
    async def turn(
        self,
        rank: int,
        requester: str = "",
        patience_s: float = math.inf,
        claim: Claim | None = None,
    ) -> AsyncIterator[None]:
        """Wait for a turn, and have it while the block runs; it is charged for its time.

        Args:
            rank: A lower one goes first.
            requester: Whose turn it is.
            patience_s: After so long at a rank it goes on waiting at the one before.
            claim: What is wanted beside a place.
        """
        claim = claim or Claim()
        rank = await self._enter(rank, requester, patience_s, claim)
        began_s = trio.current_time()
        try:
            yield
        finally:
            self._queue.charge(rank, requester, trio.current_time() - began_s)
            self._leave(claim)

    def look(self) -> None:
        """Let those in whose turn it is: what they want may fit by now."""
        while len(self._queue) and len(self._inside) < self._places:
            come, claim = self._queue.foremost()
            if self._inside and (claim.alone or self._inside[0].alone or not claim.fits()):
                return
            self._queue.take()
            self._inside.append(claim)
            claim.enter()
            come.set()

    async def _enter(self, rank: int, requester: str, patience_s: float, claim: Claim) -> int:
        """Wait for a turn; gives the rank at which it came."""
        await trio.lowlevel.checkpoint()
        come = trio.Event()
        waits = come, claim
        self._queue.add(rank, requester, waits)
        self.look()
        try:
            while not come.is_set():
                with trio.move_on_after(patience_s if rank > 0 else math.inf):
                    await come.wait()
                if not come.is_set():
                    self._queue.remove(rank, requester, waits)
                    rank -= 1
                    self._queue.add(rank, requester, waits)
                    self.look()
        except trio.Cancelled:
            if come.is_set():  # its turn came at the same moment
                self._queue.charge(rank, requester, 0.0)
                self._leave(claim)
            else:
                self._queue.remove(rank, requester, waits)
                self.look()  # it may have been in front of one that fits
            raise
        return rank

    def _leave(self, claim: Claim) -> None:
        """Let the next ones in."""
        self._inside.remove(claim)
        claim.leave()
        self.look()
