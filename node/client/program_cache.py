"""Exported programs on the submitter's disk, by what they were exported from.

A directory for each, with a file for each blob; put in place whole, checked by content id
when read, and the ones not used for longest go when all together are too large. Losing it
costs an export.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from shoal.compute.convert import Program
from shoal.compute.errors import ProgramError
from shoal.compute.manifest import decode
from shoal.crypto.content import BlobId, blob_id_of

CACHE_LIMIT_BYTES = 4 << 30
"""Of all programs; some ten models of 100 million weights."""


def directory() -> Path:
    """Where programs are kept: ``shoal/programs`` in the user's cache directory."""
    import platformdirs

    return platformdirs.user_cache_path("shoal") / "programs"


def load(key: str) -> Program | None:
    """The program that was kept under a key; None where it is not there, or damaged."""
    place = directory() / key
    try:
        program = BlobId((place / "program").read_text())
        blobs = _Kept(place)
        manifest = decode(blobs[program])
        if not all((place / blob_id).is_file() for blob_id in manifest.blob_ids):
            return None
        os.utime(place)  # used now
    except (OSError, UnicodeDecodeError, ProgramError):
        return None
    return Program(program, manifest, blobs)


def keep(key: str, program: Program) -> None:
    """Keep a program; where that cannot be done it is exported again, and nothing else."""
    place = directory()
    with suppress(OSError):
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(prefix=".part-", dir=place))
        try:
            for blob_id, blob in program.blobs.items():
                (made / blob_id).write_bytes(blob)
            (made / "program").write_text(program.program_id)
            shutil.rmtree(place / key, ignore_errors=True)  # one that was damaged
            made.rename(place / key)
        finally:
            shutil.rmtree(made, ignore_errors=True)
        _make_room(place)


class _Kept(Mapping[BlobId, bytes]):
    """The blobs of a program, read when they are asked for."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __getitem__(self, blob_id: BlobId) -> bytes:
        data = (self._place / blob_id).read_bytes()
        if blob_id_of(data) != blob_id:
            shutil.rmtree(self._place, ignore_errors=True)
            raise ProgramError(
                f"{self._place} is damaged and was removed",
                code="cache_damaged",
                hint="try again: the program is exported anew",
            )
        return data

    def __iter__(self) -> Iterator[BlobId]:
        return (BlobId(file.name) for file in self._place.iterdir() if file.name != "program")

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _make_room(place: Path) -> None:
    kept = []
    for one in place.iterdir():
        with suppress(OSError):
            size_bytes = sum(file.stat().st_size for file in one.iterdir())
            kept.append((one.stat().st_mtime, size_bytes, one))
    left = sum(size_bytes for _, size_bytes, _ in kept)
    for _, size_bytes, one in sorted(kept):
        if left <= CACHE_LIMIT_BYTES:
            return
        shutil.rmtree(one, ignore_errors=True)
        left -= size_bytes
