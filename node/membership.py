"""Which nodes there are, and which of them this node keeps a link to.

Owns the table of adverts (`protocol.adverts`) and keeps it true: it announces
this node by gossip, compares tables with linked peers (anti-entropy, so that a
lost message delays and never hides a node), pings its links, redials, and
buries who is dead. Dials bootstrap peers and remembered ones, and keeps at
least `LINKS_WANTED` links where the network has them, because gossip over a
sparser mesh loses most messages.

What a link means: the peer is connected, speaks our control protocol, and has
exchanged tables with us. Foreign libp2p peers may be connected without.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Iterable
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
from shoal.protocol.adverts import AdvertTable, Verdict
from shoal.protocol.codec import encode
from shoal.protocol.limits import ADVERT_LIFETIME_LIMIT_S
from shoal.protocol.messages import Adverts, Digest, Done

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shoal.crypto.identity import Identity
    from shoal.node.control import Control
    from shoal.node.network import Network
    from shoal.node.state import State
    from shoal.protocol.statements import Advert

ADVERT_TOPIC = "shoal/adverts/1"
LINKS_WANTED = 6
PING_INTERVAL_S = 2.0
PING_TIME_LIMIT_S = 2.0
DIAL_TIME_LIMIT_S = 5.0
REDIAL_TIME_LIMIT_S = 2.0
EXCHANGE_TIME_LIMIT_S = 5.0
TICK_S = 0.5
BACK_OFF_FIRST_S = 1.0
BACK_OFF_LIMIT_S = 60.0
ALONE_BACK_OFF_LIMIT_S = 2.0
"""For bootstrap peers, while no peer is connected: there is nobody else to join by."""
DIALS_AT_ONCE = 4
REMEMBERED_LIMIT = 64

log = structlog.get_logger(__name__)


# --- decisions: pure -------------------------------------------------------------


def advert_interval_s(nodes: int) -> float:
    """How long between two adverts of one node, in a network of ``nodes``.

    A signed gossip message costs about 2.8 ms of CPU where it is taken in, and
    gossip is to cost at most 1 % of a core: 0.28 s for each node.
    """
    return max(15.0, 0.28 * nodes)


def advert_gap_s(nodes: int) -> float:
    """The least time between two adverts, however fast links come and go.

    A peer that comes and goes on purpose makes gossip cost this much more, no more.
    """
    return advert_interval_s(nodes) / 15.0


def advert_lifetime_s(nodes: int) -> float:
    """Four intervals, so that three lost adverts in a row hide nobody."""
    return min(ADVERT_LIFETIME_LIMIT_S, 4.0 * advert_interval_s(nodes))


def exchange_interval_s(nodes: int) -> float:
    """How long between two comparisons of tables; a digest grows with the network."""
    return max(2.0, nodes / 10)


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


def choose_dials(
    *,
    bootstrap: Collection[PeerId],
    known: Iterable[PeerId],
    remembered: Iterable[PeerId],
    linked: Collection[PeerId],
    ready: Callable[[PeerId], bool],
) -> list[PeerId]:
    """Whom to dial now, at most `DIALS_AT_ONCE`.

    Bootstrap peers first, always. Known nodes while links are wanting.
    Remembered ones only while there is no link at all.
    """
    wanted = [peer for peer in bootstrap if peer not in linked]
    if len(linked) < LINKS_WANTED:
        wanted += [peer for peer in known if peer not in linked]
    if not linked:
        wanted += remembered
    return [peer for peer in dict.fromkeys(wanted) if ready(peer)][:DIALS_AT_ONCE]


# --- effects -----------------------------------------------------------------------


@dataclass(slots=True)
class Link:
    """A peer that exchanged tables with this node over a live connection."""

    since_s: float
    rtt_s: float | None = None
    pinging: bool = False


@dataclass(frozen=True, slots=True)
class Seeds:
    """Where a network is looked for: addresses by peer."""

    bootstrap: dict[PeerId, tuple[str, ...]] = field(default_factory=dict)
    remembered: dict[PeerId, tuple[str, ...]] = field(default_factory=dict)


class Membership:
    """The table, the links, and the tasks that keep both. Made by `open_membership`.

    Args:
        describe: Gives this node's advert for a sequence and lifetime, to be signed.
        broke: Told of a peer that passed on an advert which nobody signed.
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
        self.table = AdvertTable()
        self.links: dict[PeerId, Link] = {}
        self._identity = identity
        self._network = network
        self._control = control
        self._journal = journal
        self._describe = describe
        self._seeds = seeds
        self._broke = broke
        self._back_off: dict[PeerId, BackOff] = {}
        self._dialling: set[PeerId] = set()
        self._missed: set[PeerId] = set()
        self._announce_now = trio.Event()
        self._random = random.Random()  # noqa: S311 - spreads dials, guards nothing

    @property
    def own(self) -> PeerId:
        """This node."""
        return self._network.peer_id

    async def reach(self, peer: PeerId) -> None:
        """Be connected to a node that is in the table.

        Raises:
            NetworkError: It is unknown here, or none of its addresses answers.
        """
        if peer == self._network.peer_id or peer in self._network.connected():
            return
        addresses = self._addresses(peer)
        if not addresses:
            raise NetworkError(f"no address of {peer} is known", code="peer_unknown")
        await self._network.connect(peer, addresses, DIAL_TIME_LIMIT_S)

    def announce(self) -> None:
        """Issue a new advert soon, because what it says has changed."""
        self._announce_now.set()

    async def answer(self, peer: PeerId, message: Digest | Adverts) -> Adverts | Done:
        """Answer a peer's side of anti-entropy.

        Raises:
            VerificationError: It sent an advert that is forged or malformed.
        """
        match message:
            case Digest():
                return self.table.answer(message, trio.current_time())
            case Adverts():
                self._take_in(peer, message)
                return Done()

    # -- tasks --

    async def run(self, nursery: trio.Nursery) -> None:
        """Start the tasks in ``nursery``; they run until it is cancelled."""
        await self._network.subscribe(ADVERT_TOPIC, self._validate, lambda _: None)
        await self._announce()
        for task in (
            self._follow_connections,
            self._keep_announcing,
            self._keep_comparing,
            self._keep_pinging,
            self._keep_links,
        ):
            nursery.start_soon(task)

    async def _follow_connections(self) -> None:
        known: frozenset[PeerId] = frozenset()
        async with trio.open_nursery() as nursery:
            while True:
                connected = await self._network.next_change(known)
                for peer in connected - known:
                    nursery.start_soon(self._greet, peer)
                for peer in known - connected:
                    nursery.start_soon(self._lose, peer)
                known = connected

    async def _greet(self, peer: PeerId) -> None:
        """Exchange tables with a peer that has connected; then it is linked.

        Tried again while the connection lasts: the peer may be starting still, or
        busy, and a peer that is connected and no link would never be pinged.
        """
        back_off = BackOff()
        while peer in self._network.connected() and peer not in self.links:
            try:
                await self._exchange(peer)
            except ShoalError as error:
                log.info(
                    "a connected peer is no link", peer=peer, code=error.code, error=str(error)
                )
                back_off.failed(trio.current_time(), self._random.random())
                await trio.sleep_until(back_off.over_at_s())
            else:
                if peer in self._network.connected():
                    await self._link(peer)

    async def _link(self, peer: PeerId) -> None:
        self.links[peer] = Link(since_s=trio.current_time())
        self._back_off.pop(peer, None)
        log.info("linked", peer=peer, links=len(self.links))
        if peer in self._missed:  # it may have buried us meanwhile
            self._missed.discard(peer)
            self.announce()
        await self._publish()
        entry = self.table.get(peer)
        if entry is not None:
            try:
                await self._journal.remember_peer(peer, entry.advert.addresses, time.time())
            except StoreError as error:
                log.warning("a peer is not remembered", peer=peer, error=str(error))

    async def _lose(self, peer: PeerId) -> None:
        """A connection ended: try once to have it back, else the peer is dead to us."""
        self._control.hang_up(peer)
        if self.links.pop(peer, None) is None:
            return
        self._missed.add(peer)
        try:
            await self._network.connect(peer, self._addresses(peer), REDIAL_TIME_LIMIT_S)
        except NetworkError as error:
            if peer not in self._network.connected() and self.table.bury(peer):
                log.info("a peer is gone", peer=peer, why=str(error))

    async def _keep_announcing(self) -> None:
        while True:
            with trio.move_on_after(advert_interval_s(len(self.table))):
                await self._announce_now.wait()
            self._announce_now = trio.Event()
            try:
                await self._announce()
            except StoreError as error:  # a full disk: this node is known for a while yet
                log.warning("no new advert was issued", error=str(error))
            await trio.sleep(advert_gap_s(len(self.table)))

    async def _keep_comparing(self) -> None:
        while True:
            spread = 0.5 + self._random.random()
            await trio.sleep(exchange_interval_s(len(self.table)) * spread)
            for gone in self.table.expire(trio.current_time()):
                log.info("an advert expired", peer=gone)
                self._back_off.pop(gone, None)
                self._missed.discard(gone)
            if self.links:
                peer = self._random.choice(list(self.links))
                try:
                    await self._exchange(peer)
                except ShoalError as error:
                    log.debug("tables were not compared", peer=peer, error=str(error))

    async def _keep_pinging(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(PING_INTERVAL_S)
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

    async def _keep_links(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                now_s = trio.current_time()
                connected = self._network.connected()
                for peer in choose_dials(
                    bootstrap=self._seeds.bootstrap,
                    known=self._shuffled_known(),
                    remembered=self._seeds.remembered,
                    linked=connected,
                    ready=lambda peer, now_s=now_s: self._ready(peer, now_s),
                ):
                    self._dialling.add(peer)
                    nursery.start_soon(self._dial, peer)
                await trio.sleep(TICK_S)

    async def _dial(self, peer: PeerId) -> None:
        try:
            await self._network.connect(peer, self._addresses(peer), DIAL_TIME_LIMIT_S)
        except NetworkError as error:
            back_off = self._back_off.setdefault(peer, BackOff())
            first = back_off.delay_s == 0.0
            back_off.failed(trio.current_time(), self._random.random())
            if first and peer in self._seeds.bootstrap:
                log.warning("a bootstrap peer cannot be reached", peer=peer, error=str(error))
        finally:
            self._dialling.discard(peer)

    # -- steps --

    async def _announce(self) -> None:
        """Issue a new advert of this node and gossip it."""
        wall_ms = time.time_ns() // 1_000_000
        sequence = await self._journal.next_sequence(wall_ms)
        advert = self._describe(sequence, advert_lifetime_s(len(self.table)))
        envelope = self._identity.sign(Statement.ADVERT, encode(advert))
        self.table.accept(envelope, age_s=0.0, now_s=trio.current_time(), wall_ms=wall_ms)
        await self._publish()

    async def _publish(self) -> None:
        own = self.table.get(self._network.peer_id)
        if own is not None and self._network.connected():
            await self._network.publish(ADVERT_TOPIC, own.envelope)

    async def _exchange(self, peer: PeerId) -> None:
        """Compare tables with ``peer`` and give each other what is missing."""
        theirs = await self._control.request(peer, self.table.digest(), EXCHANGE_TIME_LIMIT_S)
        if not isinstance(theirs, Adverts):
            self._broke(peer, Offence.UNFITTING_ANSWER, "to a digest")
            raise NetworkError(f"{peer} did not answer a digest", code="unfitting_answer")
        try:
            self._take_in(peer, theirs)
        except VerificationError as error:
            self._report(peer, error)
            raise
        if theirs.wanted:
            wanted = [PeerId(text) for text in theirs.wanted]
            adverts = Adverts(adverts=self.table.aged(wanted, trio.current_time()))
            await self._control.request(peer, adverts, EXCHANGE_TIME_LIMIT_S)

    def _take_in(self, peer: PeerId, message: Adverts) -> None:
        for envelope, age_s in message.adverts:
            try:
                self._accept(envelope, age_s)
            except VerificationError as error:
                log.warning("a peer sent a bad advert", peer=peer, error=str(error))
                raise  # `node.answering` or `_exchange` reports it

    def _validate(self, peer: PeerId, message: bytes) -> bool:
        """Gossip's question: is this advert good and news? Stale ones die here."""
        try:
            verdict = self._accept(message, 0.0)
        except VerificationError as error:
            log.warning("a peer gossiped a bad advert", peer=peer, error=str(error))
            self._report(peer, error)
            return False
        return verdict in {Verdict.NEW, Verdict.KNOWN}

    def _report(self, peer: PeerId, error: VerificationError) -> None:
        """Report a bad advert, but not one that only a newer node understands."""
        if error.code != "bad_payload":
            self._broke(peer, Offence.BAD_ADVERT, error.message)

    def _accept(self, envelope: bytes, age_s: float) -> Verdict:
        verdict, advert = self.table.accept(
            envelope,
            age_s=age_s,
            now_s=trio.current_time(),
            wall_ms=time.time_ns() // 1_000_000,
        )
        if verdict is Verdict.NEW:
            self._back_off.pop(PeerId(advert.peer), None)
        return verdict

    # -- views --

    def _addresses(self, peer: PeerId) -> list[str]:
        entry = self.table.get(peer)
        found = [
            *(entry.advert.addresses if entry else ()),
            *self._seeds.bootstrap.get(peer, ()),
            *self._seeds.remembered.get(peer, ()),
        ]
        return list(dict.fromkeys(found))

    def _shuffled_known(self) -> list[PeerId]:
        own = self._network.peer_id
        peers = [PeerId(e.advert.peer) for e in self.table if e.advert.peer != own]
        self._random.shuffle(peers)
        return peers

    def _ready(self, peer: PeerId, now_s: float) -> bool:
        if peer == self._network.peer_id or peer in self._dialling:
            return False
        back_off = self._back_off.get(peer)
        alone = peer in self._seeds.bootstrap and not self._network.connected()
        limit_s = ALONE_BACK_OFF_LIMIT_S if alone else BACK_OFF_LIMIT_S
        return back_off is None or back_off.over_at_s(limit_s) <= now_s


@asynccontextmanager
async def open_membership(membership: Membership) -> AsyncIterator[Membership]:
    """Keep the table and the links for as long as the block runs."""
    async with trio.open_nursery() as nursery:
        await membership.run(nursery)
        yield membership
        nursery.cancel_scope.cancel()
