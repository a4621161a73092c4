"""How a node comes to know the others and to be known, as one state machine, sans IO.

`Member` takes what happened and gives what is to be done (`protocol.membership_events`);
time and random numbers are arguments. The daemon carries effects out over libp2p
(`node.membership`); the simulator does so for a thousand members in virtual time
(`tests/net/simulated_swarm.py`). What is held is in `protocol.adverts`, how often
things are done in `protocol.pace`, whom to dial in `protocol.dialling`.

The rules, in one paragraph. A connection becomes a *link* once its peer has compared
tables with this node. A node that has its first link, and has its table from there,
gossips its advert once; from then on it renews it, and renewals and changes travel by
comparisons with links drawn at random. Gossip brings a newcomer to everybody in
seconds; comparisons bring everything else, and what gossip lost. A node that has as
many links as it takes answers a caller with a few other nodes to ask. A link whose
connection ends is dialled once more at once; if that fails the peer is buried and
scouted for. A peer that is met again, or that a call found dead, is known by that:
nobody's word counts against what this node sees for itself.

Prior art: anti-entropy and rumour mongering (Demers et al. 1987) for the two ways that
news spreads; HyParView (Leitão et al. 2007) for links and for peers in reserve; OSPF for
ages. Why not SWIM's shared suspicion: a node cannot trust what a stranger says of the dead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shoal.crypto.envelope import Statement
from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.protocol import pace
from shoal.protocol.adverts import AdvertTable, Verdict
from shoal.protocol.announcing import Announcing, Relays
from shoal.protocol.dialling import (
    ALONE_LIMIT_S,
    BACK_OFF_LIMIT_S,
    BOOTSTRAP_LIMIT_S,
    LINKS_LIMIT,
    LINKS_WANTED,
    SCOUT_GAP_S,
    BackOff,
    Places,
    choose_dials,
)
from shoal.protocol.limits import (
    ADVERTS_PER_MESSAGE_LIMIT,
    DIGEST_LIMIT,
    TOLD_WHEN_FULL_LIMIT,
)
from shoal.protocol.membership_events import (
    Blame,
    Changed,
    Compare,
    Compared,
    Connected,
    Dial,
    DialFailed,
    Dialled,
    Disconnect,
    Effect,
    Event,
    Give,
    Gone,
    Heard,
    Issued,
    Linked,
    Lost,
    Needed,
    NotCompared,
    NotIssued,
    Tick,
    Unreached,
)
from shoal.protocol.messages import Adverts, Digest, Done

DIAL_TIME_LIMIT_S = 5.0
REDIAL_TIME_LIMIT_S = 2.0
PLAN_INTERVAL_S = 0.5
"""How often whom to dial is looked at, while links are wanting."""

GREETING_DELAY_S = 1.0
"""Before this node compares with a peer that dialled it, which does so itself first."""

PAUSE_GROWTH = 1.5
"""By how much one pause between comparisons is longer than the last at most."""

GREETINGS_AT_ONCE = 3
"""Comparisons with new peers under way; one while this node's table is still coming in,
or each would bring the same."""

ROUNDS_LIMIT = DIGEST_LIMIT // ADVERTS_PER_MESSAGE_LIMIT
"""Comparisons with one peer that follow at once on each other, because it has more: so
many bring a full table, and a peer that always has more is asked at the usual pace."""

COMING_IN_LIMIT_S = 10.0
"""How long a table comes in from one peer alone: a full one takes 7 s from an honest
peer, and one that answers slowly and always has more keeps nobody from the others."""

BACK_OFFS_LIMIT = 2 * DIGEST_LIMIT
"""Peers that are not dialled for a while: those of the table, and as many under new keys."""

MISSED_LIMIT = 128
"""Peers that were links and are none, to whom this node is to show that it lives."""


@dataclass(slots=True)
class Link:
    """A peer that exchanged tables with this node over a live connection."""

    since_s: float
    rtt_s: float | None = None
    pinging: bool = False


@dataclass(slots=True)
class _Greeting:
    """A peer that is connected and no link: when it is compared with next."""

    due_at_s: float
    back_off: BackOff = field(default_factory=BackOff)


class Member:
    """One node's membership. Whoever holds it carries out every effect it gives.

    The first event is `Issued`, with this node's first advert.

    Args:
        own: This node.
        places: Where peers may be found at first.
        sign: Gives the envelope of a statement of this node's.
        draw: Gives numbers in [0, 1); it spreads and chooses, and guards nothing.
        now_s: The monotonic clock, as in every call.
        links_limit: How many links it takes.
        table: What to hold adverts in, if not an empty table.
    """

    def __init__(
        self,
        own: PeerId,
        places: Places,
        *,
        sign: Callable[[Statement, bytes], bytes],
        draw: Callable[[], float],
        now_s: float,
        links_limit: int = LINKS_LIMIT,
        table: AdvertTable | None = None,
    ) -> None:
        self.own = own
        self.links_limit = links_limit
        self.places = places
        self.table = AdvertTable() if table is None else table
        self.links: dict[PeerId, Link] = {}
        self._draw = draw
        self._connected: set[PeerId] = set()
        self._needed: set[PeerId] = set()
        self._chosen: set[PeerId] = set()  # connections that this machine dialled
        self._greetings: dict[PeerId, _Greeting] = {}
        self._comparing: set[PeerId] = set()
        self._rounds: dict[PeerId, int] = {}
        self._coming_in_until_s = math.inf  # if the table is coming in from one peer alone
        self._dialling: set[PeerId] = set()
        self._redialling: set[PeerId] = set()
        self._back_off: dict[PeerId, BackOff] = {}
        self._missed: dict[PeerId, None] = {}
        self._announcing = Announcing(own, self.table, sign, draw)
        self._relays = Relays(now_s)
        self._scouted_at_s = -math.inf
        self._plan_at_s = now_s
        self._pause_s = pace.comparing_interval_s(1)
        self._compare_at_s = now_s + self._comparing_pause_s()

    # -- what happened --

    def receive(self, event: Event, now_s: float, wall_ms: int) -> list[Effect]:  # noqa: C901 - a case per event
        """Take in what happened; gives what is to be done, in that order.

        Args:
            event: What happened.
            now_s: This node's monotonic clock.
            wall_ms: This node's wall clock, which only statements to others name.
        """
        effects: list[Effect] = []
        match event:
            case Tick():
                pass
            case Connected(peer):
                self._on_connected(peer, now_s)
            case Lost(peer):
                effects += self._on_lost(peer, now_s)
            case Dialled(peer):  # if the connection has ended again, nothing tells
                self._dialling.discard(peer)
                self._redialling.discard(peer)
                self._plan_at_s = min(self._plan_at_s, now_s + PLAN_INTERVAL_S)
            case DialFailed(peer):
                effects += self._on_dial_failed(peer, now_s)
            case Needed(peer):
                self._needed.add(peer)
                if peer in self._connected and peer not in self.links:
                    self._greetings.setdefault(peer, _Greeting(now_s))
            case Unreached(peer):
                effects += self._bury(peer, "a call found nobody there", now_s)
            case Compared(peer, answer):
                effects += self._on_compared(peer, answer, now_s, wall_ms)
            case NotCompared(peer):
                self._comparing.discard(peer)
                self._rounds.pop(peer, None)
                self._greet_later(peer, now_s)
            case Changed():
                self._announcing.changed(now_s)
            case Issued(envelope):
                gossip = self._announcing.issued(
                    envelope, now_s, wall_ms, heard=bool(self._connected)
                )
                if gossip:
                    self._relays.note(self.own, now_s)
                effects += gossip
            case NotIssued():
                self._announcing.not_issued(now_s)
            case Heard(peer, addresses, source):
                self._on_heard(peer, addresses, source, now_s)
        effects += self._act(now_s, wall_ms)
        return effects

    @property
    def next_deadline_s(self) -> float:
        """When the next `Tick` is due, if nothing happens before."""
        greeting_s = math.inf
        if len(self._comparing) < self._greetings_at_once:
            greeting_s = min(
                (g.due_at_s for p, g in self._greetings.items() if p not in self._comparing),
                default=math.inf,
            )
        return min(
            self._announcing.next_deadline_s,
            self._compare_at_s,
            self.table.next_expiry_s,
            self._plan_at_s,
            self._coming_in_until_s,
            greeting_s,
        )

    def hear_gossip(
        self, forwarder: PeerId, envelope: bytes, now_s: float, wall_ms: int
    ) -> bool:
        """Take in an advert that a peer gossiped; gives whether to pass it on.

        It is passed on if it is news, its node was not gossiped about just now, and
        the budget for relays (`pace.RELAYS_PER_S`) is not used up: nobody can make a
        whole network work by signing adverts quickly, or by making up keys.

        Raises:
            VerificationError: Forged or malformed; the forwarder should have refused it.
        """
        verdict, advert = self.table.accept(
            envelope, age_s=0.0, now_s=now_s, wall_ms=wall_ms, source=forwarder
        )
        if verdict is Verdict.NEW:
            self._found(PeerId(advert.peer))
        if verdict not in {Verdict.NEW, Verdict.KNOWN}:
            return False
        peer = PeerId(advert.peer)
        if not self._relays.spend(peer, len(self.table), now_s):
            return False
        # Straight from its node it may have reached few others, or nobody.
        return forwarder == peer or self._draw() < pace.relay_share(len(self.table))

    def answer(
        self, peer: PeerId, message: Digest | Adverts, now_s: float, wall_ms: int
    ) -> Adverts | Done:
        """Answer a connected peer's side of a comparison.

        Raises:
            VerificationError: It sent something that is forged or malformed.
        """
        match message:
            case Digest():
                self.table.meet(peer)
                if self._has_room_for(peer):
                    # What is coming in from one link is not asked of another as well.
                    wanting = not self._is_coming_in
                    return self.table.answer(message, now_s, peer, wanting=wanting)
                # Itself too: who scouted for this node has found it.
                some = self.table.some(TOLD_WHEN_FULL_LIMIT - 1, {peer, self.own}, self._draw)
                told = self.table.aged((self.own, *some), now_s)
                return Adverts(adverts=told.adverts, renewals=told.renewals, room=False)
            case Adverts():
                for advert in self.table.take(
                    message, now_s=now_s, wall_ms=wall_ms, source=peer
                ):
                    self._found(PeerId(advert.peer))
                return Done()

    def addresses(self, peer: PeerId) -> tuple[str, ...]:
        """Where a peer may be found, its own word first."""
        entry = self.table.get(peer)
        found = (*(entry.advert.addresses if entry else ()), *self.places.addresses(peer))
        return tuple(dict.fromkeys(found))

    # -- connections --

    def _on_connected(self, peer: PeerId, now_s: float) -> None:
        self._connected.add(peer)
        if peer in self._chosen or peer in self._needed:
            self._greetings[peer] = _Greeting(now_s)
        elif len(self.links) < self.links_limit:
            self._greetings[peer] = _Greeting(now_s + GREETING_DELAY_S)

    def _on_lost(self, peer: PeerId, now_s: float) -> list[Effect]:
        self._connected.discard(peer)
        for held in (self._needed, self._chosen, self._comparing):
            held.discard(peer)
        self._greetings.pop(peer, None)
        self._rounds.pop(peer, None)
        self._plan_at_s = now_s
        if self.links.pop(peer, None) is None:
            return []
        if not self.links:
            self._announcing.unlinked()
        while len(self._missed) >= MISSED_LIMIT:
            del self._missed[next(iter(self._missed))]
        self._missed[peer] = None
        addresses = self.addresses(peer)
        if not addresses or peer in self._dialling:
            return self._bury(peer, "its connection ended", now_s)
        for held in (self._dialling, self._redialling, self._chosen):
            held.add(peer)
        return [Dial(peer, addresses, REDIAL_TIME_LIMIT_S)]

    def _on_dial_failed(self, peer: PeerId, now_s: float) -> list[Effect]:
        self._dialling.discard(peer)
        self._plan_at_s = min(self._plan_at_s, now_s + PLAN_INTERVAL_S)
        if peer not in self._connected:
            self._chosen.discard(peer)
        absent = self.places.absent.get(peer)
        if absent is not None:
            absent.tried(now_s, self._draw())
        elif peer in self.table or peer in self.places.bootstrap:
            self._back_off.setdefault(peer, BackOff()).failed(now_s, self._draw())
        if peer not in self._redialling:
            return []
        self._redialling.discard(peer)
        if peer in self._connected:
            return []
        return self._bury(peer, "its connection ended, and it does not answer", now_s)

    def _bury(self, peer: PeerId, why: str, now_s: float) -> list[Effect]:
        entry = self.table.get(peer)
        if entry is None or peer == self.own:
            return []
        self._part_with(peer, entry.advert.addresses, now_s)
        self.table.bury(peer)
        return [Gone(peer, why)]

    def _part_with(
        self, peer: PeerId, addresses: Sequence[str], now_s: float, spread_s: float = 0.0
    ) -> None:
        self.places.lost(peer, addresses, now_s, spread_s)
        self._plan_at_s = min(self._plan_at_s, self.places.next_due_s())
        self._relays.forget(peer)
        if peer not in self.places.bootstrap:
            self._back_off.pop(peer, None)

    def _found(self, peer: PeerId) -> None:
        self.places.found(peer)
        self._back_off.pop(peer, None)

    def _on_heard(
        self, peer: PeerId, addresses: tuple[str, ...], source: str, now_s: float
    ) -> None:
        if peer == self.own or not addresses:
            return
        if source == "bootstrap":
            self.places.hear_of(peer, addresses, now_s, bootstrap=True)
        elif peer not in self.table:
            self.places.hear_of(peer, addresses, now_s, bootstrap=False)
        self._plan_at_s = min(self._plan_at_s, now_s)

    # -- comparing --

    def _on_compared(
        self, peer: PeerId, answer: Adverts, now_s: float, wall_ms: int
    ) -> list[Effect]:
        self._comparing.discard(peer)
        rounds = self._rounds.pop(peer, 0)
        if peer not in self._connected:
            return []
        self.table.meet(peer)
        before = self.table.changes
        try:
            for advert in self.table.take(answer, now_s=now_s, wall_ms=wall_ms, source=peer):
                self._found(PeerId(advert.peer))
        except VerificationError as error:
            self._greet_later(peer, now_s)
            return [Blame(peer, error)]
        if not answer.room and peer not in self._needed:
            return self._turned_away(peer, now_s)
        effects: list[Effect] = []
        if answer.wanted:
            effects.append(Give(peer, self.table.give(answer.wanted, now_s)))
        if self._greetings.pop(peer, None) is not None:
            effects += self._link(peer, now_s, wall_ms)
        if answer.more and self.table.changes > before and rounds < ROUNDS_LIMIT:
            if not self._rounds and rounds == 0:
                self._coming_in_until_s = now_s + COMING_IN_LIMIT_S
            self._rounds[peer] = rounds + 1
            effects.append(self._compare(peer))
            self._announcing.more_came(now_s)
        return effects

    def _turned_away(self, peer: PeerId, now_s: float) -> list[Effect]:
        """It has no room for this node: ask others, of whom it has told some."""
        self._greetings.pop(peer, None)
        if self.links.pop(peer, None) is not None and not self.links:
            self._announcing.unlinked()
        self._back_off.pop(peer, None)
        while len(self._back_off) >= BACK_OFFS_LIMIT:
            del self._back_off[next(iter(self._back_off))]
        self._back_off[peer] = BackOff(BACK_OFF_LIMIT_S, now_s, 0.75 + 0.5 * self._draw())
        self._plan_at_s = now_s
        return [Disconnect(peer)] if peer in self._chosen else []

    def _link(self, peer: PeerId, now_s: float, wall_ms: int) -> list[Effect]:
        self.links[peer] = Link(since_s=now_s)
        self._found(peer)
        self._announcing.linked(now_s)
        if peer in self._missed:  # others may have buried this node when it did not answer
            del self._missed[peer]
            self._announcing.renew(now_s, wall_ms)
        entry = self.table.get(peer)
        return [Linked(peer, entry.advert.addresses if entry else ())]

    def _greet_later(self, peer: PeerId, now_s: float) -> None:
        """Compare again while the connection lasts: the peer may be starting, or busy."""
        greeting = self._greetings.get(peer)
        if greeting is not None:
            greeting.back_off.failed(now_s, self._draw())
            greeting.due_at_s = greeting.back_off.over_at_s()
            self._plan_at_s = min(self._plan_at_s, now_s)

    def _compare(self, peer: PeerId) -> Compare:
        self._comparing.add(peer)
        return Compare(peer, self.table.digest())

    def _comparing_pause_s(self) -> float:
        """How long until the next comparison; it grows slower than the table may.

        In a network that grows fast, adverts of when it was small are to be renewed
        at the pace of a small one, or they would die first.
        """
        self._pause_s = min(
            pace.comparing_interval_s(len(self.table)), PAUSE_GROWTH * self._pause_s
        )
        return self._pause_s * (0.5 + self._draw())

    def _has_room_for(self, peer: PeerId) -> bool:
        return (
            len(self.links) < self.links_limit
            or peer in self.links
            or peer in self._needed
            or peer in self._chosen
        )

    # -- what is due --

    def _act(self, now_s: float, wall_ms: int) -> list[Effect]:
        """Do what is due by now, whatever event was the occasion."""
        effects: list[Effect] = []
        if not self._rounds or now_s >= self._coming_in_until_s:
            self._coming_in_until_s = math.inf
        if now_s >= self.table.next_expiry_s:
            effects += self._expire(now_s)
        effects += self._announcing.act(now_s, wall_ms, coming_in=self._is_coming_in)
        effects += self._greet(now_s)
        if now_s >= self._compare_at_s:
            self._compare_at_s = now_s + self._comparing_pause_s()
            idle = [peer for peer in self.links if peer not in self._comparing]
            if idle:
                effects.append(self._compare(idle[int(self._draw() * len(idle))]))
        if now_s >= self._plan_at_s:
            effects += self._plan(now_s)
        return effects

    def _expire(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for entry in self.table.expire(now_s):
            peer = PeerId(entry.advert.peer)
            if peer == self.own:
                self._announcing.expired(now_s)
                continue
            spread_s = pace.scouting_spread_s(len(self.table))
            self._part_with(peer, entry.advert.addresses, now_s, spread_s)
            self._missed.pop(peer, None)
            effects.append(Gone(peer, "its advert expired"))
        return effects

    @property
    def _greetings_at_once(self) -> int:
        return GREETINGS_AT_ONCE if self.links and not self._is_coming_in else 1

    @property
    def _is_coming_in(self) -> bool:
        return self._coming_in_until_s < math.inf

    def _greet(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for peer, greeting in list(self._greetings.items()):
            if len(self._comparing) >= self._greetings_at_once:
                break
            if greeting.due_at_s > now_s or peer in self._comparing:
                continue
            if self._has_room_for(peer):
                effects.append(self._compare(peer))
            else:
                del self._greetings[peer]
        return effects

    def _plan(self, now_s: float) -> list[Effect]:
        """Dial whom this node wants, and set when to look again."""
        alone = not self._connected
        limit_s = ALONE_LIMIT_S if alone else BOOTSTRAP_LIMIT_S
        taken = self._connected | self._dialling | {self.own}
        hoped_for = sum(greeting.back_off.delay_s == 0 for greeting in self._greetings.values())
        wanting = LINKS_WANTED - len(self.links) - hoped_for - len(self._dialling)
        known: list[PeerId] = []
        if wanting > 0:
            # Who had no room, or found none here, may be connected still.
            for peer in sorted(self._connected - self.links.keys() - self._greetings.keys()):
                if self._has_room_for(peer) and self._is_ready(peer, now_s, BACK_OFF_LIMIT_S):
                    self._greetings[peer] = _Greeting(now_s)
            known = [
                peer
                for peer in self.table.some(4 * LINKS_WANTED, taken, self._draw)
                if self._is_ready(peer, now_s, BACK_OFF_LIMIT_S)
            ]
        chosen = choose_dials(
            bootstrap=[
                peer
                for peer in self.places.bootstrap
                if peer not in taken
                and (alone or peer not in self.table)
                and self._is_ready(peer, now_s, limit_s)
            ],
            known=known,
            absent=[peer for peer in self.places.due(now_s) if peer not in taken],
            wanting=wanting,
            alone=alone,
            may_scout=now_s >= self._scouted_at_s + SCOUT_GAP_S,
            dialling=self._dialling,
        )
        effects: list[Effect] = []
        for peer in chosen:
            addresses = self.addresses(peer)
            if not addresses:
                self._back_off[peer] = BackOff(BACK_OFF_LIMIT_S, now_s)
                continue
            if peer in self.places.absent:
                self._scouted_at_s = now_s
            self._dialling.add(peer)
            self._chosen.add(peer)
            effects.append(Dial(peer, addresses, DIAL_TIME_LIMIT_S))
        if alone or wanting > 0:
            self._plan_at_s = now_s + PLAN_INTERVAL_S
        else:
            self._plan_at_s = max(
                self.places.next_due_s(),
                self._scouted_at_s + SCOUT_GAP_S,
                now_s + PLAN_INTERVAL_S,
            )
            unmet = [p for p in self.places.bootstrap if p not in taken and p not in self.table]
            if unmet:
                self._plan_at_s = min(self._plan_at_s, now_s + BOOTSTRAP_LIMIT_S / 4)
        return effects

    def _is_ready(self, peer: PeerId, now_s: float, limit_s: float) -> bool:
        back_off = self._back_off.get(peer)
        return back_off is None or back_off.over_at_s(limit_s) <= now_s
