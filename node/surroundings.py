"""What a node knows beside a job's own answers, when it explains the job: values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoal.crypto.peer_id import PeerId
from shoal.node.checks import Stage
from shoal.node.outlook import Outlook
from shoal.node.wanted import Wanted, is_offered


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What a node's valid advert says, as far as it decides who is called.

    Attributes:
        providing: Whether it takes work of peers now.
        classes: The numeric classes that it offers.
        triton: The version of Triton by which it runs kernels; "" where it has not said.
    """

    providing: bool = True
    classes: frozenset[str] = frozenset()
    triton: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """A peer that was known and is not any more.

    Attributes:
        ago_s: Since when.
        why: How that was found, as the end of a sentence.
    """

    peer: PeerId
    ago_s: float
    why: str


@dataclass(frozen=True, slots=True)
class PendingChecks:
    """Results of one job that wait to be checked, by the same peers.

    Attributes:
        stage: How their checks stand.
        asked: Who runs them too now; nobody where nobody is left to ask.
        units: Their indices.
        waited_s: How long the first of them has waited.
        again_s: When those who gave no answer are asked again, where nobody is asked.
        tries_left: How often that is done before they are delivered without a check; None
            where they are never.
    """

    stage: Stage
    asked: tuple[PeerId, ...]
    units: tuple[int, ...]
    waited_s: float
    again_s: float
    tries_left: int | None


@dataclass(frozen=True, slots=True)
class OpenDispute:
    """A receipt of a job that is disputed.

    Attributes:
        peer: Whose.
        unit: Of which unit.
        ago_s: How long ago it was signed.
    """

    peer: PeerId
    unit: int
    ago_s: float


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a node knows beside a job's own answers.

    Attributes:
        own: This node's id.
        known: The nodes with a valid advert, this one included.
        misfits: Connected peers of another version of the protocol, each with what it
            speaks and who has to upgrade.
        leases: How many leases the job holds now.
        alone: Why no other node is known, where this node found out.
        lost: Who was known before and is not now, the last one first.
        outlook: The job's plan at this moment.
        pending: Its results that wait to be checked.
        disputes: Its receipts that are disputed.
        triton: The version of Triton that the job's kernel takes; "" where it is no kernel,
            or does not run.
    """

    own: PeerId
    known: Mapping[PeerId, Neighbour]
    leases: int = 0
    misfits: Mapping[PeerId, str] = field(default_factory=dict)
    alone: str = ""
    lost: Sequence[Lost] = ()
    outlook: Outlook | None = None
    pending: Sequence[PendingChecks] = ()
    disputes: Sequence[OpenDispute] = ()
    triton: str = ""

    def offers(self, peer: PeerId, numeric_class: str) -> bool:
        """Whether a node offers what the job's units look for."""
        wanted = Wanted(f"{numeric_class} {self.triton}".rstrip())
        return is_offered(wanted, self.known[peer].classes, self.known[peer].triton)
