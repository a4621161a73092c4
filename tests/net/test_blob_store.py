"""The blob store on a real file system: what is kept, what goes, what a crash leaves."""

import os
import resource
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import models
import pytest
import trio

from shoal.compute.convert import convert
from shoal.crypto.content import CHUNK_SIZE_BYTES, blob_id_of, chunk_list_of
from shoal.crypto.errors import VerificationError
from shoal.node.blobs import open_store
from shoal.node.errors import StoreError
from shoal.node.house import program_of

MIB = 1 << 20
QUOTA_BYTES = 64 * MIB


async def pieces(data: bytes, size_bytes: int):
    for at in range(0, len(data), size_bytes):
        yield data[at : at + size_bytes]


def files_under(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def place_of(directory: Path, data: bytes) -> Path:
    blob_id = blob_id_of(data)
    return directory / blob_id[:2] / blob_id


@contextmanager
def files_no_larger_than(size_bytes: int):
    """Make the kernel refuse to write on, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, MIB, MIB + 1, 3 * MIB + 5])
async def test_a_blob_comes_out_as_it_went_in_also_after_a_restart(tmp_path, size):
    data = os.urandom(size)
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        assert (await store.put(pieces(data, 100_000))) == chunk_list_of(data)
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        blob_id = blob_id_of(data)
        assert store.holds(blob_id)
        assert store.size_bytes(blob_id) == store.used_bytes == size
        assert await store.get_bytes(blob_id) == data
        assert b"".join([chunk async for chunk in store.read_chunks(blob_id)]) == data
        assert await store.chunk_list(blob_id) == chunk_list_of(data)
        assert place_of(tmp_path, data).read_bytes() == data


async def test_a_blob_that_is_not_held_is_named_in_the_error(tmp_path):
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        blob_id = blob_id_of(b"elsewhere")
        assert not store.holds(blob_id)
        with pytest.raises(StoreError, match=blob_id) as caught:
            await store.get_bytes(blob_id)
        assert caught.value.code == "blob_missing"
        assert caught.value.hint


async def test_the_same_bytes_put_twice_at_once_are_stored_and_counted_once(tmp_path):
    data = os.urandom(2 * MIB)
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.put, pieces(data, MIB))
            nursery.start_soon(store.put_bytes, data)
        assert store.used_bytes == len(data)
        assert len(files_under(tmp_path)) == 2  # the blob and its chunk list


async def test_the_blob_used_longest_ago_goes_first_also_after_a_restart(tmp_path):
    blobs = [os.urandom(1000) for _ in range(3)]
    async with open_store(tmp_path, 3000) as store:
        first, second, third = [await store.put_bytes(blob) for blob in blobs]
        for age, blob in enumerate(reversed(blobs)):
            os.utime(place_of(tmp_path, blob), (1e9 - age, 1e9 - age))
        await store.get_bytes(first)
    async with open_store(tmp_path, 3000) as store:
        await store.put_bytes(os.urandom(1000))
        assert [store.holds(b) for b in (first, second, third)] == [True, False, True]
        await store.get_bytes(first)
        await store.put_bytes(os.urandom(1000))
        assert [store.holds(b) for b in (first, second, third)] == [True, False, False]
        assert store.used_bytes == 3000
        assert len(files_under(tmp_path)) == 3


async def test_a_program_that_was_asked_for_outlives_older_inputs_when_a_large_one_comes(
    tmp_path,
):
    program = convert(models.dense())
    inputs = [os.urandom(MIB) for _ in range(3)]
    quota_bytes = 2 * MIB + sum(map(len, program.blobs.values()))
    async with open_store(tmp_path, quota_bytes) as store:
        for blob in (*program.blobs.values(), *inputs[:2]):
            await store.put_bytes(blob)
        await program_of(store, program.program_id)
        await store.put_bytes(inputs[2])
        await program_of(store, program.program_id)
        assert [store.holds(blob_id_of(one)) for one in inputs] == [False, True, True]


async def test_when_nothing_may_go_a_blob_is_refused_and_nothing_is_removed(tmp_path):
    async with open_store(tmp_path, 3 * MIB) as store:
        pinned = await store.put_bytes(os.urandom(2 * MIB))
        idle = await store.put_bytes(os.urandom(1000))
        store.pin(pinned, "a job")
        before = files_under(tmp_path)
        for put in (
            store.put(pieces(bytes(2 * MIB), 2 * MIB)),
            store.put_bytes(bytes(2 * MIB)),
        ):
            with pytest.raises(StoreError) as caught:
                await put
            assert caught.value.code == "quota_exceeded"
            assert "blob_quota" in caught.value.hint
        assert store.holds(idle)
        assert files_under(tmp_path) == before
        store.unpin("a job")
        await store.put_bytes(bytes(2 * MIB))
        assert not store.holds(pinned)


async def test_a_smaller_quota_at_the_next_start_is_kept(tmp_path):
    async with open_store(tmp_path, 4 * MIB) as store:
        for _ in range(4):
            await store.put_bytes(os.urandom(MIB))
    async with open_store(tmp_path, 2 * MIB) as store:
        assert store.used_bytes == 2 * MIB


async def test_a_full_disk_is_said_and_leaves_nothing_half_written(tmp_path):
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        data = os.urandom(4 * MIB)
        with files_no_larger_than(MIB + 1000):
            for put in (store.put(pieces(data, MIB)), store.put_bytes(data)):
                with pytest.raises(StoreError) as caught:
                    await put
                assert caught.value.code == "disk_full"
                assert caught.value.hint
        assert files_under(tmp_path) == set()
        assert store.used_bytes == 0
        assert await store.get_bytes(await store.put_bytes(data)) == data


async def test_a_transfer_that_meets_a_full_disk_keeps_its_checked_chunks(tmp_path):
    data = os.urandom(3 * MIB)
    chunks = chunk_list_of(data)
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        async with store.receive(chunks.blob_id) as reception:
            await reception.begin(chunks)
            await reception.write_chunk(0, data[:MIB])
            with files_no_larger_than(MIB + 1000), pytest.raises(StoreError) as caught:
                await reception.write_chunk(1, data[MIB : 2 * MIB])
            assert caught.value.code == "disk_full"
        assert not store.holds(chunks.blob_id)
        async with store.receive(chunks.blob_id) as reception:
            assert reception.missing_chunks() == [1, 2]


async def test_a_put_that_is_cancelled_or_fails_leaves_nothing(tmp_path):
    async def breaks_off():
        yield bytes(2 * MIB)
        raise ConnectionResetError

    stalled = trio.Event()

    async def stalls():
        yield bytes(2 * MIB)
        stalled.set()
        await trio.sleep_forever()

    async with open_store(tmp_path, QUOTA_BYTES) as store:
        with pytest.raises(ConnectionResetError):
            await store.put(breaks_off())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.put, stalls())
            await stalled.wait()
            assert files_under(tmp_path)
            nursery.cancel_scope.cancel()
        assert store.used_bytes == 0
        assert files_under(tmp_path) == set()


async def test_what_a_killed_daemon_was_writing_is_removed_at_the_next_start(tmp_path):
    writer = await trio.lowlevel.open_process(
        [sys.executable, "-c", _ENDLESS_WRITER, str(tmp_path)], stdout=subprocess.PIPE
    )
    said = b""
    async for some in writer.stdout:
        said += some
        if said.count(b"\n") >= 12:
            writer.kill()
    await writer.wait()
    told = said.decode().split()
    async with open_store(tmp_path, 1 << 40) as store:
        for blob_id in told:
            assert blob_id_of(await store.get_bytes(blob_id)) == blob_id
        assert not list((tmp_path / "tmp").iterdir())
        assert len(files_under(tmp_path)) % 2 == 0  # each blob has its list


_ENDLESS_WRITER = """
import os, sys, trio
from pathlib import Path
from shoal.node.blobs import open_store

async def main():
    async with open_store(Path(sys.argv[1]), 1 << 40) as store:
        while True:
            print(await store.put_bytes(os.urandom(3 << 20)), flush=True)

trio.run(main)
"""


async def test_files_whose_size_cannot_be_right_are_dropped_at_the_start(tmp_path):
    large, small, foreign = os.urandom(2 * MIB), os.urandom(10), tmp_path / "ab" / "README"
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        await store.put_bytes(large)
        await store.put_bytes(small)
    os.truncate(place_of(tmp_path, large), MIB)
    stale = tmp_path / "tmp" / "stale"
    lone = tmp_path / "ab" / f"{'ab' * 32}.chunks"
    foreign.parent.mkdir(exist_ok=True)
    for path in (stale, lone, foreign):
        path.write_bytes(b"left by someone")
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        assert not store.holds(blob_id_of(large))
        assert store.used_bytes == len(small)
    kept = place_of(tmp_path, small)
    assert files_under(tmp_path) == {str(p.relative_to(tmp_path)) for p in (kept, foreign)}


@pytest.mark.parametrize("size", [10, MIB, 2 * MIB])
@pytest.mark.parametrize("harm", ["flipped", "cut short", "gone"])
async def test_a_blob_damaged_on_disk_is_never_given_out_and_can_be_put_again(
    tmp_path, size, harm
):
    data = os.urandom(size)
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        for read in (store.get_bytes, lambda blob: anext(store.read_chunks(blob))):
            blob_id = await store.put_bytes(data)
            path = place_of(tmp_path, data)
            match harm:
                case "flipped":
                    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
                case "cut short":
                    os.truncate(path, 5)
                case "gone":
                    path.unlink()
            with pytest.raises(StoreError) as caught:
                await read(blob_id)
            assert caught.value.code == "blob_damaged"
            assert not store.holds(blob_id)
            assert store.used_bytes == 0
            assert files_under(tmp_path) == set()


@pytest.mark.parametrize("harm", [None, b"", b"nonsense"])
async def test_a_chunk_list_that_got_lost_is_made_again(tmp_path, harm):
    data = os.urandom(3 * MIB)
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        blob_id = await store.put_bytes(data)
        path = place_of(tmp_path, data)
        beside = path.with_name(f"{path.name}.chunks")
        if harm is None:
            beside.unlink()
        else:
            beside.write_bytes(harm)
        assert await store.chunk_list(blob_id) == chunk_list_of(data)
        assert beside.read_bytes() == chunk_list_of(data).encode()


async def test_chunks_may_come_in_any_order_and_only_as_they_are_listed(tmp_path):
    data = os.urandom(2 * MIB + 7)
    chunks = chunk_list_of(data)
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        async with store.receive(chunks.blob_id) as reception:
            await reception.begin(chunks)
            assert store.used_bytes == len(data)  # room for all of it is promised
            for index in (2, 0, 1):
                chunk = data[index * CHUNK_SIZE_BYTES :][:CHUNK_SIZE_BYTES]
                with pytest.raises(VerificationError):
                    await reception.write_chunk(index, bytes(len(chunk)))
                assert index in reception.missing_chunks()
                await reception.write_chunk(index, chunk)
            assert not store.holds(chunks.blob_id)
            await reception.finish()
        assert await store.get_bytes(chunks.blob_id) == data
        assert store.used_bytes == len(data)
        assert len(files_under(tmp_path)) == 2


async def test_a_transfer_resumes_after_a_restart_with_what_is_proved_by_its_bytes(tmp_path):
    data = os.urandom(4 * MIB)
    chunks = chunk_list_of(data)
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        async with store.receive(chunks.blob_id) as reception:
            await reception.begin(chunks)
            for index in (0, 1, 3):
                await reception.write_chunk(index, data[index * MIB : (index + 1) * MIB])
        assert not store.holds(chunks.blob_id)
    with (tmp_path / "partial" / chunks.blob_id).open("r+b") as partial:
        partial.write(b"a bad sector")
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        assert store.used_bytes == 4 * MIB
        async with store.receive(chunks.blob_id) as reception:
            assert reception.chunk_list == chunks
            assert reception.missing_chunks() == [0, 2]
            for index in (0, 2):
                await reception.write_chunk(index, data[index * MIB : (index + 1) * MIB])
            await reception.finish()
        assert await store.get_bytes(chunks.blob_id) == data
        assert store.used_bytes == 4 * MIB
        assert not list((tmp_path / "partial").iterdir())


async def test_a_transfer_that_brought_nothing_leaves_nothing(tmp_path):
    chunks = chunk_list_of(bytes(3 * MIB))
    async with open_store(tmp_path, 2 * MIB) as store:
        with pytest.raises(StoreError, match="no room"):
            async with store.receive(chunks.blob_id) as reception:
                await reception.begin(chunks)
        small = chunk_list_of(bytes(2 * MIB))
        async with store.receive(small.blob_id) as reception:
            await reception.begin(small)
        async with store.receive(small.blob_id):
            pass
        assert store.used_bytes == 0
        assert files_under(tmp_path) == set()


async def test_a_transfer_that_is_cancelled_before_its_first_chunk_leaves_nothing(tmp_path):
    chunks = chunk_list_of(bytes(2 * MIB))
    begun = trio.Event()

    async def stalls(store):
        async with store.receive(chunks.blob_id) as reception:
            await reception.begin(chunks)
            begun.set()
            await trio.sleep_forever()

    async with open_store(tmp_path, QUOTA_BYTES) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stalls, store)
            await begun.wait()
            assert store.used_bytes == 2 * MIB
            nursery.cancel_scope.cancel()
        assert store.used_bytes == 0
        assert files_under(tmp_path) == set()


async def test_a_blob_stays_while_it_is_read_chunk_by_chunk(tmp_path):
    data = os.urandom(2 * MIB)
    async with open_store(tmp_path, 3 * MIB) as store:
        blob_id = await store.put_bytes(data)
        reading = store.read_chunks(blob_id)
        first = await anext(reading)
        with pytest.raises(StoreError, match="no room"):
            await store.put_bytes(bytes(2 * MIB))
        assert first + await anext(reading) == data
        assert [chunk async for chunk in reading] == []
        await store.put_bytes(bytes(2 * MIB))
        assert not store.holds(blob_id)


async def test_an_unfinished_transfer_goes_before_any_blob_and_the_active_one_never(tmp_path):
    async with open_store(tmp_path, 4 * MIB) as store:
        blob_id = await store.put_bytes(os.urandom(MIB))
        idle, active = os.urandom(2 * MIB), os.urandom(2 * MIB)
        async with store.receive(blob_id_of(idle)) as reception:
            await reception.begin(chunk_list_of(idle))
            await reception.write_chunk(0, idle[:MIB])
        async with store.receive(blob_id_of(active)) as reception:
            await reception.begin(chunk_list_of(active))
            await reception.write_chunk(0, active[:MIB])
            await store.put_bytes(os.urandom(MIB))
            assert store.holds(blob_id)
            assert not (tmp_path / "partial" / blob_id_of(idle)).exists()
            await reception.write_chunk(1, active[MIB:])
            await reception.finish()
        assert store.used_bytes == 4 * MIB


async def test_a_blob_submitted_while_its_transfer_lies_idle_or_runs_is_held_once(tmp_path):
    data = os.urandom(2 * MIB)
    chunks = chunk_list_of(data)
    async with open_store(tmp_path, QUOTA_BYTES) as store:
        async with store.receive(chunks.blob_id) as reception:
            await reception.begin(chunks)
            await reception.write_chunk(0, data[:MIB])
        await store.put_bytes(data)
        assert store.used_bytes == len(data)
        os.truncate(place_of(tmp_path, data), 5)
        with pytest.raises(StoreError):
            await store.get_bytes(chunks.blob_id)
        async with store.receive(chunks.blob_id) as reception:
            await reception.begin(chunks)
            for index in (0, 1):
                await reception.write_chunk(index, data[index * MIB : (index + 1) * MIB])
            await store.put_bytes(data)
            await reception.finish()
        assert store.used_bytes == len(data)
        assert len(files_under(tmp_path)) == 2


async def test_two_receptions_of_one_blob_take_turns(tmp_path):
    data = os.urandom(MIB)
    chunks = chunk_list_of(data)
    seen = []

    async def receive(store):
        async with store.receive(chunks.blob_id) as reception:
            seen.append(store.holds(chunks.blob_id))
            if not store.holds(chunks.blob_id):
                await reception.begin(chunks)
                await trio.lowlevel.checkpoint()
                await reception.write_chunk(0, data)
                await reception.finish()

    async with open_store(tmp_path, QUOTA_BYTES) as store, trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(receive, store)
    assert seen == [False, True, True]


async def test_a_directory_that_cannot_be_used_is_named_with_the_next_step(tmp_path):
    (tmp_path / "blobs").write_bytes(b"a file where the directory should be")
    with pytest.raises(StoreError, match="blobs") as caught:
        async with open_store(tmp_path / "blobs", QUOTA_BYTES):
            pass
    assert caught.value.code == "store_unusable"
    assert caught.value.hint
