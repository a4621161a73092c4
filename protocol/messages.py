"""The words of the control stream, as frozen tagged structs.

Requests carry an id and are answered by a response with the same id; many may
be in flight. Gossip carries adverts alone, and bulk bytes go by blob stream
(`node.blob_transfer`). The order in which negotiation messages may come is in
`protocol.negotiation`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from shoal.protocol import limits
from shoal.protocol.limits import (
    ByteCount,
    CertificateBytes,
    Count,
    Digest32,
    EnvelopeBytes,
    HeldBytes,
    HexId,
    HostText,
    IdleSeconds,
    InlineBytes,
    IpText,
    LeafBytes,
    LeafCount,
    MerklePath,
    Nonce,
    PeerText,
    Port,
    Price,
    ProofBytes,
    RenewalBytes,
    Seconds,
    ShortText,
    Text,
    Token,
    TokenSeconds,
    TreeLevel,
    TreePath,
    UnitId,
)
from shoal.protocol.statements import NamedIds


class Reason(StrEnum):
    """Why a provider refuses: a closed list, so that ``shoal job why`` can explain."""

    BANNED = "banned"
    BUSY = "busy"
    CLASS_NOT_OFFERED = "class_not_offered"
    DATA_MISSING = "data_missing"
    DENIED = "denied"
    DRAINING = "draining"
    EXPIRED = "expired"
    INTERNAL = "internal"
    NOT_PROVIDING = "not_providing"
    NO_DEVICE = "no_device"
    NO_ROOM = "no_room"
    PAUSED = "paused"
    PRICE = "price"
    PROGRAM_REFUSED = "program_refused"
    TOO_LARGE = "too_large"
    UNSETTLED = "unsettled"
    UNTRUSTED_REQUESTER = "untrusted_requester"


class _Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What all messages share. The tag is the class's name in snake case.

    A field at its default is not written, so that a peer which does not know it (see
    `protocol.vocabulary`) never sees it.
    """


class Hello(_Message, frozen=True, tag="hello"):
    """The first request on a stream, answered by the peer's own."""

    protocol: tuple[Count, Count]
    agent: ShortText


# --- anti-entropy: what gossip lost -----------------------------------------

AgedAdvert = tuple[EnvelopeBytes, Seconds]
"""A signed advert and how old it is, in seconds since its node issued it or last renewed it."""

AgedRenewal = tuple[RenewalBytes, Seconds]
"""A signed renewal and how old it is, in seconds since its node issued it."""


class Digest(_Message, frozen=True, tag="digest"):
    """The adverts this node holds, as marks: see "Discovery"."""

    held: HeldBytes


class Adverts(_Message, frozen=True, tag="adverts"):
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


# --- negotiation --------------------------------------------------------------


class Call(_Message, frozen=True, tag="call"):
    """A call for bids on some units of one program.

    Attributes:
        units: How many units wait; a bid may be for fewer.
        input_bytes: Of one unit, without the program's own tensors.
        program_bytes: Of the program with its tensors.
    """

    call: Nonce
    program: HexId
    numeric_class: ShortText
    precision: ShortText | None
    units: Annotated[int, Meta(ge=1, le=1 << 31)]
    input_bytes: ByteCount
    program_bytes: ByteCount
    time_limit_s: Seconds
    memory_bytes: ByteCount


class Bid(_Message, frozen=True, tag="bid"):
    """An offer to run up to ``units_max`` units at ``price`` credits each.

    It binds the provider for ``valid_s`` seconds from when it was sent. The
    award names ``nonce``, which the provider drew: nobody can use an old award
    again and have two honest receipts for one unit of it.

    Attributes:
        in_flight_max: Units that may be out at once, in however many messages.
        batch_max: Units that one `UnitsRequest` may carry; 1: none may be sent.
    """

    call: Nonce
    nonce: Nonce
    device: ShortText
    executor: ShortText
    price: Price
    units_max: Annotated[int, Meta(ge=1, le=limits.LEASE_UNITS_LIMIT)]
    in_flight_max: Annotated[int, Meta(ge=1, le=limits.UNITS_IN_FLIGHT_LIMIT)]
    valid_s: Seconds
    batch_max: Annotated[int, Meta(ge=1, le=limits.BATCH_UNITS_LIMIT)] = 1


class Refusal(_Message, frozen=True, tag="refusal"):
    """No, and why. It answers a call, an award, one unit, a challenge or a draw.

    ``call`` is then the call's number or the challenge's nonce.
    """

    call: Nonce
    reason: Reason
    detail: Text = ""
    missing: HexId | None = None
    """With `Reason.DATA_MISSING`: an input that nobody who was asked gave."""


class AwardOffer(_Message, frozen=True, tag="award"):
    """The signed award (`protocol.statements.Award`).

    Attributes:
        sources: Peers that have the program for the requester or are getting it. Each of
            them and the provider may have its blobs from the other, in the requester's
            name; they hear of the provider by `Share`.
    """

    call: Nonce
    award: EnvelopeBytes
    sources: Annotated[tuple[PeerText, ...], Meta(max_length=limits.PROGRAM_SOURCES_LIMIT)] = ()


class Lease(_Message, frozen=True, tag="lease"):
    """The provider's commitment: it takes units until ``idle_s`` of silence."""

    call: Nonce
    award: HexId
    idle_s: IdleSeconds


Blobs = Annotated[tuple[InlineBytes, ...], Meta(max_length=limits.PORTS_LIMIT)]
"""Small blobs carried inside a message; their ids follow from their bytes."""


Sources = Annotated[tuple[tuple[HexId, PeerText], ...], Meta(max_length=limits.SOURCES_LIMIT)]
"""Where inputs may be fetched from, in the order in which to try."""

KeptSizes = Annotated[tuple[tuple[HexId, ByteCount], ...], Meta(max_length=limits.PORTS_LIMIT)]
"""Outputs that stay with their provider, and how many bytes each has."""


class UnitRequest(_Message, frozen=True, tag="unit"):
    """One unit to run under a lease.

    Attributes:
        blobs: The smallest inputs, `limits.INLINE_LIMIT_BYTES` in all at most.
        keep: The outputs are not to be sent: see "Kept outputs".
        sources: Peers that keep inputs for the requester and that it has told to share
            them with the provider, which asks them before it asks the requester.
        trace: The receipt is to commit to the unit's stages: it will run for long.
    """

    call: Nonce
    unit: UnitId
    inputs: NamedIds
    blobs: Blobs = ()
    keep: bool = False
    sources: Sources = ()
    trace: bool = False

    def __post_init__(self) -> None:
        _check_inline(self.blobs)


class UnitTimes(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What a provider says that one unit took, by its own clock; not signed, and no claim.

    On the wire it is an array of the four, in this order.

    Attributes:
        fetched_s: Program and inputs were got.
        waited_s: It waited for the worker, and went there and back.
        executed_s: It ran.
        signed_s: Its outputs were hashed and its receipt signed.
    """

    fetched_s: Seconds
    waited_s: Seconds
    executed_s: Seconds
    signed_s: Seconds


class UnitResult(_Message, frozen=True, tag="result"):
    """The signed receipt of one unit; small outputs come with it.

    Attributes:
        blobs: The smallest outputs, `limits.INLINE_LIMIT_BYTES` in all at most.
        kept: The outputs that stay with the provider, as was asked; any other output is
            among ``blobs``, or may be fetched.
        times: Where its time went, for whoever asks; advisory.
    """

    call: Nonce
    unit: UnitId
    receipt: EnvelopeBytes
    blobs: Blobs = ()
    kept: KeptSizes = ()
    times: UnitTimes | None = None

    def __post_init__(self) -> None:
        _check_inline(self.blobs)


class UnitsRequest(_Message, frozen=True, tag="units"):
    """Several units to run under a lease, each with its own name.

    Attributes:
        units: Of the same call, no name twice. Their blobs have
            `limits.INLINE_LIMIT_BYTES` in all at most, and their inputs' names and ids
            `limits.BATCH_PORTS_LIMIT_BYTES`; those of their outputs count there too. They
            name `limits.BATCH_SOURCES_LIMIT` sources in all at most.
    """

    call: Nonce
    units: Annotated[
        tuple[UnitRequest, ...], Meta(min_length=1, max_length=limits.BATCH_UNITS_LIMIT)
    ]

    def __post_init__(self) -> None:
        _check_inline([blob for unit in self.units for blob in unit.blobs])
        size_bytes = sum(ports_bytes(unit.inputs) for unit in self.units)
        if size_bytes > limits.BATCH_PORTS_LIMIT_BYTES:
            raise ValueError(
                f"{size_bytes} bytes of inputs' names and ids in one message, "
                f"of {limits.BATCH_PORTS_LIMIT_BYTES}"
            )
        sources = sum(len(unit.sources) for unit in self.units)
        if sources > limits.BATCH_SOURCES_LIMIT:
            raise ValueError(
                f"{sources} sources in one message, of {limits.BATCH_SOURCES_LIMIT}"
            )


class UnitRefusal(_Message, frozen=True, tag="unit_refusal"):
    """No to one unit of a `UnitsRequest`, and why."""

    unit: UnitId
    reason: Reason
    detail: Text = ""
    missing: HexId | None = None
    """As in `Refusal`."""


class UnitsResult(_Message, frozen=True, tag="results"):
    """The answers to a `UnitsRequest`, one to each unit of it, once all have ended.

    Attributes:
        answers: In the order of the request. Their blobs have
            `limits.INLINE_LIMIT_BYTES` in all at most; what does not fit is fetched.
    """

    call: Nonce
    answers: Annotated[
        tuple[UnitResult | UnitRefusal, ...],
        Meta(min_length=1, max_length=limits.BATCH_UNITS_LIMIT),
    ]

    def __post_init__(self) -> None:
        results = [a for a in self.answers if isinstance(a, UnitResult)]
        _check_inline([blob for result in results for blob in result.blobs])


class Cancel(_Message, frozen=True, tag="cancel"):
    """The requester does not want a unit any more.

    Attributes:
        others: More units that it does not want.
    """

    call: Nonce
    unit: UnitId
    others: Annotated[tuple[UnitId, ...], Meta(max_length=limits.UNITS_IN_FLIGHT_LIMIT)] = ()


class Release(_Message, frozen=True, tag="release"):
    """The requester is done with this bid or lease."""

    call: Nonce


# --- kept outputs ---------------------------------------------------------------

SharedIds = Annotated[tuple[HexId, ...], Meta(min_length=1, max_length=limits.SHARED_IDS_LIMIT)]
"""Outputs that a provider keeps for whoever asks, or programs that it has of them."""


class Share(_Message, frozen=True, tag="share"):
    """Asks a provider to let ``peer`` fetch outputs that it keeps for the asker.

    That peer names the asker when it fetches them (`BlobRequest.requester`). From 1.5 on
    an id may be that of a program under a lease of the asker's: it stands for all blobs of
    it, which the provider may then have from that peer too.
    """

    blobs: SharedIds
    peer: PeerText


class Shared(_Message, frozen=True, tag="shared"):
    """The answer to `Share`: done, but for what is not kept here for the asker."""

    missing: Annotated[tuple[HexId, ...], Meta(max_length=limits.SHARED_IDS_LIMIT)] = ()


class Drop(_Message, frozen=True, tag="drop"):
    """The asker does not need these kept outputs any more; unknown ones are no matter."""

    blobs: SharedIds


# --- capability challenge -------------------------------------------------------


class Challenge(_Message, frozen=True, tag="challenge"):
    """A verifier asks a node to show a rate that it claims (see "Capability challenge").

    Attributes:
        rate: The claim, in multiply-adds per second, as the advert has it.
        rows: Of each left operand.
        size: Terms and columns of each product.
        steps: Products in the chain.
    """

    nonce: Nonce
    device: ShortText
    numeric_class: ShortText
    precision: ShortText
    rate: Annotated[float, Meta(ge=limits.CHALLENGE_RATE_MIN, le=1e18)]
    rows: Annotated[int, Meta(ge=1, le=limits.CHALLENGE_ROWS_LIMIT)]
    size: Annotated[int, Meta(ge=4, le=limits.CHALLENGE_SIZE_LIMIT, multiple_of=4)]
    steps: Annotated[int, Meta(ge=1, le=limits.CHALLENGE_STEPS_LIMIT)]


class Committed(_Message, frozen=True, tag="committed"):
    """The work is done, and this is the signed `protocol.statements.Commitment`."""

    nonce: Nonce
    commitment: EnvelopeBytes


Place = tuple[
    Annotated[int, Meta(ge=0, le=limits.CHALLENGE_STEPS_LIMIT - 1)],
    Annotated[int, Meta(ge=0, le=limits.CHALLENGE_ROWS_LIMIT - 1)],
]
"""A step of the chain, and a row of its product."""


class Draw(_Message, frozen=True, tag="draw"):
    """The rows that the verifier has drawn, and will compute by itself."""

    nonce: Nonce
    places: Annotated[
        tuple[Place, ...], Meta(min_length=1, max_length=limits.CHALLENGE_PLACES_LIMIT)
    ]


class Opened(_Message, frozen=True, tag="opened"):
    """A Merkle path for each row drawn; the rows themselves the verifier knows."""

    nonce: Nonce
    paths: Annotated[
        tuple[MerklePath, ...], Meta(min_length=1, max_length=limits.CHALLENGE_PLACES_LIMIT)
    ]


class ProofOffer(_Message, frozen=True, tag="proof"):
    """The verifier's signed `protocol.statements.CapabilityProof`, for the prover to show."""

    nonce: Nonce
    proof: ProofBytes


class ProofsWanted(_Message, frozen=True, tag="proofs_wanted"):
    """Asks a node who has seen it show its claims."""


class Proofs(_Message, frozen=True, tag="proofs"):
    """Proofs of a node's own claims, those first that it thinks count most.

    Whoever asked checks them for itself; one that is worth nothing costs nothing else.
    """

    proofs: Annotated[tuple[ProofBytes, ...], Meta(max_length=limits.PROOFS_LIMIT)]


# --- verification ---------------------------------------------------------------------


class Acknowledge(_Message, frozen=True, tag="acknowledge"):
    """The requester has these receipts: a signed `protocol.statements.Acknowledgement`."""

    acknowledgement: EnvelopeBytes


class Reveal(_Message, frozen=True, tag="reveal"):
    """What verifiers are drawn by, told to the provider once the lease is over.

    Attributes:
        award: The id of the award, which holds the salt's hash and the list's id.
        candidates: The list.
    """

    award: HexId
    salt: Digest32
    candidates: Annotated[tuple[PeerText, ...], Meta(max_length=limits.CANDIDATES_LIMIT)]


class TraceWanted(_Message, frozen=True, tag="trace_wanted"):
    """Asks a provider to commit to the operators of a run that it gave a receipt for.

    It runs the unit again for that, and takes as long.

    Attributes:
        stage: Of this stage alone; none where the receipt commits to no stages.
    """

    receipt: HexId
    stage: LeafCount | None = None


class TraceGiven(_Message, frozen=True, tag="trace_given"):
    """The signed `protocol.statements.TraceRoot`."""

    root: EnvelopeBytes


class NodesWanted(_Message, frozen=True, tag="nodes_wanted"):
    """Asks for the digests of the nodes four levels below one node of a trace's tree.

    Attributes:
        stage: The tree is that of the operators of this stage; none: of the receipt's
            stages, or of all operators where it commits to no stages.
        level: Of the node that is known already.
        index: Which one of its level.
    """

    receipt: HexId
    stage: LeafCount | None
    level: TreeLevel
    index: LeafCount


class NodesGiven(_Message, frozen=True, tag="nodes_given"):
    """Those digests from left to right; fewer where the tree has no more."""

    digests: Annotated[tuple[Digest32, ...], Meta(min_length=1, max_length=limits.NODES_LIMIT)]


class LeafWanted(_Message, frozen=True, tag="leaf_wanted"):
    """Asks for one leaf of a trace; ``stage`` is as in `NodesWanted`."""

    receipt: HexId
    stage: LeafCount | None
    index: LeafCount


class LeafGiven(_Message, frozen=True, tag="leaf_given"):
    """The leaf, and the path from it to the root."""

    leaf: LeafBytes
    path: TreePath


class Accusation(_Message, frozen=True, tag="accusation"):
    """Says that there is a fraud proof, which may be fetched from the sender.

    Whoever hears it believes nothing before it has checked the proof itself.

    Attributes:
        proof: The id of the proof, a blob that anybody may fetch, as are those it needs.
        accused: Whom it convicts.
        blobs: What is needed to check it.
        blobs_bytes: How much that is in all.
    """

    proof: HexId
    accused: PeerText
    proof_bytes: ByteCount
    blobs: Annotated[tuple[HexId, ...], Meta(max_length=limits.PROOF_BLOBS_LIMIT)] = ()
    blobs_bytes: ByteCount = 0


class AccusationsWanted(_Message, frozen=True, tag="accusations_wanted"):
    """Asks a peer for fraud proofs that the sender does not know.

    Attributes:
        known: Ids of those that it knows, the newest first.
    """

    known: Annotated[tuple[HexId, ...], Meta(max_length=limits.KNOWN_PROOFS_LIMIT)] = ()


class Accusations(_Message, frozen=True, tag="accusations"):
    """The newest of those that are known here and not there.

    Attributes:
        accusations: They name `limits.ACCUSED_BLOBS_LIMIT` blobs in all at most.
    """

    accusations: Annotated[
        tuple[Accusation, ...], Meta(max_length=limits.ACCUSATIONS_LIMIT)
    ] = ()

    def __post_init__(self) -> None:
        blobs = sum(len(accusation.blobs) for accusation in self.accusations)
        if blobs > limits.ACCUSED_BLOBS_LIMIT:
            raise ValueError(
                f"{blobs} blobs named in one message, of {limits.ACCUSED_BLOBS_LIMIT}"
            )


# --- reachability ---------------------------------------------------------------------


class DialBack(_Message, frozen=True, tag="dial_back"):
    """Asks a peer to dial its sender at some ports, and to say what came of it.

    It names no address: the peer dials the one that it sees the sender's connection
    come from, so that nobody can be aimed at a third party.

    Attributes:
        nonce: What the peer says once it is through; the sender sees by it that it
            has really been dialled.
    """

    nonce: Nonce
    ports: Annotated[
        tuple[Port, ...], Meta(min_length=1, max_length=limits.DIAL_BACK_PORTS_LIMIT)
    ]


class Outcome(StrEnum):
    """What came of dialling one port back: a closed list."""

    WORKED = "worked"
    REFUSED = "refused"
    NO_ANSWER = "no_answer"
    OTHER_PEER = "other_peer"
    NOT_DIALLED = "not_dialled"


class DialedBack(_Message, frozen=True, tag="dialed_back"):
    """Which IP address the asker's connection comes from, and what each port did, in order."""

    seen_as: IpText
    outcomes: Annotated[
        tuple[Outcome, ...], Meta(min_length=1, max_length=limits.DIAL_BACK_PORTS_LIMIT)
    ]


class Introduce(_Message, frozen=True, tag="introduce"):
    """Asks a peer that is linked to ``peer`` to have that node dial the sender.

    Attributes:
        advert: The sender's own, whose addresses are to be dialled.
    """

    peer: PeerText
    advert: EnvelopeBytes


class Introduction(_Message, frozen=True, tag="introduction"):
    """Tells a node that the signer of an advert would be dialled by it, at its addresses."""

    advert: EnvelopeBytes


class NotIntroduced(_Message, frozen=True, tag="not_introduced"):
    """No introduction came about, or none that led to a connection; why, for a person."""

    detail: Text


# --- bulk channels ------------------------------------------------------------------


class ChannelWanted(_Message, frozen=True, tag="channel_wanted"):
    """Asks for a bulk channel, which its sender will dial and show this certificate on."""

    certificate: CertificateBytes


class ChannelOffered(_Message, frozen=True, tag="channel_offered"):
    """Where the channel can be dialled, and what opens it.

    Attributes:
        token: For one connection, whose asker shows the certificate that it was asked with.
        certificate: What the server will show.
        valid_s: How long the token may be used.
        host: Where to dial, if that is not where this peer is connected.
    """

    port: Port
    token: Token
    certificate: CertificateBytes
    valid_s: TokenSeconds
    host: HostText | None = None


class WhyNoChannel(StrEnum):
    """Why no bulk channel is offered: a closed list."""

    BUSY = "busy"
    OFF = "off"


class NoChannel(_Message, frozen=True, tag="no_channel"):
    """There is none to be had now; blobs are to be fetched by stream."""

    reason: WhyNoChannel


class Done(_Message, frozen=True, tag="done"):
    """Understood; there is nothing to add."""


class Problem(_Message, frozen=True, tag="problem"):
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


class Request(_Message, frozen=True, tag="request"):
    """Something asked; ``id`` is unique among this side's unanswered requests."""

    id: Count
    body: RequestBody


class Response(_Message, frozen=True, tag="response"):
    """The answer to the request with the same id."""

    id: Count
    body: ResponseBody


Frame: TypeAlias = Request | Response
"""What a control stream carries, each behind its length in 4 big-endian bytes."""


def ports_bytes(ports: Iterable[tuple[str, str]]) -> int:
    """What inputs or outputs take in a message; see `limits.BATCH_PORTS_LIMIT_BYTES`."""
    return sum(limits.PORT_BYTES + len(name.encode()) for name, _ in ports)


def unit_bytes(unit: UnitRequest) -> int:
    """What a unit that is out counts for; see `limits.IN_FLIGHT_LIMIT_BYTES`."""
    named_bytes = ports_bytes(unit.inputs) + limits.SOURCE_BYTES * len(unit.sources)
    return sum(map(len, unit.blobs)) + named_bytes


def _check_inline(blobs: Sequence[bytes]) -> None:
    size_bytes = sum(map(len, blobs))
    if size_bytes > limits.INLINE_LIMIT_BYTES:
        raise ValueError(
            f"{size_bytes} bytes of blobs in one message, of {limits.INLINE_LIMIT_BYTES}"
        )
