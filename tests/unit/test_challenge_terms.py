import msgspec
import pytest
from challenge_samples import ALICE, BOB, CAROL, a_challenge

from shoal.crypto.errors import VerificationError
from shoal.protocol import limits
from shoal.protocol.challenge_terms import (
    CLAIMED_TIME_S,
    LINK_DELAY_LIMIT_S,
    RATE_SHOWN_MIN,
    SLACK,
    delay_taken_off_s,
    draw_places,
    first_seed,
    next_seed,
    root_seed,
    seeds_of,
    time_allowed_s,
    work_for,
    work_of,
)

RATES = [10.0 ** (8 + step / 4) for step in range(18)]  # up to what a GPU does


@pytest.mark.parametrize("rate", RATES)
def test_the_work_takes_about_the_time_and_the_verifier_little_of_it(rate):
    work = work_for(rate)
    assert 0.7 * CLAIMED_TIME_S <= work.claimed_s(rate) <= 1.4 * CLAIMED_TIME_S
    rows = limits.CHALLENGE_PLACES_LIMIT
    assert rows * work.size**2 <= 0.02 * work.multiply_adds


@pytest.mark.parametrize("rate", [*RATES, 1e14, 1e18])
def test_the_work_is_always_within_what_the_wire_lets_through(rate):
    work = work_for(rate)
    a_challenge(rate=rate, rows=work.rows, size=work.size, steps=work.steps)
    assert work.rows <= limits.CHALLENGE_ROWS_LIMIT
    assert work.size <= limits.CHALLENGE_SIZE_LIMIT
    assert work.steps <= limits.CHALLENGE_STEPS_LIMIT


def test_a_rate_too_low_to_be_shown_is_said_so():
    with pytest.raises(VerificationError) as caught:
        work_for(RATE_SHOWN_MIN / 2)
    assert caught.value.code == "rate_too_low"


@pytest.mark.parametrize("rate", [*RATES, 1e14])
@pytest.mark.parametrize("round_trip_s", [0.0, 0.1, 10.0])
def test_a_quarter_of_the_rate_is_too_slow_however_late_it_answers_pings(rate, round_trip_s):
    work = work_for(rate)
    challenge = a_challenge(rate=rate, rows=work.rows, size=work.size, steps=work.steps)
    taken_off_s = delay_taken_off_s(challenge, round_trip_s)
    assert taken_off_s <= min(round_trip_s, LINK_DELAY_LIMIT_S)
    assert work.claimed_s(rate / 4) - taken_off_s > time_allowed_s(challenge)


def test_three_times_the_time_is_allowed():
    challenge = a_challenge()
    claimed_s = work_of(challenge).claimed_s(challenge.rate)
    assert time_allowed_s(challenge) == pytest.approx(SLACK * claimed_s)


def test_as_many_rows_are_drawn_as_a_message_holds_and_all_of_them_exist():
    work = work_of(a_challenge())
    numbers = iter(range(10_000))
    places = draw_places(work, lambda bound: next(numbers) * 5 // 7 % bound)
    assert len(places) == limits.CHALLENGE_PLACES_LIMIT
    assert {step for step, _ in places} == set(range(work.steps))
    assert all(row < work.rows for _, row in places)


@pytest.mark.parametrize(
    "change",
    [
        {"nonce": "0" * 32},
        {"device": "gpu0"},
        {"precision": "x16"},
        {"size": 16},
        {"steps": 3},
        {"rows": 10},
    ],
)
def test_every_term_but_the_rate_changes_the_seed(change):
    challenge = a_challenge()
    seed = root_seed(challenge, ALICE.peer_id, BOB.peer_id)
    changed = msgspec.structs.replace(challenge, **change)
    assert root_seed(changed, ALICE.peer_id, BOB.peer_id) != seed


def test_either_peer_changes_the_seed_and_so_does_their_order():
    challenge = a_challenge()
    pairs = [(ALICE, BOB), (BOB, ALICE), (CAROL, BOB), (ALICE, CAROL)]
    seeds = {root_seed(challenge, one.peer_id, other.peer_id) for one, other in pairs}
    assert len(seeds) == len(pairs)


def test_a_seed_hangs_on_all_products_before_it():
    root, roots = b"r" * 32, [b"1" * 32, b"2" * 32, b"3" * 32]
    seeds = seeds_of(root, roots)
    assert seeds[0] == first_seed(root)
    assert seeds[2] == next_seed(next_seed(first_seed(root), roots[0]), roots[1])
    others = seeds_of(root, [b"x" * 32, *roots[1:]])
    assert others[0] == seeds[0]
    assert others[1] != seeds[1]
    assert others[2] != seeds[2]
