"""Who watches which job: each sees it as it stands, and again at each change.

Part of *deliver*: the local API streams these values to a submitter. A watcher
that is slow skips values and never holds up the job; the last one, in which the
job is final, always arrives.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from shoal.node.records import Job, JobId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shoal.node.state import State


@dataclass(frozen=True, slots=True, eq=False)
class _View:
    """A channel in which only the newest value waits."""

    send: trio.MemorySendChannel[Job]
    receive: trio.MemoryReceiveChannel[Job]

    def show(self, job: Job) -> None:
        """Put ``job`` in place of what waits; close the channel behind a final one."""
        try:
            while True:
                try:
                    self.send.send_nowait(job)
                    break
                except trio.WouldBlock:
                    self.receive.receive_nowait()
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            return  # the watcher has gone, or has seen the end
        if job.state.final:
            self.send.close()


class JobViews:
    """The watchers of all jobs; reads how a job stands from the journal."""

    def __init__(self, journal: State) -> None:
        self._journal = journal
        self._views: dict[JobId, set[_View]] = {}

    @asynccontextmanager
    async def watch(self, job_id: JobId) -> AsyncIterator[trio.MemoryReceiveChannel[Job]]:
        """A channel with the job as it stands and at each change, closed when it is final.

        Raises:
            JobError: ``no_such_job``.
        """
        view = _View(*trio.open_memory_channel[Job](1))
        views = self._views.setdefault(job_id, set())
        views.add(view)
        try:
            view.show(await self._journal.job(job_id))
            yield view.receive
        finally:
            views.discard(view)
            if not views and self._views.get(job_id) is views:
                del self._views[job_id]
            view.send.close()
            view.receive.close()

    def watched(self, job_id: JobId) -> bool:
        """Whether anybody watches a job now."""
        return job_id in self._views

    def close(self, job_id: JobId) -> None:
        """Show nothing more of a job."""
        for view in self._views.get(job_id, ()):
            view.send.close()

    async def changed(self, job_id: JobId) -> None:
        """Show the job, as the journal has it now, to all who watch it."""
        if job_id in self._views:
            job = await self._journal.job(job_id)
            for view in tuple(self._views.get(job_id, ())):
                view.show(job)
