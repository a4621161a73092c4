"""Turns at the disk among threads: so many at once, and peers one after another.

A peer with many channels has no larger share than one with a single channel: whoever is
next is the peer that was served longest ago. Taken for each chunk, which is short enough
that nobody waits long and long enough that taking it costs nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.crypto.peer_id import PeerId


class FairTurns:
    """Turns for threads, shared out by peer.

    Args:
        at_once: How many have a turn at the same time.
    """

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._lock = threading.Lock()
        self._waiting: OrderedDict[PeerId, deque[threading.Event]] = OrderedDict()

    @contextmanager
    def take(self, peer: PeerId) -> Iterator[None]:
        """Wait for a turn and have it for as long as the block runs; keep it short."""
        called = None
        with self._lock:
            if self._free:
                self._free -= 1
            else:
                called = threading.Event()
                self._waiting.setdefault(peer, deque()).append(called)
        if called is not None:
            called.wait()
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        with self._lock:
            if not self._waiting:
                self._free += 1
                return
            peer, queue = self._waiting.popitem(last=False)
            queue.popleft().set()
            if queue:  # behind all others that wait
                self._waiting[peer] = queue
