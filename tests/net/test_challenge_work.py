"""A challenge's arithmetic: the reference's bits, by real kernels and in a real worker."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from shoal.compute import frames, measuring
from shoal.compute.capability import measure_device, measure_disk
from shoal.compute.challenge_work import ChallengeWork
from shoal.compute.errors import ComputeError
from shoal.compute.exact import philox
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.reference import products as reference
from shoal.compute.exact.spec import X20
from shoal.compute.executors.base import NumericClass
from shoal.compute.supervisor import open_worker
from shoal.crypto.merkle import leaf_of, root_of
from shoal.protocol.challenge import Row
from shoal.protocol.challenge_terms import Work, first_seed, next_seed, seeds_of

ROOT = bytes(range(32))
SMALL = Work(rows=24, size=64, steps=3)


@pytest.fixture(scope="module")
def kernels():
    kernels = CpuKernels(2)
    kernels.warm_up()
    return kernels


def drawn(seed, rows, size):
    """The numbers as `docs/PROTOCOL.md` defines them, by the reference generator."""
    key, stream = (int.from_bytes(seed[at : at + 8], "little") for at in (0, 8))
    words = philox.words(key, stream, rows * size).astype(np.int64)
    return (((words >> 11) - (1 << 20)) / (1 << 20)).astype(np.float32).reshape(rows, size)


def by_reference(root, work):
    """The chain, line by line."""
    right, seed, steps = drawn(root, work.size, work.size), first_seed(root), []
    for _ in range(work.steps):
        left = drawn(seed, work.rows, work.size)
        product = reference.product(left, right, X20, "column")
        steps.append([leaf_of(row.astype("<f4").tobytes()) for row in product])
        seed = next_seed(seed, root_of(steps[-1]))
    return steps


@pytest.mark.parametrize("work", [SMALL, Work(rows=5, size=132, steps=2)])
def test_the_chain_has_the_references_bits_whatever_the_threads(kernels, work):
    wanted = by_reference(ROOT, work)
    for each in (kernels, CpuKernels(1)):
        steps = ChallengeWork(each).chain(ROOT, work, "x20")
        assert [step.leaves for step in steps] == wanted
        assert [step.root for step in steps] == [root_of(leaves) for leaves in wanted]


def test_single_rows_are_those_of_the_whole_product(kernels):
    work = ChallengeWork(kernels)
    steps = work.chain(ROOT, SMALL, "x20")
    seeds = seeds_of(ROOT, [step.root for step in steps])
    places = [(step, row) for step in range(3) for row in (23, 0, 7)]
    rows = [Row(seeds[step], row) for step, row in places]
    leaves = work.row_leaves(ROOT, SMALL.size, rows, "x20")
    assert leaves == [steps[step].leaves[row] for step, row in places]


def test_any_part_of_a_stream_is_drawn_alike(kernels):
    whole, part = np.empty(4096, np.float32), np.empty(64, np.float32)
    key, stream = (1 << 64) - 3, (7 << 40) + 1
    kernels.draw(key, stream, 0, whole)
    kernels.draw(key, stream, 100, part)
    assert (whole[400:464] == part).all()
    assert whole.min() >= -1.0
    assert whole.max() < 1.0
    assert len(set((whole * 2**20).astype(int) & 1)) == 2  # full width: no shorter product


class Compiling:
    """Kernels that are compiled when they are first used, and how often they ran."""

    def __init__(self, kernels):
        self._kernels, self.compiled, self.products = kernels, False, []
        self.threads, self.empty, self.draw = kernels.threads, kernels.empty, kernels.draw
        self.prepare = kernels.prepare

    def product(self, a, b, precision, axis):
        if not self.compiled:
            time.sleep(0.5)
        self.compiled = True
        self.products.append(a.shape)
        return self._kernels.product(a, b, precision, axis)


def test_what_is_compiled_for_a_chain_is_in_no_claim_and_ends_no_challenge(kernels):
    compiling = Compiling(kernels)
    executors = {NumericClass.EXACT: SimpleNamespace(kernels=compiling)}
    request = frames.Prove(ROOT, SMALL.rows, SMALL.size, SMALL.steps, "x20", 0.4)
    done = measuring.answer(request, executors)
    assert done.elapsed_s < 0.4
    assert compiling.products[1:] == [(24, 64)] * 3
    wanted = by_reference(ROOT, SMALL)  # the warm-up left nothing behind
    assert done.leaves == tuple(b"".join(leaves) for leaves in wanted)


def test_a_chain_can_be_given_up_before_any_step(kernels):
    def check():
        raise ComputeError("enough", code="time_limit")

    with pytest.raises(ComputeError, match="enough"):
        ChallengeWork(kernels).chain(ROOT, SMALL, "x20", check)


async def prove(worker, time_limit_s=30.0):
    request = frames.Prove(ROOT, SMALL.rows, SMALL.size, SMALL.steps, "x20", time_limit_s)
    return await worker.measure(request, frames.Proved, 30.0)


async def test_a_worker_measures_proves_and_recomputes(tmp_path):
    async with open_worker(threads=2) as worker:
        with pytest.raises(ComputeError) as caught:  # before its kernels are there
            await prove(worker)
        assert caught.value.code == "no_executor"
        await worker.enable_exact()
        assert not worker.busy
        spare = worker.pids

        done = await prove(worker)
        wanted = by_reference(ROOT, SMALL)
        assert done.leaves == tuple(b"".join(leaves) for leaves in wanted)
        seeds = seeds_of(ROOT, done.roots)
        request = frames.Recompute(ROOT, SMALL.size, "x20", ((seeds[1], 5), (seeds[2], 0)))
        rows = await worker.measure(request, frames.Recomputed, 30.0)
        assert rows.leaves == wanted[1][5] + wanted[2][0]

        with pytest.raises(ComputeError) as caught:
            await prove(worker, time_limit_s=0.0)
        assert caught.value.code == "time_limit"

        found = await measure_device(worker, ["fp32", "exact"])
        exact, fp32 = found.rates
        assert (exact.numeric_class, exact.precision) == ("exact", "x20")
        assert (fp32.numeric_class, fp32.precision) == ("fp32", None)
        assert min(exact.rate, fp32.rate, found.memory_rate) > 1e6
        assert found.failed == ()
        assert worker.pids == spare  # nobody's data was in it: still the spare
    assert measure_disk(tmp_path) > 0
    assert not list(tmp_path.iterdir())
