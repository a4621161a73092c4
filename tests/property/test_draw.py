"""The draw can be drawn again, by nobody's choice but the hash's."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ALICE, BOB, signed_receipt

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import peer_id_of
from shoal.protocol.errors import LocalProtocolError
from shoal.protocol.limits import CANDIDATES_LIMIT
from shoal.protocol.verification.draw import (
    encode_list,
    is_drawn,
    list_id,
    salt_hash,
    signature_of,
    verifiers,
)

PEERS = [peer_id_of(bytes([number]) * 32) for number in range(CANDIDATES_LIMIT + 1)]
signatures = st.binary(min_size=64, max_size=64)
salts = st.binary(min_size=32, max_size=32)
lists = st.lists(st.sampled_from(PEERS[:CANDIDATES_LIMIT]), max_size=12)


@given(signatures, salts, lists, lists)
def test_all_candidates_stand_in_the_draw_once_but_for_those_excluded(
    signature, salt, candidates, exclude
):
    drawn = verifiers(signature, salt, candidates, exclude)
    assert len(drawn) == len(set(drawn))
    assert set(drawn) == set(candidates) - set(exclude)


@given(signatures, salts, lists, st.randoms())
def test_the_order_of_the_list_makes_no_difference(signature, salt, candidates, random):
    shuffled = random.sample(candidates, len(candidates))
    assert verifiers(signature, salt, shuffled) == verifiers(signature, salt, candidates)
    assert list_id(shuffled) == list_id(candidates) == blob_id_of(encode_list(candidates))


@given(signatures, salts, lists, lists)
def test_who_is_excluded_changes_nothing_in_the_order_of_the_others(
    signature, salt, candidates, exclude
):
    order = verifiers(signature, salt, candidates)
    left = [peer for peer in order if peer not in exclude]
    assert verifiers(signature, salt, candidates, exclude) == left


@given(lists, lists)
def test_two_lists_have_one_id_only_where_they_name_the_same_peers(one, other):
    assert (list_id(one) == list_id(other)) == (set(one) == set(other))


def test_a_list_that_is_too_long_is_no_list():
    encode_list(PEERS[:CANDIDATES_LIMIT])
    with pytest.raises(LocalProtocolError) as refused:
        list_id(PEERS)
    assert refused.value.code == "too_many_candidates"


@given(signatures, salts, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_what_is_drawn_at_one_rate_is_drawn_at_any_greater(signature, salt, one, other):
    if is_drawn(signature, salt, min(one, other)):
        assert is_drawn(signature, salt, max(one, other))
    assert is_drawn(signature, salt, 1.0)
    assert not is_drawn(signature, salt, 0.0)


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5])
def test_as_many_are_drawn_as_are_to_be(p):
    """Of 20,000: five standard deviations are allowed, over salts and over signatures."""
    count = 20_000
    numbers = [number.to_bytes(32, "big") for number in range(count)]
    by_salt = sum(is_drawn(bytes(64), salt, p) for salt in numbers)
    by_signature = sum(is_drawn(number * 2, bytes(32), p) for number in numbers)
    slack = 5 * (count * p * (1 - p)) ** 0.5
    assert abs(by_salt - count * p) < slack
    assert abs(by_signature - count * p) < slack


def test_every_order_of_three_is_drawn_about_as_often():
    count, seen = 6_000, {}
    for number in range(count):
        order = tuple(verifiers(bytes(64), number.to_bytes(32, "big"), PEERS[:3]))
        seen[order] = seen.get(order, 0) + 1
    assert set(seen) == set(permutations(PEERS[:3]))
    assert all(abs(times - count / 6) < 5 * (count / 6) ** 0.5 for times in seen.values())


@settings(max_examples=50)
@given(salts)
def test_whoever_does_not_know_the_salt_cannot_tell_the_draw(salt):
    """One bit of it, and order and verdict are as others'; the award has its hash alone."""
    other = bytes([salt[0] ^ 1]) + salt[1:]
    signature = signature_of(signed_receipt())
    assert salt_hash(salt) != salt_hash(other)
    assert verifiers(signature, salt, PEERS[:20]) != verifiers(signature, other, PEERS[:20])


def test_a_receipt_signed_by_another_is_drawn_otherwise():
    mine, theirs = (signature_of(signed_receipt(signer=who)) for who in (ALICE, BOB))
    assert verifiers(mine, bytes(32), PEERS[:20]) != verifiers(theirs, bytes(32), PEERS[:20])
