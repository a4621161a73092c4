"""Which nodes there are, and which of them this node keeps a link to.

Carries out what the machine of `protocol.membership` decides: dials, compares tables,
gossips and issues adverts over libp2p, and tells the machine what became of it. Pings
the links by itself. No decision is made here.

What a link means: the peer is connected, speaks our control protocol, and has
exchanged tables with us. Foreign libp2p peers may be connected without.
"""

from __future__ import annotations

import random
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.crypto.envelope import Statement
from shoal.crypto.errors import ShoalError, VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node.errors import NetworkError, StoreError
from shoal.node.standing import Offence
from shoal.node.surroundings import Lost as LostPeer
from shoal.protocol.codec import encode
from shoal.protocol.dialling import Places
from shoal.protocol.membership import DIAL_TIME_LIMIT_S, Link, Member
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
    Gossip,
    Heard,
    Issue,
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
from shoal.protocol.pace import advert_lifetime_s, ping_interval_s

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from shoal.crypto.identity import Identity
    from shoal.node.control import Control
    from shoal.node.network import Network
    from shoal.node.state import State
    from shoal.protocol.adverts import AdvertTable
    from shoal.protocol.statements import Advert

ADVERT_TOPIC = "shoal/adverts/1"
PING_TIME_LIMIT_S = 2.0
EXCHANGE_TIME_LIMIT_S = 5.0
REMEMBERED_LIMIT = 64
LOST_LIMIT = 64
"""Peers that are remembered as lost: more than a person reads."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seeds:
    """Where a network is looked for: addresses by peer."""

    bootstrap: dict[PeerId, tuple[str, ...]] = field(default_factory=dict)
    remembered: dict[PeerId, tuple[str, ...]] = field(default_factory=dict)


class Membership:
    """The table, the links, and the tasks that keep both. Made by `open_membership`.

    Args:
        describe: Gives this node's advert for a sequence and lifetime, to be signed.
        broke: Told of a peer that broke the rules: who, which `Offence`, and how.
    """

    def __init__(
        self,
        identity: Identity,
        network: Network,
        control: Control,
        journal: State,
        describe: Callable[[int, float], Advert],
        seeds: Seeds,
        broke: Callable[[PeerId, Offence, str], None] = lambda _peer, _offence, _detail: None,
    ) -> None:
        self._identity = identity
        self._network = network
        self._control = control
        self._journal = journal
        self._describe = describe
        self._broke = broke
        draw = random.Random().random  # noqa: S311 - spreads dials, guards nothing
        now_s = trio.current_time()
        places = Places(dict(seeds.bootstrap), seeds.remembered, draw, now_s)
        self._member = Member(
            network.peer_id, places, sign=identity.sign, draw=draw, now_s=now_s
        )
        self._lost: dict[PeerId, tuple[float, str]] = {}  # the last one last
        self._nursery: trio.Nursery | None = None
        self._before_start: dict[Event, None] = {}
        self._woken = trio.Event()

    @property
    def own(self) -> PeerId:
        """This node."""
        return self._network.peer_id

    @property
    def table(self) -> AdvertTable:
        """The adverts that are valid now, this node's own included."""
        return self._member.table

    @property
    def links(self) -> dict[PeerId, Link]:
        """The peers that this node keeps a link to."""
        return self._member.links

    @property
    def lost(self) -> list[LostPeer]:
        """Who was in the table and is not now, the last one first."""
        now_s = trio.current_time()
        return [
            LostPeer(peer, now_s - at_s, why)
            for peer, (at_s, why) in reversed(self._lost.items())
            if self.table.get(peer) is None
        ]

    async def reach(self, peer: PeerId) -> None:
        """Be connected to a node that is in the table, to work with it.

        A node that is at none of its addresses is in the table no longer.

        Raises:
            NetworkError: It is unknown here, or none of its addresses answers.
        """
        if peer == self._network.peer_id:
            return
        if peer not in self._network.connected():
            addresses = self._member.addresses(peer)
            if not addresses:
                raise NetworkError(f"no address of {peer} is known", code="peer_unknown")
            try:
                await self._network.connect(peer, addresses, DIAL_TIME_LIMIT_S)
            except NetworkError as error:
                if error.code == "unreachable" and peer not in self._network.connected():
                    self._tell(Unreached(peer))
                raise
        self.need(peer)

    def need(self, peer: PeerId) -> None:
        """Keep the connection to a peer that is worked with, and watch it as a link.

        A link too: it may come to have no room for this node, and would be let go.
        """
        if peer in self._network.connected():
            self._tell(Needed(peer))

    def announce(self) -> None:
        """Issue a new advert soon, because what it says has changed."""
        self._tell(Changed())

    def hear_of(self, peer: PeerId, addresses: Sequence[str], source: str) -> None:
        """Take up a place where a peer may be found, without the trailing ``/p2p`` part.

        Args:
            peer: Who may be found there.
            addresses: Multiaddrs.
            source: ``bootstrap`` if the operator named it: such are dialled whenever they
                are not in the table. Others, say ``lan`` or ``told``, are dialled soon,
                and then less and less often until they are found.
        """
        self._tell(Heard(peer, tuple(addresses), source))

    def forget_bootstrap(self, peer: PeerId) -> None:
        """Dial a peer that the operator names no longer only as any other."""
        self._member.places.bootstrap.pop(peer, None)

    async def answer(self, peer: PeerId, message: Digest | Adverts) -> Adverts | Done:
        """Answer a peer's side of anti-entropy.

        Raises:
            VerificationError: It sent an advert that is forged or malformed.
        """
        self._woken.set()  # what it brings may expire before anything else is due
        try:
            return self._member.answer(peer, message, trio.current_time(), _wall_ms())
        except VerificationError as error:
            log.warning("a peer sent a bad advert", peer=peer, error=str(error))
            raise

    # -- tasks --

    async def run(self, nursery: trio.Nursery) -> None:
        """Start the tasks in ``nursery``; they run until it is cancelled.

        Raises:
            StoreError: The state cannot be written.
        """
        await self._network.subscribe(ADVERT_TOPIC, self._validate, lambda _: None)
        self._nursery = nursery
        self._tell(Issued(await self._new_advert(advert_lifetime_s(1))))
        for event in self._before_start:
            self._tell(event)
        for task in (self._follow_connections, self._keep_time, self._keep_pinging):
            nursery.start_soon(task)

    def stop(self) -> None:
        """Do nothing any more: others that still end may tell of what happens."""
        self._nursery = None

    async def _follow_connections(self) -> None:
        known: frozenset[PeerId] = frozenset()
        while True:
            connected = await self._network.next_change(known)
            for peer in known - connected:
                self._control.hang_up(peer)
                self._tell(Lost(peer))
            for peer in connected - known:
                self._tell(Connected(peer))
            known = connected

    async def _keep_time(self) -> None:
        while True:
            self._woken = trio.Event()
            with trio.move_on_at(self._member.next_deadline_s):
                await self._woken.wait()
                continue
            self._tell(Tick())
            await trio.lowlevel.checkpoint()

    async def _keep_pinging(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(ping_interval_s(len(self.links)))
                for peer, link in self.links.items():
                    if not link.pinging:
                        link.pinging = True
                        nursery.start_soon(self._ping, peer, link)

    async def _ping(self, peer: PeerId, link: Link) -> None:
        try:
            link.rtt_s = await self._network.ping(peer, PING_TIME_LIMIT_S)
        except NetworkError as error:
            if self.links.get(peer) is link:  # and not one that has taken its place
                log.info("a link does not answer", peer=peer, error=str(error))
                await self._network.disconnect(peer)
        finally:
            link.pinging = False

    # -- events and effects --

    def _tell(self, event: Event) -> None:
        """Let the machine know, and do what it says."""
        if self._nursery is None:
            self._before_start[event] = None
            return
        for effect in self._member.receive(event, trio.current_time(), _wall_ms()):
            self._carry_out(effect, self._nursery)
        self._woken.set()

    def _carry_out(self, effect: Effect, nursery: trio.Nursery) -> None:
        match effect:
            case Dial():
                nursery.start_soon(self._dial, effect)
            case Disconnect(peer):
                nursery.start_soon(self._network.disconnect, peer)
            case Compare():
                nursery.start_soon(self._compare, effect)
            case Give():
                nursery.start_soon(self._give, effect)
            case Issue(lifetime_s):
                nursery.start_soon(self._issue, lifetime_s)
            case Gossip(envelope):
                nursery.start_soon(self._network.publish, ADVERT_TOPIC, envelope)
            case Linked():
                log.info("linked", peer=effect.peer, links=len(self.links))
                nursery.start_soon(self._remember, effect)
            case Gone(peer, why):
                self._note_lost(peer, why)
            case Blame(peer, error):
                self._report(peer, error)

    def _note_lost(self, peer: PeerId, why: str) -> None:
        log.info("a peer is gone", peer=peer, why=why)
        self._lost.pop(peer, None)
        self._lost[peer] = trio.current_time(), why
        if len(self._lost) > LOST_LIMIT:
            del self._lost[next(iter(self._lost))]

    async def _dial(self, dial: Dial) -> None:
        try:
            await self._network.connect(dial.peer, dial.addresses, dial.time_limit_s)
        except NetworkError:  # `node.joining` tells of bootstrap peers
            self._tell(DialFailed(dial.peer))
        else:
            self._tell(Dialled(dial.peer))

    async def _compare(self, compare: Compare) -> None:
        try:
            answer = await self._control.request(
                compare.peer, compare.digest, EXCHANGE_TIME_LIMIT_S
            )
            if not isinstance(answer, Adverts):
                self._broke(compare.peer, Offence.UNFITTING_ANSWER, "to a digest")
                raise NetworkError(
                    f"{compare.peer} did not answer a digest", code="unfitting_answer"
                )
        except ShoalError as error:
            tell = log.debug if compare.peer in self.links else log.info
            tell(
                "tables were not compared",
                peer=compare.peer,
                code=error.code,
                error=str(error),
            )
            self._tell(NotCompared(compare.peer))
        else:
            self._tell(Compared(compare.peer, answer))

    async def _give(self, give: Give) -> None:
        try:
            await self._control.request(give.peer, give.adverts, EXCHANGE_TIME_LIMIT_S)
        except ShoalError as error:  # the next comparison finds the same again
            log.debug("adverts were not given", peer=give.peer, error=str(error))

    async def _issue(self, lifetime_s: float) -> None:
        try:
            self._tell(Issued(await self._new_advert(lifetime_s)))
        except StoreError as error:  # a full disk: what was issued is renewed meanwhile
            log.warning("no new advert was issued", error=str(error))
            self._tell(NotIssued())

    async def _new_advert(self, lifetime_s: float) -> bytes:
        sequence = await self._journal.next_sequence(_wall_ms())
        advert = self._describe(sequence, lifetime_s)
        return self._identity.sign(Statement.ADVERT, encode(advert))

    async def _remember(self, linked: Linked) -> None:
        try:
            await self._journal.remember_peer(linked.peer, linked.addresses, time.time())
        except StoreError as error:
            log.warning("a peer is not remembered", peer=linked.peer, error=str(error))

    def _validate(self, peer: PeerId, message: bytes) -> bool:
        """Gossip's question: is this advert good, news, and within what is passed on?"""
        self._woken.set()
        try:
            return self._member.hear_gossip(peer, message, trio.current_time(), _wall_ms())
        except VerificationError as error:
            self._report(peer, error)
            return False

    def _report(self, peer: PeerId, error: VerificationError) -> None:
        """Report a bad advert, but not one that only a newer node understands."""
        log.warning("a peer passed on a bad advert", peer=peer, error=error.message)
        if error.code != "bad_payload":
            self._broke(peer, Offence.BAD_ADVERT, error.message)


@asynccontextmanager
async def open_membership(membership: Membership) -> AsyncIterator[Membership]:
    """Keep the table and the links for as long as the block runs."""
    async with trio.open_nursery() as nursery:
        await membership.run(nursery)
        try:
            yield membership
        finally:
            membership.stop()
            nursery.cancel_scope.cancel()


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
