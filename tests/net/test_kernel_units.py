"""A kernel's units through a worker's process: loaded, held against the rules, run, refused.

The worker is real and locked in; the card is not there (`kernel_worker`).
"""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import user_kernels

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.kernel_manifest import program_of
from shoal.compute.supervisor import UnitLimits, open_worker
from shoal.compute.tensor import from_blob, to_blob
from shoal.crypto.content import blob_id_of

WORKER = str(Path(__file__).with_name("kernel_worker.py"))
LIMITS = UnitLimits(time_s=20.0, memory_bytes=1 << 28, output_bytes=1 << 20)
X = np.random.default_rng(3).normal(size=(4, 9)).astype(np.float32)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    return user_kernels.lowered(tmp_path_factory.mktemp("kernels"))


@pytest.fixture(scope="module")
def softmax(lowered):
    return lowered[0]["softmax"]


@pytest.fixture
async def worker():
    async with open_worker(threads=1, entry=(WORKER,)) as opened:
        yield opened


async def run(worker, program, x=X):
    async def blobs():
        return program.blobs

    return await worker.run("ann", program.program_id, blobs, {"x": to_blob(x)}, LIMITS)


async def test_a_kernel_runs_over_a_units_tensors(worker, softmax):
    done = await run(worker, softmax)
    power = np.exp(X)
    given = from_blob(done.outputs["y"])
    np.testing.assert_allclose(given, power / power.sum(1, keepdims=True), rtol=1e-5)
    assert done.runtime == "triton on no card"
    assert done.stages == ()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("assembly", "inline_assembly"),
        ("library", "external_call"),
        ("output", "kernel_prints"),
        ("garbage", "not_ttir"),
        ("huge", "kernel_too_large"),
    ],
)
async def test_a_hostile_kernel_ends_its_unit_by_name_and_the_next_one_runs(
    worker, lowered, softmax, name, code
):
    texts = lowered[1] | {"garbage": b"garbage", "huge": b"module {}" + b" " * (5 << 20)}
    manifest = msgspec.structs.replace(softmax.manifest, kernel=blob_id_of(texts[name]))
    with pytest.raises(ProgramError) as refused:
        await run(worker, program_of(manifest, texts[name]))
    assert refused.value.code == code
    assert (await run(worker, softmax)).outputs.keys() == {"y"}


async def test_inputs_are_checked_again_in_the_worker(worker, softmax):
    with pytest.raises(ProgramError) as refused:
        await run(worker, softmax, X[0])
    assert refused.value.code == "wrong_shape"


async def test_a_grid_over_the_cards_limits_ends_the_unit(worker, softmax):
    grid = (*softmax.manifest.grid, *softmax.manifest.grid)
    manifest = msgspec.structs.replace(softmax.manifest, grid=grid)
    text = softmax.blobs[softmax.manifest.kernel]
    with pytest.raises(ProgramError) as refused:
        await run(worker, program_of(manifest, text), np.zeros((65536, 0), np.float32))
    assert refused.value.code == "grid_too_large"


async def test_a_worker_without_a_card_says_that_nothing_runs_kernels_there(softmax):
    async with open_worker(threads=1) as worker:
        with pytest.raises(ComputeError, match="'kernel'") as refused:
            await run(worker, softmax)
    assert refused.value.code == "no_executor"
