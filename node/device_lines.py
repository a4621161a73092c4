"""Devices as an advert lists them: equal ones in one line, with what each of them can do.

Pure. A node says of equal cards once what it claims, and that it has so many of them; the
claim is about each card by itself, so it is what the slowest of the line was measured to do.
A bid or a challenge names a card, which need not be the one that its line is named by:
`line_of` finds the line, by the numbers in their names.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from shoal.protocol.limits import EQUAL_DEVICES_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shoal.protocol.device_offers import ClassRate, DeviceOffer

SPREAD: Final = 1.25
"""Cards of one line may be so many times as fast as its slowest: two of a kind differ by a
few hundredths, and one that is throttled does not drag the others down."""


def lines_of(offers: Iterable[DeviceOffer]) -> tuple[DeviceOffer, ...]:
    """Devices that are equal but for their ids in one line, in the order of the first."""
    lines: list[DeviceOffer] = []
    for offer in offers:
        for place, line in enumerate(lines):
            joined = _joined(line, offer)
            if joined is not None:
                lines[place] = joined
                break
        else:
            lines.append(offer)
    return tuple(lines)


def _joined(line: DeviceOffer, offer: DeviceOffer) -> DeviceOffer | None:
    """A line with another device in it; None where that is none of its kind."""
    if _kind(line) != _kind(offer):
        return None
    for ours, theirs in zip(line.rates, offer.rates, strict=True):
        if not 1 / SPREAD <= theirs.rate / ours.rate <= SPREAD:
            return None
    return replace(
        line,
        rates=tuple(map(_slower, line.rates, offer.rates)),
        memory_rate=min(line.memory_rate, offer.memory_rate),
        count=min(line.count + offer.count, EQUAL_DEVICES_LIMIT),
    )


def _kind(offer: DeviceOffer) -> DeviceOffer:
    """All but what two devices of a line may differ in."""
    rates = tuple(replace(rate, rate=1.0) for rate in offer.rates)
    return replace(offer, id="", count=1, rates=rates, memory_rate=0.0)


def _slower(one: ClassRate, other: ClassRate) -> ClassRate:
    return min(one, other, key=lambda rate: rate.rate)


def line_of(lines: Sequence[DeviceOffer], device: str) -> DeviceOffer | None:
    """The line that a device is in; None where there is none, or it cannot be told which.

    Lines are named by their first card, and cards are numbered in order: a card that names
    no line is in one of those before it. Where that may be several, they tell which if each
    line's cards follow one another.

    Args:
        lines: Of an advert.
        device: Such as ``gpu3``.
    """
    for line in lines:
        if line.id == device:
            return line
    number = _number(device)
    several = [line for line in lines if line.count > 1 and _number(line.id)]
    before = [line for line in several if _number(line.id) < number]
    if len(before) <= 1:
        return before[0] if before else None
    cards = sorted((line for line in lines if _number(line.id)), key=lambda ln: _number(ln.id))
    apart = all(
        len(_number(one.id)) == 1 and _number(one.id)[0] + one.count <= _number(two.id)[0]
        for one, two in pairwise(cards)
    )
    return before[-1] if apart and _last(before[-1]) >= number[0] else None


def _last(line: DeviceOffer) -> int:
    """The number of a line's last card, where its cards follow one another."""
    return _number(line.id)[0] + line.count - 1


def _number(device: str) -> tuple[int, ...]:
    """The numbers in a card's id: (3,) of gpu3, (1, 0) of gpu1-mig0; none of the CPU's."""
    return tuple(map(int, re.findall(r"\d+", device[:64])))
