"""A kernel's units through a worker's process: loaded, held against the rules, run, refused.

The worker is real and locked in, as a CPU's and as a card's, and compiles for real; the
card itself is not there (`kernel_worker`).
"""

from pathlib import Path

import msgspec
import numpy as np
import pytest
import user_kernels

from shoal.compute import frames
from shoal.compute.devices.cards import Card
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.base import Evidence, NumericClass
from shoal.compute.frames import UnitLimits
from shoal.compute.kernel_manifest import Argument, program_of
from shoal.compute.supervisor import open_worker, open_workers
from shoal.compute.tensor import from_blob, to_blob
from shoal.compute.worker_process import Place
from shoal.crypto.content import blob_id_of

WORKER = str(Path(__file__).with_name("kernel_worker.py"))
LIMITS = UnitLimits(time_s=60.0, memory_bytes=1 << 30, output_bytes=1 << 20)
X = np.random.default_rng(3).normal(size=(4, 9)).astype(np.float32)
CARDS = [Card("gpu0", "cuda", "sm_90", 80 << 30), Card("gpu0", "hip", "gfx942", 64 << 30)]
START = frames.Start(threads=1, cache_bytes=1 << 28, memory_bytes=1 << 30, exact=False)


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


@pytest.fixture(params=CARDS, ids=lambda card: card.target)
async def cards_worker(request, tmp_path):
    """The worker of a card, in the profile for cards, which compiles for it."""
    async with open_workers() as workers:
        start = msgspec.structs.replace(START, card=request.param)
        yield workers.add(start, Place(scratch=tmp_path), (WORKER,))


async def run(worker, program, x=X):
    async def blobs():
        return program.blobs

    return await worker.run("ann", program.program_id, blobs, {"x": to_blob(x)}, LIMITS)


def with_text(program, text, **changes):
    manifest = msgspec.structs.replace(program.manifest, kernel=blob_id_of(text), **changes)
    return program_of(manifest, text)


def assert_softmax(done):
    power = np.exp(X)
    given = from_blob(done.outputs["y"])
    np.testing.assert_allclose(given, power / power.sum(1, keepdims=True), rtol=1e-5)


async def test_a_kernel_runs_over_a_units_tensors(worker, softmax):
    done = await run(worker, softmax)
    assert_softmax(done)
    assert (done.runtime, done.stages) == ("triton on no card", ())


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
    with pytest.raises(ProgramError) as refused:
        await run(worker, with_text(softmax, texts[name]))
    assert refused.value.code == code
    assert_softmax(await run(worker, softmax))


async def test_a_cards_worker_compiles_locked_in_and_refuses_by_name(cards_worker, softmax):
    probes = await cards_worker.probe()
    assert (NumericClass.KERNEL, Evidence.COMPILE_ONLY) in {
        (probe.numeric_class, probe.evidence) for probe in probes
    }
    assert_softmax(await run(cards_worker, softmax))
    process = cards_worker.pids["ann"]
    text = softmax.blobs[softmax.manifest.kernel]
    wide = (*softmax.manifest.arguments[:2], Argument("n", "i64", "n"))
    for program, code in [
        (with_text(softmax, text.replace(b"tt.splat %", b"tt.splat %no", 1)), "not_ttir"),
        (with_text(softmax, text.replace(b"    %1 =", b"     %1 =", 1)), "not_ttir"),
        (with_text(softmax, text, arguments=wide), "wrong_signature"),
        (with_text(softmax, text, triton="3.6.0"), "triton_version"),
    ]:
        with pytest.raises((ProgramError, ComputeError)) as refused:
            await run(cards_worker, program)
        assert refused.value.code == code
    assert_softmax(await run(cards_worker, softmax))
    assert cards_worker.pids["ann"] == process


async def test_inputs_are_checked_again_in_the_worker(worker, softmax):
    with pytest.raises(ProgramError) as refused:
        await run(worker, softmax, X[0])
    assert refused.value.code == "wrong_shape"


async def test_a_grid_over_the_cards_limits_ends_the_unit(worker, softmax):
    grid = (*softmax.manifest.grid, *softmax.manifest.grid)
    wide = with_text(softmax, softmax.blobs[softmax.manifest.kernel], grid=grid)
    with pytest.raises(ProgramError) as refused:
        await run(worker, wide, np.zeros((65536, 0), np.float32))
    assert refused.value.code == "grid_too_large"


async def test_a_worker_without_a_card_says_that_nothing_runs_kernels_there(softmax):
    async with open_worker(threads=1) as worker:
        with pytest.raises(ComputeError, match="'kernel'") as refused:
            await run(worker, softmax)
    assert refused.value.code == "no_executor"
