"""What a memory limit counts: a runtime's 64 MiB are added, a program's own need is not."""

import numpy as np
import pytest
from onnx import parser

from shoal.compute.convert import convert
from shoal.compute.errors import ComputeError
from shoal.compute.frames import UnitLimits
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import from_blob, to_blob

LIMITS = UnitLimits(time_s=20.0, memory_bytes=1_000_000, output_bytes=1_000_000)
SUM_OF_ONES = convert(
    parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (int64[1] size) => (float[1] y) {
            ones = ConstantOfShape<value = float[1] {1}>(size)
            y = ReduceSum(ones)
        }"""
    ).SerializeToString()
)


async def sum_of_ones(worker, size):
    async def fetch_blobs():
        return SUM_OF_ONES.blobs

    inputs = {"size": to_blob(np.array([size]))}
    execution = await worker.run("ann", SUM_OF_ONES.program_id, fetch_blobs, inputs, LIMITS)
    return float(from_blob(execution.outputs["y"]).item())


async def test_a_megabyte_is_enough_for_what_fits_beside_the_runtime_and_not_for_more():
    async with open_worker(threads=1) as worker:
        assert await sum_of_ones(worker, 1 << 20) == 1 << 20  # 4 MiB
        with pytest.raises(ComputeError) as ended:
            await sum_of_ones(worker, 1 << 26)  # 256 MiB
        assert ended.value.code == "memory_limit"
        assert "1 MB" in ended.value.message


def held_memory(value):
    """A program that keeps 120 MB once prepared, though it has no weight, and needs as much."""
    return convert(
        parser.parse_model(
            f"""<ir_version: 8, opset_import: ["" : 18]>
            g (float[1] x) => (float[1] y) {{
                size = Constant<value = int64[1] {{30000000}}>()
                held = ConstantOfShape<value = float[1] {{{value}}}>(size)
                sum = Add(held, x)
                y = ReduceMax(sum)
            }}"""
        ).SerializeToString()
    )


async def test_programs_are_let_go_where_they_leave_a_unit_no_room_under_the_hard_limit():
    limits = UnitLimits(time_s=20.0, memory_bytes=1 << 28, output_bytes=1_000_000)
    async with open_worker(threads=1, cache_bytes=1 << 26, memory_bytes=1 << 28) as worker:
        await worker.probe()
        pid = worker.pids[""]
        for value in range(6):  # together more than the worker may ever map
            program = held_memory(value)

            async def fetch_blobs(program=program):
                return program.blobs

            inputs = {"x": to_blob(np.array([1], np.float32))}
            ran = await worker.run("ann", program.program_id, fetch_blobs, inputs, limits)
            assert from_blob(ran.outputs["y"]).item() == value + 1
            assert worker.holds("ann", program.program_id)
        first = held_memory(0)
        assert not worker.holds("ann", first.program_id)

        async def fetch_first():
            return first.blobs

        await worker.run("ann", first.program_id, fetch_first, inputs, limits)
        assert worker.pids["ann"] == pid


async def test_inputs_that_a_worker_may_not_map_end_the_unit_with_that_error():
    limits = UnitLimits(time_s=20.0, memory_bytes=1 << 26, output_bytes=1_000_000)
    program = convert(
        parser.parse_model(
            '<ir_version: 8, opset_import: ["" : 18]>'
            "g (float[n] x) => (float y) { y = ReduceMax<keepdims = 0>(x) }"
        ).SerializeToString()
    )

    async def fetch_blobs():
        return program.blobs

    async with open_worker(threads=1, cache_bytes=1 << 20, memory_bytes=1 << 20) as worker:
        huge = {"x": to_blob(np.zeros(160_000_000, np.float32))}
        with pytest.raises(ComputeError) as ended:
            await worker.run("ann", program.program_id, fetch_blobs, huge, limits)
        assert ended.value.code == "memory_limit"
        assert await sum_of_ones(worker, 10) == 10
