"""What ``shoal job show`` prints of units: who ran and checked them, and what that carries."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING

from shoal.node.assurance import Ground
from shoal.node.cli.output import duration_text, print_pairs, print_table, printable
from shoal.node.errors import JobError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.node.assurance import Assurance
    from shoal.node.records import Job, Unit

_WIDTH_LIMIT = 96
_NAMES = {
    Ground.OWN: "own run",
    Ground.QUORUM: "by quorum",
    Ground.RE_RUN: "by re-run",
    Ground.RECEIPT: "receipt",
    Ground.NOTHING: "-",
}


def print_units(units: Sequence[Unit], assured: Sequence[Assurance]) -> None:
    """A line for each unit: where it ran, how it was checked, and what failed."""
    print_table(
        ("UNIT", "STATE", "PROVIDER", "CHECKED", "LEASES", "TIME", "RECEIPT", "FAILURE"),
        (
            (
                unit.index,
                unit.state,
                unit.provider or "-",
                _checked_text(each),
                unit.attempts,
                "-" if unit.seconds is None else duration_text(unit.seconds),
                unit.receipt or "-",
                unit.failure.message if unit.failure else "",
            )
            for unit, each in zip(units, assured, strict=True)
        ),
        ids=("PROVIDER", "RECEIPT"),
    )


def _checked_text(assured: Assurance) -> str:
    return "re-run here" if assured.run_again_here else _NAMES[assured.ground]


def print_unit(unit: Unit, assured: Assurance) -> None:
    """One unit: who ran it, who checked it and how, what that rules out and what it leaves."""
    pairs: list[tuple[str, object]] = [
        ("unit", unit.index),
        ("state", unit.state),
        ("receipt", unit.receipt or "-"),
    ]
    if unit.failure:
        pairs.append(("failure", unit.failure.message))
    print_pairs(pairs)
    print()
    told = [assured.ran, assured.checked]
    if assured.rules_out:
        told += [f"this rules out {assured.rules_out}"]
        told += [f"it does not rule out {assured.leaves}"]
    print_paragraphs(told)


def print_paragraphs(sentences: Sequence[str]) -> None:
    """Sentences without a full stop, each in lines of its own that fit the terminal."""
    width = min(_WIDTH_LIMIT, shutil.get_terminal_size().columns)
    for sentence in sentences:
        text = printable(sentence[:1].upper() + sentence[1:] + ".")
        print(
            textwrap.fill(text, width, break_long_words=False, subsequent_indent="  "),
        )


def no_such_unit(job: Job, unit: int) -> JobError:
    """The error where a job has not so many units."""
    return JobError(
        f"job {job.id} has no unit {unit}",
        code="no_such_unit",
        hint=f"it has {job.units_total}, and the first is 0"
        if job.units_total
        else "it has no units yet",
    )
