"""Dial-backs and introductions over real networks on loopback; 127.0.0.2 is another IP."""

import contextlib
import ctypes
import socket
import struct
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar

import pytest
import trio

from shoal.crypto import identity
from shoal.crypto.envelope import Statement
from shoal.crypto.errors import VerificationError
from shoal.node import introductions, reachability
from shoal.node.blob_transfer import BLOB_PROTOCOL
from shoal.node.control import CONTROL_PROTOCOL, open_control
from shoal.node.errors import NetworkError
from shoal.node.frames import receive_frame, send_frame
from shoal.node.introductions import Introductions
from shoal.node.libp2p_compat.dial_back import DIAL_BACK_PROTOCOL
from shoal.node.membership import Link
from shoal.node.network import open_network
from shoal.node.private_network import MULTISTREAM_HEADER, PrivateNetwork
from shoal.node.reachability import Reachability
from shoal.node.swarm_key import make_key
from shoal.protocol import advertising
from shoal.protocol import reachability as protocol_reachability
from shoal.protocol.adverts import AdvertTable
from shoal.protocol.codec import encode
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR
from shoal.protocol.messages import Done, Hello, Problem, Request, Response
from shoal.protocol.rates import Rates
from shoal.protocol.reachability import DIAL_BACK_BURST, Scope, Verdict
from shoal.protocol.reachability_messages import (
    DialBack,
    DialedBack,
    Introduce,
    Introduction,
    NotIntroduced,
    Outcome,
)
from shoal.protocol.statements import Advert

NONCE = "5a" * 16
WALL_MS = 1_750_000_000_000
source = ContextVar("source", default=None)
"""Which IP address of this machine the test's own dials come from."""


@pytest.fixture(autouse=True)
def sources(monkeypatch):
    """Let `source` say where a TCP connection comes from."""
    stock = trio.open_tcp_stream

    async def open_tcp_stream(host, port, **options):
        if (ip := source.get()) is not None:
            options["local_address"] = ip
        return await stock(host, port, **options)

    monkeypatch.setattr(trio, "open_tcp_stream", open_tcp_stream)


class Known:
    """What a membership is to others: a table, links, and a way to reach who is in it."""

    def __init__(self, network):
        self.table, self.links, self.own, self._network = (
            AdvertTable(),
            {},
            network.peer_id,
            network,
        )
        self.announced = 0
        self.needed = set()

    def need(self, peer):
        self.needed.add(peer)

    def announce(self):
        self.announced += 1

    async def reach(self, peer):
        entry = self.table.get(peer)
        await self._network.connect(peer, entry.advert.addresses if entry else (), 2)

    def take(self, envelope, age_s=0.0):
        self.table.accept(envelope, age_s=age_s, now_s=trio.current_time(), wall_ms=WALL_MS)


class Node:
    def __init__(self, key, network, control):
        self.key, self.network, self.control, self.peer = key, network, control, key.peer_id
        self.known = Known(network)
        self.verdict = Verdict.UNKNOWN
        self.unwelcome = set()
        self.reached = Reachability(network, control, self.known)
        self.introductions = Introductions(
            network,
            control,
            self.known,
            verdict=lambda: self.verdict,
            welcome=lambda peer: peer not in self.unwelcome,
        )
        control.answer_with(self.answer)

    async def answer(self, peer, body):
        match body:
            case DialBack():
                return await self.reached.answer(peer, body)
            case Introduce() | Introduction():
                return await self.introductions.answer(peer, body)
        return Problem(code="out_of_turn", message="")

    @property
    def places(self):
        return tuple(place.rpartition("/p2p/")[0] for place in self.network.addresses())

    @property
    def port(self):
        return int(self.places[0].rpartition("/")[2])

    def advert(self, *, via=(), addresses=None, peer=None, sequence=1, minor=PROTOCOL_MINOR):
        advert = Advert(
            peer=peer or self.peer,
            sequence=sequence,
            issued_at_ms=WALL_MS,
            lifetime_s=600.0,
            protocol=(PROTOCOL_MAJOR, minor),
            agent="test/1",
            addresses=self.places if addresses is None else addresses,
            devices=(),
            numeric_classes=(),
            providing=True,
            via=via,
        )
        return self.key.sign(Statement.ADVERT, encode(advert))


@asynccontextmanager
async def open_node(*listen, private=None):
    key = identity.generate()
    async with AsyncExitStack() as stack:
        network = await stack.enter_async_context(
            open_network(key, listen or ["/ip4/127.0.0.1/tcp/0"], private)
        )
        yield Node(
            key, network, await stack.enter_async_context(open_control(network, "test/1"))
        )


async def link(dialler, listener, *, ip=None, by=None):
    """Connect two nodes, from ``ip``; both count the other as linked."""
    token = source.set(ip)
    try:
        await dialler.network.connect(listener.peer, [by] if by else listener.places, 5)
    finally:
        source.reset(token)
    with trio.fail_after(30):
        while dialler.peer not in listener.network.connected():  # noqa: ASYNC110
            await trio.sleep(0.01)
    for one, other in ((dialler, listener), (listener, dialler)):
        one.known.links[other.peer] = Link(since_s=trio.current_time())
        one.known.take(other.advert())


def stop_refills(*nodes):
    """Let rates give their bursts alone, however long a busy machine takes for a test."""
    for node in nodes:
        for part in (node.reached, node.introductions):
            for rates in vars(part).values():
                if isinstance(rates, Rates):
                    rates.per_s = 0.0


@asynccontextmanager
async def open_service(ip, port, *, answers=b""):
    """Another service on a port: gives what each connection sent, once it has ended."""
    heard = []

    async def serve(stream):
        received = b""
        if answers:
            await stream.send_all(answers)
        with trio.move_on_after(2), contextlib.suppress(trio.BrokenResourceError):
            async for some in stream:
                received += some
        heard.append(received)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host=ip)
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield heard
        nursery.cancel_scope.cancel()


def outcome_of(report):
    ((_, outcome),) = report.outcomes
    return outcome


# --- dial-backs: what is found ----------------------------------------------------------------


@pytest.mark.parametrize("secret", [False, True])
async def test_a_port_that_answers_is_found_and_the_connection_notices_nothing(secret):
    private = PrivateNetwork(make_key("friends")) if secret else None
    async with (
        open_node("/ip4/0.0.0.0/tcp/0", private=private) as asker,
        open_node(private=private) as helper,
    ):
        await link(asker, helper, ip="127.0.0.2")
        helper.network.handle("/echo/1", echo)
        async with await asker.network.open_stream(helper.peer, "/echo/1", 5) as stream:
            report = await asker.reached.ask(helper.peer)
            assert (outcome_of(report), report.shown) == (Outcome.WORKED, {asker.port})
            assert (report.ip, report.seen_as) == ("127.0.0.1", "127.0.0.2")
            await stream.send_all(b"still here")
            assert await stream.receive_exactly(10) == b"still here"
        for one in (asker, helper):
            assert len(one.network._swarm.get_connections()) == 1


async def echo(stream):
    while some := await stream.receive_some(1 << 16):
        await stream.send_all(some)


async def test_a_port_that_nobody_listens_on_where_a_node_comes_from_is_refused():
    async with open_node() as asker, open_node() as helper:
        await link(asker, helper, ip="127.0.0.2")
        report = await asker.reached.ask(helper.peer)
        assert (outcome_of(report), report.seen_as) == (Outcome.REFUSED, "127.0.0.2")
        assert not report.shown


async def test_a_port_behind_a_firewall_gives_no_answer(monkeypatch):
    monkeypatch.setattr(reachability, "DIAL_TIME_LIMIT_S", 0.3)
    async with open_node() as asker, open_node() as helper:
        await link(asker, helper, ip="127.0.0.2")
        with deaf_socket("127.0.0.2", asker.port):
            report = await asker.reached.ask(helper.peer)
        assert outcome_of(report) is Outcome.NO_ANSWER


@contextlib.contextmanager
def deaf_socket(ip, port):
    """A listening socket whose filter lets no packet in: who dials it gets no answer."""
    so_attach_filter = 26
    drop = struct.pack("HBBI", 0x06, 0, 0, 0)  # BPF: return 0 bytes of the packet
    with socket.create_server((ip, port)) as server:
        buffer = ctypes.create_string_buffer(drop)
        program = struct.pack("HxxxxxxP", 1, ctypes.addressof(buffer))
        server.setsockopt(socket.SOL_SOCKET, so_attach_filter, program)
        yield


async def test_another_node_on_the_port_is_told_apart():
    async with (
        open_node() as asker,
        open_node() as helper,
        open_node(f"/ip4/127.0.0.2/tcp/{asker.port}"),
    ):
        await link(asker, helper, ip="127.0.0.2")
        report = await asker.reached.ask(helper.peer)
        assert outcome_of(report) is Outcome.OTHER_PEER


# --- dial-backs: what cannot be done with them ------------------------------------------


@pytest.mark.parametrize("answers", [b"", b"220 mail.example ESMTP\r\n", b"\x00" * 500])
async def test_another_service_is_sent_the_constant_opening_and_not_a_byte_more(
    answers, monkeypatch
):
    monkeypatch.setattr(reachability, "DIAL_TIME_LIMIT_S", 1.0)
    async with (
        open_node() as asker,
        open_node() as helper,
        open_service("127.0.0.2", asker.port, answers=answers) as heard,
    ):
        await link(asker, helper, ip="127.0.0.2")
        report = await asker.reached.ask(helper.peer)
        assert outcome_of(report) in {Outcome.OTHER_PEER, Outcome.NO_ANSWER}
        with trio.fail_after(30):
            while not heard:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert heard == [MULTISTREAM_HEADER]


async def test_in_a_private_network_another_service_is_sent_nothing_that_can_be_read(
    monkeypatch,
):
    monkeypatch.setattr(reachability, "DIAL_TIME_LIMIT_S", 1.0)
    private = PrivateNetwork(make_key("friends"))
    async with (
        open_node(private=private) as asker,
        open_node(private=private) as helper,
        open_service("127.0.0.2", asker.port) as heard,
    ):
        await link(asker, helper, ip="127.0.0.2")
        assert outcome_of(await asker.reached.ask(helper.peer)) is Outcome.NO_ANSWER
        with trio.fail_after(30):
            while not heard:  # noqa: ASYNC110
                await trio.sleep(0.01)
        assert len(heard[0]) == 24 + len(MULTISTREAM_HEADER)
        assert b"multistream" not in heard[0]


async def test_a_third_party_cannot_even_be_named():
    async with (
        open_node() as asker,
        open_node() as helper,
        open_service("127.0.0.3", asker.port) as heard,
    ):
        await link(asker, helper)
        stream = await asker.network.open_stream(helper.peer, CONTROL_PROTOCOL, 5)
        hello = Hello(protocol=(PROTOCOL_MAJOR, PROTOCOL_MINOR), agent="attacker/1")
        await send_frame(stream, Request(id=0, body=hello))
        await receive_frame(stream, Response)
        frame = encode(Request(id=1, body=DialBack(nonce=NONCE, ports=(asker.port,))))
        key = b"\x83\xa4type\xa9dial_back"
        assert key in frame  # a map of three; then one of four, with addresses
        forged = frame.replace(key, b"\x84\xa9addresses\x91\xa9127.0.0.3" + key[1:])
        await stream.send_all(len(forged).to_bytes(4, "big") + forged)
        with pytest.raises(NetworkError), trio.fail_after(9):
            await receive_frame(stream, Response)
        assert not heard


async def test_only_where_the_asker_comes_from_is_dialled():
    async with open_node("/ip4/0.0.0.0/tcp/0") as asker, open_node() as helper:
        dialled = []
        stock = helper.network.dial_back

        async def dial_back(peer, ip, port, token, timeout_s):
            dialled.append((peer, ip))
            return await stock(peer, ip, port, token, timeout_s)

        helper.network.dial_back = dial_back
        await link(asker, helper, ip="127.0.0.9")
        await asker.reached.ask(helper.peer)
        assert dialled == [(asker.peer, "127.0.0.9")]


async def test_a_flood_of_requests_is_dialled_for_a_few_times_and_answered_for_all():
    async with open_node() as asker, open_node() as helper:
        await link(asker, helper)
        stop_refills(helper)
        at_once = most = dials = 0

        async def dial_back(*_):
            nonlocal at_once, most, dials
            at_once, dials = at_once + 1, dials + 1
            most = max(most, at_once)
            await trio.sleep(0.2)
            at_once -= 1
            return Outcome.REFUSED

        helper.network.dial_back = dial_back
        answers = []

        async def ask():
            request = DialBack(nonce=NONCE, ports=(1, 2, 3, 4))
            answers.append(await asker.control.request(helper.peer, request, 10))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)
        assert len(answers) == 100
        assert dials == DIAL_BACK_BURST * 4
        assert most <= 4 * reachability.DIAL_BACKS_AT_ONCE
        assert {answer.seen_as for answer in answers} == {"127.0.0.1"}
        spared = [a for a in answers if set(a.outcomes) == {Outcome.NOT_DIALLED}]
        assert len(spared) == 100 - DIAL_BACK_BURST


async def test_keys_made_up_at_one_address_share_its_dial_backs():
    async with open_node() as helper, AsyncExitStack() as stack:
        dials = 0

        async def dial_back(*_):
            nonlocal dials
            dials += 1
            return Outcome.REFUSED

        helper.network.dial_back = dial_back
        stop_refills(helper)
        for _ in range(5):
            asker = await stack.enter_async_context(open_node())
            await link(asker, helper)
            await asker.reached.ask(helper.peer)
        assert dials == DIAL_BACK_BURST


async def test_a_dial_back_that_nobody_asked_for_is_not_answered():
    async with open_node() as node, open_node() as stranger:
        token = bytes(18)
        found = await stranger.network.dial_back(node.peer, "127.0.0.1", node.port, token, 5)
        assert found is Outcome.OTHER_PEER
        await link(stranger, node)  # and it goes on as before


async def test_a_token_counts_from_the_peer_that_was_asked_and_from_no_other():
    async with open_node() as asker, open_node() as helper, open_node() as thief:
        said = []

        async def hand_on(peer, body):
            token = bytes.fromhex(body.nonce) + asker.port.to_bytes(2, "big")
            said.append(
                await thief.network.dial_back(asker.peer, "127.0.0.1", asker.port, token, 5)
            )
            return DialedBack(seen_as="127.0.0.1", outcomes=(Outcome.WORKED,))

        helper.control.answer_with(hand_on)
        await link(asker, helper)
        report = await asker.reached.ask(helper.peer)
        assert said == [Outcome.OTHER_PEER]
        assert not report.shown


@pytest.mark.parametrize(
    "answer",
    [
        DialedBack(seen_as="localhost", outcomes=(Outcome.WORKED,)),
        DialedBack(seen_as="127.0.0.1", outcomes=(Outcome.WORKED, Outcome.WORKED)),
        Done(),
    ],
)
async def test_nonsense_in_answer_is_no_evidence(answer):
    async def nonsense(peer, body):
        return answer

    async with open_node() as asker, open_node() as helper:
        helper.control.answer_with(nonsense)
        await link(asker, helper)
        assert await asker.reached.ask(helper.peer) is None
        assert asker.reached.view().evidence == ()


async def test_what_dials_as_libp2p_and_offers_dial_backs_alone_gives_no_connection():
    async with open_node() as node, open_node() as odd:
        security = odd.network._swarm.upgrader.security_multistream
        for protocol in [each for each in security.transports if each != DIAL_BACK_PROTOCOL]:
            del security._selector.handlers[protocol]
            security._selector.multiselect.remove_handler(protocol)
        with pytest.raises(NetworkError, match="cannot be reached"):
            await node.network.connect(odd.peer, odd.places, 3)


# --- the advert follows ----------------------------------------------------------------


async def test_the_advert_of_a_swarm_on_loopback_stays_as_it_is_and_nobody_is_asked(
    monkeypatch, autojump_clock
):
    async with open_node() as node, open_node() as other:
        await link(node, other)
        other.control.answer_with(None)  # a request would fail there, and be logged
        before = node.reached.advertised()
        with trio.move_on_after(30 * reachability.TICK_S):
            await node.reached.run()
        assert node.known.announced == 0
        assert node.reached.advertised() == before
        assert "listens on loopback only" in node.reached.view().sentence


@pytest.mark.parametrize(
    ("listen", "verdict"), [("0.0.0.0", Verdict.PUBLIC), ("127.0.8.8", Verdict.BLOCKED)]
)
async def test_a_node_comes_to_a_verdict_and_its_advert_follows(listen, verdict, monkeypatch):
    """As on the internet, played by the networks 127.0.1.0/24 and on."""
    monkeypatch.setattr(reachability, "TICK_S", 0.02)
    for module in (protocol_reachability, advertising):
        monkeypatch.setattr(module, "scope_of", lambda ip: Scope.INTERNET)
    async with open_node(f"/ip4/{listen}/tcp/0") as node, AsyncExitStack() as stack:
        helpers = []
        for number in (1, 2, 3):
            place = f"/ip4/127.0.{number}.1/tcp/0"
            helpers.append(await stack.enter_async_context(open_node(place)))
            await link(node, helpers[-1], ip="127.0.9.9")
        with trio.move_on_after(30) as running:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.reached.run)
                while not node.known.announced:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
        assert not running.cancelled_caught
        assert len(node.reached.view().evidence) == 3
        assert node.reached.judgement().verdict is verdict
        found = node.reached.advertised()
        if verdict is Verdict.PUBLIC:
            assert (found.places, found.via) == ((("127.0.9.9", node.port),), ())
        else:
            assert found.places == ((listen, node.port),)  # nobody has tried that
            assert set(found.via) == {helper.peer for helper in helpers}


@pytest.mark.parametrize("minor", [PROTOCOL_MINOR, 1])
async def test_a_peer_too_old_for_it_is_neither_asked_nor_named_as_introducer(
    minor, monkeypatch
):
    monkeypatch.setattr(advertising, "scope_of", lambda ip: Scope.INTERNET)
    async with open_node() as node, open_node() as helper:
        await link(node, helper)
        node.known.take(helper.advert(sequence=2, minor=minor))
        node.reached.advertised()
        able = (helper.peer,) if minor == PROTOCOL_MINOR else ()
        assert node.reached._introducers == able
        assert tuple(node.reached._askable()) == able


# --- introductions ---------------------------------------------------------------------


@asynccontextmanager
async def three():
    """A requester, an introducer, and a node that listens nowhere and is linked to that one."""
    async with open_node() as requester, open_node() as introducer:
        key = identity.generate()
        async with open_network(key, []) as network, open_control(network, "test/1") as control:
            hidden = Node(key, network, control)
            await link(hidden, introducer)
            requester.known.take(introducer.advert())
            requester.known.take(requester.advert())
            requester.known.take(hidden.advert(via=(introducer.peer,), sequence=2))
            yield requester, introducer, hidden


async def test_a_node_that_cannot_be_dialled_is_reached_and_streams_go_both_ways():
    async with three() as (requester, _, hidden):
        await requester.introductions.reach(hidden.peer)
        assert hidden.peer in requester.network.connected()
        assert requester.known.needed == {hidden.peer}  # else nobody watches the connection
        for one, other in ((requester, hidden), (hidden, requester)):
            other.network.handle(BLOB_PROTOCOL, echo)
            async with await one.network.open_stream(other.peer, BLOB_PROTOCOL, 5) as stream:
                await stream.send_all(b"bulk" * 100_000)
                assert await stream.receive_exactly(400_000) == b"bulk" * 100_000
            answer = await one.control.request(
                other.peer,
                DialBack(nonce=NONCE, ports=(other.port,) if other.places else (9,)),
                9,
            )
            assert isinstance(answer, DialedBack)


async def test_who_is_connected_and_a_node_to_itself_need_no_introduction():
    async with three() as (requester, introducer, hidden):
        introducer.control.answer_with(None)
        requester.known.take(requester.advert(via=(introducer.peer,), sequence=3))
        await requester.introductions.reach(requester.peer)
        await link(hidden, requester)
        await requester.introductions.reach(hidden.peer)
        assert introducer.peer not in requester.network.connected()
        assert requester.known.needed == {hidden.peer}


async def test_an_introducer_that_is_not_linked_says_so_and_the_error_names_it():
    async with three() as (requester, introducer, hidden):
        del introducer.known.links[hidden.peer]
        with pytest.raises(NetworkError, match="introducer is not linked to it") as caught:
            await requester.introductions.reach(hidden.peer)
        assert caught.value.code == "not_introduced"
        assert introducer.peer in caught.value.message


async def test_a_failure_is_not_tried_again_at_once():
    async with three() as (requester, introducer, hidden):
        del introducer.known.links[hidden.peer]
        with pytest.raises(NetworkError):
            await requester.introductions.reach(hidden.peer)
        introducer.known.links[hidden.peer] = Link(since_s=0.0)
        with pytest.raises(NetworkError, match="introducer is not linked to it"):
            await requester.introductions.reach(hidden.peer)


async def test_a_requester_that_cannot_be_dialled_either_is_told_so_and_asks_nobody():
    async with three() as (requester, introducer, hidden):
        introducer.control.answer_with(None)  # a request would fail there
        requester.verdict = Verdict.BLOCKED
        requester.known.take(requester.advert(addresses=(), sequence=2))
        with pytest.raises(NetworkError, match="there is no relay") as caught:
            await requester.introductions.reach(hidden.peer)
        assert caught.value.code == "both_private"


async def test_a_requester_that_its_own_network_can_dial_is_introduced_by_a_peer_in_there():
    async with three() as (requester, _, hidden):
        requester.verdict = Verdict.PRIVATE
        await requester.introductions.reach(hidden.peer)
        assert hidden.peer in requester.network.connected()


async def test_a_requester_whose_addresses_do_not_answer_hears_what_the_node_found():
    async with three() as (requester, _, hidden):
        requester.known.take(requester.advert(addresses=("/ip4/127.0.0.1/tcp/9",), sequence=2))
        with pytest.raises(NetworkError, match=r"it dialled, and .* connection refused"):
            await requester.introductions.reach(hidden.peer)


async def test_a_node_need_not_take_part():
    async with three() as (requester, _, hidden):
        hidden.unwelcome.add(requester.peer)
        with pytest.raises(NetworkError, match="does not want a connection"):
            await requester.introductions.reach(hidden.peer)
        assert not hidden.network.connected() & {requester.peer}


# --- introductions: what cannot be done with them --------------------------------------


async def test_nobody_is_introduced_by_anothers_advert():
    async with three() as (requester, introducer, hidden), open_node() as victim:
        await requester.introductions.reach(introducer.peer)
        aimed = Introduce(peer=hidden.peer, advert=victim.advert())
        with pytest.raises(RemoteProtocolError, match="another node's advert"):
            await requester.control.request(introducer.peer, aimed, 5)
        assert not hidden.network.connected() & {victim.peer}


async def test_an_introducer_cannot_make_addresses_up():
    async with three() as (requester, introducer, hidden):
        forged = introducer.advert(peer=requester.peer, addresses=("/ip4/127.0.0.3/tcp/80",))
        dialled = []
        hidden.network.connect = lambda *a: dialled.append(a)
        told = Introduction(advert=forged)
        with pytest.raises(RemoteProtocolError):
            await introducer.control.request(hidden.peer, told, 5)
        with pytest.raises(VerificationError):
            await hidden.introductions.answer(introducer.peer, told)
        assert not dialled


async def test_a_newer_advert_that_the_node_holds_already_counts_in_place_of_an_older_one():
    async with three() as (requester, introducer, hidden):
        old = requester.advert(addresses=("/ip4/127.0.0.3/tcp/80",), sequence=1)
        hidden.known.take(requester.advert(sequence=2))
        answer = await introducer.control.request(hidden.peer, Introduction(advert=old), 5)
        assert answer == Done()
        assert hidden.network.remote_address(requester.peer) == requester.places[0]


async def test_who_is_not_linked_introduces_nobody():
    async with three() as (requester, introducer, hidden):
        del hidden.known.links[introducer.peer]
        told = Introduction(advert=requester.advert())
        answer = await introducer.control.request(hidden.peer, told, 5)
        assert answer == NotIntroduced(detail="it is not linked to the introducer")


async def test_a_flood_of_introductions_is_passed_on_and_dialled_a_few_times():
    async with three() as (requester, introducer, hidden):
        await requester.introductions.reach(introducer.peer)
        stop_refills(introducer, hidden)
        passed_on = dials = 0
        stock = introducer.control.request

        async def request(peer, body, timeout_s):
            nonlocal passed_on
            passed_on += 1
            return await stock(peer, body, timeout_s)

        async def connect(*_):
            nonlocal dials
            dials += 1
            raise NetworkError("it is a third party")

        introducer.control.request = request
        hidden.network.connect = connect
        answers = []

        async def ask():
            asked = Introduce(peer=hidden.peer, advert=requester.advert())
            answers.append(await requester.control.request(introducer.peer, asked, 10))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)
        assert {type(answer) for answer in answers} == {NotIntroduced}
        assert len(answers) == 100
        assert passed_on == 10
        assert dials == 3


async def test_introductions_that_hang_are_bounded(monkeypatch):
    monkeypatch.setattr(introductions, "PASS_ON_TIME_LIMIT_S", 1.0)
    monkeypatch.setattr(introductions, "AT_ONCE_LIMIT", 2)
    async with three() as (requester, introducer, hidden):
        await requester.introductions.reach(introducer.peer)

        async def hang(peer, body):
            await trio.sleep_forever()

        hidden.control.answer_with(hang)
        answers = []

        async def ask():
            asked = Introduce(peer=hidden.peer, advert=requester.advert())
            answers.append(await requester.control.request(introducer.peer, asked, 10))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask)
        said = sorted(answer.detail.split(":")[0] for answer in answers)
        assert said == ["it did not answer"] * 2 + ["the introducer is asked too often"] * 4
