"""A daemon's life: what signals mean in each phase, and how it drains on a test's clock."""

import os
import signal
from types import SimpleNamespace

import pytest
import trio

from shoal.node.errors import ConfigError
from shoal.node.lifecycle import (
    HAND_BACK_LIMIT_S,
    Act,
    Lifecycle,
    Phase,
    exit_code,
    on_signal,
)

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP
STARTING, RUNNING, DRAINING = Phase

TABLE = [
    (STARTING, TERM, Act.END),
    (STARTING, INT, Act.END),
    (STARTING, HUP, Act.NOTHING),
    (RUNNING, TERM, Act.DRAIN),
    (RUNNING, INT, Act.DRAIN),
    (RUNNING, HUP, Act.RELOAD),
    (DRAINING, TERM, Act.END),
    (DRAINING, INT, Act.END),
    (DRAINING, HUP, Act.NOTHING),
    *((phase, signal.SIGUSR1, Act.NOTHING) for phase in Phase),
    *((phase, signal.SIGUSR2, Act.NOTHING) for phase in Phase),
]


@pytest.mark.parametrize(("phase", "number", "act"), TABLE, ids=str)
def test_what_a_signal_means(phase, number, act):
    assert on_signal(number, phase) is act


def test_a_hang_up_of_a_terminal_that_has_gone_means_that_nobody_watches():
    assert on_signal(HUP, RUNNING, terminal_gone=True) is Act.DRAIN
    assert on_signal(HUP, STARTING, terminal_gone=True) is Act.END
    assert on_signal(HUP, DRAINING, terminal_gone=True) is Act.NOTHING


def test_only_a_second_signal_is_told_by_the_exit_code():
    assert [exit_code(n, p) for n, p in ((INT, DRAINING), (TERM, DRAINING))] == [130, 143]
    assert [exit_code(TERM, phase) for phase in (STARTING, RUNNING)] == [0, 0]


class Manager:
    """Writes down what the service manager would hear."""

    watchdog_s = 3.0

    def __init__(self):
        self.heard = []

    def __getattr__(self, name):
        return lambda *_: self.heard.append(name)


class Units:
    """A daemon with units that end at their time, or when they are handed back."""

    def __init__(self, ends_at_s=0.0, told_after_s=0.0):
        self.taking, self.handed_back = True, False
        self._over, self._told_after_s = trio.Event(), told_after_s
        self._ends_at_s = ends_at_s
        self.units_running = 2

    def stop_taking(self):
        self.taking = False

    async def idle(self):
        assert not self.taking
        await trio.sleep_until(self._ends_at_s)

    def hand_back(self):
        self.handed_back = True
        self._ends_at_s = trio.current_time() + self._told_after_s


@pytest.fixture
def living(monkeypatch):
    limits = []  # of which each would end this process
    monkeypatch.setattr("shoal.node.lifecycle._end_within", lambda *limit: limits.append(limit))
    settings = SimpleNamespace(drain_s=10.0)
    manager = Manager()
    reopened = []
    logs = SimpleNamespace(reopen=lambda: reopened.append(trio.current_time()))

    class Settings:
        error = None

        def __call__(self):
            return settings

        async def reload(self):
            await trio.lowlevel.checkpoint()
            if self.error:
                raise self.error

    life = Lifecycle(Settings(), manager, logs)
    return SimpleNamespace(
        life=life, manager=manager, reopened=reopened, settings=settings, limits=limits
    )


async def lived(living, units, events):
    """Live, and let ``events`` happen at their times; gives how long it took."""

    async def happen():
        for at_s, event in events:
            await trio.sleep_until(at_s)
            event()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(happen)
        await living.life.live(lambda: living.life.stay(units))
        took_s = trio.current_time()
        nursery.cancel_scope.cancel()
    return took_s


@pytest.fixture
def clock(autojump_clock):
    """A signal comes from outside the clock's world: it must not jump meanwhile."""
    autojump_clock.autojump_threshold = 0.02
    return autojump_clock


def send(number):
    return lambda: os.kill(os.getpid(), number)


async def test_a_drain_lasts_until_units_have_ended(clock, living):
    units = Units(ends_at_s=6.0)
    assert await lived(living, units, [(1.0, send(TERM))]) == pytest.approx(6.0, abs=0.1)
    assert not units.handed_back
    assert living.manager.heard == ["ready", "stopping", "still_stopping"]
    assert living.life.exit_code == 0


async def test_units_that_outlast_the_drain_are_handed_back_and_their_requesters_told(
    clock, living
):
    units = Units(ends_at_s=1e9, told_after_s=1.0)
    took_s = await lived(living, units, [(1.0, living.life.end)])
    assert took_s == pytest.approx(1.0 + 10.0 + 1.0)
    assert units.handed_back
    units = Units(ends_at_s=1e9, told_after_s=1e9)
    living.life.__init__(living.life.settings, living.manager, living.life.logs)
    began_s = trio.current_time()
    took_s = await lived(living, units, [(began_s, living.life.end)]) - began_s
    assert took_s == pytest.approx(10.0 + HAND_BACK_LIMIT_S)


async def test_the_time_to_drain_is_asked_for_when_it_begins_and_told_while_it_lasts(
    clock, living
):
    def shorten():
        living.settings.drain_s = 4.0

    left = []
    events = [
        (1.0, shorten),
        (2.0, living.life.end),
        (3.0, lambda: left.append(living.life.drain_ends_in_s)),
    ]
    assert living.life.drain_ends_in_s is None
    took_s = await lived(living, Units(ends_at_s=1e9), events)
    assert (took_s, left) == (pytest.approx(6.0), [pytest.approx(3.0)])


async def test_a_second_signal_ends_at_once(clock, living):
    events = [(1.0, send(INT)), (2.0, send(TERM))]
    took_s = await lived(living, Units(ends_at_s=1e9), events)
    assert took_s == pytest.approx(2.0, abs=0.1)
    assert living.life.exit_code == 143
    assert [code for _, code in living.limits] == [143]


async def test_to_be_told_to_end_now_ends_at_once_and_is_no_failure(clock, living):
    events = [(1.0, lambda: living.life.end(now=True))]
    assert await lived(living, Units(ends_at_s=1e9), events) == pytest.approx(1.0)
    assert living.life.exit_code == 0


async def test_a_signal_while_it_starts_ends_it(clock, living):
    async def start():
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(living.life.live, start)
        await trio.sleep(1.0)
        send(HUP)()
        await trio.sleep(1.0)
        send(TERM)()
    assert trio.current_time() < 10
    assert living.life.exit_code == 0
    assert living.manager.heard == []


async def test_a_failure_to_start_leaves_as_it_is(living):
    async def fail():
        await trio.lowlevel.checkpoint()
        raise ConfigError("no home")

    with pytest.raises(ConfigError, match="no home"):
        await living.life.live(fail)


@pytest.mark.parametrize("error", [None, ConfigError("bad")], ids=["good", "bad"])
async def test_a_hang_up_reads_the_settings_again_and_opens_the_log_anew(clock, living, error):
    living.life.settings.error = error
    events = [(1.0, send(HUP)), (2.0, send(signal.SIGUSR1)), (3.0, send(TERM))]
    await lived(living, Units(), events)
    assert living.manager.heard == [
        *("ready", "reloading", "ready"),
        *("stopping", "still_stopping"),
    ]
    assert len(living.reopened) == 1


async def test_a_pulse_shows_that_the_loop_runs_and_asks_for_patience_while_it_drains(
    clock, living
):
    said = iter(["a", "a", "b", *("b" * 99)])

    async def live():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(living.life.pulse, lambda: next(said))
            await living.life.stay(Units(ends_at_s=5.5))
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(living.life.live, live)
        await trio.sleep(3.5)
        living.life.end()
    assert living.manager.heard.count("alive") == 5  # once a second, below half of 3 s
    assert living.manager.heard.count("status") == 2
    assert living.manager.heard.count("still_stopping") == 1 + 2
