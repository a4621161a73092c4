"""A libp2p host whose parts fail one by one, and that writes down nothing of its peers."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

import structlog
import trio
from libp2p.abc import INotifee
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_new_x25519_key_pair
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.identity.identify import identify
from libp2p.identity.identify_push.identify_push import ID_PUSH as IDENTIFY_PUSH
from libp2p.io.exceptions import IOException
from libp2p.io.utils import read_exactly
from libp2p.network.auto_connector import AutoConnector
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.exceptions import MuxedStreamError
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.tools.anyio_service.trio_manager import TrioManager
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

import shoal
from shoal.node import admission
from shoal.node.libp2p_compat.muxing import SafeMuxing, SafeYamux
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from libp2p.abc import INetConn, INetStream, INetwork

    from shoal.crypto.identity import Identity

log = structlog.get_logger()

swarm_connection.logging = logging.getLogger("libp2p")  # stock: root

PING_SIZE_BYTES = 32
PING_IDLE_LIMIT_S = 10.0
"""Between two pings of a peer on one stream; as in stock. Links ping every 2 s."""

_RESTART_DELAY_S = 1.0
_STOCK_LIMIT = 1 << 20
"""Connections, as libp2p counts them: `admission` decides before."""


class HostEndedError(Exception):
    """A part of libp2p that runs as long as the host came to its end by itself."""


class SturdyHost(BasicHost):
    """A host that outlives its stream handlers, and serves so many streams at once."""

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
        finally:
            net_stream.muxed_conn.abandon(net_stream.muxed_stream)

    def set_stream_handler(self, protocol_id: Any, stream_handler: Any) -> None:
        """Let ``stream_handler`` serve a protocol, for so many streams of a connection."""

        async def serve(stream: INetStream) -> None:
            open_now = Counter(
                one.get_protocol()
                for one in stream.swarm_conn.get_streams()
                if not one.muxed_stream.is_initiator
            )
            if open_now[protocol_id] > admission.PROTOCOL_STREAMS_LIMIT:
                await stream.reset()
            else:
                await stream_handler(stream)

        super().set_stream_handler(protocol_id, serve)


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
    any task raises: a gossip message with a malformed key is enough. It also
    looks for each new task's parent among all that there are.
    """

    def run_task(  # the stock one hides its signature in a decorator
        self,
        async_fn: Callable[..., Awaitable[None]],
        *args: Any,
        daemon: bool = False,
        name: str | None = None,
        _internal: bool = False,
    ) -> None:
        """Start a task: its failure is logged, and a daemon task starts again."""
        if _internal:
            super().run_task(async_fn, *args, daemon=daemon, name=name, _internal=True)
        elif self._task_nursery is not None and self.is_running:
            known_as = name or str(getattr(async_fn, "__qualname__", repr(async_fn)))
            task = functools.partial(_survive, known_as, daemon, async_fn, *args)
            self._task_nursery.start_soon(task, name=known_as)


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


class _Watcher(INotifee):
    """Hears of connections from libp2p, and calls ``changed`` for each that came or went."""

    def __init__(self, changed: Callable[[ID], None]) -> None:
        self._changed = changed

    async def connected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002
        self._changed(conn.muxed_conn.peer_id)

    async def disconnected(self, network: INetwork, conn: INetConn) -> None:  # noqa: ARG002
        self._changed(conn.muxed_conn.peer_id)

    async def opened_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def closed_stream(self, network: INetwork, stream: INetStream) -> None:
        pass

    async def listen(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass

    async def listen_close(self, network: INetwork, multiaddr: Multiaddr) -> None:
        pass


identify.PROTOCOL_VERSION = f"/shoal/{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
identify.AGENT_VERSION = f"shoal/{shoal.__version__}"


def make_host(
    identity: Identity, addresses: Sequence[str], changed: Callable[[ID], None]
) -> SturdyHost:
    """Build a host that speaks Noise and yamux and announces ``addresses``.

    It has no transports: connections come from `connections.serve` and
    `connections.dial` alone.

    ``changed`` is told of each peer that a connection to came or went.
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
        high_watermark=_STOCK_LIMIT,
        max_connections=_STOCK_LIMIT,
        max_connections_per_peer=_STOCK_LIMIT,
    )
    swarm = Swarm(peer_id, peerstore, upgrader, connection_config=limits)
    swarm.auto_connector = NoAutoConnector(swarm)
    host = SturdyHost(
        swarm,
        announce_addrs=[Multiaddr(address) for address in addresses],
        disable_identify_address_discovery=True,
    )
    host.get_mux().remove_handler(IDENTIFY_PUSH)  # nobody here reads what it would store
    host.get_mux().add_handler(PING, answer_pings)
    for protocol, handler in list(host.get_mux().handlers.items()):
        host.set_stream_handler(protocol, handler)
    # Stock ones tag peers, for a pruner that prunes nothing here, and ask each who it is,
    # in a task whose failure ends the program; nothing here is decided by the answer.
    swarm.notifees[:] = [_Watcher(changed)]
    return host


async def answer_pings(stream: INetStream) -> None:
    """Send back each ping, until the peer ends or says nothing for long.

    Stock notes each peer that ever pinged, and raises at the end of every stream.
    """
    while True:
        with trio.move_on_after(PING_IDLE_LIMIT_S) as limit:
            try:
                payload = await read_exactly(stream, PING_SIZE_BYTES)
            except (IOException, MuxedStreamError):
                break
            await stream.write(payload)
        if limit.cancelled_caught:
            break
    await stream.close()


async def start(nursery: trio.Nursery, service: Any, may_end: Callable[[], bool]) -> None:
    """Run a libp2p service (the swarm, gossip) in ``nursery`` until that is cancelled.

    The nursery ends by `HostEndedError` if the service ends before it may.
    """
    manager = SturdyManager(service)
    service._manager = manager  # noqa: SLF001  # as libp2p's own background_trio_service does

    async def run() -> None:
        await manager.run()
        if not may_end():
            raise HostEndedError(type(service).__name__)

    nursery.start_soon(run)
    await manager.wait_started()
