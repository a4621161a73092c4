"""What happens to a job, a lease or a unit, as changes of the state: no clock, no IO.

`apply` notes that an action of the plan was begun; the other functions note what came
of it. Whatever comes in whatever order, a unit ends once: what is said of one that has
ended is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from shoal.crypto.peer_id import PeerId
from shoal.node.records import JobId
from shoal.node.scheduling import actions as do
from shoal.node.scheduling import estimates
from shoal.node.scheduling.state import (
    BID,
    IN_VAIN_LIMIT,
    KINDS_LIMIT,
    SPEEDS_LIMIT,
    Batch,
    BatchId,
    Candidate,
    Facts,
    InVain,
    JobQueue,
    Lease,
    LeaseId,
    Offer,
    Speed,
    State,
)
from shoal.node.wanted import Wanted
from shoal.protocol.negotiation_messages import Reason

NEWEST_SHARE = 0.4
"""Of a new measurement in a speed: after five of them an old speed counts a twelfth."""

AFTER_DECLINE_S = 1.0
"""A peer whose bid was let go is not called again before: it would bid the same."""

NOT_SEEN = Facts(said=-1)

_REFUSALS = frozenset(reason.value for reason in Reason)


def apply(state: State, action: do.Action, now_s: float) -> None:  # noqa: C901  # a table
    """Note that ``action`` is under way."""
    job = state.jobs.get(action.job)
    if job is None:
        return
    match action:
        case do.Call():
            job.called = True
            for peer in action.peers:
                job.candidate(peer).asked = True
        case do.Award():
            job.candidate(action.peer).awarding = True
        case do.Decline():
            candidate = job.candidate(action.peer)
            candidate.offer = None
            rest(candidate, now_s + AFTER_DECLINE_S)
        case do.HandOver():
            _handed_over(state, job, action, now_s)
        case do.Cancel():
            batch = state.batches[action.batch]
            _had_in_vain(state, batch, now_s)
            for index in action.units:
                batch.unwanted.pop(index, None)
                batch.open.pop(index, None)
        case do.Release():
            _forget_lease(state, job, action.lease)
        case do.Drop():
            state.in_vain.pop(state.leases[action.lease].peer, None)  # it is held against it
            lease_broken(state, action.lease)
        case do.ReadOn():
            job.reading, job.unread = True, False
        case do.Check():
            job.checking = True
        case do.GiveUp():
            ended(state, action.job, action.unit)
        case do.FailFast():
            job.fail_fast = False


# --- jobs and what they have to do ------------------------------------------------------


def job_started(state: State, job: JobQueue) -> None:
    """A job begins, or begins again after a restart."""
    job.virtual_s = state.virtual_s
    state.jobs[job.id] = job


def job_ended(state: State, job_id: JobId, now_s: float) -> None:
    """A job is over, whatever was out of it."""
    if job_id not in state.jobs:
        return
    for lease in [lease for lease in state.leases.values() if lease.job == job_id]:
        for batch_id in list(lease.batches):
            _had_in_vain(state, state.batches[batch_id], now_s)
            _forget_batch(state, state.batches[batch_id])
        del state.leases[lease.id]
    del state.jobs[job_id]


def units_ready(state: State, job_id: JobId, units: int | None = None) -> None:
    """The journal has more ready units; ``units`` is how many the job has then."""
    job = state.jobs.get(job_id)
    if job is not None:
        _wake(state, job)
        job.unread, job.checking = True, False
        job.units = job.units if units is None else units


def units_read(
    state: State,
    job_id: JobId,
    indices: Iterable[int],
    *,
    more: bool,
    near: Mapping[int, PeerId] = MappingProxyType({}),
) -> None:
    """Ready units came from the journal.

    Args:
        state: Changed.
        job_id: Whose they are.
        indices: Which.
        more: Whether there may be others.
        near: Peers that have inputs of a unit already: the one that has most of them.
    """
    job = state.jobs.get(job_id)
    if job is not None:
        job.near.update(near)
        _wake(state, job)
        known = {*job.waiting, *job.ended_meanwhile}
        job.waiting.extend(i for i in indices if i not in known and i not in job.out)
        job.reading, job.unread = False, job.unread or more
        job.ended_meanwhile.clear()


def units_came(state: State, job_id: JobId, indices: Iterable[int], units: int) -> None:
    """Ready units came that follow all that are known: they need not be read.

    Args:
        state: Changed.
        job_id: Whose they are; nothing of it is to be read.
        indices: Which.
        units: How many the job has then.
    """
    job = state.jobs[job_id]
    _wake(state, job)
    job.checking, job.units = False, units
    job.waiting.extend(indices)


def not_finished(state: State, job_id: JobId) -> None:
    """The journal says that units are still to come; `units_ready` says when."""
    job = state.jobs.get(job_id)
    if job is not None:
        job.candidates = {
            peer: candidate
            for peer, candidate in job.candidates.items()
            if candidate.lease is not None
            or candidate.asked
            or candidate.offer is not None  # a bid that stands, or an award under way
            or candidate.not_before_s > 0
        }


def _wake(state: State, job: JobQueue) -> None:
    """What was idle has no claim to the turns that it did not take."""
    if not job.busy:
        job.virtual_s = max(job.virtual_s, state.virtual_s)


# --- peers and leases ----------------------------------------------------------------------


def peers_known(state: State, offering: Mapping[Wanted, Mapping[PeerId, Facts]]) -> None:
    """Who may be called now, for what units look for.

    A peer that refused, and has issued a new advert since, may have changed its mind: it
    is asked again at once.
    """
    for job in state.jobs.values():
        before = state.offering.get(job.wanted, {})
        for peer, facts in offering.get(job.wanted, {}).items():
            candidate = job.candidates.get(peer)
            if (
                candidate is not None
                and candidate.why in _REFUSALS
                and facts.said > before.get(peer, NOT_SEEN).said
            ):
                candidate.not_before_s, candidate.setbacks = -math.inf, 0
    state.offering = {name: dict(peers) for name, peers in offering.items()}
    known = {peer for peers in offering.values() for peer in peers}
    for peer in [p for p, line in state.lines.items() if not line.batches and p not in known]:
        del state.lines[peer]


def rest(candidate: Candidate, until_s: float) -> None:
    """Ask this peer nothing for this job until then."""
    candidate.not_before_s = max(candidate.not_before_s, until_s)


def bid_came(state: State, job_id: JobId, peer: PeerId, offer: Offer, now_s: float) -> None:
    """A peer bids."""
    if (job := state.jobs.get(job_id)) is not None:
        candidate = job.candidate(peer)
        candidate.asked, candidate.offer, candidate.bid_s = False, offer, now_s
        candidate.why = BID


def refused(
    state: State, job_id: JobId, peer: PeerId, why: str, until_s: float, setbacks: int = 1
) -> None:
    """A peer refused a call or an award, could not be reached, or broke a lease.

    Args:
        state: Changed.
        job_id: By which it was asked.
        peer: Who answered so.
        why: The code of its answer.
        until_s: When it may be asked again.
        setbacks: What this adds to those in a row.
    """
    if (job := state.jobs.get(job_id)) is not None:
        candidate = job.candidate(peer)
        candidate.asked = candidate.awarding = False
        candidate.offer, candidate.why = None, why
        candidate.setbacks += setbacks
        rest(candidate, until_s)


def lease_expected(state: State, job_id: JobId, peer: PeerId, now_s: float) -> LeaseId | None:
    """A peer is being given the award, and units may go out with it: its lease.

    None where the job has ended meanwhile. `lease_confirmed` or `lease_refused` says what it
    answered.
    """
    job = state.jobs.get(job_id)
    if job is None:
        return None
    candidate = job.candidate(peer)
    offer = candidate.offer
    assert offer is not None
    lease = Lease(LeaseId(state.next_lease), job_id, peer, offer, offer.units_max, now_s)
    state.next_lease += 1
    state.leases[lease.id] = lease
    candidate.offer, candidate.awarding, candidate.lease = None, False, lease.id
    there = (each.offer.at_once for each in state.leases.values() if each.peer == peer)
    state.line(peer).at_once = max(there)
    return lease.id


def lease_confirmed(state: State, lease_id: LeaseId) -> None:
    """The peer took the award."""
    if (lease := state.leases.get(lease_id)) is not None:
        job = state.jobs[lease.job]
        candidate = job.candidate(lease.peer)
        candidate.setbacks, candidate.why, job.leased = 0, "awarded", True


def lease_refused(state: State, lease_id: LeaseId) -> None:
    """The peer did not take the award: what went out with it waits again, and lost nothing."""
    _end_lease(state, lease_id, lost=False)


def lease_closed(state: State, lease_id: LeaseId) -> None:
    """The provider takes no more under it; what it has in hand it may still end."""
    if (lease := state.leases.get(lease_id)) is not None:
        lease.closed = True
        candidate = state.jobs[lease.job].candidate(lease.peer)
        if candidate.lease == lease_id:
            candidate.lease = None


def lease_broken(state: State, lease_id: LeaseId) -> None:
    """A lease is gone, and with it what was out; its units wait again."""
    _end_lease(state, lease_id, lost=True)


def _end_lease(state: State, lease_id: LeaseId, *, lost: bool) -> None:
    lease = state.leases.get(lease_id)
    if lease is None:
        return
    job = state.jobs[lease.job]
    for batch_id in list(lease.batches):
        batch = state.batches[batch_id]
        for index in reversed(list(batch.open)):
            _back(job, batch, index, lost=lost)
        _forget_batch(state, batch)
    _forget_lease(state, job, lease_id)


def _forget_lease(state: State, job: JobQueue, lease_id: LeaseId) -> None:
    lease = state.leases.pop(lease_id, None)
    if lease is not None and job.candidate(lease.peer).lease == lease_id:
        job.candidates[lease.peer].lease = None


# --- units ------------------------------------------------------------------------------------


def _handed_over(state: State, job: JobQueue, action: do.HandOver, now_s: float) -> None:
    lease = state.leases[action.lease]
    batch = Batch(
        id=action.batch,
        job=job.id,
        lease=lease.id,
        peer=lease.peer,
        units=len(action.units),
        open=dict.fromkeys(action.units),
        handed_s=now_s,
        expected_s=action.expected_s,
        copies=action.copies,
    )
    state.next_batch = max(state.next_batch, action.batch + 1)
    state.batches[batch.id] = batch
    lease.batches[batch.id] = None
    lease.left -= len(action.units)
    lease.used_s = now_s
    state.line(lease.peer).batches[batch.id] = None
    if action.copies:
        job.copies += len(action.units)
    else:
        taken = set(action.units)
        if [*_first(job.waiting, len(taken))] == list(action.units):
            for _ in action.units:
                job.waiting.popleft()
        else:
            rest_of = [index for index in job.waiting if index not in taken]
            job.waiting.clear()
            job.waiting.extend(rest_of)
    for index in action.units:
        job.out.setdefault(index, []).append(batch.id)
    state.virtual_s = max(state.virtual_s, job.virtual_s)
    job.virtual_s += action.cost_s / job.weight
    if lease.left <= 0:
        lease_closed(state, lease.id)


def came_back(
    state: State, batch_id: BatchId, now_s: float, ran: int, cost_s: float | None = None
) -> None:
    """A provider answered a batch, of which it ran ``ran`` units; measure its speed.

    The units themselves end, fail or come back by the functions below, which take their
    time: outputs are fetched and written down in between.
    """
    batch = state.batches.get(batch_id)
    if batch is None or batch.answered:
        return
    batch.answered = True
    line = state.line(batch.peer)
    took_s = now_s - max(batch.handed_s, line.places_free_s()[0])
    line.batches.pop(batch_id, None)
    line.answered(now_s)
    job = state.jobs[batch.job]
    if ran:
        state.in_vain.pop(batch.peer, None)
        _measure(state, job, batch.peer, max(took_s, 1e-6) / ran)
    if cost_s is not None:
        job.virtual_s += (took_s - cost_s) / job.weight
    state.leases[batch.lease].used_s = now_s


def _had_in_vain(state: State, batch: Batch, now_s: float) -> None:
    """Note how long a peer had a batch of which others have ended all that was left.

    Who had it for no longer than it may run was only beaten by a faster one.
    """
    if batch.answered or not batch.unwanted or batch.open.keys() - batch.unwanted.keys():
        return
    limit_s = estimates.run_limit_s(state, batch)
    if limit_s is None or now_s - batch.handed_s < limit_s:
        return
    noted = state.in_vain.get(batch.peer) or InVain()
    since_s = max(batch.handed_s, state.line(batch.peer).answered_s, noted.until_s)
    sending_s = estimates.sent_for_s(state, batch, since_s)
    noted.sending_s += sending_s
    noted.seconds += max(0.0, now_s - since_s - sending_s)
    state.in_vain.pop(batch.peer, None)
    noted.until_s = now_s
    state.in_vain[batch.peer] = noted  # the last noted is last
    if len(state.in_vain) > IN_VAIN_LIMIT:
        del state.in_vain[next(iter(state.in_vain))]


def _measure(state: State, job: JobQueue, peer: PeerId, unit_s: float) -> None:
    speeds = state.speeds.pop(job.kind, {})
    state.speeds[job.kind] = speeds  # the last used is last
    state.ranked.pop(job.kind, None)
    while len(state.speeds) > KINDS_LIMIT:
        oldest = next(iter(state.speeds))
        del state.speeds[oldest]
        state.ranked.pop(oldest, None)
    speed = speeds.pop(peer, None)
    if speed is None:
        speeds[peer] = Speed(unit_s)
        if len(speeds) > SPEEDS_LIMIT:
            del speeds[next(iter(speeds))]
        return
    speeds[peer] = speed
    share = 1.0 if speed.samples == 1 else NEWEST_SHARE
    speed.unit_s += share * (unit_s - speed.unit_s)
    speed.samples += 1


def ended(state: State, job_id: JobId, index: int, batch_id: BatchId | None = None) -> bool:
    """A unit is over, by a verified result or for good; False where it was before."""
    job = state.jobs.get(job_id)
    if job is None:
        return False
    batch = state.batches.get(batch_id) if batch_id is not None else None
    if batch is not None:
        batch.open.pop(index, None)
        batch.unwanted.pop(index, None)
    if job.reading:  # what is read may be older than this
        job.ended_meanwhile.add(index)
    copies = job.out.pop(index, None)
    if copies is None and index not in job.waiting:
        return False
    if copies is None:
        job.waiting.remove(index)
    for other in copies or ():
        if other != batch_id and index in state.batches[other].open:
            state.batches[other].unwanted[index] = None
    if batch is not None:
        job.candidate(batch.peer).done += 1
    job.ended += 1
    job.errors.pop(index, None)
    job.losses.pop(index, None)
    job.near.pop(index, None)
    return True


def failed(state: State, batch_id: BatchId, index: int) -> None:
    """A provider called a unit an error: it waits for another one."""
    batch = state.batches.get(batch_id)
    if batch is not None and index in batch.open:
        job = state.jobs[batch.job]
        if index in job.out:
            job.errors.setdefault(index, set()).add(batch.peer)
        _back(job, batch, index, lost=False)


def handed_back(state: State, batch_id: BatchId, index: int) -> None:
    """A provider gave a unit back unharmed: it is no loss, however often."""
    batch = state.batches.get(batch_id)
    if batch is not None and index in batch.open:
        _back(state.jobs[batch.job], batch, index, lost=False)


def waits_again(state: State, batch_id: BatchId, index: int) -> None:
    """A unit awaits others again, since it lost an input; `units_read` brings it back."""
    batch = state.batches.get(batch_id)
    if batch is not None and index in batch.open:
        job = state.jobs[batch.job]
        _back(job, batch, index, lost=False)
        if index in job.waiting:
            job.waiting.remove(index)
        job.near.pop(index, None)


def batch_over(state: State, batch_id: BatchId) -> None:
    """All that will come of a batch has come; what is still open of it is handed back."""
    batch = state.batches.get(batch_id)
    if batch is None:
        return
    for index in reversed(list(batch.open)):
        _back(state.jobs[batch.job], batch, index, lost=False)
    _forget_batch(state, batch)


def _back(job: JobQueue, batch: Batch, index: int, *, lost: bool) -> None:
    del batch.open[index]
    batch.unwanted.pop(index, None)
    copies = job.out.get(index)
    if copies is None:  # it has ended elsewhere
        return
    if batch.id in copies:
        copies.remove(batch.id)
    if lost:
        job.losses[index] += 1
    if not copies:
        del job.out[index]
        job.waiting.appendleft(index)


def _forget_batch(state: State, batch: Batch) -> None:
    state.batches.pop(batch.id, None)
    state.line(batch.peer).batches.pop(batch.id, None)
    if (lease := state.leases.get(batch.lease)) is not None:
        lease.batches.pop(batch.id, None)


def _first(units: Iterable[int], count: int) -> Iterable[int]:
    for place, index in enumerate(units):
        if place == count:
            return
        yield index
