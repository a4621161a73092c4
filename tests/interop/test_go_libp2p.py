"""A real daemon beside go-libp2p: dialled, identified, pinged, gossiped with, asked.

Go's side is p2pd (`go_peer`), installed by `make test` from one wheel; where it is missing
these tests fail. What the daemon signed is checked here by the specification's words and
a bare Ed25519, not by the daemon's own code.
"""

import secrets
import struct
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path

import base58
import go_peer as go_peer_module
import msgpack
import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from daemons import shoal as run_shoal
from go_peer import go_peer, receive_exactly, receive_varint, varint
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.pb.crypto_pb2 import KeyType, PublicKey
from libp2p.identity.identify.pb.identify_pb2 import Identify
from multiaddr import Multiaddr

import shoal
from shoal.crypto.envelope import Statement
from shoal.crypto.identity import generate
from shoal.node.blob_transfer import BLOB_PROTOCOL
from shoal.node.control import CONTROL_PROTOCOL
from shoal.node.demo.swarm import Swarm
from shoal.node.membership import ADVERT_TOPIC
from shoal.node.network import open_network
from shoal.protocol.codec import decode, encode
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR
from shoal.protocol.messages import (
    Adverts,
    Digest,
    Done,
    Hello,
    Problem,
    Request,
    Response,
)
from shoal.protocol.statements import Advert

LIMIT_S = 60.0
VERSION = (PROTOCOL_MAJOR, PROTOCOL_MINOR)
PING, IDENTIFY = "/ipfs/ping/1.0.0", "/ipfs/id/1.0.0"


@pytest.fixture(scope="module")
def node():
    """A daemon of its own, as `shoal up` starts it, that knows nobody."""
    with Swarm(1) as swarm:
        swarm.start_all()
        yield swarm.nodes[0]


@pytest.fixture
def place():
    """A directory whose sockets have short names."""
    with tempfile.TemporaryDirectory(prefix="shoal-go-", dir="/tmp") as directory:
        yield Path(directory)


@asynccontextmanager
async def connected(place, node, identity=None):
    """A Go peer that has dialled the daemon."""
    async with go_peer(place, identity) as go:
        await go.connect(node.address)
        yield go


def views(node):
    with node.client() as client:
        return {view.peer: view for view in client.peers()}


def misfits_of(node):
    with node.client() as client:
        return {view.peer: view.why for view in client.misfits()}


async def eventually(look, what):
    with trio.move_on_after(LIMIT_S):
        while not (found := await trio.to_thread.run_sync(look)):  # noqa: ASYNC110  # another process's state
            await trio.sleep(0.05)
        return found
    raise AssertionError(f"not within {LIMIT_S:g} s: {what}")


async def say(stream, number, body):
    await send_bytes(stream, encode(Request(id=number, body=body)))


async def send_bytes(stream, data):
    await stream.send_all(struct.pack(">I", len(data)) + data)


async def hear(stream, kind=Response):
    with trio.fail_after(LIMIT_S):
        (size,) = struct.unpack(">I", await receive_exactly(stream, 4))
        return decode(await receive_exactly(stream, size), kind)


async def is_ended(stream):
    with trio.fail_after(LIMIT_S):
        try:
            return await stream.receive_some(1) == b""
        except trio.BrokenResourceError:
            return True


def make_advert(key, **changes):
    wall_ms = time.time_ns() // 1_000_000
    advert = Advert(
        peer=key.peer_id,
        sequence=wall_ms,
        issued_at_ms=wall_ms,
        lifetime_s=60.0,
        protocol=VERSION,
        agent="made-up/1",
        addresses=("/ip4/192.0.2.7/tcp/4711",),
        devices=(),
        numeric_classes=(),
        providing=False,
    )
    advert = msgspec.structs.replace(advert, **changes)
    return key.sign(Statement.ADVERT, encode(advert))


def opened_by_the_specification(envelope, domain, payload_type):
    """A libp2p signed envelope (RFC 0002), checked with nothing but protobuf and Ed25519.

    Gives the signer's peer id and the payload.
    """
    fields, at = {}, 0
    while at < len(envelope):
        tag, at = envelope[at], at + 1
        size, shift = 0, 0
        while True:
            byte, at = envelope[at], at + 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        fields[tag >> 3], at = envelope[at : at + size], at + size
    assert set(fields) == {1, 2, 3, 5}
    assert fields[2] == payload_type
    key = PublicKey.FromString(fields[1])
    assert key.key_type == KeyType.Ed25519
    parts = (domain, fields[2], fields[3])
    signed = b"".join(varint(len(part)) + part for part in parts)
    Ed25519PublicKey.from_public_bytes(key.data).verify(fields[5], signed)
    identity_hash = b"\x00" + varint(len(fields[1])) + fields[1]
    return base58.b58encode(identity_hash).decode(), fields[3]


def advert_parts(key):
    return make_advert(key), b"shoal-advert-v1", b"/shoal/advert"


def said_in_advert(envelope):
    signer, payload = opened_by_the_specification(
        envelope, b"shoal-advert-v1", b"/shoal/advert"
    )
    said = msgpack.unpackb(payload)
    assert said["peer"] == signer
    return said


# --- connections, identify, ping --------------------------------------------------------


async def test_go_dials_identifies_and_pings_a_daemon(node, place):
    async with connected(place, node) as go:
        assert await go.peers() == {node.peer}
        async with await go.open_stream(node.peer, IDENTIFY) as stream:
            size = await receive_varint(stream)
            said = Identify.FromString(await receive_exactly(stream, size))
        assert said.agent_version == f"shoal/{shoal.__version__}"
        assert said.protocol_version == f"/shoal/{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
        assert {CONTROL_PROTOCOL, BLOB_PROTOCOL, PING} <= set(said.protocols)
        listening = node.address.partition("/p2p/")[0]
        assert listening in {str(Multiaddr(each)) for each in said.listen_addrs}
        opened_by_the_specification(said.signedPeerRecord, b"libp2p-peer-record", b"\x03\x01")
        async with await go.open_stream(node.peer, PING) as stream:
            payload = secrets.token_bytes(32)
            await stream.send_all(payload)
            with trio.fail_after(LIMIT_S):
                assert await receive_exactly(stream, 32) == payload


async def test_a_daemon_dials_a_go_peer(node, place):
    async with go_peer(place) as go:
        with node.client() as client:
            await trio.to_thread.run_sync(client.connect, go.address)
        assert await go.peers() == {node.peer}


async def test_a_go_peer_that_speaks_control_is_linked_and_pinged(node, place):
    """What it says there is a few lines of this test; the transport is Go's."""
    advert = make_advert(key := generate(), agent="go/1")

    async def answer(peer, stream):
        assert peer == node.peer
        while True:
            try:
                request = await hear(stream, Request)
            except (EOFError, trio.BrokenResourceError):
                return
            match request.body:
                case Hello():
                    body = Hello(protocol=VERSION, agent="go/1")
                case Digest():
                    body = Adverts(adverts=((advert, 0.0),))
                case _:
                    body = Done()
            await send_bytes(stream, encode(Response(id=request.id, body=body)))

    async with go_peer(place, key) as go, trio.open_nursery() as nursery:
        await go.serve(nursery, CONTROL_PROTOCOL, answer)
        await go.connect(node.address)

        def pinged():
            view = views(node).get(go.peer_id)
            return view and view.linked and view.rtt_s is not None and view

        view = await eventually(pinged, "the Go peer is linked and was pinged")
        assert view.agent == "go/1"
        assert 0 < view.rtt_s < LIMIT_S
        nursery.cancel_scope.cancel()


# --- gossip -------------------------------------------------------------------------------


async def test_a_daemons_advert_reaches_go_and_its_signature_holds_there(node, place):
    async with connected(place, node) as go, go.subscribed(ADVERT_TOPIC) as next_message:
        with node.client() as client:  # it issues an advert when its owner pauses it
            await trio.to_thread.run_sync(client.pause)
            message = await next_message()
            while said_in_advert(message.data)["providing"]:
                message = await next_message()
            await trio.to_thread.run_sync(client.resume)
        said = said_in_advert(message.data)
        assert said["peer"] == node.peer
        assert said["addresses"] == [node.address.partition("/p2p/")[0]]
        # Go is strict: what bears no good signature of its sender is not delivered.
        assert base58.b58encode(getattr(message, "from")).decode() == node.peer
        assert message.signature


async def test_go_delivers_nothing_of_ours_whose_signature_does_not_hold(place):
    """So that what it delivered above was checked there."""
    async with (
        open_network(generate(), ["/ip4/127.0.0.1/tcp/0"]) as ours,
        go_peer(place) as go,
        go.subscribed(ADVERT_TOPIC) as next_message,
    ):
        await ours.subscribe(ADVERT_TOPIC, lambda _peer, _data: True, lambda _data: None)
        await go.connect(ours.addresses()[0])
        own_key = ours._gossip.sign_key

        async def keep_publishing():  # from before the mesh is there, which takes a moment
            while True:
                ours._gossip.sign_key = create_new_key_pair().private_key
                await ours.publish(ADVERT_TOPIC, b"by another key")
                ours._gossip.sign_key = own_key
                await ours.publish(ADVERT_TOPIC, b"by our key")
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_publishing)
            heard = [(await next_message()).data for _ in range(3)]
            nursery.cancel_scope.cancel()
    assert set(heard) == {b"by our key"}


async def test_an_advert_that_go_gossips_is_listed_and_one_that_is_forged_is_not(node, place):
    maker, victim = generate(), generate()
    good = make_advert(maker)
    forged = make_advert(victim)
    forged = forged[:-1] + bytes([forged[-1] ^ 1])
    foreign = make_advert(maker, peer=victim.peer_id)  # well signed, by somebody else
    async with connected(place, node) as go, go.subscribed(ADVERT_TOPIC):
        with trio.move_on_after(LIMIT_S):
            # Published again and again: the mesh takes a heartbeat or two. The good one
            # goes last: once it is here, the others were.
            while maker.peer_id not in await trio.to_thread.run_sync(views, node):
                for advert in (forged, foreign, good):
                    await go.publish(ADVERT_TOPIC, advert)
                await trio.sleep(0.2)
    found = await trio.to_thread.run_sync(views, node)
    assert found[maker.peer_id].agent == "made-up/1"
    assert victim.peer_id not in found
    assert "a peer passed on a bad advert" in node.log_path.read_text()


async def test_an_advert_of_a_newer_minor_is_listed_and_passed_on_as_it_came(node, place):
    maker = generate()
    newer = (PROTOCOL_MAJOR, PROTOCOL_MINOR + 1)
    tree = msgpack.unpackb(opened_by_the_specification(*advert_parts(maker))[1])
    tree |= {"protocol": list(newer), "new_field": {"of": ["a newer minor"]}}
    envelope = maker.sign(Statement.ADVERT, msgpack.packb(tree))
    too_new = generate()
    refused = too_new.sign(Statement.ADVERT, msgpack.packb(tree | {"protocol": [9, 0]}))
    async with connected(place, node) as go, go.subscribed(ADVERT_TOPIC):
        with trio.move_on_after(LIMIT_S):
            while maker.peer_id not in (found := await trio.to_thread.run_sync(views, node)):
                await go.publish(ADVERT_TOPIC, refused)
                await go.publish(ADVERT_TOPIC, envelope)
                await trio.sleep(0.2)
        assert found[maker.peer_id].protocol == newer
        async with await go.open_stream(node.peer, CONTROL_PROTOCOL) as stream:
            await say(stream, 1, Hello(protocol=VERSION, agent="go/1"))
            await hear(stream)
            await say(stream, 2, Digest(held=b""))
            adverts = (await hear(stream)).body.adverts
        assert envelope in {each for each, _age_s in adverts}
    assert "speaks protocol 9: upgrade this node" in node.log_path.read_text()


# --- our control protocol, from Go ---------------------------------------------------------


@asynccontextmanager
async def control_from_go(place, node):
    async with (
        connected(place, node) as go,
        await go.open_stream(node.peer, CONTROL_PROTOCOL) as stream,
    ):
        yield go, stream


async def test_go_says_hello_and_asks_for_adverts(node, place):
    async with control_from_go(place, node) as (_, stream):
        await say(stream, 1, Hello(protocol=VERSION, agent="go/1"))
        hello = await hear(stream)
        assert hello == Response(
            id=1, body=Hello(protocol=VERSION, agent=f"shoal/{shoal.__version__}")
        )
        await say(stream, 2, Digest(held=b""))
        answer = await hear(stream)
        assert answer.id == 2
        said = [said_in_advert(envelope) for envelope, _age_s in answer.body.adverts]
        assert node.peer in {each["peer"] for each in said}


@pytest.mark.parametrize("greeted", [False, True])
async def test_garbage_from_go_ends_its_stream_and_nothing_else(node, place, greeted):
    async with control_from_go(place, node) as (go, stream):
        if greeted:
            await say(stream, 1, Hello(protocol=VERSION, agent="go/1"))
            await hear(stream)
        await send_bytes(stream, secrets.token_bytes(100))
        assert await is_ended(stream)
        async with await go.open_stream(node.peer, CONTROL_PROTOCOL) as another:
            await say(another, 1, Hello(protocol=VERSION, agent="go/1"))
            assert isinstance((await hear(another)).body, Hello)


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        ((PROTOCOL_MAJOR + 1, 0), "upgrade this peer"),
        ((PROTOCOL_MAJOR - 1, 9), "upgrade your node"),
    ],
)
async def test_another_major_from_go_is_told_what_to_upgrade(node, place, version, advice):
    async with control_from_go(place, node) as (go, stream):
        await say(stream, 1, Hello(protocol=version, agent="go/2"))
        problem = (await hear(stream)).body
        assert isinstance(problem, Problem)
        assert problem.code == "version_unsupported"
        assert advice in problem.message
        assert await is_ended(stream)
        misfits = await trio.to_thread.run_sync(misfits_of, node)
        assert misfits[go.peer_id].startswith(f"speaks protocol {version[0]}: ")
        assert "upgrade" in misfits[go.peer_id]


async def test_a_go_peer_that_is_no_node_of_shoal_is_shown_as_what_it_is(node, place):
    async with connected(place, node) as go:

        def shown():
            return misfits_of(node).get(go.peer_id)

        why = await eventually(shown, "the Go peer is shown among the peers")
        assert why == "is no node of shoal: it runs p2pd/0.1"
        table = await trio.to_thread.run_sync(lambda: run_shoal("peers", node=node))
        assert f"{go.peer_id} is connected and {why}" in table.stderr


async def test_without_the_foreign_peer_this_suite_fails(monkeypatch, place):
    monkeypatch.setattr(go_peer_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(AssertionError, match="the foreign peer is missing"):
        async with go_peer(place):
            pass
