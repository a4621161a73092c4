"""Files that are written out while they are being written."""

import os
import random

import pytest

from shoal.crypto.content import CHUNK_SIZE_BYTES, chunk_list_of
from shoal.crypto.errors import VerificationError
from shoal.node import blob_files, write_out
from shoal.node.blob_files import PartialFile
from shoal.node.write_out import WriteOut

MIB = 1 << 20


@pytest.fixture
def told(monkeypatch):
    """What the kernel is told of a file: begin to write it out, or let it go."""
    calls = []
    monkeypatch.setattr(write_out, "_begin", lambda _, *piece: calls.append(("begin", *piece)))
    monkeypatch.setattr(
        os, "posix_fadvise", lambda _, *piece: calls.append(("let go", *piece[:2]))
    )
    return calls


def test_each_piece_is_written_out_at_once_and_let_go_when_more_have_come(told, monkeypatch):
    monkeypatch.setattr(write_out, "BEHIND_BYTES", 3 * MIB)
    out = WriteOut(0)
    for index in (7, 0, 5, 2, 1):  # as it comes from several sources
        out.wrote(index * MIB, MIB)
    begun = [piece for what, *piece in told if what == "begin"]
    let_go = [piece for what, *piece in told if what == "let go"]
    assert begun == [[index * MIB, MIB] for index in (7, 0, 5, 2, 1)]
    assert let_go == [[7 * MIB, MIB], [0, MIB]]
    assert told.index(("let go", 7 * MIB, MIB)) > told.index(("begin", 2 * MIB, MIB))


def test_what_is_let_go_is_read_again_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(write_out, "BEHIND_BYTES", 2 * MIB)
    data = os.urandom(12 * MIB + 77)
    chunks = chunk_list_of(data)
    file = PartialFile(tmp_path / "blob", chunks)
    order = list(range(len(chunks.digests)))
    random.Random(7).shuffle(order)
    for index in order:
        file.write(index, data[index * CHUNK_SIZE_BYTES : (index + 1) * CHUNK_SIZE_BYTES])
    assert all(map(file.holds, order))
    file.sync()
    file.close()
    assert (tmp_path / "blob").read_bytes() == data


def test_a_wrong_chunk_is_neither_written_nor_written_out(tmp_path, told):
    file = PartialFile(tmp_path / "blob", chunk_list_of(os.urandom(2 * MIB)))
    with pytest.raises(VerificationError):
        file.write(1, bytes(MIB))
    file.close()
    assert told == []
    assert (tmp_path / "blob").stat().st_size == 0


def test_a_large_blob_is_synced_after_its_last_byte_and_before_it_is_held(
    tmp_path, monkeypatch
):
    steps = []
    write, sync = blob_files._write_all, os.fsync
    monkeypatch.setattr(
        blob_files, "_write_all", lambda *args: (steps.append("write"), write(*args))
    )
    monkeypatch.setattr(os, "fsync", lambda handle: (steps.append("sync"), sync(handle)))
    data = os.urandom(3 * MIB)
    file = PartialFile(tmp_path / "blob", chunk_list_of(data))
    for index in range(3):
        file.write(index, data[index * MIB : (index + 1) * MIB])
    file.sync()
    file.close()
    assert steps == ["write"] * 3 + ["sync"]


def test_a_place_beyond_4_gib_is_one_that_the_kernel_takes(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        os.pwrite(file.fileno(), b"x", 5 << 30)
        assert write_out._begin(file.fileno(), -1, 1) == -1  # what it says of a wrong one
        assert write_out._begin(file.fileno(), 5 << 30, 1) == 0
