"""The words of the control stream, as frozen tagged structs.

Requests carry an id and are answered by a response with the same id; many may
be in flight. Gossip carries adverts alone, and bulk bytes go by blob stream
(`node.blob_transfer`). Each family of words is a module: `protocol.negotiation_messages`,
`challenge_messages`, `checking_messages`, `reachability_messages`, and
`channel_messages`. Here are the frames, what may stand in them, and the words of no family:
the greeting, and how two nodes compare the adverts that they hold.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

from msgspec import Meta

from shoal.protocol import limits
from shoal.protocol.challenge_messages import (
    Challenge,
    Committed,
    Draw,
    Opened,
    ProofOffer,
    Proofs,
    ProofsWanted,
)
from shoal.protocol.channel_messages import ChannelOffered, ChannelWanted, NoChannel
from shoal.protocol.checking_messages import (
    Accusation,
    Accusations,
    AccusationsWanted,
    Acknowledge,
    LeafGiven,
    LeafWanted,
    NodesGiven,
    NodesWanted,
    Reveal,
    TraceGiven,
    TraceWanted,
)
from shoal.protocol.limits import (
    Count,
    EnvelopeBytes,
    HeldBytes,
    RenewalBytes,
    Seconds,
    ShortText,
    Text,
)
from shoal.protocol.message_form import Message
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Bid,
    Call,
    Cancel,
    Drop,
    Lease,
    Refusal,
    Release,
    Share,
    Shared,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
)
from shoal.protocol.reachability_messages import (
    DialBack,
    DialedBack,
    Introduce,
    Introduction,
    NotIntroduced,
)


class Hello(Message, frozen=True, tag="hello"):
    """The first request on a stream, answered by the peer's own."""

    protocol: tuple[Count, Count]
    agent: ShortText


# --- anti-entropy: what gossip lost -----------------------------------------

AgedAdvert = tuple[EnvelopeBytes, Seconds]
"""A signed advert and how old it is, in seconds since its node issued it or last renewed it."""

AgedRenewal = tuple[RenewalBytes, Seconds]
"""A signed renewal and how old it is, in seconds since its node issued it."""


class Digest(Message, frozen=True, tag="digest"):
    """The adverts this node holds, as marks: see "Discovery"."""

    held: HeldBytes


class Adverts(Message, frozen=True, tag="adverts"):
    """What the other side lacks, and what is wanted of it.

    Attributes:
        renewals: Of adverts that are held there, or come in this message.
        wanted: Marks of what is held here where the other's are newer; the number
            0 where nothing is held.
        more: Not all that is lacking fitted; compare again at once.
        room: Whether this node takes the asker as a link. If not, the adverts are
            of some other nodes to ask instead.
    """

    adverts: Annotated[
        tuple[AgedAdvert, ...], Meta(max_length=limits.ADVERTS_PER_MESSAGE_LIMIT)
    ]
    renewals: Annotated[
        tuple[AgedRenewal, ...], Meta(max_length=limits.RENEWALS_PER_MESSAGE_LIMIT)
    ] = ()
    wanted: HeldBytes = b""
    more: bool = False
    room: bool = True


# --- what any request may be answered with, and all of them ---


class Done(Message, frozen=True, tag="done"):
    """Understood; there is nothing to add."""


class Problem(Message, frozen=True, tag="problem"):
    """The request could not be served; the peer's fault, or this node's."""

    code: ShortText
    message: Text


ChallengeRequest: TypeAlias = Challenge | Draw | ProofOffer | ProofsWanted
ReachabilityRequest: TypeAlias = DialBack | Introduce | Introduction
KeepingRequest: TypeAlias = Share | Drop
CheckingRequest: TypeAlias = Acknowledge | Reveal
DisputeRequest: TypeAlias = TraceWanted | NodesWanted | LeafWanted
AccusingRequest: TypeAlias = Accusation | AccusationsWanted
RequestBody: TypeAlias = (
    Hello
    | Digest
    | Adverts
    | Call
    | AwardOffer
    | UnitRequest
    | UnitsRequest
    | Cancel
    | Release
    | ChallengeRequest
    | ReachabilityRequest
    | KeepingRequest
    | CheckingRequest
    | DisputeRequest
    | AccusingRequest
    | ChannelWanted
)
ResponseBody: TypeAlias = (
    Hello
    | Adverts
    | Bid
    | Refusal
    | Lease
    | UnitResult
    | UnitsResult
    | Committed
    | Opened
    | DialedBack
    | NotIntroduced
    | Proofs
    | Shared
    | TraceGiven
    | NodesGiven
    | LeafGiven
    | Accusations
    | ChannelOffered
    | NoChannel
    | Done
    | Problem
)


class Request(Message, frozen=True, tag="request"):
    """Something asked; ``id`` is unique among this side's unanswered requests."""

    id: Count
    body: RequestBody


class Response(Message, frozen=True, tag="response"):
    """The answer to the request with the same id."""

    id: Count
    body: ResponseBody


Frame: TypeAlias = Request | Response
"""What a control stream carries, each behind its length in 4 big-endian bytes."""
