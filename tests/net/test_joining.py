"""Ways into the network: names that move, failures that are told, peers that are kept."""

from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import structlog.testing
import trio
from test_membership import LINKED_LIMIT_S, open_node
from test_names import dns_server

from shoal.crypto.identity import generate
from shoal.node import joining, joining_plan
from shoal.node.addresses import parse_bootstrap
from shoal.node.errors import ConfigError, NetworkError, StoreError
from shoal.node.joining import Joining
from shoal.node.joining_plan import Entry, Source
from shoal.node.known_peers import Places
from shoal.node.remembered_peers import RememberedPeer, remembered

NOBODY_ID, PEER = generate().peer_id, generate().peer_id
NOBODY = f"/ip4/127.0.0.1/tcp/1/p2p/{NOBODY_ID}"


@asynccontextmanager
async def joining_node(home, *texts, zone=None, remembered=()):
    """A node that joins by ``texts``, with its joining and its DNS zone."""
    entries = tuple(Entry(text, Source.SETTING, parse_bootstrap(text)) for text in texts)
    places = Places(entries, tuple(remembered))
    zone = {} if zone is None else zone
    async with AsyncExitStack() as stack:
        resolver, _ = await stack.enter_async_context(dns_server(zone))
        node = await stack.enter_async_context(
            open_node(home, bootstrap=places.seeds().bootstrap)
        )
        node.answer()
        node.network.dialing.names = resolver
        node.joining = Joining(places, node.network, node.members, node.journal, lan=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.joining.run)
            yield node
            nursery.cancel_scope.cancel()


async def eventually(condition):
    with trio.fail_after(LINKED_LIMIT_S):
        while not (found := condition()):  # noqa: ASYNC110  # there is no event for it
            await trio.sleep(0.02)
        return found


def record(node):
    return f"dnsaddr={node.network.addresses()[0]}"


async def test_a_node_joins_by_a_name_and_follows_it_when_it_moves(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "TICK_S", 0.05)
    monkeypatch.setattr(joining_plan, "RESOLVE_ALONE_S", 0.2)
    monkeypatch.setattr(joining_plan, "RESOLVE_FAILED_FIRST_S", 0.1)
    zone = {}
    async with joining_node(tmp_path / "joining", "/dnsaddr/a.example", zone=zone) as node:
        seed = await eventually(
            lambda: (seeds := node.joining.view().seeds)[0].error and seeds[0]
        )
        assert "_dnsaddr.a.example" in seed.error
        assert seed.error_at
        async with open_node(tmp_path / "first") as first:
            first.answer()
            zone["_dnsaddr.a.example"] = [record(first)]
            await node.linked(first.peer)
            name, address = node.joining.view().seeds
            assert (name.error, name.peer, name.linked) == ("", None, False)
            assert (address.source, address.peer) == ("dnsaddr", first.peer)
            assert address.linked
            assert node.joining.view().sentence == ""
        async with open_node(tmp_path / "second") as second:
            second.answer()
            zone["_dnsaddr.a.example"] = [record(second)]
            await node.linked(second.peer)


async def test_what_fails_is_told_at_once_and_then_seldom_each_place_by_itself(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(joining, "TICK_S", 0.05)
    with structlog.testing.capture_logs() as logs:
        async with joining_node(tmp_path / "n", NOBODY, "/dnsaddr/no.example") as node:

            def told():
                return [one for one in logs if one["log_level"] == "warning"]

            await eventually(lambda: len(told()) >= 2)
            reasons = {one["place"]: one["error"] for one in told()}
            assert "/ip4/127.0.0.1/tcp/1: connection refused" in reasons[NOBODY]
            assert "no name" in reasons["/dnsaddr/no.example"]
            view = node.joining.view()
            assert "2 bootstrap peers tried" in view.sentence
            assert [bool(seed.error) for seed in view.seeds] == [True, True]
            count = len(told())
            await trio.sleep(2.5)  # it was dialled once more
            assert len(told()) == count


async def test_a_person_links_to_a_peer_by_address_or_by_name(tmp_path):
    zone = {}
    async with (
        open_node(tmp_path / "first") as first,
        joining_node(tmp_path / "n", zone=zone) as node,
    ):
        first.answer()
        zone["_dnsaddr.a.example"] = [f"dnsaddr={NOBODY}", record(first)]
        assert await node.joining.connect("/dnsaddr/a.example") == first.peer
        await node.linked(first.peer)
        with pytest.raises(NetworkError, match="connection refused"):
            await node.joining.connect(NOBODY)
        with pytest.raises(NetworkError, match="no name"):
            await node.joining.connect("/dnsaddr/b.example")
        with pytest.raises(ConfigError) as caught:
            await node.joining.connect(node.network.addresses()[0])
        assert caught.value.code == "own_address"


async def test_places_that_are_set_anew_count_at_once_and_those_taken_back_no_more(tmp_path):
    named, other, joins_by = generate().peer_id, f"/ip4/127.0.0.1/tcp/2/p2p/{PEER}", []
    zone = {"_dnsaddr.a.example": [f"dnsaddr=/ip4/127.0.0.1/tcp/3/p2p/{named}"]}
    async with joining_node(tmp_path / "n", NOBODY, zone=zone) as node:
        node.joining._joins_by = joins_by.append
        dialled = node.members._member.places.bootstrap
        assert dialled.keys() == {NOBODY_ID}
        node.joining.follow([other, "/dnsaddr/a.example"])
        await eventually(lambda: named in dialled)
        assert dialled.keys() == {PEER, named} == joins_by[-1]
        node.joining.follow([NOBODY])
        assert dialled.keys() == {NOBODY_ID} == joins_by[-1]


async def test_a_node_is_never_its_own_way_in(tmp_path):
    async with joining_node(tmp_path / "n") as node:
        own = node.network.addresses()[0]
        places = Places((Entry(own, Source.SETTING, parse_bootstrap(own)),), ())
        again = Joining(places, node.network, node.members, node.journal, lan=False)
        assert again.view().seeds == ()


async def test_a_link_is_remembered_with_the_address_that_led_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "KEEP_INTERVAL_S", 0.1)
    monkeypatch.setattr(joining, "KEEP_FROM_S", 0.0)
    async with open_node(tmp_path / "first") as first:
        first.answer()
        async with joining_node(tmp_path / "n", first.network.addresses()[0]) as node:
            await node.linked(first.peer)
            with trio.fail_after(LINKED_LIMIT_S):
                while not (rows := await remembered(node.journal, 5)) or not rows[0].worked:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            assert rows[0].peer == first.peer
            assert (rows[0].worked,) == first.addresses == rows[0].places


async def test_a_full_disk_is_told_once_and_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(joining, "KEEP_INTERVAL_S", 0.05)
    monkeypatch.setattr(joining, "KEEP_FROM_S", 0.0)
    failing = []

    async def full(journal, rows):
        failing.append(rows)
        raise StoreError("the disk is full", code="disk_full")

    monkeypatch.setattr(joining.remembered_peers, "keep", full)
    with structlog.testing.capture_logs() as logs:
        async with open_node(tmp_path / "first") as first:
            first.answer()
            async with joining_node(tmp_path / "n", first.network.addresses()[0]) as node:
                await node.linked(first.peer)
                await eventually(lambda: len(failing) >= 3)
    assert sum(one["event"] == "peers are not remembered" for one in logs) == 1


async def test_peers_of_earlier_times_are_seen_in_the_status(tmp_path):
    row = RememberedPeer(generate().peer_id, ("/ip4/192.0.2.9/tcp/1",), 5.0)
    async with joining_node(tmp_path / "n", remembered=[row]) as node:
        (seed,) = node.joining.view().seeds
        assert (seed.source, seed.peer) == ("remembered", row.peer)
        assert "of earlier times" in node.joining.view().sentence
