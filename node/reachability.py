"""Finds out how others reach this node, by asking peers to dial it back, and answers theirs.

What reports come to is decided in `protocol.reachability`, and what the advert says of
it in `protocol.advertising`; here are the asking, the dialling and the clock. A dial-back
goes to the IP address that this node sees the asker's connection come from, and nowhere
else; it is made apart from all connections (`node.libp2p_compat.dial_back`), for
`DIAL_TIME_LIMIT_S` at most, and within limits for each peer, for each IP address and for
all together. What one peer tells is a vote among others.

The verdict decides what the advert says of addresses (`Reachability.advertised`); the
nodes that an advert then names under ``via`` introduce others (`node.introductions`).
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node.addresses import parse_address
from shoal.node.status_views import ReachabilityView
from shoal.protocol import advertising, reachability
from shoal.protocol.limits import DIAL_BACK_PORTS_LIMIT
from shoal.protocol.messages import Problem
from shoal.protocol.rates import Rates
from shoal.protocol.reachability import Asking, Evidence, Judgement, Report, Verdict
from shoal.protocol.reachability_messages import DialBack, DialedBack, Outcome
from shoal.protocol.vocabulary import knows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from shoal.crypto.peer_id import PeerId
    from shoal.node.control import Control
    from shoal.node.membership import Membership
    from shoal.node.network import Network
    from shoal.protocol.advertising import Advertised
    from shoal.protocol.reachability import Place

TICK_S = 2.0
DIAL_TIME_LIMIT_S = 4.0
"""For one dial-back; all ports of a request are dialled at once."""

ANSWER_TIME_LIMIT_S = DIAL_TIME_LIMIT_S + 4.0
"""For the answer to a request: the dial-backs, and two slow ways through a busy peer."""

DIAL_BACKS_AT_ONCE = 4
"""Requests served at the same time; each has four sockets and handshakes at most."""

log = structlog.get_logger(__name__)


class Reachability:
    """The evidence, the verdict, and what follows from it. Made by the daemon's wiring."""

    def __init__(self, network: Network, control: Control, membership: Membership) -> None:
        self._network = network
        self._control = control
        self._membership = membership
        self._evidence = Evidence()
        self._asking = Asking()
        self._listening: tuple[Place, ...] = _places(network)
        self._introducers: tuple[PeerId, ...] = ()
        self._expected: dict[str, tuple[PeerId, set[int]]] = {}
        self._per_peer = _rates()
        self._per_ip = _rates()
        self._in_all = Rates(
            reachability.DIAL_BACKS_TOTAL_PER_S, reachability.DIAL_BACKS_TOTAL_BURST
        )
        self._serving = 0
        network.expect_dial_backs(self._came_in)

    # -- what is known --

    def judgement(self) -> Judgement:
        """How this node is reached, as far as is known now."""
        return reachability.judge(self._reports(), self._listening, self._linked())

    def advertised(self) -> Advertised:
        """Where this node's advert says that it is reached."""
        linked = self._linked()
        self._introducers = advertising.choose_introducers(
            linked, filter(self._dialled, self._askable()), self._introducers
        )
        return advertising.advertise(
            self.judgement(), self._reports(), self._listening, linked, self._introducers
        )

    def view(self) -> ReachabilityView:
        """The same for a person."""
        judgement = self.judgement()
        return ReachabilityView(
            verdict=judgement.verdict.value,
            sentence=judgement.sentence,
            evidence=tuple(
                reachability.describe(report, trio.current_time()) for report in self._reports()
            ),
        )

    # -- asking --

    async def run(self) -> None:
        """Ask peers, slowly, and have the advert follow; until it is cancelled."""
        said = self.advertised()
        verdict = Verdict.UNKNOWN
        while True:
            await trio.sleep(TICK_S)
            self._notice_move()
            asked = self._asking.choose(
                self._askable(), self.judgement().verdict, trio.current_time()
            )
            async with trio.open_nursery() as nursery:
                for peer in asked:
                    nursery.start_soon(self._ask, peer)
            judgement = self.judgement()
            if judgement.verdict is not verdict:
                verdict = judgement.verdict
                log.info("reachability", verdict=verdict.value, why=judgement.sentence)
            if (now := self.advertised()) != said:
                said = now
                self._membership.announce()

    async def _ask(self, peer: PeerId) -> None:
        try:
            await self.ask(peer)
        except ShoalError as error:  # no answer is no vote
            log.debug("a peer gave no dial-back", peer=peer, error=str(error))

    async def ask(self, peer: PeerId) -> Report | None:
        """Have one linked peer dial this node, and note what it reports.

        Returns:
            The report; None where there is nothing to dial or the link has gone.

        Raises:
            NetworkError: The peer gave no answer.
            RemoteProtocolError: It would not, or answered with nonsense.
        """
        ports = tuple(dict.fromkeys(port for _, port in self._listening))
        ports = ports[:DIAL_BACK_PORTS_LIMIT]
        ip = self._ip_of(peer)
        if ip is None or not ports:
            return None
        nonce = secrets.token_hex(16)
        shown: set[int] = set()
        self._expected[nonce] = (peer, shown)
        try:
            answer = await self._control.request(
                peer, DialBack(nonce=nonce, ports=ports), ANSWER_TIME_LIMIT_S
            )
        finally:
            del self._expected[nonce]
        return self._note(peer, ip, ports, answer, shown)

    def _note(
        self, peer: PeerId, ip: str, ports: tuple[int, ...], answer: object, shown: set[int]
    ) -> Report | None:
        if not isinstance(answer, DialedBack) or len(answer.outcomes) != len(ports):
            return None
        try:
            reachability.scope_of(answer.seen_as)
        except ValueError:  # what it says is no address
            return None
        report = Report(
            peer=peer,
            ip=ip,
            seen_as=answer.seen_as,
            outcomes=tuple(zip(ports, answer.outcomes, strict=True)),
            shown=frozenset(shown),
            at_s=trio.current_time(),
        )
        self._evidence.note(report)
        return report

    def _came_in(self, peer: PeerId, token: bytes) -> bool:
        """Whether a dial-back that a listener has before it is one that was asked for."""
        expected = self._expected.get(token[:16].hex())
        if expected is None or expected[0] != peer:
            return False
        expected[1].add(int.from_bytes(token[16:], "big"))
        return True

    # -- answering --

    async def answer(self, peer: PeerId, request: DialBack) -> DialedBack | Problem:
        """Dial ``peer`` where its connection comes from, within the limits."""
        ip = self._ip_of(peer)
        if ip is None:
            return Problem(
                code="not_connected", message="this node sees no connection of yours"
            )
        if not self._admits(peer, ip):
            return DialedBack(
                seen_as=ip, outcomes=tuple(Outcome.NOT_DIALLED for _ in request.ports)
            )
        found: dict[int, Outcome] = {}

        async def dial(port: int) -> None:
            token = bytes.fromhex(request.nonce) + port.to_bytes(2, "big")
            found[port] = await self._network.dial_back(
                peer, ip, port, token, DIAL_TIME_LIMIT_S
            )

        self._serving += 1
        try:
            async with trio.open_nursery() as nursery:
                for port in set(request.ports):
                    nursery.start_soon(dial, port)
        finally:
            self._serving -= 1
        return DialedBack(seen_as=ip, outcomes=tuple(found[port] for port in request.ports))

    def _admits(self, peer: PeerId, ip: str) -> bool:
        """The dear limits come last, so that who is over its own takes nothing of others'."""
        now_s = trio.current_time()
        return (
            self._serving < DIAL_BACKS_AT_ONCE
            and self._per_peer.admits(peer, now_s)
            and self._per_ip.admits(ip, now_s)
            and self._in_all.admits("", now_s)
        )

    # -- views --

    def _reports(self) -> tuple[Report, ...]:
        return self._evidence.at(trio.current_time())

    def _linked(self) -> dict[PeerId, str]:
        found = {peer: self._ip_of(peer) for peer in self._membership.links}
        return {peer: ip for peer, ip in found.items() if ip is not None}

    def _askable(self) -> dict[PeerId, tuple[str, float]]:
        """The links that know what a dial-back is: where each is, and since when."""
        links = self._membership.links
        return {
            peer: (ip, links[peer].since_s)
            for peer, ip in self._linked().items()
            if (entry := self._membership.table.get(peer)) is not None
            and knows(entry.advert.protocol, DialBack)
        }

    def _ip_of(self, peer: PeerId) -> str | None:
        remote = self._network.remote_address(peer)
        return parse_address(remote).host if remote else None

    def _dialled(self, peer: PeerId) -> bool:
        """Whether this node opened the connection: then its other end is where it dialled."""
        entry = self._membership.table.get(peer)
        return (
            entry is not None and self._network.remote_address(peer) in entry.advert.addresses
        )

    def _notice_move(self) -> None:
        listening = _places(self._network)
        if listening != self._listening:
            log.info("this machine's addresses have changed", addresses=listening)
            self._listening = listening
            self._evidence.forget()
            self._asking.start_over()


def _places(network: Network) -> tuple[Place, ...]:
    addresses = map(parse_address, network.addresses())
    return tuple((address.host, address.port) for address in addresses)


def _rates() -> Rates:
    return Rates(reachability.DIAL_BACKS_PER_S, reachability.DIAL_BACK_BURST)


@asynccontextmanager
async def open_reachability(own: Reachability) -> AsyncIterator[Reachability]:
    """Keep asking for as long as the block runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own.run)
        yield own
        nursery.cancel_scope.cancel()
