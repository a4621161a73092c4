"""Multiaddrs, as operators type them and as peers send them."""

import pytest

from shoal.node.addresses import dialable, parse_address, parse_peer_address
from shoal.node.errors import ConfigError

PEER = "12D3KooWNmuiXrkpTxEeq6GDMEQCk9PiRm7JMU3icATetTCVwcJ9"  # a test has one name


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/192.0.2.7/tcp/4711",
        "/ip6/2001:db8::1/tcp/1",
        "/dns4/shoal.example/tcp/65535",
        f"/ip4/127.0.0.1/tcp/0/p2p/{PEER}",
    ],
)
def test_an_address_is_read_and_written_alike(text):
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.7:4711",
        "/ip4/192.0.2.7",
        "/ip4/192.0.2.300/tcp/1",
        "/ip4/::1/tcp/1",
        "/ip4//tcp/1",
        "/dns4//tcp/1",
        "/ip4/192.0.2.7/udp/1/quic-v1",
        "/ip4/192.0.2.7/tcp/65536",
        "/ip4/192.0.2.7/tcp/-1",
        "/ip4/192.0.2.7/tcp/١",
        "/ip4/192.0.2.7/tcp/1/ws",
        "/ip4/192.0.2.7/tcp/1/p2p/QmNotAnEd25519Id",
    ],
)
def test_what_is_no_address_is_refused_with_an_example(text):
    with pytest.raises(ConfigError) as caught:
        parse_address(text)
    assert caught.value.code == "bad_address"
    assert "/ip4/192.0.2.7/tcp/4711" in caught.value.hint


def test_a_bootstrap_peer_is_split_from_its_address():
    assert parse_peer_address(f"/dns4/a.example/tcp/1/p2p/{PEER}") == (
        PEER,
        "/dns4/a.example/tcp/1",
    )


def test_a_bootstrap_address_without_its_peer_says_what_is_missing():
    with pytest.raises(ConfigError, match="which peer") as caught:
        parse_peer_address("/ip4/192.0.2.7/tcp/4711")
    assert "/ip4/192.0.2.7/tcp/4711/p2p/12D3KooW" in caught.value.hint


def test_a_wildcard_is_expanded_and_loopback_comes_last():
    found = dialable([("0.0.0.0", 4711)], PEER)
    assert found[-1] == f"/ip4/127.0.0.1/tcp/4711/p2p/{PEER}"
    assert not any("0.0.0.0" in one for one in found)


def test_a_given_address_stays_as_it_is():
    assert dialable([("192.0.2.7", 1)], PEER) == (f"/ip4/192.0.2.7/tcp/1/p2p/{PEER}",)
