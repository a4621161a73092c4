"""Where peers are reached: TCP multiaddrs, parsed, checked and listed.

The forms understood are ``/ip4/1.2.3.4/tcp/4711``, ``/ip6/…``, ``/dns/…``,
``/dns4/…`` and ``/dns6/…``, each with or without ``/p2p/PEER_ID`` at its end; and
``/dnsaddr/NAME``, which stands for the addresses in the TXT records of a name.
Pure text: binding and dialling are `node.network`'s, resolving is `node.names`'s.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId, check_peer_id
from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from ipaddress import IPv4Interface, IPv6Interface

_EXAMPLE = "/ip4/192.0.2.7/tcp/4711"
_NAMES = {"dns", "dns4", "dns6"}
_MAX_PORT = 65535
_MAX_NAME_SIZE = 253
"""Of a name in the DNS, in characters (RFC 1035)."""

_MAX_TEXT_SIZE = 512
"""Longer than the longest DNS name with a port and a peer id; peers send addresses too."""


@dataclass(frozen=True, slots=True)
class Address:
    """A host, a TCP port, and the peer that is expected there, if one is named."""

    kind: str
    host: str
    port: int
    peer: PeerId | None = None

    def __str__(self) -> str:
        text = f"/{self.kind}/{self.host}/tcp/{self.port}"
        return f"{text}/p2p/{self.peer}" if self.peer else text

    def without_peer(self) -> str:
        """Where it is, whoever is there."""
        return f"/{self.kind}/{self.host}/tcp/{self.port}"


@dataclass(frozen=True, slots=True)
class DnsAddress:
    """A name whose TXT records say where peers are; of one peer only, if one is named.

    Source: the libp2p specification "addressing", ``/dnsaddr``.
    """

    name: str
    peer: PeerId | None = None

    def __str__(self) -> str:
        text = f"/dnsaddr/{self.name}"
        return f"{text}/p2p/{self.peer}" if self.peer else text


def parse_address(text: str) -> Address:
    """Read a TCP multiaddr, with or without ``/p2p/PEER_ID``.

    Raises:
        ConfigError: Another form, a host that is none, or a port out of range.
    """
    parts = text[:_MAX_TEXT_SIZE].rstrip("/").split("/")
    match parts:
        case ["", kind, host, "tcp", port]:
            peer = None
        case ["", kind, host, "tcp", port, "p2p", peer_text]:
            peer = _peer(peer_text, text)
        case _:
            raise _bad_address(text, "it is not a TCP multiaddr")
    if kind not in {"ip4", "ip6", *_NAMES}:
        raise _bad_address(text, f"/{kind} is not one of /ip4, /ip6, /dns, /dns4, /dns6")
    if kind not in _NAMES and not _is_ip(host, kind):
        raise _bad_address(text, f"{host!r} is not an {kind} address")
    if not host:
        raise _bad_address(text, "the host is missing")
    if kind in _NAMES and not _is_name(host):
        raise _bad_address(text, f"{host[:80]!r} is not a name in the DNS")
    if not (port.isascii() and port.isdecimal() and int(port) <= _MAX_PORT):
        raise _bad_address(text, f"{port!r} is not a port")
    return Address(kind, host, int(port), peer)


def parse_peer_address(text: str) -> tuple[PeerId, str]:
    """Read a bootstrap peer, ``/ip4/…/tcp/…/p2p/PEER_ID``.

    Returns:
        The peer, and its address without the peer id.

    Raises:
        ConfigError: Not such an address, or the peer id is missing.
    """
    address = parse_address(text)
    if address.peer is None:
        message = f"{text!r} does not say which peer is there"
        raise ConfigError(
            message,
            code="bad_peer_address",
            hint=f"end it with the peer's id: {text.rstrip('/')}/p2p/12D3KooW…, "
            "as “shoal status” prints it there",
        )
    return address.peer, str(Address(address.kind, address.host, address.port))


def parse_bootstrap(text: str) -> Address | DnsAddress:
    """Read a place to join through: a peer's address, or a ``/dnsaddr`` name.

    Returns:
        An address with its peer, or a name with or without one.

    Raises:
        ConfigError: Neither, or an address without its peer id.
    """
    match text[:_MAX_TEXT_SIZE].rstrip("/").split("/"):
        case ["", "dnsaddr", name]:
            peer = None
        case ["", "dnsaddr", name, "p2p", peer_text]:
            peer = _peer(peer_text, text)
        case _:
            found, _ = parse_peer_address(text)
            address = parse_address(text)
            return Address(address.kind, address.host, address.port, found)
    if not _is_name(name):
        raise _bad_address(text, f"{name[:80]!r} is not a name in the DNS")
    return DnsAddress(name, peer)


def dialable(bound: Iterable[tuple[str, int]], peer: PeerId) -> tuple[str, ...]:
    """List where ``peer`` is reached, given the (host, port) pairs it listens on.

    A wildcard stands for every interface of this machine: its loopback comes
    last, because only neighbours on the same machine can use it, and link-local
    addresses are left out, because they mean nothing without an interface.
    """
    hosts: dict[tuple[str, int], None] = {}  # a set that keeps its order
    for host, port in bound:
        if ipaddress.ip_address(host).is_unspecified:
            hosts.update(((interface, port), None) for interface in _interfaces(":" in host))
        else:
            hosts[host, port] = None
    ordered = sorted(hosts, key=lambda pair: ipaddress.ip_address(pair[0]).is_loopback)
    return tuple(f"{address_of(host, port)}/p2p/{peer}" for host, port in ordered)


def address_of(ip: str, port: int) -> str:
    """The multiaddr of an IP address and a TCP port."""
    return str(Address(f"ip{ipaddress.ip_address(ip).version}", ip, port))


def own_interfaces() -> tuple[IPv4Interface | IPv6Interface, ...]:
    """This machine's interfaces as they are now, each with its network."""
    import psutil  # a client that reads settings has no use for it

    found = []
    for entry in (each for entries in psutil.net_if_addrs().values() for each in entries):
        try:
            bits = int(ipaddress.ip_address(entry.netmask or "")).bit_count()
            host = entry.address.partition("%")[0]
            found.append(ipaddress.ip_interface(f"{host}/{bits}"))
        except ValueError:  # a hardware address
            continue
    return tuple(found)


def _interfaces(ip6: bool) -> list[str]:
    import psutil  # likewise

    family = socket.AF_INET6 if ip6 else socket.AF_INET
    found = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == family and "%" not in entry.address
    ]
    return [host for host in found if not ipaddress.ip_address(host).is_link_local]


def _peer(peer_text: str, text: str) -> PeerId:
    try:
        return check_peer_id(peer_text)
    except VerificationError as error:
        raise _bad_address(text, error.message) from None


def _is_name(host: str) -> bool:
    """Whether a resolver may be asked about it; names of other scripts are IDNA's to judge."""
    labels = host.removesuffix(".").split(".")
    return len(host) <= _MAX_NAME_SIZE and all(
        re.fullmatch(r"[\w-]{1,63}", label) for label in labels
    )


def _is_ip(host: str, kind: str) -> bool:
    try:
        return ipaddress.ip_address(host).version == int(kind[-1])
    except ValueError:
        return False


def _bad_address(text: str, why: str) -> ConfigError:
    return ConfigError(
        f"{text[:_MAX_TEXT_SIZE]!r} is no address to use: {why}",
        code="bad_address",
        hint=f"write it like {_EXAMPLE}, /dns4/shoal.example/tcp/4711 or, to join "
        "through, /dnsaddr/shoal.example",
    )
