"""Proofs over a blob stream: one side demands that the other has a blob's bytes now.

In the step "fetch inputs": whoever holds a blob already spares its peer the
sending, once the peer has proved to have it too (`crypto.possession`). Both sides
hash at the same time. Any answer that is not the right one, a late one and none
at all come to the same here: it is not proved, and the caller goes on as if it
held nothing. What is asked of whom is decided in `node.blob_transfer`.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import structlog
import trio

from shoal.crypto.content import CHUNK_SIZE_BYTES, ChunkList
from shoal.crypto.possession import CHALLENGE_SIZE_BYTES, PossessionHasher
from shoal.node.errors import NetworkError, StoreError
from shoal.node.frames import receive_frame, send_frame, within
from shoal.protocol.blob_messages import MESSAGE_LIMIT_BYTES, BlobProof, BlobProve
from shoal.protocol.errors import RemoteProtocolError

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.network import ByteStream

log = structlog.get_logger()

ANSWER_TIME_LIMIT_S = 60.0
"""For a peer's next words on a blob stream, beyond the time that hashing takes."""

HASHING_BYTES_PER_S = 20e6
"""Slower than this hashes nobody: a hard disk that two others read from at once."""

Feed: TypeAlias = Callable[[PossessionHasher, int], Awaitable[None]]
"""Gives a hasher the first bytes of a blob: `BlobStore.feed` or `Reception.feed`."""


def hashing_limit_s(size_bytes: int) -> float:
    """How long to wait for words that come after so much was hashed."""
    return ANSWER_TIME_LIMIT_S + size_bytes / HASHING_BYTES_PER_S


async def is_proved(
    stream: ByteStream,
    own: PeerId,
    chunks: ChunkList,
    count: int,
    feed: Feed,
    *,
    newer: bool = False,
) -> bool:
    """Demand a proof of the first ``count`` chunks and hold it against this node's copy.

    Where it gives False the stream is of no further use.

    Args:
        stream: To the prover, which has sent ``chunks`` and waits for the next word.
        own: This node.
        chunks: The blob.
        count: How many of its chunks this node holds, from the first on; at least one.
        feed: Gives their bytes.
        newer: Whether the prover speaks a newer version.
    """
    size_bytes = min(chunks.size_bytes, count * CHUNK_SIZE_BYTES)
    challenge = secrets.token_bytes(CHALLENGE_SIZE_BYTES)
    hasher = PossessionHasher(
        challenge, chunks.blob_id, size_bytes, prover=stream.remote, verifier=own
    )
    answer = b""

    async def take_answer() -> None:
        nonlocal answer
        try:
            await send_frame(
                stream, BlobProve(challenge=challenge, chunks=count), MESSAGE_LIMIT_BYTES
            )
            with within(hashing_limit_s(size_bytes), stream.remote):
                proof = await receive_frame(stream, BlobProof, MESSAGE_LIMIT_BYTES, newer=newer)
            answer = proof.proof
        except (NetworkError, RemoteProtocolError) as error:
            log.info("a blob was not proved", peer=stream.remote, error=error.message)
            both.cancel_scope.cancel()

    async with trio.open_nursery() as both:
        both.start_soon(take_answer)
        try:
            await feed(hasher, size_bytes)
        except StoreError as error:  # its file was damaged: nothing can be compared
            log.warning("a blob cannot be compared", error=error.message)
            both.cancel_scope.cancel()
    return not both.cancel_scope.cancel_called and secrets.compare_digest(
        answer, hasher.digest()
    )


async def give_proof(
    stream: ByteStream, own: PeerId, chunks: ChunkList, demand: BlobProve, feed: Feed
) -> None:
    """Answer a demand of a peer that has a right to the blob.

    Raises:
        RemoteProtocolError: It is about more chunks than there are.
        StoreError: The blob is damaged or gone.
        NetworkError: The peer went away.
    """
    if demand.chunks > len(chunks.digests):
        raise RemoteProtocolError(
            f"{stream.remote} asks for a proof of {demand.chunks} chunks of "
            f"{len(chunks.digests)}",
            code="no_such_chunk",
        )
    size_bytes = min(chunks.size_bytes, demand.chunks * CHUNK_SIZE_BYTES)
    hasher = PossessionHasher(
        demand.challenge, chunks.blob_id, size_bytes, prover=own, verifier=stream.remote
    )
    await feed(hasher, size_bytes)
    await send_frame(stream, BlobProof(proof=hasher.digest()), MESSAGE_LIMIT_BYTES)
