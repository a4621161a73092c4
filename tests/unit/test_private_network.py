"""libp2p's private networks, without IO: the opening, the key streams, the strangers."""

import pytest
import structlog
from nacl.secret import SecretBox

from shoal.node import private_network
from shoal.node.errors import OtherNetworkError
from shoal.node.private_network import MULTISTREAM_HEADER, PrivateNetwork, Protection
from shoal.node.swarm_key import SwarmKey

SECRET = bytes(range(32))
OTHER = bytes(32)


def said(protection, data):
    """What the protection makes of ``data`` that comes byte by byte."""
    return b"".join(protection.open(bytes([byte])) for byte in data)


def test_the_nonce_goes_out_first_and_once():
    protection = Protection(SECRET)
    nonce = protection.nonce()
    assert (len(nonce), protection.nonce()) == (24, b"")
    assert len(protection.protect(b"abc")) == 3
    assert len(Protection(SECRET).protect(b"abc")) == 27


def test_what_goes_out_is_xsalsa20_as_libsodium_has_it():
    sent = Protection(SECRET).protect(bytes(32) + b"hello")
    nonce, ciphertext = sent[:24], sent[24:]
    boxed = SecretBox(SECRET).encrypt(b"hello", nonce).ciphertext
    assert ciphertext[32:] == boxed[16:]


def test_two_with_the_secret_understand_each_other_in_both_directions():
    a, b = Protection(SECRET), Protection(SECRET)
    assert not a.admitted
    assert said(b, a.protect(MULTISTREAM_HEADER) + a.protect(b"abc")) == (
        MULTISTREAM_HEADER + b"abc"
    )
    assert b.admitted
    assert a.open(b.nonce()) == b""
    assert said(a, b.protect(MULTISTREAM_HEADER + b"def")) == MULTISTREAM_HEADER + b"def"


def test_no_two_connections_look_alike():
    sent = {Protection(SECRET).protect(MULTISTREAM_HEADER) for _ in range(20)}
    assert len({one[:24] for one in sent}) == len({one[24:] for one in sent}) == 20


def test_another_secret_is_noticed_at_the_first_44_bytes():
    a, b = Protection(OTHER), Protection(SECRET)
    opening = a.protect(MULTISTREAM_HEADER)
    assert b.open(opening[:-1]) == b""
    with pytest.raises(OtherNetworkError, match="another secret"):
        b.open(opening[-1:])
    assert not b.admitted


def test_a_peer_that_speaks_in_the_clear_is_noticed_at_its_20_bytes():
    protection = Protection(SECRET)
    assert said(protection, MULTISTREAM_HEADER[:-1]) == b""
    with pytest.raises(OtherNetworkError, match="in the clear"):
        protection.open(MULTISTREAM_HEADER[-1:])


def test_who_ends_before_or_amid_the_opening_is_a_stranger_and_later_is_none():
    protection = Protection(SECRET)
    with pytest.raises(OtherNetworkError, match="without a word"):
        protection.ended()
    protection.open(b"x" * 24)
    with pytest.raises(OtherNetworkError, match="ended the connection"):
        protection.ended()
    member = Protection(SECRET)
    member.open(Protection(SECRET).protect(MULTISTREAM_HEADER))
    member.ended()


@pytest.fixture
def logged():
    with structlog.testing.capture_logs() as logs:
        yield logs


def test_a_stranger_is_logged_once_for_each_host(logged):
    network = PrivateNetwork(SwarmKey("lab", SECRET))
    for port in (1, 2, 3):
        network.turned_away(f"/ip4/192.0.2.7/tcp/{port}", "it spoke in the clear")
    network.turned_away("/ip6/2001:db8::1/tcp/4", "it has another secret")
    assert [(entry["remote"], entry["network"]) for entry in logged] == [
        ("/ip4/192.0.2.7", "lab"),
        ("/ip6/2001:db8::1", "lab"),
    ]
    assert SECRET.hex() not in str(logged)


def test_strangers_from_very_many_hosts_fill_neither_memory_nor_log(logged, monkeypatch):
    monkeypatch.setattr(private_network, "STRANGERS_LIMIT", 3)
    network = PrivateNetwork(SwarmKey("lab", SECRET))
    for host in range(10):
        network.turned_away(f"/ip4/192.0.2.{host}/tcp/1", "why")
    assert [entry["log_level"] for entry in logged] == ["info"] * 3 + ["warning"]
    assert len(network._strangers) == 3
