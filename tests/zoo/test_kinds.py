"""The zoo's kinds are small, and differ from an honest node where they say so."""

import pytest
from kinds import GANGS, PLAYED, Asked, Fate, Kind, Lie

DECISIONS = {name for name in vars(Kind) if callable(getattr(Kind, name))}
LIARS = [kind for name, kind in PLAYED.items() if name != "honest"]


@pytest.mark.parametrize("kind", LIARS, ids=lambda kind: kind.name)
def test_a_liar_replaces_one_or_two_decisions_of_an_honest_node(kind):
    assert 1 <= len(DECISIONS & vars(kind).keys()) <= 2


@pytest.mark.parametrize("kind", LIARS, ids=lambda kind: kind.name)
def test_who_is_to_be_convicted_signs_something_false_and_nobody_else_does(kind):
    replies = [kind().outputs(Asked(number)) for number in range(8)]
    false = any(reply.lie.is_wrong or reply.receipts > 1 for reply in replies)
    copies = kind().outputs(Asked(0, copied=True)).lie is Lie.COPIED
    assert (false or copies) == (kind.fate is Fate.CONVICTED)


def test_an_honest_node_does_nothing_of_all_that():
    honest = Kind()
    for copied in (False, True):
        reply = honest.outputs(Asked(3, copied))
        assert (reply.lie, reply.receipts, reply.wait) == (Lie.NONE, 1, 0.0)
    assert honest.serves_blobs()
    assert honest.acknowledges()
    assert not any((honest.invents(1), honest.accuses(1), honest.renews_key(banned=True)))


def test_the_kinds_of_a_gang_have_a_ring():
    assert all(kind.ring for gang in GANGS.values() for kind in gang)
