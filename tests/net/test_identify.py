"""What peers say of themselves by libp2p's identify, and what they are not believed."""

from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.identity.identify.pb.identify_pb2 import Identify

import shoal
from shoal.crypto.identity import generate
from shoal.node.identify import IDENTIFY_PROTOCOL, Identified, identify
from shoal.node.network import open_network
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]


@asynccontextmanager
async def asker_and_asked():
    async with (
        open_network(generate(), LOOPBACK) as asker,
        open_network(generate(), LOOPBACK) as asked,
    ):
        await asker.connect(asked.peer_id, asked.addresses(), 5)
        yield asker, asked


async def test_a_node_says_that_it_is_shoal_and_of_which_version():
    async with asker_and_asked() as (asker, asked):
        asked.handle("/x/1", lambda stream: stream.reset())
        said = await identify(asker, asked.peer_id, 5)
        assert said.agent == f"shoal/{shoal.__version__}"
        assert "/x/1" in said.protocols
        stream = await asker.open_stream(asked.peer_id, IDENTIFY_PROTOCOL, 5)
        everything = b""
        while some := await stream.receive_some(4096):
            everything += some
        assert f"/shoal/{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}".encode() in everything


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\xff\xff\xff\xff\xff\xff",  # a length without an end
        b"\xff\xff\x03" + bytes(70_000),
        b"\x03\xff\xff\xff",  # no protobuf
        b"\x20\x00",  # shorter than it says
    ],
    ids=lambda answer: answer[:4].hex() or "nothing",
)
async def test_a_peer_that_says_nonsense_is_nobody(answer):
    async with asker_and_asked() as (asker, asked):

        async def say(stream):
            await stream.send_all(answer)

        asked.handle(IDENTIFY_PROTOCOL, say)
        with trio.fail_after(10):
            assert await identify(asker, asked.peer_id, 5) == Identified()


async def test_a_peer_that_says_nothing_is_not_waited_for():
    async with asker_and_asked() as (asker, asked):

        async def say_nothing(_stream):
            await trio.sleep_forever()

        asked.handle(IDENTIFY_PROTOCOL, say_nothing)
        with trio.fail_after(10):
            assert await identify(asker, asked.peer_id, 0.5) == Identified()


async def test_a_name_that_a_peer_made_up_is_short_and_printable():
    async with asker_and_asked() as (asker, asked):
        said = Identify(agent_version="\x1b[31mred\n" + "x" * 500).SerializeToString()

        async def say(stream):
            await stream.send_all(bytes([len(said) & 0x7F | 0x80, len(said) >> 7]) + said)

        asked.handle(IDENTIFY_PROTOCOL, say)
        agent = (await identify(asker, asked.peer_id, 5)).agent
        assert agent.startswith("[31mredxx")
        assert len(agent) <= 64
