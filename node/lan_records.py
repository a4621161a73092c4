"""What is said on a local network: this node's announcement, and what others' are worth.

One DNS-SD service (RFC 6763) by multicast DNS, ``_shoal._tcp.local.``: its name is
the peer id, its port and addresses are where the node listens, and its TXT record
holds the peer id again and which network it is in: the fingerprint of a private one,
which gives nothing away, and nothing for the public one.

Anybody on the link can say anything. What is believed is no more than a place to
dial, where the peer has to prove its id as everywhere; only addresses within this
machine's own networks are, so that nobody makes a node dial strangers elsewhere.

Pure: multicasting is `node.lan`'s.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId, check_peer_id
from shoal.node.addresses import Address, parse_address

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from ipaddress import IPv4Interface, IPv6Interface

SERVICE = "_shoal._tcp.local."

ADDRESSES_LIMIT = 8
"""Taken from one announcement, and announced."""

PORTS_LIMIT = 4
"""Ports announced: each is an announcement of its own."""

NAMES_LIMIT = 64
"""Announcements that wait to be looked at; on a link with more nodes gossip does the rest."""

CPU_SHARE_LIMIT = 0.2
"""Of one core, over a few seconds: what listening to a local network may cost."""

_PEER, _NETWORK = b"peer", b"net"


@dataclass(frozen=True, slots=True)
class Announcement:
    """What one node says of itself on one port."""

    peer: PeerId
    network: str
    port: int
    hosts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The service's name; a peer with more ports has more than one."""
        return f"{self.peer}-{self.port}.{SERVICE}"

    @property
    def properties(self) -> dict[str, str]:
        """The TXT record."""
        return {"peer": self.peer, "net": self.network}


def announcements(
    addresses: Iterable[str], peer: PeerId, network: str
) -> tuple[Announcement, ...]:
    """What to announce of a node that listens on ``addresses``; () for nothing.

    Loopback is nobody else's to dial. Public addresses are not announced either:
    a link on which machines have those is a provider's, and not a home or an office.
    """
    hosts: dict[int, list[str]] = {}
    for text in addresses:
        address = parse_address(text)
        if address.kind in ("ip4", "ip6") and is_local(address.host):
            hosts.setdefault(address.port, []).append(address.host)
    return tuple(
        Announcement(peer, network, port, tuple(found[:ADDRESSES_LIMIT]))
        for port, found in list(hosts.items())[:PORTS_LIMIT]
    )


def is_local(host: str) -> bool:
    """Whether an IP address is of a private network, and of no use to this machine alone."""
    found = ipaddress.ip_address(host)
    return found.is_private and not (
        found.is_loopback or found.is_link_local or found.is_unspecified
    )


def heard(
    properties: Mapping[bytes, bytes | None],
    hosts: Sequence[str],
    port: int | None,
    *,
    peer: PeerId,
    network: str,
    own: Sequence[IPv4Interface | IPv6Interface],
) -> tuple[PeerId, tuple[str, ...]] | None:
    """Where another node of this network is, by what it announced; None for nowhere.

    Args:
        properties: Its TXT record.
        hosts: Its addresses, as text.
        port: Its port.
        peer: This node.
        network: The fingerprint of this node's network, or "".
        own: This machine's interfaces, each with its network.
    """
    if (properties.get(_NETWORK) or b"") != network.encode():
        return None
    if port is None or not 0 < port < 1 << 16:
        return None
    try:
        other = check_peer_id((properties.get(_PEER) or b"").decode("ascii"))
    except (VerificationError, UnicodeDecodeError):
        return None
    if other == peer:
        return None
    places = []
    for host in hosts[: 4 * ADDRESSES_LIMIT]:
        try:
            found = ipaddress.ip_address(host)
        except ValueError:
            continue
        if is_local(host) and any(found in one.network for one in own):
            places.append(str(Address(f"ip{found.version}", str(found), port)))
    return (other, tuple(dict.fromkeys(places))[:ADDRESSES_LIMIT]) if places else None
