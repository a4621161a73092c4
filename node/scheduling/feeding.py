"""What units go to which peer in which message: sizes, turns among jobs, second copies.

Units go out in batches of about `BATCH_S`, fewer toward the end of a job, and each peer
has about `LOOKAHEAD_S` of work of all jobs together in each of its places, so that inputs
arrive while units run and what comes later has not long to wait. Turns at a peer go by
start-time fair queuing over measured seconds (Goyal, Vin and Cheng 1996), batches by guided
self-scheduling (Polychronopoulos and Kuck 1987). When nothing of a job waits,
units that are late, or that an idle peer would end sooner, are run again there; the first
verified result counts.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shoal.node.scheduling import estimates
from shoal.node.scheduling.placement import overdue

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from shoal.crypto.peer_id import PeerId
    from shoal.node.scheduling.drafts import Draft
    from shoal.node.scheduling.state import BatchId, JobQueue, Lease, State

BATCH_S = 0.5
"""How long the units of one message run. A message costs some milliseconds at both ends, so
1 % of it; and a peer that turns out slow has no more than this in hand."""

LOOKAHEAD_S = 2 * BATCH_S
"""What a peer has in hand, in seconds: one batch runs while the next one's inputs arrive."""

BATCHES_OUT, BATCHES_OUT_SHORT = 2, 4
"""Messages out at one peer that runs one at a time, of all jobs: the same, where nothing is
known of the speed. More where they are so short that it would wait for the next one, which is
`SHORT_S` away; and one more for each that it runs at once beside."""

SHORT_S = 0.1

COPIES_SHARE, COPIES_FEW = 0.2, 4
"""What is run again, at most: a fifth of a job's units, the work of one more peer where there
are five, and a few more, so that a job of one unit can be saved too. As many again of units
that are overdue: what was copied for mere speed must not be lacking where a peer hangs."""

COPIES_OUT = 2
"""Batches in which one unit may be at once: the third one would help only where two fail."""

GAIN_SHARE, GAIN_LEAST_S = 0.25, 0.1
"""By how much sooner a second copy must be expected, of what the first still needs: less
than that is within the error of the estimates."""

ALONE_AFTER = 2
"""Leases lost under a unit after which it goes alone: it may be what kills them, and the
others of its batch must not suffer for it."""

LOOK_AGAIN_S = 0.25
"""When a peer is idle at the end of a job: what others were expected to end may be late."""


def feed(draft: Draft) -> None:
    """Hand over what there is, at most one batch to each peer."""
    state = draft.state
    by_peer: dict[PeerId, list[tuple[JobQueue, Lease]]] = {}
    for lease in state.leases.values():
        job = state.jobs[lease.job]
        if not (lease.closed or job.full or job.candidate(lease.peer).full):
            by_peer.setdefault(lease.peer, []).append((job, lease))

    def soonest(peer: PeerId) -> tuple[float, float, PeerId]:
        each = [estimates.unit_s(state, job, peer) for job, _ in by_peer[peer]]
        return draft.free_at_s(peer), min(s or estimates.GUESS_S for s in each), peer

    idle: list[PeerId] = []
    for peer in sorted(by_peer, key=soonest):
        leases = sorted(by_peer[peer], key=lambda of: (draft.virtual_s(of[0]), of[0].id))
        fed = any(_feed_one(draft, job, lease) for job, lease in leases)
        if not fed and not state.line(peer).batches:
            idle.append(peer)
    for peer in idle:
        for job, lease in by_peer[peer]:
            if _speculate(draft, job, lease):
                break


def _feed_one(draft: Draft, job: JobQueue, lease: Lease) -> bool:
    """Give a lease its next batch; False where there is none for it now."""
    state, peer = draft.state, lease.peer
    room = _room(state, lease)
    if room <= 0:
        return False
    look_s = LOOKAHEAD_S + estimates.fetch_s(job)
    free_s = draft.free_at_s(peer)
    line = state.line(peer)
    batches = len(line.batches) - (line.at_once - 1)
    if batches >= BATCHES_OUT and (
        batches >= BATCHES_OUT_SHORT or free_s - draft.now_s >= SHORT_S
    ):
        return False
    if free_s - draft.now_s >= look_s:
        draft.wake(free_s - look_s)
        return False
    each_s = estimates.unit_s(state, job, peer)
    if draft.left(job) <= 0:
        late = _late(draft, job, peer)
        units = late[: min(room, _size(draft, job, lease, len(late)))]
        if units:
            draft.hand_over(job, lease, units, each_s, copies=True)
        return bool(units)
    size = min(room, _size(draft, job, lease, draft.left(job)))
    units = _next(draft, job, peer, size)
    if not units:
        return False
    if each_s is not None and not (job.errors or job.losses):
        while units and not draft.is_soonest(job, peer, free_s + len(units) * each_s):
            units = units[: len(units) // 2]
        if not units:
            draft.wake(draft.now_s + LOOK_AGAIN_S)
            return False
    draft.hand_over(job, lease, units, each_s)
    return True


def _room(state: State, lease: Lease) -> int:
    """How many units a lease takes in one more message."""
    if lease.closed:
        return 0
    out = sum(state.batches[batch].units for batch in lease.batches)
    return min(lease.offer.batch_max, lease.offer.in_flight_max - out, lease.left)


def _size(draft: Draft, job: JobQueue, lease: Lease, left: int) -> int:
    """How many units make a batch at this peer, with so many left; one to learn from."""
    each_s = estimates.measured_s(draft.state, job, lease.peer)
    if each_s is None:
        return 1
    speeds = [
        estimates.unit_s(draft.state, job, peer)
        for peer, candidate in job.candidates.items()
        if candidate.lease is not None
    ]
    total = sum(1.0 / s for s in speeds if s) or 1.0 / each_s
    guided = left / each_s / total / 2.0
    return max(1, round(min(BATCH_S / each_s, math.ceil(guided))))


def _next(draft: Draft, job: JobQueue, peer: PeerId, size: int) -> list[int]:
    """The first waiting units that this peer has not called errors, near ones before others."""
    taken = draft.taken.get(job.id, set())
    units: list[int] = []
    for index in _by_nearness(job, peer):
        if index in taken or not job.untried(index, peer):
            continue
        alone = job.losses.get(index, 0) >= ALONE_AFTER
        if alone and units:
            break
        units.append(index)
        if alone or len(units) >= size:
            break
    return units


def _by_nearness(job: JobQueue, peer: PeerId) -> Iterator[int]:
    """Waiting units: first those of which no other peer has the inputs."""
    if not job.near:
        yield from job.waiting
        return
    yield from (index for index in job.waiting if job.near.get(index, peer) == peer)
    yield from (index for index in job.waiting if job.near.get(index, peer) != peer)


# --- second copies --------------------------------------------------------------------------


def _copies_left(draft: Draft, job: JobQueue, few: int = COPIES_FEW) -> int:
    limit = int(COPIES_SHARE * max(job.units, job.ended + len(job.out))) + few
    return limit - job.copies - draft.copied[job.id]


def _single(draft: Draft, job: JobQueue, peer: PeerId) -> Iterator[tuple[int, BatchId]]:
    """Units that one peer has, and this one could run: with their batches."""
    taken = draft.taken.get(job.id, set())
    for index, copies in job.out.items():
        if len(copies) < COPIES_OUT and index not in taken and job.untried(index, peer):
            batch = draft.state.batches[copies[0]]
            if batch.peer != peer:
                yield index, batch.id


def _late(draft: Draft, job: JobQueue, peer: PeerId) -> list[int]:
    """Units that others have had for too long, as many as may be run again."""
    state, now_s = draft.state, draft.now_s
    late: dict[BatchId, bool] = {}
    units: list[int] = []
    for index, batch_id in _single(draft, job, peer):
        if batch_id not in late:
            late[batch_id] = overdue(state, batch_id, now_s)
            if not late[batch_id]:
                draft.wake(estimates.due_s(state, state.batches[batch_id]))
        if late[batch_id]:
            units.append(index)
    return units[: max(0, _copies_left(draft, job, 2 * COPIES_FEW))]


def _speculate(draft: Draft, job: JobQueue, lease: Lease) -> bool:
    """Run again, at an idle peer, what it would end sooner than who has it."""
    state, now_s, peer = draft.state, draft.now_s, lease.peer
    each_s = estimates.measured_s(state, job, peer)
    if each_s is None or draft.left(job) > 0 or not job.out:
        return False
    draft.wake(now_s + LOOK_AGAIN_S)
    room = min(_room(state, lease), _copies_left(draft, job))
    if room <= 0:
        return False
    there: dict[BatchId, list[int]] = {}
    for index, batch_id in _single(draft, job, peer):
        if not state.batches[batch_id].answered:
            there.setdefault(batch_id, []).append(index)
    fetch_s = estimates.fetch_s(job)
    best: tuple[float, list[int]] | None = None
    for batch_id, units in there.items():
        batch = state.batches[batch_id]
        end_s = estimates.ends(state, batch.peer, now_s)[batch.id]
        other_s = estimates.batch_s(state, batch) / max(1, len(batch.open))
        part = max(1, int(len(units) * other_s / (other_s + each_s)))  # the last ones, so
        chosen = units[-min(part, room, _fits(each_s)) :]  # that both would end together
        need_s = len(chosen) * each_s + fetch_s
        gain_s = end_s - now_s - need_s
        if gain_s >= max(GAIN_LEAST_S, GAIN_SHARE * (end_s - now_s)) and (
            best is None or gain_s > best[0]
        ):
            best = gain_s, chosen
    if best is None:
        return False
    draft.hand_over(job, lease, best[1], each_s, copies=True)
    return True


def _fits(each_s: float) -> int:
    return max(1, round(BATCH_S / each_s))


def next_due_s(state: State, jobs: Iterable[JobQueue]) -> float:
    """When the next batch becomes overdue of those jobs of which nothing waits."""
    ids = {job.id for job in jobs if not job.backlog}
    return min(
        (estimates.due_s(state, b) for b in state.batches.values() if b.job in ids),
        default=math.inf,
    )
