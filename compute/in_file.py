"""A tensor's blob that lies in a file: what is large passes through the daemon in pieces.

Part of *execute*: inputs go from the blob store into the memory that is lent to a worker,
and outputs from there into the blob store, and neither is ever in the daemon whole.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypeAlias

from shoal.crypto.content import CHUNK_SIZE_BYTES, Buffer

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGE_BYTES: Final = 8 << 20
"""From so many bytes on a tensor is not taken into memory."""


class InFile:
    """A part of a file that holds one blob.

    Args:
        fd: The file's descriptor, which is this object's from then on.
        size_bytes: How long the blob is.
        offset: Where it begins.
    """

    def __init__(self, fd: int, size_bytes: int, offset: int = 0) -> None:
        self._file = os.fdopen(fd, "rb", buffering=0)  # closes it when nobody has this more
        self._size_bytes = size_bytes
        self._offset = offset

    def __len__(self) -> int:
        """Its size in bytes."""
        return self._size_bytes

    def head(self, size_bytes: int) -> bytes:
        """Its first bytes, or all of it where that is less."""
        return os.pread(self._file.fileno(), min(size_bytes, self._size_bytes), self._offset)

    def pieces(self) -> Iterator[bytes]:
        """All of it, in order.

        Raises:
            OSError: The file is shorter than that.
        """
        at, end = self._offset, self._offset + self._size_bytes
        while at < end:
            piece = os.pread(self._file.fileno(), min(CHUNK_SIZE_BYTES, end - at), at)
            if not piece:
                raise OSError("a file is shorter than the blob that is to be in it")
            yield piece
            at += len(piece)


Tensor: TypeAlias = Buffer | InFile
"""A tensor's blob, in memory or in a file."""


def in_memory(tensor: bytes | InFile) -> bytes:
    """The bytes of a blob, which are read from its file where they are in one."""
    return b"".join(tensor.pieces()) if isinstance(tensor, InFile) else tensor


def size_of(tensor: Tensor) -> int:
    """The bytes of a blob."""
    return len(tensor) if isinstance(tensor, InFile) else memoryview(tensor).nbytes
