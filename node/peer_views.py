"""What is shown of peers: who they are, how they stand with this node, and what convicts them.

Bodies of the local API (`node.api`), and what a client gets back (`node.client`); nothing
here does IO. A ban, which is remembered, is `node.records`'.
"""

from __future__ import annotations

import msgspec

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node.capability_views import Claim
from shoal.protocol.device_offers import DeviceOffer


class ProofView(msgspec.Struct, frozen=True):
    """A fraud proof that this node believes, as ``shoal proof list`` shows it.

    Attributes:
        accused: Whom it convicts.
        verdict: What it shows, for a person.
        own: Whether it is of work that this node gave.
        at: When it was judged here, in seconds since the epoch.
        blobs: Ids of the blobs that it takes to check it.
        blobs_bytes: Their size in all; of those that are not held it is not known.
        public: Whether anybody can fetch it and its blobs here.
        private: Whether nobody ever may, since its job keeps its proofs to this node.
    """

    id: BlobId
    accused: PeerId
    verdict: str
    own: bool
    at: float
    proof_bytes: int
    blobs: tuple[BlobId, ...] = ()
    blobs_bytes: int = 0
    public: bool = False
    private: bool = False


class StandingView(msgspec.Struct, frozen=True):
    """How a peer that broke the rules of the wire stands with this node.

    Attributes:
        standing: From 0, where it is cut, to 1, which it regains with time.
        why: What it did, for a person.
        offences: How often it did what, by `node.standing.Offence`.
    """

    standing: float
    why: str
    offences: dict[str, int]


class NoteView(msgspec.Struct, frozen=True):
    """What was seen of a peer or of a stranger, and is held against nobody.

    Attributes:
        what: By `node.notes.Seen`.
        sentence: The same for a person, after the name of whom.
        times: How often.
        last: When last, in seconds since the epoch.
        detail: The last one more exactly.
    """

    what: str
    sentence: str
    times: int
    last: float
    detail: str = ""


class ConductView(msgspec.Struct, frozen=True):
    """A peer of which something is held or noted, whether its advert is known or not.

    Attributes:
        standing: None for a peer that kept to the rules.
        notes: What was seen, with no effect on anything.
    """

    peer: PeerId
    standing: StandingView | None
    notes: tuple[NoteView, ...] = ()


class CallerView(msgspec.Struct, frozen=True):
    """From where somebody called who is no known peer.

    Attributes:
        place: An IPv4 address, or a network of IPv6.
    """

    place: str
    note: NoteView


class CutView(msgspec.Struct, frozen=True):
    """A peer of which no connection is taken for a while.

    Attributes:
        since: In seconds since the epoch, as `until`.
        why: What it did, for a person.
        friend: Whether it is on the allow list.
    """

    peer: PeerId
    since: float
    until: float
    why: str
    friend: bool = False


class PeerView(msgspec.Struct, frozen=True):
    """One row of ``shoal peers``: a node whose advert is valid now."""

    peer: PeerId
    agent: str
    addresses: tuple[str, ...]
    linked: bool
    allowed: bool
    rtt_s: float | None
    devices: tuple[DeviceOffer, ...]
    numeric_classes: tuple[str, ...]
    advert_age_s: float
    advert_expires_in_s: float
    providing: bool = True
    """Whether it takes work now, by its own words: not in a pause."""
    claims: tuple[Claim, ...] = ()
    bulk_received_bytes: int = 0
    bulk_sent_bytes: int = 0
    """Over bulk channels, since the daemon's start."""
    advert_issued_at: float | None = None
    """When the peer issued it by its own clock, in seconds since the epoch."""
    protocol: tuple[int, int] = (0, 0)
    """The (major, minor) that it speaks, by its advert."""
    standing: StandingView | None = None
    """None for a peer that kept to the rules."""


class MisfitView(msgspec.Struct, frozen=True):
    """A connected peer that there is no talking to.

    Attributes:
        why: What it speaks and who has to upgrade, or that it is no node of shoal.
    """

    peer: PeerId
    why: str
