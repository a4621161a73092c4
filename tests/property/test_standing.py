"""The ledger of offences, whatever is done to it: by many keys, in any order, at any pace."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from shoal.crypto.peer_id import PeerId
from shoal.node.standing import (
    CUT_LIMIT_S,
    FIRST_CUT_S,
    FULL,
    RULES,
    SPARED_CUT_LIMIT_S,
    Offence,
    Standing,
)

MALLORY, FRIEND = PeerId("mallory"), PeerId("friend")
LIMIT = 4

offences = st.sampled_from(Offence)
pauses_s = st.one_of(st.just(0.0), st.floats(0.0, 30.0), st.floats(0.0, 7200.0))
peers = st.one_of(
    st.sampled_from([MALLORY, FRIEND]), st.integers(0, 30).map(lambda n: PeerId(f"key{n}"))
)
stories = st.lists(st.tuples(peers, offences, pauses_s), max_size=120)


@given(stories, st.integers(1, 8))
def test_it_knows_of_each_peer_what_an_endless_table_knows_until_enough_others_offended(
    story, limit
):
    """The model: a table without bounds, and for each peer who offended since it did."""
    bounded = Standing(spared={FRIEND}, limit=limit)
    endless = Standing(spared={FRIEND}, limit=1 << 30)
    since: dict[PeerId, set[PeerId]] = {}
    forgotten: set[PeerId] = set()
    now_s = 0.0
    for peer, offence, pause_s in story:
        now_s += pause_s
        if peer in forgotten:  # begins anew: from here on it is another to the model
            endless.forgive(peer)
            forgotten.discard(peer)
        cut = bounded.note(peer, offence, now_s)
        assert cut == endless.note(peer, offence, now_s)
        for other, offenders in since.items():
            if other not in (peer, FRIEND) and peer != FRIEND:
                offenders.add(peer)
                if len(offenders) >= limit:
                    forgotten.add(other)
        since[peer] = set()
        for known in since.keys() - forgotten:
            assert bounded.record(known, now_s) == endless.record(known, now_s)
        assert len(bounded.records(now_s)) <= limit + 1


@given(
    offences,
    st.lists(st.lists(st.integers(0, 200), max_size=LIMIT - 1), min_size=120, max_size=120),
)
@settings(max_examples=50)
def test_who_goes_on_offending_is_cut_whatever_other_keys_do_in_between(offence, between):
    standing = Standing(limit=LIMIT)
    now_s, needed = 0.0, 0
    for others in between:
        now_s += 1.0
        needed += 1
        if standing.note(MALLORY, offence, now_s) is not None:
            break
        for number in others:  # fewer than the table holds
            standing.note(PeerId(f"key{number}"), Offence.BAD_BLOB, now_s)
    assert standing.cut_for(MALLORY, now_s) is not None
    assert needed <= FULL / RULES[offence].weight * 1.2 + 1


@given(stories)
@example(
    [(PeerId("key0"), Offence.BAD_RESULT, s) for s in (0, 3.835373664523736, 4.835373664523736)]
)
def test_a_cut_lasts_as_long_as_it_may_and_standing_is_never_out_of_bounds(story):
    standing = Standing(spared={FRIEND})
    now_s = 0.0
    for peer, offence, pause_s in story:
        now_s += pause_s
        cut = standing.note(peer, offence, now_s)
        if cut is not None:
            length_s = round(cut.cut_until_s - now_s, 6)  # the clock adds up in floats
            limit_s = SPARED_CUT_LIMIT_S if peer == FRIEND else CUT_LIMIT_S
            assert 0.0 < length_s <= limit_s
            assert peer == FRIEND or length_s >= FIRST_CUT_S
        for record in standing.records(now_s):
            assert 0.0 <= record.standing < FULL
            assert (record.cut_until_s is None) == (
                standing.cut_for(record.peer, now_s) is None
            )
    assert standing.records(now_s + CUT_LIMIT_S + 3600.0) == []


@given(stories)
def test_friends_are_never_forgotten_for_strangers(story):
    """Whatever strangers do has no bearing on what is known of a friend."""
    crowded = Standing(spared={FRIEND}, limit=1)
    alone = Standing(spared={FRIEND})
    now_s = 0.0
    for peer, offence, pause_s in story:
        now_s += pause_s
        crowded.note(peer, offence, now_s)
        if peer == FRIEND:
            alone.note(peer, offence, now_s)
    assert crowded.record(FRIEND, now_s) == alone.record(FRIEND, now_s)
