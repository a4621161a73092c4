"""What the modules of a node share: how many blobs are fetched at once."""

from dataclasses import MISSING, fields
from types import SimpleNamespace

import trio

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.node import fetching
from shoal.node.house import FETCHES_AT_ONCE, House, hold


async def test_one_peer_is_asked_for_so_many_blobs_at_once_however_many_units_want_some(
    monkeypatch,
):
    now = most = 0

    async def fetch(*_args, **_options):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await trio.testing.wait_all_tasks_blocked()
        now -= 1

    monkeypatch.setattr(fetching, "fetch_blob", fetch)
    nothing = SimpleNamespace(
        pin=lambda *_: None, holds=lambda _: False, has=lambda *_: False, note=lambda *_: None
    )
    wanted = {
        field.name: nothing
        for field in fields(House)
        if field.default is MISSING and field.default_factory is MISSING
    }
    nothing.peer_id, nothing.begin_stream = PeerId("own"), lambda *_: None
    nothing.versions = SimpleNamespace(is_newer=lambda _: False)
    node = House(**wanted | {"known": nothing})
    async with trio.open_nursery() as nursery:
        for number in range(2 * FETCHES_AT_ONCE):
            blob_id = blob_id_of(bytes([number]))
            nursery.start_soon(hold, node, PeerId("requester"), blob_id, "a unit", 9)
    assert most == FETCHES_AT_ONCE
