"""When a result is held, what it rests on, and who is looked at again."""

import pytest

from shoal.node.look_back import (
    HELD_UNITS,
    HOLD_S,
    LOOKED_AT,
    Vouchers,
    is_doubtful,
    is_held,
)

FALSE = {"mallory", "trudy"}.__contains__


def test_results_of_a_peer_that_is_not_trusted_are_held_while_more_of_it_is_under_way():
    assert is_held(trusted=False, out=1, held=0, waited_s=0.0)
    assert not is_held(trusted=True, out=1, held=0, waited_s=0.0)
    assert not is_held(trusted=False, out=0, held=0, waited_s=0.0)


def test_nothing_is_held_for_ever_nor_without_bound():
    assert is_held(trusted=False, out=1, held=HELD_UNITS - 1, waited_s=0.99 * HOLD_S)
    assert not is_held(trusted=False, out=1, held=HELD_UNITS, waited_s=0.0)
    assert not is_held(trusted=False, out=1, held=0, waited_s=HOLD_S)


@pytest.mark.parametrize(
    ("provider", "vouched", "doubtful"),
    [
        ("mallory", [], True),
        ("mallory", ["trudy"], True),
        ("mallory", ["trudy", "bob"], False),
        ("alice", [], False),
        ("alice", ["trudy"], True),
        ("alice", ["bob"], False),
    ],
)
def test_a_result_is_doubtful_where_nobody_but_false_peers_stands_for_it(
    provider, vouched, doubtful
):
    assert is_doubtful(provider, vouched, FALSE) is doubtful


def test_who_vouched_for_a_false_peer_is_looked_at_again_by_the_last_of_its_results():
    vouchers = Vouchers()
    for unit in range(3):
        vouchers.note("mallory", ["alice"], unit)
    vouchers.note("mallory", ["bob"], 9)
    vouchers.note("carol", ["alice"], 5)
    assert vouchers.friends_of("mallory", FALSE) == [9, 2]
    assert vouchers.friends_of("mallory", FALSE) == []  # once
    assert vouchers.friends_of("alice", FALSE) == [5]


def test_whom_a_false_verifier_vouched_for_is_looked_at_again_unless_it_is_false_too():
    vouchers = Vouchers()
    vouchers.note("alice", ["mallory"], 1)
    vouchers.note("trudy", ["mallory"], 2)
    assert vouchers.friends_of("mallory", FALSE) == [1]


def test_only_so_many_are_looked_at_and_only_so_many_pairs_remembered():
    vouchers = Vouchers()
    for friend in range(2 * LOOKED_AT):
        vouchers.note("mallory", [f"friend {friend}"], friend)
    looked_at = vouchers.friends_of("mallory", FALSE)
    assert looked_at == list(reversed(range(LOOKED_AT, 2 * LOOKED_AT)))
    few = Vouchers(limit=2)
    for friend in range(3):
        few.note("mallory", [f"friend {friend}"], friend)
    assert few.friends_of("mallory", FALSE) == [2, 1]
