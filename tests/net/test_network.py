"""What the rest of the daemon may rely on, over real connections on loopback."""

from contextlib import asynccontextmanager, suppress

import pytest
import structlog
import trio
from libp2p.peer.id import ID

from shoal.crypto.identity import generate
from shoal.node import admission
from shoal.node.errors import ConfigError, NetworkError, StreamClosedError
from shoal.node.network import open_network

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
ECHO = "/test/echo/1"


async def echo(stream):
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


@asynccontextmanager
async def linked():
    async with (
        open_network(generate(), [LOOPBACK]) as a,
        open_network(generate(), [LOOPBACK]) as b,
    ):
        a.handle(ECHO, echo)
        await b.connect(a.peer_id, a.addresses(), 5)
        await a.next_change(frozenset())
        yield a, b


async def test_what_is_sent_comes_back_whole_in_both_directions_at_once():
    data = bytes(range(256)) * 10_000
    async with linked() as (a, b), trio.open_nursery() as nursery:
        stream = await b.open_stream(a.peer_id, ECHO, 5)
        nursery.start_soon(stream.send_all, data)
        assert await stream.receive_exactly(len(data)) == data


async def test_a_stream_left_by_an_exception_is_reset_and_one_left_in_order_is_closed():
    ends = []
    async with linked() as (a, b):

        async def note_the_end(stream):
            try:
                ends.append(await stream.receive_some(1))
            except NetworkError as error:
                ends.append(error.code)
            ended.set()

        a.handle("/test/end/1", note_the_end)
        for error in (None, ZeroDivisionError):
            ended = trio.Event()
            with suppress(ZeroDivisionError):
                async with await b.open_stream(a.peer_id, "/test/end/1", 5):
                    if error:
                        raise error
            await ended.wait()
    assert ends == [b"", "stream_reset"]


async def test_a_handler_knows_who_speaks():
    async with linked() as (a, b):
        spoke = []

        async def note(stream):
            spoke.append(stream.remote)

        a.handle("/test/note/1", note)
        stream = await b.open_stream(a.peer_id, "/test/note/1", 5)
        assert await stream.receive_some(1) == b""
        assert (spoke, stream.remote) == ([b.peer_id], a.peer_id)


async def test_a_stream_closed_between_messages_differs_from_one_cut_inside():
    async with linked() as (a, b):

        async def say_abc(stream):
            await stream.send_all(b"abc")

        a.handle("/test/abc/1", say_abc)
        stream = await b.open_stream(a.peer_id, "/test/abc/1", 5)
        assert await stream.receive_exactly(3) == b"abc"
        with pytest.raises(StreamClosedError):
            await stream.receive_exactly(1)
        stream = await b.open_stream(a.peer_id, "/test/abc/1", 5)
        with pytest.raises(NetworkError) as caught:
            await stream.receive_exactly(4)
        assert caught.value.code == "stream_truncated"


async def test_a_closed_stream_still_receives():
    async with linked() as (a, b):

        async def answer_at_the_end(stream):
            received = b""
            while data := await stream.receive_some(100):
                received += data
            await stream.send_all(received[::-1])

        a.handle("/test/reverse/1", answer_at_the_end)
        stream = await b.open_stream(a.peer_id, "/test/reverse/1", 5)
        await stream.send_all(b"abc")
        await stream.aclose()
        assert await stream.receive_exactly(3) == b"cba"
        with pytest.raises(NetworkError):
            await stream.send_all(b"more")


async def test_what_a_handler_raises_is_logged_and_resets_its_stream_only():
    async with linked() as (a, b):

        async def fail(stream):
            await stream.receive_some(1)
            raise ZeroDivisionError

        a.handle("/test/fail/1", fail)
        bystander = await b.open_stream(a.peer_id, ECHO, 5)
        doomed = await b.open_stream(a.peer_id, "/test/fail/1", 5)
        with structlog.testing.capture_logs() as logs:
            await doomed.send_all(b"x")
            with pytest.raises(NetworkError) as caught:
                await doomed.receive_some(1)
            await trio.testing.wait_all_tasks_blocked()
        assert caught.value.code == "stream_reset"
        (entry,) = [one for one in logs if one["event"] == "stream_handler_failed"]
        assert (entry["peer"], entry["protocol"]) == (b.peer_id, "/test/fail/1")
        await bystander.send_all(b"x")
        assert await bystander.receive_exactly(1) == b"x"


async def test_a_lost_connection_is_not_taken_for_the_end_of_a_stream():
    async with linked() as (a, b):
        stream = await b.open_stream(a.peer_id, ECHO, 5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(a.disconnect, b.peer_id)
            with pytest.raises(NetworkError) as caught:
                await stream.receive_exactly(1)
        assert caught.value.code == "connection_lost"
        await stream.aclose()
        await stream.reset()


async def test_an_unknown_protocol_is_named():
    async with linked() as (a, b):
        with pytest.raises(NetworkError, match="/test/nothing/1") as caught:
            await b.open_stream(a.peer_id, "/test/nothing/1", 5)
        assert caught.value.code == "protocol_unknown"


async def test_a_stream_that_was_begun_carries_its_first_bytes_before_the_peer_agrees():
    async with linked() as (a, b):
        stream = await b.begin_stream(a.peer_id, ECHO)
        assert not stream.agreed
        await stream.send_all(b"early")
        assert await stream.receive_exactly(5) == b"early"
        assert stream.agreed
        await stream.aclose()


async def test_a_stream_that_was_begun_for_an_unknown_protocol_fails_when_it_is_read():
    async with linked() as (a, b):
        stream = await b.begin_stream(a.peer_id, "/test/nothing/1")
        with pytest.raises(NetworkError, match="/test/nothing/1") as caught:
            await stream.receive_some(1)
        assert caught.value.code == "protocol_unknown"
        await stream.reset()


async def test_a_peer_that_names_a_protocol_in_no_text_is_a_fault_of_the_peers():
    async def answer_nonsense(stream):
        await stream.write(b"\x13/multistream/1.0.0\n\x03\xff\xfe\n")

    async with linked() as (a, b):
        a._swarm.set_stream_handler(answer_nonsense)
        with pytest.raises(NetworkError, match="agrees to no protocol"):
            await b.open_stream(a.peer_id, ECHO, 5)


async def test_a_peer_that_is_not_connected_is_said_to_be():
    stranger = generate().peer_id
    async with open_network(generate(), []) as b:
        for attempt in (b.ping(stranger, 1), b.open_stream(stranger, ECHO, 1)):
            with pytest.raises(NetworkError) as caught:
                await attempt
            assert caught.value.code == "not_connected"


async def test_cancelled_openings_leave_no_stream_behind():
    async with linked() as (a, b):
        connection = b._live_connection(a.peer_id).muxed_conn
        await b.ping(a.peer_id, 5)
        before = connection.stream_backlog_semaphore.value
        for _ in range(20):
            with trio.move_on_after(0):
                await b.open_stream(a.peer_id, ECHO, 5)
        assert connection.stream_backlog_semaphore.value >= before
        assert await b.ping(a.peer_id, 5) < 5


async def test_every_address_that_failed_is_named_with_its_reason():
    async with (
        open_network(generate(), [LOOPBACK]) as other,
        open_network(generate(), []) as b,
        silent_listener() as silent,
    ):
        wanted = generate().peer_id
        refused = "/ip4/127.0.0.1/tcp/9"
        addresses = [refused, other.addresses()[0], "nonsense", silent]
        with pytest.raises(NetworkError) as caught:
            await b.connect(wanted, addresses, 1)
    text = caught.value.message
    assert caught.value.code == "unreachable"
    assert wanted in text
    assert f"{refused}: connection refused" in text
    assert f"{other.addresses()[0]}: another peer answers there" in text
    assert "'nonsense' is no address" in text
    assert f"{silent}: no answer within" in text


@asynccontextmanager
async def silent_listener():
    """Accept TCP connections, and say nothing."""

    async def ignore(_stream):
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, ignore, [listener])
        yield f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def test_connections_are_seen_coming_and_going_from_both_ends():
    async with linked() as (a, b):
        assert (a.connected(), b.connected()) == ({b.peer_id}, {a.peer_id})
        assert b.remote_address(a.peer_id) == a.addresses()[0].split("/p2p/")[0]
        await a.disconnect(b.peer_id)
        with trio.fail_after(30):
            assert await a.next_change(frozenset([b.peer_id])) == frozenset()
            assert await b.next_change(frozenset([a.peer_id])) == frozenset()
        assert b.remote_address(a.peer_id) is None
        await b.connect(a.peer_id, a.addresses(), 5)
        assert await a.next_change(frozenset()) == {b.peer_id}


async def test_pings_share_a_stream_and_survive_its_end():
    async with linked() as (a, b):
        for _ in range(3):
            assert 0 < await b.ping(a.peer_id, 5) < 5
        kept = b._ping_streams[a.peer_id]
        await b.ping(a.peer_id, 5)
        assert b._ping_streams[a.peer_id] is kept
        for stream in list(a._live_connection(b.peer_id).get_streams()):
            if stream.get_protocol() == "/ipfs/ping/1.0.0":
                await stream.close()  # as libp2p does after 10 s without a ping
        assert await b.ping(a.peer_id, 5) < 5


async def test_gossip_is_validated_and_delivered_to_others_once():
    async with linked() as (a, b):
        asked, received, arrived = [], [], trio.Event()

        def validate(peer, data):
            asked.append((peer, data))
            return data != b"bad"

        def receive(data):
            received.append(data)
            if data == b"last":
                arrived.set()

        await a.subscribe("t", validate, receive)
        await b.subscribe("t", lambda _peer, _data: False, received.append)
        await b._gossip.router.wait_for_mesh(b_sees(a), "t")
        for data in (b"good", b"bad", b"last"):
            await b.publish("t", data)
        with trio.fail_after(30):
            await arrived.wait()
        assert received == [b"good", b"last"]
        assert asked == [(b.peer_id, data) for data in (b"good", b"bad", b"last")]


def b_sees(peer_network):
    return ID.from_base58(peer_network.peer_id)


async def test_a_peer_that_floods_gossip_is_cut_to_its_rate(monkeypatch):
    monkeypatch.setattr(admission, "GOSSIP_BURST", 10.0)
    monkeypatch.setattr(admission, "GOSSIP_PER_S", 0.0)
    async with linked() as (a, b):
        received = []
        await a.subscribe("t", lambda _peer, _data: True, received.append)
        await b.subscribe("t", lambda _peer, _data: True, received.append)
        await b._gossip.router.wait_for_mesh(b_sees(a), "t")
        for number in range(30):
            await b.publish("t", b"%d" % number)
        await b.ping(a.peer_id, 5)
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert len(received) == 10


async def test_a_listen_address_that_is_not_of_this_machine_is_refused():
    with pytest.raises(NetworkError) as caught:
        async with open_network(generate(), ["/ip4/192.0.2.77/tcp/0"]):
            pass
    assert caught.value.code == "cannot_listen"


async def test_a_listen_address_that_is_none_is_refused_before_anything_starts():
    with pytest.raises(ConfigError):
        async with open_network(generate(), ["localhost:4711"]):
            pass


async def test_a_network_may_listen_nowhere_and_still_connect():
    async with open_network(generate(), [LOOPBACK]) as a, open_network(generate(), []) as b:
        assert b.addresses() == ()
        await b.connect(a.peer_id, a.addresses(), 5)
        assert b.connected() == {a.peer_id}


async def test_ip6_is_listened_on_and_dialled():
    async with (
        open_network(generate(), ["/ip6/::1/tcp/0"]) as a,
        open_network(generate(), []) as b,
    ):
        await b.connect(a.peer_id, a.addresses(), 5)
        assert b.remote_address(a.peer_id) == a.addresses()[0].split("/p2p/")[0]
