"""The words of a blob stream (`node.blob_transfer`): one request, one answer, then bytes.

Whoever opens the stream wants one blob and says from which chunk on. The
answer is a refusal, or the length of the chunk list; then follow the list as
`crypto.content.ChunkList.encode` writes it and the raw chunks in order, to the
last one. The list is checked against the blob's id before any chunk is taken,
and each chunk against the list.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta

from shoal.crypto.content import CHUNK_SIZE_BYTES, DIGEST_SIZE_BYTES
from shoal.protocol.limits import BLOB_LIMIT_BYTES, HexId

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


class BlobRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="want"):
    """Send this blob, from ``first_chunk`` on."""

    blob: HexId
    first_chunk: Annotated[int, Meta(ge=0, le=CHUNKS_LIMIT)] = 0


class BlobFound(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="found"):
    """Here it is; the chunk list comes next."""

    list_bytes: Annotated[int, Meta(ge=8, le=LIST_LIMIT_BYTES)]


class BlobRefused(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="refused"):
    """Nothing follows."""

    reason: WhyNot


BlobAnswer: TypeAlias = BlobFound | BlobRefused
