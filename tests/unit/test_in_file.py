import os

import pytest

from shoal.compute import frames
from shoal.compute.frames import UnitLimits
from shoal.compute.in_file import InFile, size_of
from shoal.compute.lent_memory import lend, map_request, read_answer
from shoal.crypto.content import CHUNK_SIZE_BYTES

BLOB = os.urandom(2 * CHUNK_SIZE_BYTES + 77)


@pytest.fixture
def opened(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"before" + BLOB + b"behind")
    return os.open(path, os.O_RDONLY)


def test_a_blob_in_a_file_is_read_in_pieces_as_often_as_one_likes(opened):
    blob = InFile(opened, len(BLOB), 6)
    assert size_of(blob) == len(blob) == len(BLOB)
    assert blob.head(9) == BLOB[:9]
    assert InFile(os.dup(opened), 3, 6).head(9) == BLOB[:3]
    for _ in range(2):
        pieces = list(blob.pieces())
        assert max(map(len, pieces)) == CHUNK_SIZE_BYTES
        assert b"".join(pieces) == BLOB


def test_its_descriptor_goes_with_it(opened):
    blob = InFile(opened, len(BLOB))
    del blob
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(opened)


def test_a_file_that_was_cut_short_is_an_error_and_no_end(opened):
    with pytest.raises(OSError, match="shorter"):
        list(InFile(opened, len(BLOB) + 100, 6).pieces())


def test_it_is_lent_as_what_is_in_memory_is(opened):
    attachments = [b"small", InFile(opened, len(BLOB), 6), b"last"]
    assert not frames.are_inline([InFile(os.dup(opened), 1)])
    limits = UnitLimits(1.0, 1, 1)
    frame = frames.encode_request(frames.Run("id", ("a", "b", "c"), limits), attachments)
    _, sizes, inline, _ = frames.decode_request(frame[1])
    assert (sizes, inline) == ((5, len(BLOB), 4), False)
    lent = lend(attachments, 0)
    assert [bytes(view) for view in map_request(lent.request, sizes)] == [
        b"small",
        BLOB,
        b"last",
    ]
    lent.close()


def test_large_parts_of_an_answer_stay_where_they_are():
    lent = lend([], 1 << 20)
    os.pwrite(lent.answer, b"abc" + BLOB[:5000], 0)
    small, large = read_answer(lent.answer, [3, 5000], 4000)
    lent.close()
    assert small == b"abc"
    assert b"".join(large.pieces()) == BLOB[:5000]
