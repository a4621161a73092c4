"""The hours for peers: how they are written, and what holds at a time of the wall."""

from datetime import datetime

import pytest

from shoal.node.schedule import is_open, next_change, parse_window, texts


def schedule(*windows):
    return tuple(parse_window(text) for text in windows)


def at(day, clock):
    """A time in the week of Monday, 2026-06-01."""
    days = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    return datetime.fromisoformat(f"2026-06-0{1 + days.index(day)} {clock}")


NIGHTS = schedule("mon-fri 18:00-08:00", "sat,sun 00:00-24:00")


def test_no_schedule_is_always_open_and_never_changes():
    assert is_open((), at("wed", "12:00"))
    assert next_change((), at("wed", "12:00")) is None


@pytest.mark.parametrize(
    ("day", "clock", "wanted"),
    [
        ("mon", "17:59", False),
        ("mon", "18:00", True),
        ("tue", "07:59:59", True),
        ("tue", "08:00", False),
        ("sat", "07:59", True),
        ("sat", "12:00", True),
        ("sun", "23:59", True),
        ("mon", "00:00", False),  # Sunday is open until midnight, and Monday from 18:00
    ],
)
def test_a_window_holds_from_its_first_minute_to_before_its_last(day, clock, wanted):
    assert is_open(NIGHTS, at(day, clock)) is wanted


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins():
    only_friday = schedule("fri 22:00-02:00")
    assert is_open(only_friday, at("sat", "01:59"))
    assert not is_open(only_friday, at("fri", "01:59"))


def test_a_window_of_sunday_night_reaches_into_monday():
    assert is_open(schedule("sun 22:00-02:00"), at("mon", "01:00"))


def test_a_window_without_days_is_of_every_day():
    nightly = schedule("22:00-06:00")
    assert all(is_open(nightly, at(day, "23:00")) for day in ("mon", "thu", "sun"))
    assert not is_open(nightly, at("sun", "12:00"))


@pytest.mark.parametrize(
    ("day", "clock", "wanted"),
    [
        ("wed", "12:00", at("wed", "18:00")),
        ("wed", "18:00", at("thu", "08:00")),
        ("fri", "20:00", datetime.fromisoformat("2026-06-08 00:00")),  # not Saturday's edges
        ("mon", "07:00", at("mon", "18:00")),
    ],
)
def test_the_next_change_is_the_next_time_that_open_and_closed_swap(day, clock, wanted):
    assert next_change(NIGHTS, at(day, clock)) == wanted


def test_hours_that_cover_the_whole_week_never_change():
    always = schedule("mon-fri 00:00-24:00", "sat,sun 00:00-24:00")
    assert next_change(always, at("mon", "09:00")) is None


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("mon-fri 18:00-08:00", "mon-fri 18:00-08:00"),
        ("SAT, SUN 0:00 - 24:00", "sat,sun 00:00-24:00"),
        ("fri-mon 10:00-12:00", "mon,fri,sat,sun 10:00-12:00"),
        ("wed 01:30-02:00", "wed 01:30-02:00"),
        ("mon-sun 10:00-11:00", "10:00-11:00"),
    ],
)
def test_a_window_is_written_as_an_owner_could_have_written_it(text, written):
    assert texts(schedule(text)) == [written]
    assert parse_window(written) == parse_window(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mon-fri", "has no hours"),
        ("mon 18-8", "has no hours"),
        ("18:00-08:00 mon", "has no hours"),
        ("mo 18:00-19:00", "the day 'mo'"),
        ("mon,,tue 18:00-19:00", "the day ''"),
        ("mon 18:60-19:00", "18:60"),
        ("mon 18:00-24:30", "24:30"),
        ("mon 24:00-08:00", "00:00-24:00"),
        ("mon 08:00-08:00", "00:00-24:00"),
        ("", "has no hours"),
    ],
)
def test_a_window_that_is_wrong_is_refused_with_what_is_wrong_about_it(text, said):
    with pytest.raises(ValueError, match=said):
        parse_window(text)
