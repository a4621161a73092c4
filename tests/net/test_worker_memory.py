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
