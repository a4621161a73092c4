from contextlib import asynccontextmanager

import pytest
import trio

from shoal.crypto.identity import generate
from shoal.node.answering import TOO_MANY_REQUESTS
from shoal.node.control import CONTROL_PROTOCOL, LEFT_ALONE_S, Control, open_control
from shoal.node.errors import NetworkError
from shoal.node.frames import receive_frame, send_frame
from shoal.node.network import open_network
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import PROTOCOL_MAJOR, REQUESTS_IN_FLIGHT_LIMIT
from shoal.protocol.messages import Adverts, Digest, Done, Hello, Problem, Request, Response
from shoal.protocol.negotiation_messages import Release

LOOPBACK = ["/ip4/127.0.0.1/tcp/0"]
EMPTY = Digest(held=b"")


@asynccontextmanager
async def two_nodes():
    async with open_network(generate(), LOOPBACK) as a, open_network(generate(), LOOPBACK) as b:
        await a.connect(b.peer_id, b.addresses(), 5)
        async with open_control(a, "test/1") as asking, open_control(b, "test/1") as answering:
            yield a, b, asking, answering


async def adverts(peer, body):
    return Adverts(adverts=())


async def test_a_request_is_answered_by_the_peer():
    async with two_nodes() as (a, b, asking, answering):
        seen = []

        async def answer(peer, body):
            seen.append((peer, body))
            return Done()

        answering.answer_with(answer)
        assert await asking.request(b.peer_id, EMPTY, 5) == Done()
        assert seen == [(a.peer_id, EMPTY)]


async def test_many_requests_in_flight_are_answered_each_by_its_own():
    async with two_nodes() as (_, b, asking, answering):

        async def answer(peer, body):
            await trio.sleep(0.2 if body.held[-1] % 2 else 0.01)
            return Adverts(adverts=(), wanted=body.held)

        answering.answer_with(answer)
        names = [b"%16d" % number for number in range(REQUESTS_IN_FLIGHT_LIMIT + 20)]
        answers = {}

        async def ask(name):
            answers[name] = await asking.request(b.peer_id, Digest(held=name), 20)

        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(ask, name)
        assert {name: answer.wanted for name, answer in answers.items()} == {
            name: name for name in names
        }


async def test_a_peer_that_is_asked_too_much_is_left_alone_by_the_whole_node():
    """Of a thousand jobs each would else ask it once again, and that is an offence there."""
    async with two_nodes() as (_, b, asking, answering):
        seen = []

        async def answer(_peer, body):
            seen.append(type(body))
            return Problem(code=TOO_MANY_REQUESTS, message="leave me alone")

        answering.answer_with(answer)
        for _ in range(5):
            with pytest.raises(RemoteProtocolError) as told:
                await asking.request(b.peer_id, EMPTY, 5)
            assert told.value.code == TOO_MANY_REQUESTS
        assert seen == [Digest]
        with pytest.raises(RemoteProtocolError):  # of a lease that both need
            await asking.request(b.peer_id, Release(call="ab" * 16), 5)
        assert seen == [Digest, Release]
        asking._lines[b.peer_id].quiet_until_s -= LEFT_ALONE_S
        with pytest.raises(RemoteProtocolError):
            await asking.request(b.peer_id, EMPTY, 5)
        assert len(seen) == 3


async def test_a_node_answers_itself_without_a_stream():
    async with two_nodes() as (a, _, asking, _answering):
        asking.answer_with(adverts)
        assert await asking.request(a.peer_id, EMPTY, 5) == Adverts(adverts=())


async def test_a_bug_in_answering_one_request_ends_neither_the_stream_nor_the_node():
    async with two_nodes() as (_, b, asking, answering):
        calls = []

        async def answer(peer, body):
            calls.append(body)
            if len(calls) == 1:
                raise KeyError("a bug")
            return Done()

        answering.answer_with(answer)
        with pytest.raises(RemoteProtocolError) as failed:
            await asking.request(b.peer_id, EMPTY, 5)
        assert failed.value.code == "internal"
        assert await asking.request(b.peer_id, EMPTY, 5) == Done()


async def test_an_error_of_the_answering_side_arrives_with_its_code():
    async with two_nodes() as (_, b, asking, answering):

        async def answer(peer, body):
            raise RemoteProtocolError("you said something odd", code="odd")

        answering.answer_with(answer)
        with pytest.raises(RemoteProtocolError, match="you said something odd") as failed:
            await asking.request(b.peer_id, EMPTY, 5)
        assert failed.value.code == "odd"


async def test_no_answer_within_the_time_limit_is_an_error_and_the_stream_stays_good():
    async with two_nodes() as (_, b, asking, answering):
        calls = []

        async def answer(peer, body):
            calls.append(body)
            if len(calls) == 1:
                await trio.sleep(2)
            return Done()

        answering.answer_with(answer)
        with pytest.raises(NetworkError) as failed:
            await asking.request(b.peer_id, EMPTY, 0.5)
        assert failed.value.code == "no_answer"
        assert await asking.request(b.peer_id, EMPTY, 5) == Done()


async def test_requests_in_flight_fail_at_once_when_the_peer_goes_away():
    async with two_nodes() as (_, b, asking, answering):

        async def answer(peer, body):
            await trio.sleep(30)

        answering.answer_with(answer)
        failures = []

        async def ask():
            try:
                await asking.request(b.peer_id, EMPTY, 30)
            except NetworkError as error:
                failures.append(error.code)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                nursery.start_soon(ask)
                await trio.sleep(0.5)
                await b.disconnect(asking._network.peer_id)
        assert len(failures) == 2


async def test_a_peer_of_another_major_version_is_refused_with_what_to_upgrade():
    async with two_nodes() as (_, b, asking, answering):
        answering.answer_with(adverts)
        asking._hello = Hello(protocol=(PROTOCOL_MAJOR + 1, 0), agent="test/2")
        with pytest.raises(RemoteProtocolError, match="upgrade this peer") as failed:
            await asking.request(b.peer_id, EMPTY, 5)
        assert failed.value.code == "version_unsupported"


async def test_a_stream_that_does_not_begin_with_hello_is_told_so_and_closed():
    async with two_nodes() as (a, b, _asking, answering):
        answering.answer_with(adverts)
        stream = await a.open_stream(b.peer_id, CONTROL_PROTOCOL, 5)
        await send_frame(stream, Request(id=7, body=EMPTY))
        told = await receive_frame(stream, Response)
        assert told.id == 7
        assert isinstance(told.body, Problem)
        assert told.body.code == "out_of_turn"
        assert await stream.receive_some(1) == b""


@pytest.mark.parametrize(
    "words",
    [
        b"\xff\xff\xff\xff",  # a frame of 4 GiB is announced
        (5).to_bytes(4, "big") + b"\xc1\xc1\xc1\xc1\xc1",  # not msgpack
        (1).to_bytes(4, "big") + b"\x01",  # msgpack, and no message
    ],
)
async def test_nonsense_resets_its_stream_and_the_next_one_is_served(words):
    async with two_nodes() as (a, b, asking, answering):
        answering.answer_with(adverts)
        stream = await a.open_stream(b.peer_id, CONTROL_PROTOCOL, 5)
        await stream.send_all(words)
        with trio.fail_after(9), pytest.raises(NetworkError):
            await stream.receive_exactly(1)
        assert await asking.request(b.peer_id, EMPTY, 5) == Adverts(adverts=())


async def test_a_peer_that_does_not_listen_yet_says_that_it_is_starting():
    async with two_nodes() as (a, _, asking, _answering):
        assert isinstance(asking, Control)
        with pytest.raises(RemoteProtocolError, match="starting"):
            await asking.request(a.peer_id, EMPTY, 5)
