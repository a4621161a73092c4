"""Words of the control stream: receipts acknowledged, disputed, and proved false.

How results are checked is in `protocol.verification`.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from shoal.protocol import limits
from shoal.protocol.limits import (
    ByteCount,
    Digest32,
    EnvelopeBytes,
    HexId,
    LeafBytes,
    LeafCount,
    PeerText,
    TreeLevel,
    TreePath,
)
from shoal.protocol.message_form import Message


class Acknowledge(Message, frozen=True, tag="acknowledge"):
    """The requester has these receipts: a signed `protocol.statements.Acknowledgement`."""

    acknowledgement: EnvelopeBytes


class Reveal(Message, frozen=True, tag="reveal"):
    """What verifiers are drawn by, told to the provider once the lease is over.

    Attributes:
        award: The id of the award, which holds the salt's hash and the list's id.
        candidates: The list.
    """

    award: HexId
    salt: Digest32
    candidates: Annotated[tuple[PeerText, ...], Meta(max_length=limits.CANDIDATES_LIMIT)]


class TraceWanted(Message, frozen=True, tag="trace_wanted"):
    """Asks a provider to commit to the operators of a run that it gave a receipt for.

    It runs the unit again for that, and takes as long.

    Attributes:
        stage: Of this stage alone; none where the receipt commits to no stages.
    """

    receipt: HexId
    stage: LeafCount | None = None


class TraceGiven(Message, frozen=True, tag="trace_given"):
    """The signed `protocol.statements.TraceRoot`."""

    root: EnvelopeBytes


class NodesWanted(Message, frozen=True, tag="nodes_wanted"):
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


class NodesGiven(Message, frozen=True, tag="nodes_given"):
    """Those digests from left to right; fewer where the tree has no more."""

    digests: Annotated[tuple[Digest32, ...], Meta(min_length=1, max_length=limits.NODES_LIMIT)]


class LeafWanted(Message, frozen=True, tag="leaf_wanted"):
    """Asks for one leaf of a trace; ``stage`` is as in `NodesWanted`."""

    receipt: HexId
    stage: LeafCount | None
    index: LeafCount


class LeafGiven(Message, frozen=True, tag="leaf_given"):
    """The leaf, and the path from it to the root."""

    leaf: LeafBytes
    path: TreePath


class Accusation(Message, frozen=True, tag="accusation"):
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


class AccusationsWanted(Message, frozen=True, tag="accusations_wanted"):
    """Asks a peer for fraud proofs that the sender does not know.

    Attributes:
        known: Ids of those that it knows, the newest first.
    """

    known: Annotated[tuple[HexId, ...], Meta(max_length=limits.KNOWN_PROOFS_LIMIT)] = ()


class Accusations(Message, frozen=True, tag="accusations"):
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
