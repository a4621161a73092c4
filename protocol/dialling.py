"""Whom to dial, where, and when again: the half of membership that opens connections.

There are three reasons to dial. A node *wants links*, because gossip over a sparse
mesh loses most messages: it takes nodes of its table at random, so that the links of
the whole network are a random graph, in which none is a hub. A node is *alone*: it
tries whatever it has heard of. And a node *scouts*: peers that it knew and lost, that
it remembers from its last run, or that it was told of, and that are not in its table,
are dialled for ever, more and more slowly, because a network that was cut in two
knows of its other half by nothing else.

How slowly: after a fifth of the time that the peer is gone, and a minute at most. So
two halves that were cut for two minutes meet again half a minute after they can; and
however long a list of dead peers is, `SCOUT_GAP_S` bounds what it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shoal.crypto.peer_id import PeerId

LINKS_WANTED = 6
LINKS_LIMIT = 24
"""Links that a node takes from others, who are then told of others to ask. Each costs
0.3 ms of CPU for a ping every few seconds, in both directions."""

DIALS_AT_ONCE = 4
BACK_OFF_FIRST_S = 1.0
BACK_OFF_LIMIT_S = 60.0
BOOTSTRAP_LIMIT_S = 30.0
"""For bootstrap peers that are not in the table: they are few, and meant."""

ALONE_LIMIT_S = 2.0
"""For bootstrap peers, while no peer is connected: there is nobody else to join by."""

SCOUT_GAP_S = 3.0
SCOUT_FIRST_S = 5.0
SCOUT_LIMIT_S = 60.0
BOOTSTRAP_PLACES_LIMIT = 64
ABSENT_LIMIT = 128
"""Peers to scout for: 64 remembered ones and as many that were lost. A full list
forgets one at random, so that in a network that always loses some it keeps
a few from long ago; and there are other nodes, which forget others."""

ADDRESSES_LIMIT = 8
"""Of one peer, as in an advert."""


@dataclass(slots=True)
class BackOff:
    """When a peer may be dialled again: 1 s after the first failure, then doubling."""

    delay_s: float = 0.0
    failed_at_s: float = -math.inf
    spread: float = 1.0

    def failed(self, now_s: float, jitter: float) -> None:
        """Wait longer than last time; ``jitter`` in [0, 1) spreads equals apart."""
        self.delay_s = min(BACK_OFF_LIMIT_S, max(BACK_OFF_FIRST_S, 2 * self.delay_s))
        self.failed_at_s, self.spread = now_s, 0.75 + 0.5 * jitter

    def over_at_s(self, limit_s: float = BACK_OFF_LIMIT_S) -> float:
        """When the next attempt may be made, if ``limit_s`` is the longest wait."""
        return self.failed_at_s + self.spread * min(self.delay_s, limit_s)


@dataclass(slots=True)
class Absent:
    """A peer that is not in the table, and where it may be found."""

    addresses: tuple[str, ...]
    lost_at_s: float
    due_at_s: float

    def tried(self, now_s: float, jitter: float) -> None:
        """Wait a fifth of the time that it is gone, within bounds; ``jitter`` as above."""
        wait_s = min(SCOUT_LIMIT_S, max(SCOUT_FIRST_S, 0.2 * (now_s - self.lost_at_s)))
        self.due_at_s = now_s + wait_s * (0.75 + 0.5 * jitter)


@dataclass(slots=True)
class Places:
    """Where peers may be found that no advert in the table tells of.

    Args:
        bootstrap: Addresses by peer, as the operator gave them.
        remembered: The same from the last run, last seen first.
        draw: Gives numbers in [0, 1).
    """

    bootstrap: dict[PeerId, tuple[str, ...]]
    remembered: Mapping[PeerId, tuple[str, ...]]
    draw: Callable[[], float]
    now_s: float
    absent: dict[PeerId, Absent] = field(init=False)

    def __post_init__(self) -> None:
        self.absent = {
            peer: Absent(addresses, self.now_s, self.now_s)
            for peer, addresses in list(self.remembered.items())[:ABSENT_LIMIT]
        }

    def hear_of(
        self, peer: PeerId, addresses: Sequence[str], now_s: float, *, bootstrap: bool
    ) -> None:
        """Take up a place where a peer may be; the newest word comes first."""
        if bootstrap:
            before = self.bootstrap.get(peer, ())
            if peer in self.bootstrap or len(self.bootstrap) < BOOTSTRAP_PLACES_LIMIT:
                self.bootstrap[peer] = _joined(addresses, before)
            return
        known = self.absent.get(peer)
        if known is None:
            self.lost(peer, addresses, now_s)
            known = self.absent.get(peer)
        if known is None:
            return
        known.addresses = _joined(addresses, known.addresses)
        known.lost_at_s = known.due_at_s = now_s

    def lost(
        self, peer: PeerId, addresses: Sequence[str], now_s: float, spread_s: float = 0.0
    ) -> None:
        """Scout for a peer that is not in the table any more, or never was.

        ``spread_s``: the first time is drawn from so many seconds, if many nodes lose
        it at once: it may live.
        """
        if not addresses:
            return
        if peer not in self.absent and len(self.absent) >= ABSENT_LIMIT:
            del self.absent[list(self.absent)[int(self.draw() * len(self.absent))]]
        first_s = SCOUT_FIRST_S + spread_s * self.draw()
        self.absent[peer] = Absent(tuple(addresses)[:ADDRESSES_LIMIT], now_s, now_s + first_s)

    def found(self, peer: PeerId) -> None:
        """It is in the table: its advert says where it is."""
        self.absent.pop(peer, None)

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where ``peer`` may be found besides where its advert says."""
        absent = self.absent.get(peer)
        return (
            *(absent.addresses if absent else ()),
            *self.bootstrap.get(peer, ()),
            *self.remembered.get(peer, ()),
        )

    def due(self, now_s: float) -> list[PeerId]:
        """Whom to scout for, those lost last first: they most likely still live."""
        due = [(-a.lost_at_s, peer) for peer, a in self.absent.items() if a.due_at_s <= now_s]
        return [peer for _, peer in sorted(due)]

    def next_due_s(self) -> float:
        """When the next of them is due."""
        return min((absent.due_at_s for absent in self.absent.values()), default=math.inf)


def choose_dials(
    *,
    bootstrap: Iterable[PeerId],
    known: Iterable[PeerId],
    absent: Iterable[PeerId],
    wanting: int,
    alone: bool,
    may_scout: bool,
    dialling: Collection[PeerId],
) -> list[PeerId]:
    """Whom to dial now, so that at most `DIALS_AT_ONCE` are under way. Pure.

    Args:
        bootstrap: Bootstrap peers that are neither connected nor in the table, and
            past their back-off, as all of these.
        known: Nodes of the table that are not connected.
        absent: Peers to scout for that are due.
        wanting: How many links are wanting, dials under way counted as links.
        alone: No peer is connected: everything is tried.
        may_scout: Enough time has passed since the last scouting dial.
        dialling: Who is being dialled.
    """
    room = DIALS_AT_ONCE - len(dialling)
    wanted = list(bootstrap)
    wanted += list(known)[: max(0, wanting)]
    if alone:
        wanted += absent
    elif may_scout:
        wanted += list(absent)[:1]
    fresh = [p for p in dict.fromkeys(wanted) if p not in dialling]
    return fresh[: max(0, room)]


def _joined(first: Sequence[str], then: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *then)))[:ADDRESSES_LIMIT]
