"""A real card's faults: the unit ends by name, the worker lives or is ended, the next one runs.

`tests/net/test_card_faults.py` stages the same, and what one cannot do to a card, in words.
"""

from pathlib import Path

import numpy as np
import pytest
import trio
from onnx import parser
from rehearsal import REHEARSED

from shoal.compute import frames
from shoal.compute.convert import convert
from shoal.compute.devices import detect
from shoal.compute.devices.cards import card_of, may_be_used, only
from shoal.compute.devices.inventory import Device
from shoal.compute.frames import UnitLimits
from shoal.compute.sandbox import features, strangers_welcome
from shoal.compute.supervisor import open_workers
from shoal.compute.tensor import to_blob
from shoal.compute.unit_runs import Execution, UnitRun
from shoal.compute.worker_process import CARD_START_LIMIT_S, Place

FINE, HANGS, ASTRAY = 1.0, 2e3, 3e3  # as in failing_worker.py, which imports Triton
ENTRY = (str(Path(__file__).with_name("failing_worker.py")),)
LIMITS = UnitLimits(time_s=60.0, memory_bytes=1 << 30, output_bytes=1 << 30)
LIMIT_S = 120.0


STAND_IN = Device("gpu0", "nvidia", "a rehearsal", 1 << 36, 1 << 36, target="sm_90", uuid="0")
DEVICES = [STAND_IN] if REHEARSED else detect().devices
CARDS = [device for device in DEVICES if may_be_used(device)]
INTERPRETED = {"TRITON_INTERPRET": "1", "SHOAL_REHEARSE": "1"} if REHEARSED else {}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not CARDS, reason="detection finds no card that may be used"),
]

SUM = convert(
    parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[n] x) => (float[n] y) { y = Add(x, x) }"
    ).SerializeToString(),
    "x20",
)


class OnCard:
    """A worker on the first card, and what was said of it."""

    def __init__(self, workers, folder):
        (self.device, *_) = CARDS
        self.lost = []
        self.variables = only(self.device, DEVICES) | INTERPRETED
        card = card_of(self.device)
        start = frames.Start(
            threads=2,
            cache_bytes=1 << 30,
            memory_bytes=card.memory_bytes // 2,
            exact=False,
            card=card,
        )
        place = Place(self.variables, folder, CARD_START_LIMIT_S, self.lost.append)
        self.worker = workers.add(start, place, ENTRY)

    async def run(self, *firsts, count=4, limits=LIMITS):
        """What came of units, each by its first number: a code, or "" of one that ran."""
        inputs = [np.full(count, first, np.float32) for first in firsts]
        units = [UnitRun({"x": to_blob(array)}) for array in inputs]

        async def blobs():
            return SUM.blobs

        with trio.fail_after(LIMIT_S):
            await self.worker.run_many(
                "ann", SUM.program_id, blobs, units, limits, lambda _: None, 0, "exact"
            )
        return [
            "" if isinstance(unit.outcome, Execution) else unit.outcome.code for unit in units
        ]


@pytest.fixture
async def card(tmp_path):
    async with open_workers() as workers:
        yield OnCard(workers, tmp_path)


async def test_a_card_is_shown_to_be_executed_within_the_looser_profile(card):
    probes = await card.worker.probe()
    shown = {(p.numeric_class.value, p.evidence.value) for p in probes}
    assert ("exact", "executed") in shown, card.worker.missing
    assert card.worker.sandbox.startswith("profile gpu (looser): ")
    assert card.worker.sandboxed is strangers_welcome(features())
    assert await card.run(FINE, FINE) == ["", ""]


async def test_out_of_memory_is_named_and_the_next_unit_runs(card):
    small = UnitLimits(time_s=60.0, memory_bytes=1 << 26, output_bytes=1 << 30)
    assert await card.run(FINE, count=1 << 26, limits=small) == ["memory_limit"]
    assert await card.run(FINE) == [""]
    assert card.lost == []


async def test_a_hung_kernel_ends_with_its_worker_and_the_next_unit_runs(card):
    await card.worker.probe()
    # A process that is new to the card compiles the sum first.
    short = UnitLimits(
        time_s=5.0 if REHEARSED else 20.0, memory_bytes=1 << 30, output_bytes=1 << 30
    )
    assert await card.run(FINE, HANGS, FINE, limits=short) == ["", "time_limit", ""]


async def test_a_kernel_that_goes_astray_ends_its_unit_and_the_next_one_runs(card):
    assert await card.run(FINE, ASTRAY, FINE) == ["", "device_failed", ""]
    assert card.lost == []


async def test_a_card_that_no_process_sees_any_more_is_lost_by_name(card):
    assert await card.run(FINE, ASTRAY) == ["", "device_failed"]
    await card.worker.probe()  # so that no process is being started meanwhile
    hidden = "ROCR_VISIBLE_DEVICES" if card.device.kind == "amd" else "CUDA_VISIBLE_DEVICES"
    card.variables[hidden] = "-1"
    await card.worker.close()
    assert await card.run(FINE) == ["worker_start"]
    assert await card.run(FINE) == ["device_lost"]
    assert len(card.lost) == 1
