"""What a node knows beside a job's own answers, when it explains the job: values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from shoal.crypto.peer_id import PeerId
from shoal.node.outlook import Outlook


@dataclass(frozen=True, slots=True)
class Neighbour:
    """What a node's valid advert says, as far as it decides who is called.

    Attributes:
        providing: Whether it takes work of peers now.
        classes: The numeric classes that it offers.
    """

    providing: bool = True
    classes: frozenset[str] = frozenset()


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
    """

    own: PeerId
    known: Mapping[PeerId, Neighbour]
    leases: int = 0
    misfits: Mapping[PeerId, str] = field(default_factory=dict)
    alone: str = ""
    lost: Sequence[Lost] = ()
    outlook: Outlook | None = None
