"""Large blobs over bulk channels between nodes that are honest, on real sockets with TLS."""

import os
import threading
from functools import partial

import pytest
import trio
import trio.lowlevel
import trio.testing
from bulk_nodes import (
    LIMIT_BYTES,
    MIB,
    at_rest,
    dropping_after,
    giver_and_taker,
    open_bulk_node,
    until,
    wire_to,
)

from shoal.crypto.content import chunk_list_of, decode_chunk_list
from shoal.node.blob_reception import Reception
from shoal.node.bulk import channels as channels_module
from shoal.node.bulk import transfer as transfer_module
from shoal.node.bulk.tokens import CHANNELS_PER_PEER
from shoal.node.bulk.transfer import Source
from shoal.node.errors import NetworkError, StoreError
from shoal.node.fetching import fetch_from
from shoal.node.house import hold
from shoal.node.network_statistics import Traffic
from shoal.protocol.channel_messages import ChannelAnswer, ChunksRefused, ListWanted
from shoal.protocol.limits import CHANNEL_FROM_BYTES

LARGE = 40 * MIB + 17
ROOM_FOR_FRAMES = 4000


@pytest.fixture
async def pair(tmp_path):
    async with giver_and_taker(tmp_path) as nodes:
        yield nodes


async def test_a_large_blob_goes_by_channel_and_arrives_whole(pair):
    giver, taker = pair
    data = os.urandom(LARGE)
    blob_id = await giver.give(taker, data)
    await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert await taker.store.get_bytes(blob_id) == data
    received, _ = taker.bulk
    assert LARGE < received < LARGE + ROOM_FOR_FRAMES
    assert len(giver.streams) == 1  # for the list
    assert not giver.broken
    assert not taker.broken


@pytest.mark.parametrize("size", [0, 1, CHANNEL_FROM_BYTES])
async def test_a_blob_that_is_no_larger_than_the_bound_goes_by_stream(pair, size):
    giver, taker = pair
    blob_id = await giver.give(taker, os.urandom(size))
    await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert taker.store.holds(blob_id)
    assert taker.bulk == (0, 0)


@pytest.mark.parametrize("off", ["giver", "taker"])
async def test_with_bulk_off_on_either_side_the_stream_carries_it(tmp_path, off):
    async with (
        open_bulk_node(tmp_path / "g", bulk="off" if off == "giver" else "auto") as giver,
        open_bulk_node(tmp_path / "t", bulk="off" if off == "taker" else "auto") as taker,
    ):
        await taker.network.connect(giver.peer, giver.network.addresses(), 5)
        blob_id = await giver.give(taker, os.urandom(LARGE))
        await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
        assert taker.store.holds(blob_id)
        assert taker.bulk == (0, 0)
        assert not taker.channels.may_be_had(giver.peer)  # nor asked for with the next blob


async def test_where_nobody_answers_at_the_announced_port_the_stream_carries_it(tmp_path):
    async with (
        open_bulk_node(tmp_path / "giver", announce=("127.0.0.1", 9)) as giver,
        open_bulk_node(tmp_path / "taker") as taker,
    ):
        await taker.network.connect(giver.peer, giver.network.addresses(), 5)
        blob_id = await giver.give(taker, os.urandom(LARGE))
        await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
        assert taker.store.holds(blob_id)
        assert not taker.broken


async def test_a_channel_stays_for_the_next_blob_and_closes_when_there_is_none(
    pair, monkeypatch
):
    giver, taker = pair
    first, second = [await giver.give(taker, os.urandom(5 * MIB)) for _ in range(2)]
    await fetch_from(taker.house, first, [Source(giver.peer)], LIMIT_BYTES)
    monkeypatch.setattr(channels_module, "IDLE_LIMIT_S", 0.1)
    asked = []
    monkeypatch.setattr(giver.channels, "answer", asked.append)  # none is agreed on any more
    await fetch_from(taker.house, second, [Source(giver.peer)], LIMIT_BYTES)
    assert not asked
    await until(lambda: at_rest(giver, taker))


async def test_bytes_are_counted_for_each_peer_and_in_both_directions(tmp_path):
    async with (
        giver_and_taker(tmp_path) as (giver, taker),
        open_bulk_node(tmp_path / "other") as other,
    ):
        await other.network.connect(giver.peer, giver.network.addresses(), 5)
        for node, size_bytes in ((taker, LARGE), (other, 5 * MIB)):
            blob_id = await giver.give(node, os.urandom(size_bytes))
            await fetch_from(node.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
            got = node.channels.traffic_of(giver.peer)
            assert size_bytes < got.received < size_bytes + ROOM_FOR_FRAMES
            assert 0 < got.sent < ROOM_FOR_FRAMES
            mirrored = Traffic(received=got.sent, sent=got.received)
            # its thread may not have counted yet what has arrived
            await until(lambda n=node, m=mirrored: giver.channels.traffic_of(n.peer) == m)
        assert giver.channels.traffic_of(giver.peer) == Traffic()


async def test_of_whoever_was_longest_silent_the_bytes_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(channels_module, "PEERS_COUNTED_LIMIT", 1)
    async with (
        giver_and_taker(tmp_path) as (giver, taker),
        open_bulk_node(tmp_path / "other") as other,
    ):
        await other.network.connect(giver.peer, giver.network.addresses(), 5)
        for node in (taker, other):
            blob_id = await giver.give(node, os.urandom(5 * MIB))
            await fetch_from(node.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
            await taker.network.disconnect(giver.peer)
            await until(lambda node=node: node is other or at_rest(giver))
        assert giver.channels.traffic_of(taker.peer) == Traffic()
        assert giver.channels.traffic_of(other.peer).sent > 5 * MIB
        assert giver.bulk[1] > 10 * MIB  # in all nothing is forgotten


async def test_a_channel_that_has_carried_its_share_is_not_used_again(pair, monkeypatch):
    giver, taker = pair
    monkeypatch.setattr(channels_module, "RETIRED_AFTER_BYTES", 4 * MIB)
    for _ in range(2):
        blob_id = await giver.give(taker, os.urandom(5 * MIB))
        await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
        assert taker.store.holds(blob_id)
        await until(lambda: at_rest(giver, taker))
    assert taker.bulk[0] > 10 * MIB


async def test_many_blobs_at_once_share_the_few_channels_that_a_peer_may_have(pair):
    giver, taker = pair
    blobs = [await giver.give(taker, os.urandom(5 * MIB)) for _ in range(12)]
    most = 0

    async def watch():
        nonlocal most
        while True:
            most = max(most, giver.channels._served[taker.peer])
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as watching:
        watching.start_soon(watch)
        async with trio.open_nursery() as nursery:
            for blob_id in blobs:
                nursery.start_soon(
                    fetch_from, taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES
                )
        watching.cancel_scope.cancel()
    assert all(map(taker.store.holds, blobs))
    assert 1 < most <= CHANNELS_PER_PEER
    assert len(giver.streams) == len(blobs)  # of lists: no channel was too many


async def test_a_transfer_that_is_cancelled_leaves_no_thread_and_sends_nothing_again(pair):
    giver, taker = pair
    blob_id = await giver.give(taker, os.urandom(LARGE))
    with dropping_after(taker, 7) as scope, scope:
        await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert scope.cancelled_caught
    await until(lambda: at_rest(giver, taker))
    kept, _ = taker.bulk
    assert kept >= 7 * MIB
    await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert taker.store.holds(blob_id)
    received, _ = taker.bulk
    assert received < LARGE + MIB + ROOM_FOR_FRAMES  # the chunk that was under way


async def test_a_taker_that_is_started_again_is_sent_what_it_lacks_and_proved_the_rest(
    tmp_path,
):
    async with open_bulk_node(tmp_path / "giver") as giver:
        data = os.urandom(LARGE)
        async with open_bulk_node(tmp_path / "taker") as taker:
            await taker.network.connect(giver.peer, giver.network.addresses(), 5)
            blob_id = await giver.give(taker, data)
            with dropping_after(taker, 20) as scope, scope:
                await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
        async with open_bulk_node(tmp_path / "taker") as taker:
            await taker.network.connect(giver.peer, giver.network.addresses(), 5)
            giver.rights.grant("again", taker.peer, [blob_id])
            await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
            assert await taker.store.get_bytes(blob_id) == data
            received, _ = taker.bulk
            assert received < LARGE - 20 * MIB + ROOM_FOR_FRAMES
            assert len(giver.streams) == 3  # two lists, and the proof of the first part
            assert taker.network.traffic("blob").received < 10_000


async def test_a_peer_whose_channels_are_all_taken_is_asked_again(pair, monkeypatch):
    giver, taker = pair
    blob_id = await giver.give(taker, os.urandom(LARGE))
    free = [True, True, False, False]  # in the end as it asks and as it comes
    monkeypatch.setattr(channels_module, "may_open", lambda *_: free.pop())
    monkeypatch.setattr(transfer_module, "ASK_BUSY_AGAIN_S", 0.01)
    await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert not free
    assert taker.bulk[0] > LARGE


async def test_a_peer_whose_channels_stay_taken_gives_the_blob_by_stream(pair, monkeypatch):
    giver, taker = pair
    blob_id = await giver.give(taker, os.urandom(5 * MIB))
    asked = []
    monkeypatch.setattr(channels_module, "may_open", lambda *_: asked.append(1))
    monkeypatch.setattr(transfer_module, "ASK_BUSY_AGAIN_S", 0.01)
    monkeypatch.setattr(transfer_module, "STARVED_S", 0.2)
    await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
    assert len(asked) > 1
    assert taker.store.holds(blob_id)
    assert taker.bulk == (0, 0)


async def test_bytes_are_counted_for_each_peer_by_itself(tmp_path, monkeypatch):
    async with (
        giver_and_taker(tmp_path) as (giver, taker),
        open_bulk_node(tmp_path / "other") as other,
    ):
        await taker.network.connect(other.peer, other.network.addresses(), 5)
        sizes = {giver: 5 * MIB, other: 7 * MIB}
        for source, size in sizes.items():
            blob_id = await source.give(taker, os.urandom(size))
            await fetch_from(taker.house, blob_id, [Source(source.peer)], LIMIT_BYTES)
        for source, size in sizes.items():
            counted = taker.channels.traffic_of(source.peer)
            assert size < counted.received < size + ROOM_FOR_FRAMES
            assert 0 < counted.sent < ROOM_FOR_FRAMES
            theirs = source.channels.traffic_of(taker.peer)
            assert (theirs.sent, theirs.received) == (counted.received, counted.sent)
            nobody = source.channels.traffic_of(source.peer)
            assert (nobody.sent, nobody.received) == (0, 0)
        both = [taker.channels.traffic_of(source.peer) for source in sizes]
        assert sum(one.received for one in both) == taker.bulk[0]

        monkeypatch.setattr(channels_module, "PEERS_COUNTED_LIMIT", 1)
        blob_id = await other.give(taker, os.urandom(5 * MIB))
        await fetch_from(taker.house, blob_id, [Source(other.peer)], LIMIT_BYTES)
        assert taker.channels.traffic_of(other.peer).received > 12 * MIB
        assert taker.channels.traffic_of(giver.peer).received == 0  # longest silent


async def test_what_a_node_is_still_receiving_is_served_as_far_as_it_has_come(
    tmp_path, monkeypatch
):
    async with (
        giver_and_taker(tmp_path) as (giver, between),
        open_bulk_node(tmp_path / "third") as third,
    ):
        await third.network.connect(between.peer, between.network.addresses(), 5)
        blob_id = await giver.give(between, os.urandom(LARGE))
        between.rights.grant("a lease", third.peer, [blob_id])
        chunks = await giver.store.chunk_list(blob_id)
        given, lacked = [], []

        class Want:
            left = [range(4), range(2, 6)]  # noqa: RUF012

            def more(self):
                return self.left.pop(0) if self.left else None

            def came(self, index, chunk):
                chunks.check_chunk(index, chunk)
                given.append(index)

            def lacking(self, of):
                lacked.extend(of)

        async with between.store.receive(blob_id) as reception:
            await reception.begin(chunks)
            for index in range(3):
                await reception.write_chunk(index, await giver.store.read_chunk(blob_id, index))
            async with third.channels.to(between.peer) as channel:
                await channel.take(chunks, Want())
        assert (given, lacked) == ([0, 1, 2, 2], [3, 3, 4, 5])


async def test_a_source_that_has_not_got_it_all_yet_is_no_source_for_a_whole_blob(tmp_path):
    async with giver_and_taker(tmp_path) as (giver, taker):
        data = os.urandom(LARGE)
        async with open_bulk_node(tmp_path / "whole") as whole:
            blob_id = await whole.store.put_bytes(data)
            chunks = await whole.store.chunk_list(blob_id)
        giver.rights.grant("a lease", taker.peer, [blob_id])
        async with giver.store.receive(blob_id) as reception:
            await reception.begin(chunks)
            await reception.write_chunk(0, data[:MIB])
            with pytest.raises(NetworkError) as refused:
                await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
        assert refused.value.code == "not_held"


def listed(wire, blob_id):
    """What a peer answers who is asked for a list: that, or why there is none."""
    wire.send(ListWanted(blob=blob_id))
    answer = wire.receive(ChannelAnswer)
    if isinstance(answer, ChunksRefused):
        return answer.reason.value
    data = bytearray(answer.list_bytes)
    wire.receive_into(memoryview(data))
    return decode_chunk_list(bytes(data), blob_id)


async def test_a_list_is_given_by_channel_to_who_has_a_right_to_the_blob(pair):
    giver, taker = pair
    data = os.urandom(5 * MIB)
    blob_id = await giver.store.put_bytes(data)
    offer = await taker.channels._ask(giver.peer)
    wire = await trio.to_thread.run_sync(wire_to, giver, offer, taker.channels._certificate)
    with wire.sock:
        ask = partial(trio.to_thread.run_sync, listed, wire, blob_id)
        assert await ask() == "no_right"
        giver.rights.grant("a lease", taker.peer, [blob_id])
        assert await ask() == chunk_list_of(data)
    assert not giver.broken


async def test_a_blob_that_a_peer_has_no_right_to_is_refused_held_or_not(pair):
    giver, taker = pair
    held = await giver.store.put_bytes(os.urandom(5 * MIB))
    chunks = await giver.store.chunk_list(held)
    await giver.store._shelf.drop(held)

    async def ask():
        async with taker.channels.to(giver.peer) as channel:
            await channel.take(chunks, Everything(chunks))

    for _ in range(2):
        with pytest.raises(NetworkError) as refused:
            await ask()
        assert refused.value.code == "no_right"
        assert {(peer, what) for peer, what, _ in giver.noted} == {(taker.peer, "no_right")}
        await giver.store.put_bytes(os.urandom(5 * MIB))
    giver.rights.grant("a lease", taker.peer, [held])
    with pytest.raises(NetworkError) as refused:
        await ask()
    assert refused.value.code == "not_held"
    assert not giver.broken


class Everything:
    """A share of all chunks, one by one, which it keeps none of."""

    def __init__(self, chunks):
        self.left = [range(index, index + 1) for index in range(len(chunks.digests))]

    def more(self):
        return self.left.pop(0) if self.left else None

    def came(self, index, chunk):
        pass


async def test_a_blob_that_is_used_for_a_peer_was_sent_or_proved_by_it_to_the_last_byte(
    tmp_path,
):
    """What another peer had sent before is no proof that this one has it."""
    async with (
        giver_and_taker(tmp_path) as (giver, taker),
        open_bulk_node(tmp_path / "other") as other,
    ):
        await taker.network.connect(other.peer, other.network.addresses(), 5)
        data = os.urandom(LARGE)
        blob_id = await giver.give(taker, data)
        await other.give(taker, data)
        with dropping_after(taker, 7) as scope, scope:
            await hold(taker.house, giver.peer, blob_id, "a unit", LIMIT_BYTES)
        assert not taker.house.known.has(giver.peer, blob_id)
        await hold(taker.house, other.peer, blob_id, "a unit", LIMIT_BYTES)
        assert taker.house.known.has(other.peer, blob_id)
        assert not taker.house.known.has(giver.peer, blob_id)
        assert len(other.streams) == 2  # the second for the proof


async def test_a_blob_over_the_limit_is_refused_before_a_channel_is_asked_for(pair):
    giver, taker = pair
    blob_id = await giver.give(taker, os.urandom(LARGE))
    with pytest.raises(StoreError) as refused:
        await fetch_from(taker.house, blob_id, [Source(giver.peer)], LARGE - 1)
    assert refused.value.code == "blob_too_large"
    assert taker.bulk == (0, 0)


async def test_a_transfer_ends_at_once_with_its_peers_connection(pair, monkeypatch):
    giver, taker = pair
    blob_id = await giver.give(taker, os.urandom(LARGE))
    gone, write = threading.Event(), Reception.write_here

    def write_when_gone(self, index, chunk):
        gone.wait(10)
        write(self, index, chunk)

    monkeypatch.setattr(Reception, "write_here", write_when_gone)

    async def cut():
        await until(lambda: taker.channels._working)
        await giver.network.disconnect(taker.peer)
        await until(lambda: giver.peer not in taker.network.connected())
        await trio.testing.wait_all_tasks_blocked()
        gone.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            with pytest.raises(NetworkError):
                await fetch_from(taker.house, blob_id, [Source(giver.peer)], LIMIT_BYTES)
        await until(lambda: at_rest(giver, taker))
