"""Many units in one message, at a provider: each ends as it would by itself."""

import models
import msgspec
import numpy as np
import pytest
import trio
from attacker import make_award
from job_nodes import DENSE, FRIEND, GATHER, LIMIT_S, OUT_OF_RANGE, X, bid_for, open_node
from onnx import parser
from trio.testing import wait_all_tasks_blocked

from shoal.compute import unit_batches
from shoal.compute.convert import convert
from shoal.compute.exchanges import exchange_many
from shoal.compute.in_file import InFile
from shoal.compute.tensor import to_blob
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import is_signed_together, signature_of
from shoal.node import house, input_sources, pipeline, running, unit_messages
from shoal.node.errors import StoreError
from shoal.node.running import HELD_BATCHES_LIMIT
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.limits import BATCH_UNITS_LIMIT, INLINE_LIMIT_BYTES, PORT_BYTES
from shoal.protocol.negotiation_messages import (
    Cancel,
    Reason,
    Release,
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
VARYING = convert(
    parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        """g (int64 x) => (int64 y) {
            t = Constant<value = bool {1}>()
            y = Loop <body = b (int64 i, bool c, int64 v) => (bool d, int64 w) {
                d = Identity(c) w = Neg(v) }> (x, t, x) }"""
    ).SerializeToString()
)
"""Goes round as often as it is told to."""
ENDLESSLY = to_blob(np.array(10**12))


async def until(condition):
    with trio.fail_after(LIMIT_S):
        while not condition():  # noqa: ASYNC110  # of others' states, which tell nobody
            await trio.sleep(0.01)


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


async def receipts_for(node, version, count=3):
    """Those of a batch for a requester of this version."""
    node.house.control.versions.note(FRIEND.peer_id, version)
    call = await lease_for(node)
    blobs = distinct(count)
    units = [unit_of(call, f"j/{k}", blob) for k, blob in enumerate(blobs)]
    return [answer.receipt for answer in await ask(node, call, *units)]


async def test_one_signature_is_over_the_receipts_of_a_message(node):
    receipts = await receipts_for(node, (1, 5))
    assert all(map(is_signed_together, receipts))
    assert len({receipt[-64:] for receipt in receipts}) == 1
    assert len(set(map(signature_of, receipts))) == len(receipts)
    assert {open_receipt(receipt).unit for receipt in receipts} == {"j/0", "j/1", "j/2"}


async def test_an_older_requester_gets_a_signature_for_each_receipt(node):
    receipts = await receipts_for(node, (1, 4))
    assert not any(map(is_signed_together, receipts))
    assert len({receipt[-64:] for receipt in receipts}) == len(receipts)


async def test_a_receipt_does_not_wait_long_for_others_to_be_signed_with(node, monkeypatch):
    """The first has its answer while the second runs without end."""
    monkeypatch.setattr(running, "SIGNED_WITHIN_S", 0.05)
    call = await lease_for(node, VARYING, time_limit_s=60.0)
    quick = unit_of(call, "quick", to_blob(np.array(1)))
    endless = unit_of(call, "endless", ENDLESSLY)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, node, call, quick, endless)
        await until(lambda: node.provider.units_served == 1)
        (again,) = await ask(node, call, quick)
        assert open_receipt(again.receipt).error is None
        await node.provider.answer(FRIEND.peer_id, Cancel(call=call.call, unit="endless"))


async def test_a_large_tensor_passes_a_provider_in_pieces(node, monkeypatch):
    """Neither as an input nor as an output is it in the daemon's memory."""
    for module in (input_sources, unit_batches):
        monkeypatch.setattr(module, "LARGE_BYTES", 1 << 17)
    call = await lease_for(node, FOURFOLD)
    x = to_blob(np.arange(300_000, dtype=np.float32))
    blob_id = await node.house.store.put_bytes(x)
    node.house.known.note(FRIEND.peer_id, [blob_id])
    ran = []
    write = pipeline.write_receipt

    async def watched(house, side, request, run, room):
        ran.append(run)
        return await write(house, side, request, run, room)

    monkeypatch.setattr(pipeline, "write_receipt", watched)
    (answer,) = await ask(node, call, UnitRequest(call.call, "a", (("x", blob_id),)))
    ((_, output),) = open_receipt(answer.receipt).outputs
    y = np.concatenate([np.arange(300_000, dtype=np.float32)] * 4)
    assert output == blob_id_of(to_blob(y))
    assert answer.blobs == ()
    assert await node.house.store.get_bytes(output) == to_blob(y)
    assert node.house.rights.allows(FRIEND.peer_id, output)
    (run,) = ran
    assert {type(each) for each in (*run.inputs.values(), *run.outcome.outputs.values())} == {
        InFile
    }


async def test_a_large_output_can_be_kept_for_its_requester(node, monkeypatch):
    monkeypatch.setattr(unit_batches, "LARGE_BYTES", 1 << 17)
    call = await lease_for(node, FOURFOLD)
    x = to_blob(np.arange(30_000, dtype=np.float32))
    unit = msgspec.structs.replace(unit_of(call, "a", x), keep=True)
    (answer,) = await ask(node, call, unit)
    ((_, output),) = open_receipt(answer.receipt).outputs
    assert answer.kept == ((output, node.house.store.size_bytes(output)),)
    assert node.house.kept.keeps(FRIEND.peer_id, output)


async def test_a_large_input_that_its_disk_has_lost_is_an_error_of_its_unit(
    node, tmp_path, monkeypatch
):
    monkeypatch.setattr(input_sources, "LARGE_BYTES", 1 << 17)
    call = await lease_for(node, FOURFOLD)
    blob_id = await node.house.store.put_bytes(to_blob(np.arange(2_000_000, dtype=np.float32)))
    node.house.known.note(FRIEND.peer_id, [blob_id])
    path = next(one for one in tmp_path.rglob("*") if one.stat().st_size > 7_900_000)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(3 << 20)
        file.write(b"damaged")
    (answer,) = await ask(node, call, UnitRequest(call.call, "a", (("x", blob_id),)))
    assert answer.reason is Reason.NO_ROOM
    assert not node.house.store.holds(blob_id)


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


# --- what it shares with units that come alone ------------------------------------------


async def test_the_program_is_fetched_once_for_a_lease_and_again_when_it_is_lost(
    node, monkeypatch
):
    fetched = []
    fetch_program = pipeline.fetch_program

    async def count(house, side):
        fetched.append(side.award_id)
        return await fetch_program(house, side)

    monkeypatch.setattr(pipeline, "fetch_program", count)
    call = await lease_for(node)
    await ask(node, call, unit_of(call, "a"), unit_of(call, "b"))
    await ask(node, call, unit_of(call, "c"))
    assert len(fetched) == 1

    async def gone(blob_id):
        raise StoreError(f"{blob_id} is damaged", code="blob_missing")

    get_bytes = node.blobs.get_bytes
    monkeypatch.setattr(node.blobs, "get_bytes", gone)
    await node.house.worker.close()  # so that it is prepared anew
    lost = await ask(node, call, unit_of(call, "d"), unit_of(call, "e"))
    assert {answer.reason for answer in lost} == {Reason.NO_ROOM}
    monkeypatch.setattr(node.blobs, "get_bytes", get_bytes)
    (found,) = await ask(node, call, unit_of(call, "f"))
    assert open_receipt(found.receipt).error is None
    assert len(fetched) == 2


async def test_a_program_whose_receipts_are_long_runs_in_smaller_batches(node, monkeypatch):
    call = await lease_for(node)
    manifest = await house.manifest_of(node.blobs, DENSE.program_id)
    assert unit_messages.units_per_message(manifest) == BATCH_UNITS_LIMIT
    monkeypatch.setattr(unit_messages, "BATCH_PORTS_LIMIT_BYTES", 2 * 2 * (PORT_BYTES + 1))
    assert unit_messages.units_per_message(manifest) == 2
    answers = await ask(node, call, *(unit_of(call, name) for name in "abc"))
    assert [getattr(answer, "reason", None) for answer in answers] == [
        None,
        None,
        Reason.TOO_LARGE,
    ]


async def test_a_batch_that_runs_is_handed_back_whole_but_for_what_has_ended(node):
    call = await lease_for(node, VARYING)
    units = (unit_of(call, "quick", to_blob(np.array(1))), unit_of(call, "b", ENDLESSLY))
    answers = []

    async def keep():
        answers.extend(await ask(node, call, *units, unit_of(call, "c", ENDLESSLY)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        await until(lambda: node.provider.units_served == 1)
        node.provider.hand_back(Reason.PAUSED, "for a test")
    assert open_receipt(answers[0].receipt).error is None
    assert [a.reason for a in answers[1:]] == [Reason.PAUSED] * 2
    assert node.provider.units_waiting == 0
    (after,) = await ask(node, call, unit_of(call, "d", to_blob(np.array(1))))
    assert open_receipt(after.receipt).error is None


async def test_a_device_that_closes_takes_no_batch_and_a_drain_waits_for_the_one_it_has(node):
    call = await lease_for(node)
    answers = []

    async def keep():
        answers.extend(await ask(node, call, unit_of(call, "a"), unit_of(call, "b")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        await wait_all_tasks_blocked()
        node.draining = True
        late = await ask(node, call, unit_of(call, "c"), unit_of(call, "d"))
        assert [answer.reason for answer in late] == [Reason.DRAINING] * 2
    assert all(open_receipt(answer.receipt).error is None for answer in answers)
    assert node.provider.refused[Reason.DRAINING] == 2


async def test_a_batch_of_a_lease_that_is_released_ends_with_it(node, monkeypatch):
    call = await lease_for(node, VARYING)
    answers, begun = [], trio.Event()

    async def begin(*arguments):
        begun.set()
        return await exchange_many(*arguments)

    monkeypatch.setattr(unit_batches, "exchange_many", begin)

    async def keep():
        units = (unit_of(call, name, ENDLESSLY) for name in "abc")
        answers.extend(await ask(node, call, *units))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        with trio.fail_after(60):
            await begun.wait()  # a process that runs none of it yet would be kept
        assert FRIEND.peer_id in node.house.worker.pids
        await node.provider.answer(FRIEND.peer_id, Release(call=call.call))
    assert [answer.reason for answer in answers] == [Reason.EXPIRED] * 3
    assert node.provider.units_waiting == node.provider.leases == 0
    assert FRIEND.peer_id not in node.house.worker.pids


async def test_what_units_are_expected_to_take_follows_what_they_took(node):
    call = await lease_for(node)
    await ask(node, call, *(unit_of(call, str(k), blob) for k, blob in enumerate(distinct(9))))
    (conversation,) = node.provider._conversations.values()
    assert 0.0 < conversation.unit_s < 0.5
    assert node.provider.load_on("cpu").waiting_s == 0.0


async def test_the_inputs_of_few_messages_of_a_lease_are_in_memory_at_once(node, monkeypatch):
    fetching = []

    async def hang(*_):
        fetching.append(1)
        await trio.sleep_forever()

    monkeypatch.setattr(pipeline, "fetch_inputs", hang)
    call = await lease_for(node)
    async with trio.open_nursery() as nursery:
        for name in "abcd":
            unit = UnitsRequest(call=call.call, units=(unit_of(call, name),))
            nursery.start_soon(node.provider.answer, FRIEND.peer_id, unit)
        await wait_all_tasks_blocked()
        assert len(fetching) == HELD_BATCHES_LIMIT
        await node.provider.answer(FRIEND.peer_id, Release(call=call.call))
