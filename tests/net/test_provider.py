"""What a requester can do to a provider: nothing that others feel."""

import secrets

import numpy as np
import pytest
import trio
import trio.testing
from attacker import make_award, make_call
from job_nodes import DENSE, FRIEND, MIB, NOWHERE, X, bid_for, lease_for, open_node, unit_of

from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import BlobId, blob_id_of
from shoal.node import provider as providers
from shoal.node.errors import StoreError
from shoal.node.provider import OPEN_LIMIT
from shoal.node.records import JobState
from shoal.protocol.negotiation_messages import (
    Bid,
    Lease,
    Reason,
    Release,
    UnitRequest,
    UnitResult,
)
from shoal.protocol.statements import open_receipt


@pytest.fixture
async def node(tmp_path):
    async with open_node(tmp_path) as node:
        yield node


async def test_a_unit_named_like_a_job_of_the_provider_lets_go_of_nothing(tmp_path):
    async with open_node(tmp_path, quota_bytes=4 * MIB) as node:
        await node.spec()
        precious = await node.blobs.put_bytes(bytes(2 * MIB))
        node.blobs.pin(precious, "the job of another")
        call, _ = await lease_for(node)
        unit = unit_of(call, "the job of another")
        assert isinstance(await node.provider.answer(FRIEND.peer_id, unit), UnitResult)
        with pytest.raises(StoreError):
            await node.blobs.put_bytes(bytes(3 * MIB))
        assert node.blobs.holds(precious)


async def test_a_node_that_shuts_down_takes_neither_awards_nor_units(node):
    await node.spec()
    call, lease = await lease_for(node)
    assert isinstance(lease, Lease)
    late, bid = await bid_for(node)
    node.draining = True
    award = make_award(FRIEND, node.key.peer_id, late, bid)
    for message in (award, unit_of(call, "late"), make_call(DENSE.program_id, "ab" * 16)):
        answer = await node.provider.answer(FRIEND.peer_id, message)
        assert answer.reason is Reason.DRAINING


async def test_a_requester_that_calls_and_never_awards_is_in_nobody_elses_way(node):
    await node.spec()
    answers = [(await bid_for(node))[1] for _ in range(OPEN_LIMIT + 1)]
    assert all(isinstance(answer, Bid) for answer in answers[:-1])
    assert answers[-1].reason is Reason.BUSY
    job = await node.ended((await node.jobs.submit(await node.spec(X))).id)
    assert job.state is JobState.DONE


async def test_strangers_together_hold_so_many_bids_and_friends_get_theirs(node, monkeypatch):
    monkeypatch.setattr(providers, "STRANGERS_OPEN_LIMIT", 2)
    node.sandboxed = True
    answers = [
        await node.provider.answer(
            identity.generate().peer_id, make_call(DENSE.program_id, secrets.token_hex(16))
        )
        for _ in range(3)
    ]
    assert all(isinstance(answer, Bid) for answer in answers[:2])
    assert answers[2].reason is Reason.BUSY
    assert isinstance((await bid_for(node))[1], Bid)


async def test_a_price_counts_only_what_its_requester_is_known_to_have(node):
    await node.spec()
    known, size_bytes = node.house.known, 1 << 30

    async def price(program):
        return (await bid_for(node, program, program_bytes=size_bytes))[1].price

    dear = await price(NOWHERE)
    assert await price(DENSE.program_id) == dear
    known.note(FRIEND.peer_id, [DENSE.program_id])
    part = await price(DENSE.program_id)
    known.note(FRIEND.peer_id, DENSE.blobs)
    assert await price(DENSE.program_id) < part < dear


async def test_inputs_larger_than_the_units_memory_are_not_read(node):
    await node.spec()
    large = to_blob(np.zeros((MIB, 4), np.float32))
    node.house.known.note(FRIEND.peer_id, [await node.blobs.put_bytes(large)])
    call, _ = await lease_for(node, memory_bytes=MIB)
    unit = UnitRequest(call=call.call, unit="large", inputs=(("x", blob_id_of(large)),))
    answer = await node.provider.answer(FRIEND.peer_id, unit)
    assert answer.reason is Reason.PROGRAM_REFUSED
    assert "memory" in answer.detail


async def test_nothing_stays_granted_or_pinned_after_a_unit_that_was_released_while_it_ran(
    tmp_path,
):
    output = to_blob(np.zeros((MIB // 8, 4), np.float32))  # too large to travel inline
    async with open_node(tmp_path, quota_bytes=64 * MIB) as node:
        await node.spec()
        output_id = await output_of(node, output)
        for turns in range(60):  # at each of its steps
            call, _ = await lease_for(node)
            unit = UnitRequest(call=call.call, unit="u", inputs=(("x", blob_id_of(output)),))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.provider.answer, FRIEND.peer_id, unit)
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                await node.provider.answer(FRIEND.peer_id, Release(call=call.call))
            assert node.provider.units_waiting == 0
            assert not node.rights.allows(FRIEND.peer_id, output_id)
        await node.blobs.put_bytes(bytes(63 * MIB))  # pushes out all that nobody pins
        assert not node.blobs.holds(DENSE.program_id)


async def output_of(node, blob):
    """The id of what the program makes of an input, which is stored too."""
    node.house.known.note(FRIEND.peer_id, [await node.blobs.put_bytes(blob)])
    call, _ = await lease_for(node)
    unit = UnitRequest(call=call.call, unit="first", inputs=(("x", blob_id_of(blob)),))
    result = await node.provider.answer(FRIEND.peer_id, unit)
    await node.provider.answer(FRIEND.peer_id, Release(call=call.call))
    return BlobId(open_receipt(result.receipt).outputs[0][1])
