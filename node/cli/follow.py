"""Following a job until it ends: a progress bar on a terminal, and Ctrl-C lets go."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shoal.crypto.errors import ShoalError
from shoal.node.client.flows import failure_of
from shoal.node.errors import WaitTimeoutError
from shoal.node.records import Job, JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shoal.node.client import Client

_REFRESH_S = 0.2
_QUIET_STEP_S = 30.0


class DetachedError(ShoalError):
    """Ctrl-C while following: the job goes on without us."""

    code = "interrupted"


def follow(client: Client, job: Job, timeout_s: float | None = None) -> Job:
    """Wait until the job is done.

    Raises:
        DetachedError: The user pressed Ctrl-C.
        JobFailedError: The job failed or was cancelled.
        WaitTimeoutError: It still runs after ``timeout_s``.
    """
    deadline = time.monotonic() + (timeout_s if timeout_s is not None else float("inf"))
    step_s = _REFRESH_S if sys.stderr.isatty() else _QUIET_STEP_S
    try:
        with progress_bar("running", job.units_total) as show:
            while not job.state.final and time.monotonic() < deadline:
                job = client.wait(job.id, min(step_s, max(0.0, deadline - time.monotonic())))
                show(job.units_done + job.units_failed)
    except KeyboardInterrupt:
        raise DetachedError(
            f"detached; job {job.id} goes on", hint=f"come back with `shoal job wait {job.id}`"
        ) from None
    if not job.state.final:
        raise WaitTimeoutError(
            f"job {job.id} still runs after {timeout_s:g} s",
            hint=f"it goes on; `shoal job wait {job.id}`, or `shoal job why {job.id}`",
        )
    if job.state is not JobState.DONE:
        raise failure_of(job)
    return job


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Give a function that shows how many of ``total`` are done; silent off a terminal."""
    if not sys.stderr.isatty():
        yield lambda _done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
