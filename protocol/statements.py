"""What nodes sign, from adverts to receipts, and the checks each must pass.

A statement is the payload of a signed envelope (`crypto.envelope`). Its id is
the content id of the envelope's stored bytes. The ``open_*`` functions are the
only way in: they check the signature, the form, and that the signer is who the
statement says. What a receipt's signature covers is exactly `Receipt`. Each names the
protocol version of its signer: of a newer minor, unknown fields are ignored, and one of
another major is refused by name (`protocol.versions`).
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.envelope import Statement, open_envelope
from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.protocol import limits
from shoal.protocol.codec import fit, unpack
from shoal.protocol.device_offers import DeviceOffer
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import (
    Count,
    Digest32,
    EpochMs,
    HexId,
    IdleSeconds,
    LeafCount,
    Lifetime,
    NamedIds,
    Nonce,
    PeerText,
    Price,
    Rate,
    RenewalNumber,
    Seconds,
    Sequence,
    ShortText,
    Text,
    UnitId,
)
from shoal.protocol.versions import is_newer, misfit, said_version


class Advert(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A node's expiring statement of its devices, capacity, addresses and terms.

    Attributes:
        sequence: Grows with each advert of a node, also over restarts.
        lifetime_s: Its age at most; see `protocol.adverts` for how age is told.
        addresses: Multiaddrs without the trailing ``/p2p`` part.
        providing: Whether the node takes units at all.
        disk_rate: Bytes per second that the store's disk writes; 0: not measured.
        proven_at_ms: When the newest `CapabilityProof` was issued that its node gives to
            whoever asks with `ProofsWanted`; 0: there is none.
        via: Peers that hold a connection to a node which cannot be dialled, and can
            ask it to dial others (see "Introductions").
        triton: The version of Triton by which it runs kernels, which takes no other's;
            empty: it runs none, or is older than 1.6.
    """

    peer: PeerText
    sequence: Sequence
    issued_at_ms: EpochMs
    lifetime_s: Annotated[float, Meta(ge=1.0, le=limits.ADVERT_LIFETIME_LIMIT_S)]
    protocol: tuple[Count, Count]
    agent: ShortText
    addresses: Annotated[tuple[Text, ...], Meta(max_length=limits.ADDRESSES_LIMIT)]
    devices: Annotated[tuple[DeviceOffer, ...], Meta(max_length=limits.DEVICES_LIMIT)]
    numeric_classes: Annotated[tuple[ShortText, ...], Meta(max_length=8)]
    providing: bool
    disk_rate: Rate = 0.0
    proven_at_ms: EpochMs = 0
    via: Annotated[tuple[PeerText, ...], Meta(max_length=limits.VIA_LIMIT)] = ()
    triton: ShortText = ""


class Award(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The requester's promise to accept ``provider``'s bid on a call.

    Every receipt names the id of its award: nobody can invent work that was
    not given, and nobody can be framed for work that was not taken. ``call`` is
    the requester's own number and ``nonce`` the bid's, so no award is used twice.

    Attributes:
        protocol: (major, minor) of the requester.
        idle_s: The silence after which the lease is to end; unanswered for as
            long, the award ends too.
        candidates: The id of the list that verifiers are drawn from, where any are.
        salt_hash: The BLAKE3 digest of the salt that they are drawn by: 32 bytes, which the
            requester keeps to itself until the lease is over.
    """

    protocol: tuple[Count, Count]
    call: Nonce
    nonce: Nonce
    requester: PeerText
    provider: PeerText
    program: HexId
    numeric_class: ShortText
    precision: ShortText | None
    units_max: Annotated[int, Meta(ge=1, le=limits.LEASE_UNITS_LIMIT)]
    price: Price
    idle_s: IdleSeconds
    issued_at_ms: EpochMs
    candidates: HexId | None = None
    salt_hash: Digest32 | None = None


class UnitError(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a unit ended without outputs, as a result like any other.

    ``node`` and ``operator`` name the place in the program where there is one.
    """

    code: ShortText
    message: Annotated[str, Meta(max_length=1024)]
    node: Text = ""
    operator: ShortText = ""


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The provider's signature over what was run, on what, giving what.

    Attributes:
        protocol: (major, minor) of the provider.
        exact_spec: Version of the exact class's specification; "" in other classes.
        inputs: Sorted by name.
        outputs: Sorted by name; none where ``error`` is set.
        trace: Merkle root over stages of a long unit, or none.
        device: Advisory, like ``runtime`` and the times.
        stages: How many leaves there are under ``trace``; 0 where there is none.
    """

    protocol: tuple[Count, Count]
    exact_spec: ShortText
    award: HexId
    unit: UnitId
    program: HexId
    numeric_class: ShortText
    precision: ShortText | None
    inputs: NamedIds
    outputs: NamedIds | None
    error: UnitError | None
    trace: HexId | None
    provider: PeerText
    requester: PeerText
    started_at_ms: EpochMs
    ended_at_ms: EpochMs
    device: Text
    runtime: Text
    stages: LeafCount = 0


class Acknowledgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A requester's word that it has these receipts, for work that it gave.

    It settles them: the provider counts them as units done for this requester. Of right or
    wrong it says nothing.

    Attributes:
        protocol: (major, minor) of the requester.
        award: The id of the award that all of them name.
        receipts: Their ids.
    """

    protocol: tuple[Count, Count]
    award: HexId
    receipts: Annotated[
        tuple[HexId, ...], Meta(min_length=1, max_length=limits.ACKNOWLEDGED_LIMIT)
    ]
    requester: PeerText
    provider: PeerText
    issued_at_ms: EpochMs


class TraceRoot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A provider's commitment, in a dispute, to what each operator of its run made of what.

    Attributes:
        protocol: (major, minor) of the provider.
        receipt: The id of the receipt that it explains.
        stage: Of which stage; none where it is of the whole unit.
        root: The Merkle root over the leaves, one for each operator.
        leaves: How many there are.
    """

    protocol: tuple[Count, Count]
    receipt: HexId
    stage: LeafCount | None
    root: Digest32
    leaves: Annotated[int, Meta(ge=1, le=limits.LEAVES_LIMIT)]
    provider: PeerText


class Commitment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a prover signs when it has done a challenge's work, before rows are drawn.

    Attributes:
        protocol: (major, minor) of the prover.
        rate: The claim, in multiply-adds per second.
        roots: Of each step, the Merkle root over the rows of its product.
        elapsed_s: As the prover saw it; advisory.
    """

    protocol: tuple[Count, Count]
    nonce: Nonce
    prover: PeerText
    verifier: PeerText
    device: ShortText
    numeric_class: ShortText
    precision: ShortText
    rate: Rate
    rows: Count
    size: Count
    steps: Count
    roots: Annotated[
        tuple[Digest32, ...], Meta(min_length=1, max_length=limits.CHALLENGE_STEPS_LIMIT)
    ]
    elapsed_s: Seconds


class CapabilityProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A verifier's word that a device has shown a rate. Its signer is the verifier.

    It is worth what its signer is worth to whoever reads it.

    Attributes:
        protocol: (major, minor) of the verifier.
        rate: What was claimed, in multiply-adds per second; a third of it was required.
        shown: What the verifier saw, the link's delay taken off.
        commitment: The id of the prover's `Commitment`, as bytes.
    """

    protocol: tuple[Count, Count]
    prover: PeerText
    device: ShortText
    numeric_class: ShortText
    precision: ShortText
    rate: Rate
    shown: Rate
    commitment: Digest32
    issued_at_ms: EpochMs


class Renewal(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A node's word that it lives, and that what its advert says still holds.

    Its signer is the node. On the wire it is an array of its fields, in this order:
    some 160 bytes with the envelope, where an advert has 700.

    Attributes:
        sequence: Of the advert.
        lifetime_s: How long the advert is good for from now on.
    """

    sequence: Sequence
    number: RenewalNumber
    issued_at_ms: EpochMs
    lifetime_s: Lifetime


def statement_id(envelope: bytes) -> BlobId:
    """The id of a signed statement: the content id of its envelope."""
    return blob_id_of(envelope)


def open_advert(envelope: bytes) -> Advert:
    """Check and read an advert.

    Raises:
        VerificationError: Not an advert, not well formed, or not its peer's own.
    """
    if len(envelope) > limits.ADVERT_LIMIT_BYTES:
        raise VerificationError(
            f"an advert of {len(envelope)} bytes is over {limits.ADVERT_LIMIT_BYTES}",
            code="advert_too_large",
        )
    advert, signer = _open(envelope, Statement.ADVERT, Advert)
    _check_signer(signer, advert.peer, "advert")
    return advert


def open_renewal(envelope: bytes) -> tuple[Renewal, PeerId]:
    """Check and read a renewal; gives the node that signed it, too.

    Raises:
        VerificationError: Not a renewal, or not well formed.
    """
    if len(envelope) > limits.RENEWAL_LIMIT_BYTES:
        raise VerificationError(
            f"a renewal of {len(envelope)} bytes is over {limits.RENEWAL_LIMIT_BYTES}",
            code="renewal_too_large",
        )
    return _open(envelope, Statement.RENEWAL, Renewal)


def open_award(envelope: bytes) -> Award:
    """Check and read an award.

    Raises:
        VerificationError: Not an award, not well formed, or not its requester's own.
    """
    award, signer = _open(envelope, Statement.AWARD, Award)
    _check_signer(signer, award.requester, "award")
    return award


def open_receipt(envelope: bytes) -> Receipt:
    """Check and read a receipt; this is all that ``shoal receipt verify`` needs.

    Raises:
        VerificationError: Not a receipt, not well formed, not its provider's
            own, neither a result nor an error, or with stages and no root over them.
    """
    receipt, signer = _open(envelope, Statement.RECEIPT, Receipt)
    _check_signer(signer, receipt.provider, "receipt")
    if receipt.trace is None and receipt.stages:
        raise VerificationError(
            f"a receipt counts {receipt.stages} stages and gives no root over them",
            code="bad_receipt",
        )
    if (receipt.outputs is None) == (receipt.error is None):
        raise VerificationError(
            "a receipt gives outputs or an error, and this one gives both or neither",
            code="bad_receipt",
        )
    for side in (receipt.inputs, receipt.outputs or ()):
        names = [name for name, _ in side]
        if names != sorted(set(names)):
            raise VerificationError(
                "a receipt lists each name once, in order, and this one does not",
                code="bad_receipt",
            )
    return receipt


def open_acknowledgement(envelope: bytes) -> Acknowledgement:
    """Check and read an acknowledgement.

    Raises:
        VerificationError: Not an acknowledgement, not well formed, not its requester's
            own, or a receipt stands in it twice.
    """
    acknowledgement, signer = _open(envelope, Statement.ACKNOWLEDGEMENT, Acknowledgement)
    _check_signer(signer, acknowledgement.requester, "acknowledgement")
    if len(set(acknowledgement.receipts)) < len(acknowledgement.receipts):
        raise VerificationError(
            "an acknowledgement names a receipt twice", code="bad_acknowledgement"
        )
    return acknowledgement


def open_trace_root(envelope: bytes) -> TraceRoot:
    """Check and read the root of a trace.

    Raises:
        VerificationError: Not a trace's root, not well formed, or not its provider's own.
    """
    root, signer = _open(envelope, Statement.TRACE_ROOT, TraceRoot)
    _check_signer(signer, root.provider, "trace root")
    return root


def open_commitment(envelope: bytes) -> Commitment:
    """Check and read a prover's commitment.

    Raises:
        VerificationError: Not a commitment, not well formed, or not its prover's own.
    """
    commitment, signer = _open(envelope, Statement.COMMITMENT, Commitment)
    _check_signer(signer, commitment.prover, "commitment")
    return commitment


def open_proof(envelope: bytes) -> tuple[CapabilityProof, PeerId]:
    """Check and read a proof of capability; gives its verifier, who signed it, too.

    Raises:
        VerificationError: Not a proof, not well formed, or by the prover itself.
    """
    proof, verifier = _open(envelope, Statement.CAPABILITY, CapabilityProof)
    if verifier == proof.prover:
        raise VerificationError(
            f"{verifier} vouches for itself, which proves nothing", code="wrong_signer"
        )
    return proof, verifier


def check_receipt(
    receipt: Receipt, award_id: BlobId, award: Award, unit: str, inputs: dict[str, BlobId]
) -> None:
    """Check that a receipt is about the unit that was given under an award (L0).

    Raises:
        VerificationError: ``receipt_mismatch``, naming the first field that differs.
    """
    wanted: tuple[tuple[str, object, object], ...] = (
        ("award", receipt.award, award_id),
        ("unit", receipt.unit, unit),
        ("program", receipt.program, award.program),
        ("numeric class", receipt.numeric_class, award.numeric_class),
        ("precision", receipt.precision, award.precision),
        ("provider", receipt.provider, award.provider),
        ("requester", receipt.requester, award.requester),
        ("inputs", receipt.inputs, tuple(sorted(inputs.items()))),
    )
    for field, got, want in wanted:
        if got != want:
            raise VerificationError(
                f"the receipt's {field} is {got!r}, and {want!r} was given"[:600],
                code="receipt_mismatch",
            )


Payload = TypeVar("Payload", bound=msgspec.Struct)


def _open(
    envelope: bytes, kind: Statement, payload_type: type[Payload]
) -> tuple[Payload, PeerId]:
    opened = open_envelope(envelope, kind)
    try:
        value = unpack(opened.payload)
        theirs = said_version(value)
        if theirs is not None and (problem := misfit(theirs)) is not None:
            raise VerificationError(
                f"{opened.signer}, who signed this {kind.words}, {problem}",
                code="version_unsupported",
            )
        newer = theirs is not None and is_newer(theirs)
        payload: Payload = fit(value, payload_type, newer=newer)
    except RemoteProtocolError as error:
        raise VerificationError(
            f"the {kind.words} is signed but malformed: {error.message}",
            code="bad_payload",
        ) from None
    return payload, opened.signer


def _check_signer(signer: PeerId, claimed: str, what: str) -> None:
    if signer != claimed:
        raise VerificationError(
            f"this {what} speaks for {claimed} and is signed by {signer}", code="wrong_signer"
        )
