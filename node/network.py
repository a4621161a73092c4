"""Connections, streams and gossip: how the daemon speaks with its peers.

This is what the rest of the daemon reaches libp2p through. It opens and answers
streams, pings and publishes when it is asked to; which peers to link with, what
is said over a stream, and how often to ping are decided elsewhere.

The libp2p host under it (`node.supervision`) is supervised: where something that nobody
foresaw ends it, it is started again on the same sockets, with the same identity,
handlers and topics. Callers see connections end and come again, as after a
network's hiccup; the `Network` that they hold stays.

A peer that stops without a word (SIGSTOP, a pulled cable) is not noticed by
libp2p: ping it and `Network.disconnect` it when it does not answer.
"""

from __future__ import annotations

import secrets
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import structlog
import trio

from shoal.crypto.peer_id import PeerId
from shoal.node.addresses import parse_address
from shoal.node.dialing import Dialing
from shoal.node.errors import (
    NetworkError,
    OtherNetworkError,
    StreamClosedError,
)
from shoal.node.host import Gates
from shoal.node.libp2p_compat.streams import PING_PROTOCOL, TRANSPORT_ERRORS, LazyChoice
from shoal.node.listening import bind
from shoal.node.network_statistics import NetworkStatistics, Traffic
from shoal.node.streams import ByteStream, translated
from shoal.node.supervision import SupervisedHost
from shoal.node.why_not import peer_cut, unreachable, why_not

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from shoal.crypto.identity import Identity
    from shoal.node.host import Host
    from shoal.node.private_network import PrivateNetwork
    from shoal.protocol.reachability_messages import Outcome

    Handler = Callable[[ByteStream], Awaitable[None]]
    Validate = Callable[[PeerId, bytes], bool]
    Receive = Callable[[bytes], None]

__all__ = ["ByteStream", "Network", "NetworkStatistics", "open_network"]

log = structlog.get_logger()

_PING_SIZE_BYTES = 32


class Network:
    """The peers that this node is connected to, and what can be done with them.

    Made by `open_network`, and of use until that context ends.
    """

    def __init__(
        self,
        identity: Identity,
        listeners: list[trio.SocketListener],
        private: PrivateNetwork | None,
        gates: Gates,
    ) -> None:
        self.peer_id = identity.peer_id
        self._gates = gates
        self._ping_streams: dict[PeerId, ByteStream] = {}
        self._dials: dict[PeerId, trio.Event] = {}
        self.dialing = Dialing(
            self._dial,
            foreseen=(NetworkError, *TRANSPORT_ERRORS),
            connected=lambda peer: peer in self.connected(),
        )
        self._changed = trio.Event()
        self._supervised = SupervisedHost(
            identity, listeners, private, gates, self._connections_changed
        )

    # -- connections --

    def addresses(self) -> tuple[str, ...]:
        """Where this node can be dialled, each ending in ``/p2p/`` and its peer id.

        A wildcard is expanded to the interfaces that the machine has now.
        """
        return self._supervised.addresses()

    def connected(self) -> frozenset[PeerId]:
        """The peers with a live connection."""
        return frozenset(PeerId(str(one.muxed_conn.peer_id)) for one in self._life.live())

    async def next_change(self, known: frozenset[PeerId]) -> frozenset[PeerId]:
        """Wait until `connected` differs from ``known``, and give it.

        Nothing queues up: a slow caller sees the difference, not each step. A
        peer that was away for a moment shows by its streams, which have failed.
        """
        while (now := self.connected()) == known:
            await self._changed.wait()
        return now

    def remote_address(self, peer: PeerId) -> str | None:
        """The address at the other end of the connection; None when there is none.

        It is one to dial only if we dialled it; else it names a passing port.
        """
        connection = self._live_connection(peer)
        found = connection.get_transport_addresses() if connection else []
        return str(found[0]) if found else None

    async def connect(self, peer: PeerId, addrs: Sequence[str], timeout_s: float) -> None:
        """Connect to ``peer`` by whichever of ``addrs`` leads to it.

        They are dialled in the order and at the moments of `node.dial_plan`. A peer
        that is connected already is left as it is, and one that another task dials
        is waited for: two dials would end one another.

        Raises:
            NetworkError: ``unreachable``, saying for each address what failed;
                ``peer_cut`` where this node takes no connection with it;
                ``timed_out`` where another task still dials it;
                OtherNetworkError where one of them leads to a node that is not in
                this one's private network.
        """
        deadline = trio.current_time() + timeout_s
        with _limited(peer, "is being dialled, and was not reached", timeout_s):
            while peer in self._dials:
                await self._dials[peer].wait()
        if peer in self.connected():
            return
        self._check_not_cut(peer)
        ended = self._dials[peer] = trio.Event()
        try:
            await self._connect(peer, addrs, deadline)
        finally:
            del self._dials[peer]
            ended.set()

    async def _connect(self, peer: PeerId, addrs: Sequence[str], deadline: float) -> None:
        failures = await self.dialing.reach(peer, addrs, deadline - trio.current_time())
        if failures is None:
            return
        self._check_not_cut(peer)  # of what it did while it was dialled
        reasons = [f"{each.text}: {why_not(each.error, each.limit_s)}" for each in failures]
        why = "; ".join(reasons) or "no address is known"
        self.dialing.book.failed(peer, why, trio.current_time())
        elsewhere = any(isinstance(each.error, OtherNetworkError) for each in failures)
        raise unreachable(peer, why, elsewhere=elsewhere)

    def _check_not_cut(self, peer: PeerId) -> None:
        if (why := self._gates.refused(peer)) is not None:
            self.dialing.book.failed(peer, f"this node has cut it: {why}", trio.current_time())
            raise peer_cut(peer, why)

    async def _dial(
        self, peer: PeerId, host: str, port: int, answered: Callable[[], Awaitable[None]]
    ) -> None:
        await self._supervised.up.wait()
        await self._life.dial(peer, host, port, answered)

    async def disconnect(self, peer: PeerId) -> None:
        """End every connection to ``peer`` at once, whether it still answers or not."""
        self._ping_streams.pop(peer, None)
        for connection in list(self._life.live(peer)):
            await self._life.end(connection)

    async def ping(self, peer: PeerId, timeout_s: float) -> float:
        """Measure a round trip to ``peer``, in seconds.

        The stream is kept for the next ping, since opening one costs ten pings.

        Raises:
            NetworkError: ``not_connected``, ``timed_out``, or the connection failed.
        """
        with _limited(peer, "did not answer a ping", timeout_s):
            stream = self._ping_streams.pop(peer, None)
            if stream is not None:
                try:
                    return await self._ping_over(stream)
                except StreamClosedError:
                    pass  # peers may close it after 10 s without a ping
            return await self._ping_over(await self._open(peer, PING_PROTOCOL))

    async def _ping_over(self, stream: ByteStream) -> float:
        payload = secrets.token_bytes(_PING_SIZE_BYTES)
        started = trio.current_time()
        try:
            await stream.send_all(payload)
            echoed = await stream.receive_exactly(_PING_SIZE_BYTES)
        except BaseException:
            await stream.reset()
            raise
        if echoed != payload:
            await stream.reset()
            message = f"{stream.remote} answered a ping with other bytes"
            raise NetworkError(message, code="bad_ping")
        self._ping_streams[stream.remote] = stream
        return trio.current_time() - started

    # -- dial-backs --

    def expect_dial_backs(self, expects: Callable[[PeerId, bytes], bool]) -> None:
        """Answer the dial-backs whose peer and token ``expects`` knows, and no others."""
        self._supervised.expects = expects

    async def dial_back(
        self, peer: PeerId, ip: str, port: int, token: bytes, timeout_s: float
    ) -> Outcome:
        """See whether ``peer`` answers at ``port``, beside any connection to it."""
        return await self._life.dial_back(peer, ip, port, token, timeout_s)

    # -- streams --

    def handle(self, protocol: str, handler: Handler) -> None:
        """Let ``handler`` serve every stream that a peer opens for ``protocol``.

        The stream is closed when the handler returns. What it raises is logged
        and resets that stream only.
        """

        async def serve(net_stream: Any) -> None:
            net_stream.muxed_conn.used_s = trio.current_time()
            stream = ByteStream(net_stream, self._traffic(protocol))
            try:
                async with stream:
                    await handler(stream)
            except NetworkError as error:
                log.debug(
                    "stream_broke", peer=stream.remote, protocol=protocol, error=error.message
                )
            except Exception:  # root of a stream's task: the fault must not end the others
                log.exception("stream_handler_failed", peer=stream.remote, protocol=protocol)

        self._supervised.handle(protocol, serve)

    async def open_stream(self, peer: PeerId, protocol: str, timeout_s: float) -> ByteStream:
        """Open a stream to a connected peer; cancel-safe.

        Raises:
            NetworkError: ``not_connected``, ``timed_out``, ``protocol_unknown``
                when the peer does not speak it, or the connection failed.
        """
        with _limited(peer, f"did not open a stream for {protocol}", timeout_s):
            return await self._open(peer, protocol)

    async def _open(self, peer: PeerId, protocol: str) -> ByteStream:
        stream = await self.begin_stream(peer, protocol)
        try:
            await stream.agree()
        except BaseException:
            await stream.reset()
            raise
        return stream

    async def begin_stream(self, peer: PeerId, protocol: str) -> ByteStream:
        """Open a stream without waiting for the peer to agree to its protocol; cancel-safe.

        What is sent first goes out together with the protocol's name, which saves two round
        trips. Whether the peer speaks it shows when something is received: an error
        ``protocol_unknown``, or ``stream_reset`` with nothing more known, since a peer may
        break off at bytes that it does not understand.

        Raises:
            NetworkError: ``not_connected``, or the connection failed.
        """
        await trio.lowlevel.checkpoint()  # whoever tries again and again lets others work
        connection = self._live_connection(peer)
        if connection is None:
            message = f"{peer} is not connected"
            raise NetworkError(message, code="not_connected")
        with translated(peer, "opens no stream"):
            # A stream whose opening is cancelled would stay open with nobody to
            # close it. libp2p_compat bounds the time that this takes.
            with trio.CancelScope(shield=True):
                net_stream = await connection.new_stream()
            net_stream.set_protocol(protocol)
            if protocol != PING_PROTOCOL:
                connection.muxed_conn.used_s = trio.current_time()
        return ByteStream(net_stream, self._traffic(protocol), LazyChoice(protocol))

    def traffic(self, name: str) -> Traffic:
        """Where bytes that go beside the streams are counted, under a name of their own."""
        return self._supervised.counts.traffic[name]

    def _traffic(self, protocol: str) -> Traffic:
        """Where bytes of a protocol's streams are counted: of ``/shoal/blob/1`` as ``blob``."""
        _, _, name = protocol.strip("/").partition("/")
        return self._supervised.counts.traffic[name.partition("/")[0] or protocol]

    def _live_connection(self, peer: PeerId) -> Any:
        return next(self._life.live(peer), None)

    # -- gossip --

    async def subscribe(self, topic: str, validate: Validate, receive: Receive) -> None:
        """Take part in the gossip about ``topic``.

        Both callbacks run on libp2p's path: they must be quick and not block.
        Gossip is never reliable; compare states over streams beside it.

        Args:
            topic: Its name, the same on every node.
            validate: Given the peer that passed it on, and the message: whether
                it may be delivered and passed on. Asked once per message. False
                is for what is no news; a message that no honest peer passes on
                is told by raising a ShoalError, and held against the peer.
            receive: Given each valid message of others, once.
        """
        await self._supervised.subscribe(topic, validate, receive)

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip ``data``; it reaches the peers in the mesh of the topic, if there are any."""
        if self._supervised.up.is_set():
            await self._life.gossip.publish(topic, data)

    # -- life --

    def statistics(self) -> NetworkStatistics:
        """The connections of this moment, and what was counted since the start."""
        live = list(self._life.live())
        inbound = sum(not one.muxed_conn.is_initiator for one in live)
        counts = self._supervised.counts
        return NetworkStatistics(
            connections_in=inbound,
            connections_out=len(live) - inbound,
            half_open=self._life.half_open,
            streams=sum(len(one.muxed_conn.streams) for one in live),
            unread_bytes=sum(one.muxed_conn.unread_bytes() for one in live),
            refused={str(cause): count for cause, count in counts.refused.items()},
            evicted=counts.evicted,
            breaches=dict(counts.breaches),
            received={name: each.received for name, each in counts.traffic.items()},
            sent={name: each.sent for name, each in counts.traffic.items()},
            gossip_in=counts.gossip_in,
            gossip_out=counts.gossip_out,
            gossip_dropped=counts.gossip_dropped,
            restarts=counts.restarts,
            tasks=trio.lowlevel.current_statistics().tasks_living,
        )

    def _connections_changed(self) -> None:
        connected = self.connected()
        for peer in self._ping_streams.keys() - connected:
            del self._ping_streams[peer]
        self._changed.set()
        self._changed = trio.Event()

    async def run(self) -> None:
        """Keep the libp2p host running; `open_network` starts and cancels it."""
        await self._supervised.run()

    async def close(self) -> None:
        """End every connection in order, and what runs; `open_network` does."""
        await self._supervised.close()

    @property
    def _life(self) -> Host:
        return self._supervised.life

    # What tests look at and plant faults in.
    _host = property(lambda self: self._life.libp2p)
    _swarm = property(lambda self: self._life.swarm)
    _gossip = property(lambda self: self._life.gossip)


@asynccontextmanager
async def open_network(
    identity: Identity,
    listen: Sequence[str],
    private: PrivateNetwork | None = None,
    *,
    refused: Callable[[PeerId], str | None] = lambda peer: None,  # noqa: ARG005
    broke: Callable[[PeerId, str], None] = lambda peer, what: None,  # noqa: ARG005
) -> AsyncIterator[Network]:
    """Listen on ``listen``, multiaddrs such as ``/ip4/0.0.0.0/tcp/4711``, and run a network.

    Port 0 takes any free one: see `Network.addresses`. At the end every
    connection is closed, also when the task is cancelled.

    Args:
        identity: Who this node is.
        listen: Where peers are accepted; nowhere is fine.
        private: Every connection, of either direction, is one of that network.
        refused: Asked once it is sure who a peer is: why this node takes no
            connection with it now, or None.
        broke: Told of a peer that broke a rule, and of which: a sentence without
            its subject. It must be quick and not block.

    Raises:
        ConfigError: An address that cannot be understood.
        NetworkError: ``port_taken``, or the address is not to be had here; or,
            later, ``host_failed``.
    """
    listeners = await bind([parse_address(text) for text in listen])
    network = Network(identity, listeners, private, Gates(refused, broke))
    failed: NetworkError | None = None

    async def run(scope: trio.CancelScope) -> None:
        nonlocal failed
        try:
            await network.run()
        except NetworkError as error:
            failed = error
            scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, nursery.cancel_scope)
            await network._supervised.up.wait()  # noqa: SLF001  # this function is its constructor
            try:
                yield network
            finally:
                await network.close()
                nursery.cancel_scope.cancel()
    finally:
        network._supervised.stop_listening()  # noqa: SLF001
    if failed is not None:
        raise failed


@contextmanager
def _limited(peer: PeerId, what: str, timeout_s: float) -> Iterator[None]:
    try:
        with trio.fail_after(timeout_s):
            yield
    except trio.TooSlowError:
        message = f"{peer} {what} within {timeout_s:g} s"
        raise NetworkError(message, code="timed_out") from None
