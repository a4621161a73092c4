"""Kept outputs: only for their requester and whom it named, within bounds, by rank."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node import kept_outputs
from shoal.node.bidding import FRIEND, STRANGER
from shoal.node.kept_outputs import (
    KEPT_S,
    KEPT_SHARE,
    SHARED_WITH_LIMIT,
    STRANGERS_KEPT_SHARE,
    KeptOutputs,
)

RANKS = {
    PeerId("anna"): FRIEND,
    PeerId("bert"): FRIEND,
    PeerId("mallory"): STRANGER,
    PeerId("trudy"): STRANGER,
}
PEERS = [*RANKS]
ANNA, BERT, MALLORY, TRUDY = PEERS
BLOBS = [blob_id_of(bytes([n])) for n in range(6)]
SIZES = dict(zip(BLOBS, (10, 20, 30, 40, 5, 60), strict=True))
QUOTA = 200

peers, blobs = st.sampled_from(PEERS), st.sampled_from(BLOBS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("keep"), peers, st.sets(blobs, min_size=1, max_size=3)),
        st.tuples(st.just("share"), peers, blobs, peers),
        st.tuples(st.just("drop"), peers, blobs),
        st.tuples(st.just("lose"), blobs),
        st.tuples(st.just("pass"), st.sampled_from([1.0, KEPT_S / 2, KEPT_S])),
    ),
    max_size=40,
)


class Model:
    """The same by the plainest means: (requester, blob) in order of use, with its shares."""

    def __init__(self):
        self.entries = {}
        self.now_s = 0.0

    def use(self, key):
        _, shares = self.entries.pop(key)
        self.entries[key] = (self.now_s, shares)

    def bytes_of(self, rank=None):
        return sum(SIZES[blob] for peer, blob in self.entries if rank in {None, RANKS[peer]})

    def blobs(self):
        return {blob for _, blob in self.entries}

    def keep(self, peer, wanted):
        new = [blob for blob in wanted if (peer, blob) not in self.entries]
        added, rank = sum(SIZES[blob] for blob in new), RANKS[peer]
        if rank == STRANGER and (
            self.bytes_of(STRANGER) + added > STRANGERS_KEPT_SHARE * QUOTA
        ):
            return False
        lower = [key for key in self.entries if RANKS[key[0]] > rank]
        out = []
        while self.bytes_of() - sum(SIZES[b] for _, b in out) + added > KEPT_SHARE * QUOTA:
            if not lower:
                return False
            out.append(lower.pop(0))
        for key in out:
            del self.entries[key]
        for blob in wanted:
            self.entries.setdefault((peer, blob), (self.now_s, set()))
        return True


@given(steps)
def test_it_keeps_what_a_plain_list_in_order_of_use_keeps(steps):  # noqa: C901  # a case per step
    table, model = KeptOutputs(), Model()
    for step in steps:
        before = model.blobs()
        match step:
            case "keep", peer, wanted:
                wanted = sorted(wanted)
                sizes = {blob: SIZES[blob] for blob in wanted}
                gone = table.keep(peer, RANKS[peer], sizes, QUOTA, model.now_s)
                taken = model.keep(peer, wanted)
                assert (gone is not None) == taken
                if taken:
                    assert gone == before - model.blobs()
                    for blob in wanted:
                        model.use((peer, blob))
            case "share", peer, blob, other:
                missing = table.share(peer, [blob], other, model.now_s)
                assert missing == (() if (peer, blob) in model.entries else (blob,))
                if not missing:
                    model.entries[peer, blob][1].add(other)
                    model.use((peer, blob))
            case "drop", peer, blob:
                model.entries.pop((peer, blob), None)
                assert table.drop(peer, [blob]) == before - model.blobs()
            case "lose", blob:
                model.entries = {k: v for k, v in model.entries.items() if k[1] != blob}
                assert table.forget([blob]) == before - model.blobs()
            case "pass", seconds:
                model.now_s += seconds
                model.entries = {
                    key: value
                    for key, value in model.entries.items()
                    if model.now_s - value[0] < KEPT_S
                }
                assert table.expire(model.now_s) == before - model.blobs()
        assert len(table) == len(model.entries)
        assert table.size_bytes == model.bytes_of() <= KEPT_SHARE * QUOTA
        assert table.size_bytes >= 0
        assert set(table.blobs()) == model.blobs()
        for blob in BLOBS:
            keepers = [peer for peer in PEERS if (peer, blob) in model.entries]
            assert table.rank(blob) == min((RANKS[peer] for peer in keepers), default=None)
    for peer in PEERS:
        for blob in BLOBS:
            for requester in (None, *PEERS):
                entry = model.entries.get((requester or peer, blob))
                may = entry is not None and (requester in {None, peer} or peer in entry[1])
                assert table.allows(peer, blob, requester, model.now_s) == may


def test_a_share_is_of_one_requester_and_no_right_in_anothers_name():
    table = KeptOutputs()
    for requester in (ANNA, MALLORY):
        table.keep(requester, RANKS[requester], {BLOBS[0]: 1}, QUOTA, 0.0)
    assert table.share(ANNA, [BLOBS[0]], BERT, 0.0) == ()
    assert table.allows(BERT, BLOBS[0], ANNA, 0.0)
    assert not table.allows(BERT, BLOBS[0], MALLORY, 0.0)
    assert not table.allows(BERT, BLOBS[0], None, 0.0)
    assert not table.allows(TRUDY, BLOBS[0], ANNA, 0.0)


def test_of_very_many_shares_the_first_goes():
    table = KeptOutputs()
    table.keep(ANNA, FRIEND, {BLOBS[0]: 1}, QUOTA, 0.0)
    others = [PeerId(f"peer {n}") for n in range(SHARED_WITH_LIMIT + 1)]
    for other in others:
        table.share(ANNA, BLOBS[:1], other, 0.0)
    assert [table.allows(other, BLOBS[0], ANNA, 0.0) for other in others] == [False] + [
        True
    ] * SHARED_WITH_LIMIT


def test_very_many_empty_outputs_are_too_many(monkeypatch):
    monkeypatch.setattr(kept_outputs, "KEPT_LIMIT", 4)
    monkeypatch.setattr(kept_outputs, "STRANGERS_KEPT_LIMIT", 2)
    table = KeptOutputs()
    assert table.keep(MALLORY, STRANGER, dict.fromkeys(BLOBS[:2], 0), QUOTA, 0.0) == set()
    assert table.keep(MALLORY, STRANGER, {BLOBS[2]: 0}, QUOTA, 0.0) is None
    friends = dict.fromkeys(BLOBS[2:5], 0)
    assert table.keep(ANNA, FRIEND, friends, QUOTA, 0.0) == {BLOBS[0]}
    assert table.keep(ANNA, FRIEND, dict.fromkeys(BLOBS, 0), QUOTA, 0.0) is None
    assert len(table) == 4


@pytest.mark.parametrize("rank", [FRIEND, STRANGER])
def test_nobody_pushes_out_their_like(rank):
    table = KeptOutputs()
    share = KEPT_SHARE if rank == FRIEND else STRANGERS_KEPT_SHARE
    assert table.keep(ANNA, rank, {BLOBS[0]: int(share * QUOTA)}, QUOTA, 0.0) == set()
    assert table.keep(BERT, rank, {BLOBS[1]: 1}, QUOTA, 1.0) is None
    assert table.keeps(ANNA, BLOBS[0])
