"""What a card's faults do: the unit ends by name or is run elsewhere, and the node goes on.

The card is made up (``faulty_card.py``): its worker is a real one, locked in by the profile
``gpu``, and fails in the words in which torch does. `tests/gpu` does the same to a card.
"""

from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import faulty_card
import models
import numpy as np
import pytest
import trio
from job_nodes import DENSE, LIMIT_S, LOOPBACK, Node, until

from shoal.compute import frames
from shoal.compute.card_memory import lent_bytes, unit_most_bytes
from shoal.compute.devices.cards import Card
from shoal.compute.devices.inventory import Device, Lack
from shoal.compute.frames import UnitLimits
from shoal.compute.sandbox import features, strangers_welcome
from shoal.compute.supervisor import open_worker, open_workers
from shoal.compute.tensor import to_blob
from shoal.compute.unit_runs import Execution, UnitRun
from shoal.compute.worker_process import Place
from shoal.crypto import identity
from shoal.crypto.content import blob_id_of
from shoal.node import config, jobs
from shoal.node.blobs import open_store
from shoal.node.cards import Cards, open_cards
from shoal.node.control import open_control
from shoal.node.network import open_network
from shoal.node.offer import Capacity
from shoal.node.provider import open_provider
from shoal.node.records import JobSpec, Policy, UnitState
from shoal.node.state import open_state
from shoal.protocol.negotiation_messages import Reason
from shoal.protocol.statements import open_receipt

CARD = Card("gpu0", "hip", "gfx942", 1 << 36)
START = frames.Start(
    threads=1, cache_bytes=1 << 28, memory_bytes=1 << 30, exact=False, card=CARD
)
ENTRY = (str(Path(__file__).with_name("faulty_card.py")),)
LIMITS = UnitLimits(time_s=10.0, memory_bytes=1 << 28, output_bytes=1 << 20)
FINE = faulty_card.FINE


def rows_of(first):
    """An input of `DENSE` that begins with a number."""
    rows = np.zeros_like(models.rows(1))
    rows[0, 0] = first
    return to_blob(rows)


class MadeUpCard:
    """A card that can be taken away, and what was said of it."""

    def __init__(self, folder):
        self._gone, self.scratch = folder / "gone", folder / "cards"
        self.scratch.mkdir()
        self.lost = []

    def take_away(self):
        self._gone.touch()

    @property
    def place(self):
        return Place(
            {"FAULTY_CARD": str(self._gone), "HIP_VISIBLE_DEVICES": "0"},
            self.scratch,
            lost=self.lost.append,
        )


@pytest.fixture
def card(tmp_path):
    return MadeUpCard(tmp_path)


@pytest.fixture
async def worker(card):
    async with open_workers() as workers:
        yield workers.add(START, card.place, ENTRY)


async def run_all(worker, *firsts, limits=LIMITS, requester="ann"):
    """What came of units, each by its first number: a code, or "" of one that ran."""
    units = [UnitRun({"x": rows_of(first)}) for first in firsts]
    ended = []

    async def blobs():
        return DENSE.blobs

    with trio.fail_after(LIMIT_S * 2):
        await worker.run_many(
            requester, DENSE.program_id, blobs, units, limits, ended.append, 0, "fp32"
        )
    assert ended == units
    return [
        "" if isinstance(unit.outcome, Execution) else unit.outcome.code for unit in units
    ], units


async def test_a_card_s_worker_is_locked_in_by_the_looser_profile_which_is_named(worker):
    (probe,) = await worker.probe()
    assert probe.numeric_class.value == "fp32"
    assert worker.sandbox.startswith("profile gpu (looser): ")
    assert worker.sandboxed is strangers_welcome(features())


async def test_out_of_memory_ends_the_unit_by_name_and_the_next_one_runs_there(worker):
    codes, (_, failed, _) = await run_all(worker, FINE, faulty_card.OUT_OF_MEMORY, FINE)
    assert codes == ["", "memory_limit", ""]
    assert "gpu0" in failed.outcome.message
    assert failed.outcome.hint
    assert worker.processes_started <= 2  # the one that met it, and the spare
    assert worker.lost is None


async def test_a_kernel_that_hangs_ends_with_its_worker_and_the_next_unit_runs(worker):
    limits = UnitLimits(time_s=0.5, memory_bytes=1 << 28, output_bytes=1 << 20)
    await worker.probe()
    codes, _ = await run_all(worker, FINE, faulty_card.HANGS, FINE, limits=limits)
    assert codes == ["", "time_limit", ""]
    assert worker.lost is None


async def test_a_broken_context_ends_the_unit_and_its_process_and_the_next_unit_runs(worker):
    codes, (_, failed, *_) = await run_all(worker, FINE, faulty_card.BROKEN, FINE, FINE)
    assert codes == ["", "device_failed", "", ""]
    assert "illegal memory access" in failed.outcome.message
    assert worker.lost is None


async def test_a_fault_that_an_executor_takes_for_the_program_s_is_the_card_s(worker):
    codes, (failed, _) = await run_all(worker, faulty_card.IN_OTHER_WORDS, FINE)
    assert codes == ["device_failed", ""]
    assert (failed.outcome.node, failed.outcome.operator) == ("n", "Add")


async def test_a_worker_that_dies_ends_its_unit_and_the_next_one_runs(worker):
    codes, _ = await run_all(worker, FINE, faulty_card.DIES, FINE)
    assert codes == ["", "worker_died", ""]


async def test_a_fault_that_looks_like_a_lost_card_costs_one_unit_where_the_card_is_there(
    worker, card
):
    codes, _ = await run_all(worker, faulty_card.GONE)
    assert codes == ["device_lost"]
    codes, _ = await run_all(worker, FINE)
    assert codes == [""]
    assert card.lost == []


async def test_a_card_that_is_gone_is_told_once_and_every_later_unit_ends_by_name(worker, card):
    assert await run_all(worker, FINE)
    card.take_away()
    codes, _ = await run_all(worker, faulty_card.GONE, FINE)
    assert codes[0] == "device_lost"
    with trio.fail_after(LIMIT_S):
        while not card.lost:  # noqa: ASYNC110  # it is looked for in a task of the worker's
            await trio.sleep(0.01)
    codes, (unit,) = await run_all(worker, FINE)
    assert codes == ["device_lost"]
    assert "does not start any more" in unit.outcome.message
    assert len(card.lost) == 1
    await trio.testing.wait_all_tasks_blocked()


async def test_a_card_s_process_leaves_nothing_behind(card):
    async with open_workers() as workers:
        worker = workers.add(START, card.place, ENTRY)
        await run_all(worker, FINE)
        assert list(card.scratch.iterdir())
    assert list(card.scratch.iterdir()) == []


# --- what a daemon makes of its cards ----------------------------------------------------


class MadeUpWorkers:
    """Whose workers are of made-up cards."""

    def __init__(self, workers, card):
        self._workers, self._card, self.starts = workers, card, []

    def add(self, start, place):
        self.starts.append((start, place))
        variables = {**place.variables, **self._card.place.variables}
        return self._workers.add(start, replace(place, variables=variables), ENTRY)


def device(name, *missing):
    return Device(
        id=name,
        kind="amd",
        name="AMD Instinct MI300X",
        memory_bytes=1 << 36,
        memory_free_bytes=1 << 36,
        target="gfx942",
        uuid=f"GPU-{name}",
        missing=missing,
    )


async def test_a_daemon_offers_the_cards_that_it_may_use_until_they_are_gone(card, tmp_path):
    capacity = Capacity(
        devices=(device("gpu0"), device("gpu1", Lack("hidden", "a variable hides it")))
    )
    settings = config.load({"home": str(tmp_path / "home")}, {})
    told = []

    def lost(name, error):
        capacity.lose(name, error)
        told.append(name)

    async with open_workers() as workers:
        made_up = MadeUpWorkers(workers, card)
        cards = Cards(settings, capacity, made_up, card.scratch)
        await cards.look(lost)
        ((start, place),) = made_up.starts  # none for the card that is hidden
        assert (start.card.id, start.card.target) == ("gpu0", "gfx942")
        assert start.memory_bytes == min(unit_most_bytes(1 << 36), settings.memory_bytes)
        assert place.units_at_once == settings.units_per_card == 2
        assert place.lent_bytes == lent_bytes(1 << 36)
        assert capacity.units_at_once("gpu0") == 2
        assert place.variables["ROCR_VISIBLE_DEVICES"] == "GPU-gpu0"
        assert capacity.units_run_on() == ("cpu", "gpu0")
        assert capacity.executors("gpu0") == {"fp32": "onnxruntime"}  # by which it is made up
        assert capacity.canaries["gpu0"].sandbox.startswith("profile gpu (looser): ")

        card.take_away()
        codes, _ = await run_all(cards.workers["gpu0"], faulty_card.GONE)
        assert codes == ["device_lost"]
        with trio.fail_after(LIMIT_S):
            while not told:  # noqa: ASYNC110  # it is looked for in a task of the worker's
                await trio.sleep(0.01)
    assert told == ["gpu0"]
    assert capacity.units_run_on() == ("cpu",)
    (lack,) = capacity.canaries["gpu0"].lacks
    assert lack.code == "device_lost"
    assert "restart the daemon" in lack.hint


async def test_a_card_that_is_gone_from_the_start_is_listed_with_the_reason(card, tmp_path):
    capacity = Capacity(devices=(device("gpu0"),))
    settings = config.load({"home": str(tmp_path / "home")}, {})
    card.take_away()
    async with open_workers() as workers:
        cards = Cards(settings, capacity, MadeUpWorkers(workers, card), card.scratch)
        await cards.look(lambda *_: None)
        assert cards.workers == {}
    assert capacity.units_run_on() == ("cpu",)
    assert [lack.code for lack in capacity.canaries["gpu0"].lacks] == ["gone"]


async def test_a_card_whose_worker_has_no_directory_is_listed_and_the_node_goes_on(tmp_path):
    capacity = Capacity(devices=(device("gpu0"),))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cards").write_text("in the way")
    settings = config.load({"home": str(tmp_path / "home")}, {})
    async with open_cards(settings, capacity) as cards:
        await cards.look(lambda *_: None)
        assert cards.workers == {}
    (lack,) = capacity.canaries["gpu0"].lacks
    assert "no directory" in lack.reason
    assert lack.hint


# --- a whole node ----------------------------------------------------------------------


class WithCard(Node):
    """A node that runs units of the class fp32 on a CPU and on the card."""

    def __init__(self, *parts, card_worker):
        super().__init__(*parts)
        self.lost = ""
        self.house = replace(
            self.house, cards=lambda: [self.on_card()], card_workers={"gpu0": card_worker}
        )

    def on_card(self):
        load = self.provider.load_on("gpu0")
        return replace(
            self.terms(),
            device="gpu0",
            executors={} if self.lost else {"fp32": "faulty"},
            leases=load.leases,
            waiting_s=load.waiting_s,
            lost=self.lost,
        )

    def lose(self, error):
        self.lost = error.message
        self.provider.hand_back(Reason.BUSY, error.message[:256], "gpu0")


@asynccontextmanager
async def open_node_with(card, home):
    key = identity.generate()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        network = await enter(open_network(key, LOOPBACK))
        control = await enter(open_control(network, "test/1"))
        blobs = await enter(open_store(home / "blobs", 1 << 30))
        journal = await enter(open_state(home / "state.sqlite"))
        worker = await enter(open_worker(threads=1))
        workers = await enter(open_workers())
        place = replace(card.place, lost=lambda error: node.lose(error))  # noqa: PLW0108
        on_card = workers.add(START, place, ENTRY)
        parts = (key, network, control, blobs, journal, worker)
        node = WithCard(*parts, card_worker=on_card)
        node.provider = await enter(open_provider(node.house))
        node.jobs = await enter(jobs.open_jobs(node.house, lambda _: list(node.offering)))
        control.answer_with(node.provider.answer)
        await on_card.probe()
        yield node


async def submit(node, *firsts):
    inputs = [rows_of(first) for first in firsts]
    for blob in (*DENSE.blobs.values(), *inputs):
        await node.blobs.put_bytes(blob)
    units = tuple({"x": blob_id_of(blob)} for blob in inputs)
    spec = JobSpec(Policy.MAP, DENSE.program_id, units, time_limit_s=5.0)
    job = await node.jobs.submit(spec, units)
    await node.ended(job.id)
    return job, await node.journal.units(job.id, 0, len(units))


async def test_a_unit_that_fails_on_a_card_has_a_receipt_that_says_so_and_the_others_run(
    card, tmp_path
):
    async with open_node_with(card, tmp_path) as node:
        _, units = await submit(node, 1.0, faulty_card.OUT_OF_MEMORY, 2.0)
        assert [unit.state for unit in units] == [
            UnitState.DONE,
            UnitState.FAILED,
            UnitState.DONE,
        ]
        assert units[1].failure.code == "memory_limit"
        receipt = open_receipt(await node.journal.receipt(units[1].receipt))
        assert (receipt.device, receipt.outputs) == ("gpu0", None)
        assert receipt.error.code == "memory_limit"
        assert "gpu0" in receipt.error.message
        assert node.provider.units_served == 3


async def test_units_of_a_card_that_is_gone_are_run_by_the_cpu(card, tmp_path):
    async with open_node_with(card, tmp_path) as node:
        _, units = await submit(node, 1.0)
        assert units[0].state is UnitState.DONE
        card.take_away()
        _, units = await submit(node, faulty_card.GONE)
        assert (units[0].state, units[0].failure.code) == (UnitState.FAILED, "device_lost")

        async def lost():
            return node.lost

        await until(lost)
        _, units = await submit(node, 2.0, 3.0)
        assert [unit.state for unit in units] == [UnitState.DONE] * 2
