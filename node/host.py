"""One life of the libp2p host: what it holds open, and how strangers get in.

`node.network` starts a life, and another one when it fails; what peers are to the
daemon is told there. Here connections are accepted, shaken hands with, admitted
and swept; `node.admission` says which of them, and when something is full.
"""

from __future__ import annotations

import errno
import itertools
import math
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
import trio

from shoal.crypto.peer_id import PeerId
from shoal.node import admission
from shoal.node.admission import Breach, HalfOpen, Held, Refusal
from shoal.node.errors import NetworkError, OtherNetworkError
from shoal.node.libp2p_compat import connections
from shoal.node.libp2p_compat.dial_back import DialBackAnswered, answer_dial_backs, dial_back
from shoal.node.libp2p_compat.gossip import GOSSIP_PROTOCOL, Gossip
from shoal.node.libp2p_compat.host import make_host, start
from shoal.node.libp2p_compat.streams import PING_PROTOCOL, TRANSPORT_ERRORS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from shoal.crypto.identity import Identity
    from shoal.node.libp2p_compat.muxing import SafeYamux
    from shoal.node.libp2p_compat.transport import BufferedTCPStream
    from shoal.node.network_statistics import Counts
    from shoal.node.private_network import PrivateNetwork
    from shoal.protocol.reachability_messages import Outcome

log = structlog.get_logger()

CLOSING_LIMIT_S = 5.0
"""For closing everything when the network stops."""

ACCEPT_PAUSE_S = 0.2
"""After an accept that failed for want of descriptors or buffers; others give some back."""

SWEEP_INTERVAL_S = 2.0

_PASSING_ERRNOS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED, errno.EINTR}
)
_NOT_OURS = frozenset({None, GOSSIP_PROTOCOL, PING_PROTOCOL, "/ipfs/id/1.0.0"})
_NOT_PROVED = "it did not show in time that it has the network's secret"


class RefusedError(NetworkError):
    """A connection that this node does not take, for a reason of its own."""

    code = "refused"

    def __init__(self, message: str, refusal: Refusal) -> None:
        super().__init__(message, code=refusal.value)
        self.refusal = refusal


@dataclass(frozen=True, slots=True)
class Gates:
    """What others have to say about peers, and are told of them; see `open_network`."""

    refused: Callable[[PeerId], str | None]
    broke: Callable[[PeerId, str], None]


@dataclass(slots=True)
class _Handshake:
    """A connection that a stranger has opened and that is none yet."""

    number: int
    place: str
    since_s: float
    tcp: BufferedTCPStream
    scope: trio.CancelScope

    def seen(self) -> HalfOpen:
        return HalfOpen(self.number, self.place, self.since_s, self.tcp.received_bytes)


class Host:
    """libp2p, from its start to its failure or end; never started twice.

    Args:
        addresses: Where this node can be dialled.
        changed: Called whenever a connection came or went.
        expects: Whether a dial-back of this peer, with this token, is waited for.
    """

    def __init__(
        self,
        identity: Identity,
        addresses: Sequence[str],
        private: PrivateNetwork | None,
        gates: Gates,
        counts: Counts,
        changed: Callable[[], None],
        expects: Callable[[PeerId, bytes], bool],
    ) -> None:
        self.libp2p = make_host(identity, addresses, self._connection_changed)
        answer_dial_backs(self.libp2p, expects)
        self.swarm: Any = self.libp2p.get_network()
        self.gossip = Gossip(self.libp2p, self.broke, counts)
        self._private = private
        self._gates = gates
        self._counts = counts
        self._changed = changed
        self._numbers = itertools.count()
        self._half_open: dict[int, _Handshake] = {}
        self._joining: dict[SafeYamux, Held] = {}
        self._muxed: set[SafeYamux] = set()
        self._dialling = trio.CapacityLimiter(admission.DIALS_LIMIT)
        self._dials: set[trio.CancelScope] = set()
        self._nursery: trio.Nursery | None = None
        self._closing = False
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._limit = admission.connections_limit(files if files >= 0 else 1 << 20)

    async def run(
        self, listeners: Sequence[trio.SocketListener], started: Callable[[], Awaitable[None]]
    ) -> None:
        """Run until it fails or is cancelled.

        Args:
            listeners: Where peers are accepted.
            started: Awaited as soon as connections can come.

        Raises:
            Exception: What it has failed of.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for service in (self.swarm, self.gossip, self.gossip.router):
                await start(nursery, service, lambda: self._closing)
            nursery.start_soon(self._sweep)
            await started()
            for listener in listeners:
                nursery.start_soon(self._accept_from, listener)

    async def close(self) -> None:
        """Close connections while their tasks still run.

        Cancelled instead, they leak descriptors and the peers notice nothing.
        libp2p takes 0.2 s for each, so it is done for all at once.
        """
        self._closing = True
        async with trio.open_nursery() as closing:
            for connection in list(self.live()):
                closing.start_soon(self.end, connection)
        await self.libp2p.close()

    def abort(self) -> None:
        """Give back every socket, and wake who waits for a peer: no task runs any more."""
        for scope in self._dials:
            scope.cancel()
        for muxed in self._muxed:
            if not muxed.event_closed.is_set():
                muxed.abort()
        self._muxed.clear()

    # -- who is connected --

    def live(self, peer: PeerId | None = None) -> Iterator[Any]:
        """Connections that have not ended, of one peer or all."""
        for of_peer in list(self.swarm.connections.values()):
            for connection in of_peer:
                if connection.is_closed:
                    continue
                if peer is None or str(connection.muxed_conn.peer_id) == peer:
                    yield connection

    async def end(self, connection: Any) -> None:
        """End a connection at once, whether the peer still answers or not."""
        with trio.move_on_after(CLOSING_LIMIT_S, shield=True):
            try:
                await connection.close()
            except TRANSPORT_ERRORS as error:
                log.debug("connection_end_failed", error=repr(error)[:200])

    def broke(self, peer: PeerId, breach: Breach) -> None:
        """Count a breach and pass it on."""
        self._counts.breaches[breach.name.lower()] += 1
        log.debug("a peer broke a rule", peer=peer, what=breach.value)
        try:
            self._gates.broke(peer, breach.value)
        except Exception:  # a fault of ours in hearing of a breach must not save the peer
            log.exception("a breach was not heard", peer=peer)

    @property
    def half_open(self) -> int:
        """Handshakes under way that strangers began."""
        return len(self._half_open)

    def _held(self) -> list[Held]:
        found = list(self._joining.values())
        for connection in self.live():
            muxed = connection.muxed_conn
            if muxed in self._joining:
                continue
            busy = any(one.get_protocol() not in _NOT_OURS for one in connection.get_streams())
            peer = PeerId(str(muxed.peer_id))
            inbound = not muxed.is_initiator
            found.append(Held(id(muxed), peer, muxed.place, inbound, busy, muxed.used_s))
        return found

    def _connection_changed(self, peer: Any) -> None:
        if not any(self.live(PeerId(str(peer)))):
            self.gossip.forget(peer)
            self._muxed = {muxed for muxed in self._muxed if not muxed.event_closed.is_set()}
        self._changed()

    # -- how they come --

    async def dial(
        self, peer: PeerId, name: str, port: int, answered: Callable[[], Awaitable[None]]
    ) -> None:
        """Connect to ``peer`` at one address. Cancel-safe: nothing stays half-open.

        ``answered`` is awaited between the TCP connection and the first word.

        Raises:
            OSError: Nobody accepts TCP connections there.
            OtherNetworkError: Somebody does who is not in this node's private network.
            RefusedError: It is the peer, and this node takes no connection with it.
            NetworkError: ``host_restarts``: this life of the host has failed meanwhile.
            BaseLibp2pError: Somebody does, and does not prove to be ``peer``.
        """
        with trio.CancelScope() as scope:
            self._dials.add(scope)
            try:
                await self._dial(peer, name, port, answered)
            finally:
                self._dials.discard(scope)
        if scope.cancelled_caught:  # nobody would ever start what it leads to
            raise NetworkError(
                "this node's libp2p host failed and is started again", code="host_restarts"
            )

    async def _dial(
        self, peer: PeerId, name: str, port: int, answered: Callable[[], Awaitable[None]]
    ) -> None:
        async with self._dialling:
            stream = await trio.open_tcp_stream(name, port)
            try:
                await answered()
                protection = self._private.protect() if self._private else None
                muxed = await connections.dial(self.libp2p, stream, protection, peer)
                place = admission.place_of(stream.socket.getpeername()[0])
                await self._admit(muxed, place, inbound=False)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await trio.aclose_forcefully(stream)
                raise

    async def dial_back(
        self, peer: PeerId, ip: str, port: int, token: bytes, timeout_s: float
    ) -> Outcome:
        """See whether ``peer`` answers at ``port``; no connection comes of it. Cancel-safe."""
        return await dial_back(
            self.libp2p, peer, ip, port, token, timeout_s=timeout_s, private=self._private
        )

    async def _accept_from(self, listener: trio.SocketListener) -> None:
        quiet_until_s = -math.inf
        while True:
            try:
                self._take(await listener.accept())
            except OSError as error:
                if error.errno not in _PASSING_ERRNOS:
                    raise
                if trio.current_time() > quiet_until_s:
                    quiet_until_s = trio.current_time() + 60.0
                    log.warning("connections cannot be accepted for now", error=str(error))
                await trio.sleep(ACCEPT_PAUSE_S)

    def _take(self, stream: trio.SocketStream) -> None:
        """Begin the handshake of an accepted connection; give up another if there are many."""
        assert self._nursery is not None  # set before anything is accepted
        protection = self._private.protect() if self._private else None
        try:
            tcp = connections.wrap(stream, protection, initiator=False)
            place = admission.place_of(str(tcp._cached_remote_address[0]))  # noqa: SLF001
        except OSError:  # it has ended already
            stream.socket.close()
            return
        rival = admission.give_way(place, [one.seen() for one in self._half_open.values()])
        if rival is not None:
            self._half_open.pop(rival.number).scope.cancel()
            self._counts.refused[Refusal.CROWDED_OUT] += 1
        now_s = trio.current_time()
        scope = trio.CancelScope(deadline=now_s + admission.HANDSHAKE_LIMIT_S)
        handshake = _Handshake(next(self._numbers), place, now_s, tcp, scope)
        self._half_open[handshake.number] = handshake
        self._nursery.start_soon(self._serve, handshake, protection)

    async def _serve(self, handshake: _Handshake, protection: Any) -> None:
        """Serve an accepted connection until it has ended, however it did.

        Of a private network it serves members alone, and strangers learn nothing.
        """
        remote = "?"
        muxed: SafeYamux | None = None
        try:
            host, port = handshake.tcp.get_remote_address()
            remote = f"/ip{6 if ':' in host else 4}/{host}/tcp/{port}"
            with handshake.scope:
                muxed = await connections.secure(self.libp2p, handshake.tcp)
                await self._admit(muxed, handshake.place, inbound=True)
            if self._half_open.pop(handshake.number, None) and handshake.scope.cancelled_caught:
                raise trio.TooSlowError
            if not handshake.scope.cancelled_caught:
                await muxed.event_closed.wait()
        except DialBackAnswered:
            log.debug("dial_back_answered", remote=remote)
        except RefusedError as error:
            self._counts.refused[error.refusal] += 1
            log.debug("connection_refused", remote=remote, error=error.message)
        except Exception as error:  # noqa: BLE001  # root of a connection's task; strangers send the bytes
            self._counts.refused[Refusal.HANDSHAKE] += 1
            log.debug("connection_refused", remote=remote, error=repr(error)[:200])
            if self._private and not protection.admitted:
                why = error.message if isinstance(error, OtherNetworkError) else _NOT_PROVED
                self._private.turned_away(remote, why)
        finally:
            self._half_open.pop(handshake.number, None)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(handshake.tcp.stream)

    async def _admit(self, muxed: SafeYamux, place: str, *, inbound: bool) -> None:
        """Take a connection whose handshake is done, if there is room and the peer is welcome.

        Raises:
            RefusedError: It is not.
        """
        peer = PeerId(str(muxed.peer_id))
        why = self._gates.refused(peer)
        if why is not None:
            raise RefusedError(f"this node has cut {peer}: {why}", Refusal.PEER_CUT)
        held = self._held()
        decision = admission.admit(peer, place, inbound=inbound, held=held, limit=self._limit)
        if decision.refusal is not None:
            message = f"no room for {peer}: {decision.refusal.replace('_', ' ')}"
            raise RefusedError(message, decision.refusal)
        self._end_all({one.number for one in decision.ended})
        muxed.place, muxed.used_s = place, trio.current_time()
        muxed.report = lambda breach: self.broke(peer, breach)
        self._joining[muxed] = Held(id(muxed), peer, place, inbound, True, muxed.used_s)
        self._muxed.add(muxed)
        try:
            await connections.add(self.libp2p, muxed, inbound=inbound)
        finally:
            del self._joining[muxed]

    def _end_all(self, numbers: set[int]) -> None:
        assert self._nursery is not None
        for connection in self.live() if numbers else ():
            if id(connection.muxed_conn) in numbers:
                self._counts.evicted += 1
                self._nursery.start_soon(self.end, connection)

    # -- how they are kept in bounds --

    async def _sweep(self) -> None:
        assert self._nursery is not None
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            now_s = trio.current_time()
            unread = []
            for connection in self.live():
                muxed = connection.muxed_conn
                unread.append((muxed.unread_bytes(), id(muxed), connection))
                if muxed.is_dribbling(now_s):
                    self._cut(connection, Breach.DRIBBLING)
                for stream in muxed.sweep(now_s):
                    self._nursery.start_soon(_reset, stream)
            if sum(size for size, _, _ in unread) > admission.NODE_UNREAD_LIMIT_BYTES:
                self._cut(max(unread)[2], Breach.HOARDING)

    def _cut(self, connection: Any, breach: Breach) -> None:
        assert self._nursery is not None
        self.broke(PeerId(str(connection.muxed_conn.peer_id)), breach)
        self._nursery.start_soon(self.end, connection)


async def _reset(stream: Any) -> None:
    try:
        await stream.reset()
    except TRANSPORT_ERRORS as error:
        log.debug("stream_reset_failed", error=repr(error)[:200])
