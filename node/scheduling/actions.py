"""What `plan` may ask to be done; `node.jobs` does it and says by events what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from shoal.crypto.peer_id import PeerId
from shoal.node.records import JobId
from shoal.node.scheduling.state import BatchId, LeaseId


@dataclass(frozen=True, slots=True)
class Call:
    """Call these peers for bids on ``units`` units."""

    job: JobId
    peers: tuple[PeerId, ...]
    units: int


@dataclass(frozen=True, slots=True)
class Award:
    """Award this peer's bid."""

    job: JobId
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Decline:
    """Let this peer's bid go."""

    job: JobId
    peer: PeerId


@dataclass(frozen=True, slots=True)
class HandOver:
    """Hand over these units in one message.

    Attributes:
        expected_s: See `state.Batch`.
        cost_s: What the job is charged for it, in measured seconds.
        copies: Another peer has them as well: they are run again.
    """

    job: JobId
    lease: LeaseId
    batch: BatchId
    units: tuple[int, ...]
    expected_s: float | None
    cost_s: float
    copies: bool = False


@dataclass(frozen=True, slots=True)
class Cancel:
    """Tell the provider that nobody waits for these units any more."""

    job: JobId
    batch: BatchId
    units: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Give a lease up that nothing is out under."""

    job: JobId
    lease: LeaseId


@dataclass(frozen=True, slots=True)
class Drop:
    """Give a lease up whose provider seems to hang; what is out under it is lost."""

    job: JobId
    lease: LeaseId


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End a unit as failed: nobody is left to try it, or too much was lost by it."""

    job: JobId
    unit: int


@dataclass(frozen=True, slots=True)
class ReadOn:
    """Read more of a job's ready units from the journal."""

    job: JobId


@dataclass(frozen=True, slots=True)
class Check:
    """Nothing is left of a job in memory: end it, if the journal says so too."""

    job: JobId


@dataclass(frozen=True, slots=True)
class FailFast:
    """End a job that nobody bids for, as its submitter asked."""

    job: JobId


Action: TypeAlias = (
    Call
    | Award
    | Decline
    | HandOver
    | Cancel
    | Release
    | Drop
    | GiveUp
    | ReadOn
    | Check
    | FailFast
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and when to look again where no event comes before."""

    actions: tuple[Action, ...]
    wake_at_s: float
