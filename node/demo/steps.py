"""The demo while it runs: a line for each step on stderr, and a bar on a terminal."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDTH = 96
"""Where the output is no terminal; paths and sentences fit into it."""

_NAME_WIDTH = 9
_TEXT_WIDTH = 58


@dataclass(slots=True)
class Step:
    """One step.

    Attributes:
        text: What is said of it once it is done.
        doing: Say meanwhile what is being done, in place of what was said before.
    """

    text: str = ""
    doing: Callable[[str], None] = lambda _text: None


class Steps:
    """Tells of the demo's steps as they are done."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._console = (
            console
            if console.is_terminal
            else Console(stderr=True, width=WIDTH, highlight=False)
        )

    def title(self, text: str) -> None:
        """The first line."""
        self._console.print(Text(text, style="bold"))
        self._console.print()

    def aside(self, name: str, text: str, style: str = "yellow") -> None:
        """Something that happens within a step."""
        line = Text(f"  {name:<{_NAME_WIDTH}}  ", style="cyan")
        self._console.print(line.append(text, style=style), soft_wrap=True)

    @contextmanager
    def step(self, name: str, doing: str) -> Iterator[Step]:
        """Show ``doing`` while the block runs, then what it set as the step's text."""
        started_s = time.monotonic()
        with self._console.status(Text(f"{name}: {doing}")) as shown:
            step = Step(doing=lambda text: shown.update(Text(f"{name}: {text}")))
            yield step
        self._done(name, step.text, time.monotonic() - started_s)

    @contextmanager
    def bar(self, name: str, doing: str) -> Iterator[tuple[Step, Callable[[int, int], None]]]:
        """As `step`, with a function that is told how many of how many units are done."""
        step, started_s = Step(), time.monotonic()
        columns = (
            TextColumn(f"  {name:<{_NAME_WIDTH}}  {doing}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
        )
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        ) as progress:
            task = progress.add_task("", total=None)

            def show(done: int, total: int) -> None:
                progress.update(task, completed=done, total=total)

            yield step, show
        self._done(name, step.text, time.monotonic() - started_s)

    def _done(self, name: str, text: str, took_s: float) -> None:
        line = Text(f"  {name:<{_NAME_WIDTH}}  ", style="cyan")
        line.append(f"{text:<{_TEXT_WIDTH}}", style="default")
        line.append(f"{took_s:>6.1f} s", style="dim")
        self._console.print(line)
