"""When a device is measured: busy ones, disturbed ones, and those whose owner asks."""

import time

import msgspec
import pytest
import trio
from test_capability import (
    CARDS,
    CPU,
    FIGURES,
    Measuring,
    capability,
    card_figures,
    keeping,
)

from shoal.compute.errors import ComputeError
from shoal.node import capability as capabilities
from shoal.node.cli.capability import card_texts, doubt_texts, measured_text
from shoal.node.cli.devices import measure_now
from shoal.node.measuring_plan import (
    DISTURBED_AFTER_S,
    IN_LINE_AFTER_S,
    LIFETIME_S,
    Hold,
    disturbed_after_s,
    hold_of,
    is_stale,
    may_wait_in_line,
)
from shoal.node.owner import OPEN, Cause, Stance

UNITS = Hold("units run there", "units")
LOAD = "other work had the processors"
PAUSED, STEPPING = Stance(Cause.PAUSED, own=False), Stance(Cause.STEPPING_BACK)


def fresh(**changes):
    changes = {"measured_at": time.time() - 2 * DISTURBED_AFTER_S} | changes
    return msgspec.structs.replace(FIGURES, **changes)


@pytest.mark.parametrize(
    ("stance", "provide", "units", "by"),
    [
        (OPEN, True, False, None),
        (OPEN, True, True, "units"),
        (STEPPING, True, True, "others"),
        (PAUSED, True, False, "owner"),
        (OPEN, False, False, "owner"),
    ],
)
def test_what_keeps_a_device_from_being_measured(stance, provide, units, by):
    hold = hold_of(stance, provide=provide, units=units)
    assert (hold.by if hold else None) == by
    if hold:
        assert hold.why
        late, asked = 2 * IN_LINE_AFTER_S, by != "owner"
        assert may_wait_in_line(hold, late, asked=False) is (by == "units")
        assert may_wait_in_line(hold, 0.0, asked=True) is asked
        assert not may_wait_in_line(hold, 0.0, asked=False)


def test_what_was_taken_beside_other_work_is_taken_anew_when_quiet_and_ever_later():
    now, key = time.time(), FIGURES.key
    loaded = fresh(beside=LOAD, disturbed=1)
    assert is_stale(loaded, key, now, belied=False, quiet=True)
    assert not is_stale(loaded, key, now, belied=False, quiet=False)
    assert not is_stale(fresh(), key, now, belied=False, quiet=True)
    again = fresh(beside=LOAD, disturbed=2)
    assert not is_stale(again, key, now, belied=False, quiet=True)
    waits = [disturbed_after_s(times) for times in range(1, 12)]
    assert waits[0] == DISTURBED_AFTER_S
    assert waits == sorted(waits)
    assert waits[-1] == LIFETIME_S


async def test_figures_taken_beside_other_work_say_so_and_are_replaced_once_it_is_quiet(
    autojump_clock, monkeypatch
):
    measuring = Measuring(monkeypatch)
    quiet = []
    monkeypatch.setattr(capabilities.contention, "is_quiet", lambda *_: bool(quiet))
    made = capability(fresh(beside=LOAD, disturbed=1))
    async with keeping(made):
        await trio.sleep(60)
        assert measuring.measured == []
        (figures,) = made.view(None).devices
        (told,) = doubt_texts(figures)
        assert LOAD in told
        assert "`shoal devices --measure`" in told
        quiet.append(True)
        await trio.sleep(60)
    assert measuring.measured == ["cpu"]
    assert doubt_texts(made.view(None).devices[0]) == []


async def test_a_device_with_units_at_every_look_waits_in_their_line_and_says_since_when(
    autojump_clock, monkeypatch
):
    measuring = Measuring(monkeypatch)
    made = capability(devices=(CPU, *CARDS[:1]))
    made.hold = lambda _device: UNITS
    async with keeping(made):
        await trio.sleep(IN_LINE_AFTER_S / 2)
        assert measuring.measured == []
        view = made.view(None)
        assert measured_text(view).startswith(
            "not measured yet: the device has been busy since"
        )
        told = card_texts(view.devices[1])
        assert told[0].startswith("not measured yet: the device has been busy since 20")
        assert told[0].endswith("(units run there)")
        assert view.devices[1].busy_since is not None
        await trio.sleep(3 * IN_LINE_AFTER_S)
    assert set(measuring.measured) == {"cpu", "gpu0"}
    assert made.view(None).devices[1].busy_since is None


async def test_a_device_that_its_owner_keeps_is_not_measured_and_says_so(
    autojump_clock, monkeypatch
):
    measuring = Measuring(monkeypatch)
    made, hold = capability(), [Hold("stepping back", "others")]
    made.hold = lambda _device: hold[0]
    async with keeping(made):
        await trio.sleep(3600)
        assert measuring.measured == []
        assert "(stepping back)" in measured_text(made.view(None))
        hold[0] = None
        await trio.sleep(10)
    assert measuring.measured == ["cpu"]


async def test_a_measurement_that_waits_in_line_ends_when_the_owner_wants_the_device(
    autojump_clock, monkeypatch
):
    Measuring(monkeypatch)
    hold = [UNITS]

    async def never(*_):
        await trio.sleep_forever()

    monkeypatch.setattr(capabilities.figures, "measure_device", never)
    made = capability()
    made.hold = lambda _device: hold[0]
    async with keeping(made):
        await trio.sleep(2 * IN_LINE_AFTER_S)
        assert made._began_s
        hold[0] = Hold("paused by its owner", "owner")
        await trio.sleep(10)
        assert not made._began_s
        assert "(paused by its owner)" in measured_text(made.view(None))


class Asking:
    """A client of the node whose devices these are."""

    def __init__(self, made):
        self.made = made

    def measure(self, device):
        return list(self.made.ask(device))

    def capability(self):
        return self.made.view(None)


async def test_who_asks_has_a_busy_device_measured_and_hears_how_that_goes(
    autojump_clock, monkeypatch, capsys
):
    measuring = Measuring(monkeypatch)
    made = capability(fresh(), devices=(CPU, *CARDS[:1]), classes={"gpu0": frozenset()})
    made.hold = lambda _device: Hold("stepping back", "others")
    client = Asking(made)
    async with keeping(made):
        done = trio.Event()

        async def ask():
            # In its thread the clock of these tests does not jump.
            assert await trio.to_thread.run_sync(measure_now, client, None, 0.01)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            while not done.is_set():  # noqa: ASYNC110  # a thread waits for what happens here
                await trio.sleep(1)
    assert measuring.measured == ["cpu"]
    assert "cpu: measured" in capsys.readouterr().err


async def test_what_cannot_be_measured_is_said_with_the_reason(autojump_clock, monkeypatch):
    Measuring(monkeypatch)
    made = capability(devices=(CPU, *CARDS[:1]), classes={"gpu0": frozenset()})
    with pytest.raises(ComputeError, match="gpu0 takes no units"):
        made.ask("gpu0")
    made.hold = lambda _device: Hold("paused by its owner", "owner")
    with pytest.raises(ComputeError, match="cpu: paused by its owner") as caught:
        made.ask()
    assert caught.value.code == "not_measured"
    made.hold = lambda _device: None
    assert made.ask() == ("cpu",)


async def test_a_failure_of_what_was_asked_for_is_the_answer(autojump_clock, monkeypatch):
    measuring = Measuring(monkeypatch)
    measuring.problems["gpu0"] = [ComputeError("the card failed", code="device_failed")]
    made = capability(card_figures(0), devices=CARDS[:1])
    made.ask("gpu0")
    async with keeping(made):
        await trio.sleep(10)
        (figures,) = made.view(None).devices
        assert (figures.asked, figures.problem) == (False, "the card failed")


async def test_who_asks_while_it_is_measured_has_it_measured_once_more(
    autojump_clock, monkeypatch
):
    Measuring(monkeypatch)
    measured = []

    async def measure(_worker, _classes, _amounts, began):
        began()
        await trio.sleep(60)  # beside what its owner has stopped by now
        measured.append(trio.current_time())
        return capabilities.figures.Figures((), 1e9)

    monkeypatch.setattr(capabilities.figures, "measure_device", measure)
    made = capability()
    async with keeping(made):
        await trio.sleep(30)
        assert made.ask() == ("cpu",)
        await trio.sleep(60)
        assert made.view(None).devices[0].asked
        await trio.sleep(60)
        assert not made.view(None).devices[0].asked
    assert len(measured) == 2
