"""A blob on its way in from peers: which chunks are here, and which are missing.

Made by `BlobStore.receive`, used by `node.blob_transfer`. Bytes go into a
partial file, each chunk checked before it is written. When a transfer breaks,
the file and its chunk list stay, and the next reception hashes what is there:
no record of progress is kept that could disagree with the bytes.
"""

from __future__ import annotations

from functools import partial

from shoal.crypto.content import CHUNK_SIZE_BYTES, BlobId, Buffer, ChunkList
from shoal.crypto.possession import PossessionHasher
from shoal.node.blob_files import OpenBlob, PartialFile, storing
from shoal.node.blob_shelf import Shelf


class Reception:
    """The receiving side of one blob; its order is resume, begin, write, finish, leave."""

    def __init__(self, shelf: Shelf, blob_id: BlobId) -> None:
        self.blob_id = blob_id
        self._shelf = shelf
        self._file: PartialFile | None = None
        self._missing: dict[int, None] = {}  # an ordered set
        self._reserved_bytes = 0
        self._counted = False  # what is missing; before that there is nothing to share

    @property
    def chunk_list(self) -> ChunkList | None:
        """The blob's chunk list, once it is known."""
        return self._file.chunks if self._file is not None else None

    def missing_chunks(self) -> list[int]:
        """The chunks that are not here yet, in order; call it after `begin`."""
        return list(self._missing)

    async def resume(self) -> None:
        """Take up what an earlier reception left, if it left anything.

        Raises:
            StoreError: There is no room for the rest.
        """
        if self.blob_id in self._shelf.index.unfinished:
            await self._open(None)
            if self._file is None:  # its list is lost, and without it nothing can be proved
                self._lay_down()
                await self._shelf.drop(self.blob_id)

    async def begin(self, chunks: ChunkList) -> None:
        """Make room for the whole blob; does nothing where it was resumed.

        Raises:
            StoreError: There is no room.
        """
        assert chunks.blob_id == self.blob_id
        if self._file is None:
            await self._open(chunks)

    async def feed(self, hasher: PossessionHasher, size_bytes: int) -> None:
        """Give a hasher the first bytes, which must be here.

        Raises:
            StoreError: They cannot be read.
        """
        file = self._opened()
        if not await self._shelf.feed(file.read, hasher.update, size_bytes):
            raise self._shelf.missing(self.blob_id)

    async def write_chunk(self, index: int, data: Buffer) -> None:
        """Check and keep one chunk.

        Raises:
            VerificationError: It is not the chunk that the list names.
            StoreError: It cannot be written.
        """
        file = self._opened()
        await self._shelf.work(lambda: file.write(index, data), memoryview(data).nbytes)
        self._missing.pop(index, None)

    def write_here(self, index: int, data: Buffer) -> None:
        """Check and keep one chunk, in the thread of the caller, which may be any.

        Raises:
            VerificationError: As `write_chunk`.
            StoreError: As `write_chunk`.
        """
        with storing(self._shelf.files.directory):
            self._opened().write(index, data)
        self._missing.pop(index, None)

    def share(self) -> OpenBlob | None:
        """Open what is here to be served from; none before `begin`.

        Raises:
            StoreError: It cannot be opened.
        """
        if self._file is None or not self._counted:
            return None
        with storing(self._shelf.files.directory):
            return self._file.share(self._missing)

    async def finish(self) -> None:
        """Make it a blob that is held; no chunk may be missing."""
        file = self._opened()
        assert not self._missing
        await self._shelf.work(file.sync, file.chunks.size_bytes)
        self._reserved_bytes = 0  # the room passes over
        await self._shelf.adopt(file.path, file.chunks)

    async def leave(self) -> None:
        """Close the file and keep what may be resumed; cannot be cancelled."""
        file = self._file
        if file is None:
            if self._reserved_bytes:
                self._lay_down()
            return
        file.close()
        if not file.path.exists():  # finished
            return
        self._shelf.release(self._reserved_bytes)
        self._reserved_bytes = file.size_bytes
        self._shelf.index.used_bytes += self._reserved_bytes
        empty = not self._reserved_bytes or len(self._missing) == len(file.chunks.digests)
        self._lay_down()
        if empty or self.blob_id in self._shelf.index.held:
            await self._shelf.drop(self.blob_id)

    def _lay_down(self) -> None:
        """Let the index count what is on disk, and evict it when it must."""
        self._shelf.index.unfinished[self.blob_id] = self._reserved_bytes
        self._reserved_bytes = 0

    async def _open(self, chunks: ChunkList | None) -> None:
        shelf = self._shelf
        self._reserved_bytes = shelf.index.unfinished.pop(self.blob_id, 0)
        file = await shelf.work(
            lambda: shelf.files.partial(self.blob_id, chunks),
            chunks.size_bytes if chunks is not None else None,
        )
        if file is None:
            return
        self._file = file
        size_bytes = file.chunks.size_bytes
        if size_bytes > self._reserved_bytes:
            await shelf.reserve(size_bytes - self._reserved_bytes)
        else:
            shelf.release(self._reserved_bytes - size_bytes)
        self._reserved_bytes = size_bytes
        present = [
            index
            for index in range(-(-file.size_bytes // CHUNK_SIZE_BYTES))
            if await shelf.work(partial(file.holds, index))
        ]
        missing = dict.fromkeys(range(len(file.chunks.digests)))
        for index in present:
            del missing[index]
        self._missing, self._counted = missing, True

    def _opened(self) -> PartialFile:
        assert self._file is not None
        return self._file
