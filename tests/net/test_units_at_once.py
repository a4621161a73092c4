"""Several units at once on one card: who runs beside whom, who waits, what ends whom.

The card is made up, and its processes are real (``faulty_card.py``). A unit that hangs holds
its place for as long as a test wants: what ends meanwhile has run beside it.
"""

import os
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import faulty_card
import pytest
import trio
from job_nodes import DENSE, LIMIT_S
from test_card_faults import ENTRY, LIMITS, START, MadeUpCard, rows_of, run_all

from shoal.compute import rooms, starting, worker_process
from shoal.compute.errors import ProgramError
from shoal.compute.frames import UnitLimits
from shoal.compute.supervisor import open_worker, open_workers
from shoal.compute.unit_runs import Execution, UnitRun
from shoal.compute.worker_process import WorkerProcess
from shoal.crypto.content import blob_id_of

FINE, HANGS = faulty_card.FINE, faulty_card.HANGS
ENDLESS = UnitLimits(time_s=600.0, memory_bytes=1 << 28, output_bytes=1 << 20)
LENT_BYTES = 1 << 34


@pytest.fixture
def card(tmp_path):
    return MadeUpCard(tmp_path)


@asynccontextmanager
async def on(card, places=2, lent_bytes=LENT_BYTES, **variables):
    """A worker of the card, which runs so many units at once."""
    async with open_workers() as workers:
        place = replace(card.place, units_at_once=places, lent_bytes=lent_bytes)
        place = replace(place, variables={**place.variables, **variables})
        worker = workers.add(START, place, ENTRY)
        await worker.probe()
        yield worker


async def dense():
    return DENSE.blobs


async def begin(nursery, worker, requester, first=HANGS, limits=ENDLESS):
    """A unit that is under way; it ends when it is cancelled, or by its fault."""
    unit = UnitRun({"x": rows_of(first)})
    nursery.start_soon(
        worker.run_many,
        *(requester, DENSE.program_id, dense, [unit], limits, lambda _: None, 0, "fp32"),
    )
    await under_way(unit)
    return unit


async def under_way(unit):
    with trio.fail_after(LIMIT_S):
        while unit.started_at_ms == 0:  # noqa: ASYNC110  # a process is waited for
            await trio.sleep(0.01)


async def is_over(unit):
    with trio.fail_after(LIMIT_S):
        while unit.outcome is None:  # noqa: ASYNC110  # a process is waited for
            await trio.sleep(0.01)
    return "" if isinstance(unit.outcome, Execution) else unit.outcome.code


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_two_units_run_at_once_each_in_its_process_and_a_third_waits_for_a_place(card):
    async with on(card) as worker, trio.open_nursery() as nursery:
        ann = await begin(nursery, worker, "ann")
        codes, _ = await run_all(worker, FINE, requester="bob")
        assert (codes, ann.outcome) == ([""], None)  # it ended while hers ran
        bob = await begin(nursery, worker, "bob")
        third = UnitRun({"x": rows_of(FINE)})
        waiting = ("carol", DENSE.program_id, dense, [third], LIMITS, lambda _: None, 0, "fp32")
        nursery.start_soon(worker.run_many, *waiting)
        await trio.sleep(0.3)  # memory is looked at, so that tasks are never all blocked
        assert third.started_at_ms == 0
        pids = worker.pids
        assert pids["ann"] != pids["bob"]
        bob.cancel()
        assert await is_over(third) == ""
        assert (ann.outcome, worker.pids["ann"]) == (None, pids["ann"])
        nursery.cancel_scope.cancel()


async def test_units_of_one_requester_run_at_once_in_two_processes(card):
    async with on(card) as worker, trio.open_nursery() as nursery:
        await begin(nursery, worker, "ann")
        codes, _ = await run_all(worker, FINE, FINE, requester="ann")
        assert codes == ["", ""]
        assert worker.pids["ann"] != worker.pids["ann 2"]
        nursery.cancel_scope.cancel()


async def test_where_a_card_runs_one_unit_at_a_time_the_next_one_waits(card):
    async with on(card, places=1) as worker, trio.open_nursery() as nursery:
        ann = await begin(nursery, worker, "ann")
        await worker.probe()  # a process is ready: nothing else keeps him waiting
        with trio.move_on_after(2.0) as gave_up:
            await run_all(worker, FINE, requester="bob")
        assert gave_up.cancelled_caught
        ann.cancel()
        assert (await run_all(worker, FINE, requester="bob"))[0] == [""]


async def test_an_executor_that_takes_memory_past_torch_has_the_card_for_itself(card):
    async with on(card, PAST_TORCH="1") as worker, trio.open_nursery() as nursery:
        assert worker.units_at_once == 1
        ann = await begin(nursery, worker, "ann")
        await worker.probe()  # a process is ready: nothing else keeps him waiting
        with trio.move_on_after(2.0) as gave_up:
            await run_all(worker, FINE, requester="bob")
        assert gave_up.cancelled_caught
        ann.cancel()
        assert (await run_all(worker, FINE, requester="bob"))[0] == [""]
    async with on(card) as worker:
        assert worker.units_at_once == 2


@pytest.mark.parametrize(
    ("lent_bytes", "memory_bytes"),
    [(5 << 29, 1 << 28), (LENT_BYTES, 3 << 28)],
    ids=["the card's", "the machine's"],
)
async def test_a_unit_whose_memory_is_not_there_waits_and_does_not_fail_for_it(
    card, lent_bytes, memory_bytes
):
    large = replace_memory(ENDLESS, memory_bytes)
    async with on(card, lent_bytes=lent_bytes) as worker, trio.open_nursery() as nursery:
        ann = await begin(nursery, worker, "ann", limits=large)
        unit = UnitRun({"x": rows_of(FINE)})
        waiting = ("bob", DENSE.program_id, dense, [unit], large, lambda _: None, 0, "fp32")
        nursery.start_soon(worker.run_many, *waiting)
        await trio.sleep(0.3)  # memory is looked at, so that tasks are never all blocked
        assert unit.started_at_ms == 0
        ann.cancel()
        assert await is_over(unit) == ""


def replace_memory(limits, memory_bytes):
    return UnitLimits(limits.time_s, memory_bytes, limits.output_bytes)


async def test_processes_that_only_wait_make_room_for_a_unit_that_is_large(card):
    async with on(card, lent_bytes=4 << 30) as worker:
        for requester in ("ann", "bob"):
            await run_all(worker, FINE, requester=requester)
        assert {"ann", "bob"} <= worker.pids.keys()
        large = UnitLimits(10.0, 1 << 30, 1 << 20)
        assert (await run_all(worker, FINE, requester="carol", limits=large))[0] == [""]
        assert "ann" not in worker.pids


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (faulty_card.OUT_OF_MEMORY, "memory_limit"),
        (faulty_card.BROKEN, "device_failed"),
        (faulty_card.DIES, "worker_died"),
        (faulty_card.GONE, "device_lost"),  # it is still there
        (HANGS, "time_limit"),
    ],
)
async def test_what_ends_one_unit_leaves_the_one_beside_it_alone(card, first, code):
    short = UnitLimits(time_s=0.3, memory_bytes=1 << 28, output_bytes=1 << 20)
    async with on(card) as worker, trio.open_nursery() as nursery:
        ann = await begin(nursery, worker, "ann")
        pid = worker.pids["ann"]
        limits = short if first == HANGS else LIMITS
        codes, _ = await run_all(worker, first, FINE, requester="bob", limits=limits)
        assert codes == [code, ""]
        assert (ann.outcome, worker.pids["ann"]) == (None, pid)
        nursery.cancel_scope.cancel()


async def test_a_card_that_is_lost_ends_all_that_run_there_and_names_it(card):
    async with on(card) as worker, trio.open_nursery() as nursery:
        ann = await begin(nursery, worker, "ann")
        card.take_away()
        codes, _ = await run_all(worker, faulty_card.GONE, requester="bob")
        assert codes == ["device_lost"]
        assert await is_over(ann) == "device_lost"
        assert len(card.lost) == 1
        await trio.sleep(0.1)  # memory is looked at, so that tasks are never all blocked
        assert worker.pids == {}


async def test_a_fault_that_comes_late_is_of_the_unit_that_has_made_it(card):
    async with on(card) as worker:
        codes, _ = await run_all(worker, faulty_card.LATE)
        assert codes == ["device_failed"]
        assert (await run_all(worker, FINE))[0] == [""]


# --- what went wrong with processes -------------------------------------------------------


async def test_a_program_that_is_refused_leaves_no_stale_word_of_what_is_held():
    garbage = b"no program" * 20_000
    refused = blob_id_of(garbage)

    async def blobs():
        return {refused: garbage}

    async with open_worker(threads=1, cache_bytes=len(garbage)) as worker:
        assert (await run_all(worker, FINE))[0] == [""]
        with pytest.raises(ProgramError):  # to make room for it the first one went
            await worker.run("ann", refused, blobs, {}, LIMITS)
        assert (await run_all(worker, FINE))[0] == [""]


async def test_where_no_process_can_be_made_a_look_at_the_card_comes_to_an_end(
    card, monkeypatch
):
    tried = []

    def full(*_):
        tried.append(1)
        assert len(tried) < 100, "it tries for ever, and nothing else of the daemon runs"
        raise OSError(24, "Too many open files")

    async with on(card) as worker:
        monkeypatch.setattr(starting, "WorkerProcess", full)
        codes, _ = await run_all(worker, faulty_card.GONE)
        assert codes == ["device_lost"]
        await trio.sleep(0.1)  # memory is looked at, so that tasks are never all blocked
        assert 0 < len(tried) < 10
        monkeypatch.undo()
        assert (await run_all(worker, FINE))[0] == [""]  # it was the machine's fault
        assert card.lost == []


@pytest.mark.parametrize("lacking", ["socketpair", "pipe", "Popen"])
def test_a_process_that_cannot_be_made_leaves_nothing_behind(card, monkeypatch, lacking):
    def full(*_, **__):
        raise OSError(24, "Too many open files")

    held = {"socketpair": worker_process.socket, "pipe": worker_process.os}
    monkeypatch.setattr(held.get(lacking, worker_process.subprocess), lacking, full)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="open files"):
        WorkerProcess(ENTRY, card.place)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert list(card.scratch.iterdir()) == []


async def test_a_caller_who_gives_up_while_others_processes_end_leaves_none_of_them(
    card, monkeypatch
):
    ending, end = trio.Event(), WorkerProcess.end

    async def slowly(process):
        said = await end(process)
        ending.set()
        with trio.CancelScope(shield=True):
            await trio.sleep(0.2)
        return said

    monkeypatch.setattr(rooms, "ROOMS_LIMIT", 2)
    async with on(card) as worker:
        for requester in ("ann", "bob"):
            await run_all(worker, FINE, requester=requester)
        pids = list(worker.pids.values())
        monkeypatch.setattr(WorkerProcess, "end", slowly)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_all, worker, FINE)
            nursery.start_soon(lambda: run_all(worker, FINE, requester="carol"))
            with trio.fail_after(LIMIT_S):
                await ending.wait()
            nursery.cancel_scope.cancel()
        assert (await run_all(worker, FINE, requester="dan"))[0] == [""]
        pids += worker.pids.values()
    assert not any(map(is_running, pids))
