"""What an advert says of how its node is reached, by the judgement on that.

Addresses that others would dial in vain cost them seconds each, so a node advertises
those that work, once it knows; and one that cannot be dialled names peers which can
ask it to dial (``via``). While nothing is known, all it listens on is advertised.
Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from shoal.crypto.peer_id import PeerId
from shoal.protocol.limits import VIA_LIMIT
from shoal.protocol.reachability import Judgement, Place, Report, Scope, Verdict, scope_of


@dataclass(frozen=True, slots=True)
class Advertised:
    """What an advert says of how its node is reached."""

    places: tuple[Place, ...]
    via: tuple[PeerId, ...] = ()


def advertise(
    judgement: Judgement,
    reports: Iterable[Report],
    listening: Iterable[Place],
    linked: Mapping[PeerId, str],
    introducers: Iterable[PeerId],
) -> Advertised:
    """What to advertise under a judgement.

    Unknown: everything it listens on, as before it was judged. Public: what worked.
    Private and blocked: what has not failed, where there is anything. Loopback is left
    out once there is a verdict, and links, and none of them is on this machine.

    Args:
        judgement: From `judge`, of the same reports, places and links.
        reports: Those that count now.
        listening: Where it listens.
        linked: Its links, and where each of them is.
        introducers: Linked peers that can be dialled, the preferred ones first.
    """
    listening = tuple(listening)
    scopes = {scope_of(ip) for ip in linked.values()}
    near = [place for place in listening if scope_of(place[0]) is Scope.LOOPBACK]
    kept = near if not scopes or Scope.LOOPBACK in scopes else []
    match judgement.verdict:
        case Verdict.UNKNOWN:
            places: Iterable[Place] = listening
        case Verdict.PUBLIC:
            shown = [
                (report.seen_as, port)
                for report in reports
                for port in report.shown
                if (report.seen_as, port) in listening
            ]
            places = (*judgement.working, *shown, *kept)
        case Verdict.PRIVATE | Verdict.BLOCKED:
            far = (place for place in listening if scope_of(place[0]) is not Scope.LOOPBACK)
            places = (*far, *kept)
    failing = set(judgement.failing) if judgement.verdict is not Verdict.UNKNOWN else set()
    lasting = tuple(place for place in dict.fromkeys(places) if place not in failing)
    via = tuple(introducers)[:VIA_LIMIT] if judgement.suspect else ()
    return Advertised(lasting, via)


def choose_introducers(
    linked: Mapping[PeerId, str], dialled: Iterable[PeerId], current: Iterable[PeerId]
) -> tuple[PeerId, ...]:
    """Through whom others may be introduced to this node: those it dialled itself.

    Current ones stay as long as they are linked, so that the advert does too. Others
    come from far away first: who needs one is not in this network.
    """
    able = [
        peer
        for peer in dialled
        if peer in linked and scope_of(linked[peer]) is not Scope.LOOPBACK
    ]
    kept = [peer for peer in current if peer in able]
    able.sort(key=lambda peer: -scope_of(linked[peer]))
    return tuple(dict.fromkeys((*kept, *able)))[:VIA_LIMIT]
