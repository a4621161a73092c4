"""Dialled by rust-libp2p and dialling it: handshake, identify and ping, both ways.

The peer is lattica, installed by `make test`; where it is missing these tests fail. It
drops whoever's identify names another protocol version than its own, so that a peer it
keeps is one whose identify it has understood.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from shoal.crypto.identity import generate
from shoal.node.identify import identify
from shoal.node.network import open_network
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR

SCRIPT = Path(__file__).with_name("rust_peer.py")
OURS = f"/shoal/{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
LIMIT_S = 60.0


class RustPeer:
    """A running one: where it listens, and what it last said."""

    def __init__(self, process, place):
        self.place = place
        self.said = {}
        self._process = process
        self._unread = b""

    @property
    def peer(self):
        return self.said["peer"]

    async def look(self, condition=lambda said: True):
        """Read what it says until the condition holds of it."""
        with trio.fail_after(LIMIT_S):
            while True:
                while b"\n" not in self._unread:
                    some = await self._process.stdout.receive_some()
                    assert some, "the foreign peer is missing or has ended; see above"
                    self._unread += some
                line, _, self._unread = self._unread.partition(b"\n")
                self.said = json.loads(line)
                if condition(self.said):
                    return self.said


@asynccontextmanager
async def rust_peer(*addresses, protocol=OURS):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SCRIPT), str(port), protocol, *addresses]
    with tempfile.TemporaryDirectory(prefix="shoal-rust-") as place:
        process = await trio.lowlevel.open_process(
            command, stdout=subprocess.PIPE, env=os.environ | {"TMPDIR": place}
        )
        try:
            peer = RustPeer(process, f"/ip4/127.0.0.1/tcp/{port}")
            await peer.look()
            yield peer
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()


async def test_rust_dials_identifies_and_pings_a_node():
    async with (
        open_network(generate(), LOOPBACK) as node,
        rust_peer(node.addresses()[0]) as rust,
    ):
        said = await rust.look(lambda said: said["kept"].get(node.peer_id))
        assert 0 < said["kept"][node.peer_id] < LIMIT_S
        assert node.connected() == {rust.peer}


async def test_a_node_dials_identifies_and_pings_rust():
    async with open_network(generate(), LOOPBACK) as node, rust_peer() as rust:
        await node.connect(rust.peer, [rust.place], 10)
        assert await node.ping(rust.peer, 5) < 5
        said = await identify(node, rust.peer, 5)
        assert said.agent.startswith("rust-libp2p/")
        assert OURS in said.protocols
        await rust.look(lambda said: node.peer_id in said["kept"])


async def test_rust_keeps_no_node_of_another_version():
    """So that what it kept above, it kept for what our identify says."""
    async with (
        open_network(generate(), LOOPBACK) as node,
        rust_peer(node.addresses()[0], protocol="/shoal/9.9") as rust,
    ):
        with trio.fail_after(LIMIT_S):
            seen = await node.next_change(frozenset())
            assert seen == {rust.peer}
            assert await node.next_change(seen) == frozenset()
        assert (await rust.look())["kept"] == {}
