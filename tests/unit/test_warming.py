"""What a card compiles of a program before the first unit's clock starts."""

from collections import OrderedDict
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from shoal.compute import frames
from shoal.compute import worker as worker_module
from shoal.compute.errors import ComputeError
from shoal.compute.executors.base import NumericClass
from shoal.compute.frames import UnitLimits
from shoal.compute.manifest import Port
from shoal.compute.preparing import COMPILE_LIMIT_S, prepare
from shoal.compute.sandbox import Meter
from shoal.compute.starting import Room
from shoal.compute.warming import made_up_inputs
from shoal.compute.worker import Held, Worker

LIMITS = UnitLimits(time_s=3.0, memory_bytes=1 << 20, output_bytes=1)
PORTS = (Port("x", "float32", ("n", 3)), Port("at", "int64", ("n",)), Port("c", "bool", ()))


def test_inputs_have_their_declared_shapes_and_open_sizes_are_broadcast_nowhere():
    made = made_up_inputs(PORTS, 1 << 10)
    assert {name: (x.dtype.name, x.shape, x.all()) for name, x in made.items()} == {
        "x": ("float32", (2, 3), True),
        "at": ("int64", (2,), False),
        "c": ("bool", (), True),
    }


def test_none_are_made_up_of_an_open_rank_or_beyond_the_unit_s_memory():
    assert made_up_inputs((*PORTS, Port("y", "float32", None)), 1 << 10) is None
    assert made_up_inputs(PORTS, 40) is None


class Executor:
    def __init__(self, error=None):
        self.error, self.ran = error, []

    def run(self, prepared, inputs):
        self.ran.append((prepared, inputs))
        if self.error:
            raise self.error


def a_worker(executor, *, broken=False):
    """One that has no process, and notes the limits that its runs are held to."""
    worker = object.__new__(Worker)
    worker._executors = SimpleNamespace(of={NumericClass.EXACT: executor}.get)
    worker._held, worker.limited_to_s = OrderedDict(), []

    @contextmanager
    def within(limits):
        worker.limited_to_s.append(limits.time_s)
        yield

    worker._enforcer = SimpleNamespace(broken=broken, within=within, meter=Meter())
    return worker


def warm_up(worker):
    held = Held(SimpleNamespace(inputs=PORTS), NumericClass.EXACT, "prepared", 1)
    worker._warm_up(held, frames.Prepare("p", (), LIMITS, compile_s=COMPILE_LIMIT_S))


def test_a_program_is_run_once_under_a_limit_of_its_own():
    executor = Executor()
    worker = a_worker(executor)
    warm_up(worker)
    ((prepared, inputs),) = executor.ran
    assert prepared == "prepared"
    assert np.array_equal(inputs["x"], np.ones((2, 3)))
    assert worker.limited_to_s == [COMPILE_LIMIT_S]


@pytest.mark.parametrize(
    "error", [ComputeError("late", code="terminated"), ValueError("shapes"), MemoryError()]
)
def test_what_fails_in_it_is_no_failure_but_for_a_card_that_broke(error):
    warm_up(a_worker(Executor(error)))
    with pytest.raises(type(error)):
        warm_up(a_worker(Executor(error), broken=True))


@pytest.mark.parametrize(("card", "more_s"), [(None, 0.0), (object(), COMPILE_LIMIT_S)])
async def test_the_daemon_waits_for_a_card_s_compiler_beyond_the_unit_s_time(card, more_s):
    asked = []

    async def ask(room, request, attachments, limits, kind):
        asked.append((request.compile_s, request.limits.time_s, limits.time_s))
        return frames.Prepared(()), []

    async def blobs():
        return {}

    start = SimpleNamespace(card=card and SimpleNamespace(memory_bytes=1))
    rooms = SimpleNamespace(
        ask=ask, prepared=lambda _: None, starter=SimpleNamespace(start=start)
    )
    await prepare(rooms, Room(process=None, probes=()), "p", blobs, LIMITS)
    assert asked == [(more_s, LIMITS.time_s, LIMITS.time_s + more_s)]


@pytest.mark.parametrize(("compile_s", "runs"), [(0.0, 0), (COMPILE_LIMIT_S, 1)])
def test_a_program_is_warmed_up_when_it_is_prepared_on_a_card(compile_s, runs, monkeypatch):
    executor = Executor()
    executor.prepare = lambda loaded: loaded
    worker = a_worker(executor)
    worker._cache_bytes, worker._unit_bytes = 1 << 20, 0
    worker._card = None
    manifest = SimpleNamespace(inputs=PORTS)
    monkeypatch.setattr(worker_module, "load", lambda *_: SimpleNamespace(manifest=manifest))
    request = frames.Prepare("p", (), LIMITS, "exact", compile_s=compile_s)
    assert worker.prepare(request, []).held == ("p",)
    assert len(executor.ran) == runs
    assert worker.limited_to_s == [LIMITS.time_s, COMPILE_LIMIT_S][: 1 + runs]
