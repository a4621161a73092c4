"""A large file on its way to disk while it is still being written.

Left to itself, the kernel keeps what a process writes in memory and writes it out late: the
sync at the end then waits for much of the file, and each piece goes to a page that nobody
used lately. Under a hypervisor that takes free memory back (virtio's free page reporting),
touching such a page costs some 10 us: 2.5 s of a core for 1 GiB, measured, where a page that
was just used costs a tenth of that. So each piece is written out at once, and its pages are
let go when they are safe on disk and some more have come. On a disk that is slower than the
writer they are not, and stay: what is read again soon is then still in memory, where it
matters. And a stranger's blob does not drive the owner's files out of memory.

None of this makes anything durable: an error of writing out stays for the sync to tell.
"""

from __future__ import annotations

import ctypes
import os
from collections import deque

BEHIND_BYTES = 64 << 20
"""How much stays in memory of what was written last: others may be getting it too."""

_SYNC_FILE_RANGE_WRITE = 2
_libc = ctypes.CDLL(None)


class WriteOut:
    """Follows the writing of one file; threads may share it."""

    def __init__(self, handle: int) -> None:
        self._handle = handle
        self._behind: deque[tuple[int, int]] = deque()

    def wrote(self, offset: int, size_bytes: int) -> None:
        """Begin to write out a piece that was just written, and let an older one go."""
        _begin(self._handle, offset, size_bytes)
        self._behind.append((offset, size_bytes))
        if len(self._behind) * size_bytes > BEHIND_BYTES:
            os.posix_fadvise(self._handle, *self._behind.popleft(), os.POSIX_FADV_DONTNEED)


def _begin(handle: int, offset: int, size_bytes: int) -> int:
    """Begin and wait for nothing; where it cannot be done early, the sync does it."""
    done: int = _libc.sync_file_range(
        handle,
        ctypes.c_int64(offset),
        ctypes.c_int64(size_bytes),
        ctypes.c_uint(_SYNC_FILE_RANGE_WRITE),
    )
    return done
