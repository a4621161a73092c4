"""Both sides of lent memory in one process: copies are equal, and seals hold."""

import mmap
import os
import resource

import pytest

from shoal.compute import lent_memory
from shoal.compute.lent_memory import ALIGNMENT_BYTES, lend, map_request, read_answer


@pytest.fixture
def lent():
    memory = lend([b"one", b"", b"three" * 100], 1000)
    yield memory
    memory.close()


def test_attachments_arrive_aligned_and_cannot_be_changed(lent):
    first, second, third = map_request(lent.request, (3, 0, 500))
    assert (bytes(first), bytes(second), bytes(third)) == (b"one", b"", b"three" * 100)
    assert os.pread(lent.request, 5, ALIGNMENT_BYTES) == b"three"
    with pytest.raises(TypeError):
        first[0] = 0


@pytest.mark.parametrize(
    "deed",
    [
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: os.ftruncate(fd, 0),
        lambda fd: os.ftruncate(fd, 1 << 20),
        lambda fd: mmap.mmap(fd, 64, mmap.MAP_SHARED, mmap.PROT_WRITE),
    ],
    ids=["write", "shrink", "grow", "map for writing"],
)
def test_a_request_s_memory_is_sealed_against_any_change(lent, deed):
    with pytest.raises(PermissionError):
        deed(lent.request)


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_an_answer_s_memory_keeps_its_size(lent, size):
    with pytest.raises(PermissionError):
        os.ftruncate(lent.answer, size)


def test_an_answer_is_read_as_it_was_written(lent):
    lent_memory.write_answer(lent.answer, [b"ab", b"", b"cde"])
    assert read_answer(lent.answer, (2, 0, 3)) == [b"ab", b"", b"cde"]


def test_what_was_read_does_not_change_when_the_memory_does(lent):
    lent_memory.write_answer(lent.answer, [b"honest"])
    (copy,) = read_answer(lent.answer, (6,))
    lent_memory.write_answer(lent.answer, [b"forged"])
    assert copy == b"honest"


def test_an_answer_beyond_the_memory_is_an_error_and_no_signal(lent):
    with pytest.raises(OSError, match="larger than the memory"):
        read_answer(lent.answer, (999, 2))


def test_nothing_is_lent_where_nothing_is_needed():
    assert lend((), 0).descriptors == ()


def test_no_descriptor_is_left_when_there_is_one_too_few():
    lowest = os.memfd_create("lowest")
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            lend([b"x"], 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(lowest)


def test_memory_lent_for_an_answer_costs_nothing_until_it_is_written():
    memory = lend((), 1 << 40)
    try:
        assert os.fstat(memory.answer).st_blocks == 0
    finally:
        memory.close()
