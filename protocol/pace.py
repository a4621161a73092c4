"""How often a node says what about itself: the numbers of membership, each a function.

Everything that a node does for membership costs each other node something, so the
pace slows as the network grows. The target: at 1,000 nodes, at most 1 % of a core
and 2 KB/s on each node, with every copy counted. What that buys, and what was
measured, is in docs/MEMBERSHIP.md.
"""

from __future__ import annotations

from shoal.protocol.limits import ADVERT_LIFETIME_LIMIT_S

RENEWALS_PER_LIFETIME = 3
"""So a node is hidden by no renewal that is late, and costs 3 signatures a lifetime."""

GROWTH_RENEWED = 1.5
"""A node renews early when the lifetime that it stated has become too short by this: the
network has grown, the pace has slowed, and the next renewal would come too late to many."""

RELAYS_PER_S = 0.5
"""Gossip that a node passes on, on average: 1.4 ms of CPU and some 2.5 KB a second.

A network of 1,000 nodes of which a tenth is new each 10 minutes has a third of it.
What comes faster is taken in and not passed on: anti-entropy brings it, later.
"""

RELAYS_BURST = 64
"""Gossip passed on at once: a rack that is switched on."""


def advert_lifetime_s(nodes: int) -> float:
    """How long an advert is good for without a renewal: 17 minutes at 1,000 nodes.

    A table holds the dead as well, a sixth more where a tenth goes each 10 minutes: so
    that 1,000 living nodes forget within 20 minutes.
    """
    return min(ADVERT_LIFETIME_LIMIT_S, max(60.0, float(nodes)))


def renewal_interval_s(lifetime_s: float) -> float:
    """How long between two renewals; at 1,000 nodes each node gets 3 a second."""
    return lifetime_s / RENEWALS_PER_LIFETIME


def advert_gap_s(nodes: int) -> float:
    """The least time between two adverts of one node, however fast what it says changes."""
    return max(1.0, nodes / 10)


def gossip_gap_s(nodes: int) -> float:
    """The least time between two adverts of one node by gossip; others go by anti-entropy.

    By gossip an advert reaches a node five times, by anti-entropy once. Where
    comparing tables takes seconds, gossip is for those who join.
    """
    return max(1.0, 8.0 * (nodes - 10))


def relay_share(nodes: int) -> float:
    """Of the gossip that may be passed on, how much a node does pass on, drawn at random.

    In a mesh in which each has 6 neighbours, six nodes in ten that pass on reach 99.5 %
    with six tenths of the copies; comparing brings the rest. Small networks can afford all.
    """
    return 1.0 if nodes <= 100 else 0.6


def comparing_interval_s(nodes: int) -> float:
    """How long between two comparisons of tables that one node begins.

    A digest has 16 bytes for each node: 200 bytes a second, however many there are.
    """
    return max(2.0, 0.08 * nodes)


def scouting_spread_s(nodes: int) -> float:
    """Over how long the nodes that drop an expired advert begin to dial its node.

    They all do so at once, and it may live: five calls a second can be answered.
    """
    return nodes / 5


def ping_interval_s(links: int) -> float:
    """How long between two pings of one link.

    A ping costs 0.3 ms of CPU at each end. At the longest interval a link that hangs
    is found, tried once more and given up within 9 s.
    """
    return min(5.0, max(2.0, links / 2))
