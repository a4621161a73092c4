"""Standing from results, whatever peers do and however many keys they have."""

import msgspec
from effort import examples
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shoal.crypto.peer_id import PeerId
from shoal.node.result_standing import (
    BAN_S,
    HALF_LIFE_S,
    NEW,
    NEWCOMER_GOOD,
    RULES,
    Deed,
    ResultStanding,
    StandingRow,
)

PEER = PeerId("12D3KooWpeer")
GOOD = [deed for deed, rule in RULES.items() if not rule.bad]
BAD = [deed for deed, rule in RULES.items() if rule.bad]
UNASKED = [deed for deed, rule in RULES.items() if rule.unasked] + [Deed.CONVICTED]

deeds = st.sampled_from(Deed)
pauses_s = st.one_of(st.just(0.0), st.floats(0.0, 3600.0), st.floats(0.0, 40 * 86400.0))
weights = st.sampled_from([0.0, 0.25, 1.0])
stories = st.lists(st.tuples(deeds, pauses_s, weights), max_size=40)


def lived(story, standing=None, start_s=1.7e9):
    standing = standing or ResultStanding()
    now_s = start_s
    for deed, pause_s, weight in story:
        now_s += pause_s
        standing.note(PEER, deed, now_s, weight)
    return standing, now_s


@given(stories, st.integers(0, 40), deeds, weights, pauses_s)
def test_one_more_good_deed_never_lowers_a_value_and_one_more_bad_one_never_raises_it(
    story, at, deed, weight, later_s
):
    at = min(at, len(story))
    longer = [*story[:at], (deed, 0.0, weight), *story[at:]]
    before, now_s = lived(story)
    after, _ = lived(longer)
    now_s += later_s
    was, now = before.of(PEER, now_s), after.of(PEER, now_s)
    if deed in GOOD:
        assert now.value >= was.value - 1e-9
        assert now.good_in_a_row >= was.good_in_a_row
        assert was.newcomer or not now.newcomer
    else:
        assert now.value <= was.value + 1e-9
        assert now.good_in_a_row <= was.good_in_a_row
    assert 0.0 <= now.value <= 1.0


@given(
    stories,
    st.lists(
        st.tuples(st.sampled_from(GOOD), st.floats(0.0, BAN_S / 100), weights), max_size=99
    ),
)
def test_no_sequence_of_good_deeds_makes_a_convicted_peer_whole_before_its_ban_lapses(
    story, good
):
    standing, now_s = lived(story)
    standing.note(PEER, Deed.CONVICTED, now_s)
    until_s = standing.of(PEER, now_s).convicted_until_s
    assert until_s >= now_s + BAN_S
    for deed, pause_s, weight in good:
        now_s += pause_s
        standing.note(PEER, deed, now_s, weight)
        assert standing.of(PEER, now_s).value == 0.0
        assert standing.of(PEER, now_s).convicted_until_s == until_s
    assert standing.of(PEER, until_s - 1.0).value == 0.0
    after = standing.of(PEER, until_s + 1.0)
    assert 0.0 < after.value < 1.0
    assert after.convicted_until_s is None


@given(stories, st.floats(1.0, 20.0))
def test_what_was_is_forgotten_by_halves_and_a_value_goes_back_to_a_newcomers(
    story, half_lives
):
    standing, now_s = lived(story)
    assume(standing.of(PEER, now_s).convicted_until_s is None)
    was = standing.of(PEER, now_s).value
    now = standing.of(PEER, now_s + half_lives * HALF_LIFE_S)
    if was >= NEW.value:
        assert NEW.value - 1e-9 <= now.value <= was + 1e-9
    else:
        assert was - 1e-9 <= now.value <= NEW.value + 1e-9
    longest = standing.of(PEER, now_s + 60 * HALF_LIFE_S)
    assert abs(longest.value - NEW.value) < 1e-6
    assert longest.newcomer
    assert longest.good_in_a_row == 0


LIMIT = 6
floods = st.lists(
    st.tuples(st.integers(0, 500), st.sampled_from(UNASKED), st.floats(0.0, 60.0)),
    max_size=200,
)


@given(floods)
@settings(max_examples=examples(400))
def test_nothing_that_strangers_do_unasked_makes_a_node_forget_whom_it_gave_work_to(flood):
    standing = ResultStanding(limit=LIMIT)
    worked = [PeerId(f"worked{number}") for number in range(LIMIT)]
    now_s = 1.7e9
    for peer in worked:
        standing.note(peer, Deed.CHECKED_GOOD, now_s)
    for number, deed, pause_s in flood:
        now_s += pause_s
        standing.note(PeerId(f"key{number}"), deed, now_s)
        assert len(standing.peers()) <= 2 * LIMIT
    for peer in worked:
        assert standing.of(peer, now_s).good_in_a_row >= 0
        assert standing.of(peer, now_s).reasons[0].deed is Deed.CHECKED_GOOD


@given(
    st.sampled_from([Deed.VOTED_DOWN, Deed.WITHHELD, Deed.CONVICTED]),
    st.lists(st.tuples(st.integers(0, 10_000), st.floats(0.0, 3600.0)), max_size=150),
)
@settings(max_examples=examples(400))
def test_fresh_keys_that_are_given_work_displace_each_other_and_nobody_who_did_worse(
    worst, flood
):
    """They can only be forgotten for as many others who did as much; a fresh key has not."""
    standing = ResultStanding(limit=LIMIT)
    now_s = 1.7e9
    standing.note(PEER, Deed.DELIVERED, now_s)
    standing.note(PEER, worst, now_s)
    for number, pause_s in flood:
        now_s += pause_s
        key = PeerId(f"key{number}")
        for deed in (Deed.DELIVERED, Deed.NO_ANSWER):
            if standing.row(key) is None:
                standing.note(key, deed, now_s)
        assert len(standing.peers()) <= LIMIT
        assert standing.of(PEER, now_s).reasons[0].deed is worst


@given(stories)
def test_what_is_written_down_and_read_again_stands_as_before(story):
    standing, now_s = lived(story)
    rows = [standing.row(peer) for peer in standing.peers()]
    read = msgspec.json.decode(msgspec.json.encode(rows), type=list[StandingRow])
    again = ResultStanding(read)
    for later_s in (0.0, 86400.0, BAN_S + 1.0):
        assert again.of(PEER, now_s + later_s) == standing.of(PEER, now_s + later_s)


@given(st.integers(0, 200))
def test_a_newcomer_is_one_until_enough_of_its_results_were_checked(count):
    standing, now_s = lived([(Deed.DELIVERED, 0.0, 1.0)] * 500)
    assert standing.of(PEER, now_s).newcomer
    assert standing.of(PEER, now_s).value == NEW.value
    for _ in range(count):
        standing.note(PEER, Deed.CHECKED_GOOD, now_s)
    found = standing.of(PEER, now_s)
    assert found.newcomer == (count < NEWCOMER_GOOD)
    assert found.good_in_a_row == count


def test_a_clock_that_is_set_back_changes_nothing():
    standing, now_s = lived([(Deed.CHECKED_GOOD, 0.0, 1.0)] * 9)
    before = standing.of(PEER, now_s)
    assert standing.of(PEER, now_s - 1e6) == before
    standing.note(PEER, Deed.CHECKED_GOOD, now_s - 1e6)
    assert standing.of(PEER, now_s).good_in_a_row == 10
