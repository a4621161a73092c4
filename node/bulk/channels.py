"""Bulk channels as the daemon has them: asked for, offered, used, kept for the next blob.

The Trio side of `node.bulk`. Each channel has a thread only while something is done on it,
and each thread is waited for by one task here; cancelling that task shuts the socket down,
which ends the thread. A channel is closed after any error, since nobody knows what still
comes on it. All of a peer's channels end with its libp2p connection.

What fails before a channel is there, anybody on the way can bring about: the token goes in
the clear, and whoever copies it can show a wrong certificate in another's name. So that is
noted (`node.notes`) and held against nobody; what is said within TLS is an offence.
"""

from __future__ import annotations

import secrets
import socket
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node.addresses import parse_address
from shoal.node.bulk import serving, taking
from shoal.node.bulk.certificates import check_same, context, make_certificate
from shoal.node.bulk.dialling import dial, place
from shoal.node.bulk.fair import FairTurns
from shoal.node.bulk.listener import Door, port_of
from shoal.node.bulk.threads import run_on
from shoal.node.bulk.tokens import (
    CHANNELS_IN_ALL,
    CHANNELS_PER_PEER,
    TOKEN_LIFETIME_S,
    Offer,
    Tokens,
    may_open,
)
from shoal.node.bulk.wire import Wire, abandon, begin, shut
from shoal.node.errors import NetworkError
from shoal.node.network_statistics import Traffic
from shoal.node.notes import Seen
from shoal.node.standing import Offence
from shoal.node.turns import Turns
from shoal.protocol.channel_messages import (
    ChannelOffered,
    ChannelWanted,
    NoChannel,
    WhyNoChannel,
)
from shoal.protocol.errors import RemoteProtocolError, VersionError
from shoal.protocol.limits import CHANNEL_TOKEN_BYTES
from shoal.protocol.messages import RequestBody, ResponseBody

if TYPE_CHECKING:
    from shoal.crypto.content import BlobId, ChunkList
    from shoal.crypto.peer_id import PeerId
    from shoal.node.blob_files import OpenBlob
    from shoal.node.blob_transfer import BlobServer
    from shoal.node.control import Control
    from shoal.node.network import Network
    from shoal.protocol.blob_messages import WhyNot

ANSWER_LIMIT_S = 10.0
IDLE_LIMIT_S = 30.0
"""A channel without work is kept so long for the next blob."""

RETIRED_AFTER_BYTES = 128 << 30
"""A channel that carried so much is not used again: one key of AES-GCM is good for
2^24.5 records (RFC 8446, 5.5), which is 388 GiB, and one blob more has up to 64."""

NONE_TO_BE_HAD_S = 60.0
"""How long a peer is not asked again after no channel came about."""

DISK_READS_AT_ONCE = 4

PEERS_COUNTED_LIMIT = 1024
"""Peers whose bytes are counted each by itself; whoever was longest silent is forgotten."""

T = TypeVar("T")

log = structlog.get_logger(__name__)


class Channel:
    """One channel to a peer, had from `Channels.to`."""

    def __init__(
        self, wire: Wire, run: Callable[[Wire, Callable[[], None]], Awaitable[None]]
    ) -> None:
        self.peer = wire.peer
        self._wire = wire
        self._run = run

    async def take(
        self, chunks: ChunkList, share: taking.Share, requester: PeerId | None = None
    ) -> None:
        """Take what ``share`` asks for; raises as `taking.take`, and ends if cancelled."""
        await self._run(self._wire, partial(taking.take, self._wire, chunks, share, requester))


@dataclass(eq=False, slots=True)
class _Resting:
    """A channel that waits for the next blob."""

    wire: Wire
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Channels:
    """The bulk channels of one node, of both directions. Made by `open_channels`."""

    def __init__(
        self,
        network: Network,
        control: Control,
        blobs: BlobServer,
        nursery: trio.Nursery,
        *,
        port: int | None,
        announce: tuple[str, int] | None,
        broke: Callable[[PeerId, Offence, str], None],
        noted: Callable[[PeerId, Seen, str], None],
        called: Callable[[str, str], None],
    ) -> None:
        self._network, self._control, self._blobs = network, control, blobs
        self._nursery = nursery
        self._broke, self._noted = broke, noted
        self.port = port
        self._announce = announce
        self._certificate = make_certificate()
        self._tokens = Tokens()
        self.door = Door(self._admit, called)
        self._disk = FairTurns(DISK_READS_AT_ONCE)
        self._serving_threads = trio.CapacityLimiter(CHANNELS_IN_ALL)
        self._taking_threads = trio.CapacityLimiter(CHANNELS_IN_ALL)
        self._served: Counter[PeerId] = Counter()
        self._takers: Turns[PeerId] = Turns(CHANNELS_PER_PEER)
        self._resting: defaultdict[PeerId, list[_Resting]] = defaultdict(list)
        self._working: defaultdict[PeerId, set[socket.socket]] = defaultdict(set)
        self._none_until_s: dict[PeerId, float] = {}
        self._traffic = network.traffic("bulk")
        self._traffic_of: OrderedDict[PeerId, Traffic] = OrderedDict()
        self._wires: set[Wire] = set()

    def count(self) -> None:
        """Bring what is counted of bytes up to now."""
        for wire in self._wires:
            self._count(wire)

    def traffic_of(self, peer: PeerId) -> Traffic:
        """The bytes that went over channels with a peer, in both directions."""
        self.count()
        return self._traffic_of.get(peer) or Traffic()

    # --- taking ---------------------------------------------------------------------

    def may_be_had(self, peer: PeerId) -> bool:
        """Whether a channel to a peer is worth asking for."""
        return self.port is not None and trio.current_time() >= self._none_until_s.get(
            peer, 0.0
        )

    @asynccontextmanager
    async def to(self, peer: PeerId) -> AsyncIterator[Channel]:
        """Have a channel to a connected peer, one that rests or a new one.

        Of one peer's, `CHANNELS_PER_PEER` are used at once; more wait their turn.

        Raises:
            NetworkError: ``no_channel``: none is to be had, and a blob stream is what is
                left; ``channels_busy``: none just now; or the peer is not connected any more.
        """
        async with self._takers.take(peer):
            wire = self._wake(peer) or await self._open(peer)
            try:
                yield Channel(wire, self._take)
            except BaseException:
                abandon(wire.sock)
                raise
            self._lay_down(wire)

    def _wake(self, peer: PeerId) -> Wire | None:
        resting = self._resting.pop(peer, [])
        if not resting:
            return None
        one = resting.pop()
        if resting:
            self._resting[peer] = resting
        one.scope.cancel()
        return one.wire

    def _lay_down(self, wire: Wire) -> None:
        if wire.sock.pending():  # within TLS already, so the socket would not tell
            self._broke(wire.peer, Offence.BAD_FRAME, "bytes that nobody asked for")
            wire.sock.close()
            return
        if wire.received + wire.sent > RETIRED_AFTER_BYTES:
            wire.sock.close()
            return
        one = _Resting(wire)
        self._resting[wire.peer].append(one)
        self._nursery.start_soon(self._keep, one)

    async def _keep(self, one: _Resting) -> None:
        """Keep a channel until it is used, has rested too long, or is ended by the peer."""
        try:
            with one.scope, trio.move_on_after(IDLE_LIMIT_S):
                await trio.lowlevel.wait_readable(one.wire.sock)
                if one in self._resting.get(one.wire.peer, ()):  # not woken in this moment
                    self._look_at(one.wire)
        finally:
            resting = self._resting.get(one.wire.peer, [])
            if one in resting:  # else it is in use again
                resting.remove(one)
                one.wire.sock.close()
            if not resting:
                self._resting.pop(one.wire.peer, None)

    def _look_at(self, wire: Wire) -> None:
        """See what a peer does with a channel at rest, on which there is nothing to say."""
        try:
            if wire.idle_bytes():
                self._broke(wire.peer, Offence.BAD_FRAME, "bytes that nobody asked for")
        except NetworkError as error:
            log.debug("a bulk channel at rest has ended", peer=wire.peer, why=error.message)

    async def _open(self, peer: PeerId) -> Wire:
        if not self.may_be_had(peer):
            raise NetworkError(
                f"no bulk channel to {peer} came about lately", code="no_channel"
            )
        try:
            offer = await self._ask(peer)
            return await self._dial(peer, offer)
        except NetworkError as error:
            if error.code == "no_channel":
                self._none(peer)
                log.info("no bulk channel, so blobs go by stream", peer=peer, why=error.message)
            raise

    def _none(self, peer: PeerId) -> None:
        now_s = trio.current_time()
        late = [other for other, at_s in self._none_until_s.items() if at_s < now_s]
        for other in late:
            del self._none_until_s[other]
        self._none_until_s[peer] = now_s + NONE_TO_BE_HAD_S

    async def _ask(self, peer: PeerId) -> ChannelOffered:
        wanted = ChannelWanted(certificate=self._certificate.der)
        try:
            answer = await self._control.request(peer, wanted, ANSWER_LIMIT_S)
        except (RemoteProtocolError, VersionError) as error:
            raise NetworkError(error.message, code="no_channel") from None
        if isinstance(answer, NoChannel):
            if answer.reason is WhyNoChannel.BUSY:
                raise NetworkError(f"{peer} has too many bulk channels", code="channels_busy")
            raise NetworkError(f"{peer} offers no bulk channel", code="no_channel")
        if not isinstance(answer, ChannelOffered):
            self._broke(peer, Offence.UNFITTING_ANSWER, "to channel_wanted")
            raise NetworkError(f"{peer} offers no bulk channel", code="no_channel")
        return answer

    async def _dial(self, peer: PeerId, offer: ChannelOffered) -> Wire:
        try:
            tls = context(self._certificate, offer.certificate, server=False)
        except NetworkError as error:
            raise self._no_tls(peer, error) from None
        remote = self._network.remote_address(peer)
        if remote is None:
            raise NetworkError(f"{peer} is not connected", code="not_connected")
        host = await place(peer, offer, parse_address(remote).host)
        sock = begin(tls, await dial(peer, host, offer), server=False)
        wire = Wire(sock, peer, newer=self._control.versions.is_newer(peer))
        try:
            await self._take(wire, wire.shake_hands)
            check_same(sock, offer.certificate)
        except BaseException as error:
            sock.close()
            if isinstance(error, NetworkError):
                raise self._no_tls(peer, error) from None
            raise
        return wire

    def _no_tls(self, peer: PeerId, error: NetworkError) -> NetworkError:
        """Note that no TLS came about with a peer; gives what that means for a blob."""
        self._noted(peer, seen_in(error), error.message)
        return NetworkError(error.message, code="no_channel")

    async def _take(self, wire: Wire, work: Callable[[], T]) -> T:
        return await self._run(wire, work, self._taking_threads)

    # --- serving --------------------------------------------------------------------

    async def answer(self, peer: PeerId, _wanted: RequestBody) -> ResponseBody:
        """Offer a channel to a peer that asks for one with `ChannelWanted`."""
        assert isinstance(_wanted, ChannelWanted)
        if self.port is None:
            return NoChannel(reason=WhyNoChannel.OFF)
        if not may_open(self._served[peer], self._served.total()):
            return NoChannel(reason=WhyNoChannel.BUSY)
        token = secrets.token_bytes(CHANNEL_TOKEN_BYTES)
        self._tokens.offer(token, peer, _wanted.certificate, trio.current_time())
        host, port = self._announce or (None, self.port)
        return ChannelOffered(
            port=port,
            token=token,
            certificate=self._certificate.der,
            valid_s=TOKEN_LIFETIME_S,
            host=host,
        )

    def _admit(self, token: bytes) -> Callable[[socket.socket], Awaitable[None]] | None:
        offer = self._tokens.redeem(token, trio.current_time())
        if offer is None:
            log.debug("a caller of the bulk port showed no good token")
            return None
        if not may_open(self._served[offer.peer], self._served.total()):
            return None
        self._served[offer.peer] += 1
        return partial(self._serve, offer)

    async def _serve(self, offer: Offer, sock: socket.socket) -> None:
        peer = offer.peer
        try:
            tls = context(self._certificate, offer.certificate, server=True)
            wrapped = begin(tls, sock, server=True)
            with wrapped:
                wire = Wire(wrapped, peer, newer=self._control.versions.is_newer(peer))
                look_up = partial(trio.from_thread.run, self._look_up, wire)
                work = partial(serving.serve, wire, look_up, self._disk)
                await self._run(wire, work, self._serving_threads)
        except RemoteProtocolError as error:
            self._broke(peer, offence_of(error), error.message)
        except ShoalError as error:
            if error.code in NO_CHANNEL:
                self._noted(peer, seen_in(error), error.message)
            level = log.debug if error.code == "link_lost" else log.warning
            level("a bulk channel has ended", peer=peer, why=error.message)
        except Exception:  # root of a channel's task: the fault must not end the others
            log.exception("bulk_channel_failed", peer=peer)
        finally:
            self._served[peer] -= 1
            if not self._served[peer]:
                del self._served[peer]

    async def _look_up(
        self, wire: Wire, blob_id: BlobId, requester: str | None, known: OpenBlob | None
    ) -> OpenBlob | WhyNot:
        self._count(wire)
        return await self._blobs.open_blob(wire.peer, blob_id, requester, known)

    # --- both -----------------------------------------------------------------------

    def hang_up(self, peer: PeerId) -> None:
        """End all channels with a peer, and forget what was offered to it."""
        self._tokens.revoke(peer)
        self._none_until_s.pop(peer, None)
        for sock in self._working.get(peer, ()):
            shut(sock)
        for one in self._resting.get(peer, ()):
            one.scope.cancel()

    async def _run(self, wire: Wire, work: Callable[[], T], threads: trio.CapacityLimiter) -> T:
        working = self._working[wire.peer]
        working.add(wire.sock)
        self._wires.add(wire)
        try:
            return await run_on(wire.sock, work, threads)
        finally:
            self._count(wire)
            self._wires.discard(wire)
            working.discard(wire.sock)
            if not working:
                self._working.pop(wire.peer, None)

    def _count(self, wire: Wire) -> None:
        received, sent = wire.take_counts()
        own = self._traffic_of.setdefault(wire.peer, Traffic())
        self._traffic_of.move_to_end(wire.peer)
        if len(self._traffic_of) > PEERS_COUNTED_LIMIT:
            self._traffic_of.popitem(last=False)
        for traffic in (self._traffic, own):
            traffic.received += received
            traffic.sent += sent


def offence_of(error: RemoteProtocolError) -> Offence:
    """What a peer did wrong on a bulk channel."""
    match error.code:
        case "bad_chunk" | "bad_chunk_list":
            return Offence.BAD_BLOB
        case "too_slow":
            return Offence.SLOW_FRAME
    return Offence.BAD_FRAME


NO_CHANNEL = frozenset({"no_channel", "bad_certificate"})
"""How it is said that no TLS came about; the second where it was for a certificate."""


def seen_in(error: ShoalError) -> Seen:
    """What is noted of a channel that did not come about."""
    return Seen.OTHER_CERTIFICATE if error.code == "bad_certificate" else Seen.NO_TLS


@asynccontextmanager
async def open_channels(
    network: Network,
    control: Control,
    blobs: BlobServer,
    listeners: Iterable[trio.SocketListener],
    *,
    announce: tuple[str, int] | None = None,
    broke: Callable[[PeerId, Offence, str], None] = lambda _peer, _offence, _detail: None,
    noted: Callable[[PeerId, Seen, str], None] = lambda _peer, _what, _detail: None,
    called: Callable[[str, str], None] = lambda _place, _what: None,
) -> AsyncIterator[Channels]:
    """Have bulk channels for as long as the block runs.

    Args:
        network: Whose peers.
        control: Over which channels are agreed on.
        blobs: What is served, and to whom.
        listeners: Of the bulk port, closed at the end; none where channels are off, and
            then none are asked for either.
        announce: Where peers are told to dial, where that is not where this node listens.
        broke: Told of what breaks the protocol.
        noted: Told of what a peer may not have done itself.
        called: Told from where somebody called without a good token.
    """
    listening = list(listeners)
    async with trio.open_nursery() as nursery:
        channels = Channels(
            network,
            control,
            blobs,
            nursery,
            port=port_of(listening) if listening else None,
            announce=announce,
            broke=broke,
            noted=noted,
            called=called,
        )
        if listening:
            nursery.start_soon(trio.serve_listeners, channels.door.answer, listening)
        nursery.start_soon(_follow, network, channels)
        try:
            yield channels
        finally:
            nursery.cancel_scope.cancel()


async def _follow(network: Network, channels: Channels) -> None:
    known = network.connected()
    while True:
        connected = await network.next_change(known)
        for peer in known - connected:
            channels.hang_up(peer)
        known = connected
