"""Memory in which a request's tensors reach the worker, and the answer's come back.

Each exchange lends the worker up to two anonymous files (memfds): one that holds the
request's attachments, sealed against any change, and one as large as the answer may
be, sealed against shrinking and growing, which costs no memory until it is written.
Only the worker maps them. The daemon writes and reads them like files, so nothing
that a worker does to them can reach the daemon as a SIGBUS, and what it has read is
its own copy before it is hashed. No file descriptor ever comes from the worker.

What is small travels through the socket (`shoal.compute.frames`), which costs less.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import mmap
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shoal.compute.in_file import InFile, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.in_file import Tensor
    from shoal.crypto.content import Buffer

ALIGNMENT_BYTES: Final = 64
"""Where an attachment begins: a tensor's elements then lie as vector units like them."""

_FIXED_SIZE: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_UNCHANGEABLE: Final = _FIXED_SIZE | fcntl.F_SEAL_WRITE


@dataclass(frozen=True, slots=True)
class LentMemory:
    """What one exchange lends, by file descriptor; None where it is not needed."""

    request: int | None
    answer: int | None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those that go along with the frame, the request's first."""
        return tuple(fd for fd in (self.request, self.answer) if fd is not None)

    def close(self) -> None:
        """Let go of it; the worker keeps what it has mapped."""
        for fd in self.descriptors:
            os.close(fd)


def lend(attachments: Sequence[Tensor], answer_bytes: int) -> LentMemory:
    """Lend memory that holds ``attachments``, and room for an answer, where there are any.

    Raises:
        OSError: There is no memory, or no file descriptor.
    """
    request = _filled(attachments) if attachments else None
    try:
        answer = _sized(answer_bytes, _FIXED_SIZE) if answer_bytes else None
    except OSError:
        LentMemory(request, None).close()
        raise
    return LentMemory(request, answer)


def read_answer(
    fd: int, sizes: Sequence[int], in_file_from: float = math.inf
) -> list[bytes | InFile]:
    """The daemon's own copies of an answer's attachments, which lie one after another.

    Args:
        fd: The memory.
        sizes: Of the attachments, in bytes.
        in_file_from: Attachments of so many bytes stay in that memory. The worker can still
            write to it: whoever reads one does so once, and hashes what was read.

    Raises:
        OSError: The sizes are not those of what was lent.
    """
    copies: list[bytes | InFile] = []
    offset = 0
    for size in sizes:
        if size < in_file_from:
            copies.append(_read(fd, size, offset))
        else:
            copies.append(InFile(os.dup(fd), size, offset))
        offset += size
    return copies


def map_request(fd: int, sizes: Sequence[int]) -> list[Buffer]:
    """In the worker: the attachments in the memory that was lent; ends with their last view."""
    offsets, total = _places(sizes)
    view = memoryview(mmap.mmap(fd, total, mmap.MAP_SHARED, mmap.PROT_READ))
    return [view[offset : offset + size] for offset, size in zip(offsets, sizes, strict=True)]


def write_answer(fd: int, attachments: Sequence[Buffer]) -> None:
    """In the worker: put the answer's attachments into the memory that was lent for them.

    Raises:
        MemoryError: It cannot be mapped within this process's limit.
    """
    total = sum(memoryview(attachment).nbytes for attachment in attachments)
    try:
        memory = mmap.mmap(fd, total, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError:
        raise MemoryError from None
    with memory:
        for attachment in attachments:
            memory.write(attachment)


def _filled(attachments: Sequence[Tensor]) -> int:
    sizes = list(map(size_of, attachments))
    offsets, total = _places(sizes)
    fd = _sized(total)
    try:
        for offset, attachment in zip(offsets, attachments, strict=True):
            if not isinstance(attachment, InFile):
                _write(fd, memoryview(attachment).cast("B"), offset)
                continue
            for piece in attachment.pieces():
                _write(fd, memoryview(piece), offset)
                offset += len(piece)  # noqa: PLW2901  # within this attachment
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _UNCHANGEABLE)
    except OSError:
        os.close(fd)
        raise
    return fd


def _sized(size_bytes: int, seals: int = 0) -> int:
    fd = os.memfd_create("shoal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size_bytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    except OSError:
        os.close(fd)
        raise
    return fd


def _places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each attachment begins, and the size of all; never 0, which nobody can map."""
    spans = (-(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for size in sizes)
    *offsets, total = itertools.accumulate(spans, initial=0)
    return offsets, max(total, ALIGNMENT_BYTES)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        count = os.pwrite(fd, data, offset)
        data, offset = data[count:], offset + count


def _read(fd: int, size: int, offset: int) -> bytes:
    pieces = []
    while size:
        piece = os.pread(fd, size, offset)
        if not piece:
            raise OSError("the answer is larger than the memory that was lent for it")
        pieces.append(piece)
        size, offset = size - len(piece), offset + len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)
