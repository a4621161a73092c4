"""How a card's memory is shared out among the processes on it: pure.

What is lent of a card is taken by processes. Each has a context there, and the weights of
the programs that it holds; while it runs a unit it may use as much as that unit's limit
beside. A unit may begin next to others where all of that, of every process, fits into
what is lent; else it waits. Alone on the card any unit may begin that was taken at all:
processes that only wait for their requesters' next units are ended to make room for it.

Where a driver does not say how much memory its card has, nothing can be shared out, and
one unit runs at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LENT_SHARE: Final = 0.9
"""Of a card's memory: its driver, a screen and what is left between allocations take some."""

CONTEXT_BYTES: Final = 512 << 20
"""What a process takes of a card before it holds a program: a CUDA context and the modules
of libraries are 300 to 500 MB."""

OVERHEAD_BYTES: Final = 64 << 20
"""What a runtime's sessions take, whatever the program; added to every unit's limit."""

UNUSED_BYTES: Final = 256 << 20
"""What a process may keep for its next unit, which is the faster for it; more would be
missing to the processes of other requesters."""

PLACE_BYTES: Final = 2 << 30
"""What a card has to have for each unit that it runs at once: below that only the smallest
would ever run beside others, and every context would be missing to the one that runs."""

_LEAST_SHARE: Final = 0.25
"""Of a card's memory that a unit may ask for where contexts alone would take all of it."""


@dataclass(frozen=True, slots=True)
class Use:
    """What a process takes of a card.

    Attributes:
        weights_bytes: Of the programs that it holds.
        limit_bytes: The limit of the unit that it runs; None where it runs none.
        preparing_bytes: What a program may take beside that it does not hold yet.
    """

    weights_bytes: int = 0
    limit_bytes: int | None = None
    preparing_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it, at the most."""
        unit = UNUSED_BYTES if self.limit_bytes is None else OVERHEAD_BYTES + self.limit_bytes
        return CONTEXT_BYTES + self.weights_bytes + self.preparing_bytes + unit


SPARE: Final = Use()
"""The process that waits for the next requester."""


def lent_bytes(card_bytes: int) -> int:
    """How much of a card is lent, of so much in all; 0 where that is not known."""
    return int(card_bytes * LENT_SHARE)


def unit_most_bytes(card_bytes: int) -> int:
    """What one unit may ask for at most: what is left beside its process and the spare."""
    taken = SPARE.total_bytes + Use(limit_bytes=0).total_bytes
    return max(lent_bytes(card_bytes) - taken, int(card_bytes * _LEAST_SHARE))


def places(card_bytes: int, wanted: int) -> int:
    """How many units a card runs at once where its memory allows, at least one."""
    most = (lent_bytes(card_bytes) - SPARE.total_bytes) // PLACE_BYTES
    return max(1, min(wanted, most))


def share_bytes(card_bytes: int, at_once: int) -> int:
    """What a process may hold of a card whatever others take there.

    Where one unit runs at a time it is nothing: no other unit is in its way, so that what
    its own lacks it has to make room for by itself.
    """
    if at_once < 2:
        return 0
    return max(0, lent_bytes(card_bytes) - SPARE.total_bytes) // at_once


def believed_bytes(told: int, card_bytes: int) -> int:
    """What is believed of a process that says how much of a card its programs take.

    A program may have broken into it: it takes no less than nothing, and no more than there
    is. Of a card of unknown size nothing is shared out, and nothing believed.
    """
    return max(0, min(told, card_bytes))


def fits(lent: int, unit_bytes: int, running: Iterable[Use], wanted: Use) -> bool:
    """Whether a unit may begin beside those that run.

    Args:
        lent: What is lent of the card, in bytes.
        unit_bytes: What one unit may ask for. The limits of all that run at once are within
            that too: their inputs and outputs pass through this machine's memory.
        running: What those take.
        wanted: What its process would take while it runs.
    """
    uses = [SPARE, wanted, *running]
    limits = sum(use.limit_bytes or 0 for use in uses)
    return limits <= unit_bytes and sum(use.total_bytes for use in uses) <= lent


def to_end(lent: int, running: Iterable[Use], idle: Sequence[Use]) -> int:
    """How many of the processes that run nothing are to be ended, from the first.

    Args:
        lent: What is lent of the card, in bytes.
        running: What those take that run a unit, or are about to.
        idle: What those take that do not, the one first that may go first.
    """
    over = sum(use.total_bytes for use in (SPARE, *running, *idle)) - lent
    number = 0
    while over > 0 and number < len(idle):
        over -= idle[number].total_bytes
        number += 1
    return number
