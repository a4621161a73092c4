"""One blob from several sources: all send of it, and whoever fails is done without."""

import os
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from bulk_nodes import LIMIT_BYTES, MIB, open_bulk_node

from shoal.crypto.content import blob_id_of
from shoal.node.bulk.transfer import Source
from shoal.node.errors import NetworkError
from shoal.node.fetching import fetch_from
from shoal.node.standing import Offence

SIZE_BYTES = 48 * MIB + 5
DATA = os.urandom(SIZE_BYTES)
BLOB = blob_id_of(DATA)
OVER_BYTES = 3 * MIB
"""What may come beyond a blob of that size: one chunk twice, a wrong one, and words."""


@asynccontextmanager
async def swarm(tmp_path, holders=3):
    """Give those who hold the blob, and a node that may take it from them."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        taker = await enter(open_bulk_node(tmp_path / "taker"))
        givers = [await enter(open_bulk_node(tmp_path / f"{n}")) for n in range(holders)]
        for giver in givers:
            assert await giver.give(taker, DATA) == BLOB
            await taker.network.connect(giver.peer, giver.network.addresses(), 5)
        yield givers, taker


def sources_of(givers):
    return [Source(giver.peer) for giver in givers]


async def take(taker, givers):
    with trio.fail_after(60):
        await fetch_from(taker.house, BLOB, sources_of(givers), LIMIT_BYTES)
    assert await taker.store.get_bytes(BLOB) == DATA


async def test_all_sources_send_of_a_blob_and_nothing_comes_twice(tmp_path):
    async with swarm(tmp_path) as (givers, taker):
        await take(taker, givers)
        sent = [giver.bulk[1] for giver in givers]
        assert all(size > MIB for size in sent), sent
        assert SIZE_BYTES <= taker.bulk[0] <= SIZE_BYTES + OVER_BYTES


async def test_a_source_with_wrong_bytes_is_named_and_done_without(tmp_path):
    async with swarm(tmp_path) as (givers, taker):
        givers[1].falsify(BLOB)
        await take(taker, givers)
        assert [(peer, offence) for peer, offence, _ in taker.broken] == [
            (givers[1].peer, Offence.BAD_BLOB.value)
        ]
        assert taker.bulk[0] <= SIZE_BYTES + OVER_BYTES


async def test_where_all_sources_fail_each_is_named_with_its_reason(tmp_path):
    async with swarm(tmp_path) as (givers, taker):
        for giver in givers[:2]:
            giver.falsify(BLOB)
        givers[2].rights.withdraw("a lease")
        with pytest.raises(NetworkError) as caught, trio.fail_after(60):
            await fetch_from(taker.house, BLOB, sources_of(givers), LIMIT_BYTES)
        for giver in givers:
            assert giver.peer in caught.value.message
        assert not taker.store.holds(BLOB)


async def test_without_any_channel_a_stream_carries_the_blob_from_whoever_has_it(tmp_path):
    async with swarm(tmp_path, holders=2) as (givers, taker):
        for giver in givers:
            giver.channels.port = None
        givers[0].rights.withdraw("a lease")
        await take(taker, givers)
        assert taker.bulk[0] == 0
        assert givers[1].streams


async def test_what_came_before_a_restart_is_not_sent_again(tmp_path):
    async with swarm(tmp_path) as (givers, taker):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch_from, taker.house, BLOB, sources_of(givers), LIMIT_BYTES)
            with trio.fail_after(30):
                while taker.bulk[0] < SIZE_BYTES // 3:  # noqa: ASYNC110
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        before = taker.bulk[0]
        await take(taker, givers)
        # Of each channel that was cut, the one chunk that was on its way.
        assert taker.bulk[0] <= SIZE_BYTES + 3 * MIB + OVER_BYTES
        assert taker.bulk[0] - before < SIZE_BYTES
