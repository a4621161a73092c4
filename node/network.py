"""Connections, streams and gossip: how the daemon speaks with its peers.

This is the only module that the rest of the daemon reaches libp2p through (its
patches are in `node.libp2p_compat`), and the place where libp2p's exceptions
become `NetworkError`. It opens and answers streams, pings and publishes when it
is asked to; which peers to link with, what is said over a stream, and how often
to ping are decided elsewhere.

A peer that stops without a word (SIGSTOP, a pulled cable) is not noticed by
libp2p: ping it and `Network.disconnect` it when it does not answer.
"""

from __future__ import annotations

import errno
import secrets
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Self

from shoal.node import libp2p_compat  # checks the version of libp2p: first

# isort: split
import structlog
import trio
from libp2p.abc import INotifee
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.ping import ID as PING_PROTOCOL
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.peer.id import ID
from libp2p.protocol_muxer.exceptions import ProtocolNotSupportedError
from libp2p.protocol_muxer.multiselect_client import MultiselectClient
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey

from shoal.crypto.peer_id import PeerId
from shoal.node.addresses import Address, dialable, parse_address
from shoal.node.dial_back import answer_dial_backs, dial_back
from shoal.node.dialing import Dialing
from shoal.node.errors import (
    ConfigError,
    NetworkError,
    OtherNetworkError,
    StreamClosedError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from types import TracebackType

    from libp2p.abc import INetConn, INetStream, INetwork
    from multiaddr import Multiaddr

    from shoal.crypto.identity import Identity
    from shoal.node.private_network import PrivateNetwork
    from shoal.protocol.messages import Outcome

    Handler = Callable[["ByteStream"], Awaitable[None]]

log = structlog.get_logger()

READ_SIZE_BYTES = 64 * 1024
GOODBYE_LIMIT_S = 1.0
"""For closing or resetting one stream; a peer that hangs does not get longer."""

CLOSING_LIMIT_S = 5.0
"""For closing everything when the network stops."""

GOSSIP_RATE_PER_S = 20.0
GOSSIP_BURST = 200.0
"""Unseen gossip messages taken from one linked peer: 2 ms of CPU each."""

_PING_SIZE_BYTES = 32
_OTHER_NETWORK_HINT = (
    "it belongs to another private network, or to none: compare `shoal status` on both "
    "machines; an invitation made there and `shoal join TOKEN` here bring this node into its "
    "network"
)
_TRANSPORT_ERRORS = (
    BaseLibp2pError,
    OSError,
    UnicodeDecodeError,  # a peer's name of a protocol, which libp2p takes for text
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)


class ByteStream:
    """One stream to one peer: bytes in order, in both directions, each closed by itself.

    One task may receive while another sends; two senders must take turns. A call
    that was cancelled leaves the stream between two unknown bytes: reset it. As a
    context manager it is closed at the end, and reset if that is an exception.

    A frame that is going out when its sender is cancelled goes out whole: to a
    peer that takes nothing, that lasts `libp2p_compat.FRAME_LIMIT_S`.
    """

    def __init__(self, stream: INetStream) -> None:
        self.remote = PeerId(str(stream.muxed_conn.peer_id))
        self._stream = stream
        self._unread = memoryview(b"")

    async def receive_some(self, limit: int) -> bytes:
        """Wait for 1 to ``limit`` bytes; b"" means that the peer closed its side.

        Raises:
            NetworkError: The stream was reset, or its connection has ended.
        """
        if not self._unread:
            self._unread = memoryview(await self._read())
        taken, self._unread = self._unread[:limit], self._unread[limit:]
        return bytes(taken)

    async def receive_exactly(self, count: int) -> bytes:
        """Wait for ``count`` bytes.

        Raises:
            StreamClosedError: The peer closed its side before the first of them.
            NetworkError: It did so after, or the stream has failed.
        """
        received = bytearray()
        while len(received) < count:
            some = await self.receive_some(count - len(received))
            if not some and not received:
                message = f"{self.remote} closed the stream"
                raise StreamClosedError(message)
            if not some:
                message = f"{self.remote} closed the stream {count - len(received)} bytes early"
                raise NetworkError(message, code="stream_truncated")
            received += some
        return bytes(received)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Hand all of ``data`` to the connection.

        Raises:
            NetworkError: The stream or its connection has ended, or the peer
                read nothing for 5 s.
        """
        rest = memoryview(data)
        with _translated(self.remote, "takes no more data"):
            while rest:
                frame = rest[: libp2p_compat.MAX_FRAME_PAYLOAD_BYTES]
                await self._stream.write(bytes(frame))
                rest = rest[len(frame) :]

    async def aclose(self) -> None:
        """Tell the peer that nothing more comes; what it sends can still be received.

        Never raises, and does its work even when the task is cancelled.
        """
        await self._end(self._stream.close)

    async def reset(self) -> None:
        """End both directions at once. Never raises, as `aclose`."""
        await self._end(self._stream.reset)

    async def _read(self) -> bytes:
        with _translated(self.remote, "sends no more data"):
            try:
                return await self._stream.read(READ_SIZE_BYTES)
            except StreamReset:
                code: str | None = "stream_reset"
            except StreamEOF:
                code = None
        code = libp2p_compat.why_it_ended(self._stream) or code
        if code is None:
            return b""
        message = f"{self.remote} sends no more data: {code.replace('_', ' ')}"
        raise NetworkError(message, code=code)

    async def _end(self, how: Callable[[], Awaitable[None]]) -> None:
        with trio.move_on_after(GOODBYE_LIMIT_S, shield=True):
            try:
                await how()
            except _TRANSPORT_ERRORS as error:
                log.debug("stream_end_unsaid", peer=self.remote, error=repr(error))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await (self.aclose() if error is None else self.reset())


class Network:
    """The peers that this node is connected to, and what can be done with them.

    Made by `open_network`, and of use until that context ends.
    """

    def __init__(
        self,
        identity: Identity,
        listeners: Sequence[trio.SocketListener] = (),
        private: PrivateNetwork | None = None,
    ) -> None:
        self.peer_id = identity.peer_id
        self._private = private
        self._bound = [listener.socket.getsockname()[:2] for listener in listeners]
        self._expects: Callable[[PeerId, bytes], bool] = lambda _peer, _token: False
        self._host = libp2p_compat.make_host(identity, self.addresses())
        answer_dial_backs(self._host, self._is_expected)
        self._swarm = self._host.get_network()
        self._gossip_rates: dict[PeerId, _Rate] = {}
        self._gossip = libp2p_compat.Gossip(self._host, self._admits_gossip)
        self._ping_streams: dict[PeerId, ByteStream] = {}
        self._changed = trio.Event()
        self.dialing = Dialing(
            self._dial,
            foreseen=(OtherNetworkError, *_TRANSPORT_ERRORS),
            connected=lambda peer: peer in self.connected(),
        )
        self._swarm.register_notifee(_Watcher(self._connections_changed))

    # -- connections --

    def addresses(self) -> tuple[str, ...]:
        """Where this node can be dialled, each ending in ``/p2p/`` and its peer id.

        A wildcard is expanded to the interfaces that the machine has now.
        """
        return dialable(self._bound, self.peer_id)

    def connected(self) -> frozenset[PeerId]:
        """The peers with a live connection."""
        return frozenset(
            PeerId(str(peer))
            for peer, connections in self._swarm.connections.items()
            if any(not connection.is_closed for connection in connections)
        )

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
        that is connected already is left as it is.

        Raises:
            NetworkError: ``unreachable``, saying for each address what failed;
                OtherNetworkError where one of them leads to a node that is not in
                this one's private network.
        """
        if peer in self.connected():
            return
        failures = await self.dialing.reach(peer, addrs, timeout_s)
        if failures is None:
            return
        reasons = [f"{each.text}: {_why_not(each.error, each.limit_s)}" for each in failures]
        why = "; ".join(reasons) or "no address is known"
        self.dialing.book.failed(peer, why, trio.current_time())
        message = f"{peer} cannot be reached: {why}"
        elsewhere = any(isinstance(each.error, OtherNetworkError) for each in failures)
        if elsewhere:
            raise OtherNetworkError(message, hint=_OTHER_NETWORK_HINT)
        raise NetworkError(
            message,
            code="unreachable",
            hint="check that its daemon runs, that the address is right, that no firewall is "
            "between and that it is in the same network, as `shoal status` shows it",
        )

    async def _dial(
        self, peer: PeerId, host: str, port: int, answered: Callable[[], Awaitable[None]]
    ) -> None:
        await libp2p_compat.dial(self._host, peer, host, port, self._private, answered)

    async def disconnect(self, peer: PeerId) -> None:
        """End every connection to ``peer`` at once, whether it still answers or not."""
        self._ping_streams.pop(peer, None)
        with trio.move_on_after(CLOSING_LIMIT_S, shield=True):
            await self._swarm.close_peer(ID.from_base58(peer))

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
        self._expects = expects

    def _is_expected(self, peer: PeerId, token: bytes) -> bool:
        return self._expects(peer, token)

    async def dial_back(
        self, peer: PeerId, ip: str, port: int, token: bytes, timeout_s: float
    ) -> Outcome:
        """See whether ``peer`` answers at ``port``, beside any connection to it."""
        return await dial_back(
            self._host, peer, ip, port, token, timeout_s=timeout_s, private=self._private
        )

    # -- streams --

    def handle(self, protocol: str, handler: Handler) -> None:
        """Let ``handler`` serve every stream that a peer opens for ``protocol``.

        The stream is closed when the handler returns. What it raises is logged
        and resets that stream only.
        """

        async def serve(net_stream: INetStream) -> None:
            stream = ByteStream(net_stream)
            try:
                async with stream:
                    await handler(stream)
            except NetworkError as error:
                log.debug(
                    "stream_broke", peer=stream.remote, protocol=protocol, error=error.message
                )
            except Exception:  # root of a stream's task: the fault must not end the others
                log.exception("stream_handler_failed", peer=stream.remote, protocol=protocol)

        self._host.set_stream_handler(protocol, serve)

    async def open_stream(self, peer: PeerId, protocol: str, timeout_s: float) -> ByteStream:
        """Open a stream to a connected peer; cancel-safe.

        Raises:
            NetworkError: ``not_connected``, ``timed_out``, ``protocol_unknown``
                when the peer does not speak it, or the connection failed.
        """
        with _limited(peer, f"did not open a stream for {protocol}", timeout_s):
            return await self._open(peer, protocol)

    async def _open(self, peer: PeerId, protocol: str) -> ByteStream:
        connection = self._live_connection(peer)
        if connection is None:
            message = f"{peer} is not connected"
            raise NetworkError(message, code="not_connected")
        with _translated(peer, "opens no stream"):
            # A stream whose opening is cancelled would stay open with nobody to
            # close it. libp2p_compat bounds the time that this takes.
            with trio.CancelScope(shield=True):
                net_stream = await connection.new_stream()
            stream = ByteStream(net_stream)
            negotiator = MultiselectClient()
            communicator = MultiselectCommunicator(net_stream)
            try:
                await negotiator.handshake(communicator)
                await negotiator.try_select(communicator, protocol)
            except ProtocolNotSupportedError as error:
                await stream.reset()
                message = f"{peer} does not speak {protocol}"
                raise NetworkError(
                    message, code="protocol_unknown", hint="it may run another version of shoal"
                ) from error
            except BaseException:
                await stream.reset()
                raise
            net_stream.set_protocol(protocol)
            return stream

    def _live_connection(self, peer: PeerId) -> INetConn | None:
        connections = self._swarm.get_connections(ID.from_base58(peer))
        return next((one for one in connections if not one.is_closed), None)

    # -- gossip --

    async def subscribe(
        self,
        topic: str,
        validate: Callable[[PeerId, bytes], bool],
        receive: Callable[[bytes], None],
    ) -> None:
        """Take part in the gossip about ``topic``.

        Both callbacks run on libp2p's path: they must be quick and not block.
        Gossip is never reliable; compare states over streams beside it.

        Args:
            topic: Its name, the same on every node.
            validate: Given the peer that passed it on, and the message: whether
                it may be delivered and passed on. Asked once per message.
            receive: Given each valid message of others, once.
        """
        await self._gossip.receive(topic, validate, receive)

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip ``data``; it reaches the peers in the mesh of the topic, if there are any."""
        await self._gossip.publish(topic, data)

    def _admits_gossip(self, peer: PeerId) -> bool:
        rate = self._gossip_rates.setdefault(peer, _Rate(trio.current_time()))
        return rate.admits(trio.current_time())

    # -- life --

    def _connections_changed(self) -> None:
        connected = self.connected()
        for table in (self._ping_streams, self._gossip_rates):
            for peer in table.keys() - connected:
                del table[peer]
        self._changed.set()
        self._changed = trio.Event()

    async def _run(
        self,
        nursery: trio.Nursery,
        listeners: Sequence[trio.SocketListener],
    ) -> None:
        for service in (self._swarm, self._gossip, self._gossip.router):
            await libp2p_compat.start(nursery, service)

        async def accept(stream: trio.SocketStream) -> None:
            await libp2p_compat.accept(self._host, stream, self._private)

        for listener in listeners:
            nursery.start_soon(trio.serve_listeners, accept, [listener])

    async def _close(self) -> None:
        """Close connections while their tasks still run.

        Cancelled instead, they leak descriptors and the peers notice nothing.
        libp2p takes 0.2 s for each, so it is done for all at once.
        """
        async with trio.open_nursery() as closing:
            for peer in self.connected():
                closing.start_soon(self.disconnect, peer)
        await self._host.close()


class _Watcher(INotifee):
    """Hears of connections from libp2p, and calls ``changed`` for each that came or went."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed

    async def connected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002
        self._changed()

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002
        self._changed()

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass


class _Rate:
    """A token bucket: `GOSSIP_RATE_PER_S` on average, `GOSSIP_BURST` at once."""

    def __init__(self, now: float) -> None:
        self._tokens = GOSSIP_BURST
        self._at = now

    def admits(self, now: float) -> bool:
        earned = (now - self._at) * GOSSIP_RATE_PER_S
        self._tokens = min(GOSSIP_BURST, self._tokens + earned)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


@asynccontextmanager
async def open_network(
    identity: Identity, listen: Sequence[str], private: PrivateNetwork | None = None
) -> AsyncIterator[Network]:
    """Listen on ``listen``, multiaddrs such as ``/ip4/0.0.0.0/tcp/4711``, and run a network.

    Port 0 takes any free one: see `Network.addresses`. At the end every
    connection is closed, also when the task is cancelled.

    With ``private`` every connection, of either direction, is one of that network.

    Raises:
        ConfigError: An address that cannot be understood.
        NetworkError: ``port_taken``, or the address is not to be had here.
    """
    listeners = await _bind([parse_address(text) for text in listen])
    network = Network(identity, listeners, private)
    async with trio.open_nursery() as nursery:
        await network._run(nursery, listeners)  # noqa: SLF001  # this function is its constructor
        try:
            yield network
        finally:
            with trio.move_on_after(CLOSING_LIMIT_S, shield=True):
                await network._close()  # noqa: SLF001
            nursery.cancel_scope.cancel()


async def _bind(addresses: Sequence[Address]) -> list[trio.SocketListener]:
    listeners: list[trio.SocketListener] = []
    for address in addresses:
        try:
            listeners += await trio.open_tcp_listeners(address.port, host=address.host)
        except OSError as error:
            for listener in listeners:
                await listener.aclose()
            raise _cannot_listen(address, error) from None
    return listeners


def _cannot_listen(address: Address, error: OSError) -> NetworkError:
    if error.errno == errno.EADDRINUSE:
        return NetworkError(
            f"another process listens on {address}",
            code="port_taken",
            hint="choose another port with --listen; or, if that is a daemon of yours, "
            "end it with `shoal down --home ITS_HOME`",
        )
    return NetworkError(
        f"cannot listen on {address}: {error.strerror or error}",
        code="cannot_listen",
        hint="choose an address of this machine and a port above 1023 with --listen",
    )


@contextmanager
def _translated(peer: PeerId, what: str) -> Iterator[None]:
    """Let libp2p's exceptions leave this module as ``NetworkError``."""
    try:
        yield
    except _TRANSPORT_ERRORS as error:
        reason = str(error) or type(error).__name__
        message = f"{peer} {what}: {reason}"
        raise NetworkError(message, code="stream_failed") from error


@contextmanager
def _limited(peer: PeerId, what: str, timeout_s: float) -> Iterator[None]:
    try:
        with trio.fail_after(timeout_s):
            yield
    except trio.TooSlowError:
        message = f"{peer} {what} within {timeout_s:g} s"
        raise NetworkError(message, code="timed_out") from None


def _why_not(error: BaseException, share_s: float) -> str:
    """Say in a few words why a dial failed: the first cause that a person can act on."""
    causes = list(_causes(error))
    for cause in causes:
        match cause:
            case ConfigError() | NetworkError():
                return cause.message
            case trio.TooSlowError():
                return f"no answer within {share_s:.1f} s"
            case ConnectionRefusedError():
                return "connection refused"
            case PeerIDMismatchesPubkey():
                return "another peer answers there"
            case OSError(strerror=str(reason)):
                return reason
    return f"no libp2p handshake ({str(causes[-1])[:80] or type(causes[-1]).__name__})"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for member in error.exceptions:
                yield from _causes(member)
        error = error.__cause__ or error.__context__
