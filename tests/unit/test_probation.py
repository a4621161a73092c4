"""Who is tried when: newcomers a few at a time, and more of them as more may verify."""

from shoal.node.probation import (
    LISTED_ENOUGH,
    TRIED_LEAST,
    WAITING_UNITS,
    is_full,
    outdated,
    tried,
)
from shoal.node.result_standing import StandingNow

NEW, KNOWN = StandingNow(0.6, 0, newcomer=True), StandingNow(0.9, 20, newcomer=False)


def standings(known, new):
    of = {f"known{k}": KNOWN for k in range(known)}
    return of | {f"new{k}": NEW for k in range(new)}


def test_of_many_strangers_a_few_are_tried_first():
    of = standings(0, 200)
    offered, waiting = tried(of, of.__getitem__, lambda peer: not of[peer].newcomer)
    assert offered == list(of)[:TRIED_LEAST]
    assert waiting == list(of)[TRIED_LEAST:]


def test_each_peer_that_is_known_lets_one_more_be_tried():
    of = standings(50, 200)
    offered, waiting = tried(of, of.__getitem__, lambda peer: not of[peer].newcomer)
    assert len(offered) == 100
    assert len(waiting) == 150


def test_nobody_who_is_known_waits():
    of = standings(300, 3)
    offered, waiting = tried(of, of.__getitem__, lambda peer: not of[peer].newcomer)
    assert set(offered) == set(of)
    assert waiting == []


def test_friends_are_not_tried_first():
    of = standings(0, 30)
    offered, waiting = tried(of, of.__getitem__, lambda _peer: True)
    assert len(offered) == 30
    assert waiting == []


def test_whoever_is_furthest_is_tried_first():
    of = standings(0, 20)
    of["new19"] = StandingNow(0.8, 5, newcomer=True)
    offered, _ = tried(of, of.__getitem__, lambda peer: not of[peer].newcomer)
    assert offered[0] == "new19"


def test_a_newcomer_is_full_with_a_few_results_unchecked_and_others_never():
    assert not is_full(NEW, WAITING_UNITS - 1)
    assert is_full(NEW, WAITING_UNITS)
    assert not is_full(KNOWN, 1000)


def test_a_list_of_nobody_is_outdated_as_soon_as_two_may_verify():
    assert not outdated((), 1)
    assert outdated((), 2)


def test_a_short_list_is_renewed_when_it_would_be_twice_as_long_and_a_good_one_never():
    three = ("a", "b", "c")
    assert not outdated(three, 5)
    assert outdated(three, 6)
    assert not outdated([str(k) for k in range(LISTED_ENOUGH)], 64)
