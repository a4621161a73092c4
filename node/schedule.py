"""The hours in which a node works for peers, as its owner writes them; pure.

A schedule is a list of windows such as ``mon-fri 18:00-08:00`` or ``sat,sun
00:00-24:00``, in local time; a window without days is of every day. One that
ends before it begins reaches into the next day: ``fri 18:00-08:00`` is Friday
evening and Saturday morning. No window at all means always.

Times are those of the wall: a naive `datetime` comes in and goes out, and the
clock is somebody else's. Where a window lies in an hour that summer time takes
away or gives twice, the clock on the wall decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WINDOWS_LIMIT: Final = 64
"""More than a week's hours need, written one by one for each day and half."""

_DAY_MINUTES: Final = 24 * 60
_WEEK_MINUTES: Final = 7 * _DAY_MINUTES
_WINDOW: Final = re.compile(
    r"(?:(.*\S)\s+)?(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Window:
    """Hours of some days; minutes are counted from midnight.

    ``str()`` of it is what the owner could have written.
    """

    days: tuple[int, ...]
    """Numbers from Monday, 0, in order; the days on which the window begins."""
    start_min: int
    end_min: int

    def __str__(self) -> str:
        times = f"{_clock(self.start_min)}-{_clock(self.end_min)}"
        return times if len(self.days) == len(DAYS) else f"{_days(self.days)} {times}"


Schedule = tuple[Window, ...]


def parse_window(text: str) -> Window:
    """Read one window.

    Raises:
        ValueError: The end of a sentence that begins with the text.
    """
    found = _WINDOW.fullmatch(text.strip().lower())
    if found is None:
        raise ValueError("has no hours; write them as in `mon-fri 18:00-08:00`")
    start_min = _minutes(int(found[2]), int(found[3]))
    end_min = _minutes(int(found[4]), int(found[5]))
    if start_min in {_DAY_MINUTES, end_min}:
        raise ValueError("begins when it ends; the whole day is 00:00-24:00")
    days = ALL_DAYS if found[1] is None else _read_days("".join(found[1].split()))
    return Window(days, start_min, end_min)


def wall_clock(now_s: float) -> datetime:
    """What the clock on this machine's wall shows at a time in seconds since the epoch."""
    return datetime.fromtimestamp(now_s, UTC).astimezone().replace(tzinfo=None)


def is_open(schedule: Schedule, at: datetime) -> bool:
    """Whether the node works for peers at this local time."""
    minute = _minute_of_week(at)
    return not schedule or any(start <= minute < end for start, end in _spans(schedule))


def next_change(schedule: Schedule, at: datetime) -> datetime | None:
    """When `is_open` is another than at ``at`` for the first time; None for never."""
    midnight = at.replace(hour=0, minute=0, second=0, microsecond=0)
    monday = midnight - timedelta(days=at.weekday())
    minute, now_open = _minute_of_week(at), is_open(schedule, at)
    edges = {edge for span in _spans(schedule) for edge in span}
    later = {edge if edge > minute else edge + _WEEK_MINUTES for edge in edges}
    for edge in sorted(later):
        change = monday + timedelta(minutes=edge)
        if is_open(schedule, change) != now_open:
            return change
    return None


def texts(schedule: Schedule) -> Sequence[str]:
    """The windows as the owner could have written them."""
    return [str(window) for window in schedule]


def _spans(schedule: Schedule) -> Iterable[tuple[int, int]]:
    """Each window on each of its days, in minutes of a week; none reaches over its end."""
    for window in schedule:
        length_min = window.end_min - window.start_min
        length_min += _DAY_MINUTES if length_min < 0 else 0
        for day in window.days:
            start = day * _DAY_MINUTES + window.start_min
            end = start + length_min
            yield start, min(end, _WEEK_MINUTES)
            if end > _WEEK_MINUTES:  # Sunday night is the next week's Monday
                yield 0, end - _WEEK_MINUTES


def _minute_of_week(at: datetime) -> int:
    return at.weekday() * _DAY_MINUTES + at.hour * 60 + at.minute


def _minutes(hours: int, minutes: int) -> int:
    total = hours * 60 + minutes
    if minutes > 59 or total > _DAY_MINUTES:
        raise ValueError(f"has a time that no clock shows: {hours:02}:{minutes:02}")
    return total


def _read_days(text: str) -> tuple[int, ...]:
    days: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        for name in (first, last) if dash else (first,):
            if name not in DAYS:
                raise ValueError(
                    f"has the day {name!r}; days are {', '.join(DAYS)}, as in "
                    "`mon-fri 18:00-08:00` or `sat,sun 00:00-24:00`"
                )
        start, end = DAYS.index(first), DAYS.index(last) if dash else DAYS.index(first)
        days.update((start + step) % 7 for step in range((end - start) % 7 + 1))
    return tuple(sorted(days))


def _days(days: tuple[int, ...]) -> str:
    """``mon-fri`` for days that follow one another, else ``mon,wed``."""
    if len(days) > 2 and days == tuple(range(days[0], days[-1] + 1)):
        return f"{DAYS[days[0]]}-{DAYS[days[-1]]}"
    return ",".join(DAYS[day] for day in days)


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


ALL_DAYS: Final = tuple(range(7))
