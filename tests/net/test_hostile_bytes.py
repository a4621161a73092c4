"""Random bytes wherever a stranger can put them; then the node must serve as before."""

import random

import pytest
import trio

from shoal.crypto.identity import generate
from shoal.node.errors import NetworkError
from shoal.node.network import open_network

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
SHOAL_PROTOCOL = "/test/shoal/1"
FRAMES, FRAMES_PER_STREAM = 1000, 4
REGISTERED = [
    "/meshsub/1.1.0",
    "/ipfs/id/1.0.0",
    "/ipfs/ping/1.0.0",
    SHOAL_PROTOCOL,
]


def varint(number):
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    return bytes([*encoded, number])


def random_frame(rng):
    """Junk behind a length that is right, absent, twice the truth, or absurd."""
    junk = rng.randbytes(rng.choice([0, 1, 5, 50, 3000]))
    length = rng.choice([len(junk), None, 2 * len(junk), 1 << rng.choice([20, 31, 40, 62])])
    return junk if length is None else varint(length) + junk


async def read_frames(stream):
    while True:
        size = int.from_bytes(await stream.receive_exactly(2), "big")
        await stream.receive_exactly(size)


async def assert_it_serves(target, watcher):
    """Its old connections answer, and it takes new ones.

    A stream opened while those of the attacker are still being ended may be refused.
    """
    with trio.fail_after(60):
        while True:
            try:
                assert await watcher.ping(target.peer_id, 5) < 5
                break
            except NetworkError:
                await trio.sleep(0.1)
    async with open_network(generate(), []) as newcomer:
        await newcomer.connect(target.peer_id, target.addresses(), 5)
        assert await newcomer.ping(target.peer_id, 5) < 5


async def test_every_protocol_that_a_network_registers_is_fuzzed_here():
    async with open_network(generate(), []) as a:
        a.handle(SHOAL_PROTOCOL, read_frames)
        assert sorted(a._host.get_mux().get_protocols()) == sorted(REGISTERED)


@pytest.mark.parametrize("protocol", REGISTERED)
async def test_random_frames_leave_the_node_serving(protocol):
    rng = random.Random(protocol)
    async with (
        open_network(generate(), [LOOPBACK]) as target,
        open_network(generate(), []) as watcher,
        open_network(generate(), []) as attacker,
    ):
        target.handle(SHOAL_PROTOCOL, read_frames)
        await target.subscribe("t", lambda _peer, _data: True, lambda _data: None)
        await watcher.connect(target.peer_id, target.addresses(), 5)
        await watcher.ping(target.peer_id, 5)
        for _ in range(FRAMES // FRAMES_PER_STREAM):
            if not attacker.connected():
                await attacker.connect(target.peer_id, target.addresses(), 5)
            try:
                stream = await attacker.open_stream(target.peer_id, protocol, 5)
                for _ in range(FRAMES_PER_STREAM):
                    await stream.send_all(random_frame(rng))
            except NetworkError:
                continue  # it may refuse or reset as it likes
            await (stream.reset() if rng.random() < 0.5 else stream.aclose())
        assert watcher.connected() == {target.peer_id}
        await assert_it_serves(target, watcher)


async def test_random_bytes_on_the_port_leave_the_node_serving():
    rng = random.Random("port")
    beginnings = [b"", b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x07/noise\n"]
    async with (
        open_network(generate(), [LOOPBACK]) as target,
        open_network(generate(), []) as watcher,
    ):
        await watcher.connect(target.peer_id, target.addresses(), 5)
        port = int(target.addresses()[0].split("/")[4])
        for number in range(200):
            stranger = await trio.open_tcp_stream("127.0.0.1", port)
            async with stranger:
                try:
                    await stranger.send_all(beginnings[number % 3] + random_frame(rng))
                    if number % 2:
                        await stranger.send_eof()
                        while await stranger.receive_some(4096):
                            pass
                except trio.BrokenResourceError:
                    pass  # the node hung up first
        assert watcher.connected() == {target.peer_id}
        await assert_it_serves(target, watcher)
