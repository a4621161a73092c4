"""A network of up to a thousand nodes in virtual time, in which the machine is the real one.

Each node is a `protocol.membership.Member`, with the table, the pace and the dialling that
the daemon has. What is modelled is the rest: connections, latency, the gossip mesh with
its duplicates and losses, crashes with and without a reset, cuts, and clocks that differ.

Signatures are stubbed: an envelope is a unique string as long as the real one, and opening
it looks up what was signed. The outcome is the same, since nobody here forges anything.
What the real ones cost is counted, as is every byte that is written to a socket; what TCP
and IP add is counted apart. Pings are counted and not acted out: a hung peer is lost after
the time that a ping takes to find it.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count

from shoal.crypto.envelope import Statement
from shoal.crypto.peer_id import peer_id_of
from shoal.protocol import membership_events as m
from shoal.protocol import pace
from shoal.protocol.adverts import AdvertTable
from shoal.protocol.codec import decode
from shoal.protocol.dialling import Places
from shoal.protocol.membership import Member
from shoal.protocol.statements import Advert, Renewal

ADVERT_BYTES = (500, 900)
"""From nothing measured to 8 GPUs, each measured: see `tests/bench/advert_sizes.py`."""

LARGEST_ADVERT_BYTES = (1000, 1000)
"""Every advert as large as adverts may be."""

RENEWAL_BYTES = 165

# Of each message: yamux, Noise, and TCP/IP; then what the message itself has around it.
TRANSPORT_BYTES, SEGMENT_BYTES, IP_HEADER_BYTES = 30, 1448, 52
REQUEST_BYTES = 50
GOSSIP_BYTES = 180  # origin, sequence, topic, key, signature
PING_BYTES = 32
HANDSHAKE_BYTES = 2500  # each way: Noise, yamux, identify, the control stream's greeting
REFUSED_BYTES, TIMED_OUT_BYTES = 60, 240

# CPU, measured on a loaded machine with `time.process_time`, for one side.
PING_CPU_S = 0.0003
REQUEST_CPU_S = 0.0004
GOSSIP_CPU_S = 0.0028
COPY_CPU_S = 0.0004
SIGNATURE_CPU_S = 0.00015
MARK_CPU_S = 1e-6
HANDSHAKE_CPU_S = 0.010
FAILED_DIAL_CPU_S = 0.001

MESH_LOW, MESH_DEGREE, MESH_HIGH = 4, 6, 12
HEARTBEAT_S = 1.0
RESET_SHARE = 0.7
"""Of crashes: the kernel resets connections. The others (power, cable) say nothing."""
COMPARE_LIMIT_S, PING_LIMIT_S = 5.0, 2.0
WALL_MS = 1_800_000_000_000


@dataclass(slots=True)
class Cost:
    """What a node spent since counting began."""

    sent: int = 0
    received: int = 0
    headers: int = 0
    messages: int = 0
    cpu_s: float = 0.0
    by_kind: dict = field(default_factory=dict)


class Node:
    """One member, and the state of its operating system."""

    __slots__ = (
        "advert_bytes", "alive", "clock_ms", "connected", "cost", "joined_at_s", "member",
        "mesh", "number", "peer", "seen", "side", "silent", "tick_at_s",
    )  # fmt: skip

    def __init__(self, number, peer, clock_ms):
        self.number, self.peer, self.clock_ms = number, peer, clock_ms
        self.alive, self.silent, self.side = True, False, 0
        # Ordered, so that a run is the same each time.
        self.connected: dict[Node, None] = {}
        self.mesh: dict[Node, None] = {}
        self.seen: set[int] = set()
        self.cost = Cost()
        self.tick_at_s = float("inf")


class Swarm:
    """The nodes, and what is on its way between them."""

    def __init__(
        self,
        seed=1,
        *,
        loss=0.02,
        latency_s=(0.02, 0.15),
        clocks_off_s=1800.0,
        advert_bytes=ADVERT_BYTES,
    ):
        self.random = random.Random(seed)
        self.advert_bytes = advert_bytes
        self.loss, self.latency_s, self.clocks_off_s = loss, latency_s, clocks_off_s
        self.now_s = 0.0
        self.nodes: dict[str, Node] = {}
        self.living: list[Node] = []
        self._queue: list = []
        self._numbers, self._names = count(), count(1)
        self._signed: dict[bytes, object] = {}
        self._rumours = count()

    # -- what tests do --

    def join(self, seeds=(), remembered=()):
        """Start a node that knows where ``seeds`` are."""
        peer = peer_id_of(self.random.randbytes(32))
        off_s = self.random.uniform(-self.clocks_off_s, self.clocks_off_s)
        node = Node(next(self._names), peer, WALL_MS + int(off_s * 1000))
        node.joined_at_s = self.now_s
        node.advert_bytes = self.random.randint(*self.advert_bytes)
        node.member = Member(
            peer,
            Places(
                {seed.peer: (address(seed),) for seed in seeds},
                {other.peer: (address(other),) for other in remembered},
                self.random.random,
                self.now_s,
            ),
            sign=lambda kind, payload: self._sign_renewal(node, kind, payload),
            draw=self.random.random,
            now_s=self.now_s,
            table=AdvertTable(self._signed.__getitem__, self._signed.__getitem__),
        )
        self.nodes[peer] = node
        self.living.append(node)
        self.tell(node, m.Issued(self._sign_advert(node, pace.advert_lifetime_s(1))))
        return node

    def kill(self, node, *, silent=None):
        """End a node without a word; ``silent``: without a reset of its connections."""
        node.alive = False
        node.silent = self.random.random() >= RESET_SHARE if silent is None else silent
        self.living.remove(node)
        for other in list(node.connected):
            self._lose(other, node, self._noticed_in_s(other, node.silent))

    def cut(self, sides):
        """Let nothing through between ``sides``, lists of nodes; `heal` ends it."""
        for number, side in enumerate(sides):
            for node in side:
                node.side = number
        for node in self.living:
            for other in list(node.connected):
                if other.side != node.side:
                    self._lose(node, other, self._noticed_in_s(node, silent=True))

    def heal(self):
        """End a cut."""
        for node in self.nodes.values():
            node.side = 0

    def run(self, seconds):
        """Let virtual time pass."""
        until_s = self.now_s + seconds
        while self._queue and self._queue[0][0] <= until_s:
            self.now_s, _, function, arguments = heapq.heappop(self._queue)
            function(*arguments)
        self.now_s = until_s

    def count_anew(self):
        """Begin to count costs."""
        for node in self.living:
            node.cost = Cost()

    def listed_by(self, node):
        """The share of the others who list ``node``."""
        others = [other for other in self.living if other is not node]
        return sum(node.peer in other.member.table for other in others) / max(1, len(others))

    def completeness(self):
        """Of each living node: the share of the living that it lists."""
        peers = {node.peer for node in self.living}
        return [
            sum(peer in node.member.table for peer in peers) / len(peers)
            for node in self.living
        ]

    # -- the machine and its effects --

    def tell(self, node, event):
        """Hand an event to a node's machine, and do what it says."""
        if not node.alive:
            return
        wall_ms = node.clock_ms + int(self.now_s * 1000)
        for effect in node.member.receive(event, self.now_s, wall_ms):
            self._carry_out(node, effect)
        self._schedule(node)

    def _schedule(self, node):
        due_s = max(node.member.next_deadline_s, self.now_s)
        if due_s < node.tick_at_s:
            node.tick_at_s = due_s
            self._at(due_s, self._tick, node, due_s)

    def _tick(self, node, due_s):
        if node.tick_at_s == due_s:
            node.tick_at_s = float("inf")
            self.tell(node, m.Tick())

    def _carry_out(self, node, effect):
        match effect:
            case m.Dial():
                self._dial(node, effect)
            case m.Disconnect(peer):
                other = self.nodes[peer]
                self._lose(node, other, 0.0)
                self._lose(other, node, self._latency())
            case m.Compare(peer, digest):
                self._compare(node, self.nodes[peer], digest)
            case m.Give(peer, adverts):
                other = self.nodes[peer]
                if self._linked(node, other):
                    self._charge_adverts(node, other, adverts)
                    self._after(self._latency(), self._answer, other, node, adverts)
            case m.Issue(lifetime_s):
                self.tell(node, m.Issued(self._sign_advert(node, lifetime_s)))
            case m.Gossip(envelope):
                rumour = next(self._rumours)
                node.seen.add(rumour)
                node.cost.cpu_s += GOSSIP_CPU_S / 2
                self._pass_on(node, envelope, rumour, None)

    def _dial(self, node, dial):
        other = self.nodes[dial.peer]
        if node.side != other.side or (not other.alive and other.silent):
            wait_s, size, outcome = dial.time_limit_s, TIMED_OUT_BYTES, m.DialFailed(dial.peer)
        elif not other.alive:
            wait_s, size, outcome = 0.1, REFUSED_BYTES, m.DialFailed(dial.peer)
        else:
            wait_s = 3 * self._latency()
            self._after(wait_s, self._connect, node, other)
            return
        node.cost.sent += size
        node.cost.cpu_s += FAILED_DIAL_CPU_S
        self._after(wait_s, self.tell, node, outcome)

    def _connect(self, node, other):
        if node.side != other.side or not (node.alive and other.alive):
            self.tell(node, m.DialFailed(other.peer))
            return
        if other not in node.connected:
            self._charge(node, other, "connections", HANDSHAKE_BYTES, HANDSHAKE_CPU_S, 4)
            self._charge(other, node, "connections", HANDSHAKE_BYTES, HANDSHAKE_CPU_S, 4)
            node.connected[other] = other.connected[node] = None
            self._after(self.random.random() * HEARTBEAT_S, self._graft, node)
            self._after(self.random.random() * HEARTBEAT_S, self._graft, other)
            self.tell(node, m.Dialled(other.peer))
            self.tell(node, m.Connected(other.peer))
            self.tell(other, m.Connected(node.peer))
        else:
            self.tell(node, m.Dialled(other.peer))

    def _lose(self, node, other, delay_s):
        """``node`` notices after ``delay_s`` that its connection to ``other`` has ended."""
        node.mesh.pop(other, None)
        self._after(delay_s, self._lost, node, other)

    def _lost(self, node, other):
        if other in node.connected:
            del node.connected[other]
            node.mesh.pop(other, None)
            self._after(self.random.random() * HEARTBEAT_S, self._graft, node)
            self.tell(node, m.Lost(other.peer))

    def _noticed_in_s(self, node, silent):
        if not silent:
            return self._latency()
        pause_s = pace.ping_interval_s(len(node.member.links))
        return self.random.random() * pause_s + PING_LIMIT_S

    def _linked(self, node, other):
        return other.alive and node.side == other.side and other in node.connected

    # -- comparing --

    def _compare(self, node, other, digest):
        if not self._linked(node, other):
            self._after(COMPARE_LIMIT_S, self.tell, node, m.NotCompared(other.peer))
            return
        marks_s = len(digest.held) / 16 * MARK_CPU_S
        self._charge(node, other, "digests", REQUEST_BYTES + len(digest.held), REQUEST_CPU_S)
        node.cost.cpu_s += marks_s
        other.cost.cpu_s += 2 * marks_s
        self._after(self._latency(), self._answer_digest, other, node, digest)

    def _answer_digest(self, node, asker, digest):
        if not self._linked(asker, node):
            self._after(COMPARE_LIMIT_S, self.tell, asker, m.NotCompared(node.peer))
            return
        answer = self._answer(node, asker, digest)
        self._charge_adverts(node, asker, answer)
        self._after(self._latency(), self.tell, asker, m.Compared(node.peer, answer))

    def _answer(self, node, asker, message):
        if not node.alive:
            return None
        wall_ms = node.clock_ms + int(self.now_s * 1000)
        answer = node.member.answer(asker.peer, message, self.now_s, wall_ms)
        self._schedule(node)
        return answer

    def _charge_adverts(self, node, other, message):
        renewals = sum(len(envelope) + 12 for envelope, _ in message.renewals)
        adverts = sum(len(envelope) + 12 for envelope, _ in message.adverts)
        self._charge(node, other, "renewals", renewals, 0.0, 0)
        self._charge(node, other, "adverts", adverts, 0.0, 0)
        size = REQUEST_BYTES + len(message.wanted)
        self._charge(node, other, "digests", size, REQUEST_CPU_S)
        other.cost.cpu_s += SIGNATURE_CPU_S * (len(message.renewals) + len(message.adverts))

    # -- gossip --

    def _graft(self, node):
        """The mesh of gossipsub, after its heartbeat: 6 each, 4 to 12."""
        node.mesh = {other: None for other in node.mesh if self._linked(node, other)}
        if not node.alive or len(node.mesh) >= MESH_DEGREE:
            return
        others = [
            other
            for other in sorted(node.connected, key=lambda other: other.number)
            if other not in node.mesh
            and self._linked(node, other)
            and len(other.mesh) < (MESH_HIGH if len(node.mesh) < MESH_LOW else MESH_DEGREE)
        ]
        self.random.shuffle(others)
        for other in others[: MESH_DEGREE - len(node.mesh)]:
            node.mesh[other] = other.mesh[node] = None

    def _pass_on(self, node, envelope, rumour, forwarder):
        for other in node.mesh:
            if other is forwarder:
                continue
            self._charge(node, other, "gossip", GOSSIP_BYTES + len(envelope), COPY_CPU_S)
            if self.random.random() >= self.loss and self._linked(node, other):
                self._after(self._latency(), self._hear, other, node, envelope, rumour)

    def _hear(self, node, forwarder, envelope, rumour):
        if not node.alive or rumour in node.seen:
            return
        node.seen.add(rumour)
        node.cost.cpu_s += GOSSIP_CPU_S - COPY_CPU_S
        wall_ms = node.clock_ms + int(self.now_s * 1000)
        if node.member.hear_gossip(forwarder.peer, envelope, self.now_s, wall_ms):
            self._pass_on(node, envelope, rumour, forwarder)
        self._schedule(node)

    # -- signatures --

    def _sign_advert(self, node, lifetime_s):
        sequence = WALL_MS + int(self.now_s * 1000)
        advert = Advert(
            peer=node.peer,
            sequence=sequence,
            issued_at_ms=node.clock_ms + int(self.now_s * 1000),
            lifetime_s=lifetime_s,
            protocol=(1, 0),
            agent="simulated",
            addresses=(address(node),),
            devices=(),
            numeric_classes=(),
            providing=False,
        )
        envelope = f"{node.number} {sequence}".encode().ljust(node.advert_bytes)
        self._signed[envelope] = advert
        return envelope

    def _sign_renewal(self, node, kind, payload):
        assert kind is Statement.RENEWAL
        renewal = decode(payload, Renewal)
        text = f"{node.number} {renewal.sequence} {renewal.number}"
        envelope = text.encode().ljust(RENEWAL_BYTES)
        self._signed[envelope] = (renewal, node.peer)
        return envelope

    # -- time and cost --

    def _at(self, time_s, function, *arguments):
        heapq.heappush(self._queue, (time_s, next(self._numbers), function, arguments))

    def _after(self, delay_s, function, *arguments):
        self._at(self.now_s + delay_s, function, *arguments)

    def _latency(self):
        return self.random.uniform(*self.latency_s)

    def _charge(self, sender, receiver, kind, size, cpu_s, messages=1):
        size += messages * TRANSPORT_BYTES
        sender.cost.headers += IP_HEADER_BYTES * max(messages, -(-size // SEGMENT_BYTES))
        for cost, sent, received in ((sender.cost, size, 0), (receiver.cost, 0, size)):
            cost.sent += sent
            cost.received += received
            cost.messages += messages
            cost.cpu_s += cpu_s
            cost.by_kind[kind] = cost.by_kind.get(kind, 0) + sent

    def charge_pings(self, seconds):
        """Count what pings cost in ``seconds``, by the links that there are now."""
        for node in self.living:
            pings = seconds / pace.ping_interval_s(len(node.member.links))
            for peer in node.member.links:
                other = self.nodes[peer]
                for one, two in ((node, other), (other, node)):
                    size = pings * (PING_BYTES + TRANSPORT_BYTES)
                    one.cost.headers += int(pings * IP_HEADER_BYTES)
                    one.cost.sent += int(size)
                    two.cost.received += int(size)
                    one.cost.messages += int(2 * pings)
                    one.cost.cpu_s += pings * PING_CPU_S
                    one.cost.by_kind["pings"] = one.cost.by_kind.get("pings", 0) + int(size)


def address(node):
    """Where a simulated node is."""
    return f"/ip4/10.{node.number >> 16}.{node.number >> 8 & 255}.{node.number & 255}/tcp/4711"


# --- churn, and what is measured in it ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """What a network of one size cost and did; rates are per node and second."""

    nodes: int
    sent_mean: float
    sent_worst: float
    received_mean: float
    received_worst: float
    messages_mean: float
    messages_worst: float
    cpu_mean: float
    cpu_worst: float
    links_mean: float
    links_most: int
    links_least: int
    known_s: list[float]
    gone_s: list[float]
    unknown: int
    lingering: int
    completeness: float
    by_kind: dict[str, float]
    worst_by_kind: dict[str, float]


def measure(
    nodes,
    *,
    warm_s,
    churn_s,
    churn_share=0.1,
    churn_period_s=600.0,
    seed=1,
    settle_s=0.0,
    advert_bytes=ADVERT_BYTES,
):
    """Start ``nodes``, let a share of them crash and others join, and count.

    ``churn_s`` is the time that is counted; crashes and joins end ``settle_s`` before it.
    """
    swarm = Swarm(seed, advert_bytes=advert_bytes)
    first = swarm.join()
    swarm.run(5)
    for number in range(1, nodes):
        seeds = [first] if number < 8 else [first, swarm.living[number % 8]]
        swarm.join(seeds)
        swarm.run(0.6 * warm_s / nodes)
    swarm.run(0.4 * warm_s)
    swarm.count_anew()
    started_s = swarm.now_s
    pause_s = churn_period_s / (churn_share * nodes)
    joined, died = {}, {}
    known_s, gone_s = [], []
    next_churn_s = swarm.now_s + pause_s
    step = 0
    while swarm.now_s < started_s + churn_s:
        swarm.run(2.5)
        step += 1
        if swarm.now_s >= next_churn_s and swarm.now_s < started_s + churn_s - settle_s:
            next_churn_s += pause_s
            victim = swarm.random.choice(swarm.living[8:] or swarm.living[1:])
            swarm.kill(victim)
            joined.pop(victim, None)
            died[victim] = swarm.now_s
            node = swarm.join([first, swarm.random.choice(swarm.living[1:8])])
            joined[node] = swarm.now_s
        for node, since_s in list(joined.items()):
            if swarm.listed_by(node) >= 0.99:
                known_s.append(swarm.now_s - since_s)
                del joined[node]
        if step % 8 == 0:
            swarm.charge_pings(20)
            for node, since_s in list(died.items()):
                if swarm.listed_by(node) <= 0.01:
                    gone_s.append(swarm.now_s - since_s)
                    del died[node]
    seconds = swarm.now_s - started_s
    counted = [n for n in swarm.living if n.joined_at_s < started_s]
    sent = [n.cost.sent / seconds for n in counted]
    received = [n.cost.received / seconds for n in counted]
    messages = [n.cost.messages / seconds for n in counted]
    cpu = [n.cost.cpu_s / seconds for n in counted]
    links = [len(n.member.links) for n in swarm.living]
    kinds = {kind for n in counted for kind in n.cost.by_kind}
    late = [s for s in joined.values() if swarm.now_s - s > 60]
    lingering = [s for s in died.values() if swarm.now_s - s > 1200]
    return Measured(
        nodes=nodes,
        sent_mean=mean(sent),
        sent_worst=max(sent),
        received_mean=mean(received),
        received_worst=max(received),
        messages_mean=mean(messages),
        messages_worst=max(messages),
        cpu_mean=mean(cpu),
        cpu_worst=max(cpu),
        links_mean=mean(links),
        links_most=max(links),
        links_least=min(links),
        known_s=sorted(known_s),
        gone_s=sorted(gone_s),
        unknown=len(late),
        lingering=len(lingering),
        completeness=mean(swarm.completeness()),
        by_kind={
            k: mean([n.cost.by_kind.get(k, 0) / seconds for n in counted])
            for k in sorted(kinds)
        }
        | {"TCP/IP headers": mean([n.cost.headers / seconds for n in counted])},
        worst_by_kind={
            kind: size / seconds
            for kind, size in max(counted, key=lambda n: n.cost.sent).cost.by_kind.items()
        },
    )


def mean(values):
    return sum(values) / max(1, len(values))


def table(results):
    """The results as a table in Markdown."""
    heads = (
        "nodes",
        "sent B/s mean (worst)",
        "received B/s mean (worst)",
        "messages/s mean (worst)",
        "CPU % mean (worst)",
        "links mean (least, most)",
        "known to 99 % after s, median (worst)",
        "gone from 99 % after s, median (worst)",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for r in results:
        known = (
            f"{r.known_s[len(r.known_s) // 2]:.0f} ({r.known_s[-1]:.0f})" if r.known_s else "-"
        )
        gone = f"{r.gone_s[len(r.gone_s) // 2]:.0f} ({r.gone_s[-1]:.0f})" if r.gone_s else "-"
        lines.append(
            f"| {r.nodes:,} | {r.sent_mean:.0f} ({r.sent_worst:.0f}) "
            f"| {r.received_mean:.0f} ({r.received_worst:.0f}) "
            f"| {r.messages_mean:.1f} ({r.messages_worst:.1f}) "
            f"| {100 * r.cpu_mean:.2f} ({100 * r.cpu_worst:.2f}) "
            f"| {r.links_mean:.1f} ({r.links_least}, {r.links_most}) | {known} | {gone} |"
        )
    return "\n".join(lines)
