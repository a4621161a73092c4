"""What peers are known to have: nothing that was not noted, and no more than the bounds."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node.known_blobs import KnownBlobs

PEERS = [PeerId(name) for name in ("alice", "bob", "mallory")]
BLOBS = [blob_id_of(bytes([n])) for n in range(6)]
ALICE, BOB, MALLORY = PEERS

entries = st.tuples(st.sampled_from(PEERS), st.sampled_from(BLOBS))
steps = st.lists(st.tuples(st.sampled_from(["note", "has"]), entries), max_size=60)


@given(steps, st.integers(1, 6), st.integers(1, 12))
def test_it_says_what_a_table_in_order_of_use_says(steps, peer_limit, limit):
    """The model: one list of entries, last used last, and peers in order of theirs."""
    known, used = KnownBlobs(peer_limit=peer_limit, limit=limit), []
    for step, entry in steps:
        if step == "has":
            assert known.has(*entry) == (entry in used)
            if entry not in used:
                continue
        else:
            known.note(entry[0], [entry[1]])
        used = [*(other for other in used if other != entry), entry]
        of_peer = [other for other in used if other[0] == entry[0]]
        if len(of_peer) > min(peer_limit, limit):
            used.remove(of_peer[0])
        elif len(used) > limit:
            last_use = {peer: place for place, (peer, _) in enumerate(used)}
            silent = min(last_use, key=last_use.get)
            used.remove(next(other for other in used if other[0] == silent))
        assert len(known) == len(used)
    for entry in used:
        assert known.has(*entry)


def test_what_one_peer_has_another_has_not():
    known = KnownBlobs()
    known.note(ALICE, BLOBS[:2])
    assert known.has(ALICE, BLOBS[1])
    assert not known.has(MALLORY, BLOBS[1])
    assert not known.has(ALICE, BLOBS[2])


def test_a_peer_with_many_blobs_pushes_out_its_own_and_nobody_elses():
    known = KnownBlobs(peer_limit=3, limit=100)
    known.note(ALICE, BLOBS[:1])
    known.note(MALLORY, BLOBS)
    assert known.has(ALICE, BLOBS[0])
    assert [known.has(MALLORY, blob) for blob in BLOBS] == [False] * 3 + [True] * 3


def test_where_all_are_too_many_who_was_longest_silent_loses_what_it_used_longest_ago():
    known = KnownBlobs(peer_limit=3, limit=4)
    known.note(ALICE, BLOBS[:2])
    known.note(BOB, BLOBS[:2])
    assert known.has(ALICE, BLOBS[0])
    known.note(MALLORY, BLOBS[:1])
    assert not known.has(BOB, BLOBS[0])
    assert len(known) == 4
