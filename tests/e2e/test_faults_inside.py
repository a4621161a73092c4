"""A daemon in the test's own process, so that parts of it can be made to fail.

Whatever fails in serving one peer must end that request or stream, and nothing else.
"""

import pytest
import trio
from attacker import ask, is_cut, make_advert, make_award, make_bid, open_greeted
from models import dense, rows

from shoal.crypto import identity
from shoal.node import bidding
from shoal.node.client import AsyncClient
from shoal.node.config import load
from shoal.node.daemon import serve
from shoal.node.membership import ADVERT_TOPIC
from shoal.node.network import open_network
from shoal.node.provider import SWEEP_INTERVAL_S
from shoal.protocol.messages import Digest, Problem
from shoal.protocol.negotiation_messages import Reason, Refusal

STREAM_LIMIT_S = 20.0


class BrokenPartError(Exception):
    """What no part of the daemon raises on purpose."""


async def broken(*_):
    raise BrokenPartError


@pytest.fixture
async def attacker(attacker_key):
    async with open_network(attacker_key, ["/ip4/127.0.0.1/tcp/0"]) as network:
        yield network


@pytest.fixture
async def daemon(attacker, nursery, tmp_path):
    """A whole daemon that the attacker is connected to; it answers its user at the end."""
    flags = {
        "home": tmp_path / "home",
        "listen": "/ip4/127.0.0.1/tcp/0",
        "allow": attacker.peer_id,
        "step_back": "off",  # whatever else runs on the machine
    }
    daemon = await nursery.start(serve, load(flags, environment={"SHOAL_STEP_BACK": "off"}))
    places = [address.rpartition("/p2p/")[0] for address in daemon.network.addresses()]
    await attacker.connect(daemon.network.peer_id, places, STREAM_LIMIT_S)
    yield daemon
    with trio.fail_after(30):
        async with AsyncClient(daemon.config.socket) as client:
            status = await client.status()
    assert status.peer == daemon.network.peer_id
    nursery.cancel_scope.cancel()


async def test_an_exception_in_a_stream_handler_ends_that_stream_only(daemon, attacker):
    async def fails(stream):
        await stream.receive_some(1)
        raise BrokenPartError

    daemon.network.handle("/test/fails/1", fails)
    peer = daemon.network.peer_id
    for _ in range(3):
        stream = await attacker.open_stream(peer, "/test/fails/1", STREAM_LIMIT_S)
        await stream.send_all(b"x")
        assert await is_cut(stream)
    assert peer in attacker.connected()


async def test_an_exception_in_answering_is_a_problem_without_details(daemon, attacker):
    daemon.membership._control.answer_with(broken)
    stream = await open_greeted(attacker, daemon.network.peer_id)
    for _ in range(3):
        answer = await ask(stream, Digest(held=b""))
        assert isinstance(answer, Problem)
        assert answer.code == "internal"
        assert "BrokenPart" not in answer.message


async def test_an_exception_in_the_check_of_gossip_costs_that_message(
    daemon, attacker, monkeypatch
):
    heard = trio.Event()

    def fails(*_):
        heard.set()
        raise BrokenPartError

    monkeypatch.setattr(daemon.membership._member, "hear_gossip", fails)
    await attacker.subscribe(ADVERT_TOPIC, lambda *_: True, lambda _: None)
    with trio.fail_after(60):
        while not heard.is_set():
            await attacker.publish(ADVERT_TOPIC, make_advert(identity.generate()))
            await trio.sleep(0.2)
    monkeypatch.undo()
    ghost = identity.generate()
    with trio.fail_after(60):
        while daemon.membership.table.get(ghost.peer_id) is None:
            await attacker.publish(ADVERT_TOPIC, make_advert(ghost))
            await trio.sleep(0.2)


async def test_an_award_after_its_bid_has_expired_is_refused(
    daemon, attacker, attacker_key, monkeypatch
):
    monkeypatch.setattr(bidding, "BID_VALID_S", 0.2)
    async with AsyncClient(daemon.config.socket) as client:
        program = (await client.prepare(dense())).program_id
        await client.run(dense(), {"x": rows(1)})  # returns once it bids
    peer = daemon.network.peer_id
    stream = await open_greeted(attacker, peer)
    asked, bid = await make_bid(stream, program)
    offer = make_award(attacker_key, peer, asked, bid)
    await trio.sleep(0.3)
    answer = await ask(stream, offer)
    if not isinstance(answer, Refusal):  # it is held until the next sweep, which may be near
        assert answer.code == "expired"
    await trio.sleep(SWEEP_INTERVAL_S * 1.5)
    answer = await ask(stream, offer)
    assert isinstance(answer, Refusal)
    assert answer.reason is Reason.EXPIRED
