"""The owner first: what each device takes, from the owner's wishes and the machine's use.

Pure. Three things close a device, and the first that holds is told: the owner
paused it, the schedule says so, or the owner's own processes need the machine
(`stepping back`). A schedule, a pause of the whole node and stepping back are
about peers: work of the node's own user goes on, for that is the owner's own
wish. A pause that names the device empties it for everybody.

What is measured, when it is looked at and who is told is `node.owner_watch`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from shoal.node import schedule as schedules
from shoal.node.schedule import Schedule

WHOLE_NODE = ""
"""In place of a device's id, in a pause of all of them."""

STEP_BACK_SAMPLES = 2
"""So many measurements in a row have to be over the threshold: one may be a short
burst, or a long process that has ended and is counted at once by its parent."""

RETURN_BELOW = 0.8
"""Of the threshold: below it the machine counts as quiet, so that use which sways
around the threshold does not open and close the node."""

RETURN_AFTER_S = 10.0
"""For so long the machine has to be quiet before the node is back."""


class Cause(StrEnum):
    """Why a device takes nothing of peers."""

    PAUSED = "paused"
    SCHEDULE = "schedule"
    STEPPING_BACK = "stepping_back"


@dataclass(frozen=True, slots=True)
class Pause:
    """The owner's word: nothing for this device, or for the `WHOLE_NODE`.

    ``until_s`` is in seconds since the epoch; None is until it is resumed.
    """

    device: str
    until_s: float | None = None

    def holds(self, now_s: float) -> bool:
        """Whether it has not ended by itself."""
        return self.until_s is None or now_s < self.until_s


@dataclass(frozen=True, slots=True)
class Stance:
    """What a device takes now.

    Attributes:
        cause: Why it takes nothing of peers; None where it does.
        own: Whether it takes work of the node's own user.
        until_s: When ``cause`` ends by itself, in seconds since the epoch; None
            where that is not known, or where there is no cause.
    """

    cause: Cause | None = None
    own: bool = True
    until_s: float | None = None

    @property
    def announced_open(self) -> bool:
        """What the advert says: stepping back comes and goes too often to tell all."""
        return self.cause in {None, Cause.STEPPING_BACK}


OPEN = Stance()


def stance(
    device: str,
    pauses: Collection[Pause],
    schedule: Schedule,
    stepping_back: Collection[str],
    now_s: float,
) -> Stance:
    """What ``device`` takes at this moment.

    Args:
        device: Its id, such as ``cpu`` or ``gpu0``.
        pauses: All of the owner's, of whichever device, ended ones too.
        schedule: The hours for peers.
        stepping_back: The devices that the owner's own processes need.
        now_s: In seconds since the epoch; the schedule is read in this machine's zone.
    """
    holding = [p for p in pauses if p.device in {WHOLE_NODE, device} and p.holds(now_s)]
    if holding:
        ends = [pause.until_s for pause in holding]
        return Stance(
            Cause.PAUSED,
            own=all(pause.device != device for pause in holding),
            until_s=None if None in ends else max(end for end in ends if end is not None),
        )
    wall = schedules.wall_clock(now_s)
    if not schedules.is_open(schedule, wall):
        change = schedules.next_change(schedule, wall)
        return Stance(Cause.SCHEDULE, until_s=None if change is None else change.timestamp())
    if device in stepping_back:
        return Stance(Cause.STEPPING_BACK)
    return OPEN


def after_pause(pauses: Collection[Pause], pause: Pause, now_s: float) -> tuple[Pause, ...]:
    """The pauses once another one is made: it takes the place of one of the same device."""
    kept = (p for p in pauses if p.device != pause.device and p.holds(now_s))
    return (*kept, pause)


def after_resume(pauses: Collection[Pause], device: str, now_s: float) -> tuple[Pause, ...]:
    """The pauses once one device, or with `WHOLE_NODE` everything, is resumed."""
    kept = (p for p in pauses if p.device != device and p.holds(now_s))
    return () if device == WHOLE_NODE else tuple(kept)


# --- stepping back -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Courtesy:
    """Whether the node steps back for the owner's processes, and what that rests on.

    Attributes:
        stepping_back: Whether it does now.
        over: Measurements in a row that were over the threshold.
        quiet_since_s: Since when the machine is quiet; None where it is not.
    """

    stepping_back: bool = False
    over: int = 0
    quiet_since_s: float | None = None


def after_use(before: Courtesy, use: float, threshold: float, now_s: float) -> Courtesy:
    """What one more measurement makes of it.

    Args:
        before: As it was.
        use: The share of the machine that the owner's processes took since the
            last measurement, from 0 to 1.
        threshold: From which share on the node steps back.
        now_s: A clock that never goes back.
    """
    over = before.over + 1 if use >= threshold else 0
    if not before.stepping_back:
        return Courtesy(stepping_back=over >= STEP_BACK_SAMPLES, over=over)
    if use >= threshold * RETURN_BELOW:
        return replace(before, over=over, quiet_since_s=None)
    since_s = now_s if before.quiet_since_s is None else before.quiet_since_s
    if now_s - since_s >= RETURN_AFTER_S:
        return Courtesy()
    return Courtesy(stepping_back=True, quiet_since_s=since_s)


# --- in words ------------------------------------------------------------------------


def sentence(found: Stance) -> str:
    """Why a device takes nothing, for who may know it; "" where it does."""
    match found.cause:
        case None:
            return ""
        case Cause.PAUSED:
            return "paused by its owner" + _until(found.until_s)
        case Cause.SCHEDULE:
            return "outside the hours of its owner's schedule" + _until(found.until_s)
        case Cause.STEPPING_BACK:
            return "stepping back while its owner's own processes use the machine"


def announces_open(found: Sequence[Stance]) -> bool:
    """Whether the node's advert offers work at all: one open device is enough."""
    return any(each.announced_open for each in found)


def _until(until_s: float | None) -> str:
    if until_s is None:
        return ""
    return f" until {datetime.fromtimestamp(until_s).astimezone():%a %Y-%m-%d %H:%M %Z}"
