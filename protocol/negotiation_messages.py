"""Words of the control stream: calls, bids, awards, leases, and the units under them.

The order in which they may come is in `protocol.negotiation`. Outputs that a provider keeps
for its requester are spoken of here too: they come of units, and are named in others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from shoal.protocol import limits
from shoal.protocol.limits import (
    ByteCount,
    EnvelopeBytes,
    HexId,
    IdleSeconds,
    InlineBytes,
    NamedIds,
    Nonce,
    PeerText,
    Price,
    Seconds,
    ShortText,
    Text,
    UnitId,
)
from shoal.protocol.message_form import Message


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


class Call(Message, frozen=True, tag="call"):
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


class Bid(Message, frozen=True, tag="bid"):
    """An offer to run up to ``units_max`` units at ``price`` credits each.

    It binds the provider for ``valid_s`` seconds from when it was sent. The
    award names ``nonce``, which the provider drew: nobody can use an old award
    again and have two honest receipts for one unit of it.

    Attributes:
        in_flight_max: Units that may be out at once, in however many messages.
        batch_max: Units that one `UnitsRequest` may carry; 1: none may be sent.
        at_once: Messages whose units run at the same time, where memory allows: so many are
            to be out for the device to be fully used.
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
    at_once: Annotated[int, Meta(ge=1, le=limits.AT_ONCE_LIMIT)] = 1


class Refusal(Message, frozen=True, tag="refusal"):
    """No, and why. It answers a call, an award, one unit, a challenge or a draw.

    ``call`` is then the call's number or the challenge's nonce.
    """

    call: Nonce
    reason: Reason
    detail: Text = ""
    missing: HexId | None = None
    """With `Reason.DATA_MISSING`: an input that nobody who was asked gave."""


class AwardOffer(Message, frozen=True, tag="award"):
    """The signed award (`protocol.statements.Award`).

    Attributes:
        sources: Peers that have the program for the requester or are getting it. Each of
            them and the provider may have its blobs from the other, in the requester's
            name; they hear of the provider by `Share`.
    """

    call: Nonce
    award: EnvelopeBytes
    sources: Annotated[tuple[PeerText, ...], Meta(max_length=limits.PROGRAM_SOURCES_LIMIT)] = ()


class Lease(Message, frozen=True, tag="lease"):
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


class UnitRequest(Message, frozen=True, tag="unit"):
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


class UnitResult(Message, frozen=True, tag="result"):
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


class UnitsRequest(Message, frozen=True, tag="units"):
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


class UnitRefusal(Message, frozen=True, tag="unit_refusal"):
    """No to one unit of a `UnitsRequest`, and why."""

    unit: UnitId
    reason: Reason
    detail: Text = ""
    missing: HexId | None = None
    """As in `Refusal`."""


class UnitsResult(Message, frozen=True, tag="results"):
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


class Cancel(Message, frozen=True, tag="cancel"):
    """The requester does not want a unit any more.

    Attributes:
        others: More units that it does not want.
    """

    call: Nonce
    unit: UnitId
    others: Annotated[tuple[UnitId, ...], Meta(max_length=limits.UNITS_IN_FLIGHT_LIMIT)] = ()


class Release(Message, frozen=True, tag="release"):
    """The requester is done with this bid or lease."""

    call: Nonce


# --- kept outputs ---------------------------------------------------------------

SharedIds = Annotated[tuple[HexId, ...], Meta(min_length=1, max_length=limits.SHARED_IDS_LIMIT)]
"""Outputs that a provider keeps for whoever asks, or programs that it has of them."""


class Share(Message, frozen=True, tag="share"):
    """Asks a provider to let ``peer`` fetch outputs that it keeps for the asker.

    That peer names the asker when it fetches them (`BlobRequest.requester`). From 1.5 on
    an id may be that of a program under a lease of the asker's: it stands for all blobs of
    it, which the provider may then have from that peer too.
    """

    blobs: SharedIds
    peer: PeerText


class Shared(Message, frozen=True, tag="shared"):
    """The answer to `Share`: done, but for what is not kept here for the asker."""

    missing: Annotated[tuple[HexId, ...], Meta(max_length=limits.SHARED_IDS_LIMIT)] = ()


class Drop(Message, frozen=True, tag="drop"):
    """The asker does not need these kept outputs any more; unknown ones are no matter."""

    blobs: SharedIds


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
