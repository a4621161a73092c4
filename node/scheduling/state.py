"""What the scheduler knows, as plain values: peers, jobs, leases and units out.

Nothing in here decides or waits. `scheduling.events` changes it, `scheduling.plan`
reads it. Times are seconds of one clock that never jumps; units are indices in
their job.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import NewType, TypeAlias

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node.records import JobId
from shoal.node.wanted import Wanted
from shoal.protocol.limits import AT_ONCE_LIMIT

LeaseId = NewType("LeaseId", int)
BatchId = NewType("BatchId", int)

Kind: TypeAlias = tuple[BlobId, str]
"""A program and a numeric class: what a measured speed is of."""

BID = "bid"
"""What `Candidate.why` says where a peer bid; a refusal's code is another one."""

KINDS_LIMIT = 256
"""Kinds of which speeds are kept, the last used: a day's work of a busy user."""

SPEEDS_LIMIT = 1024
"""Peers of which a speed is kept for each of them, those that were measured last."""

IN_VAIN_LIMIT = 1024
"""Peers of which it is kept how long they have had units in vain."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a peer beside a job.

    Attributes:
        rtt_s: Of the link; None where there is no link, 0 for this node itself.
        standing: From 0, where it is cut, to 1.
        rate: Multiply-adds per second that it claims for the class; None without a claim.
        said: The sequence of its advert: it grows when the node has something new to say.
        sent_s: When this node last sent it bytes of a blob.
    """

    rtt_s: float | None = None
    standing: float = 1.0
    rate: float | None = None
    said: int = 0
    sent_s: float = -math.inf


@dataclass(slots=True)
class Speed:
    """How fast one peer runs one kind of unit, as this node sees it.

    Attributes:
        unit_s: Seconds per unit, newer ones counting more.
        samples: Batches measured. The first one also fetched the program and found the
            worker cold: the second takes its place.
    """

    unit_s: float
    samples: int = 1


@dataclass(frozen=True, slots=True)
class Offer:
    """What a bid says that matters here.

    Attributes:
        rate: Multiply-adds per second that the peer claims of the device that bids.
    """

    price: float
    units_max: int
    in_flight_max: int
    batch_max: int = 1
    proven: bool = False
    at_once: int = 1
    rate: float | None = None


@dataclass(slots=True)
class Batch:
    """Units that went to a peer in one message.

    Attributes:
        open: Those that have not come back.
        expected_s: How long it would take from `handed_s` on, by what was measured then,
            the batches before it included; None where nothing was measured.
        answered: The provider is done with it, and its results are being taken in.
    """

    id: BatchId
    job: JobId
    lease: LeaseId
    peer: PeerId
    units: int
    open: dict[int, None]
    handed_s: float
    expected_s: float | None
    copies: bool = False
    answered: bool = False
    unwanted: dict[int, None] = field(default_factory=dict)
    """Still open here, while another peer has ended them; to be cancelled."""


@dataclass(slots=True)
class Lease:
    """One lease that this node holds.

    Attributes:
        left: Units that it may still be given.
        closed: It takes nothing more; what is out may still come back.
        used_s: When it last had something to do.
    """

    id: LeaseId
    job: JobId
    peer: PeerId
    offer: Offer
    left: int
    used_s: float
    closed: bool = False
    batches: dict[BatchId, None] = field(default_factory=dict)


@dataclass(slots=True)
class Candidate:
    """One peer as one job sees it.

    Attributes:
        not_before_s: It is not asked before; infinity for not any more in this job.
        setbacks: Refusals and broken links in a row.
        asked: A call to it is unanswered.
        offer: Its bid, neither awarded nor let go, which came at `bid_s`.
        awarding: An award to it is unanswered.
        lease: The open lease with it.
        full: As many of its results wait to be checked as may: it gets nothing more.
        why: The code of what it answered last; "" before it has answered anything.
    """

    not_before_s: float = -math.inf
    setbacks: int = 0
    asked: bool = False
    offer: Offer | None = None
    bid_s: float = 0.0
    awarding: bool = False
    lease: LeaseId | None = None
    full: bool = False
    done: int = 0
    why: str = ""


@dataclass(slots=True)
class JobQueue:
    """One running job: which of its units wait, are out, or were called errors.

    Attributes:
        weight: Its share beside other jobs is in proportion.
        unit_bytes: Inputs of one unit, about.
        program_bytes: Of the program with its tensors.
        open: Whether more units may come, by what is known now.
        units: How many it has, by what is known now.
        waiting: Ready units in memory that nobody has.
        out: For each unit that somebody has, the batches in which it is.
        unread: Whether the journal may have ready units that are not in memory.
        reading: They are being read.
        ended_meanwhile: Units that ended while others were read.
        checking: Whether all have ended is being looked up.
        errors: Who called a unit an error.
        losses: Leases lost under a unit.
        near: Peers that have inputs of a unit already, for units that wait.
        copies: Units that were handed over again while somebody had them.
        called: A round of calls was made.
        leased: It has had a lease.
        virtual_s: Measured seconds that it got, by its weight (start-time fair queuing).
        in_check: How many of its results wait to be checked.
        full: As many of its results wait to be checked as may: it hands over no more.
    """

    id: JobId
    kind: Kind
    wanted: Wanted
    weight: float = 1.0
    unit_bytes: int = 0
    program_bytes: int = 0
    time_limit_s: float = 300.0
    fail_fast: bool = False
    open: bool = False
    units: int = 0
    waiting: deque[int] = field(default_factory=deque)
    out: dict[int, list[BatchId]] = field(default_factory=dict)
    unread: bool = True
    reading: bool = False
    ended_meanwhile: set[int] = field(default_factory=set)
    checking: bool = False
    ended: int = 0
    errors: dict[int, set[PeerId]] = field(default_factory=dict)
    losses: Counter[int] = field(default_factory=Counter)
    near: dict[int, PeerId] = field(default_factory=dict)
    copies: int = 0
    called: bool = False
    leased: bool = False
    virtual_s: float = 0.0
    in_check: int = 0
    full: bool = False
    candidates: dict[PeerId, Candidate] = field(default_factory=dict)

    def candidate(self, peer: PeerId) -> Candidate:
        """The entry of a peer, made where there is none."""
        return self.candidates.setdefault(peer, Candidate())

    def untried(self, index: int, peer: PeerId) -> bool:
        """Whether ``peer`` has not called this unit an error."""
        return peer not in self.errors.get(index, ())

    @property
    def backlog(self) -> int:
        """Units that nobody has: those in memory, and those of the journal at a guess."""
        behind = self.units - self.ended - len(self.waiting) - len(self.out)
        return len(self.waiting) + (max(0, behind) if self.unread or self.reading else 0)

    @property
    def busy(self) -> bool:
        """Whether it has anything to be done now."""
        return bool(self.waiting or self.out or self.unread or self.reading)


@dataclass(slots=True)
class Line:
    """What this node has at one peer, of all its jobs: it runs few batches at a time.

    Attributes:
        batches: In the order in which they were handed over.
        at_once: How many it runs at a time, by its bids: it has so many places.
        answered_s: When it last answered one.
        answers_s: When it answered the last ones, the latest last.
    """

    batches: dict[BatchId, None] = field(default_factory=dict)
    at_once: int = 1
    answered_s: float = -math.inf
    answers_s: deque[float] = field(default_factory=lambda: deque(maxlen=AT_ONCE_LIMIT))

    def answered(self, now_s: float) -> None:
        """Note an answer."""
        self.answered_s = now_s
        self.answers_s.append(now_s)

    def places_free_s(self) -> list[float]:
        """Since when each of its places had been free, had nothing come since; least first."""
        latest = list(self.answers_s)[-self.at_once :]
        return [-math.inf] * (self.at_once - len(latest)) + latest


@dataclass(slots=True)
class InVain:
    """Units that one peer had for longer than they may run, and that others ended before it.

    Attributes:
        seconds: How long it had any of those, since it last ended a unit itself; without
            `sending_s`, for which this node was sending it something.
        until_s: Up to when that is counted.
    """

    seconds: float = 0.0
    sending_s: float = 0.0
    until_s: float = -math.inf


@dataclass(slots=True)
class State:
    """All that `plan` goes by.

    Attributes:
        offering: For what units look for, the peers that may be called, with what is
            known of them.
        ranked: The measured seconds per unit of each kind, least first, with whose they are:
            made of `speeds` where it is asked for (`estimates.typical_s`).
        in_vain: Peers of which others ended what they had had for too long, since their last
            result, and how long they had it, over all jobs; those of whom it was noted last.
        virtual_s: Where fair queuing stands: what a job that begins now starts from.
        draining: Nothing is begun any more.
    """

    jobs: dict[JobId, JobQueue] = field(default_factory=dict)
    leases: dict[LeaseId, Lease] = field(default_factory=dict)
    batches: dict[BatchId, Batch] = field(default_factory=dict)
    lines: dict[PeerId, Line] = field(default_factory=dict)
    offering: dict[Wanted, dict[PeerId, Facts]] = field(default_factory=dict)
    speeds: dict[Kind, dict[PeerId, Speed]] = field(default_factory=dict)
    ranked: dict[Kind, list[tuple[float, PeerId]]] = field(default_factory=dict)
    in_vain: dict[PeerId, InVain] = field(default_factory=dict)
    virtual_s: float = 0.0
    next_lease: int = 0
    next_batch: int = 0
    draining: bool = False

    def line(self, peer: PeerId) -> Line:
        """The entry of a peer, made where there is none."""
        return self.lines.setdefault(peer, Line())

    def facts(self, job: JobQueue, peer: PeerId) -> Facts:
        """What is known of a peer."""
        return self.offering.get(job.wanted, {}).get(peer, _UNKNOWN)


_UNKNOWN = Facts()
