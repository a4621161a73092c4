"""A challenge on a card's kernels, under Triton's interpreter: the bits of every other device.

`tests/net/test_challenge_work.py` has the reference; `tests/gpu` does the same on a card.
"""

from dataclasses import replace

import numpy as np
import pytest

from shoal.compute.challenge_work import ChallengeWork
from shoal.compute.exact import philox
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.gpu.card import Card
from shoal.compute.exact.gpu.kernels import CardKernels
from shoal.protocol.challenge import Row
from shoal.protocol.challenge_terms import RATE_SHOWN_MIN, Work, seeds_of, work_for

ROOT = bytes(range(32))
SMALL = Work(rows=5, size=36, steps=2)


@pytest.fixture(scope="module")
def card():
    return CardKernels(Card("cpu"), threads=2)


@pytest.fixture(scope="module")
def cpu():
    kernels = CpuKernels(1)
    kernels.warm_up()
    return kernels


@pytest.mark.parametrize(
    ("key", "stream", "first"), [(3, 5, 0), ((1 << 64) - 3, (7 << 61) + 1, 100)]
)
def test_a_card_draws_the_numbers_of_every_other_device(card, key, stream, first):
    out = card.empty(3, 4 * 300)
    out[...] = np.float32(9)
    card.draw(key, stream, first, out[1])
    words = philox.words(key, stream, 4 * (first + 300))[4 * first :].astype(np.int64)
    wanted = (((words >> 11) - (1 << 20)) / (1 << 20)).astype(np.float32)
    assert (np.asarray(out[1]) == wanted).all()
    assert (np.asarray(out)[[0, 2]] == 9).all()


@pytest.mark.parametrize("precision", ["x20", "x8"])
def test_a_card_s_chain_has_the_cpu_s_leaves_and_a_cpu_computes_its_rows_again(
    card, cpu, precision
):
    ChallengeWork(card).warm_up(precision)  # leaves nothing behind
    steps = ChallengeWork(card).chain(ROOT, SMALL, precision)
    assert steps == ChallengeWork(cpu).chain(ROOT, SMALL, precision)

    seeds = seeds_of(ROOT, [step.root for step in steps])
    places = [(1, 4), (0, 0), (1, 2)]
    rows = [Row(seeds[step], row) for step, row in places]
    wanted = [steps[step].leaves[row] for step, row in places]
    assert ChallengeWork(cpu).row_leaves(ROOT, SMALL.size, rows, precision) == wanted
    assert ChallengeWork(card).row_leaves(ROOT, SMALL.size, rows, precision) == wanted


def test_a_chain_of_other_numbers_has_other_leaves(card):
    work = Work(rows=5, size=36, steps=1)
    one, other = (ChallengeWork(card).chain(root, work, "x8") for root in (ROOT, bytes(32)))
    assert not {*one[0].leaves} & {*other[0].leaves}


class Recording(Card):
    """A card that runs nothing, and notes what Triton would compile for each launch."""

    def __init__(self):
        super().__init__("cpu")
        self.compiled = set()

    def launch(self, variant, grid, *arguments):
        self.compiled.add((variant.name, *map(self._told_apart, arguments)))

    @staticmethod
    def _told_apart(argument):
        """By what of an argument Triton compiles a kernel anew."""
        if isinstance(argument, int):
            return argument == 1, argument % 16 == 0, -(2**31) <= argument < 2**31
        return argument.dtype, argument.data_ptr() % 16 == 0


def compiled_by(call):
    card = Recording()
    call(ChallengeWork(CardKernels(card, threads=2)))
    return card.compiled


def test_what_a_worker_compiles_at_its_start_is_all_that_any_challenge_takes():
    compiled = compiled_by(lambda work: work.warm_up("x20"))
    assert len(compiled) >= 4
    for rate in (RATE_SHOWN_MIN, 3e9, 1e11, 1e15):
        work = replace(work_for(rate), steps=1)
        assert compiled_by(lambda on, work=work: on.chain(ROOT, work, "x20")) <= compiled
    rows = [Row(ROOT, row) for row in range(64)]
    assert compiled_by(lambda on: on.row_leaves(ROOT, 640, rows, "x20")) <= compiled
    odd = Work(rows=5, size=36, steps=1)
    assert not compiled_by(lambda on: on.chain(ROOT, odd, "x20")) <= compiled
