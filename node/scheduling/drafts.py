"""A plan in the making: what is decided so far, which the next decision goes by.

The state itself is not changed while a plan is made. What a draft has handed over
counts against its jobs and peers at once; at most one batch for each peer is in one
draft, so that `plan` is asked again when it was done.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

from shoal.node.scheduling import actions as do
from shoal.node.scheduling import estimates
from shoal.node.scheduling.state import BatchId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.crypto.peer_id import PeerId
    from shoal.node.records import JobId
    from shoal.node.scheduling.state import JobQueue, Lease, State


class Draft:
    """What one call of `plan` has decided."""

    def __init__(self, state: State, now_s: float) -> None:
        self.state, self.now_s = state, now_s
        self.actions: list[do.Action] = []
        self.wake_at_s = math.inf
        self.taken: dict[JobId, set[int]] = {}
        self.copied: Counter[JobId] = Counter()
        self.fed: dict[PeerId, float] = {}
        """When a peer that got something in this draft is free again."""
        self._virtual_s: dict[JobId, float] = {}
        self._free_at_s: dict[PeerId, float] = {}
        self._leases_at: Counter[PeerId] | None = None
        self._batches = 0

    def add(self, action: do.Action) -> None:
        """Do this too."""
        self.actions.append(action)
        if isinstance(action, do.Award):
            self._count_leases()[action.peer] += 1

    def wake(self, at_s: float) -> None:
        """Look again then, at the latest."""
        if at_s > self.now_s:
            self.wake_at_s = min(self.wake_at_s, at_s)

    def hand_over(
        self,
        job: JobQueue,
        lease: Lease,
        units: Sequence[int],
        each_s: float | None,
        *,
        copies: bool = False,
    ) -> None:
        """Give these units to a peer, each of which is expected to take so long there."""
        free_s = self.free_at_s(lease.peer)
        cost_s = len(units) * (estimates.GUESS_S if each_s is None else each_s)
        self.add(
            do.HandOver(
                job.id,
                lease.id,
                BatchId(self.state.next_batch + self._batches),
                tuple(units),
                None if each_s is None else free_s - self.now_s + cost_s,
                cost_s,
                copies,
            )
        )
        self._batches += 1
        self.taken.setdefault(job.id, set()).update(units)
        if copies:
            self.copied[job.id] += len(units)
        self.fed[lease.peer] = free_s + cost_s
        self._virtual_s[job.id] = self.virtual_s(job) + cost_s / job.weight

    def virtual_s(self, job: JobQueue) -> float:
        """What a job has got of its share."""
        return self._virtual_s.get(job.id, job.virtual_s)

    def free_at_s(self, peer: PeerId) -> float:
        """When a peer is expected to have a place free for more than it was given."""
        if peer in self.fed:
            return self.fed[peer]
        if peer not in self._free_at_s:
            self._free_at_s[peer] = estimates.free_at_s(self.state, peer, self.now_s)
        return self._free_at_s[peer]

    def leases_at(self, peer: PeerId) -> int:
        """How many leases all jobs hold, or are about to, at a peer."""
        return self._count_leases()[peer]

    def left(self, job: JobQueue) -> int:
        """Units that nobody has, when this draft is done."""
        return job.backlog - len(self.taken.get(job.id, ())) + self.copied[job.id]

    def is_soonest(self, job: JobQueue, peer: PeerId, end_s: float) -> bool:
        """Whether the others with a lease would not have done all that is left by ``end_s``.

        Units are counted whole, each peer after what it has already (list scheduling): a
        slow peer must not begin what a faster one, busy now, would end sooner.

        Args:
            job: Whose units.
            peer: Who would be given some.
            end_s: When ``peer`` would have done what it is about to be given.
        """
        left, within = self.left(job), 0
        for other, candidate in job.candidates.items():
            if candidate.lease is None or other == peer:
                continue
            each_s = estimates.unit_s(self.state, job, other)
            if each_s is None:
                continue
            room_s = end_s - self.free_at_s(other)
            within += max(0, math.ceil(room_s / each_s - 1e-6) - 1)  # sooner, not as soon
            if within >= left:
                return False
        return True

    def _count_leases(self) -> Counter[PeerId]:
        if self._leases_at is None:
            self._leases_at = Counter(lease.peer for lease in self.state.leases.values())
            for job in self.state.jobs.values():
                self._leases_at.update(p for p, c in job.candidates.items() if c.awarding)
        return self._leases_at
