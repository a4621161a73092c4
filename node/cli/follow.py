"""Following a job until it ends: a progress bar, or lines off a terminal; Ctrl-C lets go.

Where nothing comes of it for some seconds, it says once what `shoal job why` knows.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from shoal.crypto.errors import ShoalError
from shoal.node.cli.output import duration_text, note
from shoal.node.client.flows import failure_of
from shoal.node.errors import DaemonUnreachableError, WaitTimeoutError
from shoal.node.records import Job, JobState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shoal.node.client import Client

_REFRESH_S = 0.2
_LINES_STEP_S = 2.0

LINE_INTERVAL_S = 10.0
"""How often a line tells of progress where stderr is no terminal."""

NO_PROGRESS_S = 5.0
"""After so long without a unit that ends, one wants to know why."""

_WHY_LINES = 3


class DetachedError(ShoalError):
    """Ctrl-C: the command ends, and the sentence says what becomes of the job."""

    code = "interrupted"


def follow(client: Client, job: Job, timeout_s: float | None = None) -> Job:
    """Wait until the job is done.

    Raises:
        DetachedError: The user pressed Ctrl-C.
        DaemonUnreachableError: The daemon ended meanwhile.
        JobFailedError: The job failed or was cancelled.
        WaitTimeoutError: It still runs after ``timeout_s``.
    """
    deadline = time.monotonic() + (timeout_s if timeout_s is not None else float("inf"))
    step_s = _REFRESH_S if sys.stderr.isatty() else _LINES_STEP_S
    ended, tell_at = _units_ended(job), time.monotonic() + NO_PROGRESS_S
    try:
        with progress_bar("running", job.units_total) as show:
            while not job.state.final and (now := time.monotonic()) < deadline:
                job = client.wait(job.id, min(step_s, deadline - now, max(0.0, tell_at - now)))
                show(_units_ended(job), job.units_total)
                if _units_ended(job) > ended:
                    ended, tell_at = _units_ended(job), time.monotonic() + NO_PROGRESS_S
                elif time.monotonic() >= tell_at and not job.state.final:
                    _tell_why(client, job)
                    tell_at = float("inf")
    except DaemonUnreachableError as error:
        raise DaemonUnreachableError(
            f"{error.message}; job {job.id} is kept, and goes on when it runs again",
            hint=f"`shoal up`, then `shoal job wait {job.id}`",
        ) from None
    except KeyboardInterrupt:
        raise DetachedError(
            f"detached; job {job.id} goes on",
            hint=f"come back with `shoal job wait {job.id}`, or end it with "
            f"`shoal job cancel {job.id}`",
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
def interruptible(sentence: str, hint: str) -> Iterator[None]:
    """Say at Ctrl-C what becomes of what was begun.

    Raises:
        DetachedError: The user pressed Ctrl-C.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise DetachedError(sentence, hint=hint) from None


def _units_ended(job: Job) -> int:
    return job.units_done + job.units_failed


def _tell_why(client: Client, job: Job) -> None:
    _, summary = client.why(job.id)
    for line in summary.splitlines()[:_WHY_LINES]:
        note(line)
    note(f"  next: `shoal job why {job.id}` tells more; Ctrl-C lets the job go on")


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Give a function that shows how many units are done: a bar, or lines off a terminal.

    It takes how many are done and, where that has changed, of how many.
    """
    if not sys.stderr.isatty():
        yield _lines(what, total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    columns = ("[progress.description]{task.description}", BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done, total=None: progress.update(task, completed=done, total=total)


def _lines(what: str, total: int) -> Callable[..., None]:
    began_s = told_s = time.monotonic()

    def show(done: int, of: int | None = None) -> None:
        nonlocal told_s, total
        total, now_s = total if of is None else of, time.monotonic()
        if now_s - told_s >= LINE_INTERVAL_S:
            told_s = now_s
            note(f"{what}: {done} of {total} units after {duration_text(now_s - began_s)}")

    return show
