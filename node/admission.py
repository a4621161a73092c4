"""Who may connect, and how much of this node one peer may take: every number, and the choices.

A stranger can make this node hold at most what stands here. `node.host` counts
and carries out; what it does when something is full is decided here, by values
alone. The rule is the same everywhere: what is of least use to anybody makes
room for the newcomer, so that whoever fills the node up with idle connections
or silent sockets pushes out their own.

A *place* is where connections come from as far as limits go: an IPv4 address, or
the /64 of an IPv6 one, since a single subscriber is given a whole /64. Many
nodes may share a place (one machine, one NAT), which is why a place may hold far
more than one node needs. Places of the neighbourhood (loopback, private and
link-local addresses) may hold more still: swarms of a hundred daemons on one
machine are run for tests, and whoever is there could do worse.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from shoal.crypto.peer_id import PeerId

# --- connections -------------------------------------------------------------------

CONNECTIONS_LIMIT = 512
"""Of both directions together. An idle one costs about 85 KB and a descriptor; with the
handshakes they stay below the 1,024 descriptors that a process usually may open."""

OUTBOUND_RESERVE = 64
"""Of `CONNECTIONS_LIMIT`, kept for connections that this node opens: whoever fills it
from outside does not keep it from reaching its own bootstrap peers and links."""

PLACE_LIMIT = 64
"""Inbound connections from one place: a NAT with some dozens of nodes behind it."""

NEIGHBOURS_PLACE_LIMIT = 256
"""The same for a place of the neighbourhood."""

HALF_OPEN_LIMIT = 128
"""Handshakes at once. One costs about 20 ms of CPU, so more than these would be late."""

PLACE_HALF_OPEN_LIMIT = 32
"""Handshakes at once from one place, beyond which its least advanced is given up."""

HANDSHAKE_LIMIT_S = 10.0
"""From accept to a finished handshake, whatever the pace: four round trips and some CPU."""

DIALS_LIMIT = 16
"""Addresses dialled at once: `node.membership` takes 4, jobs that reach for peers the rest."""

# --- one connection ----------------------------------------------------------------

INBOUND_STREAMS_LIMIT = 64
"""Streams that a peer holds open at once; shoal's own peers use about ten."""

PROTOCOL_STREAMS_LIMIT = 32
"""Of these, for one protocol: blobs are fetched over a few at once."""

STREAMS_PER_S, STREAMS_BURST = 100.0, 512.0
"""Streams that a peer opens: each costs 1 to 2 ms of CPU until its protocol is agreed on."""

OWN_STREAMS_PER_S, OWN_STREAMS_BURST = 80.0, 256.0
"""Streams that this node opens to a peer: fewer than any peer refuses. The next ones wait."""

REFUSALS_PER_S, REFUSALS_BURST = 1.0, 256.0
"""Streams refused to a peer before its connection is cut: it does not listen."""

FRAMES_PER_S, FRAMES_BURST = 5_000.0, 20_000.0
"""Frames of the muxer read from one connection: 15 us each. Faster ones wait in the kernel."""

STREAM_WINDOW_LIMIT_BYTES = 1 << 20
"""What a peer may send on one stream before it is read: 10 MB/s at 100 ms."""

CONNECTION_UNREAD_LIMIT_BYTES = 16 << 20
"""Unread bytes of one connection: the first window of 256 KiB of all 64 streams."""

NODE_UNREAD_LIMIT_BYTES = 128 << 20
"""Unread bytes of all connections; beyond, the one with the most of them is cut."""

STRAY_BYTES_PER_S, STRAY_BURST_BYTES = float(1 << 20), float(16 << 20)
"""Data for streams that are over: what was under way when they ended, and not more."""

UNFINISHED_LIMIT_S = 30.0
"""From a frame's first byte to its last, 64 KB as a rule: 2 KB/s is too slow to serve."""

ABANDONED_LIMIT_S = 30.0
"""For a peer to close its side of a stream that was served to its end; then it is reset."""

WRITE_STALL_LIMIT_S = 30.0
"""For a peer to read something of what was sent. A busy one may well need 5 s, as stock
libp2p gives it; one that hangs is found by pings, within 4 s."""

# --- gossip ------------------------------------------------------------------------

GOSSIP_PER_S, GOSSIP_BURST = 20.0, 200.0
"""Unseen messages of one topic from one linked peer: about 2 ms of CPU each."""

GOSSIP_BYTES_PER_S, GOSSIP_BURST_BYTES = float(64 << 10), float(2 << 20)
"""Everything that one peer sends as gossip: a thousand nodes make 2 KB/s in all."""

GOSSIP_RPCS_PER_S, GOSSIP_RPCS_BURST = 100.0, 1_000.0
"""Envelopes of gossip from one peer, whatever is in them: 0.1 ms of CPU each."""

GOSSIP_RPC_LIMIT_BYTES = 256 << 10
"""One envelope: an answer to the most messages that are asked for at once."""

GOSSIP_MESSAGE_LIMIT_BYTES = 4 << 10
"""One message with its signature: an advert has at most 2 KiB."""

GOSSIP_IDS_LIMIT = 64
"""Messages that are asked for, or given, in answer to one control message."""

GOSSIP_ENTRIES_LIMIT = 256
"""Entries of one kind that are looked at in one envelope: messages, topics, controls."""

GOSSIP_SEEN_LIMIT, GOSSIP_SEEN_S = 1 << 16, 120.0
"""Ids of messages remembered, so as to take in each once: 12 MB at most."""


class Refusal(StrEnum):
    """Why a connection was not taken; the words under which it is counted."""

    HANDSHAKE = "handshake_failed"
    CROWDED_OUT = "handshake_crowded_out"
    PEER_CUT = "peer_is_cut"
    PLACE_FULL = "place_is_full"
    NODE_FULL = "node_is_full"


class Breach(StrEnum):
    """What a peer did that no peer that keeps the rules does."""

    FLOW_CONTROL = "sent more than the window it was given"
    BAD_FRAME = "sent a frame that the muxer does not know"
    STREAM_FLOOD = "opened streams without end"
    STRAY_DATA = "went on sending to streams that had ended"
    HOARDING = "made this node hold too many unread bytes"
    DRIBBLING = "took too long to finish a frame"
    GOSSIP_FLOOD = "gossips faster than its rate"
    GOSSIP_OVERSIZED = "gossiped a message over the limit"
    GOSSIP_MALFORMED = "sent gossip that cannot be read"
    GOSSIP_INVALID = "gossiped a message that is not valid"


class Bucket:
    """A token bucket: so much per second on average, and a burst at once."""

    __slots__ = ("_at_s", "_burst", "_per_s", "_tokens")

    def __init__(self, per_s: float, burst: float, now_s: float) -> None:
        self._per_s, self._burst = per_s, burst
        self._tokens, self._at_s = burst, now_s

    def takes(self, now_s: float, cost: float = 1.0) -> bool:
        """Whether ``cost`` is within the rate; it is taken if so."""
        return self.wait_s(now_s, cost) == 0.0

    def wait_s(self, now_s: float, cost: float = 1.0) -> float:
        """How long until ``cost`` is within the rate; 0.0 when it is now, and is taken."""
        earned = (now_s - self._at_s) * self._per_s
        self._tokens = min(self._burst, self._tokens + earned)
        self._at_s = now_s
        if self._tokens >= cost:
            self._tokens -= cost
            return 0.0
        return (cost - self._tokens) / self._per_s if self._per_s else float("inf")


def place_of(host: str) -> str:
    """The place that an address belongs to, as the limits count."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.is_loopback:
            return str(address)
        if address.ipv4_mapped is None:
            return str(ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
        address = address.ipv4_mapped
    return str(address)


def is_neighbour(place: str) -> bool:
    """Whether a place is of this machine's own neighbourhood."""
    network = ipaddress.ip_network(place)
    return network.is_loopback or network.is_private or network.is_link_local


def place_limit(place: str) -> int:
    """Inbound connections that a place may hold."""
    return NEIGHBOURS_PLACE_LIMIT if is_neighbour(place) else PLACE_LIMIT


def connections_limit(open_files_limit: int) -> int:
    """Connections of a process that may open so many files: blobs and workers need some too."""
    return max(16, min(CONNECTIONS_LIMIT, open_files_limit // 2))


# --- decisions ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HalfOpen:
    """A handshake under way.

    Attributes:
        number: What tells it from others.
        received_bytes: What the other side has said so far.
    """

    number: int
    place: str
    since_s: float
    received_bytes: int


def give_way(place: str, waiting: Sequence[HalfOpen]) -> HalfOpen | None:
    """Choose the handshake that is given up for one more from ``place``; None if none need be.

    An honest dialler speaks first, and finishes in a fraction of a second. So the
    silent go first, the oldest before others: who opens sockets and says nothing
    loses their own.
    """
    of_place = [one for one in waiting if one.place == place]
    if len(of_place) >= PLACE_HALF_OPEN_LIMIT:
        candidates = of_place
    elif len(waiting) >= HALF_OPEN_LIMIT:
        crowded, _ = Counter(one.place for one in waiting).most_common(1)[0]
        candidates = [one for one in waiting if one.place == crowded]
    else:
        return None
    return min(candidates, key=lambda one: (one.received_bytes > 0, one.since_s))


@dataclass(frozen=True, slots=True)
class Held:
    """A connection, as far as its use to this node goes.

    Attributes:
        number: What tells it from others.
        inbound: Whether the peer opened it.
        busy: Whether a stream of shoal's own is open on it, as on every link.
        used_s: When one last was, or when the connection came.
    """

    number: int
    peer: PeerId
    place: str
    inbound: bool
    busy: bool
    used_s: float


@dataclass(frozen=True, slots=True)
class Admission:
    """What becomes of a new connection: refused, or taken when ``ended`` have made room."""

    refusal: Refusal | None = None
    ended: tuple[Held, ...] = ()


def admit(
    peer: PeerId, place: str, *, inbound: bool, held: Collection[Held], limit: int
) -> Admission:
    """Decide on a connection whose handshake has shown who the peer is.

    One connection per peer and direction: a newer one takes the place of the
    older, which the peer no longer has, or it would not have dialled. Full means
    that a connection no stream of shoal's is open on makes room, the one that was
    of no use for the longest; connections in use are never ended for a newcomer.

    Args:
        peer: Who it is.
        place: Where from, as `place_of` gives it.
        inbound: Whether the peer opened it.
        held: The connections that there are, those being added included.
        limit: Of connections in all, from `connections_limit`.
    """
    older = tuple(one for one in held if (one.peer, one.inbound) == (peer, inbound))
    if older:
        return Admission(ended=older)
    if not inbound:
        return _make_room(held, len(held) - limit + 1, Refusal.NODE_FULL)
    inbound_held = [one for one in held if one.inbound]
    of_place = [one for one in inbound_held if one.place == place]
    if len(of_place) >= place_limit(place):
        return _make_room(of_place, 1, Refusal.PLACE_FULL)
    reserve = min(OUTBOUND_RESERVE, limit // 4)
    over = max(len(held) - limit, len(inbound_held) - (limit - reserve)) + 1
    return _make_room(inbound_held, over, Refusal.NODE_FULL)


def _make_room(held: Collection[Held], wanted: int, refusal: Refusal) -> Admission:
    """End ``wanted`` connections that are of no use, of the most crowded places first."""
    if wanted <= 0:
        return Admission()
    crowd = Counter(one.place for one in held)
    idle = sorted(
        (one for one in held if not one.busy), key=lambda one: (-crowd[one.place], one.used_s)
    )
    if len(idle) < wanted:
        return Admission(refusal=refusal)
    return Admission(ended=tuple(idle[:wanted]))


# --- restarts ----------------------------------------------------------------------

RESTART_FIRST_S, RESTART_LIMIT_S = 0.1, 10.0
"""Between a failure of the libp2p host and its restart: doubling, while it keeps failing."""

FAILURES_LIMIT, FAILURES_WINDOW_S = 10, 300.0
"""So many failures within so long and it is given up: what fails each time is not mended by
another time, and a supervisor, or an operator who reads the error, does better."""


def restart_delay_s(failures_s: Sequence[float], now_s: float) -> float | None:
    """How long to wait before the host is started again; None when it is given up.

    Args:
        failures_s: When it has failed, the present failure included.
        now_s: The present time, of the same clock.
    """
    recent = sum(1 for at_s in failures_s if now_s - at_s < FAILURES_WINDOW_S)
    if recent >= FAILURES_LIMIT:
        return None
    return min(RESTART_LIMIT_S, RESTART_FIRST_S * 2.0 ** max(0, recent - 1))
