"""In which order a peer's addresses are dialled, and when the next one gets its turn.

A peer has several addresses, and a dialler cannot see which of them lead to it: one
is behind a router that drops packets without a word, another belongs to somebody
else's 192.168.0.7. So the likely ones come first, and none is waited for alone: the
next attempt begins after `STAGGER_S`, or as soon as one has failed, and the first
that succeeds ends the others (Happy Eyeballs, RFC 8305).

Pure: `order` gives the order, `Race` the moments; dialling is `node.dialing`'s.
"""

from __future__ import annotations

import ipaddress
import math
from collections import deque
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from ipaddress import IPv4Interface, IPv6Interface

    from shoal.crypto.peer_id import PeerId
    from shoal.node.addresses import Address

STAGGER_S = 0.3
"""Until the next attempt, while nobody answers; RFC 8305 says 0.25 s."""

HANDSHAKE_S = 1.5
"""Until the next attempt, once somebody has: five round trips and some arithmetic."""

ATTEMPTS_AT_ONCE = 4
"""To one peer; each costs a handshake on both sides."""

ADDRESSES_LIMIT = 16
"""Dialled of one peer at a time, whatever it advertises or its name resolves to."""

PEERS_LIMIT = 1024
"""Peers whose dials are kept in mind; as many as a network is sized for."""

_SHARED = ipaddress.ip_network("100.64.0.0/10")  # carriers' NAT, and overlay networks


class Reach(IntEnum):
    """How likely an address leads to its peer from here; the likeliest first."""

    HERE = 0
    """Loopback, of a peer that is on this machine."""
    NEAR = 1
    """In a network that this machine is in."""
    PUBLIC = 2
    NAME = 3
    """Not resolved yet."""
    ELSEWHERE = 4
    """Private, and in none of this machine's networks; a router may know the way."""
    NOWHERE = 5
    """Loopback of another machine, or an address that means nothing by itself."""


def reach(
    address: Address, own: Sequence[IPv4Interface | IPv6Interface], *, here: bool
) -> Reach:
    """Judge one address.

    Args:
        address: Of a peer.
        own: This machine's interfaces, each with its network.
        here: Whether the peer is on this machine.
    """
    if address.kind not in ("ip4", "ip6"):
        return Reach.NAME
    host = ipaddress.ip_address(address.host)
    if host.is_loopback:
        return Reach.HERE if here else Reach.NOWHERE
    if host.is_unspecified or host.is_multicast or host.is_link_local:
        return Reach.NOWHERE  # link-local ones lack the interface that they are valid on
    if any(host in one.network for one in own if not one.ip.is_loopback):
        return Reach.NEAR
    if host in _SHARED and any(one.ip in _SHARED for one in own):
        return Reach.NEAR
    return Reach.PUBLIC if host.is_global else Reach.ELSEWHERE


def order(
    addresses: Iterable[Address],
    own: Sequence[IPv4Interface | IPv6Interface] = (),
    tried: Mapping[Address, Tried] | None = None,
) -> list[Address]:
    """Sort a peer's addresses, the likeliest first; at most `ADDRESSES_LIMIT`.

    What led to the peer last time comes first. Within one `Reach` the one that failed
    longest ago goes first and the families take turns, so that a machine whose IPv6
    leads nowhere is not waited for. What leads nowhere is left out, unless there is
    nothing else.
    """
    tried = tried or {}
    given = list(dict.fromkeys(addresses))
    hosts = {ipaddress.ip_address(a.host) for a in given if a.kind in ("ip4", "ip6")}
    # All that a peer on loopback alone advertises is loopback.
    here = all(host.is_loopback for host in hosts) or any(
        one.ip in hosts for one in own if not one.ip.is_loopback
    )
    ranked: dict[Reach, list[Address]] = {}
    for address in given:
        ranked.setdefault(reach(address, own, here=here), []).append(address)
    if set(ranked) - {Reach.NOWHERE}:
        ranked.pop(Reach.NOWHERE, None)
    ordered: list[Address] = []
    for rank in sorted(ranked):
        by_failure = sorted(ranked[rank], key=lambda a: _failed_at_s(tried.get(a)))
        ordered += _taking_turns(by_failure)
    worked = [a for a in given if a in tried and tried[a].worked_last]
    worked.sort(key=lambda a: -tried[a].worked_at_s)
    return list(dict.fromkeys([*worked, *ordered]))[:ADDRESSES_LIMIT]


def _failed_at_s(tried: Tried | None) -> float:
    return -math.inf if tried is None else tried.failed_at_s


def _taking_turns(addresses: Sequence[Address]) -> list[Address]:
    """IPv6 and others by turns, beginning with the family of the first one."""
    first = [a for a in addresses if (a.kind == "ip6") == (addresses[0].kind == "ip6")]
    second = [a for a in addresses if a not in first]
    turns = [pair for both in zip(first, second, strict=False) for pair in both]
    both = min(len(first), len(second))
    return [*turns, *first[both:], *second[both:]]


class Race:
    """When which address is dialled, within one attempt to reach a peer.

    Args:
        addresses: In their order; more may be added while names are resolved.
        now_s: The time.
        until_s: When the whole attempt is over.
    """

    def __init__(self, addresses: Iterable[Address], now_s: float, until_s: float) -> None:
        self._waiting = deque(addresses)
        self._seen = set(self._waiting)
        self._running = 0
        self._next_at_s = now_s
        self._until_s = until_s

    def add(self, addresses: Iterable[Address]) -> None:
        """Take in what a name was resolved to."""
        for address in addresses:
            if address not in self._seen and len(self._seen) < ADDRESSES_LIMIT:
                self._seen.add(address)
                self._waiting.append(address)

    def over(self, now_s: float) -> bool:
        """Whether every address has failed, or those that have not come too late."""
        return not self._running and (not self._waiting or now_s >= self._until_s)

    def due(self, now_s: float) -> tuple[Address, float] | None:
        """The address to dial now and its limit in seconds; None while one is waited for."""
        if not self._waiting or self._running >= ATTEMPTS_AT_ONCE:
            return None
        if not self._next_at_s <= now_s < self._until_s:
            return None
        # All that wait must get their turn: those at once share the time that is left.
        rounds = math.ceil(len(self._waiting) / ATTEMPTS_AT_ONCE)
        self._running += 1
        self._next_at_s = now_s + STAGGER_S
        return self._waiting.popleft(), (self._until_s - now_s) / rounds

    def answered(self, now_s: float) -> None:
        """Somebody answered: let it prove who it is before others are bothered."""
        self._next_at_s = max(self._next_at_s, now_s + HANDSHAKE_S)

    def failed(self, now_s: float) -> None:
        """One attempt came to nothing: the next may begin at once."""
        self._running -= 1
        self._next_at_s = now_s

    def wake_at_s(self, now_s: float) -> float:
        """When to ask `due` again, if nothing fails before; it has been asked for now."""
        if not self._waiting or self._running >= ATTEMPTS_AT_ONCE or now_s >= self._until_s:
            return math.inf
        return min(self._next_at_s, self._until_s)


# --- what came of it ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of one address, last and at all. Times are of the dialler's clock."""

    worked_at_s: float = -math.inf
    failed_at_s: float = -math.inf

    @property
    def worked_last(self) -> bool:
        """Whether it led to the peer the last time it was dialled."""
        return self.worked_at_s > self.failed_at_s


@dataclass(slots=True)
class Record:
    """The dials to one peer.

    Attributes:
        tried: By address.
        worked: The address that led to it last.
        failure: Why the last attempt came to nothing; "" where it did not.
        at_s: When that was.
    """

    tried: dict[Address, Tried] = field(default_factory=dict)
    worked: Address | None = None
    failure: str = ""
    at_s: float = -math.inf


class DialBook:
    """What came of the dials to each peer; the least recently dialled are forgotten."""

    def __init__(self) -> None:
        self._records: dict[PeerId, Record] = {}

    def of(self, peer: PeerId) -> Record:
        """The dials to a peer; an empty record where there were none."""
        return self._records.get(peer) or Record()

    def worked(self, peer: PeerId, address: Address, now_s: float) -> None:
        """Note that an address led to its peer."""
        record = self._record(peer)
        before = record.tried.get(address, Tried())
        self._note(record, address, Tried(now_s, before.failed_at_s))
        record.worked, record.failure, record.at_s = address, "", now_s

    def missed(self, peer: PeerId, address: Address, now_s: float) -> None:
        """Note that one address led nowhere, whatever the others did."""
        record = self._record(peer)
        before = record.tried.get(address, Tried())
        self._note(record, address, Tried(before.worked_at_s, now_s))

    def failed(self, peer: PeerId, failure: str, now_s: float) -> None:
        """Note that a peer was not reached, and why."""
        record = self._record(peer)
        record.failure, record.at_s = failure, now_s

    def _note(self, record: Record, address: Address, tried: Tried) -> None:
        record.tried.pop(address, None)
        record.tried[address] = tried
        while len(record.tried) > ADDRESSES_LIMIT:
            del record.tried[next(iter(record.tried))]

    def _record(self, peer: PeerId) -> Record:
        record = self._records.pop(peer, None) or Record()
        self._records[peer] = record
        while len(self._records) > PEERS_LIMIT:
            del self._records[next(iter(self._records))]
        return record
