"""The requester's side of chaining: shared, brought here, made anew where it was lost."""

from contextlib import AsyncExitStack

import msgspec
import pytest
import trio
from chaining_nodes import IDENTITY, LIMIT_S, X, made, open_node
from journal_samples import done, make_job, make_unit

from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node import chaining
from shoal.node.blob_transfer import BLOB_PROTOCOL
from shoal.node.errors import JobError, NetworkError
from shoal.node.house import outputs_of
from shoal.node.lineage import RECOMPUTED_LIMIT, Left, bytes_with
from shoal.node.records import Ended, JobId, JobState, UnitState
from shoal.node.running_jobs import prepare
from shoal.node.standing import Offence
from shoal.protocol.negotiation_messages import Drop, UnitResult

FIRST, SECOND = JobId("0001"), JobId("0002")


@pytest.fixture
async def nodes(tmp_path):
    """A requester and two providers."""
    async with AsyncExitStack() as stack:
        nodes = [
            await stack.enter_async_context(open_node(tmp_path / str(n))) for n in range(3)
        ]
        for number, node in enumerate(nodes):
            node.meets(*nodes[:number])
        with trio.fail_after(2 * LIMIT_S):
            yield nodes


async def left_with(requester, peer, y):
    """Note a job of one unit, which has left ``y`` with ``peer``."""
    for blob in IDENTITY.blobs.values():
        await requester.store.put_bytes(blob)
    job, spec = make_job(FIRST, program=IDENTITY.program_id, outputs_stay=True)
    spec = msgspec.structs.replace(spec, outputs_stay=True)
    await requester.house.journal.add_job(job, spec, [make_unit(0)])
    ended = done(make_unit(0), left={y: len(X)}, outputs={"y": y})
    unit = msgspec.structs.replace(ended.unit, provider=peer)
    await requester.house.journal.end_units([Ended(unit, ended.receipt, left=ended.left)])
    await requester.house.journal.end_job(FIRST, JobState.DONE, 1.0)


async def dependant(requester):
    """A job of one unit that takes the output of the first one's."""
    unit = make_unit(0, job=SECOND, inputs={}, x=(FIRST, 0, "y"))
    await requester.house.journal.add_job(*make_job(SECOND), [unit])
    (ready,) = await requester.house.journal.open_units(SECOND)
    return ready


async def first_unit(requester):
    (unit,) = await requester.house.journal.units(FIRST, 0, 1)
    return unit


# --- handing over ---------------------------------------------------------------------


async def test_a_units_provider_is_told_where_its_inputs_are_and_gets_them_there(nodes):
    requester, maker, taker = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    unit = await dependant(requester)
    left = await chaining.left_inputs(requester.house, [unit])
    assert bytes_with(left, [unit]) == {maker.peer: len(X)}
    supply = await chaining.supply(requester.house, taker.peer, [unit])
    assert (supply.sources, supply.lost) == ({0: ((y, maker.peer),)}, {})
    ask = await requester.lease(taker, IDENTITY)
    assert isinstance(await ask(0, y, keep=True, sources=supply.sources[0]), UnitResult)
    assert not requester.store.holds(y)


async def test_who_has_an_input_itself_is_sent_nowhere_for_it(nodes):
    requester, maker, _ = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    supply = await chaining.supply(requester.house, maker.peer, [await dependant(requester)])
    assert (supply.sources, supply.lost) == ({0: ()}, {})


async def test_what_its_peer_has_dropped_is_lost(nodes):
    requester, maker, taker = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    unit = await dependant(requester)
    await requester.tell(maker, Drop(blobs=(y,)))
    supply = await chaining.supply(requester.house, taker.peer, [unit])
    assert supply.lost == {0: (Left(maker.peer, FIRST, 0, len(X)),)}
    await chaining.make_anew(requester.house, supply.lost[0])
    assert (await first_unit(requester)).state is UnitState.QUEUED
    assert (await requester.house.journal.job(FIRST)).state is JobState.RUNNING
    assert await requester.house.journal.open_units(SECOND) == []


async def test_what_is_with_a_peer_that_is_gone_is_lost_unless_it_is_here_too(nodes):
    requester, maker, taker = nodes
    y = await made(requester, maker)
    nobody = identity.generate().peer_id
    await left_with(requester, nobody, y)
    unit = await dependant(requester)
    supply = await chaining.supply(requester.house, taker.peer, [unit])
    assert list(supply.lost) == [0]
    assert await requester.fetches(maker, y)
    supply = await chaining.supply(requester.house, taker.peer, [unit])
    assert (supply.sources, supply.lost) == ({0: ()}, {})


async def test_what_is_with_a_peer_whose_link_hiccups_is_not_lost(nodes, monkeypatch):
    requester, maker, taker = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    unit = await dependant(requester)
    monkeypatch.setattr(chaining, "SHARE_AGAIN_S", 0.01)
    ask, asked = chaining._ask_to_share, []

    async def hiccup(*arguments):
        asked.append(arguments)
        if len(asked) == 1:
            raise NetworkError("the link is gone", code="link_lost")
        return await ask(*arguments)

    monkeypatch.setattr(chaining, "_ask_to_share", hiccup)
    supply = await chaining.supply(requester.house, taker.peer, [unit])
    assert (supply.sources, supply.lost) == ({0: ((y, maker.peer),)}, {})


async def test_an_input_that_this_nodes_own_store_has_lost_is_made_anew(nodes):
    requester, maker, taker = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    unit = await dependant(requester)
    await requester.house.journal.transact(
        lambda database: database.execute("DELETE FROM left_outputs")
    )
    supply = await chaining.supply(requester.house, taker.peer, [unit])
    assert supply.lost == {0: (Left(requester.peer, FIRST, 0, 0),)}


async def test_a_job_is_taken_up_again_though_an_input_has_to_be_made_anew(nodes):
    requester, maker, _ = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    await dependant(requester)
    await requester.house.journal.transact(
        lambda database: database.execute("DELETE FROM left_outputs")
    )
    job = await requester.house.journal.job(SECOND)
    _, spec = make_job(SECOND)
    spec = msgspec.structs.replace(spec, program=IDENTITY.program_id)
    running = await prepare(requester.house, job, spec, resumed=True)
    assert running.queue.unit_bytes == 0


async def test_an_old_provider_gets_inputs_by_way_of_this_node(nodes):
    requester, maker, taker = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    requester.house.control.versions.note(taker.peer, (1, 2))
    unit = await dependant(requester)
    supply = await chaining.supply(requester.house, taker.peer, [unit])
    assert (supply.sources, supply.lost) == ({0: ()}, {})
    assert requester.store.holds(y)


# --- lost, or said to be ------------------------------------------------------------------


async def test_a_provider_that_finds_nothing_is_believed_only_after_a_look(nodes):
    requester, maker, _ = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    unit = await dependant(requester)
    assert await chaining.not_found(requester.house, unit, y) == ()
    assert requester.store.holds(y)  # from now on it is served from here
    assert (await first_unit(requester)).state is UnitState.DONE


async def test_what_is_really_lost_is_made_anew_and_only_so_often(nodes):
    requester, *_ = nodes
    y, nobody = blob_id_of(X), identity.generate().peer_id
    await left_with(requester, nobody, y)
    unit = await dependant(requester)
    lost = (Left(nobody, FIRST, 0, len(X)),)
    assert await chaining.not_found(requester.house, unit, y) == lost
    for _ in range(RECOMPUTED_LIMIT):
        await chaining.wait_again(requester.house, unit, lost)
        assert await requester.house.journal.open_units(SECOND) == []
        ended = done(make_unit(0), left={y: 1}, outputs={"y": y})
        again = msgspec.structs.replace(ended.unit, provider=nobody)
        await requester.house.journal.end_units([Ended(again, ended.receipt, left={y: 1})])
    with pytest.raises(JobError, match="lost 6 times") as caught:
        await chaining.wait_again(requester.house, unit, lost)
    assert caught.value.code == "input_lost"


async def test_what_a_cancelled_job_has_lost_cannot_be_made_anew(nodes):
    requester, *_ = nodes
    y, nobody = blob_id_of(X), identity.generate().peer_id
    await left_with(requester, nobody, y)
    unit = await dependant(requester)
    await requester.house.journal.transact(
        lambda database: database.execute(
            "UPDATE jobs SET state = 'cancelled' WHERE id = ?", (FIRST,)
        )
    )
    await requester.house.journal.transact(
        lambda database: database.execute(
            "UPDATE units SET state = 'cancelled' WHERE job = ?", (FIRST,)
        )
    )
    lost = await chaining.not_found(requester.house, unit, y)
    with pytest.raises(JobError, match="cancelled"):
        await chaining.wait_again(requester.house, unit, lost)


async def test_a_done_unit_of_a_cancelled_job_is_not_waited_for_when_its_outputs_are_lost(
    nodes,
):
    requester, *_ = nodes
    y, nobody = blob_id_of(X), identity.generate().peer_id
    await left_with(requester, nobody, y)
    unit = await dependant(requester)
    await requester.house.journal.transact(
        lambda database: database.execute(
            "UPDATE jobs SET state = 'cancelled' WHERE id = ?", (FIRST,)
        )
    )
    lost = await chaining.not_found(requester.house, unit, y)
    with pytest.raises(JobError, match="cancelled") as caught:
        await chaining.wait_again(requester.house, unit, lost)
    assert caught.value.code == "input_lost"


async def test_a_unit_whose_inputs_are_others_by_now_is_only_read_again(nodes):
    requester, maker, _ = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    unit = await dependant(requester)
    stale = msgspec.structs.replace(unit, inputs={"x": blob_id_of(b"of an earlier run")})
    told = []
    requester.house.journal.touched = told.append
    await chaining.wait_again(requester.house, stale, (Left(maker.peer, FIRST, 0, 1),))
    assert told == [{SECOND}]
    assert (await first_unit(requester)).state is UnitState.DONE


async def test_a_refusal_by_an_input_is_looked_into_and_falls_back_on_who_made_it(nodes):
    requester, maker, _ = nodes
    good = await made(requester, maker)
    await left_with(requester, maker.peer, good)
    unit = await dependant(requester)
    assert await chaining.false_inputs(requester.house, unit) == ()
    bad = await maker.store.put_bytes(b"no tensor at all")
    maker.house.kept.keep(requester.peer, 1, {bad: 16}, 1 << 20, trio.current_time())
    await requester.house.journal.transact(
        lambda database: database.execute("UPDATE left_outputs SET tensor = ?", (bad,))
    )
    unit = msgspec.structs.replace(unit, inputs={"x": bad})
    lost = await chaining.false_inputs(requester.house, unit)
    assert lost == (Left(maker.peer, FIRST, 0, len(X)),)
    assert requester.offences == [(maker.peer, Offence.BAD_RESULT)]


# --- asked for here -------------------------------------------------------------------------


async def test_an_output_that_is_asked_for_comes_here_and_its_peer_may_drop_it(nodes):
    requester, maker, _ = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    await chaining.bring_home(requester.house, y)
    assert len(await requester.store.get_bytes(y)) == len(X)
    assert len(maker.house.kept) == 0
    assert await requester.house.journal.holders([y]) == {}
    pins = requester.store._shelf.index._pins
    assert y in pins[outputs_of(FIRST)]
    await chaining.bring_home(requester.house, y)
    await chaining.bring_home(requester.house, blob_id_of(b"nothing of that kind"))


async def test_while_a_unit_waits_for_it_its_peer_keeps_what_was_asked_for(nodes):
    requester, maker, taker = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    unit = await dependant(requester)
    await chaining.bring_home(requester.house, y)
    assert maker.house.kept.keeps(requester.peer, y)
    supply = await chaining.supply(requester.house, taker.peer, [unit])
    assert supply.sources == {0: ((y, maker.peer),)}


async def test_an_output_that_is_lost_is_computed_again_when_it_is_asked_for(nodes):
    requester, *_ = nodes
    y = blob_id_of(X)
    await left_with(requester, identity.generate().peer_id, y)
    with pytest.raises(JobError, match="run again") as caught:
        await chaining.bring_home(requester.house, y)
    assert caught.value.code == chaining.COMPUTED_AGAIN
    assert caught.value.hint
    assert (await first_unit(requester)).state is UnitState.QUEUED


async def test_a_peer_that_keeps_no_tensor_has_done_wrong(nodes):
    requester, maker, _ = nodes
    y = await maker.store.put_bytes(b"no tensor at all")
    maker.house.kept.keep(requester.peer, 1, {y: 16}, 1 << 20, trio.current_time())
    await left_with(requester, maker.peer, y)
    with pytest.raises(JobError, match="run again"):
        await chaining.bring_home(requester.house, y)
    assert requester.offences == [(maker.peer, Offence.BAD_RESULT)]


async def test_a_peer_that_sends_other_bytes_has_done_wrong(nodes):
    requester, maker, _ = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)

    async def lie(stream):
        await stream.receive_some(4096)
        await stream.send_all(b"\x00\x00\x00\x05nope!")

    maker.network.handle(BLOB_PROTOCOL, lie)
    with pytest.raises(JobError, match="run again"):
        await chaining.bring_home(requester.house, y)
    assert requester.offences == [(maker.peer, Offence.BAD_BLOB)]


async def test_the_peers_of_a_job_that_needs_its_outputs_no_more_are_told(nodes):
    requester, maker, _ = nodes
    y = await made(requester, maker)
    await left_with(requester, maker.peer, y)
    unit = await dependant(requester)
    await chaining.let_go(requester.house, FIRST)
    assert maker.house.kept.keeps(requester.peer, y)  # a unit takes it
    await requester.house.journal.end_units([done(unit, 7)])
    await chaining.let_go(requester.house, FIRST)
    assert len(maker.house.kept) == 0
    assert await requester.house.journal.holders([y]) == {}
    await chaining.let_go(requester.house, FIRST)
