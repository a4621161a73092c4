"""Schedules of any windows, held against looking at every minute."""

from datetime import datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from shoal.node.schedule import DAYS, Window, is_open, next_change, parse_window

MONDAY = datetime.fromisoformat("2026-06-01")
DAY_MIN = 24 * 60


@st.composite
def windows(draw):
    days = draw(st.sets(st.integers(0, 6), min_size=1))
    # On few edges, so that windows touch and cover one another.
    start = draw(st.sampled_from(range(0, DAY_MIN, 360)))
    ends = [end for end in range(360, DAY_MIN + 1, 360) if end != start]
    return Window(tuple(sorted(days)), start, draw(st.sampled_from(ends)))


def opened(schedule, minute):
    """Whether some day of some window has this minute of the week, counted by hand."""
    for window in schedule:
        length = (window.end_min - window.start_min) % DAY_MIN or DAY_MIN
        for day in window.days:
            if (minute - day * DAY_MIN - window.start_min) % (7 * DAY_MIN) < length:
                return True
    return False


@given(st.lists(windows(), min_size=1, max_size=4).map(tuple), st.integers(0, 7 * DAY_MIN - 1))
def test_open_and_the_next_change_are_what_looking_at_every_minute_tells(schedule, minute):
    now = MONDAY + timedelta(minutes=minute)
    assert is_open(schedule, now) == opened(schedule, minute)
    steps = range(1, 7 * DAY_MIN + 1)
    wanted = next(
        (
            s
            for s in steps
            if opened(schedule, (minute + s) % (7 * DAY_MIN)) != opened(schedule, minute)
        ),
        None,
    )
    change = next_change(schedule, now)
    assert change == (None if wanted is None else now + timedelta(minutes=wanted))


@given(windows())
def test_a_window_survives_being_written_and_read(window):
    assert parse_window(str(window)) == window


@given(st.text(alphabet="".join(DAYS) + "0123456789:-, ", max_size=40))
def test_any_text_is_a_window_or_a_named_error(text):
    said = ""
    try:
        parse_window(text)
    except ValueError as error:
        said = str(error)
    assert not said or said.startswith(("has ", "begins "))
