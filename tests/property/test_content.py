from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.crypto.content import CHUNK_SIZE_BYTES, BlobHasher, chunk_list_of

BLOB = bytes(range(256)) * (3 * CHUNK_SIZE_BYTES // 256)

near_borders = st.integers(0, 3).flatmap(
    lambda chunks: st.integers(-2, 2).map(
        lambda off: min(max(chunks * CHUNK_SIZE_BYTES + off, 0), len(BLOB))
    )
)
sizes = near_borders | st.integers(0, len(BLOB))


@settings(max_examples=60, deadline=None)
@given(size_bytes=sizes, cuts=st.lists(sizes, max_size=6))
def test_pieces_of_any_size_give_the_chunk_list_of_the_whole(size_bytes, cuts):
    blob = memoryview(BLOB)[:size_bytes]
    hasher = BlobHasher()
    borders = sorted(min(cut, size_bytes) for cut in cuts)
    for start, end in zip([0, *borders], [*borders, size_bytes], strict=True):
        hasher.update(blob[start:end])
    assert hasher.finish() == chunk_list_of(blob)
