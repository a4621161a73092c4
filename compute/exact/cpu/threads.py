"""The threads of the CPU backend: each kernel call is cut into parts, one queue of them.

Part of *execute*. Kernels and numpy's BLAS release the GIL, so Python's own threads
run them side by side. Compared with numba's parallel loops: nothing spins between
two calls (an idle OpenMP thread would take a core away from BLAS), no threading
library has to be found on the user's machine, calls from several threads are safe,
and a part may be a whole chain (quantise, multiply, round) that stays in one core's
cache. BLAS itself is held to one thread, for the whole process.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray


class Threads:
    """A fixed number of threads, the caller's among them.

    Args:
        count: How many; None: as many as the process may use cores.
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = count or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(max(1, self.count - 1), "exact")
        self._scratch = threading.local()
        threadpool_limits(1, user_api="blas")

    def start(self) -> None:
        """Start every thread now: a worker that locked itself in might not be let to."""
        together = threading.Barrier(self.count)
        self.run([together.wait] * self.count)

    def run(self, parts: Sequence[Callable[[], int]]) -> int:
        """Run the parts, in any order, and wait for all of them.

        Returns:
            The greatest of what they returned.
        """
        if len(parts) == 1 or self.count == 1:
            return max((part() for part in parts), default=0)
        waiting = iter(parts)  # next() of a list's iterator is atomic: a queue

        def work() -> int:
            return max((part() for part in waiting), default=0)

        others = [self._pool.submit(work) for _ in range(min(self.count, len(parts)) - 1)]
        try:
            status = work()
        finally:
            wait(others)  # whatever fails: nobody may still be writing when this returns
        return max(status, *(other.result() for other in others))

    def split(self, part: Callable[[int, int], int], size: int, cost: int) -> int:
        """Run ``part(start, stop)`` over 0..size, in one piece where it is little work.

        Args:
            part: The work on a range; gives a status.
            size: How many items.
            cost: Of one item, in about nanoseconds.

        Returns:
            The greatest status.
        """
        worth = max(1, size * cost // _PART_COST)
        count = min(size, worth, self.count * _PARTS_PER_THREAD)
        if count <= 1:
            return part(0, size)
        edges = [size * index // count for index in range(count + 1)]
        return self.run(
            [
                lambda start=start, stop=stop: part(start, stop)
                for start, stop in pairwise(edges)
            ]
        )

    def scratch(self, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
        """This thread's float64 array of that name: reused, so its content is stale."""
        size = int(np.prod(shape, dtype=np.int64))
        held: NDArray[np.float64] | None = getattr(self._scratch, name, None)
        if held is None or held.size < size:
            held = np.empty(size, np.float64)
            setattr(self._scratch, name, held)
        return held[:size].reshape(shape)


_PARTS_PER_THREAD = 4
"""So that a core that somebody else uses delays one part and not half of the work."""
_PART_COST = 50_000
"""Nanoseconds of work below which waking a thread costs more than it saves."""
