"""Opens the workers of a daemon's devices, and ends them all together.

What each does is `compute.device_worker`'s.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from shoal.compute import frames, priority
from shoal.compute.device_worker import Worker
from shoal.compute.worker_process import WORKER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from shoal.compute.worker_process import Place

CACHE_BYTES: Final = 2 << 30
"""Weights of prepared programs that a process keeps at most."""

MEMORY_BYTES: Final = 8 << 30
"""What a unit may use at most, where the operator has not said."""


@asynccontextmanager
async def open_worker(
    *,
    threads: int,
    cache_bytes: int = CACHE_BYTES,
    memory_bytes: int = MEMORY_BYTES,
    niceness: int = priority.STARTING,
    entry: Sequence[str] = WORKER,
) -> AsyncIterator[Worker]:
    """A worker for the CPU, whose processes are gone when the block is left.

    Args:
        threads: How many threads a unit may use.
        cache_bytes: How many bytes of prepared programs each process keeps.
        memory_bytes: The most that any unit may ask for; the kernel holds each process
            to this, the programs kept, and a unit's inputs and outputs, whatever it runs.
        niceness: How far units yield to other processes; a start yields less.
        entry: What Python runs as the worker, for tests.
    """
    start = frames.Start(
        threads=threads,
        cache_bytes=cache_bytes,
        memory_bytes=memory_bytes,
        exact=False,
        niceness=niceness,
    )
    async with open_workers() as workers:
        yield workers.add(start, entry=entry)


class Workers:
    """Workers that end together. Made by `open_workers`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._all: list[Worker] = []

    def add(
        self,
        start: frames.Start,
        place: Place | None = None,
        entry: Sequence[str] = WORKER,
    ) -> Worker:
        """Another worker; its first process starts when it is needed.

        Args:
            start: For which device, and what its units may take.
            place: Where its processes run.
            entry: What Python runs as the worker, for tests.
        """
        worker = Worker(start, entry, self._nursery, place)
        self._all.append(worker)
        self._nursery.start_soon(worker.sweep)
        return worker

    async def close(self) -> None:
        """End all their processes."""
        for worker in self._all:
            await worker.close()


@asynccontextmanager
async def open_workers() -> AsyncIterator[Workers]:
    """Workers of one device each, whose processes are gone when the block is left."""
    workers: Workers | None = None
    try:
        async with trio.open_nursery() as nursery:
            workers = Workers(nursery)
            try:
                yield workers
            finally:
                nursery.cancel_scope.cancel()
    finally:  # when no task is left that may be starting one
        if workers is not None:
            with trio.CancelScope(shield=True):
                await workers.close()
