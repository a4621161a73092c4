"""How a job went that has ended, and how one unit of any job stands, in words.

Pure, beside `node.explain`, for `shoal job why`: nothing of it is advice on getting a job
to run that has run.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from shoal.compute.kernel_manifest import KERNEL_CLASS
from shoal.crypto.peer_id import PeerId
from shoal.node.causes import AFTER_FAILURE, NO_CARD, Cause, Explanation, Remedy
from shoal.node.explain import explain
from shoal.node.pending_checks import DISPUTED, IN_CHECK, disputed
from shoal.node.records import Answer, Failure, Job, JobState, Unit, UnitState
from shoal.node.surroundings import Neighbour, Surroundings
from shoal.node.wording import count, duration, names
from shoal.node.work_done import WorkDone

NOBODY_BIDS = "nobody_bids"
"""The failure of a job that was to end where nobody bids (`JobSpec.fail_fast`)."""


TOLD_LIMIT = 8
"""Causes in the message of a job that has failed so: more than a person reads."""


def nobody_bids(job: Job, answers: Sequence[Answer], own: PeerId) -> Failure:
    """How a job fails that is not to wait: with what `shoal job why` says of it.

    Args:
        job: The job, while it still runs.
        answers: What peers answered to its calls; the newest of each counts.
        own: This node.
    """
    offering = Neighbour(classes=frozenset({job.numeric_class}))
    known = dict.fromkeys((own, *(answer.peer for answer in answers)), offering)
    ending = msgspec.structs.replace(job, state=JobState.FAILED)
    found = explain(ending, answers, Surroundings(own, known))
    causes = [cause for cause in found.causes if cause.code not in ("unanswered", "no_peer")]
    wait = "submit it without --fail-fast, and it waits"
    if not causes:
        return Failure(
            NOBODY_BIDS,
            f"nobody bids for it: no known node, this one included, offers the class "
            f"{job.numeric_class} and takes work now",
            f"{NO_CARD.step}; or {wait}"
            if job.numeric_class == KERNEL_CLASS
            else f"`shoal job why {job.id}` tells who is known; or {wait}",
        )
    told = "; ".join(cause.sentence for cause in causes[:TOLD_LIMIT])
    more = f"; and {len(causes) - TOLD_LIMIT} more" if len(causes) > TOLD_LIMIT else ""
    rest = f"; `shoal job why {job.id}` tells what else would" if len(causes) > 1 else ""
    return Failure(
        NOBODY_BIDS, f"nobody bids for it: {told}{more}", f"{causes[0].step}{rest}; or {wait}"
    )


def told(
    job: Job, answers: Sequence[Answer], around: Surroundings, work: Sequence[WorkDone]
) -> Explanation:
    """Why a job stands where it stands, or how it went once it has ended.

    Args:
        job: As it stands.
        answers: What peers answered to its calls.
        around: What this node knows beside them.
        work: How units of it ended; may be left out while none has failed.
    """
    if not job.state.final:
        found = explain(job, answers, around)
        failed = tuple(_failed(work, around.own))
        return msgspec.structs.replace(found, causes=found.causes + failed)
    causes = [*_done(work, around.own), *_failed(work, around.own), *disputed(around)]
    if job.failure is not None and job.failure.code == NOBODY_BIDS:
        # What would get it running is what its submitter wants to know, though it has ended.
        causes = list(explain(job, answers, around).causes)
    return Explanation(
        job=job, headline=_ended(job), causes=tuple(causes), answers=tuple(answers)
    )


def _ended(job: Job) -> str:
    took = duration(max(0.0, (job.ended_at or job.created_at) - job.created_at))
    done = f"{job.units_done} of {count(job.units_total, 'unit')}"
    match job.state:
        case JobState.DONE:
            return f"The job is done: {count(job.units_done, 'unit')} in {took}."
        case JobState.CANCELLED:
            return f"The job was cancelled after {took}: {done} had been done by then."
        case _:
            why = f": {job.failure.message.rstrip('.')}." if job.failure else "."
            failed = f"{job.units_failed} of {count(job.units_total, 'unit')} failed"
            if not job.units_failed:
                failed = f"{done} had been done"
            return f"The job failed after {took}, {failed}{why}"


def _done(work: Sequence[WorkDone], own: PeerId) -> list[Cause]:
    units: defaultdict[PeerId, int] = defaultdict(int)
    seconds: defaultdict[PeerId, float] = defaultdict(float)
    for one in work:
        if one.state is UnitState.DONE and one.provider is not None:
            units[one.provider] += one.units
            seconds[one.provider] += one.seconds
    return [
        Cause(
            "done",
            f"{names([peer], own)} did {count(units[peer], 'unit')}, "
            f"{duration(seconds[peer] / units[peer])} each",
            remedy=Remedy.NOBODY,
            peers=(peer,),
        )
        for peer in sorted(units, key=lambda peer: -units[peer])
    ]


def _failed(work: Sequence[WorkDone], own: PeerId) -> list[Cause]:
    causes = []
    for one in work:
        if one.state is not UnitState.FAILED or one.failure is None:
            continue
        at = f" at {names([one.provider], own)}" if one.provider else ""
        which = (
            f"unit {one.first} failed{at}"
            if one.units == 1
            else f"{count(one.units, 'unit')}, the first of them {one.first}, failed{at}"
        )
        causes.append(
            Cause(
                one.failure.code,
                f"{which}: {one.failure.message.rstrip('.')} ({one.failure.code})",
                one.failure.hint or AFTER_FAILURE.get(one.failure.code, ""),
                Remedy.NOBODY,
                (one.provider,) if one.provider else (),
                (one.first,),
            )
        )
    return causes


def about_unit(found: Explanation, unit: Unit, own: PeerId) -> Explanation:
    """The same job, told about one of its units."""
    ended = unit.state not in (UnitState.QUEUED, UnitState.LEASED) or found.job.state.final
    of_units = [cause for cause in found.causes if cause.code in (IN_CHECK, DISPUTED)]
    mine = tuple(cause for cause in of_units if unit.index in cause.units)
    waits = any(cause.code == IN_CHECK for cause in mine)
    others = () if ended or waits else tuple(c for c in found.causes if c not in of_units)
    headline = _unit(unit, own, in_check=waits)
    return msgspec.structs.replace(found, headline=headline, causes=mine + others, unit=unit)


def _unit(unit: Unit, own: PeerId, *, in_check: bool = False) -> str:
    who = names([unit.provider], own) if unit.provider else "nobody"
    leases = f"it has been under {count(unit.attempts, 'lease')}"
    match unit.state:
        case UnitState.DONE:
            took = "" if unit.seconds is None else f" in {duration(unit.seconds)}"
            text = f"Unit {unit.index} was done by {who}{took}; {leases}"
            return f"{text}; its receipt is {unit.receipt}." if unit.receipt else f"{text}."
        case UnitState.FAILED:
            why = unit.failure.message.rstrip(".") if unit.failure else "for no reason given"
            text = f"Unit {unit.index} failed at {who}: {why}; {leases}"
            return f"{text}; the receipt is {unit.receipt}." if unit.receipt else f"{text}."
        case UnitState.CANCELLED:
            return f"Unit {unit.index} was cancelled with its job; {leases}."
        case UnitState.LEASED if in_check:
            return f"Unit {unit.index} was run by {who}, and its result is not delivered yet."
        case UnitState.LEASED:
            return f"Unit {unit.index} is with {who} now; {leases}."
    if unit.awaits:
        awaited = ", ".join(
            f"{ref.output} of unit {ref.unit} of job {ref.job}" for ref in unit.awaits.values()
        )
        return f"Unit {unit.index} awaits outputs that are not there yet: {awaited}."
    before = f"; {leases}" if unit.attempts else ""
    return f"Unit {unit.index} waits for a peer that takes it{before}."
