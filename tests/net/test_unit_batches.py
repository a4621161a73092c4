"""Many units in one message, at a provider: each ends as it would by itself."""

import models
import numpy as np
import pytest
import trio
from attacker import make_award
from onnx import parser
from test_jobs import DENSE, FRIEND, GATHER, LIMIT_S, OUT_OF_RANGE, X, bid_for, open_node
from trio.testing import wait_all_tasks_blocked

from shoal.compute.convert import convert
from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import BATCH_UNITS_LIMIT, INLINE_LIMIT_BYTES
from shoal.protocol.messages import (
    Cancel,
    Reason,
    UnitRequest,
    UnitsRequest,
)
from shoal.protocol.statements import open_receipt

STRANGER = identity.generate()
FOURFOLD = convert(
    parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[n] x) => (float[m] y) { y = Concat<axis = 0>(x, x, x, x) }"
    ).SerializeToString()
)


@pytest.fixture
async def node(tmp_path):
    async with open_node(tmp_path) as node:
        yield node


async def lease_for(node, program=DENSE, *, units_max=256, **changes):
    """A lease of a friend who has the program, and is not connected; gives the call."""
    await node.spec(program=program)
    node.house.known.note(FRIEND.peer_id, program.blobs)
    call, bid = await bid_for(node, program.program_id, **changes)
    award = make_award(FRIEND, node.key.peer_id, call, bid, units_max=units_max)
    await node.provider.answer(FRIEND.peer_id, award)
    return call


def unit_of(call, name, blob=X):
    inputs = (("x", blob_id_of(blob)),)
    return UnitRequest(call=call.call, unit=name, inputs=inputs, blobs=(blob,))


async def ask(node, call, *units):
    """The answers to a batch, in its order."""
    batch = UnitsRequest(call=call.call, units=units)
    with trio.fail_after(LIMIT_S):
        answer = await node.provider.answer(FRIEND.peer_id, batch)
    assert [a.unit for a in answer.answers] == [unit.unit for unit in units]
    return answer.answers


def distinct(count):
    return [to_blob(np.full((1, models.WIDTH), k / 100, np.float32)) for k in range(count)]


async def test_a_full_batch_gives_one_receipt_for_each_unit(node):
    call = await lease_for(node)
    blobs = distinct(BATCH_UNITS_LIMIT)
    units = [unit_of(call, f"j/{k}", blob) for k, blob in enumerate(blobs)]
    answers = await ask(node, call, *units)
    outputs = set()
    for unit, answer in zip(units, answers, strict=True):
        receipt = open_receipt(answer.receipt)
        assert (receipt.unit, receipt.inputs) == (unit.unit, unit.inputs)
        ((_, output),) = receipt.outputs
        assert blob_id_of(answer.blobs[0]) == output
        outputs.add(output)
    assert len(outputs) == BATCH_UNITS_LIMIT
    assert node.provider.units_served == BATCH_UNITS_LIMIT


async def test_one_unit_that_fails_leaves_the_others_of_its_batch_alone(node):
    call = await lease_for(node, GATHER)
    good = to_blob(np.array([0]))
    missing = UnitRequest(call=call.call, unit="c", inputs=(("x", "ab" * 32),))
    wrong = unit_of(call, "d", X)
    fails, fine = unit_of(call, "b", OUT_OF_RANGE), unit_of(call, "e", good)
    a, b, c, d, e = await ask(node, call, unit_of(call, "a", good), fails, missing, wrong, fine)
    assert open_receipt(e.receipt).error is None
    assert open_receipt(a.receipt).error is None
    assert open_receipt(b.receipt).error is not None
    assert c.reason is Reason.DATA_MISSING
    assert d.reason is Reason.PROGRAM_REFUSED


async def test_outputs_beyond_one_message_are_held_for_their_requester_alone(node):
    call = await lease_for(node, FOURFOLD)
    blobs = [to_blob(np.full(1000, k, np.float32)) for k in range(BATCH_UNITS_LIMIT)]
    units = [unit_of(call, f"j/{k}", blob) for k, blob in enumerate(blobs)]
    answers = await ask(node, call, *units)
    inline = [blob for answer in answers for blob in answer.blobs]
    assert 0 < sum(map(len, inline)) <= INLINE_LIMIT_BYTES
    kept = [answer for answer in answers if not answer.blobs]
    assert kept
    for answer in kept:
        ((_, output),) = open_receipt(answer.receipt).outputs
        assert node.blobs.holds(output)
        assert node.rights.allows(FRIEND.peer_id, output)
        assert not node.rights.allows(STRANGER.peer_id, output)
    assert await ask(node, call, *units) == answers, "asked again, answered again"


async def test_a_batch_waits_for_units_that_run_already_and_runs_none_twice(node):
    call = await lease_for(node)
    (a,) = await ask(node, call, unit_of(call, "a"))
    answers = {}

    async def keep(key, *names):
        answers[key] = await ask(node, call, *(unit_of(call, name) for name in names))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep, "first", "b", "c")
        nursery.start_soon(keep, "second", "c", "a", "d")
    assert answers["second"][:2] == (answers["first"][1], a)
    assert node.provider.units_served == 4


async def test_a_unit_of_a_batch_is_cancelled_alone(node):
    call = await lease_for(node)
    answers = []

    async def keep():
        answers.extend(await ask(node, call, *(unit_of(call, name) for name in "abc")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        await wait_all_tasks_blocked()  # the worker has not even started
        assert node.provider.units_waiting == 3
        cancel = Cancel(call=call.call, unit="b")
        await node.provider.answer(FRIEND.peer_id, cancel)
    a, b, c = answers
    assert (b.unit, b.reason) == ("b", Reason.EXPIRED)
    assert open_receipt(a.receipt).error is open_receipt(c.receipt).error is None
    assert node.provider.units_served == 2


@pytest.mark.parametrize(
    ("names", "code"), [(["a", "a"], "duplicate_unit"), (range(65, 74), "lease_used_up")]
)
async def test_a_batch_that_is_against_the_terms_is_refused_whole(node, names, code):
    call = await lease_for(node, units_max=8)
    units = tuple(unit_of(call, str(name)) for name in names)
    with pytest.raises(RemoteProtocolError) as refused:
        await node.provider.answer(FRIEND.peer_id, UnitsRequest(call=call.call, units=units))
    assert refused.value.code == code
    assert node.provider.units_waiting == 0
