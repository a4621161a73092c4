"""Words of the control stream: a node shows a rate that it claims, and who has seen it.

What is computed is in `protocol.challenge`.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from shoal.protocol import limits
from shoal.protocol.limits import (
    EnvelopeBytes,
    MerklePath,
    Nonce,
    ProofBytes,
    ShortText,
)
from shoal.protocol.message_form import Message


class Challenge(Message, frozen=True, tag="challenge"):
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


class Committed(Message, frozen=True, tag="committed"):
    """The work is done, and this is the signed `protocol.statements.Commitment`."""

    nonce: Nonce
    commitment: EnvelopeBytes


Place = tuple[
    Annotated[int, Meta(ge=0, le=limits.CHALLENGE_STEPS_LIMIT - 1)],
    Annotated[int, Meta(ge=0, le=limits.CHALLENGE_ROWS_LIMIT - 1)],
]
"""A step of the chain, and a row of its product."""


class Draw(Message, frozen=True, tag="draw"):
    """The rows that the verifier has drawn, and will compute by itself."""

    nonce: Nonce
    places: Annotated[
        tuple[Place, ...], Meta(min_length=1, max_length=limits.CHALLENGE_PLACES_LIMIT)
    ]


class Opened(Message, frozen=True, tag="opened"):
    """A Merkle path for each row drawn; the rows themselves the verifier knows."""

    nonce: Nonce
    paths: Annotated[
        tuple[MerklePath, ...], Meta(min_length=1, max_length=limits.CHALLENGE_PLACES_LIMIT)
    ]


class ProofOffer(Message, frozen=True, tag="proof"):
    """The verifier's signed `protocol.statements.CapabilityProof`, for the prover to show."""

    nonce: Nonce
    proof: ProofBytes


class ProofsWanted(Message, frozen=True, tag="proofs_wanted"):
    """Asks a node who has seen it show its claims."""


class Proofs(Message, frozen=True, tag="proofs"):
    """Proofs of a node's own claims, those first that it thinks count most.

    Whoever asked checks them for itself; one that is worth nothing costs nothing else.
    """

    proofs: Annotated[tuple[ProofBytes, ...], Meta(max_length=limits.PROOFS_LIMIT)]
