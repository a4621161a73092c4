"""Content ids: the one kind of id for models, tensors, manifests and awards.

A blob's id is the BLAKE3 of (its size in 8 little-endian bytes ‖ the BLAKE3 of
each 1 MiB chunk). The part in brackets is the *chunk list*; it travels before
the bytes, so that every chunk is checked when it arrives and a transfer can
resume anywhere. The tree is ours and has two levels because the Python package
of BLAKE3 has no subtree calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType, TypeAlias

from blake3 import blake3

from shoal.crypto.errors import VerificationError

Buffer: TypeAlias = bytes | bytearray | memoryview

BlobId = NewType("BlobId", str)
"""64 lower-case hexadecimal digits."""

CHUNK_SIZE_BYTES = 1 << 20
DIGEST_SIZE_BYTES = 32
_SIZE_FIELD_BYTES = 8


@dataclass(frozen=True, slots=True)
class ChunkList:
    """The size of a blob in bytes and the BLAKE3 digest of each of its chunks."""

    size_bytes: int
    digests: tuple[bytes, ...]

    @property
    def blob_id(self) -> BlobId:
        """The id of the blob that this list describes."""
        return BlobId(blake3(self.encode()).hexdigest())

    def encode(self) -> bytes:
        """The bytes that the id is taken over: 8 + 32·chunks."""
        return self.size_bytes.to_bytes(_SIZE_FIELD_BYTES, "little") + b"".join(self.digests)

    def chunk_size_bytes(self, index: int) -> int:
        """How many bytes chunk ``index`` holds; only the last may be short."""
        if not 0 <= index < len(self.digests):
            message = f"chunk {index} of a blob of {len(self.digests)} chunks"
            raise VerificationError(message, code="no_such_chunk")
        return min(CHUNK_SIZE_BYTES, self.size_bytes - index * CHUNK_SIZE_BYTES)

    def check_chunk(self, index: int, chunk: Buffer) -> None:
        """Check chunk ``index`` as it arrives.

        Raises:
            VerificationError: Its size or digest is not the one listed.
        """
        if (
            memoryview(chunk).nbytes != self.chunk_size_bytes(index)
            or blake3(chunk).digest() != self.digests[index]
        ):
            message = (
                f"chunk {index} of blob {self.blob_id[:16]}… is not the one its id promises"
            )
            raise VerificationError(message, code="bad_chunk")


def decode_chunk_list(data: bytes, blob_id: BlobId) -> ChunkList:
    """Read a chunk list that must be the one of ``blob_id``.

    Raises:
        VerificationError: The bytes are another blob's list, or no list at all.
    """
    size_bytes = int.from_bytes(data[:_SIZE_FIELD_BYTES], "little")
    digests = data[_SIZE_FIELD_BYTES:]
    if (
        len(data) < _SIZE_FIELD_BYTES  # or "" would name the empty blob a second time
        or len(digests) != DIGEST_SIZE_BYTES * _chunk_count(size_bytes)
        or blake3(data).hexdigest() != blob_id
    ):
        message = f"this is not the chunk list of blob {blob_id[:16]}…"
        raise VerificationError(message, code="bad_chunk_list")
    return ChunkList(
        size_bytes,
        tuple(
            digests[at : at + DIGEST_SIZE_BYTES]
            for at in range(0, len(digests), DIGEST_SIZE_BYTES)
        ),
    )


class BlobHasher:
    """Takes a blob's bytes in pieces of any size and gives its chunk list."""

    def __init__(self) -> None:
        self._size_bytes = 0
        self._digests: list[bytes] = []
        self._chunk = blake3()
        self._room_bytes = CHUNK_SIZE_BYTES

    def update(self, data: Buffer) -> None:
        """Take the next piece of the blob."""
        view = memoryview(data)
        if view.nbytes == 0:
            return  # a view with a zero in its shape cannot be cast
        view = view.cast("B")
        self._size_bytes += len(view)
        while view:
            piece = view[: self._room_bytes]
            self._chunk.update(piece)
            self._room_bytes -= len(piece)
            if self._room_bytes == 0:
                self._end_chunk()
            view = view[len(piece) :]

    def finish(self) -> ChunkList:
        """Give the chunk list of all bytes taken; call it once."""
        if self._room_bytes < CHUNK_SIZE_BYTES:
            self._end_chunk()
        return ChunkList(self._size_bytes, tuple(self._digests))

    def _end_chunk(self) -> None:
        self._digests.append(self._chunk.digest())
        self._chunk = blake3()
        self._room_bytes = CHUNK_SIZE_BYTES


def chunk_list_of(data: Buffer) -> ChunkList:
    """The chunk list of bytes held in memory."""
    hasher = BlobHasher()
    hasher.update(data)
    return hasher.finish()


def blob_id_of(data: Buffer) -> BlobId:
    """The content id of bytes held in memory."""
    view = memoryview(data)
    if 0 < view.nbytes <= CHUNK_SIZE_BYTES:  # most are: without the objects of the long way
        size = view.nbytes.to_bytes(_SIZE_FIELD_BYTES, "little")
        return BlobId(blake3(size + blake3(view.cast("B")).digest()).hexdigest())
    return chunk_list_of(data).blob_id


def check_blob_id(text: str) -> BlobId:
    """Give ``text`` back as a blob id.

    Raises:
        VerificationError: It is not 64 lower-case hexadecimal digits.
    """
    if len(text) != 2 * DIGEST_SIZE_BYTES or not set(text) <= set("0123456789abcdef"):
        message = f"{text[:80]!r} is not a content id"
        raise VerificationError(
            message, code="bad_blob_id", hint="a content id is 64 lower-case hex digits"
        )
    return BlobId(text)


def _chunk_count(size_bytes: int) -> int:
    return -(-size_bytes // CHUNK_SIZE_BYTES)
