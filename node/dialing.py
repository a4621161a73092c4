"""A peer dialled by several addresses at once: the effects of `node.dial_plan`.

Names are resolved meanwhile; what they stand for joins the race when it is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from shoal.node.addresses import own_interfaces, parse_address
from shoal.node.dial_plan import ADDRESSES_LIMIT, HANDSHAKE_S, DialBook, Race, order
from shoal.node.errors import ConfigError, NetworkError
from shoal.node.names import LOOKUP_LIMIT_S, Names

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from shoal.crypto.peer_id import PeerId
    from shoal.node.addresses import Address

    Dial = Callable[[PeerId, str, int, Callable[[], Awaitable[None]]], Awaitable[None]]


GRACE_S = 0.25
"""For attempts that have met their limit to say so, on a busy machine."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one address did not lead to a peer, and how long it was given."""

    text: str
    error: BaseException
    limit_s: float


class Dialing:
    """Reaches peers by whichever of their addresses leads to them.

    Args:
        dial: Connects to a peer at an IP address and port, or raises. Once somebody
            has answered there, and before it says a word, it awaits its last argument.
        foreseen: What it may raise for reasons that lie with the address.
        connected: Whether a peer is connected: it may have dialled us meanwhile.

    Attributes:
        book: What came of the dials to each peer.
        names: The resolver.
    """

    def __init__(
        self,
        dial: Dial,
        foreseen: tuple[type[BaseException], ...],
        connected: Callable[[PeerId], bool],
    ) -> None:
        self.book = DialBook()
        self.names = Names()
        self._dial = dial
        self._foreseen = (*foreseen, trio.TooSlowError)
        self._connected = connected

    async def reach(
        self, peer: PeerId, addrs: Sequence[str], timeout_s: float
    ) -> list[Failure] | None:
        """Dial a peer; cancel-safe.

        Returns:
            None once it is connected; else what failed for each address.
        """
        attempt = _Attempt(self, peer, trio.current_time() + timeout_s)
        parsed: list[Address] = []
        for text in addrs:
            try:
                parsed.append(parse_address(text))
            except ConfigError as error:
                attempt.failures.append(Failure(text, error, 0.0))
        return await attempt.run(parsed)

    async def dial(
        self,
        peer: PeerId,
        address: Address,
        limit_s: float,
        answered: Callable[[], Awaitable[None]],
    ) -> Failure | None:
        """Dial one address, and note what came of it."""
        try:
            with trio.fail_after(limit_s):
                await self._dial(peer, address.host, address.port, answered)
        except self._foreseen as error:
            self.book.missed(peer, address, trio.current_time())
            return Failure(str(address), error, limit_s)
        self.book.worked(peer, address, trio.current_time())
        return None

    def is_connected(self, peer: PeerId) -> bool:
        """Whether a peer is connected, by whichever side."""
        return self._connected(peer)


class _Attempt:
    """One attempt to reach a peer, by all of its addresses."""

    def __init__(self, dialing: Dialing, peer: PeerId, until_s: float) -> None:
        self.failures: list[Failure] = []
        self._dialing = dialing
        self._peer = peer
        self._until_s = until_s
        self._resolving = 0
        self._resolved: set[Address] = set()
        self._changed = trio.Event()
        self._reached = False
        self._speaking = trio.Lock()
        self._speaking_until_s = math.inf
        self._own = own_interfaces()

    async def run(self, addresses: Sequence[Address]) -> list[Failure] | None:
        hosts = self._ordered([a for a in addresses if a.kind in ("ip4", "ip6")])
        names = [a for a in addresses if a.kind not in ("ip4", "ip6")][:ADDRESSES_LIMIT]
        race = Race(hosts, trio.current_time(), self._until_s)
        began_s = trio.current_time()
        with trio.move_on_at(self._until_s + GRACE_S):
            async with trio.open_nursery() as nursery:
                self._resolving = len(names)
                for name in names:
                    nursery.start_soon(self._resolve, name, race)
                now_s = began_s
                while not self._reached and (self._resolving or not race.over(now_s)):
                    while due := race.due(now_s):
                        nursery.start_soon(self._try, race, *due)
                    changed = self._changed
                    with trio.move_on_at(race.wake_at_s(now_s)):
                        await changed.wait()
                    now_s = trio.current_time()
                    self._reached = self._reached or self._dialing.is_connected(self._peer)
                nursery.cancel_scope.cancel()
        if self._reached:
            return None
        limit_s = self._until_s - began_s
        told = {failure.text for failure in self.failures}
        # What has not come to its end, or never got its turn, is told of too.
        for address in (*hosts, *names):
            if str(address) not in told and address not in self._resolved:
                self.failures.append(Failure(str(address), trio.TooSlowError(), limit_s))
        return self.failures

    def _ordered(self, addresses: Sequence[Address]) -> list[Address]:
        return order(addresses, self._own, self._dialing.book.of(self._peer).tried)

    async def _resolve(self, name: Address, race: Race) -> None:
        limit_s = min(LOOKUP_LIMIT_S, 0.8 * (self._until_s - trio.current_time()))
        try:
            race.add(self._ordered(await self._dialing.names.hosts(name, limit_s)))
            self._resolved.add(name)
        except NetworkError as error:
            self.failures.append(Failure(str(name), error, limit_s))
        self._resolving -= 1
        self._wake()

    async def _try(self, race: Race, address: Address, limit_s: float) -> None:
        holding = False

        async def answered() -> None:
            """Wait for a turn: two connections to one peer would only be in the way.

            Not for long, though: who has answered first may have nothing more to say.
            """
            nonlocal holding
            race.answered(trio.current_time())
            with trio.move_on_at(max(trio.current_time(), self._speaking_until_s)):
                await self._speaking.acquire()
                holding = True
            if self._reached:
                await trio.sleep_forever()  # until this attempt is ended
            self._speaking_until_s = trio.current_time() + HANDSHAKE_S

        try:
            failure = await self._dialing.dial(self._peer, address, limit_s, answered)
            self._reached = self._reached or failure is None
        finally:
            if holding:
                self._speaking.release()
        if failure is not None:
            self.failures.append(failure)
            race.failed(trio.current_time())
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
