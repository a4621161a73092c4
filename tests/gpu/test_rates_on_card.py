"""A real card's rates: measured in its worker, and shown to a verifier that has a CPU.

Not a speed test: what a card has to reach is `tests/bench`'s. Here its figures are there,
are no more than the card's maker says, and are what a challenge of them asks for.
"""

import secrets

import pytest
import trio
from test_faults_on_card import CARDS, LIMIT_S, OnCard

from shoal.compute import frames
from shoal.compute.capability import amounts_for, measure_device
from shoal.compute.challenge_work import ChallengeWork
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.supervisor import open_workers
from shoal.protocol.challenge import Row
from shoal.protocol.challenge_terms import SLACK, Work, draw_places, seeds_of, work_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not CARDS, reason="there is no card that torch reaches: `make test-gpu`"
    ),
]

MOVES = {"H200": 4.8e12, "H100 PCIe": 2.0e12, "H100 NVL": 3.9e12, "H100": 3.35e12}
"""Bytes per second of memory by the data sheet, the longer names first."""

MULTIPLIES = {"fp32": 67e12 / 2, "low": 990e12 / 2}
"""Multiply-adds per second at the most, of H100 SXM and H200: dense, TF32 off."""


def known(table, name):
    return next((figure for key, figure in table.items() if key in name), None)


@pytest.fixture
async def card(tmp_path):
    async with open_workers() as workers:
        yield OnCard(workers, tmp_path)


async def test_a_card_s_rates_are_there_and_within_what_its_maker_says(card, card_name):
    with trio.fail_after(LIMIT_S):
        probes = await card.worker.probe()
        classes = {probe.numeric_class.value for probe in probes}
        amounts = amounts_for(card.device)
        found = await measure_device(card.worker, classes, amounts)
    assert found.failed == ()
    rates = {rate.numeric_class: rate.rate for rate in found.rates}
    print(card_name, rates, f"memory {found.memory_rate:.3g} B/s")
    assert rates.keys() == {"exact", "fp32", "low"}
    assert min(rates.values()) > 1e9
    assert rates["low"] > rates["fp32"]
    assert found.memory_rate > 1e10
    moves = known(MOVES, card_name)
    if moves is not None:
        assert found.memory_rate < moves
        for numeric_class, most in MULTIPLIES.items():
            assert rates[numeric_class] < most
    assert card.worker.processes_started == 1
    assert await card.run(1.0) == [""]  # what was measured left room for units


async def test_a_challenge_is_passed_by_a_new_process_and_checked_by_a_cpu(card):
    """As soon as it is ready: what is compiled is compiled by then."""
    rate = 2e11  # a claim that any card makes
    work = work_for(rate)
    with trio.fail_after(LIMIT_S):
        await card.worker.probe()
        root = bytes(range(32))
        limit_s = SLACK * work.claimed_s(rate)
        request = frames.Prove(root, work.rows, work.size, work.steps, "x20", limit_s)
        proved = await card.worker.measure(request, frames.Proved, limit_s)
    assert proved.elapsed_s < limit_s
    seeds = seeds_of(root, proved.roots)
    places = draw_places(work, secrets.randbelow)
    rows = [Row(seeds[step], row) for step, row in places]
    kernels = CpuKernels()
    kernels.warm_up()
    leaves = ChallengeWork(kernels).row_leaves(root, work.size, rows, "x20")
    for (step, row), leaf in zip(places, leaves, strict=True):
        assert proved.leaves[step][32 * row : 32 * row + 32] == leaf


@pytest.mark.parametrize("precision", ["x20", "x16", "x8"])
async def test_a_card_s_whole_chain_is_the_cpu_s(card, precision):
    work, root = Work(rows=256, size=384, steps=3), bytes(range(32))
    with trio.fail_after(LIMIT_S):
        request = frames.Prove(root, work.rows, work.size, work.steps, precision, 60.0)
        proved = await card.worker.measure(request, frames.Proved, 60.0)
    kernels = CpuKernels()
    kernels.warm_up()
    steps = ChallengeWork(kernels).chain(root, work, precision)
    assert proved.roots == tuple(step.root for step in steps)
