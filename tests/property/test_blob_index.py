"""What has to go when room is needed: enough, no more, nothing pinned, oldest first."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.crypto.content import BlobId
from shoal.node.blob_index import BlobIndex
from shoal.node.errors import StoreError

names = [BlobId(f"{n:064x}") for n in range(12)]
sizes = st.integers(0, 100)


@given(
    held=st.dictionaries(st.sampled_from(names[:8]), sizes),
    unfinished=st.dictionaries(st.sampled_from(names[8:]), sizes),
    pinned=st.sets(st.sampled_from(names)),
    quota=st.integers(0, 500),
    wanted=sizes,
)
def test_what_goes_is_enough_and_no_more_and_never_pinned(
    held, unfinished, pinned, quota, wanted
):
    index = BlobIndex(quota, held.items(), unfinished.items())
    for blob_id in pinned:
        index.pin(blob_id, "a job")
    in_order = [*unfinished, *(blob_id for blob_id in held if blob_id not in pinned)]
    kept_bytes = sum(size for blob_id, size in held.items() if blob_id in pinned)
    if kept_bytes + wanted > quota:
        with pytest.raises(StoreError) as caught:
            index.victims(wanted)
        assert caught.value.code == "quota_exceeded"
        assert caught.value.hint
        return
    victims = index.victims(wanted)
    assert victims == in_order[: len(victims)]
    for blob_id in victims[:-1]:
        index.forget(blob_id)
    if victims:
        assert index.used_bytes + wanted > quota  # one fewer would not have been enough
        index.forget(victims[-1])
    assert index.used_bytes + wanted <= quota
    assert index.used_bytes == sum(index.held.values()) + sum(index.unfinished.values())


def test_a_blob_pinned_by_two_stays_until_both_let_go():
    blob_id = names[0]
    index = BlobIndex(10, [(blob_id, 10)])
    index.pin(blob_id, "job 1")
    index.pin(blob_id, "lease 2")
    index.unpin("job 1")
    with pytest.raises(StoreError, match="no room"):
        index.victims(1)
    index.unpin("lease 2")
    assert index.victims(1) == [blob_id]


def test_the_blob_used_last_goes_last():
    index = BlobIndex(30, [(name, 10) for name in names[:3]])
    index.touch(names[0])
    assert index.victims(15) == [names[1], names[2]]


def test_what_is_kept_goes_after_all_else_and_strangers_first():
    index = BlobIndex(50, [(name, 10) for name in names[:5]])
    index.keep_longer(names[0], 1)
    index.keep_longer(names[1], 2)
    index.keep_longer(names[2], 2)
    index.pin(names[3], "job")
    assert index.victims(40) == [names[4], names[1], names[2], names[0]]
    index.let_go(names[2])
    assert index.victims(10) == [names[2]]
    index.pin(names[1], "reader")
    with pytest.raises(StoreError, match="no room"):
        index.victims(40)
