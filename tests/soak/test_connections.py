"""What strangers can do to a real daemon by connecting: nothing that lasts.

Connects and disconnects in sequence, silent sockets, garbage, resets in
mid-handshake, streams without end and a byte per second; meanwhile another peer
connects and the daemon answers its user, and afterwards descriptors and memory
are back. 2,000 connects in the long form (``SHOAL_SOAK_S`` of 600 and above), 300
in the short one. Figures are printed: ``pytest -s``.
"""

import os
import socket
import struct
import time
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
import trio

from shoal.crypto.identity import generate
from shoal.node.client import AsyncClient
from shoal.node.demo.swarm import Swarm
from shoal.node.errors import NetworkError
from shoal.node.libp2p_compat.streams import TRANSPORT_ERRORS
from shoal.node.network import open_network

LONG = float(os.environ.get("SHOAL_SOAK_S", "60")) >= 600
CONNECTS, WARM_UP = (2000, 200) if LONG else (300, 60)
SILENT, GARBAGE, RESETS, STREAMS = (400, 1000, 50, 1000) if LONG else (400, 200, 50, 1000)
ATTACK_S = 30.0 if LONG else 12.0
CALM_S = 30.0
SLOPE_LIMIT_BYTES = 4096
"""Of memory for each connection that came and went; a leak of its tables is larger."""


@pytest.fixture(scope="module")
def node():
    with Swarm(1, settings=["--provide=false"]) as swarm:
        swarm.start_all()
        time.sleep(3)  # what it looks for after its start, it has found
        yield swarm.nodes[0]


def place(node):
    return node.address.rpartition("/p2p/")[0]


def size_of(node):
    """Resident bytes and descriptors of the daemon's own process."""
    process = psutil.Process(node.process.pid)
    return process.memory_info().rss, process.num_fds()


async def come_and_go(node, network):
    await network.connect(node.peer, [place(node)], 10)
    assert await network.ping(node.peer, 10) < 10
    await network.disconnect(node.peer)


async def test_connects_and_disconnects_in_sequence_leave_nothing(node):
    sizes = []
    began = time.monotonic()
    for at in range(0, CONNECTS, 10):
        async with open_network(generate(), []) as network:  # ten times each peer
            for _ in range(10):
                await come_and_go(node, network)
        if at >= WARM_UP - 10:
            sizes.append(size_of(node)[0])
        if at == WARM_UP - 10:
            descriptors = size_of(node)[1]
    await trio.sleep(1)
    rss, descriptors_after = size_of(node)
    slope = (rss - sizes[0]) / (CONNECTS - WARM_UP)
    print(
        f"\n{CONNECTS} connects in {time.monotonic() - began:.0f} s: "
        f"{sizes[0] / 1e6:.1f} MB after {WARM_UP}, {rss / 1e6:.1f} MB after all, "
        f"{slope:.0f} bytes each; descriptors {descriptors} -> {descriptors_after}"
    )
    assert slope < SLOPE_LIMIT_BYTES
    assert descriptors_after <= descriptors + 2


@asynccontextmanager
async def watched(node):
    """Ask for the status all the time; gives the seconds that each answer took."""
    took_s = []

    async def ask():
        async with AsyncClient(node.socket) as client:
            while True:
                began = time.monotonic()
                await client.status()
                took_s.append(time.monotonic() - began)
                await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        yield took_s
        nursery.cancel_scope.cancel()


async def stay_silent(node):
    with suppress(OSError, trio.BrokenResourceError):
        async with await open_raw(node) as stream:
            await stream.receive_some()


async def open_raw(node):
    _, _, host, _, port = place(node).split("/")
    return await trio.open_tcp_stream(host, int(port))


async def send_garbage(node):
    for number in range(GARBAGE):
        with suppress(OSError, trio.BrokenResourceError):
            async with await open_raw(node) as stream:
                await stream.send_all(bytes([number % 256]) * 200)
                with trio.move_on_after(0.2):
                    await stream.receive_some()


async def reset_handshakes(node):
    for _ in range(RESETS):
        with suppress(OSError, trio.BrokenResourceError):
            stream = await open_raw(node)
            await stream.send_all(b"\x13/multistream/1.0.0\n\x07/noise\n")
            await stream.receive_some()
            linger = struct.pack("ii", 1, 0)
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            stream.socket.close()
        await trio.sleep(0.05)


async def open_streams(node):
    async with open_network(generate(), []) as network:
        with suppress(NetworkError, *TRANSPORT_ERRORS):  # it is cut for it
            await network.connect(node.peer, [place(node)], 10)
            muxed = network._live_connection(node.peer).muxed_conn
            for number in range(1001, 1001 + 2 * STREAMS, 2):
                if not network.connected():
                    return
                await muxed._say(number, 1)


async def send_a_byte_per_second(node):
    with suppress(OSError, trio.BrokenResourceError):
        stream = await open_raw(node)
        while True:
            await stream.send_all(b"\x13")
            await trio.sleep(1)


async def keep_coming(node, count):
    while True:
        async with open_network(generate(), []) as network:
            began = time.monotonic()
            await come_and_go(node, network)
            count.append(time.monotonic() - began)
        await trio.sleep(0.5)


async def test_a_crowd_of_hostile_connections_keeps_nobody_out_and_leaves_nothing(node):
    async with open_network(generate(), []) as network:
        await come_and_go(node, network)
    before = size_of(node)
    came = []
    async with watched(node) as took_s:
        with trio.move_on_after(ATTACK_S):
            async with trio.open_nursery() as nursery:
                for _ in range(SILENT):
                    nursery.start_soon(stay_silent, node)
                for attack in (send_garbage, reset_handshakes, open_streams):
                    nursery.start_soon(attack, node)
                nursery.start_soon(send_a_byte_per_second, node)
                nursery.start_soon(keep_coming, node, came)
        worst = size_of(node)
        slowest_s = max(took_s)
    await trio.sleep(CALM_S)
    after = size_of(node)
    print(
        f"\n{len(came)} times another peer came, at most {max(came):.2f} s each; "
        f"{len(took_s)} answers of status, the slowest {slowest_s:.2f} s; "
        f"memory {before[0] / 1e6:.1f} -> {worst[0] / 1e6:.1f} -> {after[0] / 1e6:.1f} MB; "
        f"descriptors {before[1]} -> {worst[1]} -> {after[1]}"
    )
    assert len(came) >= 3
    assert slowest_s < 5.0  # of a busy machine; a second on an idle one
    assert after[1] <= before[1] + 3
    assert after[0] - before[0] < 30e6
