"""Traces, the tensors of a node, and stages of a run, out of a real locked-in worker."""

import numpy as np
import pytest
import trio
import trio.testing
from test_worker import ANN, BOB, DOUBLE, program_of

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.exact import stages as stages_module
from shoal.compute.exact.judging_operators import Operators, run_operator
from shoal.compute.exact.leaves import decode_operator_leaf, decode_stage_leaf, leaf_bytes
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.stages import stage_leaves
from shoal.compute.exact.tracing import Traceable, trace
from shoal.compute.frames import UnitLimits
from shoal.compute.loading import load
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import from_blob, to_blob
from shoal.compute.unit_runs import Execution, UnitRun
from shoal.crypto.content import blob_id_of

LIMIT_S = 90.0
LIMITS = UnitLimits(time_s=20.0, memory_bytes=1 << 30, output_bytes=64 << 20)
LAYERS = 40
"""Of three nodes each: three stages."""


def layered(wrong_at=None):
    """A chain of layers over one weight; one of them may take the logarithm of -1."""
    lines, value = [], "x"
    for n in range(LAYERS):
        lines.append(f"p{n} = MatMul({value}, w) t{n} = Tanh(p{n})")
        lines.append(f"s{n} = Log(m)" if n == wrong_at else f"s{n} = Add(t{n}, {value})")
        value = f"s{n}"
    body = " ".join(lines)
    weights = ", ".join(["0.5"] * 16)
    return program_of(
        f"g (float[n, 4] x, float[1] m) => (float[n, 4] y) <float[4, 4] w = {{{weights}}}> "
        f"{{ {body} y = Div({value}, m) }}",
        "x20",
    )


GOOD, BAD, BAD_SOON = layered(), layered(wrong_at=20), layered(wrong_at=5)
INPUTS = {
    "x": to_blob(np.arange(8, dtype=np.float32).reshape(2, 4) / 8),
    "m": to_blob(np.full(1, -1, np.float32)),
}


def by_reference(program, span=None):
    """What the reference gives: leaves of operators, and of stages where all are asked for."""
    traceable = Traceable(load(program.program_id, program.blobs))
    arrays = {name: from_blob(blob) for name, blob in INPUTS.items()}
    leaves = trace(traceable, arrays, ReferenceKernels(), span)
    stages = stages_module.stages_of(traceable.graph)
    found = stage_leaves(stages, leaves, traceable.graph) if span is None else ()
    return tuple(map(leaf_bytes, leaves)), tuple(map(leaf_bytes, found)), stages


def blobs_of(program):
    async def fetch_blobs():
        return program.blobs

    return fetch_blobs


@pytest.fixture
async def worker():
    async with open_worker(threads=2) as opened:
        with trio.fail_after(LIMIT_S):
            await opened.enable_exact()
            yield opened


async def traced(worker, program, limits=LIMITS, stage=None, requester=ANN):
    return await worker.trace(
        requester, program.program_id, blobs_of(program), INPUTS, limits, stage
    )


async def test_a_worker_gives_the_leaves_that_the_reference_gives(worker):
    for program in (GOOD, BAD):
        leaves, stages, _ = by_reference(program)
        found = await traced(worker, program)
        assert (found.leaves, found.stages) == (leaves, stages)
    last = decode_operator_leaf(found.leaves[-1])
    assert (last.operator, last.error) == ("Log", "nan")
    assert len(found.stages) == 1


async def test_the_leaves_of_one_stage_are_those_of_the_whole(worker):
    leaves, _, stages = by_reference(GOOD)
    assert len(stages.ends) == 3
    for stage in range(3):
        found = await traced(worker, GOOD, stage=stage)
        span = stages.span(stage)
        assert found.leaves == leaves[span.start : span.stop]
        assert found.stages == ()


async def test_a_run_that_commits_its_stages_gives_the_same_outputs_and_the_leaves(worker):
    _, stages, _ = by_reference(GOOD)
    plain, with_stages = UnitRun(INPUTS), UnitRun(INPUTS, trace=True)
    again = UnitRun(INPUTS, trace=True)
    units = [plain, with_stages, again]
    await worker.run_many(ANN, GOOD.program_id, blobs_of(GOOD), units, LIMITS, lambda _: None)
    for unit in units:
        assert isinstance(unit.outcome, Execution), unit.outcome
    assert plain.outcome.stages == ()
    assert with_stages.outcome.stages == again.outcome.stages == stages
    assert with_stages.outcome.outputs == plain.outcome.outputs
    last = decode_stage_leaf(stages[-1])
    assert last.state == (blob_id_of(plain.outcome.outputs["y"]),)


async def test_a_program_of_another_class_has_no_stages_and_no_trace(worker):
    inputs = {"x": to_blob(np.ones(3, np.float32))}
    unit = UnitRun(inputs, trace=True)
    await worker.run_many(
        ANN, DOUBLE.program_id, blobs_of(DOUBLE), [unit], LIMITS, lambda _: None
    )
    assert isinstance(unit.outcome, Execution)
    assert unit.outcome.stages == ()
    with pytest.raises(ProgramError) as refused:
        await worker.trace(ANN, DOUBLE.program_id, blobs_of(DOUBLE), inputs, LIMITS)
    assert refused.value.code == "no_trace"


async def test_the_tensors_of_a_node_are_enough_to_judge_it(worker):
    leaves, _, _ = by_reference(GOOD)
    graph = GOOD.blobs[GOOD.manifest.graph]
    operators = Operators(GOOD.blobs[GOOD.program_id], graph)
    for index in (0, 60, len(leaves) - 1):
        found = await worker.tensors_of(
            ANN, GOOD.program_id, blobs_of(GOOD), INPUTS, LIMITS, index
        )
        assert found.leaf == leaves[index]
        assert all(blob_id_of(blob) == name for name, blob in found.blobs.items())
        leaf = decode_operator_leaf(found.leaf)
        ran = run_operator(operators, index, [found.blobs[name] for name in leaf.inputs])
        assert ran.outputs == leaf.outputs


async def test_a_stage_that_is_not_there_is_named(worker):
    for stage in (3, 1 << 31):
        with pytest.raises(ProgramError) as refused:
            await traced(worker, GOOD, stage=stage)
        assert refused.value.code == "no_such_stage"


async def test_an_error_before_a_stage_is_the_units_error(worker):
    with pytest.raises(ProgramError) as refused:
        await traced(worker, BAD_SOON, stage=1)
    assert (refused.value.code, refused.value.operator) == ("nan", "Log")
    with pytest.raises(ProgramError) as refused:
        await worker.tensors_of(ANN, BAD.program_id, blobs_of(BAD), INPUTS, LIMITS, 70)
    assert refused.value.operator == "Log"


async def test_a_node_that_is_not_there_is_named(worker):
    for index in (-1, 121, 1 << 40):
        with pytest.raises(ProgramError) as refused:
            await worker.tensors_of(ANN, GOOD.program_id, blobs_of(GOOD), INPUTS, LIMITS, index)
        assert refused.value.code == "no_such_node"


async def test_inputs_that_are_none_end_in_a_named_error(worker):
    wrong = {
        "missing_input": {"x": INPUTS["x"]},
        "bad_tensor": {**INPUTS, "m": b"no tensor"},
        "wrong_dtype": {**INPUTS, "m": to_blob(np.ones(1, np.int64))},
        "nan": {**INPUTS, "m": to_blob(np.full(1, np.nan, np.float32))},
    }
    for code, inputs in wrong.items():
        for call in (worker.trace, worker.tensors_of):
            more = (0,) if call == worker.tensors_of else ()
            with pytest.raises(ProgramError) as refused:
                await call(ANN, GOOD.program_id, blobs_of(GOOD), inputs, LIMITS, *more)
            assert refused.value.code == code


async def test_leaves_over_the_limit_of_output_are_refused_and_the_next_trace_is_given(worker):
    small = UnitLimits(time_s=20.0, memory_bytes=1 << 30, output_bytes=1 << 10)
    with pytest.raises(ComputeError) as refused:
        await traced(worker, GOOD, small)
    assert refused.value.code == "output_limit"
    assert (await traced(worker, GOOD)).leaves


async def test_a_trace_is_cancelled_with_its_process_and_another_requester_has_one(worker):
    await traced(worker, GOOD, requester=BOB)
    pid = worker.pids[BOB]
    with trio.move_on_after(0):
        await traced(worker, GOOD, requester=BOB)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traced, worker, GOOD, LIMITS, None, BOB)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    assert worker.pids.get(BOB) != pid
    assert (await traced(worker, GOOD, requester=ANN)).leaves


NONSENSE = """
from shoal.compute import frames
from shoal.compute.worker import Worker, main

class Lying(Worker):
    def trace(self, request, attachments):
        leaves = {leaves}
        return frames.Traced(), leaves

main(Lying)
"""


@pytest.mark.parametrize(
    "leaves",
    [
        "[b'not msgpack', frames.pack_leaves([])]",
        "[frames.pack_leaves([b'x'] * 50_001), frames.pack_leaves([])]",
        "[frames.pack_leaves([b'x' * 65_537]), frames.pack_leaves([])]",
        "[frames.pack_leaves([b'']), frames.pack_leaves([])]",
        "[frames.pack_leaves([])]",
    ],
)
async def test_a_worker_that_gives_no_leaves_is_ended(leaves):
    async with open_worker(
        threads=1, entry=("-c", NONSENSE.replace("{leaves}", leaves))
    ) as lying:
        with trio.fail_after(LIMIT_S):
            await lying.enable_exact()
            with pytest.raises(ComputeError) as refused:
                await traced(lying, GOOD)
    assert refused.value.code == "worker_nonsense"
