"""Which peers a job calls, whose bids are awarded, and which leases are given up."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shoal.node.scheduling import actions as do
from shoal.node.scheduling import estimates
from shoal.node.scheduling.state import BID, Candidate

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.scheduling.drafts import Draft
    from shoal.node.scheduling.state import Batch, BatchId, JobQueue, Lease, State

CALLED_LIMIT = 32
"""Peers called for bids at once: those that are best for the job come first."""

BID_GRACE_S = 1.0
"""After the first bid: who has not answered by then is passed over this time. Two round
trips between distant continents, and the work of a bid."""

SETBACKS_LIMIT = 3
"""Refusals and broken links in a row after which a peer is not counted on to try a unit
again that another one failed."""

WATCHED_AFTER_S = estimates.LATE_GRACE_S
"""In vain for so long, without one answer between: more than one hiccup of a link."""

LEASES_AT_PEER = 16
"""Leases that all jobs of this node together hold at one peer: half of what a device serves."""

IDLE_LEASE_S = 2.0
"""What a lease is kept when nothing waits: a straggler may be run again under it, while a
peer that wants to end waits for it to be given up."""

STARVED_LEASE_S = 20.0
"""What it is kept when units wait that other jobs or faster peers go before: less than the
silence after which a provider ends it."""


def score(state: State, job: JobQueue, peer: PeerId) -> float:
    """What one more unit costs at a peer, in seconds and the like; the least is the best.

    ``(price * seconds + link) / standing``, and a tenth less for a proven device:

    - *price*: of its bid, 1 before there is one. By `bidding.price` it is 1 credit for a
      unit on an idle device, as much again for each unit that waits there, and what is to
      be fetched of program and inputs: data already held is in it.
    - *seconds*: measured for this kind of unit there; else what others take, by what both
      claim of the class; `GUESS_S` where nobody was measured. So fits the device.
    - *link*: a round trip and the bytes of one unit, nothing at this node itself.
    - *standing*: from 0 to 1; who broke rules has to be that much cheaper. Each setback in a
      row halves it.
    """
    candidate, facts = job.candidate(peer), state.facts(job, peer)
    offer = candidate.offer
    lease = state.leases.get(candidate.lease) if candidate.lease is not None else None
    if lease is not None:
        offer = lease.offer
    seconds = estimates.unit_s(state, job, peer) or estimates.GUESS_S
    link_s = 0.1 if facts.rtt_s is None else facts.rtt_s
    if facts.rtt_s != 0.0:
        link_s += estimates.fetch_s(job)
    cost = (1.0 if offer is None else offer.price) * seconds + link_s
    trust = max(facts.standing, 0.01) / 2.0 ** min(candidate.setbacks, 6)
    return cost / trust * (0.9 if offer is not None and offer.proven else 1.0)


def wanted(state: State, job: JobQueue, now_s: float) -> int:
    """How many units another lease could be given now."""
    late = 0
    if not job.backlog:
        late = sum(
            len(copies) == 1 and overdue(state, copies[0], now_s) for copies in job.out.values()
        )
    return job.backlog + late


def overdue(state: State, batch_id: BatchId, now_s: float) -> bool:
    """Whether others would have done this batch long ago."""
    return estimates.due_s(state, state.batches[batch_id]) <= now_s


def watched(state: State, batch: Batch) -> bool:
    """Whether a batch is left with its provider until it is overdue, though others ended it.

    So it is where nothing was measured of the provider, or where it ended nothing for a while
    of what it had: whether it is slow shows only where it is let finish.
    """
    job = state.jobs[batch.job]
    return (
        estimates.measured_s(state, job, batch.peer) is None
        or estimates.in_vain_s(state, batch.peer) >= WATCHED_AFTER_S
    )


def takeable(job: JobQueue, peer: PeerId) -> bool:
    """Whether a job has a unit for this peer that it has not called an error."""
    if not job.errors or job.unread or job.reading:
        return True
    if job.waiting:
        return any(job.untried(index, peer) for index in job.waiting)
    return any(job.untried(index, peer) for index in job.out)


def negotiate(draft: Draft, job: JobQueue) -> None:
    """Call, award and decline for one job."""
    state, now_s = draft.state, draft.now_s
    pending = [c for c in job.candidates.values() if c.asked or c.awarding or c.offer]
    need = wanted(state, job, now_s) - _idle_leases(state, job)
    if pending:
        _award(draft, job, need)
    candidates = job.candidates
    asked = sum(c.asked or c.awarding or c.offer is not None for c in pending)
    if draft.state.draining or need <= asked:
        return
    peers = []
    again_s = math.inf
    for peer in state.offering.get(job.wanted, {}):
        candidate = candidates.get(peer)
        if candidate is not None:
            if candidate.asked or candidate.awarding or candidate.offer is not None:
                continue
            if candidate.lease is not None:
                continue
            if candidate.not_before_s > now_s:
                again_s = min(again_s, candidate.not_before_s)
                continue
        if takeable(job, peer) and draft.leases_at(peer) < LEASES_AT_PEER:
            peers.append(peer)
    draft.wake(again_s)
    peers = [peer for peer in peers if useful(draft, job, peer)]
    if peers or not job.called:
        peers.sort(key=lambda peer: (score(state, job, peer), peer))
        draft.add(do.Call(job.id, tuple(peers[:CALLED_LIMIT]), max(1, need)))


def _award(draft: Draft, job: JobQueue, need: int) -> None:
    """Award the best bids, as soon as it is plain which these are."""
    now_s = draft.now_s
    bids = [p for p, c in job.candidates.items() if c.offer is not None and not c.awarding]
    if not bids:
        return
    if draft.state.draining:
        need = 0
    asked = sum(c.asked for c in job.candidates.values())
    need -= sum(c.awarding for c in job.candidates.values())
    over_s = min(job.candidates[peer].bid_s for peer in bids) + BID_GRACE_S
    if asked and need < len(bids) + asked and now_s < over_s and need > 0:
        draft.wake(over_s)
        return
    bids.sort(key=lambda peer: (score(draft.state, job, peer), peer))
    for place, peer in enumerate(bids):
        if place < need and draft.leases_at(peer) < LEASES_AT_PEER:
            draft.add(do.Award(job.id, peer))
        else:
            draft.add(do.Decline(job.id, peer))


def _idle_leases(state: State, job: JobQueue) -> int:
    """Leases that have nothing to do, and could take what waits."""
    return sum(
        candidate.lease is not None
        and not state.leases[candidate.lease].batches
        and takeable(job, peer)
        for peer, candidate in job.candidates.items()
    )


def useful(draft: Draft, job: JobQueue, peer: PeerId) -> bool:
    """Whether a peer without a lease would get any unit before faster ones did them all."""
    each = estimates.measured_s(draft.state, job, peer)
    return each is None or draft.is_soonest(job, peer, draft.free_at_s(peer) + each)


def keep_leases(draft: Draft, job: JobQueue, lease: Lease) -> None:
    """Give a lease up that is of no use any more, or that only blocks its provider."""
    state, now_s = draft.state, draft.now_s
    if lease.batches:
        waited = [b for b in map(state.batches.__getitem__, lease.batches) if not b.answered]
        hung_s = min((estimates.hung_s(state, batch) for batch in waited), default=math.inf)
        if hung_s <= now_s or _outrun(draft, lease):
            draft.add(do.Drop(job.id, lease.id))
        else:
            draft.wake(hung_s)
        return
    if lease.closed or state.draining:
        draft.add(do.Release(job.id, lease.id))
        return
    starved = job.backlog and takeable(job, lease.peer)
    kept_s = STARVED_LEASE_S if starved else IDLE_LEASE_S
    # Else some may have to run again, or the next one may come any moment.
    done = not (job.busy or job.in_check or job.open)
    if done or lease.used_s + kept_s <= now_s:
        draft.add(do.Release(job.id, lease.id))
    else:
        draft.wake(lease.used_s + kept_s)


def _outrun(draft: Draft, lease: Lease) -> bool:
    """Whether a provider is overdue with units that others, who got them later, have ended."""
    state = draft.state
    batches = [state.batches[batch_id] for batch_id in lease.batches]
    return any(
        batch.unwanted and not batch.answered and overdue(state, batch.id, draft.now_s)
        for batch in batches
    )


def nobody_bids(state: State, job: JobQueue) -> bool:
    """Whether all who may be called have answered, and none of them with a bid that stands.

    A bid stands until the award of it is refused: while the lease is expected, and what went
    out with the award comes back, and also where it was let go for a better one.
    """
    if not job.called or job.leased:
        return False
    if any(lease.job == job.id for lease in state.leases.values()):
        return False
    if any(c.asked or c.awarding or c.offer for c in job.candidates.values()):
        return False
    return all(
        job.candidates.get(peer, _NEW).why not in ("", BID)
        for peer in state.offering.get(job.wanted, {})
    )


def hopes(state: State, job: JobQueue) -> list[PeerId]:
    """Who may yet try a unit that another one failed."""
    return [
        peer
        for peer in state.offering.get(job.wanted, {})
        if (candidate := job.candidates.get(peer, _NEW)).setbacks < SETBACKS_LIMIT
        and candidate.not_before_s < math.inf
    ]


_NEW = Candidate()
