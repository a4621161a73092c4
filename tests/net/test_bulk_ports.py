"""Where a bulk port is opened, and where one that is announced may be dialled."""

import socket
from contextlib import asynccontextmanager

import pytest

from shoal.crypto.peer_id import PeerId
from shoal.node.addresses import parse_address
from shoal.node.bulk.dialling import place
from shoal.node.bulk.listener import BESIDE, listen, port_of
from shoal.node.errors import NetworkError
from shoal.protocol.channel_messages import ChannelOffered

PEER = PeerId("12D3KooWGC6eVKGXAQfJLDEmwKrQRYSKbGDtr2ZPJwqoaMTZZXm7")


@asynccontextmanager
async def listening(setting, *texts):
    listeners = await listen(setting, [parse_address(text) for text in texts])
    try:
        yield listeners
    finally:
        for each in listeners:
            await each.aclose()


def a_free_pair():
    """Two ports that are `BESIDE` each other, both free."""
    for port in range(20_000, 30_000, 7):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + BESIDE))
            except OSError:
                continue
            return port
    raise AssertionError


async def test_by_itself_the_port_is_beside_that_of_libp2p():
    port = a_free_pair()
    async with listening("auto", f"/ip4/127.0.0.1/tcp/{port}") as listeners:
        assert port_of(listeners) == port + BESIDE


async def test_where_that_one_is_taken_it_is_any_that_is_free():
    port = a_free_pair()
    place = f"/ip4/127.0.0.1/tcp/{port}"
    async with listening("auto", place), listening("auto", place) as second:
        assert port_of(second) not in {port, port + BESIDE}


async def test_a_port_that_was_chosen_and_is_taken_is_an_error_that_names_it():
    port = a_free_pair()
    async with listening(port, "/ip4/127.0.0.1/tcp/0"):
        with pytest.raises(NetworkError, match=str(port)) as failed:
            await listen(port, [parse_address("/ip4/127.0.0.1/tcp/0")])
    assert failed.value.code == "port_taken"


async def test_every_address_has_the_same_port():
    places = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.2/tcp/0", "/ip4/127.0.0.1/tcp/1")
    async with listening("auto", *places) as listeners:
        assert len(listeners) == 2
        assert len({each.socket.getsockname()[1] for each in listeners}) == 1


def offer(host):
    return ChannelOffered(
        port=5711, token=bytes(24), certificate=bytes(64), valid_s=1, host=host
    )


async def test_where_nothing_is_announced_the_peer_is_dialled_where_it_is_connected():
    assert await place(PEER, offer(None), "192.0.2.7") == "192.0.2.7"


@pytest.mark.parametrize(
    ("announced", "connected"),
    [
        ("203.0.113.9", "198.51.100.7"),
        ("203.0.113.9", "127.0.0.1"),
        ("192.168.1.9", "192.168.1.7"),
        ("192.168.1.9", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
async def test_an_announced_address_is_dialled_if_it_is_no_nearer_than_the_peer(
    announced, connected
):
    assert await place(PEER, offer(announced), connected) == announced


@pytest.mark.parametrize(
    ("announced", "connected"),
    [
        ("127.0.0.1", "198.51.100.7"),
        ("127.0.0.1", "192.168.1.7"),
        ("localhost", "198.51.100.7"),
        ("10.0.0.1", "198.51.100.7"),
        ("not a name", "127.0.0.1"),
        ("x" * 70, "127.0.0.1"),
    ],
)
async def test_nobody_is_aimed_at_what_is_nearer_than_the_peer(announced, connected):
    with pytest.raises(NetworkError) as failed:
        await place(PEER, offer(announced), connected)
    assert failed.value.code == "no_channel"
