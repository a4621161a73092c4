"""What a member is told, and what it wants done: the events and effects of membership.

`protocol.membership.Member` takes the first and gives the second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.protocol.messages import Adverts, Digest

# --- events: what happened ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed, to `Member.next_deadline_s` or later."""


@dataclass(frozen=True, slots=True)
class Connected:
    """There is a connection to a peer, whoever opened it."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Lost:
    """The last connection to a peer has ended."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Dialled:
    """A `Dial` has led to its peer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class DialFailed:
    """A `Dial` has led nowhere, or to another peer."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Needed:
    """Work is about to be done with a peer: its connection is kept, and watched as a link."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Unreached:
    """A call to a node of the table found nobody at any of its addresses."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Compared:
    """A peer has answered a `Compare`."""

    peer: PeerId
    answer: Adverts


@dataclass(frozen=True, slots=True)
class NotCompared:
    """A peer has not answered a `Compare`, or with something else."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Changed:
    """What this node's advert says is true no longer."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new advert of this node was signed, as `Issue` asked."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class NotIssued:
    """It was not: the disk is full, say."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A place where a peer may be found, from outside of the table.

    Attributes:
        source: ``bootstrap`` if the operator named it; else, say, ``lan`` or ``told``.
    """

    peer: PeerId
    addresses: tuple[str, ...]
    source: str


Event: TypeAlias = (
    Tick
    | Connected
    | Lost
    | Dialled
    | DialFailed
    | Needed
    | Unreached
    | Compared
    | NotCompared
    | Changed
    | Issued
    | NotIssued
    | Heard
)


# --- effects: what is to be done -----------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dial:
    """Connect to a peer; `Dialled` or `DialFailed` answers it."""

    peer: PeerId
    addresses: tuple[str, ...]
    time_limit_s: float


@dataclass(frozen=True, slots=True)
class Disconnect:
    """End the connection to a peer that has no room for a link."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class Compare:
    """Send this to a peer; `Compared` or `NotCompared` answers it."""

    peer: PeerId
    digest: Digest


@dataclass(frozen=True, slots=True)
class Give:
    """Send this to a peer, who wants it; nothing answers it."""

    peer: PeerId
    adverts: Adverts


@dataclass(frozen=True, slots=True)
class Issue:
    """Sign a new advert of this node with this lifetime."""

    lifetime_s: float


@dataclass(frozen=True, slots=True)
class Gossip:
    """Gossip this node's advert."""

    envelope: bytes


@dataclass(frozen=True, slots=True)
class Linked:
    """A peer has become a link: log and remember it."""

    peer: PeerId
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Gone:
    """A peer was dropped from the table: log it."""

    peer: PeerId
    why: str


@dataclass(frozen=True, slots=True)
class Blame:
    """A peer has sent something that is forged or malformed."""

    peer: PeerId
    error: VerificationError


Effect: TypeAlias = Dial | Disconnect | Compare | Give | Issue | Gossip | Linked | Gone | Blame
