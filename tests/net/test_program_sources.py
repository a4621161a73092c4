"""A program's blobs go from taker to taker, to those alone whom its requester named."""

import os
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from bulk_nodes import LIMIT_BYTES, MIB, open_bulk_node

from shoal.compute.manifest import Manifest, Port, Weight
from shoal.crypto.content import blob_id_of
from shoal.node.bulk.transfer import Source
from shoal.node.errors import NetworkError
from shoal.node.fetching import fetch_from
from shoal.node.program_sources import hold_blobs
from shoal.node.standing import Offence
from shoal.protocol.blob_messages import WhyNot

BLOBS = [os.urandom(16 * MIB + 3), os.urandom(3 * MIB), os.urandom(24 * MIB), os.urandom(100)]
SIZE_BYTES = sum(map(len, BLOBS))
PROGRAM = blob_id_of(b"a manifest")
MANIFEST = Manifest(
    graph=blob_id_of(BLOBS[0]),
    tensors=tuple(Weight(str(n), blob_id_of(blob)) for n, blob in enumerate(BLOBS[1:])),
    inputs=(),
    outputs=(Port("y", "float32", ()),),
)


@asynccontextmanager
async def swarm(tmp_path, takers):
    """Give a requester that holds the blobs, and those who may take them."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        requester = await enter(open_bulk_node(tmp_path / "requester"))
        nodes = [await enter(open_bulk_node(tmp_path / f"{n}")) for n in range(takers)]
        for blob in BLOBS:
            await requester.store.put_bytes(blob)
        for node in nodes:
            node.book = {each.peer: each.network.addresses() for each in [requester, *nodes]}
            await node.network.connect(requester.peer, requester.network.addresses(), 5)
        yield requester, nodes


def award(requester, node, earlier):
    """What a requester does for a lease: the rights, and everybody's names."""
    blob_ids = [MANIFEST.graph, *(tensor.blob_id for tensor in MANIFEST.tensors)]
    requester.rights.grant(node.peer, node.peer, blob_ids)
    node.shares.lease("an award", requester.peer, PROGRAM, [each.peer for each in earlier])
    for each in earlier:
        assert each.shares.share(requester.peer, PROGRAM, node.peer)


async def hold(requester, node):
    await hold_blobs(node.house, requester.peer, PROGRAM, "an award", MANIFEST)
    for blob in BLOBS:
        assert node.store.holds(blob_id_of(blob))


async def test_takers_that_begin_together_have_the_requester_send_it_about_once(tmp_path):
    async with swarm(tmp_path, 4) as (requester, nodes):
        for number, node in enumerate(nodes):
            award(requester, node, nodes[:number])
        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                for node in nodes:
                    nursery.start_soon(hold, requester, node)
        assert requester.bulk[1] <= 1.5 * SIZE_BYTES
        assert not any(node.broken for node in [requester, *nodes])


async def test_who_comes_later_gets_it_from_those_who_have_it(tmp_path):
    async with swarm(tmp_path, 3) as (requester, nodes):
        for number, node in enumerate(nodes):
            award(requester, node, nodes[:number])
            with trio.fail_after(60):
                await hold(requester, node)
        assert requester.bulk[1] <= 1.1 * SIZE_BYTES


async def test_where_a_taker_is_not_to_be_had_the_requester_sends_its_part(tmp_path):
    async with swarm(tmp_path, 2) as (requester, (dead, node)):
        award(requester, dead, [])
        award(requester, node, [dead])

        async def unreachable(_peer):
            raise NetworkError("nobody is there", code="unreachable")

        object.__setattr__(node.house, "reach", unreachable)
        with trio.fail_after(60):
            await hold(requester, node)


async def test_a_taker_that_lies_is_named_and_nothing_is_held_against_the_requester(tmp_path):
    async with swarm(tmp_path, 2) as (requester, (liar, node)):
        award(requester, liar, [])
        await hold(requester, liar)
        liar.falsify(MANIFEST.graph)
        award(requester, node, [liar])
        with trio.fail_after(60):
            await hold(requester, node)
        assert {(peer, what) for peer, what, _ in node.broken} == {
            (liar.peer, Offence.BAD_BLOB.value)
        }


async def test_nobody_else_gets_a_shared_programs_blobs(tmp_path):
    async with swarm(tmp_path, 2) as (requester, (node, stranger)):
        award(requester, node, [])
        await hold(requester, node)
        await stranger.reach(node.peer)
        for whom in (None, requester.peer, stranger.peer):
            with pytest.raises(NetworkError) as caught:
                await fetch_from(
                    stranger.house, MANIFEST.graph, [Source(node.peer, whom)], LIMIT_BYTES
                )
            assert caught.value.code == WhyNot.NO_RIGHT


async def test_what_a_node_holds_for_somebody_else_is_not_served_in_a_requesters_name(tmp_path):
    """Who names a blob by its id alone must not get it by way of an accomplice."""
    secret = os.urandom(5 * MIB)
    async with swarm(tmp_path, 2) as (requester, (node, accomplice)):
        blob_id = await node.store.put_bytes(secret)
        node.shares.lease("an award", requester.peer, PROGRAM, [accomplice.peer])
        node.shares.lists(requester.peer, PROGRAM, [blob_id])
        await accomplice.reach(node.peer)
        source = Source(node.peer, requester.peer)
        with pytest.raises(NetworkError) as caught:
            await fetch_from(accomplice.house, blob_id, [source], LIMIT_BYTES)
        assert caught.value.code == WhyNot.NO_RIGHT


async def test_sharing_ends_with_the_lease(tmp_path):
    async with swarm(tmp_path, 2) as (requester, (node, other)):
        award(requester, node, [])
        award(requester, other, [node])
        await hold(requester, node)
        node.shares.end("an award")
        await other.reach(node.peer)
        with pytest.raises(NetworkError) as caught:
            await fetch_from(
                other.house, MANIFEST.graph, [Source(node.peer, requester.peer)], LIMIT_BYTES
            )
        assert caught.value.code == WhyNot.NO_RIGHT
