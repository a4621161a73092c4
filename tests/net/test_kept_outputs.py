"""Outputs that stay with a provider: who may have them, and who may not, over libp2p."""

from contextlib import AsyncExitStack

import models
import numpy as np
import onnxruntime
import pytest
import trio
from chaining_nodes import DENSE, IDENTITY, LIMIT_S, ROWS, X, made, open_node

from shoal.compute.tensor import from_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node.blob_transfer import BLOB_PROTOCOL
from shoal.node.input_sources import FAILED_SOURCES_LIMIT
from shoal.node.standing import Offence
from shoal.protocol.messages import Done
from shoal.protocol.negotiation_messages import Drop, Reason, Refusal, Share, Shared, UnitResult


@pytest.fixture
async def nodes(tmp_path):
    """A requester, two providers, and somebody else."""
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(open_node(tmp_path / str(n))) for n in range(4)
        ]
        for number, node in enumerate(nodes):
            node.meets(*nodes[:number])
        with trio.fail_after(2 * LIMIT_S):
            yield nodes


async def test_a_kept_output_is_the_requesters_and_nobody_elses(nodes):
    requester, provider, other, stranger = nodes
    y = await made(requester, provider)
    assert not requester.store.holds(y)
    for nosy in (other, stranger):
        assert await nosy.fetches(provider, y) == "no_right"
        assert await nosy.fetches_for(requester, provider, y) == "no_right"
    found = from_blob(await requester.fetches(provider, y))
    (wanted,) = onnxruntime.InferenceSession(models.dense()).run(None, {"x": ROWS})
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-6)


async def test_without_keep_outputs_come_as_ever(nodes):
    requester, provider, *_ = nodes
    ask = await requester.lease(provider, DENSE)
    result = await ask(0, blob_id_of(X), X)
    assert result.kept == ()
    assert len(result.blobs) == 1
    assert len(provider.house.kept) == 0


async def test_the_next_unit_takes_its_input_from_whom_it_is_shared_by(nodes):
    requester, maker, taker, stranger = nodes
    y = await made(requester, maker)
    share = Share(blobs=(y,), peer=taker.peer)
    assert await requester.tell(maker, share) == Shared()
    ask = await requester.lease(taker, IDENTITY)
    result = await ask(0, y, keep=True, sources=((y, maker.peer),))
    assert isinstance(result, UnitResult), result
    assert result.kept == ((y, maker.store.size_bytes(y)),)
    assert not requester.store.holds(y)
    assert await stranger.fetches_for(requester, maker, y) == "no_right"
    assert (taker.offences, requester.offences) == ([], [])


async def test_the_same_provider_needs_no_source_for_what_it_keeps(nodes):
    requester, provider, *_ = nodes
    y = await made(requester, provider)
    ask = await requester.lease(provider, IDENTITY)
    assert isinstance(await ask(0, y, keep=True), UnitResult)


async def test_nobody_gets_at_anothers_output_by_knowing_its_id(nodes):
    """Neither by a unit at its holder, nor by way of a provider that may fetch it."""
    requester, maker, taker, mallory = nodes
    y = await made(requester, maker)
    await requester.tell(maker, Share(blobs=(y,), peer=taker.peer))
    assert await mallory.tell(maker, Share(blobs=(y,), peer=mallory.peer)) == Shared(
        missing=(y,)
    )
    for victim, sources in (
        (maker, ()),
        (taker, ((y, maker.peer),)),
        (taker, ((y, taker.peer), (y, mallory.peer), (y, maker.peer))),
    ):
        ask = await mallory.lease(victim, IDENTITY)
        refused = await ask(0, y, sources=sources)
        assert isinstance(refused, Refusal), refused
        assert (refused.reason, refused.missing) == (Reason.DATA_MISSING, y)
    assert await taker.fetches_for(requester, maker, y) is not None
    assert taker.store.holds(y)
    ask = await mallory.lease(taker, IDENTITY)  # it is there now, and not for mallory
    assert (await ask(1, y, sources=((y, maker.peer),))).missing == y


async def test_what_is_dropped_is_gone_and_may_be_computed_again(nodes):
    requester, provider, taker, mallory = nodes
    y = await made(requester, provider)
    assert await mallory.tell(provider, Drop(blobs=(y,))) == Done()
    assert provider.house.kept.keeps(requester.peer, y)
    assert await requester.tell(provider, Drop(blobs=(y, blob_id_of(b"unknown")))) == Done()
    assert len(provider.house.kept) == 0
    assert await requester.fetches(provider, y) == "no_right"
    share = Share(blobs=(y,), peer=taker.peer)
    assert await requester.tell(provider, share) == Shared(missing=(y,))
    assert await made(requester, provider, number=1) == y
    assert await requester.tell(provider, share) == Shared()


async def test_a_source_that_lies_costs_a_fetch_and_its_own_standing(nodes):
    requester, provider, liar, _ = nodes
    await requester.store.put_bytes(X)
    requester.rights.grant("inputs", provider.peer, [blob_id_of(X)])

    async def lie(stream):
        await stream.receive_some(4096)
        await stream.send_all(b"\x00\x00\x00\x05nope!")

    liar.network.handle(BLOB_PROTOCOL, lie)
    ask = await requester.lease(provider, IDENTITY)
    result = await ask(0, blob_id_of(X), sources=((blob_id_of(X), liar.peer),))
    assert isinstance(result, UnitResult), result
    assert provider.offences == [(liar.peer, Offence.BAD_BLOB)]


async def test_nobody_is_dialled_whose_advert_is_not_held_and_few_are_tried(nodes):
    requester, provider, *_ = nodes
    await requester.store.put_bytes(X)
    requester.rights.grant("inputs", provider.peer, [blob_id_of(X)])
    made_up = [identity.generate().peer_id for _ in range(3 * FAILED_SOURCES_LIMIT)]
    ask = await requester.lease(provider, IDENTITY)
    provider.dials.clear()
    result = await ask(0, blob_id_of(X), sources=tuple((blob_id_of(X), p) for p in made_up))
    assert isinstance(result, UnitResult), result
    assert provider.dials == made_up[:FAILED_SOURCES_LIMIT]
    assert provider.network.connected() == {requester.peer}


async def test_an_input_that_nobody_has_is_refused_by_name(nodes):
    requester, provider, empty, _ = nodes
    ask = await requester.lease(provider, IDENTITY)
    requester.rights.grant("inputs", provider.peer, [blob_id_of(X)])
    refused = await ask(0, blob_id_of(X), sources=((blob_id_of(X), empty.peer),))
    assert (refused.reason, refused.missing) == (Reason.DATA_MISSING, blob_id_of(X))


async def test_a_provider_without_room_sends_what_it_cannot_keep(tmp_path):
    async with (
        open_node(tmp_path / "requester") as requester,
        open_node(tmp_path / "provider", quota_bytes=3 * len(X)) as provider,
    ):
        requester.meets(provider)
        ask = await requester.lease(provider, DENSE)
        result = await ask(0, blob_id_of(X), X, keep=True)  # a stranger's: a quarter is less
        assert result.kept == ()
        assert len(result.blobs) == 1
        provider.allowed = {requester.peer}
        ask = await requester.lease(provider, DENSE)
        assert len((await ask(1, blob_id_of(X), X, keep=True)).kept) == 1


async def test_kept_outputs_go_when_the_store_needs_the_room(tmp_path):
    async with (
        open_node(tmp_path / "requester") as requester,
        open_node(tmp_path / "provider", quota_bytes=6 * len(X)) as provider,
    ):
        requester.meets(provider)
        y = await made(requester, provider)
        for number in range(5):
            await provider.store.put_bytes(bytes([number]) * len(X))
        assert provider.store.holds(y)  # whatever else could go has gone first
        for number in range(5):
            blob_id = await provider.store.put_bytes(bytes([10 + number]) * len(X))
            provider.store.pin(blob_id, "a job of its own user")
        assert not provider.store.holds(y)
        share = Share(blobs=(y,), peer=provider.peer)
        assert await requester.tell(provider, share) == Shared(missing=(y,))
        assert len(provider.house.kept) == 0
