"""``shoal job why``: why a job waits or how it went, once or for as long as it runs."""

import sys
import time
from typing import TYPE_CHECKING, Any

import msgspec

from shoal.node.causes import Explanation
from shoal.node.cli.options import Daemon
from shoal.node.cli.output import duration_text, print_json, print_table, printable, runnable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.node.client import Client

_LOOK_INTERVAL_S = 0.5
_ANSWERS_SHOWN = 20


def why(
    job_id: str,
    /,
    *,
    unit: int | None = None,
    watch: bool = False,
    daemon: Daemon | None = None,
) -> None:
    """Tell why a job waits, what each peer answered, and what would get it running.

    What would do so soonest comes first. Of a job that has ended it tells who did what,
    and what failed where.

    Args:
        job_id: The job.
        unit: Tell of this unit alone: where it is, and what became of it.
        watch: Go on telling until the job has ended, or until Ctrl-C.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        if watch:
            _watch(client, job_id, unit, as_json=daemon.as_json)
            return
        found = client.explanation(job_id, unit)
    if daemon.as_json:
        _print_json(found)
        return
    print(_text(found))
    answers = [] if unit is not None else list(found.answers)
    if answers:
        print()
        print_table(
            ("AGO", "PEER", "ANSWER", "DETAIL"),
            (
                (
                    duration_text(max(0.0, time.time() - answer.at)),
                    answer.peer,
                    answer.verdict,
                    answer.detail,
                )
                for answer in answers[-_ANSWERS_SHOWN:]
            ),
            ids=("PEER",),
        )


def _watch(client: "Client", job_id: str, unit: int | None, *, as_json: bool) -> None:
    """Show it anew whenever it changes; Ctrl-C leaves the job alone."""
    try:
        if as_json:
            for found in _changes(client, job_id, unit):
                _print_json(found)
        elif sys.stdout.isatty():
            _redraw(_changes(client, job_id, unit, every_figure=True))
        else:
            for found in _changes(client, job_id, unit):
                print(f"{time.strftime('%H:%M:%S')}  {_text(found)}", flush=True)
    except KeyboardInterrupt:
        return


def _changes(
    client: "Client", job_id: str, unit: int | None, *, every_figure: bool = False
) -> "Iterator[Explanation]":
    """How it stands at once and at each change, until the job has ended.

    Args:
        every_figure: Whether it is a change that a time or a count is another.
    """
    told: object = None
    while True:
        found = client.explanation(job_id, unit)
        news = found.summary if every_figure else _gist(found)
        if news != told:
            told = news
            yield found
        if found.job.state.final:
            return
        time.sleep(_LOOK_INTERVAL_S)


def _gist(found: Explanation) -> object:
    job, outlook = found.job, found.outlook
    return (
        (job.state, job.units_done, job.units_failed, outlook and outlook.units_out),
        frozenset((cause.code, cause.peers) for cause in found.causes),
        found.unit,
    )


def _redraw(changes: "Iterator[Explanation]") -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(), auto_refresh=False) as live:
        for found in changes:
            live.update(Text(_text(found)), refresh=True)


def _text(found: Explanation) -> str:
    return runnable(printable(found.summary))


def _print_json(found: Explanation) -> None:
    body: dict[str, Any] = msgspec.structs.asdict(found)
    print_json({**body, "summary": found.summary})
    sys.stdout.flush()
