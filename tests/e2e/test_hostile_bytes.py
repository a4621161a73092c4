"""A peer that sends whatever it likes: the daemon answers its user all the same.

The attacker is a real libp2p node in the test's own process. It is on the
daemon's allow list, so that nothing is refused for whom it comes from.
"""

import random
import secrets
import socket
import time
from contextlib import suppress

import models
import msgpack
import msgspec
import pytest
import trio
from attacker import (
    HELLO,
    ask,
    is_cut,
    make_advert,
    make_award,
    make_bid,
    make_call,
    open_control_stream,
    open_greeted,
    send_raw,
    wall_ms,
)
from daemons import eventually, peers_of, shoal

from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node.blob_transfer import BLOB_PROTOCOL
from shoal.node.control import CONTROL_PROTOCOL
from shoal.node.errors import DaemonError, NetworkError
from shoal.node.membership import ADVERT_TOPIC
from shoal.node.network import open_network
from shoal.protocol.limits import FRAME_LIMIT_BYTES, INLINE_LIMIT_BYTES
from shoal.protocol.messages import Adverts, Digest, Done, Hello, Problem
from shoal.protocol.negotiation_messages import (
    Bid,
    Lease,
    Reason,
    Refusal,
    Release,
    UnitRequest,
    UnitsRequest,
)

STATUS_LIMIT_S = 2.0
STREAM_LIMIT_S = 20.0
RANDOM_FRAMES = 100
"""On each protocol id; the soak sends more."""
RANDOM_FRAMES_LIMIT_S = 120.0
NEVER_MADE = "ab" * 16


@pytest.fixture
async def attacker(attacker_key):
    async with open_network(attacker_key, ["/ip4/127.0.0.1/tcp/0"]) as network:
        await network.subscribe(ADVERT_TOPIC, lambda *_: True, lambda _: None)
        yield network


def forgive(node, peer):
    """Let a peer back in that an earlier test may have had cut."""
    with node.client() as client, suppress(DaemonError):
        client.forgive(peer)


@pytest.fixture
async def victim(node, attacker):
    """A daemon that the attacker is connected to; it must be well at the end."""
    size_before = node.log_path.stat().st_size
    await trio.to_thread.run_sync(forgive, node, attacker.peer_id)
    await attacker.connect(node.peer, [place_of(node)], STREAM_LIMIT_S)
    yield node
    await trio.to_thread.run_sync(assert_well, node)
    assert "Traceback" not in node.log_path.read_bytes()[size_before:].decode()


def place_of(node):
    return node.address.rpartition("/p2p/")[0]


def assert_well(node):
    """It answers its user at once, and work is done."""
    assert node.running, node.last_words()
    with node.client() as client:
        started = time.monotonic()
        client.status()
        assert time.monotonic() - started < STATUS_LIMIT_S
        outputs = client.run(models.dense(), {"x": models.rows(3)}, timeout_s=30)
    assert outputs["y"].shape == (3, models.WIDTH)


@pytest.fixture
def said(node):
    """Wait until the daemon's log has a text that it did not have before the test."""
    size_before = node.log_path.stat().st_size

    async def wait(text):
        def is_there():
            return text in node.log_path.read_bytes()[size_before:].decode()

        await trio.to_thread.run_sync(eventually, is_there, 10, f"in the log: {text}")

    return wait


# --- bytes ------------------------------------------------------------------------


async def test_a_hundred_random_frames_over_every_protocol_are_survived(victim, attacker):
    protocols = {str(each) for each in attacker._host.get_mux().get_protocols() if each}
    assert {"/ipfs/ping/1.0.0", "/ipfs/id/1.0.0"} <= protocols
    assert any(name.startswith("/meshsub/") for name in protocols)
    protocols |= {CONTROL_PROTOCOL, BLOB_PROTOCOL}
    sent = dict.fromkeys(sorted(protocols), 0)
    with trio.fail_after(RANDOM_FRAMES_LIMIT_S):
        async with trio.open_nursery() as nursery:
            for protocol in sent:
                nursery.start_soon(send_random_frames, victim, protocol, sent)


async def send_random_frames(victim, protocol, sent):
    """Send them under one key after another: each is cut before long."""
    dice = random.Random(protocol)
    while sent[protocol] < RANDOM_FRAMES:
        async with open_network(identity.generate(), []) as attacker:
            with suppress(NetworkError):
                await attacker.connect(victim.peer, [place_of(victim)], STREAM_LIMIT_S)
            while sent[protocol] < RANDOM_FRAMES and attacker.connected():
                with suppress(NetworkError):
                    await send_random_frame(attacker, victim, protocol, dice)
                    sent[protocol] += 1


async def send_random_frame(attacker, victim, protocol, dice):
    payload = dice.randbytes(dice.choice((1, 7, 60, 500, 4000)))
    stream = await attacker.open_stream(victim.peer, protocol, STREAM_LIMIT_S)
    if dice.random() < 0.5:  # what looks like a frame comes further than noise
        await send_raw(stream, payload)
    else:
        await stream.send_all(payload)
    await (stream.aclose() if dice.random() < 0.5 else stream.reset())


async def test_random_bytes_on_the_port_are_survived(victim):
    port = int(place_of(victim).rpartition("/")[2])

    def work():
        for size in (0, 1, 20, 5000) * 10:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
                raw.sendall(secrets.token_bytes(size))

    await trio.to_thread.run_sync(work)


# --- frames of the control protocol -------------------------------------------------


def as_request(body):
    return msgpack.packb({"type": "request", "id": 7, "body": body})


A_BID = Bid(
    call=NEVER_MADE,
    nonce=NEVER_MADE,
    device="cpu",
    executor="onnxruntime",
    price=1.0,
    units_max=1,
    in_flight_max=1,
    valid_s=1.0,
)

A_UNIT = {"type": "unit", "call": NEVER_MADE, "unit": "j/0", "inputs": []}
A_LARGE_UNIT = A_UNIT | {"blobs": [bytes(INLINE_LIMIT_BYTES)]}


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        pytest.param(b"\xc1", "not msgpack", id="no msgpack"),
        pytest.param(
            as_request({"type": "digest", "held": 3}), "$.body.held", id="a wrong-typed field"
        ),
        pytest.param(
            as_request({"type": "digest", "held": b"", "more": 1}),
            "unknown field",
            id="an unknown field",
        ),
        pytest.param(as_request({"type": "sermon"}), "sermon", id="an unknown tag"),
        pytest.param(
            as_request(msgspec.to_builtins(A_BID)), "bid", id="a bid sent as a request"
        ),
        pytest.param(
            as_request({"type": "units", "call": NEVER_MADE, "units": []}),
            "$.body.units",
            id="a batch of nothing",
        ),
        pytest.param(
            as_request({"type": "units", "call": NEVER_MADE, "units": [A_UNIT] * 65}),
            "$.body.units",
            id="a batch over its limit",
        ),
        pytest.param(
            as_request({"type": "units", "call": NEVER_MADE, "units": [A_LARGE_UNIT] * 2}),
            "bytes of blobs in one message",
            id="a batch with too many bytes",
        ),
    ],
)
async def test_a_frame_that_breaks_the_protocol_ends_its_stream_and_no_more(
    victim, attacker, said, frame, why
):
    stream = await open_greeted(attacker, victim.peer)
    other = await open_greeted(attacker, victim.peer)
    await send_raw(stream, frame)
    assert await is_cut(stream)
    await said(why)
    assert isinstance(await ask(other, Digest(held=b"")), Adverts)


async def test_a_frame_over_its_limit_is_cut_before_it_is_read(victim, attacker, said):
    stream = await open_greeted(attacker, victim.peer)
    await send_raw(stream, b"", length=FRAME_LIMIT_BYTES + 1)
    assert await is_cut(stream)
    await said(f"announces a message of {FRAME_LIMIT_BYTES + 1} bytes")


async def test_a_stream_that_does_not_begin_with_hello_is_told_so_and_closed(victim, attacker):
    stream = await open_control_stream(attacker, victim.peer)
    answer = await ask(stream, Digest(held=b""))
    assert isinstance(answer, Problem)
    assert answer.code == "out_of_turn"
    assert await is_cut(stream)


async def test_a_second_hello_and_another_version_are_told_so(victim, attacker):
    stream = await open_greeted(attacker, victim.peer)
    assert (await ask(stream, HELLO)).code == "out_of_turn"
    stream = await open_control_stream(attacker, victim.peer)
    answer = await ask(stream, Hello(protocol=(99, 0), agent="future/1"))
    assert answer.code == "version_unsupported"
    assert "upgrade this peer" in answer.message


# --- negotiation --------------------------------------------------------------------


@pytest.fixture
def program(node):
    """The id of a program that the daemon holds."""
    with node.client() as client:
        return client.prepare(models.dense()).program_id


async def test_what_names_an_unknown_call_is_refused(victim, attacker, attacker_key, program):
    stream = await open_greeted(attacker, victim.peer)
    award = make_award(attacker_key, victim.peer, make_call(program, NEVER_MADE), A_BID)
    unit = UnitRequest(call=NEVER_MADE, unit="j/0", inputs=())
    batch = UnitsRequest(call=NEVER_MADE, units=(unit,))
    for message in (award, unit, batch):
        answer = await ask(stream, message)
        assert isinstance(answer, Refusal)
        assert answer.reason is Reason.EXPIRED
    assert isinstance(await ask(stream, Release(call=NEVER_MADE)), Done)


async def test_an_award_that_is_not_what_was_agreed_is_refused(
    victim, attacker, attacker_key, program
):
    stream = await open_greeted(attacker, victim.peer)
    call, bid = await make_bid(stream, program)
    stranger = identity.generate()
    for key, changes, code in (
        (attacker_key, {"price": bid.price / 2}, "award_mismatch"),
        (attacker_key, {"provider": stranger.peer_id}, "award_mismatch"),
        (attacker_key, {"call": NEVER_MADE}, "award_mismatch"),
        (attacker_key, {"nonce": NEVER_MADE}, "award_mismatch"),
        (stranger, {}, "award_mismatch"),
        (stranger, {"requester": attacker_key.peer_id}, "bad_award"),
    ):
        answer = await ask(stream, make_award(key, victim.peer, call, bid, **changes))
        assert isinstance(answer, Problem), changes
        assert answer.code == code, changes
        await trio.to_thread.run_sync(forgive, victim, attacker.peer_id)
    fitting = make_award(attacker_key, victim.peer, call, bid)
    assert isinstance(await ask(stream, fitting), Lease)  # nothing has spoilt the bid


async def test_nothing_is_run_under_a_lease_that_has_ended(
    victim, attacker, attacker_key, program
):
    stream = await open_greeted(attacker, victim.peer)
    call, bid = await make_bid(stream, program)
    offer = make_award(attacker_key, victim.peer, call, bid)
    assert isinstance(await ask(stream, offer), Lease)
    assert isinstance(await ask(stream, Release(call=call.call)), Done)
    tensor = to_blob(models.rows(1))
    inputs = (("x", blob_id_of(tensor)),)
    unit = UnitRequest(call=call.call, unit="j/0", inputs=inputs, blobs=(tensor,))
    for message in (unit, offer):
        answer = await ask(stream, message)
        assert isinstance(answer, Refusal)
        assert answer.reason is Reason.EXPIRED


# --- adverts ----------------------------------------------------------------------------


@pytest.fixture(params=["by stream", "by gossip"])
async def tell(request, attacker, victim):
    """Tell the daemon of an advert, the one way or the other."""
    if request.param == "by stream":
        stream = await open_greeted(attacker, victim.peer)

        async def by_stream(envelope):
            await ask(stream, Adverts(adverts=((envelope, 0.0),)))

        return by_stream

    await trio.sleep(1.5)  # a heartbeat, in which the two meet in the topic's mesh

    async def by_gossip(envelope):
        await attacker.publish(ADVERT_TOPIC, envelope)

    return by_gossip


async def test_a_forged_a_replayed_and_an_expired_advert_list_nobody(
    victim, tell, attacker_key, said
):
    good, forged, expired, future, last = (identity.generate() for _ in range(5))
    await tell(make_advert(good, sequence=8, agent="newer/1"))
    await listed(victim, good.peer_id, "newer/1")
    broken = bytearray(make_advert(forged))
    broken[-1] ^= 1
    two_days_ms = 2 * 86400 * 1000
    for envelope in (
        make_advert(good, sequence=7, agent="older/1"),
        make_advert(attacker_key, peer=forged.peer_id),
        bytes(broken),
        b"nonsense",
        make_advert(expired, issued_at_ms=wall_ms() - two_days_ms),
        make_advert(future, issued_at_ms=wall_ms() + two_days_ms),
        make_advert(last),
    ):
        await tell(envelope)
    found = await listed(victim, last.peer_id, HELLO.agent)
    assert found[good.peer_id] == "newer/1"
    assert not found.keys() & {forged.peer_id, expired.peer_id, future.peer_id}
    await said("bad advert")


async def listed(node, peer, agent):
    """Wait until a peer is listed with this agent; gives the agents of all."""

    def look():
        with node.client() as client:
            found = {view.peer: view.agent for view in client.peers()}
        return found if found.get(peer) == agent else None

    return await trio.to_thread.run_sync(eventually, look, 5, f"{peer} is listed")


async def test_an_advert_that_is_older_than_its_lifetime_lists_nobody(victim, attacker):
    ghost = identity.generate()
    stream = await open_greeted(attacker, victim.peer)
    aged = Adverts(adverts=((make_advert(ghost, lifetime_s=5.0), 5.0),))
    assert isinstance(await ask(stream, aged), Done)
    assert ghost.peer_id not in await trio.to_thread.run_sync(peers_of, victim)


# --- standing ------------------------------------------------------------------------


async def break_rules_until_cut(attacker, victim):
    with trio.fail_after(60):
        for _ in range(50):
            if not attacker.connected():
                return
            with suppress(NetworkError, AssertionError):
                await send_raw(await open_greeted(attacker, victim.peer), b"\xc1")
            await trio.sleep(0.05)
    raise AssertionError("it is not cut")


async def run_shoal(*arguments, node):
    return await trio.to_thread.run_sync(lambda: shoal(*arguments, node=node))


async def test_a_peer_that_breaks_rules_is_cut_with_the_reason_in_shoal_peers(victim, attacker):
    await break_rules_until_cut(attacker, victim)
    ended = await run_shoal("peers", "--json", node=victim)
    (cut,) = (each for each in ended.json["cut"] if each["peer"] == attacker.peer_id)
    assert cut["friend"]
    assert cut["until"] > time.time()
    ended = await run_shoal("peers", node=victim)
    assert attacker.peer_id in ended.stdout
    assert "sent bytes that are no message of the protocol (" in ended.stdout
    ended = await run_shoal("peers", f"--forgive={attacker.peer_id}", "--json", node=victim)
    assert attacker.peer_id not in {each["peer"] for each in ended.json["cut"]}
    await attacker.connect(victim.peer, [place_of(victim)], STREAM_LIMIT_S)
    stream = await open_greeted(attacker, victim.peer)
    assert isinstance(await ask(stream, Digest(held=b"")), Adverts)


async def test_with_a_cut_its_leases_end_and_it_is_told_so_when_it_is_back(
    victim, attacker, attacker_key, program
):
    stream = await open_greeted(attacker, victim.peer)
    call, bid = await make_bid(stream, program)
    offer = make_award(attacker_key, victim.peer, call, bid)
    assert isinstance(await ask(stream, offer), Lease)
    await break_rules_until_cut(attacker, victim)
    await trio.to_thread.run_sync(forgive, victim, attacker.peer_id)
    await attacker.connect(victim.peer, [place_of(victim)], STREAM_LIMIT_S)
    stream = await open_greeted(attacker, victim.peer)
    answer = await ask(stream, UnitRequest(call=call.call, unit="j/0", inputs=()))
    assert isinstance(answer, Refusal)
    assert answer.reason is Reason.EXPIRED


async def test_a_peer_against_which_nothing_is_held_cannot_be_forgiven(victim):
    """Nothing is held against a peer that did nothing: the command says so."""
    ended = await run_shoal("peers", f"--forgive={NEVER_MADE}", "--json", node=victim)
    assert ended.json["error"]["code"] == "no_such_offender"
