"""Names resolved by a server of the test's own, and by resolvers that hang."""

import socket
import threading
from contextlib import asynccontextmanager

import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio

from shoal.crypto.identity import generate
from shoal.node import names
from shoal.node.addresses import Address, DnsAddress, parse_address
from shoal.node.errors import NetworkError
from shoal.node.names import LOOKUPS_AT_ONCE, Names

PEER = generate().peer_id
AT_PEER = f"/ip4/192.0.2.1/tcp/4711/p2p/{PEER}"


@asynccontextmanager
async def dns_server(zone):
    """A DNS server with these TXT records; gives a resolver that asks it, and what it asked."""
    asked = []

    async def serve(sock):
        while True:
            packet, sender = await sock.recvfrom(4096)
            query = dns.message.from_wire(packet)
            question = query.question[0]
            name = question.name.to_text(omit_final_dot=True)
            asked.append(name)
            answer = dns.message.make_response(query)
            if zone.get(name) is None:
                answer.set_rcode(dns.rcode.NXDOMAIN)
            elif zone[name]:
                texts = [f'"{text}"' for text in zone[name]]
                answer.answer.append(
                    dns.rrset.from_text_list(question.name, 60, "IN", "TXT", texts)
                )
            await sock.sendto(answer.to_wire(), sender)

    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, sock)
            yield Names(["127.0.0.1"], sock.getsockname()[1]), asked
            nursery.cancel_scope.cancel()


async def test_a_dnsaddr_name_is_resolved_through_other_names():
    zone = {
        "_dnsaddr.shoal.example": ["dnsaddr=/dnsaddr/eu.shoal.example", "unrelated"],
        "_dnsaddr.eu.shoal.example": [f"dnsaddr={AT_PEER}"],
    }
    async with dns_server(zone) as (resolver, asked):
        assert await resolver.peers(DnsAddress("shoal.example")) == [parse_address(AT_PEER)]
        assert asked == list(zone)


async def test_one_dead_branch_of_a_name_does_not_spoil_the_others():
    zone = {
        "_dnsaddr.shoal.example": [
            "dnsaddr=/dnsaddr/gone.shoal.example",
            "dnsaddr=/dnsaddr/eu.shoal.example",
        ],
        "_dnsaddr.eu.shoal.example": [f"dnsaddr={AT_PEER}"],
    }
    async with dns_server(zone) as (resolver, _):
        assert len(await resolver.peers(DnsAddress("shoal.example"))) == 1


@pytest.mark.parametrize(
    ("records", "code"),
    [
        (None, "name_unknown"),
        ([], "name_unknown"),
        (["something else"], "name_empty"),
        ([f"dnsaddr=/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{PEER}"], "name_empty"),
    ],
)
async def test_a_name_that_leads_nowhere_says_why(records, code):
    async with dns_server({"_dnsaddr.shoal.example": records}) as (resolver, _):
        with pytest.raises(NetworkError) as caught:
            await resolver.peers(DnsAddress("shoal.example"))
        assert caught.value.code == code
        assert "_dnsaddr.shoal.example" in caught.value.message
        assert caught.value.hint


async def test_a_dns_server_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr(names, "LOOKUP_LIMIT_S", 0.3)
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        await silent.bind(("127.0.0.1", 0))
        resolver = Names(["127.0.0.1"], silent.getsockname()[1])
        with pytest.raises(NetworkError) as caught, trio.fail_after(5):
            await resolver.peers(DnsAddress("shoal.example"))
        assert caught.value.code == "name_unresolved"


# --- hosts, by the system's resolver ---


async def test_every_address_of_a_host_is_one_to_dial(monkeypatch):
    monkeypatch.setattr(names, "_ask_system", lambda kind, host: ["192.0.2.1", "2001:db8::1"])
    found = await Names().hosts(Address("dns", "shoal.example", 4711, PEER))
    assert found == [
        Address("ip4", "192.0.2.1", 4711, PEER),
        Address("ip6", "2001:db8::1", 4711, PEER),
    ]


async def test_an_ip_address_is_no_question():
    address = Address("ip4", "192.0.2.1", 4711, PEER)
    assert await Names().hosts(address) == [address]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (socket.gaierror(socket.EAI_NONAME, "no such name"), "name_unknown"),
        (socket.gaierror(socket.EAI_AGAIN, "try again"), "name_unresolved"),
        (UnicodeError("label too long"), "name_unresolved"),
    ],
)
async def test_a_host_that_is_not_resolved_says_why(monkeypatch, failure, code):
    def fails(kind, host):
        raise failure

    monkeypatch.setattr(names, "_ask_system", fails)
    with pytest.raises(NetworkError) as caught:
        await Names().hosts(Address("dns4", "shoal.example", 1))
    assert (caught.value.code, "shoal.example" in caught.value.message) == (code, True)


class Hung:
    """A resolver that answers nobody until it is let go."""

    def __init__(self):
        self.asked = []
        self.freed = threading.Event()

    def __call__(self, kind, host):
        self.asked.append(host)
        self.freed.wait(20)
        return ["192.0.2.1"]


@pytest.fixture
def hung(monkeypatch):
    resolver = Hung()
    monkeypatch.setattr(names, "_ask_system", resolver)
    yield resolver
    resolver.freed.set()


async def ask(resolver, host, limit_s):
    with pytest.raises(NetworkError) as caught:
        await resolver.hosts(Address("dns4", host, 1), limit_s)
    assert caught.value.code == "name_unresolved"


async def test_a_hung_resolver_takes_few_threads_and_is_waited_for_no_longer_than_said(hung):
    resolver, before = Names(), threading.active_count()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(ask, resolver, f"n{number}.example", 0.3)
        await ask(resolver, "later.example", 0.1)
    assert len(hung.asked) == LOOKUPS_AT_ONCE
    assert threading.active_count() <= before + LOOKUPS_AT_ONCE + 2
    assert resolver._pending.keys() == {("dns4", host) for host in hung.asked}


async def test_a_name_that_hangs_takes_one_thread_however_often_it_is_asked_for(hung):
    resolver = Names()
    for _ in range(3):
        await ask(resolver, "hung.example", 0.05)
    assert hung.asked == ["hung.example"]


async def test_a_resolver_that_wakes_up_is_used_again(hung):
    resolver = Names()
    await ask(resolver, "shoal.example", 0.05)
    hung.freed.set()
    with trio.fail_after(30):
        while resolver._pending:  # noqa: ASYNC110  # there is no event for it
            await trio.sleep(0.01)
        assert await resolver.hosts(Address("dns4", "shoal.example", 1))


async def test_two_who_ask_for_one_name_share_the_answer(hung):
    resolver, found = Names(), []

    async def wanted():
        found.append(await resolver.hosts(Address("dns4", "shoal.example", 1), 5.0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wanted)
        nursery.start_soon(wanted)
        await trio.testing.wait_all_tasks_blocked()
        hung.freed.set()
    assert len(found) == 2
    assert hung.asked == ["shoal.example"]
