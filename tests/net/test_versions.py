"""Nodes of this version beside peers of others, made up here, over real libp2p."""

from contextlib import asynccontextmanager

import msgpack
import pytest
import trio
from strategies import a_call

from shoal.crypto.identity import generate
from shoal.node.control import open_control
from shoal.node.errors import NetworkError
from shoal.node.frames import receive_frame, receive_message, send_frame
from shoal.node.network import open_network
from shoal.node.peer_versions import CONTROL_PROTOCOL, PEERS_LIMIT, PeerVersions
from shoal.protocol import vocabulary
from shoal.protocol.challenge_messages import Draw
from shoal.protocol.codec import encode
from shoal.protocol.errors import RemoteProtocolError, VersionError
from shoal.protocol.messages import Adverts, Digest, Done, Hello, Problem, Response
from shoal.protocol.negotiation_messages import Call, Refusal
from shoal.protocol.versions import OWN

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
EMPTY = Digest(held=b"")
NEWER, NEWER_MAJOR, OLDER_MAJOR = (OWN[0], OWN[1] + 1), (OWN[0] + 1, 0), (OWN[0] - 1, 9)
OLD = (OWN[0], 0)


@asynccontextmanager
async def node_and_peer():
    """A node's network and control, and the network of a peer connected to it."""
    async with (
        open_network(generate(), LOOPBACK) as node,
        open_network(generate(), LOOPBACK) as peer,
        open_control(node, "test/1") as control,
    ):
        await node.connect(peer.peer_id, peer.addresses(), 5)

        async def answer(_peer, body):
            return Adverts(adverts=()) if isinstance(body, Digest) else Done()

        control.answer_with(answer)
        yield node, peer, control


async def say(stream, tree):
    data = msgpack.packb(tree)
    await stream.send_all(len(data).to_bytes(4, "big") + data)


async def say_hello(stream, version, **more):
    hello = {"type": "hello", "protocol": list(version), "agent": "future/9"} | more
    await say(stream, {"type": "request", "id": 1, "body": hello})
    with trio.fail_after(30):
        return (await receive_frame(stream, Response)).body


def digest(number, **more):
    body = {"type": "digest", "held": b""} | more
    return {"type": "request", "id": number, "body": body}


NEW_WORD = {"type": "request", "id": 7, "body": {"type": "teleport", "to": [1]}, "x": 1}


def serve_as(network, version, said=None, answers=()):
    """Let a peer answer control streams as a node of ``version`` would."""
    left = list(answers)

    async def serve(stream):
        while True:
            request = msgpack.unpackb(await receive_message(stream))
            if said is not None:
                said.append(request["body"])
            if request["body"]["type"] == "hello":
                body = {"type": "hello", "protocol": list(version), "agent": "other/1"}
            else:
                body = left.pop(0) if left else {"type": "done"}
            await say(stream, {"type": "response", "id": request["id"], "body": body})

    network.handle(CONTROL_PROTOCOL, serve)


# --- a newer minor ----------------------------------------------------------------------


async def test_a_peer_of_a_newer_minor_may_say_more_than_is_known():
    async with node_and_peer() as (node, peer, control):
        stream = await peer.open_stream(node.peer_id, CONTROL_PROTOCOL, 5)
        assert await say_hello(stream, NEWER, teleports=True) == Hello(OWN, "test/1")
        assert control.versions.of(peer.peer_id) == NEWER
        await say(stream, digest(2, new_field={"a": [1]}) | {"priority": 5})
        assert (await receive_frame(stream, Response)).body == Adverts(adverts=())


async def test_a_request_that_is_not_known_is_answered_so_and_the_stream_goes_on():
    async with node_and_peer() as (node, peer, _control):
        stream = await peer.open_stream(node.peer_id, CONTROL_PROTOCOL, 5)
        await say_hello(stream, NEWER)
        await say(stream, NEW_WORD)
        told = await receive_frame(stream, Response)
        assert told.id == 7
        assert told.body.code == "unknown_message"
        assert told.body.message == (
            f"this peer speaks protocol {OWN[0]}.{OWN[1]}, which has no message 'teleport': "
            "upgrade this peer"
        )
        await say(stream, digest(8))
        assert (await receive_frame(stream, Response)).id == 8


@pytest.mark.parametrize("said", [NEW_WORD, digest(2, new_field=1)])
@pytest.mark.parametrize("version", [OWN, OLD])
async def test_a_peer_of_this_minor_or_an_older_one_may_not(said, version):
    async with node_and_peer() as (node, peer, _control):
        stream = await peer.open_stream(node.peer_id, CONTROL_PROTOCOL, 5)
        await say_hello(stream, version)
        await say(stream, said)
        with trio.fail_after(9), pytest.raises(NetworkError):
            await stream.receive_exactly(1)


async def test_a_newer_peers_answers_are_understood_and_an_unknown_one_costs_one_request():
    async with node_and_peer() as (_node, peer, control):
        known = {"type": "adverts", "adverts": [], "new_field": 1}
        serve_as(peer, NEWER, answers=[{"type": "wormhole"}, known])
        with pytest.raises(VersionError) as failed:
            await control.request(peer.peer_id, EMPTY, 5)
        assert failed.value.code == "unknown_message"
        said = await control.request(peer.peer_id, EMPTY, 5)
        assert said == Adverts(adverts=())


# --- an older minor ---------------------------------------------------------------------


async def test_an_older_peer_hears_only_what_it_knows(monkeypatch):
    monkeypatch.setattr(vocabulary, "FIELDS_SINCE", {(Refusal, "detail"): 1})
    async with node_and_peer() as (node, peer, control):
        serve_as(peer, OLD, said := [])
        assert await control.request(peer.peer_id, a_call(), 5) == Done()
        with pytest.raises(VersionError) as failed:
            await control.request(peer.peer_id, Draw(nonce="ab" * 16, places=((0, 0),)), 5)
        assert failed.value.code == "peer_too_old"
        assert [body["type"] for body in said] == ["hello", "call"]

        async def refuse(_peer, _body):
            return Refusal(call="ab" * 16, reason="busy", detail="later")

        control.answer_with(refuse)
        stream = await peer.open_stream(node.peer_id, CONTROL_PROTOCOL, 5)
        await say_hello(stream, OLD)
        await say(stream, digest(2))
        answer = msgpack.unpackb(await receive_message(stream))["body"]
        assert answer == {"type": "refusal", "call": "ab" * 16, "reason": "busy"}


# --- another major ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "to_peer", "to_operator"),
    [
        (NEWER_MAJOR, "upgrade this peer", "upgrade this node"),
        (OLDER_MAJOR, "upgrade your node", "its operator must upgrade it"),
    ],
)
async def test_another_major_is_refused_and_both_sides_know_whom_to_upgrade(
    version, to_peer, to_operator
):
    async with node_and_peer() as (node, peer, control):
        stream = await peer.open_stream(node.peer_id, CONTROL_PROTOCOL, 5)
        told = await say_hello(stream, version, everything="else is new")
        assert told.code == "version_unsupported"
        assert to_peer in told.message
        assert await stream.receive_some(1) == b""
        misfit = f"speaks protocol {version[0]}: {to_operator}"
        assert control.versions.misfits == {peer.peer_id: misfit}
        serve_as(peer, version)
        with pytest.raises(VersionError, match=to_operator):
            await control.request(peer.peer_id, EMPTY, 5)
        control.hang_up(peer.peer_id)
        assert control.versions.misfits == {}


async def test_a_peer_that_refuses_our_major_is_a_misfit_in_its_own_words():
    async with node_and_peer() as (_node, peer, control):

        async def refuse(stream):
            request = msgpack.unpackb(await receive_message(stream))
            why = "this peer speaks protocol 2, you 1: upgrade your node"
            problem = Problem(code="version_unsupported", message=why)
            await send_frame(stream, Response(id=request["id"], body=problem))

        peer.handle(CONTROL_PROTOCOL, refuse)
        with pytest.raises(VersionError, match="upgrade your node"):
            await control.request(peer.peer_id, EMPTY, 5)
        assert "upgrade your node" in control.versions.misfits[peer.peer_id]


@pytest.mark.parametrize(
    ("protocols", "code", "why"),
    [
        (["/shoal/control/2"], "version_unsupported", "speaks protocol 2: upgrade this node"),
        (["/shoal/control/0"], "version_unsupported", "its operator must upgrade it"),
        (["/chat/1"], "protocol_unknown", "is no node of shoal: it runs shoal/"),
        (["/shoal/control/x", "/shoal/control/99999"], "protocol_unknown", "is no node"),
    ],
)
async def test_a_peer_without_our_control_protocol_is_told_apart(protocols, code, why):
    async with node_and_peer() as (_node, peer, control):
        for protocol in protocols:
            peer.handle(protocol, lambda stream: stream.reset())
        with pytest.raises(NetworkError, match=why) as failed:
            await control.request(peer.peer_id, EMPTY, 5)
        assert failed.value.code == code
        assert why in control.versions.misfits[peer.peer_id]


def test_versions_of_peers_that_came_and_went_are_not_kept_for_ever():
    versions = PeerVersions()
    for number in range(PEERS_LIMIT + 5):
        versions.note(f"peer {number}", NEWER_MAJOR)
    assert len(versions.misfits) == len(versions._said) == PEERS_LIMIT
    assert versions.of("peer 0") == OWN


def test_who_has_not_said_its_version_may_be_newer():
    versions = PeerVersions()
    assert versions.is_newer("peer")
    versions.note("peer", OWN)
    assert not versions.is_newer("peer")
    versions.note("peer", NEWER)
    assert versions.is_newer("peer")


async def test_each_stream_goes_by_the_version_that_it_was_greeted_with():
    async with node_and_peer() as (_node, peer, control):
        newer = {"type": "adverts", "adverts": [], "more_to_come": {"a": 1}}
        serve_as(peer, NEWER, answers=[newer, newer])
        assert await control.request(peer.peer_id, EMPTY, 5) == Adverts(adverts=())
        control.versions.note(peer.peer_id, OLD)  # a tool of its owner's greets, say
        assert await control.request(peer.peer_id, EMPTY, 5) == Adverts(adverts=())
        control.versions.forget(peer.peer_id)
        assert isinstance(await control.request(peer.peer_id, EMPTY, 5), Done)


def test_what_is_said_to_an_older_peer_has_no_field_at_its_default():
    assert msgpack.unpackb(encode(Refusal(call="ab" * 16, reason="busy"))).keys() == {
        *("type", "call", "reason")
    }
    assert isinstance(a_call(), Call)
    assert issubclass(VersionError, RemoteProtocolError)
