"""A card's worker and the machine's memory: who takes too much is named, and nobody else.

The card is made up (``faulty_card.py``), and its worker a real one, locked in by the profile
``gpu``. What drivers and compilers may take is made small here, so that 256 MiB are too much.
"""

from pathlib import Path

import faulty_card
import msgspec
import numpy as np
import pytest
import trio
from faulty_card import FINE
from job_nodes import DENSE, LIMIT_S
from onnx import helper, numpy_helper, parser
from test_card_faults import ENTRY, START, MadeUpCard, rows_of

from shoal.compute import host_memory
from shoal.compute.convert import convert
from shoal.compute.frames import Run, UnitLimits
from shoal.compute.host_memory import HostMemory, HostMemoryError, used_bytes
from shoal.compute.supervisor import open_workers
from shoal.compute.tensor import to_blob
from shoal.compute.unit_runs import Execution, UnitRun

MIB = 1 << 20
SMALL = UnitLimits(time_s=20.0, memory_bytes=64 * MIB, output_bytes=MIB)
LARGE = UnitLimits(time_s=20.0, memory_bytes=384 * MIB, output_bytes=MIB)


@pytest.fixture
async def make_worker(tmp_path, monkeypatch):
    """Makes a worker whose units may ask for so much."""
    monkeypatch.setattr(host_memory, "OVERHEAD_BYTES", 32 * MIB)
    async with open_workers() as workers:

        def make(memory_bytes):
            start = msgspec.structs.replace(START, memory_bytes=memory_bytes)
            return workers.add(start, MadeUpCard(tmp_path).place, ENTRY)

        yield make


@pytest.fixture
def worker(make_worker):
    return make_worker(LARGE.memory_bytes)


async def run(worker, inputs, limits, program=DENSE):
    """What came of units: a code, or "" of one that ran; and the units."""

    async def blobs():
        return program.blobs

    units = [UnitRun({"x": blob}) for blob in inputs]
    with trio.fail_after(LIMIT_S * 2):
        await worker.run_many(
            "ann", program.program_id, blobs, units, limits, lambda _: None, 0, "fp32"
        )
    ran = [isinstance(unit.outcome, Execution) for unit in units]
    return ["" if r else u.outcome.code for r, u in zip(ran, units, strict=True)], units


# --- a real process ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "deed", [faulty_card.HOARDS, faulty_card.SHARES, faulty_card.HAS_A_CHILD_HOARD]
)
async def test_too_much_of_the_machine_s_memory_ends_the_unit_by_name_and_the_next_one_runs(
    worker, deed
):
    await worker.probe()
    codes, (_, failed, *_) = await run(worker, map(rows_of, (FINE, deed, FINE, FINE)), SMALL)
    assert codes == ["", "memory_limit", "", ""]
    assert "of the machine's memory" in failed.outcome.message
    assert failed.outcome.hint
    assert worker.lost is None


async def test_what_a_unit_left_behind_costs_its_process_and_no_unit(worker):
    leaves, fine = rows_of(faulty_card.LEAVES_BEHIND), rows_of(FINE)
    processes = set()
    for unit in (leaves, leaves, fine, fine):
        assert (await run(worker, [unit], LARGE))[0] == [""]
        processes.add(worker.pids["ann"])
    assert len(processes) == 2


async def test_a_unit_that_begins_where_much_was_left_behind_is_held_to_what_it_takes(worker):
    codes, _ = await run(worker, [rows_of(faulty_card.LEAVES_BEHIND)], LARGE)
    assert codes == [""]
    limits = msgspec.structs.replace(SMALL, memory_bytes=0)
    codes, _ = await run(worker, [rows_of(FINE)], limits)
    assert codes == [""]


WEIGHT_BYTES = 64 * MIB


def weighty(value):
    """A program with so much of weights."""
    weight = np.full(WEIGHT_BYTES // 4, value, np.float32)
    graph = parser.parse_graph("g (int64[1] x) => (float[1] y) { y = Gather(weight, x) }")
    graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return convert(model.SerializeToString())


async def test_weights_of_prepared_programs_are_nobody_s_fault(make_worker):
    """Together more than any unit may take."""
    worker = make_worker(SMALL.memory_bytes)
    first = to_blob(np.array([0]))
    programs = [weighty(value) for value in range(3)]
    pids = set()
    for program in (*programs, *programs):
        assert (await run(worker, [first], SMALL, program))[0] == [""]
        pids.add(worker.pids["ann"])
    assert len(pids) == 1
    assert used_bytes(Path(f"/proc/{pids.pop()}")) > len(programs) * WEIGHT_BYTES


# --- one process, by a directory of /proc that is made up -------------------------------


class MadeUpProcesses:
    """What /proc says of processes of one session."""

    def __init__(self, folder):
        self.folder = folder

    def say(self, pid, session=7, **used_mib):
        directory = self.folder / str(pid)
        directory.mkdir(exist_ok=True)
        lines = [f"{name}:\t{mib << 10:8} kB" for name, mib in used_mib.items()]
        (directory / "status").write_text("Name:\tx) 1 (\n" + "\n".join(lines))
        (directory / "stat").write_text(f"{pid} (x) 1 () S 1 {session} {session} 0 -1 0")


@pytest.fixture
def processes(tmp_path):
    return MadeUpProcesses(tmp_path)


RUN = Run("p", ("x",), UnitLimits(time_s=1.0, memory_bytes=100 * MIB, output_bytes=0))


async def test_swapped_and_shared_memory_counts_and_mapped_files_do_not(processes):
    processes.say(7, RssAnon=1, RssShmem=2, VmSwap=4, RssFile=1000, VmSize=1 << 30)
    assert used_bytes(processes.folder / "7") == 7 * MIB
    assert used_bytes(processes.folder / "8") == 0


async def test_a_moment_in_which_a_child_shows_its_parent_s_memory_ends_nothing(
    processes, autojump_clock
):
    processes.say(7, RssAnon=5000)
    memory = HostMemory(7, 0, processes.folder)
    memory.begin(RUN, 0, 0)
    await trio.sleep(host_memory.SESSION_INTERVAL_S)
    processes.say(9, RssAnon=5000)
    await memory.look()  # being forked
    processes.say(9, RssAnon=1)
    await memory.look()
    await trio.sleep(host_memory.SESSION_INTERVAL_S)
    processes.say(9, RssAnon=5000)
    processes.say(10, session=1, RssAnon=5000)
    await memory.look()
    with pytest.raises(HostMemoryError) as over:
        await memory.look()
    assert over.value.taken_bytes == 5000 * MIB
    assert over.value.allowed_bytes == host_memory.OVERHEAD_BYTES + 100 * MIB


async def test_what_a_unit_is_lent_is_allowed_beside_its_limit(processes, autojump_clock):
    processes.say(7, RssAnon=5000)
    memory = HostMemory(7, 0, processes.folder)
    memory.begin(RUN, 30 * MIB, 40 * MIB)
    allowed = (host_memory.OVERHEAD_BYTES >> 20) + 170
    processes.say(7, RssAnon=5000, RssShmem=allowed)
    await memory.look()
    processes.say(7, RssAnon=5000, RssShmem=allowed + 1)
    with pytest.raises(HostMemoryError):
        await memory.look()
