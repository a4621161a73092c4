"""Blob files on disk: where they lie, and every change to them as one whole step.

The lower half of the blob store. Everything here is synchronous and short; the
upper half (`node.blobs`) decides what runs in a thread, what may stay and what
must go. Under the store's directory lie::

    ab/<id>           the bytes of a blob; ab are the first two digits of its id
    ab/<id>.chunks    its chunk list, where there is more than one chunk
    partial/…         the same two files of a transfer that has not ended
    tmp/              what is being written or about to be unlinked; emptied at open

A blob is held when ``ab/<id>`` is there, so its list is put in place first and
taken away last. Blobs of one chunk are hashed at every read and need no fsync:
a power cut can lose one, never falsify it. Larger ones are synced before they
get their name.
"""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from shoal.compute.in_file import InFile
from shoal.crypto.content import (
    CHUNK_SIZE_BYTES,
    BlobHasher,
    BlobId,
    Buffer,
    ChunkList,
    check_blob_id,
    decode_chunk_list,
)
from shoal.crypto.errors import VerificationError
from shoal.node.errors import StoreError
from shoal.node.write_out import WriteOut

_LIST_SUFFIX = ".chunks"
_SIZE_FIELD_BYTES = 8
_serial = itertools.count()

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Found:
    """A file met when the store was opened."""

    blob_id: BlobId
    size_bytes: int
    used_at_s: float


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn what the file system refuses into a `StoreError` that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreError(
                f"the disk that holds {path} is full: {error.strerror}",
                code="disk_full",
                hint="free some space, or move the node's home with --home or SHOAL_HOME",
            ) from None
        raise StoreError(
            f"the blob store at {path} cannot be used: {error.strerror or error}",
            code="store_unusable",
            hint="make it writable for this user, or choose another home with --home",
        ) from None


class Draft:
    """A blob being written: a temporary file, and the hash so far."""

    def __init__(self, directory: Path) -> None:
        handle, name = tempfile.mkstemp(dir=directory)
        self.path = Path(name)
        self._hasher = BlobHasher()
        self._handle = handle

    def append(self, data: Buffer) -> None:
        """Write and hash the next bytes."""
        _write_all(self._handle, data)
        self._hasher.update(data)

    def finish(self) -> ChunkList:
        """Close the file, synced where that is needed; gives what was written."""
        chunks = self._hasher.finish()
        if len(chunks.digests) > 1:
            _write_list(_list_of(self.path), chunks)
            os.fsync(self._handle)
        self._close()
        return chunks

    def discard(self) -> None:
        """Remove whatever there is; safe to call after `BlobFiles.adopt`."""
        self._close()
        remove((self.path, _list_of(self.path)))

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class PartialFile:
    """The bytes of a transfer that has not ended; chunks come in any order."""

    def __init__(self, path: Path, chunks: ChunkList) -> None:
        self.path = path
        self.chunks = chunks
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._write_out = WriteOut(self._handle)
        if os.fstat(self._handle).st_size > chunks.size_bytes:
            os.ftruncate(self._handle, chunks.size_bytes)

    @property
    def size_bytes(self) -> int:
        """How far the file reaches; there may be holes before."""
        return self.path.stat().st_size

    def holds(self, index: int) -> bool:
        """Whether chunk ``index`` is there: its bytes are their own proof."""
        size_bytes = self.chunks.chunk_size_bytes(index)
        try:
            self.chunks.check_chunk(
                index, os.pread(self._handle, size_bytes, index * CHUNK_SIZE_BYTES)
            )
        except VerificationError:
            return False
        return True

    def read(self, offset: int, size_bytes: int) -> bytes | None:
        """Read a part of what is there; none where it is not all there."""
        data = os.pread(self._handle, size_bytes, offset)
        return data if len(data) == size_bytes else None

    def write(self, index: int, chunk: Buffer) -> None:
        """Write a chunk that proves to be the one listed.

        Raises:
            VerificationError: It does not.
        """
        self.chunks.check_chunk(index, chunk)
        _write_all(self._handle, chunk, index * CHUNK_SIZE_BYTES)
        self._write_out.wrote(index * CHUNK_SIZE_BYTES, self.chunks.chunk_size_bytes(index))

    def share(self, missing: Container[int]) -> OpenBlob:
        """Open it once more, for others to have what is here of it."""
        return OpenBlob(os.dup(self._handle), self.chunks, missing)

    def sync(self) -> None:
        """Bring a blob that will not be hashed at every read safely to disk."""
        if len(self.chunks.digests) > 1:
            os.fsync(self._handle)

    def close(self) -> None:
        """Close the file and leave it where it is; again does no harm."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class OpenBlob:
    """A blob's file, open to be served from; its bytes are checked by whoever gets them.

    Read by one thread. What is evicted meanwhile stays readable until it is closed.

    Args:
        handle: Of the file; closed with this.
        chunks: The blob's chunk list.
        missing: Chunks that are not there, of a blob that is being received; a view of
            what its reception still waits for.
    """

    def __init__(self, handle: int, chunks: ChunkList, missing: Container[int] = ()) -> None:
        self.chunks = chunks
        self._missing = missing
        self._handle = handle

    @property
    def is_whole(self) -> bool:
        """Whether it was held when it was opened."""
        return self._missing == ()

    def has(self, index: int) -> bool:
        """Whether chunk ``index`` is there now."""
        return index < len(self.chunks.digests) and index not in self._missing

    def read_into(self, index: int, buffer: memoryview) -> memoryview:
        """Read one chunk; gives the part of ``buffer`` that it fills.

        Raises:
            StoreError: The file is cut short, or cannot be read.
        """
        view = buffer[: self.chunks.chunk_size_bytes(index)]
        rest, offset = view, index * CHUNK_SIZE_BYTES
        with storing(Path(f"blob {self.chunks.blob_id[:16]}…")):
            while rest:
                count = os.preadv(self._handle, [rest], offset)
                if not count:
                    raise StoreError(
                        f"the file of blob {self.chunks.blob_id[:16]}… is cut short",
                        code="blob_damaged",
                    )
                rest, offset = rest[count:], offset + count
        return view

    def in_file(self) -> InFile:
        """The whole of it, with a descriptor of its own."""
        return InFile(os.dup(self._handle), self.chunks.size_bytes)

    def close(self) -> None:
        """Close the file; again does no harm."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


@dataclass(frozen=True, slots=True)
class BlobFiles:
    """The directory of a blob store."""

    directory: Path

    def prepare(self) -> None:
        """Make what directories are missing and empty ``tmp``."""
        for path in (self._temporary, self._partial):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        remove(self._temporary.iterdir())

    def blobs(self) -> list[Found]:
        """Every blob, least recently used first; what cannot be one is removed."""
        found: list[Found] = []
        for shard in self.directory.glob("[0-9a-f][0-9a-f]"):
            found += self._scan(shard)
        return sorted(found, key=lambda blob: blob.used_at_s)

    def partials(self) -> list[Found]:
        """Every transfer that has not ended, oldest first."""
        found = {blob.blob_id: blob for blob in _sizes_in(self._partial)}
        _remove_lone_lists(self._partial, found)
        return sorted(found.values(), key=lambda blob: blob.used_at_s)

    def draft(self) -> Draft:
        """Begin to write a blob."""
        return Draft(self._temporary)

    def adopt(self, source: Path, chunks: ChunkList) -> None:
        """Give a finished draft or partial file its place; two renames at most."""
        target = self._path(chunks.blob_id)
        target.parent.mkdir(exist_ok=True, mode=0o700)
        if len(chunks.digests) > 1:
            _list_of(source).replace(_list_of(target))
        source.replace(target)

    def read(self, blob_id: BlobId, offset: int, size_bytes: int) -> bytes | None:
        """Read a part of a blob and note that it was used; none where it is not all there."""
        try:
            file = self._path(blob_id).open("rb")
        except FileNotFoundError:
            return None
        with file:
            with suppress(OSError):  # the order of eviction is worth no failed read
                os.utime(file.fileno())
            file.seek(offset)
            data = file.read(size_bytes)
        return data if len(data) == size_bytes else None

    def open(self, chunks: ChunkList) -> OpenBlob | None:
        """Open a blob to be served from, and note that it was used; none if it is gone."""
        path = self._path(chunks.blob_id)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        with suppress(OSError):  # as in `read`
            os.utime(handle)
        return OpenBlob(handle, chunks)

    def read_list(self, blob_id: BlobId) -> ChunkList | None:
        """The chunk list that lies beside a blob, if it is there and its own."""
        return _read_list(_list_of(self._path(blob_id)), blob_id)

    def write_list(self, chunks: ChunkList) -> None:
        """Put a chunk list beside its blob again, all of it or nothing."""
        away = self._unused_name()
        _write_list(away, chunks)
        away.replace(_list_of(self._path(chunks.blob_id)))

    def partial(self, blob_id: BlobId, chunks: ChunkList | None) -> PartialFile | None:
        """Open the transfer of a blob; without ``chunks``, only one begun earlier."""
        path = self._partial / blob_id
        known = _read_list(_list_of(path), blob_id)
        if known is None and chunks is not None:
            if len(chunks.digests) > 1:  # with one chunk there is nothing to resume
                _write_list(_list_of(path), chunks)
            known = chunks
        return PartialFile(path, known) if known is not None else None

    def banish(self, blob_id: BlobId) -> tuple[Path, ...]:
        """Take a blob's name away at once; gives what is left to unlink."""
        return self._move_away(self._path(blob_id))

    def banish_partial(self, blob_id: BlobId) -> tuple[Path, ...]:
        """Likewise for a transfer that has not ended."""
        return self._move_away(self._partial / blob_id)

    @property
    def _temporary(self) -> Path:
        return self.directory / "tmp"

    @property
    def _partial(self) -> Path:
        return self.directory / "partial"

    def _path(self, blob_id: BlobId) -> Path:
        return self.directory / blob_id[:2] / blob_id

    def _move_away(self, path: Path) -> tuple[Path, ...]:
        """Rename: unlinking gigabytes takes long, and the name may be wanted again."""
        away = self._unused_name()
        for source, target in ((path, away), (_list_of(path), _list_of(away))):
            with suppress(FileNotFoundError):
                source.replace(target)
        return away, _list_of(away)

    def _unused_name(self) -> Path:
        """A name in ``tmp``; no file is made, since that may fail on a full disk."""
        return self._temporary / f"away-{next(_serial)}"

    def _scan(self, shard: Path) -> Iterator[Found]:
        sizes = {found.blob_id: found for found in _sizes_in(shard)}
        _remove_lone_lists(shard, sizes)
        for found in sizes.values():
            if found.blob_id.startswith(shard.name) and _plausible(
                _list_of(shard / found.blob_id), found.size_bytes
            ):
                yield found
            else:
                remove((shard / found.blob_id, _list_of(shard / found.blob_id)))


def remove(paths: Iterable[Path]) -> None:
    """Unlink files; one that resists is tried again when the store is next opened."""
    for path in paths:
        with suppress(OSError):
            path.unlink()


def _sizes_in(directory: Path) -> Iterator[Found]:
    """The files of a directory that are named by an id."""
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(VerificationError):  # another file, such as a chunk list
                blob_id = check_blob_id(entry.name)
                status = entry.stat(follow_symlinks=False)
                yield Found(blob_id, status.st_size, status.st_mtime)


def _remove_lone_lists(directory: Path, found: Container[str]) -> None:
    remove(path for path in directory.glob(f"*{_LIST_SUFFIX}") if path.stem not in found)


def _plausible(list_path: Path, size_bytes: int) -> bool:
    """Whether a file's size is the one in its list; small blobs prove theirs when read."""
    try:
        with list_path.open("rb") as file:
            listed = int.from_bytes(file.read(_SIZE_FIELD_BYTES), "little")
    except FileNotFoundError:
        return True
    return listed == size_bytes


def _list_of(path: Path) -> Path:
    return path.with_name(path.name + _LIST_SUFFIX)


def _read_list(path: Path, blob_id: BlobId) -> ChunkList | None:
    with suppress(FileNotFoundError, VerificationError):
        return decode_chunk_list(path.read_bytes(), blob_id)
    return None


def _write_list(path: Path, chunks: ChunkList) -> None:
    with path.open("wb") as file:
        file.write(chunks.encode())
        file.flush()
        os.fsync(file.fileno())


def _write_all(handle: int, data: Buffer, offset: int | None = None) -> None:
    view = memoryview(data).cast("B")
    while view:
        if offset is None:
            written = os.write(handle, view)
        else:
            written = os.pwrite(handle, view, offset)
            offset += written
        view = view[written:]
