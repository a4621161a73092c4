"""How far a job is, shown where its submitter looks: a notebook, or a terminal.

In a notebook it is one piece of HTML that is replaced as the job goes on, which needs
IPython and no widgets; on a terminal a line of its own; elsewhere nothing.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

from shoal.node.html_views import job_html

if TYPE_CHECKING:
    from typing import Self

    from shoal.node.records import Job

_INTERVAL_S = 0.2
"""Between two changes on the screen."""


class Progress:
    """Shows one job as it goes on, told by `show`; a context that ends the showing.

    Args:
        off: Show nothing at all.
    """

    def __init__(self, *, off: bool = False) -> None:
        self.job: Job | None = None
        self._shown_at = float("-inf")
        self._place = None if off else _notebook()
        self._terminal = not off and sys.stderr.isatty()
        self._handle: Any = None
        self._bar: Any = None

    def show(self, job: Job) -> None:
        """Show how the job stands now."""
        self.job = job
        now = time.monotonic()
        if now - self._shown_at < _INTERVAL_S and not job.state.final:
            return
        self._shown_at = now
        if self._place is not None:
            if self._handle is None:
                self._handle = self._place(self, display_id=True)
            else:
                self._handle.update(self)
        elif self._terminal:
            self._show_on_terminal(job)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _repr_html_(self) -> str:
        return "" if self.job is None else job_html(self.job)

    def __repr__(self) -> str:
        job = self.job
        if job is None:
            return "no job yet"
        return f"job {job.id} {job.state}: {job.units_done} of {job.units_total} units done"

    def _show_on_terminal(self, job: Job) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        if self._bar is None:
            columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task("", total=None)
            self._bar.start()
        ended = job.units_done + job.units_failed
        self._bar.update(self._bar.task_ids[0], total=job.units_total, completed=ended)


def _notebook() -> Any:
    """What displays HTML here, where this is a notebook; otherwise None.

    IPython is looked for only where it runs already: importing it takes half a second.
    """
    shell = sys.modules.get("IPython")
    if shell is None or (running := shell.get_ipython()) is None:
        return None
    if not hasattr(running, "kernel"):  # IPython on a terminal
        return None
    from IPython.display import display

    return display
