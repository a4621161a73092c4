"""Records as HTML, for notebooks: all text in them is escaped, whoever wrote it."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.node.records import Job


def job_html(job: Job) -> str:
    """A job as a line of HTML with a bar."""
    ended = job.units_done + job.units_failed
    parts = [
        f"<progress value='{ended}' max='{max(job.units_total, 1)}'></progress>",
        f"{job.units_done} of {job.units_total} units done",
        f"{job.units_failed} failed" if job.units_failed else "",
        "more units are to come" if job.open and not job.state.final else "",
        html.escape(job.failure.message) if job.failure else "",
    ]
    label = f" <b>{html.escape(job.label)}</b>" if job.label else ""
    said = " · ".join(part for part in parts[1:] if part)
    return (
        f"<div class='shoal-job'><code>{html.escape(job.id)}</code>{label} "
        f"{html.escape(job.state)}<br>{parts[0]} {said}</div>"
    )
