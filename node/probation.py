"""How many newcomers a requester tries at once, and how long they are tried under one award.

Every result of a newcomer is checked, and as long as nobody has standing it is this node
itself that checks. Were all the strangers of a large network given units at once, what
they return would wait for one machine, and a job would take longer than without them. So
newcomers are tried a few at a time, those first that are furthest; each that passes may
verify others, so that the more have passed, the more are tried: from nothing to hundreds
in some minutes.

An award names the verifiers of its receipts once and for all. One that was given when
hardly anybody might verify is ended as soon as there are enough who may, so that the next
one names them.

Pure; `node.jobs` offers the scheduler whom `tried` leaves, and closes what is `outdated`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Final

from shoal.crypto.peer_id import PeerId
from shoal.node.result_standing import StandingNow

TRIED_LEAST: Final = 8
"""Newcomers tried at once where nobody may verify yet: this node alone checks what they
return, and a few units of each must not take it longer than some seconds."""

TRIED_SHARE: Final = 1.0
"""Newcomers tried at once for each peer that is none: the one checks about as much as the
other returns."""

WAITING_UNITS: Final = 4
"""Results of one newcomer that wait to be checked. Who lies without computing is faster than
anybody, and would get whatever there is before its first lie is found."""

LISTED_ENOUGH: Final = 8
"""Candidates with which a draw is good enough to be kept: one of them that is slow, gone or
false does not matter much."""


def tried(
    peers: Iterable[PeerId],
    of: Callable[[PeerId], StandingNow],
    may_verify: Callable[[PeerId], bool],
) -> tuple[list[PeerId], list[PeerId]]:
    """Whom to give work now, and who has to wait until others have been tried.

    Args:
        peers: All that offer work, those first that are to be tried first.
        of: Their standing.
        may_verify: Whether a peer may check others' results: then it need not be tried, as
            friends need not.
    """
    known: list[PeerId] = []
    new: list[tuple[int, int, PeerId]] = []
    for place, peer in enumerate(peers):
        now = of(peer)
        if now.newcomer and not may_verify(peer):
            new.append((-now.good_in_a_row, place, peer))
        else:
            known.append(peer)
    new.sort()
    limit = max(TRIED_LEAST, int(TRIED_SHARE * len(known)))
    return known + [peer for *_, peer in new[:limit]], [peer for *_, peer in new[limit:]]


def is_full(now: StandingNow, waiting: int) -> bool:
    """Whether a peer is to get nothing more until what it returned was checked.

    Args:
        now: Its standing.
        waiting: How many of its results wait.
    """
    return now.newcomer and waiting >= WAITING_UNITS


def outdated(listed: Collection[PeerId], may_verify: int) -> bool:
    """Whether a lease is to end for the sake of a better list of verifiers.

    Args:
        listed: The candidates that its award names.
        may_verify: How many a new award would name.
    """
    return len(listed) < LISTED_ENOUGH and may_verify >= max(2, 2 * len(listed))
