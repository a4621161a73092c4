"""When a device is measured, and what is said where it is not: pure.

`node.capability` measures when that is due here. A device is measured when nothing else
runs there. One that is never empty waits in the line of its units after a minute, behind
all of them at first and before them some ten minutes later
(`compute.capability.PATIENCE_S`). What its owner keeps for themselves waits for as long as
that lasts, since it takes no work of peers meanwhile, and says so.

What was measured beside other work may be far too low. It is claimed all the same, marked,
and taken anew when the machine is quiet: soon at first, then ever later.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from shoal.compute import capability as figures
from shoal.compute.capability import VERSION, Measurement
from shoal.node import owner
from shoal.protocol.challenge_terms import RATE_SHOWN_MIN

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from shoal.node.owner import Stance

LIFETIME_S: Final = 7 * 86400.0
BELIED_AFTER_S: Final = 60.0
"""Between two measurements because a claim could not be shown."""

FAILED_AFTER_S: Final = 3600.0
"""Before what could not be measured is tried again, where the rest was."""

RETRY_LIMIT_S: Final = 3600.0
"""Between two tries where all fails, at the most: the time doubles from `BELIED_AFTER_S` on."""

ALONE_S: Final = 60.0
"""So long one device is measured while no other is; one with many units takes longer."""

IN_LINE_AFTER_S: Final = 60.0
"""So long an empty moment is waited for, before a measurement waits in the units' line."""

DISTURBED_AFTER_S: Final = 600.0
"""Before figures that were taken beside other work are taken anew in a quiet moment; each
time that they were again, four times as long, up to `LIFETIME_S`."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a device is not measured now.

    Attributes:
        why: For people.
        by: ``units`` that run there; ``others``, which the owner may pass over; or the
            ``owner``, who lets nothing run there.
    """

    why: str
    by: Literal["units", "others", "owner"]


@dataclass(slots=True)
class Tries:
    """How the measuring of one device has gone.

    Attributes:
        problem: Why the last try gave nothing; "" where it gave something.
        failures: How many in a row gave nothing.
        again_s: From when on it may be tried again.
        belied: Whether the device could not show what is claimed of it.
        asks: How often its owner has asked for it.
        meant: How many of these the measurement that goes on is for: who asks while it does
            gets another.
        answered: How many of these it has been measured for, or could not be.
        hold: What keeps it from being measured.
        held_since: Since when, in seconds since the epoch; None where nothing does.
        held_from_s: The same by the daemon's own clock.
        measuring: Whether its turn has come.
    """

    problem: str = ""
    failures: int = 0
    again_s: float = 0.0
    belied: bool = False
    asks: int = 0
    meant: int = 0
    answered: int = 0
    hold: Hold | None = None
    held_since: float | None = None
    held_from_s: float = 0.0
    measuring: bool = False

    @property
    def asked(self) -> bool:
        """Whether its owner asked for it, and it has not been measured since."""
        return self.asks > self.answered

    def held(self, hold: Hold | None, wall_s: float, now_s: float) -> None:
        """Note what keeps it from being measured; it is not empty until it was measured."""
        self.hold = hold
        if hold is not None and self.held_since is None:
            self.held_since, self.held_from_s = wall_s, now_s

    def not_held(self) -> None:
        """Note that it is measured, or need not be."""
        self.hold = self.held_since = None


def is_stale(
    kept: Measurement | None, key: str, wall_s: float, *, belied: bool, quiet: bool = False
) -> bool:
    """Whether a device is to be measured anew; ``quiet``: the machine does nothing else."""
    if kept is None or kept.key != key or kept.version != VERSION:
        return True
    age_s = wall_s - kept.measured_at
    return (
        not 0 <= age_s <= LIFETIME_S
        or (belied and age_s > BELIED_AFTER_S)
        or (bool(kept.failed) and age_s > FAILED_AFTER_S)
        or (bool(kept.beside) and quiet and age_s > disturbed_after_s(kept.disturbed))
    )


def disturbed_after_s(times: int) -> float:
    """How long figures stay that were taken beside other work so often in a row."""
    return float(min(LIFETIME_S, DISTURBED_AFTER_S * 4.0 ** min(max(0, times - 1), 16)))


def retry_after_s(failures: int) -> float:
    """How long a device is left alone that could not be measured so often in a row."""
    return float(min(RETRY_LIMIT_S, BELIED_AFTER_S * 2.0 ** min(failures - 1, 16)))


def may_begin(
    began_s: Mapping[str, float], device: str, now_s: float, measuring: Collection[str] = ()
) -> bool:
    """Whether a device may be measured now, beside those that are since ``began_s``.

    Args:
        began_s: Since when each of them is, or waits in the line of its units.
        device: The device.
        now_s: By the same clock.
        measuring: Those of them whose turn has come.
    """
    return (
        device not in began_s
        and not measuring
        and all(now_s - at_s > ALONE_S for at_s in began_s.values())
    )


def hold_of(stance: Stance, *, provide: bool, units: bool) -> Hold | None:
    """What keeps a device from being measured at this moment.

    Args:
        stance: What it takes now.
        provide: Whether this node takes work at all.
        units: Whether some run there.
    """
    if not provide:
        return Hold("this node takes no work, so that it claims nothing", "owner")
    if stance.cause is not None:
        return Hold(owner.sentence(stance), "others" if stance.own else "owner")
    return Hold("units run there", "units") if units else None


def may_wait_in_line(hold: Hold | None, held_s: float, *, asked: bool) -> bool:
    """Whether a measurement may wait for its turn among a device's units.

    Args:
        hold: What keeps it from being measured at once.
        held_s: For how long it has been.
        asked: Whether the owner wants it now.
    """
    if hold is None:
        return True
    if asked:
        return hold.by != "owner"
    return hold.by == "units" and held_s >= IN_LINE_AFTER_S


def why_no_rate(
    numeric_class: str,
    measured: Measurement | None,
    problem: str,
    *,
    compiled: bool,
    busy: bool = False,
) -> str:
    """Why a class of a device has no rate.

    Args:
        numeric_class: The class.
        measured: What is claimed of the device.
        problem: Why the last try to measure it gave nothing.
        compiled: Whether programs of the class only compile for it.
        busy: Whether something else keeps it from being measured.
    """
    if compiled:
        return "compile-only: nothing runs there that could be measured"
    if numeric_class not in {"exact", *figures.PRODUCTS}:
        return "units of this class are kernels of their own, of which no rate tells anything"
    failed = dict(measured.failed).get(numeric_class, "") if measured else problem
    if failed:
        return f"it could not be measured: {failed.rstrip('.')}"
    if measured is None and busy:
        return "not measured yet: the device has been busy"
    if measured is None:
        return "not measured yet: that takes some seconds, when nothing else runs there"
    beside = ", as it was measured beside other work" if measured.beside else ""
    return f"slower than the {RATE_SHOWN_MIN:.0e} a second that can be shown{beside}"
