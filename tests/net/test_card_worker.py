"""The executors of cards in their worker, as far as a machine without a card can run them.

Kernels of the class exact run in Triton's interpreter and torch on the CPU; all else is as
it is on a card: the table, the profile ``gpu``, the frames, one process for a requester.
"""

import time
from importlib.util import find_spec
from pathlib import Path

import models
import numpy as np
import pytest
import trio

from shoal.compute import frames
from shoal.compute.challenge_work import ChallengeWork
from shoal.compute.convert import convert
from shoal.compute.devices.cards import Card
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.executors.base import Evidence
from shoal.compute.frames import UnitLimits
from shoal.compute.supervisor import open_worker, open_workers
from shoal.compute.tensor import from_blob, to_blob
from shoal.compute.unit_runs import Execution, UnitRun
from shoal.compute.worker_process import CARD_START_LIMIT_S, Place, compile_kernels
from shoal.crypto.content import blob_id_of
from shoal.protocol.challenge_terms import Work

pytestmark = pytest.mark.skipif(
    find_spec("torch") is None or find_spec("triton") is None,
    reason="executors of cards take torch and Triton: pip install -c constraints.txt '.[gpu]'",
)

START = frames.Start(
    threads=1,
    cache_bytes=1 << 28,
    memory_bytes=1 << 30,
    exact=False,
    card=Card("gpu0", "hip", "gfx942", 1 << 36),
)
ENTRY = (str(Path(__file__).with_name("interpreted_card.py")),)
LIMITS = UnitLimits(time_s=120.0, memory_bytes=1 << 28, output_bytes=1 << 20)
DENSE = convert(models.dense())
EXACT = convert(models.dense(), "x20")
X = to_blob(models.rows(3))


@pytest.fixture
async def worker(tmp_path):
    place = Place({"TRITON_INTERPRET": "1"}, tmp_path, CARD_START_LIMIT_S)
    async with open_workers() as workers:
        yield workers.add(START, place, ENTRY)


async def run(worker, program, numeric_class):
    """The output of one unit, and what ran it."""

    async def blobs():
        return program.blobs

    unit = UnitRun({"x": X})
    with trio.fail_after(300):
        await worker.run_many(
            "ann", program.program_id, blobs, [unit], LIMITS, lambda _: None, 0, numeric_class
        )
    assert isinstance(unit.outcome, Execution), unit.outcome
    return unit.outcome.outputs["y"], unit.outcome.runtime


async def test_a_card_serves_its_classes_side_by_side_and_exact_has_the_cpu_s_bits(worker):
    probes = await worker.probe()
    assert {probe.numeric_class.value for probe in probes} >= {"exact", "fp32", "low"}
    found, runtime = await run(worker, EXACT, "exact")
    assert runtime.startswith("exact 1 triton ")
    await compile_kernels()
    async with open_worker(threads=1) as on_cpu:
        await on_cpu.enable_exact()
        expected, _ = await run(on_cpu, EXACT, "")
        plain, _ = await run(on_cpu, DENSE, "")
    assert blob_id_of(found) == blob_id_of(expected)

    # One program, in one process, in two classes.
    fp32, runtime = await run(worker, DENSE, "fp32")
    low, _ = await run(worker, DENSE, "low")
    assert runtime.startswith("torch ")
    assert worker.holds("ann", DENSE.program_id, "fp32")
    assert worker.holds("ann", DENSE.program_id, "low")
    assert not worker.holds("ann", DENSE.program_id, "kernel")
    wanted = from_blob(plain)
    assert np.abs(from_blob(fp32) - wanted).max() < 1e-5
    assert 1e-5 < np.abs(from_blob(low) - wanted).max() < 0.1
    assert worker.processes_started <= 2


async def test_a_card_is_measured_where_it_is_and_a_cpu_checks_what_it_showed(worker):
    work = Work(rows=5, size=36, steps=2)
    with trio.fail_after(300):
        for what in ("fp32", "low"):
            request = frames.Measure(what, 0.0, 48, 3)
            done = await worker.measure(request, frames.Measured, 60.0)
            assert (done.amount, done.elapsed_s > 0) == (3 * 48**3, True)
        request = frames.Measure("memory", 0.0, 1 << 16)
        done = await worker.measure(request, frames.Measured, 60.0)
        assert done.amount == 2 << 16
        request = frames.Prove(bytes(32), work.rows, work.size, work.steps, "x20", 60.0)
        proved = await worker.measure(request, frames.Proved, 60.0)
    assert worker.processes_started == 1
    steps = ChallengeWork(CpuKernels(1)).chain(bytes(32), work, "x20")
    assert proved.leaves == tuple(b"".join(step.leaves) for step in steps)
    assert proved.roots == tuple(step.root for step in steps)


async def test_what_a_worker_compiled_at_its_start_is_there_for_the_next_process(tmp_path):
    """Compiled for a card that is not here, by the worker as it is."""
    async with open_workers() as workers:
        worker = workers.add(START, Place({}, tmp_path, CARD_START_LIMIT_S))
        with trio.fail_after(300):
            first = await worker.probe()
            (own,) = (path for path in tmp_path.iterdir() if path.name != "compiled")
            compiled = {p.relative_to(own) for p in own.rglob("*") if p.is_file()}
            assert any(path.suffix == ".hsaco" for path in compiled)
            await worker.close()
            assert [path.name for path in tmp_path.iterdir()] == ["compiled"]
            before = time.time()
            second = await worker.probe()
        (other,) = (path for path in tmp_path.iterdir() if path.name != "compiled")
        objects = list(other.rglob("*.hsaco"))
        assert {p.relative_to(other) for p in objects} <= compiled
        assert all(p.stat().st_mtime < before for p in objects)  # copied, and not made anew
        groups = [p.read_text() for p in other.rglob("__grp__*")]
        assert groups
        assert all(str(other) in text for text in groups)
        assert not any(str(own) in text for text in groups)
    assert {probe.evidence for probe in (*first, *second)} == {Evidence.COMPILE_ONLY}


async def test_a_class_that_a_card_does_not_serve_ends_the_unit_by_name(worker):
    async def blobs():
        return DENSE.blobs

    for numeric_class in ("fp64", "x" * 64):
        unit = UnitRun({"x": X})
        await worker.run_many(
            "ann", DENSE.program_id, blobs, [unit], LIMITS, lambda _: None, 0, numeric_class
        )
        assert unit.outcome.code == "no_executor"
