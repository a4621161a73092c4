"""A node on its local network, with a conversation that a test makes up."""

import ipaddress
from contextlib import asynccontextmanager

import pytest
import trio

from shoal.crypto.identity import generate
from shoal.node import lan
from shoal.node.lan import Lan
from shoal.node.lan_records import NAMES_LIMIT, SERVICE

SELF, OTHER = generate().peer_id, generate().peer_id
HOST = "192.168.7.5"


class Conversation:
    """In place of zeroconf: says what it is told to, and costs what it is told to."""

    opened: list
    fails = None
    cost_s = 0.0
    says: dict

    def __init__(self, hosts):
        if self.fails:
            raise self.fails
        self.hosts, self.ended, self.announced, self.asked = hosts, False, (), []
        self.opened.append(self)

    def begin(self, wanted, note):
        self.announced, self.note = wanted, note

    def ask(self, name):
        self.asked.append(name)
        said = self.says.get(name)
        if isinstance(said, Exception):
            raise said
        return said

    def cpu_s(self):
        return self.cost_s

    def end(self):
        self.ended = True


@pytest.fixture
def conversation(monkeypatch):
    class Made(Conversation):
        opened, says = [], {}

    monkeypatch.setattr(lan, "_Conversation", Made)
    monkeypatch.setattr(lan, "own_interfaces", lambda: [ipaddress.ip_interface(f"{HOST}/24")])
    monkeypatch.setattr(lan, "WATCH_INTERVAL_S", 0.05)
    monkeypatch.setattr(lan, "LOOK_PAUSE_S", 0.001)
    monkeypatch.setattr(lan, "LOOK_AGAIN_S", 0.05)
    return Made


class Place:
    """Where the node listens, which a test may change, and what it has found."""

    def __init__(self):
        self.addresses = (f"/ip4/{HOST}/tcp/4711/p2p/{SELF}",)
        self.found = []
        self.lan = Lan(SELF, "", lambda: self.addresses, lambda *who: self.found.append(who))


@asynccontextmanager
async def running():
    place = Place()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.lan.run)
        yield place
        nursery.cancel_scope.cancel()


async def eventually(condition):
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110  # there is no event for it
            await trio.sleep(0.01)


def said(peer=OTHER, host="192.168.7.9"):
    return {b"peer": peer.encode(), b"net": b""}, [host], 4711


async def test_what_is_heard_is_found_and_what_breaks_the_reader_is_not(conversation):
    odd = UnicodeDecodeError("ascii", b"", 0, 1, "")
    conversation.says = {"good": said(), "gone": None, "odd": odd}
    async with running() as place:
        await eventually(lambda: "announced" in place.lan.state)
        (talk,) = conversation.opened
        assert (talk.hosts, talk.announced[0].port) == ([HOST], 4711)
        for name in ("odd", "gone", "good", "good"):
            await trio.to_thread.run_sync(talk.note, name)
        await eventually(lambda: place.found)
        assert place.found == [(OTHER, ("/ip4/192.168.7.9/tcp/4711",))]
        assert talk.asked.count("good") == 1, "it was looked at a moment ago"
    assert talk.ended


async def test_of_a_flood_of_names_few_wait(conversation):
    async with running() as place:
        await eventually(lambda: "announced" in place.lan.state)
        (talk,) = conversation.opened
        for number in range(100 * NAMES_LIMIT):
            talk.note(f"n{number}.{SERVICE}")
        last = f"n{100 * NAMES_LIMIT - 1}.{SERVICE}"
        await eventually(lambda: last in talk.asked)
        assert len(talk.asked) <= NAMES_LIMIT + 1


async def test_a_node_that_listening_costs_too_much_is_silent_for_a_while(
    conversation, monkeypatch
):
    monkeypatch.setattr(lan, "FLOODED_PAUSE_S", 60.0)
    async with running() as place:
        await eventually(lambda: "announced" in place.lan.state)
        conversation.cost_s = 0.04
        await eventually(lambda: "silent" in place.lan.state)
        await trio.sleep(0.2)
        assert [talk.ended for talk in conversation.opened] == [True]


async def test_a_machine_without_multicast_goes_on_and_is_asked_again(conversation):
    conversation.fails = OSError(19, "No such device")
    async with running() as place:
        await eventually(lambda: "No such device" in place.lan.state)
        conversation.fails = None
        await eventually(lambda: "announced" in place.lan.state)


async def test_a_node_on_loopback_alone_is_silent_until_it_listens_elsewhere(conversation):
    async with running() as place:
        await eventually(lambda: "announced" in place.lan.state)
        elsewhere, place.addresses = place.addresses, (f"/ip4/127.0.0.1/tcp/1/p2p/{SELF}",)
        await eventually(lambda: "no private address" in place.lan.state)
        assert [talk.ended for talk in conversation.opened] == [True]
        place.addresses = elsewhere
        await eventually(lambda: len(conversation.opened) == 2)
