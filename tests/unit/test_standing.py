"""What offences cost, when a peer is cut for them, and how it gets its standing back."""

import pytest

from shoal.crypto.peer_id import PeerId
from shoal.node.standing import (
    AFTER_CUT,
    CUT_LIMIT_S,
    FIRST_CUT_S,
    FULL,
    RECOVERY_PER_S,
    RULES,
    SPARED_CUT_LIMIT_S,
    SPARED_FIRST_CUT_S,
    Offence,
    Standing,
)

MALLORY, FRIEND, BOB = PeerId("mallory"), PeerId("friend"), PeerId("bob")


def offend(standing, peer=MALLORY, now_s=0.0, offence=Offence.BAD_FRAME):
    """Offend until cut; gives the record of the cut."""
    for _ in range(100):
        cut = standing.note(peer, offence, now_s)
        if cut is not None:
            return cut
    raise AssertionError("never cut")


def test_every_offence_has_a_rule_and_none_cuts_at_the_first_time():
    assert RULES.keys() == set(Offence)
    for rule in RULES.values():
        assert 0 < rule.weight < FULL / 2, rule


def test_a_peer_of_which_nothing_is_known_is_not_cut_and_has_no_record():
    standing = Standing()
    assert standing.cut_for(BOB, 0.0) is None
    assert standing.record(BOB, 0.0) is None
    assert standing.offences(BOB) == ()
    assert standing.records(0.0) == []


def test_offences_cost_their_weight_and_a_peer_without_standing_is_cut():
    standing = Standing()
    weight = RULES[Offence.BAD_FRAME].weight
    for number in range(1, int(FULL / weight)):
        assert standing.note(MALLORY, Offence.BAD_FRAME, 0.0) is None
        assert standing.record(MALLORY, 0.0).standing == FULL - number * weight
        assert standing.cut_for(MALLORY, 0.0) is None
    cut = standing.note(MALLORY, Offence.BAD_FRAME, 0.0)
    assert (cut.cut_since_s, cut.cut_until_s) == (0.0, FIRST_CUT_S)
    assert standing.record(MALLORY, 1.0).standing == 0.0
    assert standing.cut_for(MALLORY, FIRST_CUT_S - 1) is not None
    assert standing.cut_for(MALLORY, FIRST_CUT_S) is None


def test_the_sentence_says_what_it_did_how_often_and_for_how_much_longer():
    standing = Standing()
    standing.note(MALLORY, Offence.PROTOCOL_BROKEN, 0.0)
    offend(standing)
    assert standing.cut_for(MALLORY, 20.0) == (
        "it sent bytes that are no message of the protocol (5 times); "
        "broke the order in which a stream is spoken on: cut for another 100 s"
    )
    assert dict(standing.offences(MALLORY)) == {
        Offence.PROTOCOL_BROKEN: 1,
        Offence.BAD_FRAME: 5,
    }


def test_standing_comes_back_with_time_and_then_nothing_is_remembered():
    standing = Standing()
    standing.note(MALLORY, Offence.BAD_FRAME, 0.0)
    weight = RULES[Offence.BAD_FRAME].weight
    half_s = weight / 2 / RECOVERY_PER_S
    assert standing.record(MALLORY, half_s).standing == pytest.approx(FULL - weight / 2)
    assert standing.record(MALLORY, 2 * half_s + 1) is None
    assert standing.offences(MALLORY) == ()


def test_one_offence_an_hour_never_cuts():
    standing = Standing()
    for hour in range(100):
        assert standing.note(MALLORY, Offence.BAD_RESULT, hour * 3600.0) is None


def test_after_a_cut_half_as_much_cuts_again_for_twice_as_long():
    standing = Standing()
    offend(standing)
    assert standing.record(MALLORY, FIRST_CUT_S).standing == AFTER_CUT
    now_s = FIRST_CUT_S
    lengths = []
    for _ in range(8):
        cut = offend(standing, now_s=now_s)
        lengths.append(cut.cut_until_s - now_s)
        now_s = cut.cut_until_s
    assert lengths[:3] == [2 * FIRST_CUT_S, 4 * FIRST_CUT_S, 8 * FIRST_CUT_S]
    assert lengths[-1] == CUT_LIMIT_S


def test_a_cut_gives_back_nothing_for_its_own_time():
    standing = Standing()
    cut = offend(standing)
    later_s = cut.cut_until_s + 60.0
    expected = AFTER_CUT + 60.0 * RECOVERY_PER_S
    assert standing.record(MALLORY, later_s).standing == pytest.approx(expected)


def test_what_a_peer_does_while_it_is_cut_does_not_lengthen_the_cut():
    standing = Standing()
    cut = offend(standing)
    for _ in range(50):
        assert standing.note(MALLORY, Offence.BAD_FRAME, 1.0) is None
    assert standing.cut_for(MALLORY, cut.cut_until_s) is None


def test_friends_and_bootstrap_peers_are_cut_for_a_minute_at_the_most():
    standing = Standing(spared={FRIEND})
    now_s = 0.0
    for number in range(6):
        cut = offend(standing, FRIEND, now_s)
        length_s = cut.cut_until_s - now_s
        assert length_s == min(SPARED_CUT_LIMIT_S, SPARED_FIRST_CUT_S * 2**number)
        now_s = cut.cut_until_s


def test_a_flood_counts_once_a_second_however_finely_it_is_cut_up():
    standing = Standing()
    for tick in range(1000):
        standing.note(MALLORY, Offence.GOSSIP_FLOOD, tick / 1000)
    assert dict(standing.offences(MALLORY)) == {Offence.GOSSIP_FLOOD: 1}
    times = FULL / RULES[Offence.GOSSIP_FLOOD].weight
    cuts = [
        second
        for second in range(1, 60)
        if standing.note(MALLORY, Offence.GOSSIP_FLOOD, float(second)) is not None
    ]
    assert times - 2 <= cuts[0] <= times + 2


def test_a_forgiven_peer_is_as_one_of_which_nothing_is_known():
    standing = Standing()
    offend(standing)
    assert standing.forgive(MALLORY)
    assert standing.cut_for(MALLORY, 0.0) is None
    assert offend(standing).cut_until_s == FIRST_CUT_S
    assert not standing.forgive(BOB)
