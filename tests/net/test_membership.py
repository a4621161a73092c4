"""Which links a node has, while peers start late, hang, and disks fill up."""

import time
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from shoal.crypto import identity
from shoal.crypto.envelope import Statement
from shoal.node.control import open_control
from shoal.node.errors import NetworkError
from shoal.node.membership import Membership, Seeds, open_membership
from shoal.node.network import open_network
from shoal.node.state import open_state
from shoal.protocol import dialling
from shoal.protocol.codec import encode
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR
from shoal.protocol.membership_events import Compared
from shoal.protocol.messages import Adverts
from shoal.protocol.statements import Advert

LINKED_LIMIT_S = 20.0


class Node:
    """A node that does nothing but know others."""

    def __init__(self, key, network, control, journal, seeds):
        self.key, self.network, self.control, self.journal = key, network, control, journal
        self.peer = key.peer_id
        self.offences = []
        self.members = Membership(
            key, network, control, journal, self.describe, seeds, self.broke
        )

    def broke(self, peer, offence, _detail):
        self.offences.append((peer, str(offence)))

    def describe(self, sequence, lifetime_s):
        return Advert(
            peer=self.peer,
            sequence=sequence,
            issued_at_ms=sequence,
            lifetime_s=lifetime_s,
            protocol=(PROTOCOL_MAJOR, PROTOCOL_MINOR),
            agent="test/1",
            addresses=self.addresses,
            devices=(),
            numeric_classes=(),
            providing=False,
        )

    @property
    def addresses(self):
        return tuple(place.rpartition("/p2p/")[0] for place in self.network.addresses())

    def answer(self):
        self.control.answer_with(self.members.answer)

    async def linked(self, peer):
        """Wait until ``peer`` is a link."""
        with trio.fail_after(LINKED_LIMIT_S):
            while peer not in self.members.links:  # noqa: ASYNC110  # there is no event for it
                await trio.sleep(0.02)


@asynccontextmanager
async def open_node(home, *, key=None, listen="/ip4/127.0.0.1/tcp/0", bootstrap=None):
    """A node that answers nobody until it is told to."""
    key = key or identity.generate()
    home.mkdir()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        journal = await enter(open_state(home / "state.sqlite"))
        network = await enter(open_network(key, [listen]))
        control = await enter(open_control(network, "test/1"))
        node = Node(key, network, control, journal, Seeds(bootstrap=bootstrap or {}))
        await enter(open_membership(node.members))
        yield node


async def test_a_peer_that_was_starting_when_it_was_greeted_becomes_a_link(tmp_path):
    async with open_node(tmp_path / "late") as late:
        seeds = {late.peer: late.addresses}
        async with open_node(tmp_path / "early", bootstrap=seeds) as early:
            early.answer()
            with trio.fail_after(LINKED_LIMIT_S):
                while late.peer not in early.network.connected():  # noqa: ASYNC110
                    await trio.sleep(0.02)
            await trio.sleep(0.3)  # the first greeting has failed by now
            assert late.peer not in early.members.links
            late.answer()
            await early.linked(late.peer)


async def test_what_others_tell_while_they_end_after_it_is_not_acted_on(tmp_path):
    async with open_node(tmp_path / "node") as node:
        pass
    node.members.hear_of(identity.generate().peer_id, ["/ip4/127.0.0.1/tcp/1"], "bootstrap")
    node.members.announce()


async def test_a_link_that_is_worked_with_is_kept_when_it_has_no_room_any_more(tmp_path):
    async with open_node(tmp_path / "full") as full:
        full.answer()
        seeds = {full.peer: full.addresses}
        async with open_node(tmp_path / "requester", bootstrap=seeds) as requester:
            requester.answer()
            await requester.linked(full.peer)
            await requester.members.reach(full.peer)
            no_room = Adverts(adverts=(), room=False)
            requester.members._tell(Compared(full.peer, no_room))
            assert full.peer in requester.members.links


async def test_a_node_alone_finds_its_bootstrap_peer_soon_after_that_has_started(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(dialling, "BACK_OFF_FIRST_S", 60.0)  # as after a minute of failures
    key = identity.generate()
    async with open_network(key, ["/ip4/127.0.0.1/tcp/0"]) as passing:
        place = passing.addresses()[0].rpartition("/p2p/")[0]
    async with open_node(tmp_path / "alone", bootstrap={key.peer_id: (place,)}) as alone:
        alone.answer()
        await trio.sleep(0.5)  # the first dial has failed by now
        async with open_node(tmp_path / "first", key=key, listen=place) as first:
            first.answer()
            await alone.linked(first.peer)


@pytest.mark.parametrize("moment", ["before they met", "after they met"])
async def test_a_state_that_cannot_be_written_ends_no_membership(tmp_path, moment):
    async with open_node(tmp_path / "first") as first:
        first.answer()
        async with open_node(tmp_path / "full") as full:
            full.answer()
            if moment == "after they met":
                await full.network.connect(first.peer, first.addresses, 5)
                await full.linked(first.peer)
            full.journal._database.execute("PRAGMA query_only = ON")
            full.members.announce()
            await full.network.connect(first.peer, first.addresses, 5)
            await full.linked(first.peer)
            await first.linked(full.peer)
            await trio.sleep(1.5)  # an advert was due
            assert first.peer in full.members.links


async def test_a_peer_that_answers_with_nonsense_becomes_no_link(tmp_path):
    async def nonsense(peer, body):
        return Adverts(adverts=((b"no advert", 0.0),))

    async with open_node(tmp_path / "odd") as odd, open_node(tmp_path / "good") as good:
        good.answer()
        odd.control.answer_with(nonsense)
        await good.network.connect(odd.peer, odd.addresses, 5)
        await odd.linked(good.peer)
        await trio.sleep(0.3)
        assert odd.peer not in good.members.links
        assert set(good.offences) == {(odd.peer, "bad_advert")}


async def test_who_gossips_what_nobody_signed_is_reported_and_who_gossips_news_is_not(
    tmp_path,
):
    forged = bytearray(identity.generate().sign(Statement.ADVERT, b"not even an advert"))
    newer = bytes(forged)  # well signed; perhaps a newer node understands it
    forged[-1] ^= 1
    async with open_node(tmp_path / "one") as one:
        assert not one.members._validate("mallory", bytes(forged))
        assert one.offences == [("mallory", "bad_advert")]
        assert not one.members._validate("bob", newer)
        assert len(one.offences) == 1


async def test_a_peer_that_is_heard_of_becomes_a_link(tmp_path):
    async with open_node(tmp_path / "here") as here, open_node(tmp_path / "there") as there:
        here.answer()
        there.answer()
        here.members.hear_of(there.peer, there.addresses, "lan")
        await here.linked(there.peer)
        await there.linked(here.peer)


async def test_what_is_heard_and_changed_before_the_start_is_not_forgotten(tmp_path):
    async with open_node(tmp_path / "there") as there:
        there.answer()
        key = identity.generate()
        (tmp_path / "here").mkdir()
        async with AsyncExitStack() as stack:
            enter = stack.enter_async_context
            journal = await enter(open_state(tmp_path / "here" / "state.sqlite"))
            network = await enter(open_network(key, ["/ip4/127.0.0.1/tcp/0"]))
            control = await enter(open_control(network, "test/1"))
            here = Node(key, network, control, journal, Seeds())
            here.members.announce()
            here.members.hear_of(there.peer, there.addresses, "bootstrap")
            here.answer()
            await enter(open_membership(here.members))
            assert here.members.table.get(here.peer) is not None
            await here.linked(there.peer)


async def test_a_full_node_sends_its_callers_to_others(tmp_path):
    async with open_node(tmp_path / "first") as first:
        first.answer()
        first.members._member.links_limit = 1
        seeds = {first.peer: first.addresses}
        async with open_node(tmp_path / "second", bootstrap=seeds) as second:
            second.answer()
            await first.linked(second.peer)
            async with open_node(tmp_path / "third", bootstrap=seeds) as third:
                third.answer()
                await third.linked(second.peer)
                assert third.peer not in first.members.links
                assert first.peer in third.members.table


async def test_a_node_that_a_call_does_not_reach_is_gone_at_once_for_the_caller(tmp_path):
    async with open_node(tmp_path / "caller") as caller, open_node(tmp_path / "other") as other:
        caller.answer()
        other.answer()
        dead = identity.generate()
        caller.members.hear_of(other.peer, other.addresses, "told")
        await caller.linked(other.peer)
        advert = Advert(
            peer=dead.peer_id,
            sequence=1,
            issued_at_ms=time.time_ns() // 1_000_000,
            lifetime_s=60.0,
            protocol=(PROTOCOL_MAJOR, PROTOCOL_MINOR),
            agent="test/1",
            addresses=("/ip4/127.0.0.1/tcp/1",),
            devices=(),
            numeric_classes=(),
            providing=False,
        )
        envelope = dead.sign(Statement.ADVERT, encode(advert))
        for node in (caller, other):
            await node.members.answer(other.peer, Adverts(adverts=((envelope, 0.0),)))
        with pytest.raises(NetworkError):
            await caller.members.reach(dead.peer_id)
        assert dead.peer_id not in caller.members.table
        assert dead.peer_id in other.members.table
        (lost,) = caller.members.lost
        assert (lost.peer, lost.why) == (dead.peer_id, "a call found nobody there")
        assert 0.0 <= lost.ago_s < LINKED_LIMIT_S
        assert other.members.lost == []


async def test_a_connection_that_work_needs_is_a_link_however_full_both_nodes_are(tmp_path):
    async with open_node(tmp_path / "a") as a, open_node(tmp_path / "b") as b:
        for node in (a, b):
            node.answer()
            node.members._member.links_limit = 0
        await a.network.connect(b.peer, b.addresses, 5)
        await trio.sleep(1.5)  # each would have greeted the other by now
        assert b.peer not in a.members.links
        await a.members.reach(b.peer)
        await a.linked(b.peer)
        assert a.peer not in b.members.links
