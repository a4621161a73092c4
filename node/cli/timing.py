"""Where the time of one unit went, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.node.cli.output import note, print_table
from shoal.node.timing_view import STEPS

if TYPE_CHECKING:
    from shoal.node.timing_view import UnitTiming


def print_timing(timing: UnitTiming) -> None:
    """A line for each step that the unit passed, in milliseconds and as a share of all."""
    whole_s = timing.total_s or 1.0
    rows = [
        (step.replace("_", " "), _ms(seconds), f"{seconds / whole_s:4.0%}", STEPS[step])
        for step, seconds in timing.steps.items()
    ]
    rows.append(("all", _ms(timing.total_s), "100%", ""))
    print_table(("STEP", "MS", "SHARE", "WHAT"), rows)
    if timing.together > 1:
        note(
            f"{timing.together} units went in one message: from handing over to its answer the "
            "times are the message's, and the provider's steps this unit's own"
        )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:9.3f}"
