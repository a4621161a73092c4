"""Large blobs over bulk channels between two nodes that are both honest."""

import os

import pytest
from bulk_nodes import LIMIT_BYTES, MIB, giver_and_taker

from shoal.node.fetching import fetch

LARGE = 40 * MIB + 17


@pytest.fixture
async def pair(tmp_path):
    async with giver_and_taker(tmp_path) as nodes:
        yield nodes


async def test_a_large_blob_goes_by_channel_and_arrives_whole(pair):
    giver, taker = pair
    data = os.urandom(LARGE)
    blob_id = await giver.give(taker, data)
    await fetch(taker.house, blob_id, giver.peer, LIMIT_BYTES)
    assert await taker.store.get_bytes(blob_id) == data
    received, _ = taker.bulk
    assert LARGE < received < LARGE + 1000
    assert len(giver.streams) == 1  # for the list
    assert not giver.broken
    assert not taker.broken
