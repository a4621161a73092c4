"""What is announced on a local network, and what of others' announcements is believed."""

import ipaddress

import pytest

from shoal.crypto.identity import generate
from shoal.node.lan_records import ADDRESSES_LIMIT, PORTS_LIMIT, announcements, heard

SELF, OTHER = generate().peer_id, generate().peer_id
OWN = [
    ipaddress.ip_interface("127.0.0.1/8"),
    ipaddress.ip_interface("192.168.7.5/24"),
    ipaddress.ip_interface("fd00::5/64"),
]


def hear(properties=None, hosts=("192.168.7.9",), port=4711, network=""):
    said = {b"peer": OTHER.encode(), b"net": network.encode()} | (properties or {})
    return heard(said, hosts, port, peer=SELF, network=network, own=OWN)


def test_a_node_announces_its_private_addresses_by_port():
    found = announcements(
        [
            f"/ip4/192.168.7.5/tcp/1/p2p/{SELF}",
            f"/ip6/fd00::5/tcp/1/p2p/{SELF}",
            f"/ip4/10.0.0.1/tcp/2/p2p/{SELF}",
        ],
        SELF,
        "",
    )
    assert [(one.port, one.hosts) for one in found] == [
        (1, ("192.168.7.5", "fd00::5")),
        (2, ("10.0.0.1",)),
    ]


@pytest.mark.parametrize("host", ["/ip4/127.0.0.1", "/ip4/8.8.8.8", "/ip6/fe80::1", "/ip6/::1"])
def test_loopback_and_public_addresses_are_not_announced(host):
    assert announcements([f"{host}/tcp/1/p2p/{SELF}"], SELF, "") == ()


def test_an_announcement_fits_the_dns_and_names_no_private_network():
    (one,) = announcements([f"/ip4/10.0.0.1/tcp/65535/p2p/{SELF}"], SELF, "0123456789abcdef")
    assert len(one.name.partition(".")[0]) <= 63
    assert one.properties == {"peer": SELF, "net": "0123456789abcdef"}


def test_announcements_are_few():
    addresses = [f"/ip4/10.0.0.1/tcp/{port}/p2p/{SELF}" for port in range(1, 50)]
    assert len(announcements(addresses, SELF, "")) == PORTS_LIMIT


def test_a_node_of_the_same_network_on_the_same_link_is_heard():
    assert hear() == (OTHER, ("/ip4/192.168.7.9/tcp/4711",))
    assert hear(network="0123456789abcdef", hosts=["fd00::9"]) == (
        OTHER,
        ("/ip6/fd00::9/tcp/4711",),
    )


@pytest.mark.parametrize(
    "said",
    [
        {"properties": {b"net": b"another"}},
        {"properties": {b"peer": b"nobody"}},
        {"properties": {b"peer": b"\xff" * 300}},
        {"properties": {b"peer": None}},
        {"properties": {b"peer": SELF.encode()}},
        {"hosts": []},
        {"hosts": ["not an address"]},
        {"hosts": ["192.168.8.9"]},  # private, and of another network
        {"hosts": ["8.8.8.8"]},  # nobody makes this node dial a stranger
        {"hosts": ["127.0.0.1", "0.0.0.0", "fe80::1"]},
        {"port": 0},
        {"port": 70_000},
        {"port": None},
    ],
)
def test_what_is_not_to_be_believed_leads_nowhere(said):
    assert hear(**said) is None


def test_a_node_in_a_private_network_hears_no_other():
    said = {b"peer": OTHER.encode(), b"net": b""}
    assert heard(said, ["192.168.7.9"], 1, peer=SELF, network="ab", own=OWN) is None


def test_of_one_announcement_few_addresses_are_taken():
    hosts = [f"192.168.7.{number}" for number in range(1, 200)]
    assert len(hear(hosts=hosts)[1]) == ADDRESSES_LIMIT
