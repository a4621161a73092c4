"""The words of a blob stream (`node.blob_transfer`): one request, one answer, then bytes.

Whoever opens the stream wants one blob. The answer is a refusal, or the length of
the chunk list; then follows the list as `crypto.content.ChunkList.encode` writes it.
It is checked against the blob's id before any chunk is taken, and each chunk against
the list.

The chunks of a blob of at most `limits.BLOB_AT_ONCE_LIMIT_BYTES` follow the list. Of
a larger one, whoever wants it says next with `BlobSend` from which chunk on to send
them, in order and to the last one; or, where it holds the first chunks already,
demands with `BlobProve` that the other side prove to have them too, and then says
`BlobSend` for the rest, or closes the stream where there is none. That way a node
uses what it holds for no peer that merely knows an id, and no peer sends twice what
it has. A proof is the digest that `crypto.possession` describes; one that is wrong,
late or refused is as good as none, and the blob is fetched on a new stream as if
nothing of it were held.

Before the list has come and proved right, nothing that is said depends on what is
held, so an id alone tells nobody whether a blob is held. Who has the list (it once
had the blob, or a right to it) can see whether a proof is demanded of it.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from shoal.crypto.content import CHUNK_SIZE_BYTES, DIGEST_SIZE_BYTES
from shoal.crypto.possession import CHALLENGE_SIZE_BYTES, PROOF_SIZE_BYTES
from shoal.protocol.limits import BLOB_LIMIT_BYTES, HexId, PeerText

CHUNKS_LIMIT = BLOB_LIMIT_BYTES // CHUNK_SIZE_BYTES
"""Chunks of the largest blob."""

LIST_LIMIT_BYTES = 8 + DIGEST_SIZE_BYTES * CHUNKS_LIMIT
"""The chunk list of the largest blob."""

MESSAGE_LIMIT_BYTES = 256
"""A request or an answer, without the bytes that follow it."""


class WhyNot(StrEnum):
    """Why a blob is not served. Without the right to it, nobody learns if it is held."""

    NOT_HELD = "not_held"
    NO_RIGHT = "no_right"


class BlobRequest(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="want"
):
    """This blob is wanted.

    Attributes:
        requester: For whose unit, where that is another peer: the blob is served if it is
            kept for that peer, and shared with the sender by it. Said only to a peer of
            protocol 1.3 or newer.
    """

    blob: HexId
    requester: PeerText | None = None


class BlobFound(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="found"):
    """It is here, and may be had; the chunk list comes next."""

    list_bytes: Annotated[int, Meta(ge=8, le=LIST_LIMIT_BYTES)]


class BlobRefused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refused"):
    """Nothing follows."""

    reason: WhyNot


BlobAnswer: TypeAlias = BlobFound | BlobRefused


class BlobSend(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="send"):
    """Send the chunks from ``first_chunk`` on."""

    first_chunk: Annotated[int, Meta(ge=0, le=CHUNKS_LIMIT)]


class BlobProve(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="prove"):
    """Prove to have the first ``chunks`` chunks; once on a stream, before `BlobSend`.

    Attributes:
        challenge: Drawn for this proof alone.
    """

    challenge: Annotated[
        bytes, Meta(min_length=CHALLENGE_SIZE_BYTES, max_length=CHALLENGE_SIZE_BYTES)
    ]
    chunks: Annotated[int, Meta(ge=1, le=CHUNKS_LIMIT)]


class BlobProof(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="proof"):
    """The answer to `BlobProve`."""

    proof: Annotated[bytes, Meta(min_length=PROOF_SIZE_BYTES, max_length=PROOF_SIZE_BYTES)]


BlobNext: TypeAlias = BlobSend | BlobProve
"""What may follow the chunk list of a blob that is not sent at once."""
