"""Whatever begins and ends on a card, of what is lent no more is given than there is."""

from hypothesis import given
from hypothesis import strategies as st

from shoal.compute.card_memory import (
    PLACE_BYTES,
    SPARE,
    Use,
    fits,
    lent_bytes,
    places,
    share_bytes,
    to_end,
    unit_most_bytes,
)

GIB = 1 << 30
cards = st.integers(2 * GIB, 256 * GIB)
sizes = st.integers(0, 64 * GIB)
uses = st.builds(Use, sizes, sizes, sizes)


@given(cards)
def test_a_unit_that_is_taken_fits_beside_its_process_and_the_spare(card_bytes):
    most = unit_most_bytes(card_bytes)
    assert 0 < most < lent_bytes(card_bytes) < card_bytes
    if most > card_bytes // 4:
        alone = Use(limit_bytes=most).total_bytes + SPARE.total_bytes
        assert alone <= lent_bytes(card_bytes)


@given(cards, st.integers(1, 16))
def test_a_card_has_as_many_places_as_are_wanted_and_have_their_memory(card_bytes, wanted):
    number = places(card_bytes, wanted)
    assert 1 <= number <= wanted
    assert number == 1 or number * PLACE_BYTES + SPARE.total_bytes <= lent_bytes(card_bytes)


def test_a_card_of_which_nothing_is_known_runs_one_unit_at_a_time():
    assert (lent_bytes(0), places(0, 16)) == (0, 1)


def test_a_card_of_8_gb_runs_two_units_at_once_and_one_of_4_gb_one():
    assert (places(8 * GIB, 2), places(4 * GIB, 2)) == (2, 1)


@given(cards, sizes, st.lists(uses, max_size=6))
def test_those_that_began_beside_others_fit_together_into_what_is_lent(
    card_bytes, unit_bytes, wanted
):
    lent, running = lent_bytes(card_bytes), []
    for use in wanted:
        if fits(lent, unit_bytes, running, use):
            running.append(use)
            assert sum(each.total_bytes for each in (SPARE, *running)) <= lent
            assert sum(each.limit_bytes for each in running) <= unit_bytes


@given(cards, st.lists(uses, max_size=3), st.lists(st.builds(Use, sizes), max_size=4))
def test_as_few_idle_processes_end_as_leave_room_for_those_that_run(card_bytes, running, idle):
    lent = lent_bytes(card_bytes)

    def over(number):
        kept = (SPARE, *running, *idle[number:])
        return sum(use.total_bytes for use in kept) > lent

    number = to_end(lent, running, idle)
    assert number == len(idle) or not over(number)
    assert number == 0 or over(number - 1)


@given(cards, st.integers(2, 8))
def test_the_shares_of_all_processes_are_within_what_is_lent(card_bytes, at_once):
    share = share_bytes(card_bytes, at_once)
    assert (
        0
        <= share * at_once + SPARE.total_bytes
        <= max(lent_bytes(card_bytes), SPARE.total_bytes)
    )
    assert share_bytes(card_bytes, 1) == 0
