"""How much a peer may ask, and how slowly: over streams in memory and in virtual time."""

from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import pytest
import trio
from blob_peers import Pipe
from trio.testing import memory_stream_pair

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node import answering
from shoal.node.allowance import PATIENCE_S, REFUSALS_BURST
from shoal.node.answering import (
    GREETING_TIME_LIMIT_S,
    STREAMS_LIMIT,
    TOO_MANY_REQUESTS,
    UNSENT_LIMIT_BYTES,
    Answers,
)
from shoal.node.conduct import Conduct
from shoal.node.errors import NetworkError
from shoal.node.frames import ARRIVAL_GRACE_S, receive_frame, send_frame
from shoal.protocol.codec import encode
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR, REQUESTS_IN_FLIGHT_LIMIT
from shoal.protocol.messages import Adverts, Digest, Done, Hello, Problem, Request, Response
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Cancel,
    Reason,
    Refusal,
    Release,
    UnitRequest,
    UnitResult,
)

OWN, MALLORY, BOB = PeerId("own"), PeerId("mallory"), PeerId("bob")
HELLO = Hello(protocol=(PROTOCOL_MAJOR, PROTOCOL_MINOR), agent="test/1")
CALL = "ab" * 16
EMPTY = Digest(held=b"")
UNIT = UnitRequest(call=CALL, unit="j/0", inputs=())


@pytest.fixture
def clock(autojump_clock):
    return autojump_clock


@dataclass
class Node:
    """The answering side of a node, and what it was asked."""

    answers: Answers
    conduct: Conduct
    asked: list = field(default_factory=list)

    async def answer(self, peer, body):
        self.asked.append(body)
        return Done()

    def offences(self, peer=MALLORY):
        view = self.conduct.standing_of(peer)
        return view.offences if view else {}


@pytest.fixture
def node(clock):
    conduct = Conduct(OWN)
    node = Node(Answers(conduct, lambda _peer, _body: HELLO), conduct)
    node.answers.answer = node.answer
    return node


@asynccontextmanager
async def stream_to(node, peer=MALLORY, pair=memory_stream_pair, *, greet=True):
    """A stream that a peer has opened to the node."""
    near, far = pair()
    theirs, ours = Pipe(OWN, near), Pipe(peer, far)
    async with trio.open_nursery() as nursery:

        async def serve():
            await node.answers.serve(ours)
            await ours.reset()  # as the network does with a handler that has returned

        nursery.start_soon(serve)
        if greet:
            assert await ask(theirs, HELLO) == HELLO
        yield theirs
        await theirs.reset()
        nursery.cancel_scope.cancel()


async def ask(stream, body, number=1):
    await send_frame(stream, Request(id=number, body=body))
    return (await receive_frame(stream, Response)).body


async def is_cut(stream):
    try:
        return await stream.receive_some(1) == b""
    except NetworkError:
        return True


# --- how much ---------------------------------------------------------------------


async def refuse_all(peer, body):
    raise NetworkError("what is asked for is not here", code="not_here")


async def test_a_flood_is_held_back_then_refused_and_then_an_offence(clock, node):
    node.answers.answer = refuse_all
    seen = []
    async with stream_to(node) as stream:
        while not node.offences():
            answer = await ask(stream, EMPTY)
            seen.append((trio.current_time(), answer.code))
            assert trio.current_time() < 60
    refused = [at for at, code in seen if code == TOO_MANY_REQUESTS]
    assert PATIENCE_S <= refused[0] < PATIENCE_S + 2
    assert len(seen) - len(refused) < 1000
    assert len(refused) >= REFUSALS_BURST
    assert node.offences() == {"request_flood": 1}


async def test_a_flood_by_new_streams_finds_the_same_allowance(clock, node):
    node.answers.answer = refuse_all
    codes = set()
    while TOO_MANY_REQUESTS not in codes:
        async with stream_to(node) as stream:
            for _ in range(50):
                codes.add((await ask(stream, EMPTY)).code)
        assert trio.current_time() < 20


async def test_opening_streams_is_paid_for_as_well(clock, node):
    for _ in range(1000):
        async with stream_to(node):
            pass
    assert trio.current_time() > 8.0


async def test_all_strangers_together_have_half_of_the_thread_and_no_share_in_the_blame(
    clock, node
):
    """Ten peers, each within its own allowance, and together far over the common one."""

    async def keep_asking(peer):
        async with stream_to(node, peer) as stream:
            while trio.current_time() < 14.0:
                await ask(stream, EMPTY)
                await trio.sleep(0.015)

    peers = [PeerId(f"stranger{number}") for number in range(10)]
    async with trio.open_nursery() as nursery:
        for peer in peers:
            nursery.start_soon(keep_asking, peer)
    cost_ms = 2.0  # of an empty digest
    assert 5000 < len(node.asked) * cost_ms < 1.1 * (5000 + 14 * 500)
    assert not any(node.offences(peer) for peer in peers)


async def test_a_friend_is_served_while_strangers_have_used_up_theirs(clock):
    conduct = Conduct(OWN, friends=[BOB])
    node = Node(Answers(conduct, lambda _peer, _body: HELLO), conduct)
    node.answers.answer = node.answer
    async with stream_to(node, BOB) as friend, stream_to(node, MALLORY) as stranger:
        node.answers._strangers.pay(1e6, trio.current_time())
        await ask(stranger, EMPTY)  # the one that was awaited already
        with trio.fail_after(1.0):
            assert await ask(friend, EMPTY) == Done()
        with trio.move_on_after(60.0) as scope:
            await ask(stranger, EMPTY)
        assert scope.cancelled_caught


async def test_units_that_run_are_never_held_back_however_much_they_carry(clock, node):
    async def run(peer, body):
        return UnitResult(
            call=CALL, unit=body.unit, receipt=bytes(500), blobs=(bytes(100_000),)
        )

    node.answers.answer = run
    async with stream_to(node) as stream:
        for _ in range(600):
            assert isinstance(await ask(stream, UNIT), UnitResult)
        assert trio.current_time() < 0.1


async def test_units_without_a_lease_are_held_back_and_never_refused_unseen(clock, node):
    async def refuse(peer, body):
        return Refusal(call=CALL, reason=Reason.EXPIRED)

    node.answers.answer = refuse
    async with stream_to(node) as stream:
        for _ in range(1000):
            assert isinstance(await ask(stream, UNIT), Refusal)
        assert trio.current_time() > 10.0
    assert not node.offences()


async def test_a_peer_that_asks_and_never_reads_is_answered_only_so_much(clock, node):
    advert = bytes(1000)

    async def many(peer, body):
        node.asked.append(body)
        return Adverts(adverts=((advert, 0.0),) * 128)

    node.answers.answer = many
    async with stream_to(node, pair=unread_pair) as stream:
        for number in range(1000):
            await send_frame(stream, Request(id=number, body=EMPTY))
        await trio.sleep(50.0)
        assert 0 < len(node.asked) * 128_000 < UNSENT_LIMIT_BYTES + 1_000_000
    assert not node.offences()


def unread_pair():
    """Two ends of a stream, of which the second can send a greeting and no more."""
    near, far = memory_stream_pair()
    deliver, sent = far.send_stream.send_all_hook, []

    async def hook():
        sent.append(1)
        if len(sent) > 1:
            await trio.sleep_forever()
        await deliver()

    far.send_stream.send_all_hook = hook
    return near, far


async def test_so_many_requests_of_one_peer_are_in_flight_and_no_more(clock, node):
    async def wait(peer, body):
        node.asked.append(body)
        await trio.sleep_forever()

    node.answers.answer = wait
    async with stream_to(node) as one, stream_to(node) as other:
        for stream in (one, other):
            for number in range(REQUESTS_IN_FLIGHT_LIMIT):
                await send_frame(stream, Request(id=number, body=UNIT))
        await trio.sleep(10.0)
        assert len(node.asked) == REQUESTS_IN_FLIGHT_LIMIT


async def test_the_ninth_stream_of_a_peer_is_reset_and_the_others_go_on(clock, node):
    async with trio.open_nursery() as nursery:
        ready = []

        async def hold():
            async with stream_to(node) as stream:
                ready.append(stream)
                await trio.sleep_forever()

        for _ in range(STREAMS_LIMIT):
            nursery.start_soon(hold)
        await trio.sleep(1.0)
        async with stream_to(node, greet=False) as ninth:
            assert await is_cut(ninth)
        assert node.offences() == {"too_many_streams": 1}
        async with stream_to(node, BOB) as other:
            assert await ask(other, EMPTY) == Done()
        for stream in ready:
            assert await ask(stream, EMPTY) == Done()
        nursery.cancel_scope.cancel()
    async with stream_to(node) as again:
        assert await ask(again, EMPTY) == Done()


async def test_who_is_remembered_is_forgotten_once_there_is_nothing_to_remember(
    clock, node, monkeypatch
):
    async def come_and_go(name):
        async with stream_to(node, PeerId(name)) as stream:
            await ask(stream, EMPTY)

    for number in range(50):
        await come_and_go(f"peer{number}")
    assert len(node.answers._askers) == 50
    await trio.sleep(60.0)
    await come_and_go("last")
    assert len(node.answers._askers) == 1
    monkeypatch.setattr(answering, "ASKERS_LIMIT", 10)
    for number in range(50):
        await come_and_go(f"other{number}")
        await trio.sleep(answering.LOOK_OVER_INTERVAL_S / 20)
    assert len(node.answers._askers) <= 10 + 20


# --- how slowly -------------------------------------------------------------------


async def test_a_message_that_is_dribbled_ends_its_stream_and_is_an_offence(clock, node):
    async with stream_to(node) as stream:
        began_s = trio.current_time()
        with suppress(NetworkError):
            for byte in b"\x00\x00\x00\xff" + bytes(255):
                await stream.send_all(bytes([byte]))
                await trio.sleep(1.0)
        assert trio.current_time() - began_s < ARRIVAL_GRACE_S + 2.0
    assert node.offences() == {"slow_frame": 1}


@pytest.mark.parametrize("sent", [b"\x00", b"\x00\x00\x00\xff", b"\x00\x00\x00\xff1234"])
async def test_a_message_that_stops_half_way_ends_its_stream_and_is_bad_luck(clock, node, sent):
    async with stream_to(node) as stream:
        await stream.send_all(sent)
        began_s = trio.current_time()
        assert await is_cut(stream)
        assert trio.current_time() - began_s < ARRIVAL_GRACE_S + 1.0
    assert not node.offences()


async def test_a_large_message_that_comes_too_slowly_in_large_pieces_is_bad_luck(clock, node):
    async with stream_to(node) as stream:
        await stream.send_all((500_000).to_bytes(4, "big"))
        with suppress(NetworkError):
            for _ in range(50):
                await stream.send_all(bytes(4_000))
                await trio.sleep(2.0)
        assert await is_cut(stream)
    assert not node.offences()


async def test_a_large_message_over_a_slow_link_arrives(clock, node):
    data = encode(Request(id=1, body=Adverts(adverts=((bytes(3000), 0.0),) * 128)))
    async with stream_to(node) as stream:
        await stream.send_all(len(data).to_bytes(4, "big"))
        for at in range(0, len(data), 20_000):
            await trio.sleep(1.0)
            await stream.send_all(data[at : at + 20_000])
        assert (await receive_frame(stream, Response)).body == Done()
    assert not node.offences()


async def test_a_stream_without_a_hello_is_ended_and_no_offence(clock, node):
    async with stream_to(node, greet=False) as stream:
        assert await is_cut(stream)
        assert trio.current_time() <= GREETING_TIME_LIMIT_S + 1.0
    assert not node.offences()


async def test_a_greeted_stream_may_be_silent_for_as_long_as_it_likes(clock, node):
    async with stream_to(node) as stream:
        await trio.sleep(86_400.0)
        assert await ask(stream, EMPTY) == Done()


@pytest.mark.parametrize(
    "first", [AwardOffer(call=CALL, award=b"e"), Cancel(call=CALL, unit="j/0")]
)
async def test_what_comes_behind_an_award_or_a_cancellation_finds_what_that_has_done(
    clock, node, first
):
    async def answer(peer, body):
        if body == first:
            await trio.sleep(0.1)
        return await node.answer(peer, body)

    node.answers.answer = answer
    behind = Release(call=CALL)
    async with stream_to(node) as stream:
        await send_frame(stream, Request(id=1, body=first))
        await send_frame(stream, Request(id=2, body=behind))
        answered = [(await receive_frame(stream, Response)).id for _ in range(2)]
    assert answered == [1, 2]
    assert node.asked == [first, behind]


# --- what is an offence and what is not ----------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        b"\xff\xff\xff\xff",  # a frame of 4 GiB is announced
        b"\x00\x00\x00\x05\xc1\xc1\xc1\xc1\xc1",  # not msgpack
        b"\x00\x00\x00\x01\x01",  # msgpack, and no message
    ],
)
async def test_nonsense_is_an_offence(clock, node, words):
    async with stream_to(node) as stream:
        await stream.send_all(words)
        assert await is_cut(stream)
    assert node.offences() == {"bad_frame": 1}


async def test_a_stream_that_breaks_off_within_a_message_is_none(clock, node):
    async with stream_to(node) as stream:
        await stream.send_all(b"\x00\x00\x00\x05\xc1")
        await stream.reset()
        await trio.sleep(1.0)
    assert not node.offences()


FORGED = VerificationError("not signed by its peer", code="bad_signature")
NEWER = VerificationError("it is signed but malformed", code="bad_payload")
LATE = RemoteProtocolError("the conversation expired", code="expired")
ODD = RemoteProtocolError("the award's price differs", code="award_mismatch")
AWARD = AwardOffer(call=CALL, award=b"e")


@pytest.mark.parametrize(
    ("body", "error", "offences"),
    [
        (Adverts(adverts=()), FORGED, {"bad_advert": 1}),
        (Adverts(adverts=()), NEWER, {}),
        (AWARD, ODD, {"bad_award": 1}),
        (AWARD, LATE, {}),
        (UNIT, LATE, {}),
        (Cancel(call=CALL, unit="j/0"), LATE, {}),
        (EMPTY, NetworkError("something else is down"), {}),
        (UNIT, KeyError("a bug of ours"), {}),
    ],
)
async def test_what_is_not_served_is_an_offence_only_where_no_honest_node_would_ask_it(
    clock, node, body, error, offences
):
    async def fail(peer, body):
        raise error

    node.answers.answer = fail
    async with stream_to(node) as stream:
        assert isinstance(await ask(stream, body), Problem)
    assert node.offences() == offences


async def test_a_node_never_blames_itself(clock, node):
    async def fail(peer, body):
        raise FORGED

    node.answers.answer = fail
    assert isinstance(await node.answers.answer_guarded(OWN, Adverts(adverts=())), Problem)
    assert not node.offences(OWN)
