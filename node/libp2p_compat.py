"""py-libp2p 0.8.1, made safe to build on: every patch and work-around, in one place.

py-libp2p carries connections (TCP, Noise, yamux), streams and gossipsub. As it
comes, one bad stream ends the program, one cancelled write ends a connection,
and 250 accepted connections are all it ever accepts. What is changed here is
changed by subclasses and by our own accepting and dialling, so that nothing
outside this package sees another libp2p than the one it imported. Private
methods are overridden, hence one exact version, checked at import; each change
has a test that fails without it (``tests/net/test_libp2p_compat.py``), which
tells on an upgrade what can go.

What the daemon says over all this is `node.network`'s; nobody else calls here.

| stock behaviour | instead |
|---|---|
| plaintext is accepted as "security" | Noise only, yamux only: `make_host` |
| an exception in a stream handler ends the program | `SturdyHost`: log, reset |
| an exception in any other task ends it too | `SturdyManager`: log, go on |
| an accepted connection holds its slot for ever | `accept` returns at its end |
| private networks nobody else understands | `PrivateTCPStream`, as specified |
| a cancelled write breaks the connection | `SafeYamux` finishes each frame |
| a full stream table blocks `open_stream` for ever | `SafeYamux` refuses |
| a close waits for a peer that does not read | `SafeYamux` cuts the socket |
| a reset, or a lost connection, reads as an orderly end | `why_it_ended` tells |
| one address per dial, 250 ms late, then 60 s ban | `dial` takes one address, now |
| a listener that breaks the handshake ends the dialler | `dial` names it |
| whoever is in the address book is dialled by and by | `NoAutoConnector` never starts |
| SO_REUSEPORT lets two daemons share a port | listening sockets are trio's |
| gossip drops above 10 messages/s and 32 queued | `Gossip` and its limits |
"""

# ruff: noqa: E402  # libp2p is imported after its version has been checked

from __future__ import annotations

import functools
import logging
from collections import defaultdict, deque
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId, check_peer_id
from shoal.node.errors import ConfigError, OtherNetworkError

SUPPORTED_VERSION = "0.8.1"
if version("libp2p") != SUPPORTED_VERSION:
    _message = f"libp2p {version('libp2p')} is installed, and shoal patches {SUPPORTED_VERSION}"
    raise ConfigError(
        _message,
        code="libp2p_version",
        hint=f"install the one that fits: pip install libp2p=={SUPPORTED_VERSION}",
    )

from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.basic_host import BasicHost
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.io.trio import TrioTCPStream
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.exceptions import SwarmException
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pubsub import Pubsub
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.muxer_multistream import MuxerMultistream
from libp2p.stream_muxer.yamux.yamux import GO_AWAY_NORMAL, Yamux
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.tools.anyio_service.trio_manager import TrioManager
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from libp2p.abc import IMuxedConn, INetStream, ISecureConn
    from libp2p.pubsub.pb import rpc_pb2

    from shoal.crypto.identity import Identity
    from shoal.node.private_network import PrivateNetwork, Protection

log = structlog.get_logger()

# libp2p logs every refused stream as an error, and some to the root logger. What
# an operator needs to know of it, our own events say.
_libp2p_log = logging.getLogger("libp2p")
_libp2p_log.handlers = [logging.NullHandler()]
_libp2p_log.propagate = False
swarm_connection.logging = _libp2p_log

MAX_CONNECTIONS = 512
"""Of both directions together. An idle connection costs about 85 KB."""

READ_SIZE_BYTES = 256 * 1024
"""Asked of the kernel at a time; Noise alone would ask for 2 bytes, then for 65 KB."""

MAX_FRAME_PAYLOAD_BYTES = 65519 - 12
"""Of one yamux frame: with its header it fits one Noise message (65535 less the tag)."""

FRAME_LIMIT_S = 10.0
"""A frame that is not taken by then never will be; its connection is cut. As in go-yamux."""

GOSSIP_HEARTBEAT_S = 1
GOSSIP_QUEUE_LENGTH = 1024
GOSSIP_PROTOCOL = "/meshsub/1.1.0"

_RESTART_DELAY_S = 1.0
_FORESEEN_OF_A_DIAL = (BaseLibp2pError, OSError, ShoalError)
_NOT_PROVED = "it did not show in time that it has the network's secret"


# -- connections ------------------------------------------------------------------------


class BufferedTCPStream(TrioTCPStream):
    """A TCP stream that reads `READ_SIZE_BYTES` at a time and serves from that."""

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self._unread = memoryview(b"")
        # The base class takes (host, port) only, and IPv6 names have four parts.
        self._cached_remote_address = stream.socket.getpeername()[:2]

    async def read(self, n: int | None = None) -> bytes:
        """Up to ``n`` bytes, or what is there; b"" at the end. Cancel-safe."""
        if n == 0:
            return b""
        if not self._unread:
            self._unread = memoryview(await self._receive())
        count = len(self._unread) if n is None else n
        taken, self._unread = self._unread[:count], self._unread[count:]
        return bytes(taken)

    async def _receive(self) -> bytes:
        """Wait for more bytes; b"" at the end. Cancel-safe."""
        return await super().read(READ_SIZE_BYTES)


class PrivateTCPStream(BufferedTCPStream):
    """A TCP stream of a private network: nothing but `Protection`'s bytes goes over it.

    py-libp2p has private networks of its own, with nonces of 8 bytes where the
    specification has 24: nobody else's connections are understood by it.
    """

    def __init__(
        self, stream: trio.SocketStream, protection: Protection, *, initiator: bool
    ) -> None:
        super().__init__(stream)
        self._protection = protection
        self._initiator = initiator

    async def write(self, data: bytes) -> None:
        """Send ``data`` protected.

        Raises:
            OtherNetworkError: The other side is in another network or in none. A
                listener finds that out before it sends any of ``data``.
        """
        if not self._initiator and not self._protection.admitted:
            self._unread = memoryview(await self._receive())
        await super().write(self._protection.protect(data))

    async def _receive(self) -> bytes:
        if nonce := self._protection.nonce():  # others wait for it before they say more
            await super().write(nonce)
        while True:
            try:
                received = await super()._receive()
            except ConnectionClosedError:
                self._protection.ended()
                raise
            if not received:
                self._protection.ended()
                return b""
            if said := self._protection.open(received):
                return said


class SafeYamux(Yamux):
    """Yamux whose connection survives a cancelled caller and a peer that hangs."""

    async def _write_frame(self, data: bytes) -> None:
        """Write a whole frame or none of it.

        Half a frame leaves Noise's counters apart and kills the connection with
        every stream on it. So cancellation counts only while waiting for the
        turn to write; then the frame goes out, for `FRAME_LIMIT_S` at most.
        """
        async with self._write_lock:
            with trio.move_on_after(FRAME_LIMIT_S, shield=True) as limit:
                await self.secured_conn.write(data)
            if limit.cancelled_caught:
                with trio.CancelScope(shield=True):
                    await self.secured_conn.close()
                message = f"the peer took no data for {FRAME_LIMIT_S:.0f} s"
                raise ConnectionClosedError(message)
        await trio.lowlevel.checkpoint()

    async def open_stream(self) -> Any:
        """Open a stream; refuse, where the base class would wait, when 256 are open."""
        if self.stream_backlog_semaphore.value == 0:
            message = f"{self.stream_backlog_limit} streams to this peer are open already"
            raise MuxedStreamError(message)
        with trio.CancelScope(shield=True):  # each await in there is bounded by FRAME_LIMIT_S
            return await super().open_stream()

    async def close(self, error_code: int = GO_AWAY_NORMAL) -> None:
        """Close at once: the socket first, so that no frame stuck in it is waited for."""
        await self.secured_conn.close()
        await super().close(error_code)


class SafeMuxing(MuxerMultistream):
    """Builds the muxer it was given; the stock one builds its own `Yamux` all the same."""

    async def new_conn(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """Agree on the muxer with the other side, and set it up."""
        _, muxer = await self._selector.select(conn, conn.is_initiator, self.negotiate_timeout)
        return muxer(conn, peer_id)


class SturdyHost(BasicHost):
    """A host that outlives its stream handlers."""

    async def _swarm_stream_handler(self, net_stream: INetStream) -> None:
        try:
            await super()._swarm_stream_handler(net_stream)
        except Exception as error:  # noqa: BLE001  # root of a stream's task; peers choose the bytes
            peer = str(net_stream.muxed_conn.peer_id)
            log.info(
                "stream_refused",
                peer=peer,
                protocol=net_stream.get_protocol(),
                error=repr(error)[:200],
            )
            await net_stream.reset()


class NoAutoConnector(AutoConnector):
    """Dials nobody: whom to link to is `node.membership`'s to say.

    The stock one looks for somebody to dial every 30 s and at each disconnect,
    and here, where no transport could do it, writes into the log that it failed.
    """

    async def start(self) -> None:
        """Stay off; what has not been started does nothing when it is asked."""

    def record_disconnect(self, peer_id: ID) -> None:
        """Keep nothing: the stock one remembers every peer that ever left."""


class SturdyManager(TrioManager):
    """Runs a libp2p service whose tasks may fail one by one.

    The stock manager cancels the whole service, and with it the program, when
    any task raises: a gossip message with a malformed key is enough.
    """

    def run_task(  # type: ignore[override]  # the stock one hides its signature in a decorator
        self,
        async_fn: Callable[..., Awaitable[None]],
        *args: Any,
        daemon: bool = False,
        name: str | None = None,
        _internal: bool = False,
    ) -> None:
        """Start a task: its failure is logged, and a daemon task starts again."""
        name = name or getattr(async_fn, "__qualname__", repr(async_fn))
        if not _internal:
            async_fn = functools.partial(_survive, name, daemon, async_fn)
        super().run_task(async_fn, *args, daemon=daemon, name=name, _internal=_internal)


async def _survive(
    name: str, daemon: bool, async_fn: Callable[..., Awaitable[None]], *args: Any
) -> None:
    while True:
        try:
            return await async_fn(*args)
        except Exception as error:  # noqa: BLE001  # root of a task of libp2p's; peers cause these
            log.info("libp2p_task_failed", task=name, error=repr(error)[:200])
        if not daemon:
            return None
        await trio.sleep(_RESTART_DELAY_S)


def make_host(identity: Identity, addresses: Sequence[str]) -> SturdyHost:
    """Build a host that speaks Noise and yamux and announces ``addresses``.

    It has no transports: connections come from `accept` and `dial` alone.
    """
    key_pair = create_new_key_pair(identity.seed)
    peer_id = ID.from_pubkey(key_pair.public_key)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer_id, key_pair)
    noise = NoiseTransport(key_pair, create_new_x25519_key_pair().private_key)
    upgrader = TransportUpgrader(
        secure_transports_by_protocol={NOISE: noise},
        muxer_transports_by_protocol={},
    )
    upgrader.muxer_multistream = SafeMuxing({YAMUX: SafeYamux})
    limits = ConnectionConfig(
        min_connections=0,
        low_watermark=0,
        high_watermark=MAX_CONNECTIONS,  # never pruned: `add_conn` refuses before
        max_connections=MAX_CONNECTIONS,
    )
    swarm = Swarm(peer_id, peerstore, upgrader, connection_config=limits)
    swarm.auto_connector = NoAutoConnector(swarm)
    return SturdyHost(
        swarm,
        announce_addrs=[Multiaddr(address) for address in addresses],
        disable_identify_address_discovery=True,
    )


async def start(nursery: trio.Nursery, service: Any) -> None:
    """Run a libp2p service (the swarm, gossip) in ``nursery`` until that is cancelled."""
    manager = SturdyManager(service)
    service._manager = manager  # noqa: SLF001  # as libp2p's own background_trio_service does
    nursery.start_soon(manager.run)
    await manager.wait_started()


async def accept(
    host: SturdyHost, stream: trio.SocketStream, private: PrivateNetwork | None = None
) -> None:
    """Serve an accepted TCP connection; returns when it has ended, however it did.

    Of a private network it serves members alone, and strangers learn nothing.
    """
    swarm = host.get_network()
    protection = private.protect() if private else None
    remote = "?"
    try:
        raw = RawConnection(_tcp_stream(stream, protection, initiator=False), initiator=False)
        remote = str(raw.get_transport_addresses()[0])
        connection = await swarm.upgrade_inbound_raw_conn(raw, Multiaddr(remote))
        check_peer_id(str(connection.peer_id))
        await connection.event_closed.wait()
    except Exception as error:  # noqa: BLE001  # root of a connection's task; strangers send the bytes
        log.debug("connection_refused", remote=remote, error=repr(error)[:200])
        if private and protection and not protection.admitted:
            why = error.message if isinstance(error, OtherNetworkError) else _NOT_PROVED
            private.turned_away(remote, why)
    finally:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


async def dial(
    host: SturdyHost, peer: PeerId, name: str, port: int, private: PrivateNetwork | None = None
) -> None:
    """Connect to ``peer`` at one address. Cancel-safe: nothing stays half-open.

    Raises:
        OSError: Nobody accepts TCP connections there.
        OtherNetworkError: Somebody does who is not in this node's private network.
        SwarmException: Somebody does, and does not prove to be ``peer``.
    """
    stream = await trio.open_tcp_stream(name, port)
    try:
        protection = private.protect() if private else None
        raw = RawConnection(_tcp_stream(stream, protection, initiator=True), initiator=True)
        await host.get_network().upgrade_outbound_raw_conn(raw, ID.from_base58(peer))
    except BaseException as error:
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)
        if isinstance(error, Exception) and not isinstance(error, _FORESEEN_OF_A_DIAL):
            message = f"what answers broke the handshake: {type(error).__name__}"
            raise SwarmException(message) from error  # the bytes are a stranger's to choose
        raise


def _tcp_stream(
    stream: trio.SocketStream, protection: Protection | None, *, initiator: bool
) -> BufferedTCPStream:
    if protection is None:
        return BufferedTCPStream(stream)
    return PrivateTCPStream(stream, protection, initiator=initiator)


def why_it_ended(stream: INetStream) -> str | None:
    """Tell apart what libp2p reports alike, as the end of a stream.

    Returns:
        ``connection_lost``, ``stream_reset``, or None where the peer closed its
        side in order.
    """
    if stream.muxed_conn.event_shutting_down.is_set():
        return "connection_lost"
    return "stream_reset" if stream.muxed_stream.reset_received else None


# -- gossip -----------------------------------------------------------------------------


class Gossip(Pubsub):
    """Gossipsub that delivers what it receives, or refuses it by a limit of ours.

    Args:
        host: From `make_host`.
        admit: Whether one more unseen message of this linked peer is looked at.
            It is asked before the signature is checked, which is the dear part.
    """

    def __init__(self, host: SturdyHost, admit: Callable[[PeerId], bool]) -> None:
        router = GossipSub(
            protocols=[GOSSIP_PROTOCOL],
            degree=6,
            degree_low=4,
            degree_high=12,
            heartbeat_interval=GOSSIP_HEARTBEAT_S,  # stock: 120 s until a mesh is mended
            gossip_window=0,  # stock: each heartbeat tells 6 peers what it has; tables do that
            spam_protection_enabled=False,  # stock: drops above 10/s without a word
            eclipse_protection_enabled=False,  # counts addresses, which NAT and loopback share
            adaptive_gossip_enabled=False,  # moves the degrees set above
        )
        # Written at each message, and read and trimmed only by the adaptive part.
        router.recent_message_deliveries = defaultdict(lambda: deque(maxlen=0))
        super().__init__(host, router)
        self._admit = admit
        self._receivers: dict[str, Callable[[bytes], None]] = {}

    async def receive(
        self,
        topic: str,
        validate: Callable[[PeerId, bytes], bool],
        receive: Callable[[bytes], None],
    ) -> None:
        """Join ``topic``; see `node.network.Network.subscribe`."""

        def is_valid(forwarder: ID, message: rpc_pb2.Message) -> bool:
            return forwarder == self.my_id or validate(PeerId(str(forwarder)), message.data)

        self.set_topic_validator(topic, is_valid, is_async_validator=False)
        self._receivers[topic] = receive
        await self.subscribe(topic)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Take a message in, within the forwarder's limit."""
        ours = msg_forwarder == self.my_id
        if ours or self._is_msg_seen(msg) or self._admit(PeerId(str(msg_forwarder))):
            await super().push_msg(msg_forwarder, msg)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Deliver at once: the stock queue drops what comes after 32 unread ones."""
        if publish_message.from_id == self.my_id.to_bytes():
            return
        for topic in publish_message.topicIDs:
            if topic in self._receivers:
                self._receivers[topic](publish_message.data)

    async def _handle_new_peer(self, peer_id: ID) -> None:
        await super()._handle_new_peer(peer_id)
        queue = self.peer_queues.get(peer_id)
        if queue is not None:
            queue._queue.max_size = GOSSIP_QUEUE_LENGTH  # noqa: SLF001  # stock: 32, then it drops
