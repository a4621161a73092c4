"""Connects to nodes that cannot be dialled: a peer that they are linked to asks them to dial.

Three sides. The *requester* finds that no address of a node answers, and asks one of
the peers in its advert's ``via``. That *introducer* passes the requester's signed
advert on to the node. The *introduced* node dials the requester, if it wants to, and
from then on the two have a connection like any other: who opened it makes no
difference to control and blob streams. Two nodes of which neither can be dialled get
an error that says so; nothing is relayed.

Where a dial may be aimed. The introduced node dials no address that anybody tells it:
only those in an advert that the requester signed, as any node dials those of adverts
that came by gossip. An introducer can so at worst have it dial a node that did not
ask, or where that node was once; how old the advert is need not be known, since the
dial finds out who is there. A requester could sign an advert with a third party's
addresses, which gossip would spread just as well; what an introduction adds is the
moment, and that is rationed: for each requester, for each introducer and in all, on
both the introducer's side and the introduced node's. The bytes that arrive there are
the constant ones that begin every libp2p connection. And nobody reaches further in
than they stand: an introducer on the internet has no addresses of private ranges
dialled, and one in the local network none on loopback, so that no service behind a
NAT can be knocked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId
from shoal.node.addresses import parse_address
from shoal.node.errors import ConfigError, NetworkError
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.messages import Done
from shoal.protocol.rates import Rates
from shoal.protocol.reachability import Scope, Verdict, scope_of
from shoal.protocol.reachability_messages import Introduce, Introduction, NotIntroduced
from shoal.protocol.statements import open_advert

if TYPE_CHECKING:
    from shoal.node.control import Control
    from shoal.node.membership import Membership
    from shoal.node.network import Network

DIAL_TIME_LIMIT_S = 5.0
HEAD_START_S = 0.5
"""What a dial of the node's own addresses gets before an introduction is asked for."""

PASS_ON_TIME_LIMIT_S = DIAL_TIME_LIMIT_S + 2.0
"""For the introduced node's answer, which comes after its dial."""

INTRODUCE_TIME_LIMIT_S = PASS_ON_TIME_LIMIT_S + 2.0

CONNECTED_TIME_LIMIT_S = 2.0
"""From the introduced node's word that it dialled to its connection being seen here."""

REFUSED_FOR_S = 20.0
"""After a failure the same node is not asked for again so soon: each try costs three nodes."""

FAILURES_LIMIT = 256
AT_ONCE_LIMIT = 16
"""Introductions passed on, or dialled, at the same time; each waits some seconds."""

DETAIL_LIMIT = 256

log = structlog.get_logger(__name__)


def may_dial(addresses: Iterable[str], introducer_ip: str) -> list[str]:
    """Those of a requester's addresses that are no nearer than the introducer is: pure."""
    found = []
    for text in addresses:
        try:
            scope = scope_of(parse_address(text).host)
        except (ConfigError, ValueError):  # a name is resolved by nobody here
            continue
        if scope is Scope.INTERNET or scope >= scope_of(introducer_ip):
            found.append(text)
    return found


class Introductions:
    """All three sides of introductions. Made by the daemon's wiring.

    Args:
        verdict: How this node is reached, as far as is known.
        welcome: Whether this node wants to be connected to a requester.
    """

    def __init__(
        self,
        network: Network,
        control: Control,
        membership: Membership,
        *,
        verdict: Callable[[], Verdict],
        welcome: Callable[[PeerId], bool],
    ) -> None:
        self._network = network
        self._control = control
        self._membership = membership
        self._verdict = verdict
        self._welcome = welcome
        self._failures: dict[PeerId, tuple[float, NetworkError]] = {}
        self._passing_on = 0
        self._dialling = 0
        self._asked_by = Rates(per_s=1.0, burst=20.0)
        self._asked_for = Rates(per_s=0.5, burst=10.0)
        self._told_by = Rates(per_s=0.5, burst=10.0)
        self._told_for = Rates(per_s=1 / 20, burst=3.0)
        self._in_all = Rates(per_s=2.0, burst=30.0)

    # -- the requester --

    async def reach(self, peer: PeerId) -> None:
        """Be connected to a node in the table, by its addresses or by an introduction.

        Cancel-safe: a connection that was made meanwhile stays.

        Raises:
            NetworkError: ``both_private`` where neither of the two can be dialled,
                ``not_introduced`` where an introduction failed too; else as
                `Membership.reach`.
        """
        if peer == self._membership.own:
            return
        entry = self._membership.table.get(peer)
        via = [PeerId(each) for each in entry.advert.via] if entry else []
        if entry is None or not via:
            await self._membership.reach(peer)
            return
        if self._apart(peer):
            await self._reach_by(peer, entry.advert.addresses, via)
        self._membership.need(peer)

    async def _reach_by(
        self, peer: PeerId, addresses: Sequence[str], via: list[PeerId]
    ) -> None:
        """Dial a node and have it dial this one, whichever works; raises as `reach`."""
        failures: list[NetworkError] = []
        direct_ended = trio.Event()

        async def dial() -> None:
            try:  # not by `Membership.reach`, which forgets a node that does not answer
                await self._network.connect(peer, addresses, DIAL_TIME_LIMIT_S)
            except NetworkError as error:
                failures.append(error)
                direct_ended.set()
            else:
                nursery.cancel_scope.cancel()

        async def be_introduced() -> None:
            with trio.move_on_after(HEAD_START_S):
                await direct_ended.wait()
            try:
                await self._be_introduced(peer, via)
            except NetworkError as error:
                failures.append(error)
            else:
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial)
            nursery.start_soon(be_introduced)
        if not nursery.cancel_scope.cancel_called:
            told = [error for error in failures if error.code in _OF_INTRODUCTIONS]
            raise (told or failures)[0]

    async def _be_introduced(self, peer: PeerId, via: list[PeerId]) -> None:
        failed_at_s, failure = self._failures.get(peer, (0.0, None))
        if failure is not None and trio.current_time() < failed_at_s + REFUSED_FOR_S:
            raise failure
        asked = sorted((each for each in via if each != self._membership.own), key=self._apart)
        said, hopeless = [], False
        for introducer in asked:
            try:
                await self._membership.reach(introducer)
                if self._is_hopeless(introducer):
                    hopeless = True
                    continue
                await self._ask(introducer, peer)
            except ShoalError as reason:
                said.append(f"{introducer}: {reason.message}")
            else:
                self._failures.pop(peer, None)
                return
        if hopeless and not said:
            raise NetworkError(
                f"{peer} cannot be dialled and neither can this node, so neither can open a "
                "connection; there is no relay",
                code="both_private",
                hint="make one of the two reachable: `shoal status` says under reachability "
                "which port to open or to forward",
            )
        failure = NetworkError(
            f"{peer} cannot be dialled, and an introduction failed "
            f"({'; '.join(said) or 'nobody could make one'})"[: 3 * DETAIL_LIMIT],
            code="not_introduced",
            hint="`shoal status` says under reachability whether this node can be dialled; "
            "one of the two must be",
        )
        self._note_failure(peer, failure)
        raise failure

    def _is_hopeless(self, introducer: PeerId) -> bool:
        """Whether nobody that is as far away as an introducer can dial this node."""
        own = self._membership.table.get(self._membership.own)
        remote = self._network.remote_address(introducer)
        shut = self._verdict() in {Verdict.PRIVATE, Verdict.BLOCKED}
        if not shut or own is None or remote is None:
            return False
        return not may_dial(own.advert.addresses, parse_address(remote).host)

    async def _ask(self, introducer: PeerId, peer: PeerId) -> None:
        """Ask one introducer that is connected; returns once the node is, too."""
        own = self._membership.table.get(self._membership.own)
        if own is None:
            raise NetworkError("this node has no advert yet")
        answer = await self._control.request(
            introducer, Introduce(peer=peer, advert=own.envelope), INTRODUCE_TIME_LIMIT_S
        )
        if isinstance(answer, NotIntroduced):
            raise NetworkError(answer.detail, code="not_introduced")
        with trio.move_on_after(CONNECTED_TIME_LIMIT_S):
            connected = self._network.connected()
            while peer not in connected:
                connected = await self._network.next_change(connected)
            return
        raise NetworkError("it said that the node had dialled, and it has not")

    def _note_failure(self, peer: PeerId, error: NetworkError) -> None:
        self._failures.pop(peer, None)
        while len(self._failures) >= FAILURES_LIMIT:
            del self._failures[next(iter(self._failures))]
        self._failures[peer] = (trio.current_time(), error)

    def _apart(self, peer: PeerId) -> bool:
        return peer not in self._network.connected()

    # -- the introducer, and the node that is introduced --

    async def answer(
        self, peer: PeerId, request: Introduce | Introduction
    ) -> Done | NotIntroduced:
        """Answer a requester, or an introducer.

        Raises:
            RemoteProtocolError: An advert that is not the requester's.
            VerificationError: One that is forged or malformed.
        """
        match request:
            case Introduce():
                return await self._pass_on(peer, request)
            case Introduction():
                return await self._dial(peer, request)

    async def _pass_on(self, requester: PeerId, request: Introduce) -> Done | NotIntroduced:
        if open_advert(request.advert).peer != requester:
            raise RemoteProtocolError(
                f"{requester} wants to be introduced by another node's advert",
                code="not_its_advert",
            )
        node, now_s = PeerId(request.peer), trio.current_time()
        if node not in self._membership.links:
            return NotIntroduced(detail="the introducer is not linked to it")
        if self._passing_on >= AT_ONCE_LIMIT or not (
            self._asked_by.admits(requester, now_s)
            and self._asked_for.admits(node, now_s)
            and self._in_all.admits("asked", now_s)
        ):
            return NotIntroduced(detail="the introducer is asked too often")
        self._passing_on += 1
        try:
            answer = await self._control.request(
                node, Introduction(advert=request.advert), PASS_ON_TIME_LIMIT_S
            )
        except ShoalError as error:
            return NotIntroduced(detail=f"it did not answer: {error.message}"[:DETAIL_LIMIT])
        finally:
            self._passing_on -= 1
        if isinstance(answer, Done | NotIntroduced):
            return answer
        return NotIntroduced(detail="it answered with nonsense")

    async def _dial(self, introducer: PeerId, request: Introduction) -> Done | NotIntroduced:
        advert = open_advert(request.advert)
        requester, now_s = PeerId(advert.peer), trio.current_time()
        if not self._welcome(requester):
            return NotIntroduced(detail="it does not want a connection to this requester")
        if requester == self._membership.own or requester in self._network.connected():
            return Done()
        remote = self._network.remote_address(introducer)
        if remote is None or introducer not in self._membership.links:
            return NotIntroduced(detail="it is not linked to the introducer")
        if self._dialling >= AT_ONCE_LIMIT or not (
            self._told_by.admits(introducer, now_s)
            and self._told_for.admits(requester, now_s)
            and self._in_all.admits("told", now_s)
        ):
            return NotIntroduced(detail="it is introduced too often")
        held = self._membership.table.get(requester)
        if held is not None and held.advert.sequence > advert.sequence:
            advert = held.advert
        addresses = may_dial(advert.addresses, parse_address(remote).host)
        if not addresses:
            return NotIntroduced(detail="the requester has no address that others can dial")
        self._dialling += 1
        try:
            await self._network.connect(requester, addresses, DIAL_TIME_LIMIT_S)
        except NetworkError as error:
            return NotIntroduced(detail=f"it dialled, and {error.message}"[:DETAIL_LIMIT])
        finally:
            self._dialling -= 1
        log.info("dialled a node that was introduced", peer=requester, introducer=introducer)
        return Done()


_OF_INTRODUCTIONS = {"both_private", "not_introduced"}
