"""The blob store: immutable bytes under their content ids, within a quota.

Every step of the data path that moves bytes ends here: submitted inputs, what
is fetched from peers, what executors give. How the files lie is
`node.blob_files`' matter, what has to go when room is needed `node.blob_index`'
and getting blobs from peers `node.blob_transfer`'s.

Bytes that this node will *use* are checked against their id as they are read,
and a blob that fails is dropped: a flipped bit on this disk must not become a
signed false result. Chunks that are only *served* are not hashed again, since
whoever receives them checks them.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import trio

from shoal.compute.in_file import InFile
from shoal.crypto.content import (
    CHUNK_SIZE_BYTES,
    BlobHasher,
    BlobId,
    Buffer,
    ChunkList,
    chunk_list_of,
)
from shoal.crypto.errors import VerificationError
from shoal.crypto.possession import PossessionHasher
from shoal.node.blob_files import Draft, OpenBlob, storing
from shoal.node.blob_reception import Reception
from shoal.node.blob_shelf import Shelf
from shoal.node.turns import Turns


class BlobStore:
    """The blobs that this node holds. Made by `open_store`."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._receiving: Turns[BlobId] = Turns()
        self._receptions: dict[BlobId, Reception] = {}
        self._readers = count()

    @property
    def used_bytes(self) -> int:
        """The bytes of blobs and unfinished transfers, and room promised to new ones.

        Chunk lists, directories and the file system's rounding are not counted.
        """
        return self._shelf.index.used_bytes

    @property
    def quota_bytes(self) -> int:
        """The most that `used_bytes` may be."""
        return self._shelf.index.quota_bytes

    def set_quota(self, quota_bytes: int) -> None:
        """Keep within so much from now on; what is over it goes as others come."""
        self._shelf.index.quota_bytes = quota_bytes

    def holds(self, blob_id: BlobId) -> bool:
        """Whether all bytes of a blob are here."""
        return blob_id in self._shelf.index.held

    def size_bytes(self, blob_id: BlobId) -> int:
        """The size of a blob that is held.

        Raises:
            StoreError: ``blob_missing``.
        """
        size_bytes = self._shelf.index.held.get(blob_id)
        if size_bytes is None:
            raise self._shelf.missing(blob_id)
        return size_bytes

    def used(self, blob_ids: Iterable[BlobId]) -> None:
        """Count blobs as used now: of those that may go, the ones used longest ago go first."""
        for blob_id in blob_ids:
            self._shelf.index.touch(blob_id)

    def pin(self, blob_id: BlobId, by: str) -> None:
        """Keep a blob, held now or later, until ``by`` (a job, a lease) lets go."""
        self._shelf.index.pin(blob_id, by)

    def unpin(self, by: str) -> None:
        """Let go of everything that ``by`` pinned."""
        self._shelf.index.unpin(by)

    def keep_longer(self, blob_id: BlobId, rank: int) -> None:
        """Let a blob go after all that may go, those of a lower number last."""
        self._shelf.index.keep_longer(blob_id, rank)

    def let_go(self, blob_id: BlobId) -> None:
        """Let a blob that was kept go in its turn, as any other does."""
        self._shelf.index.let_go(blob_id)

    @contextmanager
    def kept(self, blob_id: BlobId) -> Iterator[None]:
        """Pin a blob for as long as the block runs."""
        reader = f"reader {next(self._readers)}"
        self.pin(blob_id, reader)
        try:
            yield
        finally:
            self.unpin(reader)

    # --- taking bytes in --------------------------------------------------------

    async def put(self, pieces: AsyncIterable[bytes]) -> ChunkList:
        """Store a blob that comes in pieces of any size; cancelled, it leaves nothing.

        Raises:
            StoreError: ``quota_exceeded``, ``disk_full`` or ``store_unusable``.
        """
        async with self._writing() as writing:
            gathered = bytearray()
            async for piece in pieces:
                gathered += piece
                if len(gathered) >= CHUNK_SIZE_BYTES:
                    await writing.append(gathered)
                    gathered = bytearray()
            await writing.append(gathered)
            return await writing.keep()

    async def put_bytes(self, data: Buffer) -> BlobId:
        """Store a blob that is in memory; where it is held already, nothing is written.

        Raises:
            StoreError: As `put`.
        """
        chunks = await self._shelf.work(lambda: chunk_list_of(data), memoryview(data).nbytes)
        blob_id = chunks.blob_id
        if self.holds(blob_id):
            self._shelf.index.touch(blob_id)
            return blob_id
        async with self._writing() as writing:
            await writing.append(data)
            await writing.keep()
        return blob_id

    @asynccontextmanager
    async def receive(self, blob_id: BlobId) -> AsyncIterator[Reception]:
        """Receive a blob chunk by chunk, alone: others who want it wait their turn.

        Look whether the store `holds` it on entering: whoever was first may have
        finished it. Chunks that proved right are kept when the block ends early,
        by error, cancellation or a killed daemon, and the next reception of this
        blob begins with them.
        """
        async with self._receiving.take(blob_id):
            reception = self._receptions[blob_id] = Reception(self._shelf, blob_id)
            try:
                if not self.holds(blob_id):
                    await reception.resume()
                yield reception
            finally:
                del self._receptions[blob_id]
                await reception.leave()

    def receiving(self, blob_id: BlobId) -> bool:
        """Whether somebody receives the blob now; where not, `receive` need not wait."""
        return self._receiving.taken(blob_id)

    # --- giving bytes out -------------------------------------------------------

    async def get_bytes(self, blob_id: BlobId) -> bytes:
        """A whole blob, checked.

        Raises:
            StoreError: ``blob_missing``; ``blob_damaged`` where the disk lost it.
        """
        size_bytes = self.size_bytes(blob_id)

        def read() -> bytes | None:
            data = self._shelf.files.read(blob_id, 0, size_bytes)
            if data is None or chunk_list_of(data).blob_id != blob_id:
                return None
            return data

        return await self._read(blob_id, read, size_bytes)

    async def in_file(self, blob_id: BlobId) -> InFile:
        """A whole blob where it lies, checked now, for those who read it in pieces.

        Raises:
            StoreError: As `get_bytes`.
        """
        with self.kept(blob_id):
            chunks = await self.chunk_list(blob_id)

            def check() -> InFile | None:
                opened = self._shelf.files.open(chunks)
                if opened is None:
                    return None
                try:
                    buffer = memoryview(bytearray(CHUNK_SIZE_BYTES))
                    for index in range(len(chunks.digests)):
                        chunks.check_chunk(index, opened.read_into(index, buffer))
                    return opened.in_file()
                except VerificationError:
                    return None
                finally:
                    opened.close()

            found = await self._shelf.work(check, chunks.size_bytes)
            if found is None:
                raise await self._shelf.damaged(blob_id)
            return found

    async def read_chunks(self, blob_id: BlobId) -> AsyncIterator[bytes]:
        """A blob chunk by chunk, each checked; it is kept while this goes on.

        Raises:
            StoreError: As `get_bytes`.
        """
        with self.kept(blob_id):
            chunks = await self.chunk_list(blob_id)
            for index in range(len(chunks.digests)):
                chunk = await self.read_chunk(blob_id, index)
                try:
                    chunks.check_chunk(index, chunk)
                except VerificationError:
                    raise await self._shelf.damaged(blob_id) from None
                yield chunk

    async def chunk_list(self, blob_id: BlobId) -> ChunkList:
        """The chunk list of a blob: kept beside it, or made again where it got lost.

        Raises:
            StoreError: As `get_bytes`.
        """
        size_bytes = self.size_bytes(blob_id)
        beside = size_bytes > CHUNK_SIZE_BYTES
        if beside:
            known = await self._shelf.work(lambda: self._shelf.files.read_list(blob_id))
            if known is not None:
                return known
        hasher = BlobHasher()
        for index in range(-(-size_bytes // CHUNK_SIZE_BYTES)):
            hasher.update(await self.read_chunk(blob_id, index))
        chunks = hasher.finish()
        if chunks.blob_id != blob_id:
            raise await self._shelf.damaged(blob_id)
        if beside:
            await self._shelf.work(lambda: self._shelf.files.write_list(chunks))
        return chunks

    async def read_chunk(self, blob_id: BlobId, index: int) -> bytes:
        """One chunk, for a peer that will check it.

        Raises:
            StoreError: ``blob_missing``; ``blob_damaged`` where its file is cut short.
        """
        offset = index * CHUNK_SIZE_BYTES
        size_bytes = min(CHUNK_SIZE_BYTES, self.size_bytes(blob_id) - offset)
        assert size_bytes >= 0
        return await self._read(
            blob_id, lambda: self._shelf.files.read(blob_id, offset, size_bytes), size_bytes
        )

    async def open_blob(self, blob_id: BlobId) -> OpenBlob:
        """Open a blob that is held, or being received, for a peer that will check it.

        The caller closes it.

        Raises:
            StoreError: ``blob_missing``, or as `chunk_list`.
        """
        if not self.holds(blob_id) and (reception := self._receptions.get(blob_id)):
            shared = reception.share()
            if shared is not None:
                return shared
        self._shelf.index.touch(blob_id)
        chunks = await self.chunk_list(blob_id)
        found = await self._shelf.work(lambda: self._shelf.files.open(chunks))
        if found is None:
            raise await self._shelf.damaged(blob_id)
        return found

    async def feed(self, blob_id: BlobId, hasher: PossessionHasher, size_bytes: int) -> None:
        """Give a hasher the first bytes of a blob; what is damaged proves nothing.

        Raises:
            StoreError: ``blob_missing``; ``blob_damaged`` where its file is cut short.
        """
        with self.kept(blob_id):
            self.size_bytes(blob_id)
            read = partial(self._shelf.files.read, blob_id)
            if not await self._shelf.feed(read, hasher.update, size_bytes):
                raise await self._shelf.damaged(blob_id)

    async def _read(
        self, blob_id: BlobId, read: Callable[[], bytes | None], size_bytes: int
    ) -> bytes:
        self._shelf.index.touch(blob_id)
        data = await self._shelf.work(read, size_bytes)
        if data is None:
            raise await self._shelf.damaged(blob_id)
        return data

    @asynccontextmanager
    async def _writing(self) -> AsyncIterator[_Writing]:
        with storing(self._shelf.files.directory):
            draft = self._shelf.files.draft()
        writing = _Writing(self._shelf, draft)
        try:
            yield writing
        finally:
            self._shelf.release(writing.reserved_bytes)
            with trio.CancelScope(shield=True):
                await self._shelf.work(draft.discard, writing.reserved_bytes)


@asynccontextmanager
async def open_store(directory: Path, quota_bytes: int) -> AsyncIterator[BlobStore]:
    """Open the blob store in ``directory``, which is made where it is missing.

    What was being written when a daemon was killed is removed, as is any file
    whose size is not the blob's. One process at a time: the caller holds a lock.

    Raises:
        StoreError: ``store_unusable`` or ``disk_full``.
    """
    shelf = Shelf(directory, quota_bytes)
    await shelf.open()
    yield BlobStore(shelf)


class _Writing:
    """A blob on its way in, and the room that is reserved for it."""

    def __init__(self, shelf: Shelf, draft: Draft) -> None:
        self.reserved_bytes = 0
        self._shelf = shelf
        self._draft = draft

    async def append(self, data: Buffer) -> None:
        size_bytes = memoryview(data).nbytes
        await self._shelf.reserve(size_bytes)
        self.reserved_bytes += size_bytes
        await self._shelf.work(lambda: self._draft.append(data), size_bytes)

    async def keep(self) -> ChunkList:
        chunks = await self._shelf.work(self._draft.finish, self.reserved_bytes)
        self.reserved_bytes = 0  # the room passes over
        await self._shelf.adopt(self._draft.path, chunks)
        return chunks
