"""Gossipsub within our own limits: what a peer sends is read, counted and cut down first.

The stock one starts a task for each message, verifies the sender's record with
each envelope, and writes into its tables whatever topic a control message names.
Here an envelope is taken apart in the task that reads it, so that a peer waits
while its messages are looked at; only what concerns a topic of ours reaches the
router; and a peer that breaks a rule is reported, not argued with.
"""

from __future__ import annotations

import time
from collections import OrderedDict, defaultdict, deque
from typing import TYPE_CHECKING, Any

import structlog
import trio
from google.protobuf.message import DecodeError
from libp2p.io.exceptions import IOException, MessageTooLarge
from libp2p.network.connection.exceptions import RawConnError
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.pubsub.validators import signature_validator
from libp2p.utils.varint import read_varint_prefixed_bytes_limited

from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId
from shoal.node import admission
from shoal.node.admission import Breach, Bucket

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from libp2p.abc import INetStream

    from shoal.node.libp2p_compat.host import SturdyHost
    from shoal.node.network_statistics import Counts

log = structlog.get_logger()

GOSSIP_HEARTBEAT_S = 1
GOSSIP_QUEUE_LENGTH = 1024
GOSSIP_PROTOCOL = "/meshsub/1.1.0"


class _Rates:
    """What one linked peer may send."""

    def __init__(self, now_s: float) -> None:
        self.bytes = Bucket(admission.GOSSIP_BYTES_PER_S, admission.GOSSIP_BURST_BYTES, now_s)
        self.envelopes = Bucket(admission.GOSSIP_RPCS_PER_S, admission.GOSSIP_RPCS_BURST, now_s)
        self.topics: dict[str, Bucket] = {}  # of ours alone

    def take_envelope(self, size_bytes: int, now_s: float) -> bool:
        return self.bytes.takes(now_s, size_bytes) and self.envelopes.takes(now_s)

    def take_message(self, topic: str, now_s: float) -> bool:
        bucket = self.topics.get(topic)
        if bucket is None:
            bucket = Bucket(admission.GOSSIP_PER_S, admission.GOSSIP_BURST, now_s)
            self.topics[topic] = bucket
        return bucket.takes(now_s)


class _Seen:
    """Ids of messages that were taken in: of some time, and of so many.

    In place of libp2p's, which has no bound and keeps a thread for each host.
    """

    def __init__(self) -> None:
        self._until_s: OrderedDict[bytes, float] = OrderedDict()

    def has(self, message_id: bytes) -> bool:
        return self._until_s.get(message_id, 0.0) > time.monotonic()

    def add(self, message_id: bytes) -> None:
        now_s = time.monotonic()
        self._until_s[message_id] = now_s + admission.GOSSIP_SEEN_S
        self._until_s.move_to_end(message_id)
        while self._until_s:
            oldest = next(iter(self._until_s))
            if len(self) <= admission.GOSSIP_SEEN_LIMIT and self._until_s[oldest] > now_s:
                break
            del self._until_s[oldest]

    def __len__(self) -> int:
        return len(self._until_s)


def of_concern(
    control: rpc_pb2.ControlMessage, topics: Iterable[str]
) -> rpc_pb2.ControlMessage:
    """Cut a peer's control message down to what this node acts on: pure.

    Topics that are not ours, peers to exchange, extensions and whatever is over
    `admission`'s limits are left out; without that the router keeps them all.
    """
    ours = frozenset(topics)
    kept = rpc_pb2.ControlMessage()
    most, ids = admission.GOSSIP_ENTRIES_LIMIT, admission.GOSSIP_IDS_LIMIT
    for ihave in control.ihave[:most]:
        if ihave.topicID in ours:
            kept.ihave.add(topicID=ihave.topicID, messageIDs=ihave.messageIDs[:ids])
    wanted = [one for iwant in control.iwant[:most] for one in iwant.messageIDs[:ids]]
    if wanted:
        kept.iwant.add(messageIDs=wanted[:ids])
    for graft in control.graft[:most]:
        if graft.topicID in ours:
            kept.graft.add(topicID=graft.topicID)
    for prune in control.prune[:most]:
        if prune.topicID in ours:
            kept.prune.add(topicID=prune.topicID, backoff=min(prune.backoff, 3600))
    return kept


class Gossip(Pubsub):
    """Gossipsub that delivers what it receives, or refuses it by a limit of ours.

    Args:
        host: From `host.make_host`.
        broke: Told of a peer that breaks a rule.
        counts: Where messages are counted.
    """

    seen_messages: Any

    def __init__(
        self, host: SturdyHost, broke: Callable[[PeerId, Breach], None], counts: Counts
    ) -> None:
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
        super().__init__(host, router, max_inbound_rpc_size=admission.GOSSIP_RPC_LIMIT_BYTES)
        self.seen_messages.stop()
        self.seen_messages = _Seen()
        self._broke = broke
        self._counts = counts
        self._rates: dict[ID, _Rates] = {}
        self._validators: dict[str, Callable[[PeerId, bytes], bool]] = {}
        self._receivers: dict[str, Callable[[bytes], None]] = {}

    async def receive(
        self,
        topic: str,
        validate: Callable[[PeerId, bytes], bool],
        receive: Callable[[bytes], None],
    ) -> None:
        """Join ``topic``; see `node.network.Network.subscribe`."""
        self._validators[topic] = validate
        self._receivers[topic] = receive
        await self.subscribe(topic)

    def forget(self, peer: ID) -> None:
        """Drop what is kept of a peer that has no connection any more."""
        self._rates.pop(peer, None)
        if peer not in self.peers:  # else it is told of the loss by libp2p, and not yet
            self._forget_all_subscriptions(peer)
            self.router.remove_peer(peer)
        for back_offs in self.router.back_off.values():
            back_offs.pop(peer, None)
        for key in [key for key in self._subscription_events if key[0] == peer]:
            del self._subscription_events[key]
        self._peer_added_events.pop(peer, None)

    # -- what comes in --

    async def continuously_read_stream(self, stream: INetStream) -> None:
        """Take in what a peer sends on one stream, until it ends."""
        peer = stream.muxed_conn.peer_id
        try:
            while self.manager.is_running:
                data = await read_varint_prefixed_bytes_limited(
                    stream, self.max_inbound_rpc_size
                )
                await self._take_envelope(peer, data)
        except MessageTooLarge:
            self._report(peer, Breach.GOSSIP_OVERSIZED)
        except DecodeError:
            self._report(peer, Breach.GOSSIP_MALFORMED)
        except (IOException, RawConnError, StreamError) as error:
            log.debug("gossip_stream_ended", peer=str(peer), error=repr(error)[:200])
            return
        await stream.reset()

    async def _take_envelope(self, peer: ID, data: bytes) -> None:
        now_s = trio.current_time()
        rates = self._rates.get(peer)
        if rates is None:
            rates = self._rates[peer] = _Rates(now_s)
        if not rates.take_envelope(len(data), now_s):
            self._counts.gossip_dropped += 1
            self._report(peer, Breach.GOSSIP_FLOOD)
            pause_s = len(data) / admission.GOSSIP_BYTES_PER_S
            await trio.sleep(max(pause_s, 1 / admission.GOSSIP_RPCS_PER_S))
            return
        rpc = rpc_pb2.RPC()
        rpc.ParseFromString(data)
        for message in rpc.publish[: admission.GOSSIP_ENTRIES_LIMIT]:
            await self.push_msg(peer, message)
        for subscription in rpc.subscriptions[: admission.GOSSIP_ENTRIES_LIMIT]:
            if subscription.topicid in self.topic_ids:
                self.handle_subscription(peer, subscription)
        if rpc.HasField("control"):
            control = of_concern(rpc.control, self.topic_ids)
            await self.router.handle_rpc(rpc_pb2.RPC(control=control), peer)

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        """Take a message in, deliver it, and pass it on."""
        if msg_forwarder == self.my_id:
            self._counts.gossip_out += 1
        else:
            breach = self._refusal(msg_forwarder, msg)
            if breach is not None:
                self._counts.gossip_dropped += 1
                if isinstance(breach, Breach):
                    self._report(msg_forwarder, breach)
                return
            self._counts.gossip_in += 1
        self._mark_msg_seen(msg)
        self.notify_subscriptions(msg)
        await self.router.publish(msg_forwarder, msg)

    def _refusal(self, peer: ID, message: rpc_pb2.Message) -> Breach | str | None:
        """Say why a message is not taken in: a breach, a reason that is none, or None.

        The cheap questions come first; the signature is the dear one.
        """
        if len(message.topicIDs) != 1:
            return Breach.GOSSIP_MALFORMED
        topic = message.topicIDs[0]
        if topic not in self._validators:
            return "no topic of ours"
        if message.ByteSize() > admission.GOSSIP_MESSAGE_LIMIT_BYTES:
            return Breach.GOSSIP_OVERSIZED
        if message.from_id == self.my_id.to_bytes() or self._is_msg_seen(message):
            return "seen before"
        rates = self._rates.get(peer)
        if rates is None:
            return "its connection is gone"
        if not rates.take_message(topic, trio.current_time()):
            return Breach.GOSSIP_FLOOD
        return self._verdict(peer, topic, message)

    def _verdict(self, peer: ID, topic: str, message: rpc_pb2.Message) -> Breach | str | None:
        try:
            signed = signature_validator(message)
        except Exception:  # noqa: BLE001  # a malformed key or id, in whatever way
            signed = False
        if not signed:
            return Breach.GOSSIP_INVALID
        try:
            valid = self._validators[topic](PeerId(str(peer)), message.data)
        except ShoalError:
            return Breach.GOSSIP_INVALID
        except Exception:  # a fault of ours must not end the reading of this peer
            log.exception("a check of gossip failed", peer=str(peer), topic=topic)
            return "not checked"
        if not valid:
            self._mark_msg_seen(message)  # others will send it too: not to be checked again
            return "no news"
        return None

    def _report(self, peer: ID, breach: Breach) -> None:
        self._broke(PeerId(str(peer)), breach)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Deliver at once: the stock queue drops what comes after 32 unread ones."""
        if publish_message.from_id == self.my_id.to_bytes():
            return
        for topic in publish_message.topicIDs:
            if topic in self._receivers:
                self._receivers[topic](publish_message.data)

    # -- what goes out --

    def _handle_dead_peer(self, peer_id: ID) -> None:
        """Forget a peer; of one that has come again already, the broken stream only.

        Stock forgets as well what it has said on its new connection, and says it once.
        """
        if not self._peer_is_connected(peer_id):
            super()._handle_dead_peer(peer_id)
            return
        self._drop_stream(peer_id)
        self._schedule_peer_stream_retry(peer_id)

    def _drop_stream(self, peer_id: ID) -> None:
        self.peers.pop(peer_id, None)
        if (queue := self.peer_queues.pop(peer_id, None)) is not None:
            queue.close()

    async def _handle_new_peer(self, peer_id: ID) -> None:
        stream = self.peers.get(peer_id)
        if stream is not None and stream.muxed_conn.event_shutting_down.is_set():
            self._drop_stream(peer_id)
        await super()._handle_new_peer(peer_id)
        queue = self.peer_queues.get(peer_id)
        if queue is not None:
            queue._queue.max_size = GOSSIP_QUEUE_LENGTH  # noqa: SLF001  # stock: 32, then it drops

    def get_hello_packet(self) -> rpc_pb2.RPC:
        """Give the first envelope for a peer, without the sender's record as well."""
        packet = super().get_hello_packet()
        packet.ClearField("senderRecord")
        return packet

    async def write_msg(self, stream: INetStream, rpc_msg: rpc_pb2.RPC) -> Any:
        """Send an envelope without the sender's record: long, and read by nobody."""
        rpc_msg.ClearField("senderRecord")
        return await super().write_msg(stream, rpc_msg)
