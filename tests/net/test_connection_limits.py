"""What one peer, or one place, can make a network hold, over real sockets on loopback."""

import errno
from contextlib import asynccontextmanager, suppress

import pytest
import structlog
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.utils.varint import encode_varint_prefixed

from shoal.crypto.errors import VerificationError
from shoal.crypto.identity import generate
from shoal.node import admission, host
from shoal.node.admission import Breach
from shoal.node.errors import NetworkError
from shoal.node.house import FETCHES_AT_ONCE
from shoal.node.libp2p_compat import connections
from shoal.node.libp2p_compat.gossip import GOSSIP_PROTOCOL, _Seen, of_concern
from shoal.node.libp2p_compat.streams import TRANSPORT_ERRORS
from shoal.node.network import open_network
from shoal.protocol import pace

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
ECHO = "/test/echo/1"


async def echo(stream):
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


@asynccontextmanager
async def linked(**gates):
    """Two networks, the second connected to the first, which echoes and may have gates."""
    async with (
        open_network(generate(), [LOOPBACK], **gates) as a,
        open_network(generate(), []) as b,
    ):
        a.handle(ECHO, echo)
        await b.connect(a.peer_id, a.addresses(), 5)
        await a.next_change(frozenset())
        yield a, b


async def eventually(condition, limit_s=60.0):
    with trio.fail_after(limit_s):
        while not condition():  # noqa: ASYNC110  # nothing tells of it
            await trio.sleep(0.01)


async def raw_connection(network):
    _, _, name, _, port, *_ = network.addresses()[0].split("/")
    return await trio.open_tcp_stream(name, int(port))


async def is_hung_up_on(stream, limit_s=5.0):
    with trio.move_on_after(limit_s):
        with suppress(trio.BrokenResourceError):
            while await stream.receive_some():
                pass
        return True
    return False


# --- handshakes -------------------------------------------------------------------


async def test_a_handshake_of_one_byte_at_a_time_is_cut_by_one_deadline(monkeypatch):
    monkeypatch.setattr(admission, "HANDSHAKE_LIMIT_S", 0.5)
    async with open_network(generate(), [LOOPBACK]) as a, await raw_connection(a) as slow:
        started_s = trio.current_time()
        with suppress(trio.BrokenResourceError):
            for byte in b"\x13/multistream/1.0.0\n" * 10:
                await slow.send_all(bytes([byte]))
                await trio.sleep(0.05)
        assert 0.4 < trio.current_time() - started_s < 5
        assert a.statistics().half_open == 0
        assert a.statistics().refused == {"handshake_failed": 1}


async def test_garbage_and_resets_in_mid_handshake_leave_nothing_behind():
    async with linked() as (a, b):
        await b.ping(a.peer_id, 5)
        await trio.testing.wait_all_tasks_blocked(0.2)
        before = a.statistics()
        for said in (b"\x00" * 100, b"GET / HTTP/1.1\r\n\r\n", b"\x13/multistream/1.0.0\n"):
            for _ in range(10):
                with suppress(trio.BrokenResourceError):
                    async with await raw_connection(a) as stream:
                        await stream.send_all(said)
        await eventually(lambda: a.statistics().half_open == 0)
        await eventually(lambda: a.statistics().tasks <= before.tasks)
        assert a.statistics().connections_in == 1
        assert sum(a.statistics().refused.values()) == 30
        assert await b.ping(a.peer_id, 5) < 5


async def test_accepting_goes_on_after_the_descriptors_ran_out(monkeypatch):
    monkeypatch.setattr(host, "ACCEPT_PAUSE_S", 0.01)
    failures = [errno.EMFILE, errno.ENOBUFS, errno.ECONNABORTED]
    real = trio.SocketListener.accept

    async def accept(self):
        if failures:
            raise OSError(failures.pop(), "planted")
        return await real(self)

    monkeypatch.setattr(trio.SocketListener, "accept", accept)
    with structlog.testing.capture_logs() as logs:
        async with linked() as (a, b):
            assert await b.ping(a.peer_id, 5) < 5
            assert a.statistics().restarts == 0
    said = [one for one in logs if one["event"] == "connections cannot be accepted for now"]
    assert (failures, len(said)) == ([], 1)


# --- connections ------------------------------------------------------------------


async def test_a_peer_that_is_cut_gets_no_connection_in_either_direction():
    cut = generate()
    said = {cut.peer_id: "it floods"}
    async with (
        open_network(generate(), [LOOPBACK], refused=said.get) as a,
        open_network(cut, [LOOPBACK]) as b,
    ):
        with suppress(NetworkError):
            await b.connect(a.peer_id, a.addresses(), 5)
        await eventually(lambda: not b.connected())
        with pytest.raises(NetworkError, match="it floods") as caught:
            await a.connect(b.peer_id, b.addresses(), 5)
        assert caught.value.code == "peer_cut"
        assert f"shoal peers --forgive {b.peer_id}" in caught.value.hint
        assert "it floods" in a.dialing.book.of(b.peer_id).failure  # for `shoal status`
        assert a.connected() == frozenset()
        assert a.statistics().refused == {"peer_is_cut": 1}
        said.clear()
        await b.connect(a.peer_id, a.addresses(), 5)


async def test_a_peer_has_one_connection_in_each_direction_and_the_newer_one_stays():
    key = generate()
    async with (
        open_network(generate(), [LOOPBACK]) as a,
        open_network(key, []) as before,
        open_network(key, [LOOPBACK]) as after,
    ):
        await before.connect(a.peer_id, a.addresses(), 5)
        await a.next_change(frozenset())
        await after.connect(a.peer_id, a.addresses(), 5)
        await eventually(lambda: not before.connected())
        port = int(after.addresses()[0].split("/")[4])
        await a._life.dial(key.peer_id, "127.0.0.1", port, trio.lowlevel.checkpoint)
        await eventually(lambda: a.statistics().connections_out == 1)
        assert a.statistics().connections_in == 1
        assert await after.ping(a.peer_id, 5) < 5


async def test_two_tasks_that_dial_one_peer_make_one_connection():
    async with open_network(generate(), [LOOPBACK]) as a, open_network(generate(), []) as b:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(b.connect, a.peer_id, a.addresses(), 5)
        assert b.statistics().connections_out == 1
        assert a.statistics().evicted == 0


async def test_who_waits_for_the_dial_of_another_task_leaves_it_alone_when_its_own_time_is_up():
    async with open_network(generate(), [LOOPBACK]) as a, open_network(generate(), []) as b:
        let, dial, dials = trio.Event(), b.dialing._dial, []

        async def slow(*args):
            dials.append(args)
            await let.wait()
            await dial(*args)

        b.dialing._dial = slow
        async with trio.open_nursery() as nursery:
            nursery.start_soon(b.connect, a.peer_id, a.addresses(), 5)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(NetworkError) as caught:
                await b.connect(a.peer_id, a.addresses(), 0.01)
            assert caught.value.code == "timed_out"  # not unreachable: that buries a node
            nursery.start_soon(b.connect, a.peer_id, a.addresses(), 5)
            await trio.testing.wait_all_tasks_blocked()
            assert len(dials) == 1
            let.set()
        assert b.connected() == {a.peer_id}


async def test_a_peer_that_is_cut_while_it_is_dialled_is_not_called_unreachable():
    said = {}
    async with (
        open_network(generate(), [LOOPBACK]) as a,
        open_network(generate(), [], refused=said.get) as b,
    ):
        dial = b.dialing._dial

        async def cutting(*args):
            said[a.peer_id] = "it floods"
            await dial(*args)

        b.dialing._dial = cutting
        with pytest.raises(NetworkError, match="it floods") as caught:
            await b.connect(a.peer_id, a.addresses(), 5)
        assert caught.value.code == "peer_cut"


async def test_a_full_node_takes_a_newcomer_and_ends_an_idle_connection(monkeypatch):
    monkeypatch.setattr(admission, "CONNECTIONS_LIMIT", 16)  # of them 4 for our own dials
    async with open_network(generate(), [LOOPBACK]) as a, trio.open_nursery() as nursery:
        a.handle(ECHO, echo)
        idle = []

        async def stay(busy, task_status):
            async with open_network(generate(), []) as b:
                await b.connect(a.peer_id, a.addresses(), 10)
                if busy:
                    stream = await b.open_stream(a.peer_id, ECHO, 5)
                    await stream.send_all(b"x")
                    await stream.receive_exactly(1)
                else:
                    idle.append(b)
                task_status.started(b)
                await trio.sleep_forever()

        in_use = [await nursery.start(stay, True) for _ in range(6)]
        for _ in range(8):
            await nursery.start(stay, False)
        await eventually(lambda: a.statistics().connections_in <= 12)
        assert a.statistics().evicted == 2
        assert all(a.peer_id in one.connected() for one in in_use)
        await eventually(lambda: not idle[0].connected() and not idle[1].connected())
        nursery.cancel_scope.cancel()


async def test_a_peer_that_comes_and_goes_leaves_nothing_in_any_table():
    async with open_network(generate(), [LOOPBACK]) as a:
        await a.subscribe("t", lambda *_: True, lambda _: None)

        def size():
            router, gossip = a._gossip.router, a._gossip
            tables = [
                *(a._host.get_peerstore().peer_data_map, a._swarm._round_robin_index),
                *(a._swarm.tag_store._tags, gossip.peers, gossip.peer_queues, gossip._rates),
                *(gossip._peer_subscription_count, gossip._subscription_events),
                *(gossip._peer_added_events, gossip._pending_announce_retries),
                *(
                    router.peer_protocol,
                    router.graft_flood_tracking,
                    router.dont_send_message_ids,
                ),
                *(router.ihave_message_limits, router.iwant_request_limits),
                *(router._pending_messages, router._pending_control, router._mesh_peer_events),
                *router.back_off.values(),
                *router.mesh.values(),
                router.scorer.per_peer if hasattr(router.scorer, "per_peer") else (),
            ]
            return sum(map(len, tables))

        before = size()
        for _ in range(3):
            async with open_network(generate(), []) as b:
                await b.subscribe("t", lambda *_: True, lambda _: None)
                await b.connect(a.peer_id, a.addresses(), 5)
                await b._gossip.router.wait_for_mesh(ID.from_base58(a.peer_id), "t")
                stream = await b.open_stream(a.peer_id, GOSSIP_PROTOCOL, 5)
                prune = rpc_pb2.ControlMessage(prune=[rpc_pb2.ControlPrune(topicID="t")])
                rpc = rpc_pb2.RPC(control=prune)
                await stream.send_all(encode_varint_prefixed(rpc.SerializeToString()))
                await b.ping(a.peer_id, 5)
            await eventually(lambda: not a.connected())
        await eventually(lambda: size() <= before)


async def test_a_peer_is_not_asked_who_it_is():
    asked = []
    async with linked() as (a, b):

        async def note(stream):
            asked.append(stream.remote)

        a.handle("/ipfs/id/1.0.0", note)
        await b.ping(a.peer_id, 5)
        await trio.testing.wait_all_tasks_blocked(0.2)
        await b.disconnect(a.peer_id)
        await b.connect(a.peer_id, a.addresses(), 5)
        await b.ping(a.peer_id, 5)
        await trio.testing.wait_all_tasks_blocked(0.2)
    assert asked == []


# --- one connection ---------------------------------------------------------------


async def test_streams_of_one_protocol_are_bounded_and_others_are_served(monkeypatch):
    monkeypatch.setattr(admission, "PROTOCOL_STREAMS_LIMIT", 4)
    async with linked() as (a, b):
        a.handle("/test/other/1", echo)
        streams = [await b.open_stream(a.peer_id, ECHO, 5) for _ in range(6)]
        served = 0
        for stream in streams:
            with suppress(NetworkError):
                await stream.send_all(b"x")
                served += len(await stream.receive_exactly(1))
        assert served == 4
        other = await b.open_stream(a.peer_id, "/test/other/1", 5)
        await other.send_all(b"x")
        assert await other.receive_exactly(1) == b"x"


async def test_a_node_opens_streams_no_faster_than_its_peer_takes_them(monkeypatch):
    """Many small blobs over a fast link must not look like a flood."""
    for name, limit in (("STREAMS", 100.0), ("OWN_STREAMS", 80.0)):
        monkeypatch.setattr(admission, f"{name}_PER_S", limit)
        monkeypatch.setattr(admission, f"{name}_BURST", limit / 10)
    assert admission.OWN_STREAMS_BURST < admission.STREAMS_BURST
    async with linked() as (a, b):

        async def use_one_after_another():
            for _ in range(10):
                async with await b.open_stream(a.peer_id, ECHO, 5) as stream:
                    await stream.send_all(b"x")
                    assert await stream.receive_exactly(1) == b"x"

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(use_one_after_another)
        assert a.statistics().breaches == {}


def test_what_a_node_does_at_most_is_within_what_its_peers_take():
    assert admission.OWN_STREAMS_PER_S < admission.STREAMS_PER_S
    assert admission.OWN_STREAMS_BURST < admission.STREAMS_BURST
    assert FETCHES_AT_ONCE < admission.PROTOCOL_STREAMS_LIMIT < admission.INBOUND_STREAMS_LIMIT
    relayed_at_once, relayed_per_s = pace.RELAYS_BURST, pace.RELAYS_PER_S
    assert 2 * relayed_at_once < admission.GOSSIP_BURST
    assert 10 * relayed_per_s < admission.GOSSIP_PER_S
    largest = relayed_at_once * admission.GOSSIP_MESSAGE_LIMIT_BYTES
    assert 2 * largest < admission.GOSSIP_BURST_BYTES


async def test_a_thousand_streams_of_one_peer_cost_a_bounded_number_of_tasks():
    told = []
    async with linked(broke=lambda *what: told.append(what)) as (a, b):
        before = a.statistics().tasks
        most = 0
        with suppress(*TRANSPORT_ERRORS):  # as soon as it is cut
            connection = b._live_connection(a.peer_id).muxed_conn
            for number in range(1001, 3001, 2):
                await connection._say(number, 1)
                most = max(most, a.statistics().tasks)
                if not b.connected():
                    break
        await eventually(lambda: a.connected() == frozenset())
        assert most - before < 4 * admission.INBOUND_STREAMS_LIMIT
        assert told == [(b.peer_id, Breach.STREAM_FLOOD)]
        assert a.statistics().breaches == {"stream_flood": 1}
        await eventually(lambda: a.statistics().tasks < before)


async def test_a_peer_that_takes_for_ever_to_finish_a_frame_is_cut(monkeypatch):
    monkeypatch.setattr(admission, "UNFINISHED_LIMIT_S", 0.3)
    monkeypatch.setattr(host, "SWEEP_INTERVAL_S", 0.05)
    told = []
    async with linked(broke=lambda *what: told.append(what)) as (a, b):
        await b.ping(a.peer_id, 5)
        socket = b._live_connection(a.peer_id).muxed_conn.tcp.stream
        await socket.send_all(b"\x01")  # of a Noise message's length
        await eventually(lambda: not a.connected())
        assert told == [(b.peer_id, Breach.DRIBBLING)]


async def test_an_idle_peer_is_not_taken_for_a_slow_one(monkeypatch):
    monkeypatch.setattr(admission, "UNFINISHED_LIMIT_S", 0.1)
    monkeypatch.setattr(host, "SWEEP_INTERVAL_S", 0.02)
    async with linked() as (a, b):
        await b.ping(a.peer_id, 5)
        await trio.sleep(0.5)
        assert a.connected() == {b.peer_id}


async def test_unread_bytes_of_all_peers_are_bounded_by_cutting_who_has_most(monkeypatch):
    monkeypatch.setattr(admission, "NODE_UNREAD_LIMIT_BYTES", 300_000)
    monkeypatch.setattr(host, "SWEEP_INTERVAL_S", 0.05)
    told = []

    async def read_nothing(_stream):
        await trio.sleep_forever()

    async with linked(broke=lambda *what: told.append(what)) as (a, b):
        a.handle("/test/deaf/1", read_nothing)
        for _ in range(2):
            stream = await b.open_stream(a.peer_id, "/test/deaf/1", 5)
            with suppress(NetworkError):
                await stream.send_all(bytes(200_000))
        await eventually(lambda: not a.connected())
        assert told == [(b.peer_id, Breach.HOARDING)]


# --- gossip -----------------------------------------------------------------------


async def say_gossip(network, peer, *envelopes):
    stream = await network.open_stream(peer, GOSSIP_PROTOCOL, 5)
    with suppress(NetworkError):  # what is too large may be cut while it is still sent
        for envelope in envelopes:
            data = envelope if isinstance(envelope, bytes) else envelope.SerializeToString()
            await stream.send_all(encode_varint_prefixed(data))
    return stream


def message(**fields):
    told = {"from_id": b"x", "seqno": b"1", "topicIDs": ["t"], "data": b"d"}
    return rpc_pb2.RPC(publish=[rpc_pb2.Message(**told | fields)])


@pytest.mark.parametrize(
    ("envelope", "breach"),
    [
        (message(), Breach.GOSSIP_INVALID),
        (message(signature=b"s", key=b"\xff"), Breach.GOSSIP_INVALID),
        (message(data=bytes(5000)), Breach.GOSSIP_OVERSIZED),
        (message(topicIDs=["t", "t"]), Breach.GOSSIP_MALFORMED),
        (b"\xff\xff", Breach.GOSSIP_MALFORMED),
        (bytes(admission.GOSSIP_RPC_LIMIT_BYTES + 1), Breach.GOSSIP_OVERSIZED),
    ],
    ids=["unsigned", "a bad key", "too large", "of two topics", "noise", "a huge envelope"],
)
async def test_gossip_that_no_honest_peer_sends_is_reported_and_not_delivered(envelope, breach):
    told, received = [], []
    async with linked(broke=lambda *what: told.append(what)) as (a, b):
        await a.subscribe("t", lambda *_: True, received.append)
        await say_gossip(b, a.peer_id, envelope)
        await eventually(lambda: told)
        assert told == [(b.peer_id, breach)]
        assert received == []
        assert a.statistics().breaches == {breach.name.lower(): 1}
        assert a.connected() == {b.peer_id}  # what follows of it is others' to say


async def test_a_check_that_raises_holds_the_message_against_the_peer_and_false_does_not():
    told = []

    def check(_peer, data):
        if data == b"forged":
            raise VerificationError("forged")
        return data != b"old"

    async with linked(broke=lambda *what: told.append(what)) as (a, b):
        await a.subscribe("t", check, lambda _: None)
        await b.subscribe("t", lambda *_: True, lambda _: None)
        await b._gossip.router.wait_for_mesh(ID.from_base58(a.peer_id), "t")
        for data in (b"old", b"forged", b"new"):
            await b.publish("t", data)
        await eventually(lambda: a.statistics().gossip_in == 1)
        assert told == [(b.peer_id, Breach.GOSSIP_INVALID)]
        assert a.statistics().gossip_dropped == 2


async def test_envelopes_above_the_rate_are_dropped_unread_and_reported(monkeypatch):
    monkeypatch.setattr(admission, "GOSSIP_RPCS_BURST", 10.0)
    told = []
    async with linked(broke=lambda *what: told.append(what)) as (a, b):
        await say_gossip(b, a.peer_id, *[rpc_pb2.RPC()] * 50)
        await eventually(lambda: told)
        assert set(told) == {(b.peer_id, Breach.GOSSIP_FLOOD)}
        assert await b.ping(a.peer_id, 5) < 5


async def test_topics_that_a_peer_invents_are_not_kept():
    async with linked() as (a, b):
        await a.subscribe("t", lambda *_: True, lambda _: None)
        names = [f"invented {n}" for n in range(1000)]
        control = rpc_pb2.ControlMessage(
            ihave=[rpc_pb2.ControlIHave(topicID=n, messageIDs=[b"1"]) for n in names],
            graft=[rpc_pb2.ControlGraft(topicID=n) for n in names],
            prune=[rpc_pb2.ControlPrune(topicID=n) for n in names],
        )
        subscriptions = [rpc_pb2.RPC.SubOpts(subscribe=True, topicid=n) for n in names]
        await say_gossip(
            b, a.peer_id, rpc_pb2.RPC(control=control, subscriptions=subscriptions)
        )
        await b.ping(a.peer_id, 5)
        await trio.testing.wait_all_tasks_blocked(0.1)
        gossip, router = a._gossip, a._gossip.router
        peer = ID.from_base58(b.peer_id)
        kept = [gossip.peer_topics, router.back_off, router.mesh]
        kept += [router.graft_flood_tracking[peer], router.ihave_message_limits[peer]]
        assert set().union(*kept) <= {"t"}


async def test_a_gossip_stream_that_broke_costs_a_connected_peer_nothing_else():
    """As when a peer has come again before the loss of its old connection is noticed."""
    async with linked() as (a, b):
        for one in (a, b):
            await one.subscribe("t", lambda *_: True, lambda _: None)
        peer, gossip = ID.from_base58(a.peer_id), b._gossip
        await gossip.router.wait_for_mesh(peer, "t")
        broken = gossip.peers[peer]
        gossip._handle_dead_peer(peer)
        assert peer in gossip.peer_topics["t"]  # it says so once on each of its streams
        await eventually(lambda: gossip.peers.get(peer) not in {None, broken})


async def test_no_record_of_the_sender_goes_with_what_is_gossiped(monkeypatch):
    """It is as long as an advert, is signed, and would be verified with each envelope."""
    came = []
    real = rpc_pb2.RPC.ParseFromString
    async with linked() as (a, b):

        async def take(_self, _peer, data):
            rpc = rpc_pb2.RPC()
            real(rpc, data)
            came.append(rpc)

        monkeypatch.setattr(type(a._gossip), "_take_envelope", take)
        await b.subscribe("t", lambda *_: True, lambda _: None)
        await b._gossip.wait_for_peer(ID.from_base58(a.peer_id))
        await b.subscribe("u", lambda *_: True, lambda _: None)
        await eventually(lambda: "u" in str(came))
        assert not any(rpc.HasField("senderRecord") for rpc in came)


def test_ids_of_messages_are_remembered_for_a_time_and_up_to_a_number(monkeypatch):
    monkeypatch.setattr(admission, "GOSSIP_SEEN_LIMIT", 3)
    seen = _Seen()
    for message_id in (b"1", b"2", b"3", b"4"):
        seen.add(message_id)
    assert [seen.has(one) for one in (b"1", b"2", b"4")] == [False, True, True]
    monkeypatch.setattr(admission, "GOSSIP_SEEN_S", -1.0)
    seen.add(b"5")
    assert not seen.has(b"5")


def test_a_control_message_is_cut_down_to_what_concerns_this_node():
    asked = rpc_pb2.ControlMessage(
        ihave=[rpc_pb2.ControlIHave(topicID="t", messageIDs=[b"m"] * 5000)],
        iwant=[rpc_pb2.ControlIWant(messageIDs=[b"m"] * 5000)] * 500,
        prune=[
            rpc_pb2.ControlPrune(topicID="t", backoff=1 << 40, peers=[rpc_pb2.PeerInfo()] * 9)
        ],
        idontwant=[rpc_pb2.ControlIDontWant(messageIDs=[b"m"] * 5000)],
    )
    kept = of_concern(asked, ["t"])
    assert len(kept.ihave[0].messageIDs) == admission.GOSSIP_IDS_LIMIT
    assert sum(len(one.messageIDs) for one in kept.iwant) == admission.GOSSIP_IDS_LIMIT
    assert (kept.prune[0].backoff, len(kept.prune[0].peers)) == (3600, 0)
    assert not kept.idontwant


# --- a host that fails ------------------------------------------------------------


def break_host(network):
    """Have a part of libp2p end as none should."""
    network._swarm.manager.cancel()


async def test_a_host_that_fails_is_started_again_and_nobody_has_to_ask_twice():
    received = []
    async with linked() as (a, b):
        for one in (a, b):
            await one.subscribe("t", lambda *_: True, received.append)
        stream = await b.open_stream(a.peer_id, ECHO, 5)
        addresses = a.addresses()
        break_host(a)
        with pytest.raises(NetworkError):  # whoever waits is told
            await stream.receive_exactly(1)
        await eventually(lambda: a.statistics().restarts == 1 and not b.connected())
        await b.connect(a.peer_id, addresses, 5)
        assert a.addresses() == addresses
        again = await b.open_stream(a.peer_id, ECHO, 5)
        await again.send_all(b"x")
        assert await again.receive_exactly(1) == b"x"
        await b._gossip.router.wait_for_mesh(ID.from_base58(a.peer_id), "t")
        await b.publish("t", b"news")
        await eventually(lambda: received == [b"news"])


async def test_who_waits_on_the_failing_side_is_told_and_dials_wait_for_the_next_life():
    async with linked() as (a, b):
        stream = await b.open_stream(a.peer_id, ECHO, 5)
        async with trio.open_nursery() as nursery:
            ends = []

            async def wait():
                try:
                    await stream.receive_exactly(1)
                except NetworkError as error:
                    ends.append(error.code)

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            break_host(b)
            await b.next_change(frozenset([a.peer_id]))
            await b.connect(a.peer_id, a.addresses(), 5)
        assert ends == ["connection_lost"]
        assert b.statistics().restarts == 1
        assert await b.ping(a.peer_id, 5) < 5


async def test_a_dial_that_is_under_way_when_the_host_fails_ends_at_once_and_leaves_nothing(
    monkeypatch,
):
    async with open_network(generate(), [LOOPBACK]) as a, open_network(generate(), []) as b:
        life, secure = b._life, connections.secure

        async def failing(*args):
            muxed = await secure(*args)
            if args[0] is life.libp2p:
                break_host(b)
                await eventually(lambda: b.statistics().restarts == 1)
            return muxed

        monkeypatch.setattr(connections, "secure", failing)
        failed = pytest.raises(NetworkError, match="host failed and is started again")
        with failed, trio.fail_after(4):  # and not by its own limit of time
            await b.connect(a.peer_id, a.addresses(), 5)
        assert not list(life.live())
        await b.connect(a.peer_id, a.addresses(), 5)
        assert await b.ping(a.peer_id, 5) < 5


async def test_a_lost_listening_socket_is_bound_again_at_its_port():
    async with open_network(generate(), [LOOPBACK]) as a, open_network(generate(), []) as b:
        addresses = a.addresses()
        await a._supervised._listeners[0].aclose()
        await eventually(lambda: a.statistics().restarts == 1 and a._supervised.up.is_set())
        await b.connect(a.peer_id, addresses, 5)


async def test_a_host_that_keeps_failing_is_given_up_by_name(monkeypatch):
    monkeypatch.setattr(admission, "RESTART_LIMIT_S", 0.01)
    monkeypatch.setattr(admission, "RESTART_FIRST_S", 0.01)

    async def fail(_self):
        raise ZeroDivisionError

    with pytest.raises(NetworkError, match="ZeroDivisionError") as caught:  # noqa: PT012
        async with open_network(generate(), [LOOPBACK]) as a:
            monkeypatch.setattr(host.Host, "_sweep", fail)
            break_host(a)
            await trio.sleep_forever()
    assert caught.value.code == "host_failed"
    assert caught.value.hint
