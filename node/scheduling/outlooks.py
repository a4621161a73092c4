"""How one job stands now, peer by peer, as `node.outlook` has it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shoal.node.outlook import Doing, Outlook, PeerOutlook
from shoal.node.scheduling import estimates
from shoal.node.scheduling.state import Candidate

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.scheduling.state import JobQueue, State

UNITS_SHOWN = 64
"""Units out at one peer that an outlook names: a person reads fewer."""


def outlook(state: State, job: JobQueue, awaiting: int, now_s: float) -> Outlook:
    """How a job stands.

    Args:
        state: All jobs, of which it has its share.
        job: The job.
        awaiting: How many of its units await others.
        now_s: On the clock of the events.
    """
    weights = sum(other.weight for other in state.jobs.values() if other.busy)
    share = job.weight / weights if job.busy and weights else 1.0
    waiting = max(0, job.backlog - awaiting) if job.unread else job.backlog
    out: dict[PeerId, list[int]] = {}
    for index, copies in job.out.items():
        for batch_id in copies:
            out.setdefault(state.batches[batch_id].peer, []).append(index)
    offering = state.offering.get(job.wanted, {})
    peers = [
        _peer(state, job, peer, tuple(out.get(peer, ())[:UNITS_SHOWN]), now_s)
        for peer in sorted({*offering, *job.candidates})
    ]
    speeds = [
        1.0 / each
        for peer, candidate in job.candidates.items()
        if candidate.lease is not None
        and (each := estimates.unit_s(state, job, peer)) is not None
    ]
    left = waiting + len(job.out)
    return Outlook(
        units_waiting=waiting,
        units_out=len(job.out),
        units_awaiting=awaiting,
        share=share,
        ends_in_s=left / sum(speeds) / share if speeds else None,
        peers=tuple(peers),
    )


def _peer(
    state: State, job: JobQueue, peer: PeerId, out: tuple[int, ...], now_s: float
) -> PeerOutlook:
    candidate = job.candidates.get(peer, Candidate())
    wait_s = candidate.not_before_s - now_s
    if out or candidate.lease is not None:
        doing = Doing.LEASED
    elif candidate.asked or candidate.awarding or candidate.offer is not None:
        doing = Doing.ASKED
    elif wait_s == math.inf:
        doing = Doing.EXCLUDED
    elif wait_s > 0.0:
        doing = Doing.RESTING
    else:
        doing = Doing.PASSED_OVER
    return PeerOutlook(
        peer=peer,
        doing=doing,
        units_out=out,
        units_done=candidate.done,
        unit_s=estimates.measured_s(state, job, peer),
        again_in_s=wait_s if doing is Doing.RESTING else None,
        why=candidate.why,
    )
