"""A private network with js-libp2p, an implementation of its own, by one swarm.key.

`make interop` installs the packages that it needs; without them, or without Node,
this is skipped.
"""

import json
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from shoal.crypto.identity import generate
from shoal.node.control import CONTROL_PROTOCOL
from shoal.node.errors import NetworkError
from shoal.node.network import open_network
from shoal.node.private_network import PrivateNetwork
from shoal.node.swarm_key import make_key, save_new_key

HERE = Path(__file__).parent
ANSWER_LIMIT_S = 30.0

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="there is no Node.js"),
    pytest.mark.skipif(
        not (HERE / "node_modules" / "@libp2p" / "pnet").exists(),
        reason="js-libp2p is not installed; `make interop` does it",
    ),
]

KEY = make_key("lab").with_bootstrap((f"/ip4/192.0.2.7/tcp/4711/p2p/{generate().peer_id}",))


@pytest.fixture
def swarm_key(tmp_path):
    """The file as a node of shoal has it in its home, with the lines that are shoal's own."""
    save_new_key(KEY, tmp_path / "swarm.key")
    return tmp_path / "swarm.key"


@pytest.fixture
def other_key(tmp_path):
    save_new_key(make_key(), tmp_path / "other.key")
    return tmp_path / "other.key"


@asynccontextmanager
async def open_node():
    async def silent(_stream):
        pass

    listen = ["/ip4/127.0.0.1/tcp/0"]
    async with open_network(generate(), listen, PrivateNetwork(KEY)) as node:
        node.handle(CONTROL_PROTOCOL, silent)
        yield node


async def learned_by_js(key_file, node):
    command = ["node", HERE / "peer.mjs", key_file, node.addresses()[0]]
    with trio.fail_after(ANSWER_LIMIT_S):
        done = await trio.run_process(command, capture_stdout=True)
    return json.loads(done.stdout)


@asynccontextmanager
async def js_peer(key_file):
    """A listening js-libp2p peer; gives its id and its address."""
    command = ["node", HERE / "peer.mjs", key_file]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        with trio.fail_after(ANSWER_LIMIT_S):
            line = b""
            while not line.endswith(b"\n"):
                line += await process.stdout.receive_some()
        place, _, peer = json.loads(line)["address"].partition("/p2p/")
        yield peer, place
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def test_a_js_peer_with_the_same_swarm_key_is_a_member_that_dials(swarm_key):
    async with open_node() as node:
        learned = await learned_by_js(swarm_key, node)
    assert learned["peer"] == node.peer_id
    assert learned["ping_ms"] >= 0
    assert CONTROL_PROTOCOL in learned["protocols"]


async def test_a_js_peer_with_the_same_swarm_key_is_a_member_that_is_dialled(swarm_key):
    async with open_node() as node, js_peer(swarm_key) as (peer, place):
        await node.connect(peer, [place], 10)
        assert await node.ping(peer, 5) < 5


async def test_a_js_peer_with_another_key_or_none_learns_nothing(other_key):
    async with open_node() as node:
        for key_file in (other_key, "-"):
            assert set(await learned_by_js(key_file, node)) == {"error"}
            async with js_peer(key_file) as (peer, place):
                # With another key js-libp2p waits for more, and never says a word.
                said = "without a word" if key_file == "-" else "no answer within"
                with pytest.raises(NetworkError, match=said):
                    await node.connect(peer, [place], 2)
        assert node.connected() == frozenset()
