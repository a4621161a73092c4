"""Results that wait to be checked, and receipts that are disputed, for `shoal job why`.

Pure, a part of `node.explain`. A result that waits is not delivered yet: who is asked, since
when, and what comes where nobody answers. A dispute holds nothing back: it begins once the
right result is delivered.
"""

from __future__ import annotations

from typing import Final

from shoal.node.causes import Cause, Remedy
from shoal.node.checks import Stage
from shoal.node.records import Job
from shoal.node.surroundings import OpenDispute, PendingChecks, Surroundings
from shoal.node.wording import count, duration, names

IN_CHECK: Final = "in_check"
DISPUTED: Final = "disputed"

_UNITS_TOLD: Final = 8


def pending(job: Job, around: Surroundings) -> list[Cause]:
    """What of a job's results waits for others' word, or for this node's own."""
    return [
        *(_waits(job, each, around) for each in around.pending),
        *disputed(around),
    ]


def disputed(around: Surroundings) -> list[Cause]:
    """Receipts of a job that are disputed now; it may have ended."""
    return [_dispute(each, around) for each in around.disputes]


def _waits(job: Job, each: PendingChecks, around: Surroundings) -> Cause:
    number = len(each.units)
    told = ", ".join(map(str, each.units[:_UNITS_TOLD]))
    more = " and more" if number > _UNITS_TOLD else ""
    results = (
        f"the results of units {told}{more} wait"
        if number > 1
        else (f"the result of unit {told} waits")
    )
    who = names(each.asked, around.own) if each.asked else ""
    since = f"for {duration(each.waited_s)}"
    if not who:
        sentence = f"{results} to be checked {since}, and nobody who may gives an answer"
        step = _without_anybody(job, each)
    elif each.stage is Stage.DIFFERS:
        sentence = f"{results} {since} since others got another one; {who} runs it to decide"
        step = "nothing need be done: the right one is delivered, and a false one disputed"
    else:
        runs = "runs" if len(each.asked) == 1 else "run"
        sentence = f"{results} to be checked {since}: {who} {runs} it too"
        step = _where_silent(each, around)
    return Cause(IN_CHECK, sentence, step, Remedy.WAIT, each.asked, each.units)


def _where_silent(each: PendingChecks, around: Surroundings) -> str:
    """What comes where those who are asked do not answer."""
    if each.asked == (around.own,):
        return "nothing need be done; what runs here has the time limit of the job"
    return (
        "nothing need be done: who takes far longer than the unit took before is passed over, "
        "the next of the draw is asked, and this node runs it when nobody is left"
    )


def _without_anybody(job: Job, each: PendingChecks) -> str:
    again = f"they are asked again in {duration(each.again_s)}"
    if each.tries_left is None:
        return (
            f"{again}, and the results wait for as long as it takes, as `--verify` says; "
            f"`shoal job cancel {job.id}` ends it, and more peers, or `provide = true` here, "
            "would check it"
        )
    return (
        f"{again}; after {count(each.tries_left, 'more time')} the results are delivered "
        "without a check, and `shoal job show` says so"
    )


def _dispute(each: OpenDispute, around: Surroundings) -> Cause:
    return Cause(
        DISPUTED,
        f"a receipt of {names([each.peer], around.own)} for unit {each.unit}, "
        f"{duration(each.ago_s)} old, is disputed",
        "nothing need be done, and nothing waits for it: the right result is delivered; where "
        "it gives no answer it is judged by the whole unit, and loses standing. `shoal proof "
        "list` shows what comes of it",
        Remedy.NOBODY,
        (each.peer,),
        (each.unit,),
    )
