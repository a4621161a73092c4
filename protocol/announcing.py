"""What a node says to everybody: its own advert, and what it passes on of others' gossip.

`Announcing` decides when this node's advert is signed, renewed and gossiped; `Relays`
bounds what is passed on, so that nobody makes a whole network work by signing adverts
quickly, or by making up keys. Both are state with time as an argument, and are part of
the machine of `protocol.membership`. How often is `protocol.pace`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from shoal.crypto.envelope import Statement
from shoal.crypto.peer_id import PeerId
from shoal.protocol import pace
from shoal.protocol.adverts import AdvertTable
from shoal.protocol.codec import encode
from shoal.protocol.limits import DIGEST_LIMIT, RENEWALS_LIMIT
from shoal.protocol.membership_events import Effect, Gossip, Issue
from shoal.protocol.statements import Renewal

SETTLING_S = 3.0
"""From the first link to the gossip of this node's advert: a gossip mesh needs a
heartbeat or two to take a peer in, and a message to an empty mesh is lost."""

SETTLING_LIMIT_S = 20.0
"""The same while the table is still coming in: its size decides the advert's lifetime."""


@dataclass(slots=True)
class Announcing:
    """When this node's own advert is signed, renewed and gossiped.

    Args:
        own: This node.
        table: Where its advert is held, with those of others: how many decides the pace.
        sign: Gives the envelope of a statement of this node's.
        draw: Gives numbers in [0, 1).
    """

    own: PeerId
    table: AdvertTable
    sign: Callable[[Statement, bytes], bytes]
    draw: Callable[[], float]
    _issuing: bool = False
    _joining: bool = False
    _linked_at_s: float | None = None
    _issued_at_s: float = -math.inf
    _gossiped_at_s: float = -math.inf
    _stated_lifetime_s: float = math.inf
    _issue_at_s: float = math.inf
    _gossip_at_s: float = math.inf
    _renew_at_s: float = math.inf

    @property
    def next_deadline_s(self) -> float:
        """When `act` is due next, if nothing happens before."""
        return min(self._issue_at_s, self._renew_at_s, self._gossip_at_s)

    def linked(self, now_s: float) -> None:
        """This node has a link: it gossips its advert soon, if it had none before."""
        if self._linked_at_s is None:
            self._linked_at_s = now_s
            self._gossip_at_s = now_s + SETTLING_S

    def unlinked(self) -> None:
        """This node has no link any more."""
        self._linked_at_s = None

    def more_came(self, now_s: float) -> None:
        """The table is still coming in: the gossip waits for it."""
        if self._linked_at_s is not None and self._gossip_at_s < math.inf:
            self._gossip_at_s = min(now_s + SETTLING_S, self._linked_at_s + SETTLING_LIMIT_S)

    def changed(self, now_s: float) -> None:
        """What the advert says is true no longer: issue one as soon as the pace allows."""
        gap_s = pace.advert_gap_s(len(self.table))
        self._issue_at_s = min(self._issue_at_s, max(now_s, self._issued_at_s + gap_s))

    def expired(self, now_s: float) -> None:
        """The advert expired: this node's clock stood still, or its disk was full."""
        self._issue_at_s = min(self._issue_at_s, now_s)

    def not_issued(self, now_s: float) -> None:
        """It could not be signed; what was issued is renewed meanwhile."""
        self._issuing = False
        self._issue_at_s = now_s + pace.renewal_interval_s(self._lifetime_s())

    def issued(
        self, envelope: bytes, now_s: float, wall_ms: int, *, heard: bool
    ) -> list[Effect]:
        """A new advert was signed: take it in, and gossip it if it is time for that.

        ``heard`` is whether anybody is connected, be it a node or who just listens.
        """
        self._issuing = False
        self._issued_at_s = now_s
        _, advert = self.table.accept(envelope, age_s=0.0, now_s=now_s, wall_ms=wall_ms)
        self._stated_lifetime_s = advert.lifetime_s
        self._renew_at_s = now_s + self._renewing_pause_s()
        is_time = now_s - self._gossiped_at_s >= pace.gossip_gap_s(len(self.table))
        if not heard or not (self._joining or is_time):
            return []
        self._joining = self._joining and self._linked_at_s is None
        self._gossiped_at_s = now_s
        return [Gossip(envelope)]

    def renew(self, now_s: float, wall_ms: int) -> None:
        """Say that the advert is good for another lifetime."""
        entry = self.table.get(self.own)
        if entry is None or entry.number >= RENEWALS_LIMIT:
            self._issue_at_s, self._renew_at_s = now_s, math.inf
            return
        renewal = Renewal(
            sequence=entry.advert.sequence,
            number=entry.number + 1,
            issued_at_ms=wall_ms,
            lifetime_s=self._lifetime_s(),
        )
        self._stated_lifetime_s = renewal.lifetime_s
        envelope = self.sign(Statement.RENEWAL, encode(renewal))
        self.table.renew(envelope, (renewal, self.own), age_s=0.0, now_s=now_s, wall_ms=wall_ms)
        self._renew_at_s = now_s + self._renewing_pause_s()

    def act(self, now_s: float, wall_ms: int, *, coming_in: bool) -> list[Effect]:
        """Do what is due by now. ``coming_in``: more of the table is on its way."""
        if now_s >= self._renew_at_s or (not coming_in and self._has_outgrown_its_lifetime()):
            self.renew(now_s, wall_ms)
        if now_s >= self._gossip_at_s:
            self._gossip_at_s, self._joining = math.inf, True
            self._issue_at_s = now_s  # with the lifetime that fits the table as it is now
        if now_s < self._issue_at_s:
            return []
        self._issue_at_s = math.inf
        if self._issuing:
            return []
        self._issuing = True
        return [Issue(self._lifetime_s())]

    def _has_outgrown_its_lifetime(self) -> bool:
        if self._linked_at_s is None or self._gossip_at_s < math.inf or self._issuing:
            return False  # it is joining: its advert is about to be issued anew
        return self._lifetime_s() > pace.GROWTH_RENEWED * self._stated_lifetime_s

    def _lifetime_s(self) -> float:
        return pace.advert_lifetime_s(len(self.table))

    def _renewing_pause_s(self) -> float:
        return pace.renewal_interval_s(self._lifetime_s()) * (0.9 + 0.2 * self.draw())


@dataclass(slots=True)
class Relays:
    """Of whom news was passed on when, and how much more may be.

    Args:
        counted_at_s: Now.
    """

    counted_at_s: float
    _left: float = float(pace.RELAYS_BURST)
    _relayed_at_s: dict[PeerId, float] = field(default_factory=dict)

    def spend(self, peer: PeerId, nodes: int, now_s: float) -> bool:
        """Whether news of ``peer`` may be passed on now; if so it counts as passed on."""
        # A quarter of the pace that honest nodes keep: they may know of other sizes.
        gap_s = pace.gossip_gap_s(nodes) / 4
        if now_s - self._relayed_at_s.get(peer, -math.inf) < gap_s:
            return False
        earned = (now_s - self.counted_at_s) * pace.RELAYS_PER_S
        self._left = min(pace.RELAYS_BURST, self._left + earned)
        self.counted_at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        while len(self._relayed_at_s) >= 2 * DIGEST_LIMIT:  # of nodes that are gone as well
            del self._relayed_at_s[next(iter(self._relayed_at_s))]
        self.note(peer, now_s)
        return True

    def note(self, peer: PeerId, now_s: float) -> None:
        """Note that news of ``peer`` was gossiped."""
        self._relayed_at_s[peer] = now_s

    def forget(self, peer: PeerId) -> None:
        """It is gone: what it says when it is back is news."""
        self._relayed_at_s.pop(peer, None)
