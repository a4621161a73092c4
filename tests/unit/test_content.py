import pytest
from blake3 import blake3

from shoal.crypto.content import (
    CHUNK_SIZE_BYTES,
    BlobHasher,
    ChunkList,
    blob_id_of,
    check_blob_id,
    chunk_list_of,
    decode_chunk_list,
)
from shoal.crypto.errors import VerificationError

BORDER_SIZES = (
    0,
    1,
    CHUNK_SIZE_BYTES - 1,
    CHUNK_SIZE_BYTES,
    CHUNK_SIZE_BYTES + 1,
    2 * CHUNK_SIZE_BYTES,
    2 * CHUNK_SIZE_BYTES + 1,
)


def blob_of(size_bytes):
    return blake3(b"blob").digest(size_bytes)


def test_the_id_is_the_hash_of_the_size_and_the_chunks_hashes():
    blob = blob_of(CHUNK_SIZE_BYTES + 5)
    first, second = blob[:CHUNK_SIZE_BYTES], blob[CHUNK_SIZE_BYTES:]
    by_hand = blake3(
        len(blob).to_bytes(8, "little") + blake3(first).digest() + blake3(second).digest()
    )
    assert blob_id_of(blob) == by_hand.hexdigest()


def test_ids_never_change():
    assert blob_id_of(b"") == "71e0a99173564931c0b8acc52d2685a8e39c64dc52e3d02390fdac2a12b155cb"
    assert (
        blob_id_of(b"shoal")
        == "741e9c8b7a933fcb1b52d946737a0d36c823c68835d69003f8aec02f4d56a234"
    )


@pytest.mark.parametrize("size_bytes", BORDER_SIZES)
def test_sizes_around_a_chunks_border(size_bytes):
    chunks = chunk_list_of(blob_of(size_bytes))
    assert chunks.size_bytes == size_bytes
    assert len(chunks.digests) == -(-size_bytes // CHUNK_SIZE_BYTES)
    sizes = [chunks.chunk_size_bytes(index) for index in range(len(chunks.digests))]
    assert sum(sizes) == size_bytes
    assert all(size == CHUNK_SIZE_BYTES for size in sizes[:-1])
    assert decode_chunk_list(chunks.encode(), chunks.blob_id) == chunks


@pytest.mark.parametrize("size_bytes", BORDER_SIZES)
def test_every_chunk_passes_its_check_and_no_other_does(size_bytes):
    blob = blob_of(size_bytes)
    chunks = chunk_list_of(blob)
    for index in range(len(chunks.digests)):
        chunk = blob[index * CHUNK_SIZE_BYTES : (index + 1) * CHUNK_SIZE_BYTES]
        chunks.check_chunk(index, chunk)
        chunks.check_chunk(index, memoryview(bytearray(chunk)))
        flipped = bytes([chunk[0] ^ 1]) + chunk[1:]
        for wrong in (flipped, chunk[:-1], chunk + b"\0", b""):
            with pytest.raises(VerificationError) as caught:
                chunks.check_chunk(index, wrong)
            assert caught.value.code == "bad_chunk"


@pytest.mark.parametrize("index", [-1, 1, 1 << 40])
def test_a_chunk_that_does_not_exist_is_named_as_such(index):
    with pytest.raises(VerificationError) as caught:
        chunk_list_of(b"one chunk").check_chunk(index, b"one chunk")
    assert caught.value.code == "no_such_chunk"


def test_a_chunk_list_of_another_blob_is_refused():
    with pytest.raises(VerificationError) as caught:
        decode_chunk_list(chunk_list_of(b"one").encode(), blob_id_of(b"another"))
    assert caught.value.code == "bad_chunk_list"


@pytest.mark.parametrize("size_bytes", range(8))
def test_a_list_too_short_for_a_size_gives_the_empty_blob_no_second_id(size_bytes):
    data = bytes(size_bytes)
    with pytest.raises(VerificationError):
        decode_chunk_list(data, blake3(data).hexdigest())


@pytest.mark.parametrize("claimed_bytes", [0, CHUNK_SIZE_BYTES + 1, (1 << 64) - 1])
def test_a_list_whose_size_and_digests_disagree_is_refused_though_its_id_fits(claimed_bytes):
    liar = ChunkList(claimed_bytes, chunk_list_of(b"one chunk").digests)
    with pytest.raises(VerificationError):
        decode_chunk_list(liar.encode(), liar.blob_id)


def test_views_of_any_shape_hash_as_their_bytes():
    blob = bytes(range(24))
    assert blob_id_of(memoryview(blob).cast("I")) == blob_id_of(blob)
    assert blob_id_of(memoryview(blob).cast("B", (4, 6))) == blob_id_of(blob)
    assert blob_id_of(memoryview(b"")) == blob_id_of(b"")


def test_an_array_without_elements_hashes_as_the_empty_blob():
    numpy = pytest.importorskip("numpy")
    assert blob_id_of(memoryview(numpy.zeros((0, 3)))) == blob_id_of(b"")


def test_a_hasher_that_took_nothing_describes_the_empty_blob():
    assert BlobHasher().finish() == chunk_list_of(b"") == ChunkList(0, ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ab",
        "A" * 64,
        "g" * 64,
        "a" * 63,
        "a" * 65,
        "a" * 63 + "\n",
        "a" * 64 + "\n",
        "٣" * 64,
    ],
)
def test_what_is_not_64_lower_case_hex_digits_is_no_blob_id(text):
    with pytest.raises(VerificationError) as caught:
        check_blob_id(text)
    assert caught.value.code == "bad_blob_id"


def test_a_blob_id_is_given_back():
    assert check_blob_id("0123456789abcdef" * 4) == "0123456789abcdef" * 4
