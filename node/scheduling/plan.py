"""`plan`: what to do now for all jobs of this node together, as one pure function.

It looks at the state and gives actions; the caller applies them (`events.apply`), begins
them, and asks again until there are none. The same state and time give the same plan.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shoal.node.scheduling import actions as do
from shoal.node.scheduling import estimates, feeding, placement
from shoal.node.scheduling.drafts import Draft

if TYPE_CHECKING:
    from shoal.node.scheduling.state import JobQueue, State

WINDOW_UNITS = 2048
"""Ready units of one job in memory, about 1 KB each: seconds of the smallest there are at
some dozen peers, and a job of 10^5 costs no more than one of 2,000."""

ERRORS_LIMIT = 3
"""Error receipts after which a unit has failed; one alone may be one node's fault."""

LOSSES_LIMIT = 20
"""Leases lost under a unit after which it has failed: it may be what kills them."""

NEGOTIATING_LIMIT = 32
"""Jobs that call for bids at once, those first that have got the least of their share."""


def plan(state: State, now_s: float) -> do.Plan:
    """Decide what to do now.

    Args:
        state: As the events so far have made it; it is not changed.
        now_s: On the clock of the events.

    Returns:
        Actions in the order in which they are to be begun, and when to ask again though
        nothing happens.
    """
    draft = Draft(state, now_s)
    jobs = sorted(state.jobs.values(), key=lambda job: (job.virtual_s, job.id))
    for job in jobs:
        _tend(draft, job)
    if not state.draining:
        feeding.feed(draft)
    negotiating = 0
    for job in jobs:
        if job.id in draft.taken:
            continue  # and asked for again at once
        before = len(draft.actions)
        placement.negotiate(draft, job)
        pending = any(c.asked or c.awarding for c in job.candidates.values())
        negotiating += pending or len(draft.actions) > before
        if negotiating >= NEGOTIATING_LIMIT:
            break
    for lease in state.leases.values():
        if lease.peer not in draft.fed:
            placement.keep_leases(draft, state.jobs[lease.job], lease)
    _cancel(draft)
    draft.wake(feeding.next_due_s(state, jobs))
    return do.Plan(tuple(draft.actions), draft.wake_at_s)


def _tend(draft: Draft, job: JobQueue) -> None:
    """Read on, give up and end, where it is time for that."""
    if job.unread and not job.reading and len(job.waiting) < WINDOW_UNITS // 2:
        draft.add(do.ReadOn(job.id))
    elif not job.busy and not job.checking:
        draft.add(do.Check(job.id))
    doomed = [] if not (job.errors or job.losses) else _doomed(draft.state, job)
    for index in doomed:
        draft.add(do.GiveUp(job.id, index))
        draft.taken.setdefault(job.id, set()).add(index)
    if job.fail_fast and job.waiting and placement.nobody_bids(draft.state, job):
        draft.add(do.FailFast(job.id))


def _doomed(state: State, job: JobQueue) -> list[int]:
    """Waiting units that have failed for good: by errors, by losses, or for want of peers."""
    hopes = placement.hopes(state, job)
    doomed = []
    for index in job.waiting:
        errors = job.errors.get(index)
        if job.losses.get(index, 0) >= LOSSES_LIMIT or (
            errors and (len(errors) >= ERRORS_LIMIT or errors.issuperset(hopes))
        ):
            doomed.append(index)
    return doomed


def _cancel(draft: Draft) -> None:
    """Call off copies of units that have ended, but not under leases that go anyway.

    Nor where it is to be seen how long a provider takes: see `placement.watched`.
    """
    dropped = {action.lease for action in draft.actions if isinstance(action, do.Drop)}
    for batch in draft.state.batches.values():
        if not batch.unwanted or batch.lease in dropped:
            continue
        if not batch.answered and placement.watched(draft.state, batch):
            draft.wake(estimates.due_s(draft.state, batch))  # then its lease is dropped
        else:
            draft.add(do.Cancel(batch.job, batch.id, tuple(batch.unwanted)))
