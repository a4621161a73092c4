"""A transfer from three nodes in processes of their own, of which two are killed on the way."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import trio
from bulk_nodes import MIB, open_bulk_node

from shoal.node.blobs import open_store
from shoal.node.bulk.transfer import Source
from shoal.node.fetching import fetch_from

HOLDER = Path(__file__).with_name("blob_holder.py")
NET = Path(__file__).parents[1] / "net"
KILLED_AT = (0.3, 0.6)
"""Of the blob's bytes."""


async def make_blob(home, size_bytes):
    """Make a blob of which no two chunks are equal; gives its id."""
    rest = os.urandom(MIB - 8)

    async def pieces():
        for index in range(size_bytes // MIB):
            yield index.to_bytes(8, "big") + rest
            await trio.lowlevel.checkpoint()

    async with open_store(home, 4 * size_bytes) as store:
        return (await store.put(pieces())).blob_id


def copy(home, to):
    """Give another node the same files; they are never written to again."""
    shutil.copytree(home, to, copy_function=os.link)


def start(home, blob_id, peer):
    """Start a holder; gives its process and its words."""
    process = subprocess.Popen(
        [sys.executable, str(HOLDER), str(home), blob_id, peer],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(NET)])},
    )
    return process, json.loads(process.stdout.readline())


async def bytes_received_through_kills(tmp_path, size_bytes, limit_s):
    """Take a blob while its sources are killed; gives how many bytes came over channels."""
    blob_id = await make_blob(tmp_path / "0", size_bytes)
    for number in (1, 2):
        copy(tmp_path / "0", tmp_path / f"{number}")
    started = []
    try:
        async with open_bulk_node(tmp_path / "taker", quota_bytes=2 * size_bytes) as taker:
            for number in range(3):
                home = tmp_path / f"{number}"
                holder = await trio.to_thread.run_sync(start, home, blob_id, taker.peer)
                started.append(holder)
                words = started[-1][1]
                await taker.network.connect(words["peer"], words["addresses"], 10)
            sources = [Source(words["peer"]) for _, words in started]

            async def kill():
                for (process, _), share in zip(started, KILLED_AT, strict=False):
                    while taker.bulk[0] < share * size_bytes:  # noqa: ASYNC110
                        await trio.sleep(0.002)
                    process.kill()

            with trio.fail_after(limit_s):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(kill)
                    await fetch_from(taker.house, blob_id, sources, 2 * size_bytes)
            assert taker.store.holds(blob_id)
            assert not taker.broken
            assert [process.poll() is None for process, _ in started] == [False, False, True]
            async for _ in taker.store.read_chunks(blob_id):  # checks each
                pass
            received = taker.bulk[0]
            print(f"\nsent again: {received / size_bytes - 1:.2%}")
            return received
    finally:
        for process, _ in started:
            process.kill()
            process.wait()
            process.stdout.close()
