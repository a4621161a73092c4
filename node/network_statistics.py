"""What the network part of a daemon counts, for its operator and for tests."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field


@dataclass(slots=True)
class Traffic:
    """Bytes over the streams of one protocol, without what libp2p adds."""

    received: int = 0
    sent: int = 0


@dataclass(slots=True)
class Counts:
    """Counted since the daemon's start, through restarts of the host; `node.host` writes it."""

    refused: Counter[str] = field(default_factory=Counter)
    evicted: int = 0
    breaches: Counter[str] = field(default_factory=Counter)
    traffic: dict[str, Traffic] = field(default_factory=lambda: defaultdict(Traffic))
    gossip_in: int = 0
    gossip_out: int = 0
    gossip_dropped: int = 0
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class NetworkStatistics:
    """The network at one moment, and what it has counted since the daemon's start.

    Attributes:
        connections_in: Live connections that peers opened.
        connections_out: Live connections that this node opened.
        half_open: Handshakes under way that peers began.
        streams: Open streams, of both directions, of all connections.
        unread_bytes: What peers have sent on them and nobody has read yet.
        refused: Connections refused, by cause (`admission.Refusal`).
        evicted: Connections and handshakes ended to make room for others.
        breaches: Rules broken by peers, by rule (`admission.Breach`'s name, in small letters).
        received: Bytes that came over streams, by protocol (``control``, ``blob``, ``ping``),
            without what libp2p adds.
        sent: Likewise what went out.
        gossip_in: Gossip messages of others that were new and valid.
        gossip_out: Gossip messages of this node's own.
        gossip_dropped: Gossip messages, or whole envelopes, that were not taken in.
        restarts: How often the libp2p host has failed and was started again.
        tasks: Tasks of the whole daemon, as trio counts them.
    """

    connections_in: int
    connections_out: int
    half_open: int
    streams: int
    unread_bytes: int
    refused: dict[str, int]
    evicted: int
    breaches: dict[str, int]
    received: dict[str, int]
    sent: dict[str, int]
    gossip_in: int
    gossip_out: int
    gossip_dropped: int
    restarts: int
    tasks: int
