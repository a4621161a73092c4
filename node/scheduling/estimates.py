"""How long things will take, by what was measured: pure looks at the state.

A peer is taken as a line before the places that it has, each of which does one batch after
another, of all this node's jobs. What others than this node give it shows in its measured
speed.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from heapq import heapreplace
from statistics import median_low
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.scheduling.state import Batch, BatchId, JobQueue, State

GUESS_S = 0.5
"""What a unit is taken to last where nobody has run one of its kind: a batch's length, so
that two are out at a new peer."""

LINK_BYTES_PER_S = 10e6
"""What a link is taken to carry at the least: 100 Mbit/s at home, less what is lost."""

LATE_FACTOR = 3.0
"""A unit is overdue after so many times what others take for it: on a machine that somebody
works at, units of one program seldom differ by more."""

LATE_GRACE_S = 1.0
"""Beyond that, for a link that hiccups: a resent TCP segment takes some 0.3 s, thrice 1 s."""

COLD_S = 30.0
"""What the first unit of a kind may take before it counts as overdue, apart from its bytes:
a cold worker starts and compiles within 10 s on a slow machine, and longer units are not
worth running twice on the mere suspicion."""

COLD_PEER_S = 10.0
"""The same at one peer, where others were measured: its worker starts and compiles."""

CLAIM_LIMIT = 10.0
"""By how much slower a peer may say it is, and get the time for that: from a new graphics card
to an old laptop it is more, but that one is given nothing beside the other."""

SENDING_LIMIT_S = 30.0
"""How long a peer may fetch from this node before that counts as its own time, until it ends a
unit: busy machines take a multiple of what `LINK_BYTES_PER_S` says, and who only seems to fetch
must not hold a job up."""

HANG_FACTOR = 10.0
HANG_GRACE_S = 60.0
"""A provider that takes so much longer than measured hangs, whether or not another one could
have run the unit: its lease is dropped."""


def fetch_s(job: JobQueue, units: int = 1, *, program: bool = False) -> float:
    """Seconds until the bytes of some units are where they are needed, at the most."""
    size_bytes = units * job.unit_bytes + (job.program_bytes if program else 0)
    return size_bytes / LINK_BYTES_PER_S


def measured_s(state: State, job: JobQueue, peer: PeerId) -> float | None:
    """Seconds per unit that were measured of this peer; None before there are any."""
    speed = state.speeds.get(job.kind, {}).get(peer)
    return speed.unit_s if speed else None


def typical_s(state: State, job: JobQueue, but: PeerId | None = None) -> float | None:
    """The lower median of what was measured of all peers, ``but`` one, for such units."""
    ranked = state.ranked.get(job.kind)
    if ranked is None:
        speeds = state.speeds.get(job.kind, {})
        ranked = state.ranked[job.kind] = sorted((s.unit_s, p) for p, s in speeds.items())
    own = measured_s(state, job, but) if but is not None else None
    if own is None or but is None:
        return ranked[(len(ranked) - 1) // 2][0] if ranked else None
    if len(ranked) == 1:
        return None
    middle = (len(ranked) - 2) // 2
    return ranked[middle + (bisect_left(ranked, (own, but)) <= middle)][0]


def unit_s(state: State, job: JobQueue, peer: PeerId) -> float | None:
    """Seconds per unit of a peer: its own, else as others take it, by what both claim.

    None where nobody was measured. A claim counts between half and twice: it is of
    another program.
    """
    own = measured_s(state, job, peer)
    if own is not None:
        return own
    typical = typical_s(state, job)
    if typical is None:
        return None
    return typical * min(2.0, max(0.5, _slower_by_claim(state, job, peer)))


def _slower_by_claim(state: State, job: JobQueue, peer: PeerId) -> float:
    """How many times slower a peer says it is than those that were measured; 1 of no claims."""
    rate = _claimed(state, job, peer)
    if not rate:
        return 1.0
    rates = [claim for p in state.speeds[job.kind] if (claim := _claimed(state, job, p))]
    return median_low(rates) / rate if rates else 1.0


def _claimed(state: State, job: JobQueue, peer: PeerId) -> float | None:
    """What a peer claims of the device it has bid with; before a bid, of its fastest."""
    candidate = job.candidates.get(peer)
    offer = candidate.offer if candidate is not None else None
    if candidate is not None and candidate.lease in state.leases:
        offer = state.leases[candidate.lease].offer
    if offer is not None and offer.rate:
        return offer.rate
    return state.facts(job, peer).rate


def batch_s(state: State, batch: Batch) -> float:
    """Seconds of one batch at its peer, at a guess where nothing was measured."""
    each = unit_s(state, state.jobs[batch.job], batch.peer)
    return len(batch.open) * (GUESS_S if each is None else each)


def ends(state: State, peer: PeerId, now_s: float) -> dict[BatchId, float]:
    """When each batch at a peer is expected back, in the order of its line.

    One that should be back already is taken to need as long again as it is late: who has
    been waited for in vain is not about to come.
    """
    return _ends(state, peer, now_s)[0]


def _ends(state: State, peer: PeerId, now_s: float) -> tuple[dict[BatchId, float], float]:
    """The same, and when a place is free next."""
    line = state.line(peer)
    places = line.places_free_s()  # a sorted list is a heap
    expected: dict[BatchId, float] = {}
    for batch_id in line.batches:
        batch = state.batches[batch_id]
        at_s = max(places[0], batch.handed_s) + batch_s(state, batch)
        if at_s < now_s:
            at_s = now_s + (now_s - at_s)
        heapreplace(places, at_s)
        expected[batch_id] = at_s
    return expected, places[0]


def free_at_s(state: State, peer: PeerId, now_s: float) -> float:
    """When a peer is expected to have a place free for more than this node has given it."""
    return max(now_s, _ends(state, peer, now_s)[1])


def due_s(state: State, batch: Batch) -> float:
    """From when on a batch is overdue, by what *others* take for such units.

    Only where no other peer was measured its own earlier speed counts, and before
    anything was measured its bytes.

    What a peer gets beyond the time that units run, for a cold worker, the program (or as long
    as this node was sending it something) and a link that hiccups, it gets once until it ends a
    unit, and not for each unit anew that others end before it (`State.in_vain`): else who never
    answers could not be told from who is new.
    """
    job = state.jobs[batch.job]
    limit_s = run_limit_s(state, batch)
    sending_s = sent_for_s(state, batch, batch.handed_s)
    if limit_s is None:
        fetching_s = fetch_s(job, batch.units, program=True)
        return batch.handed_s + COLD_S + max(fetching_s, sending_s)
    beyond_s = LATE_GRACE_S
    if measured_s(state, job, batch.peer) is None:
        fetching_s = fetch_s(job, units=0, program=True)
        beyond_s += COLD_PEER_S + max(fetching_s, sending_s)
    return batch.handed_s + limit_s + max(0.0, beyond_s - in_vain_s(state, batch.peer))


def sent_for_s(state: State, batch: Batch, since_s: float) -> float:
    """How long this node was sending to a batch's peer since then: that is not its own time.

    At most `SENDING_LIMIT_S` until it ends a unit: it may fetch slowly on purpose.
    """
    noted = state.in_vain.get(batch.peer)
    left_s = SENDING_LIMIT_S - (noted.sending_s if noted is not None else 0.0)
    sent_s = state.facts(state.jobs[batch.job], batch.peer).sent_s
    return max(0.0, min(left_s, sent_s - since_s))


def run_limit_s(state: State, batch: Batch) -> float | None:
    """What units and their bytes may take, of a batch at a peer that has all else it needs.

    None before anything was measured.
    """
    job = state.jobs[batch.job]
    typical = typical_s(state, job, but=batch.peer)
    if typical is None and batch.expected_s is None:
        return None
    run_s = (batch.expected_s or 0.0) if typical is None else batch.units * typical
    if measured_s(state, job, batch.peer) is None:
        run_s *= min(CLAIM_LIMIT, max(1.0, _slower_by_claim(state, job, batch.peer)))
    ahead_s = max(0.0, (batch.expected_s or 0.0) - run_s)
    return LATE_FACTOR * (run_s + ahead_s) + fetch_s(job, batch.units)


def in_vain_s(state: State, peer: PeerId) -> float:
    """How long a peer has had units that others ended before it, since it last ended one."""
    noted = state.in_vain.get(peer)
    return noted.seconds if noted is not None else 0.0


def hung_s(state: State, batch: Batch) -> float:
    """From when on the provider of a batch counts as hanging; infinity before a measure."""
    job = state.jobs[batch.job]
    each = typical_s(state, job)
    if each is None:
        return math.inf
    own = measured_s(state, job, batch.peer) or each
    run_s = max(batch.units * max(each, own), batch.expected_s or 0.0)
    return (
        batch.handed_s
        + HANG_FACTOR * run_s
        + HANG_GRACE_S
        + fetch_s(job, batch.units, program=True)
    )
