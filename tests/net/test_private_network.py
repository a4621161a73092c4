"""A private network on real sockets: members meet, and everybody else learns nothing."""

from contextlib import asynccontextmanager

import plain_libp2p
import pytest
import structlog
import trio
from libp2p.peer.id import ID

from shoal.crypto.identity import generate
from shoal.node import admission, membership
from shoal.node.blob_transfer import BLOB_PROTOCOL
from shoal.node.control import CONTROL_PROTOCOL
from shoal.node.errors import NetworkError, OtherNetworkError
from shoal.node.network import open_network
from shoal.node.private_network import MULTISTREAM_HEADER, PrivateNetwork, Protection
from shoal.node.swarm_key import SwarmKey, make_key

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
KEY = make_key("lab")
UPGRADE_LIMIT_S = 0.3
LIMIT_S = 10.0
FIRST_WORD_S = 5.0
"""On a busy machine; whoever speaks at all then says all of it in a row."""
NONCE_SIZE = 24


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(admission, "HANDSHAKE_LIMIT_S", UPGRADE_LIMIT_S)


@pytest.fixture
def patient(monkeypatch, _soon):
    """Members have the time that they need on a busy machine."""
    monkeypatch.setattr(admission, "HANDSHAKE_LIMIT_S", LIMIT_S)


async def echo(stream):
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


@asynccontextmanager
async def open_node(key=KEY, listen=LOOPBACK):
    """A node that answers on shoal's protocols and gossips; cuts who is slow, soon."""
    private = PrivateNetwork(key) if key else None
    async with open_network(generate(), [listen], private) as node:
        for protocol in (CONTROL_PROTOCOL, BLOB_PROTOCOL):
            node.handle(protocol, echo)
        note, node.heard = trio.open_memory_channel(100)
        await node.subscribe(membership.ADVERT_TOPIC, lambda *_: True, note.send_nowait)
        yield node


@asynccontextmanager
async def open_listener():
    """A TCP server that notes what it is sent, says what it is told to, and hangs up."""
    done, received = trio.open_memory_channel(10)
    to_say = [b""]

    async def serve(stream):
        async with stream:
            if to_say[0]:
                await stream.send_all(to_say[0])
            await done.send(await all_that_comes(stream, 0.3))

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        yield f"/ip4/127.0.0.1/tcp/{port}", received, to_say
        nursery.cancel_scope.cancel()


async def all_that_comes(stream, silence_s):
    """What the other side sends until it ends the connection or says no more."""
    received = b""
    with trio.move_on_after(FIRST_WORD_S) as limit:
        try:
            while data := await stream.receive_some():
                received += data
                limit.deadline = trio.current_time() + silence_s
        except trio.BrokenResourceError:
            pass
    return received


async def told_to(node, said, patience_s=LIMIT_S):
    """What a bare TCP client is sent that says ``said``, and whether it was hung up on."""
    port = int(node.addresses()[0].split("/")[4])
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        if said:
            await stream.send_all(said)
        received = b""
        with trio.move_on_after(patience_s) as limit:
            try:
                while data := await stream.receive_some():
                    received += data
            except trio.BrokenResourceError:
                pass
        return received, not limit.cancelled_caught


# --- members ----------------------------------------------------------------------


async def test_members_connect_both_ways_and_ping_stream_and_gossip(patient):
    async with open_node() as a, open_node() as b:
        await b.connect(a.peer_id, a.addresses(), 5)
        assert await b.ping(a.peer_id, 5) < 5
        stream = await b.open_stream(a.peer_id, CONTROL_PROTOCOL, 5)
        sent = bytes(range(256)) * 2048  # many reads and frames
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, sent)
            assert await stream.receive_exactly(len(sent)) == sent
        await b._gossip.router.wait_for_mesh(ID.from_base58(a.peer_id), membership.ADVERT_TOPIC)
        await b.publish(membership.ADVERT_TOPIC, b"advert")
        with trio.fail_after(30):
            assert await a.heard.receive() == b"advert"
        assert await a.ping(b.peer_id, 5) < 5


async def test_a_name_makes_no_member_and_none_is_needed(patient):
    namesake, nameless = make_key(KEY.name), SwarmKey("x", KEY.secret)
    async with open_node() as a, open_node(namesake) as b, open_node(nameless) as c:
        await c.connect(a.peer_id, a.addresses(), 5)
        with pytest.raises(OtherNetworkError):
            await b.connect(a.peer_id, a.addresses(), 5)
        await a.next_change(frozenset())
        assert a.connected() == {c.peer_id}


# --- a plain libp2p host ----------------------------------------------------------


async def gossiping(node):
    """Gossip this node's advert over and over."""
    while True:
        await node.publish(membership.ADVERT_TOPIC, f"advert of {node.peer_id}".encode())
        await trio.sleep(0.05)


async def learned_by_a_plain_host(node, patience_s):
    async with plain_libp2p.plain_host() as host, trio.open_nursery() as nursery:
        nursery.start_soon(gossiping, node)
        learned = await plain_libp2p.learn(host, node.addresses()[0], patience_s)
        nursery.cancel_scope.cancel()
    return learned


async def test_a_plain_libp2p_host_learns_everything_of_a_public_node():
    async with open_node(key=None) as node:
        learned = await learned_by_a_plain_host(node, patience_s=10)
    assert learned == plain_libp2p.EVERYTHING


async def test_a_plain_libp2p_host_learns_nothing_of_a_private_node():
    async with open_node() as node, open_node() as member:
        await member.connect(node.peer_id, node.addresses(), 5)
        learned = await learned_by_a_plain_host(node, patience_s=0.5)
        assert node.connected() == {member.peer_id}
    assert learned == set()


async def test_a_plain_libp2p_host_that_is_dialled_learns_not_even_who_dialled():
    async with open_node() as node, plain_libp2p.plain_host() as host:
        address, _, peer = str(host.get_addrs()[0]).partition("/p2p/")
        with pytest.raises(OtherNetworkError, match="in the clear") as caught:
            await node.connect(peer, [address], 5)
        assert caught.value.code == "other_network"
        assert "another private network, or to none" in caught.value.hint
        assert host.get_connected_peers() == []
        assert [str(one) for one in host.get_peerstore().peer_ids()] == [str(host.get_id())]


# --- other shoal networks ---------------------------------------------------------


@pytest.mark.parametrize("other", [make_key("other"), None], ids=["another", "public"])
async def test_networks_do_not_mix_whoever_dials(other):
    async with open_node() as a, open_node(other) as b:
        started = trio.current_time()
        with pytest.raises(OtherNetworkError) as caught:
            await a.connect(b.peer_id, b.addresses(), 5)
        assert "another private network, or to none" in caught.value.hint
        with pytest.raises(NetworkError, match="cannot be reached"):
            await b.connect(a.peer_id, a.addresses(), 5)
        assert trio.current_time() - started < 5
        assert (a.connected(), b.connected()) == (frozenset(), frozenset())
        for node in (a, b):
            assert node.heard.statistics().current_buffer_used == 0


async def test_one_member_among_the_addresses_is_found(patient):
    async with open_node() as a, open_node(make_key()) as other, open_node() as b:
        await b.connect(a.peer_id, [*other.addresses(), *a.addresses()], 5)
        assert b.connected() == {a.peer_id}


# --- bytes ------------------------------------------------------------------------

STRANGERS = {
    "says nothing": b"",
    "says too little": b"\x13/multi",
    "speaks libp2p in the clear": MULTISTREAM_HEADER + b"\x07/noise\n",
    "has another secret": Protection(bytes(32)).protect(MULTISTREAM_HEADER),
    "speaks HTTP": b"GET / HTTP/1.1\r\nHost: shoal.example\r\nAccept: */*\r\n\r\n",
    "speaks TLS": bytes.fromhex("16030100c8010000c40303") + bytes(200),
    "is random": bytes(range(7, 100)),
}


@pytest.mark.parametrize("said", STRANGERS.values(), ids=STRANGERS)
async def test_a_stranger_is_sent_a_nonce_and_nothing_more_and_is_hung_up_on(said, monkeypatch):
    async with open_node() as node:
        received, hung_up = await told_to(node, said)
        assert (len(received), hung_up) == (NONCE_SIZE, True)
        assert node.connected() == frozenset()
        monkeypatch.setattr(admission, "HANDSHAKE_LIMIT_S", LIMIT_S)
        async with open_node() as member:  # it goes on with those who have the secret
            await member.connect(node.peer_id, node.addresses(), LIMIT_S)


async def test_what_strangers_are_sent_is_random():
    async with open_node() as node:
        nonces = [(await told_to(node, MULTISTREAM_HEADER))[0] for _ in range(100)]
    assert len(set(nonces)) == 100
    for position in range(NONCE_SIZE):  # 100 draws of 256 give some 83 different ones
        assert len({nonce[position] for nonce in nonces}) > 50


async def test_who_repeats_a_members_first_bytes_gets_further_random_bytes_and_no_connection():
    """The one thing that can be done without the secret: to say again what was overheard."""
    async with open_listener() as (address, received, _), open_node() as member:
        with pytest.raises(NetworkError):
            await member.connect(generate().peer_id, [address], LIMIT_S)
        overheard = await received.receive()
    async with open_node() as node:
        answers = [await told_to(node, overheard) for _ in range(2)]
        assert node.connected() == frozenset()
    for answer, hung_up in answers:
        assert (answer[:NONCE_SIZE] != overheard[:NONCE_SIZE], hung_up) == (True, True)
        assert b"multistream" not in answer
    (one, _), (other, _) = answers
    assert len(one) == len(other) == NONCE_SIZE + len(MULTISTREAM_HEADER)
    assert one[NONCE_SIZE:] != other[NONCE_SIZE:]


@pytest.mark.parametrize(
    ("answer", "why"),
    [(b"", "without a word"), (MULTISTREAM_HEADER, "in the clear"), (bytes(60), "secret")],
    ids=["silence", "libp2p in the clear", "another secret"],
)
async def test_a_stranger_that_is_dialled_sees_random_bytes_only(answer, why):
    async with open_listener() as (address, received, to_say), open_node() as node:
        to_say[0] = answer
        for _ in range(2):
            with pytest.raises(OtherNetworkError, match=why):
                await node.connect(generate().peer_id, [address], LIMIT_S)
        with trio.fail_after(LIMIT_S):
            one, other = [await received.receive() for _ in range(2)]
    for data in (one, other):
        assert len(data) == NONCE_SIZE + len(MULTISTREAM_HEADER)
        assert b"multistream" not in data
    assert one[:NONCE_SIZE] != other[:NONCE_SIZE]
    assert one[NONCE_SIZE:] != other[NONCE_SIZE:]


async def test_our_own_log_says_once_for_each_address_who_was_turned_away():
    async with open_node() as node, open_node(make_key()) as other:
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(NetworkError):
                    await other.connect(node.peer_id, node.addresses(), 5)
            await told_to(node, b"")
    told = [one for one in logs if one["event"].startswith("a stranger was turned away")]
    assert [(one["remote"], one["network"], one["why"]) for one in told] == [
        ("/ip4/127.0.0.1", "lab", "it has another secret, or none")
    ]
    assert KEY.secret.hex() not in str(logs)


async def test_a_stranger_that_says_nothing_is_logged_as_well():
    async with open_node() as node:
        with structlog.testing.capture_logs() as logs:
            await told_to(node, b"")
    (why,) = [one["why"] for one in logs if one["event"].startswith("a stranger")]
    assert why == "it did not show in time that it has the network's secret"
