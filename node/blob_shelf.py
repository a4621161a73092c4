"""Room for blobs: the index and the files brought into step, and work in threads.

Between `node.blob_files` (the disk) and `node.blobs` (what others call). All
changes of what is held happen in the Trio thread between two awaits: a rename
and a dictionary entry, so that no task ever sees one without the other. Bytes
are written, hashed, synced and unlinked in worker threads, except up to
`INLINE_IO_LIMIT_BYTES`, where going to a thread and back was measured to cost
2 to 10 times the work itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import trio

from shoal.crypto.content import BlobId, ChunkList
from shoal.node.blob_files import BlobFiles, remove, storing
from shoal.node.blob_index import BlobIndex
from shoal.node.errors import StoreError

INLINE_IO_LIMIT_BYTES = 64 << 10
"""Work on so many bytes is done in the Trio thread: reads 10–50 µs, writes 0.1–0.7 ms."""

THREADS_LIMIT = 8
"""File operations at once; more would only queue at the disk."""

HASHERS_LIMIT = 2
"""Threads for proofs, which peers can ask for: the others stay for the rest."""

FEED_SIZE_BYTES = 8 << 20
"""Proofs take turns after so much, 2 to 4 ms of hashing, and can be cancelled."""

T = TypeVar("T")


class Shelf:
    """The files of a blob store, and the index that says what may stay."""

    def __init__(self, directory: Path, quota_bytes: int) -> None:
        self.files = BlobFiles(directory)
        self.index = BlobIndex(quota_bytes)
        self._threads = trio.CapacityLimiter(THREADS_LIMIT)
        self._hashers = trio.CapacityLimiter(HASHERS_LIMIT)

    async def open(self) -> None:
        """Read the directory, and bring it within the quota.

        Raises:
            StoreError: It cannot be used.
        """

        def scan() -> BlobIndex:
            self.files.prepare()
            return BlobIndex(
                self.index.quota_bytes,
                [(blob.blob_id, blob.size_bytes) for blob in self.files.blobs()],
                [(blob.blob_id, blob.size_bytes) for blob in self.files.partials()],
            )

        self.index = await self.work(scan)
        await self.reserve(0)

    async def work(self, job: Callable[[], T], size_bytes: int | None = None) -> T:
        """Do file work: here where it is known to be small, else in a thread.

        Raises:
            StoreError: The file system refuses.
        """

        def guarded() -> T:
            with storing(self.files.directory):
                return job()

        if size_bytes is not None and size_bytes <= INLINE_IO_LIMIT_BYTES:
            await trio.lowlevel.checkpoint()
            return guarded()
        return await trio.to_thread.run_sync(guarded, limiter=self._threads)

    async def feed(
        self,
        read: Callable[[int, int], bytes | None],
        update: Callable[[bytes], None],
        size_bytes: int,
    ) -> bool:
        """Give ``update`` the first bytes of a file, piece by piece in a thread.

        Args:
            read: Gives so many bytes at an offset; none where they are not all there.
            update: Takes them in order.
            size_bytes: How many in all.

        Raises:
            StoreError: The file system refuses.
        """

        def step(offset: int) -> bool:
            with storing(self.files.directory):
                piece = read(offset, min(FEED_SIZE_BYTES, size_bytes - offset))
            if piece is not None:
                update(piece)
            return piece is not None

        for offset in range(0, size_bytes, FEED_SIZE_BYTES):
            if not await trio.to_thread.run_sync(step, offset, limiter=self._hashers):
                return False
        return True

    async def reserve(self, size_bytes: int) -> None:
        """Promise room, removing what has to go for it.

        Raises:
            StoreError: ``quota_exceeded``; then nothing was removed.
        """
        leftovers: list[Path] = []
        for victim in self.index.victims(size_bytes):
            leftovers += self._banish(victim)
        self.index.used_bytes += size_bytes
        await self._unlink(leftovers)

    def release(self, size_bytes: int) -> None:
        """Give back room that was promised and is not needed."""
        self.index.used_bytes -= size_bytes

    async def adopt(self, source: Path, chunks: ChunkList) -> None:
        """Make a finished file a blob; the room reserved for it passes over.

        Raises:
            StoreError: The file system refuses; the room is given back.
        """
        blob_id = chunks.blob_id
        if blob_id in self.index.held:  # someone else was faster
            self.release(chunks.size_bytes)
            self.index.touch(blob_id)
            return
        try:
            with storing(self.files.directory):
                self.files.adopt(source, chunks)
        except StoreError:
            self.release(chunks.size_bytes)
            raise
        idle = self._banish(blob_id) if blob_id in self.index.unfinished else ()
        self.index.held[blob_id] = chunks.size_bytes
        await self._unlink(idle)

    async def drop(self, blob_id: BlobId) -> None:
        """Remove a blob or an unfinished transfer, if it is there; cannot be cancelled."""
        if blob_id in self.index.unfinished or blob_id in self.index.held:
            await self._unlink(self._banish(blob_id))

    def missing(self, blob_id: BlobId) -> StoreError:
        """The error for a blob that is not held."""
        return StoreError(
            f"blob {blob_id} is not held here",
            code="blob_missing",
            hint="submit its bytes again, or fetch it from a peer that holds it",
        )

    async def damaged(self, blob_id: BlobId) -> StoreError:
        """Drop a blob whose file is not what it should be; gives the error for it."""
        if blob_id not in self.index.held:  # evicted between two awaits
            return self.missing(blob_id)
        await self.drop(blob_id)
        return StoreError(
            f"blob {blob_id} was damaged on disk and has been dropped",
            code="blob_damaged",
            hint="submit its bytes again, or fetch it from a peer that holds it",
        )

    def _banish(self, blob_id: BlobId) -> tuple[Path, ...]:
        with storing(self.files.directory):
            if blob_id in self.index.unfinished:
                leftovers = self.files.banish_partial(blob_id)
            else:
                leftovers = self.files.banish(blob_id)
        self.index.forget(blob_id)
        return leftovers

    async def _unlink(self, paths: Sequence[Path]) -> None:
        if paths:
            with trio.CancelScope(shield=True):
                await self.work(lambda: remove(paths))
