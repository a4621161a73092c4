"""What is claimed of a device's samples, and what becomes of those that fail."""

import pytest

from shoal.compute import contention, frames
from shoal.compute.capability import (
    NEXT_PATIENCE_S,
    ON_CPU,
    PATIENCE_S,
    SAMPLES,
    Amounts,
    measure_device,
)
from shoal.compute.contention import Look
from shoal.compute.errors import ComputeError, ProgramError

CARD = Amounts(size=4096, depth=8, copy_bytes=1 << 30)


class Answering:
    """A worker whose device does so many multiply-adds, or bytes, a second, or fails."""

    def __init__(self, **rates):
        self.rates, self.asked, self.patience = rates, [], []

    async def measure(self, request, kind, time_limit_s, patience_s, began):
        self.asked.append(request)
        self.patience.append(patience_s)
        began(1)
        what = "exact" if isinstance(request, frames.Prove) else request.what
        rate = self.rates[what]
        if isinstance(rate, Exception):
            raise rate
        if isinstance(request, frames.Prove):
            work = request.rows * request.size**2 * request.steps
            return frames.Proved((), (), work / rate)
        return frames.Measured(rate, 1.0)


LOST = ComputeError("the card gpu0 is gone", code="device_lost")
FULL = ComputeError("the card gpu0 has no memory free", code="memory_limit")
ODD = ProgramError("a library failed", code="library_failure")
CLASSES = ["low", "fp32", "exact", "kernel"]


async def test_each_class_of_a_card_has_a_rate_in_pieces_of_the_card_s_size():
    worker = Answering(exact=2e12, fp32=3e13, low=3e14, memory=4e12)
    found = await measure_device(worker, CLASSES, CARD)
    rates = {(r.numeric_class, r.precision): r.rate for r in found.rates}
    assert rates.keys() == {("exact", "x20"), ("fp32", None), ("low", None)}
    assert rates["fp32", None] == 3e13
    assert rates["exact", "x20"] == pytest.approx(2e12, rel=0.02)
    assert (found.memory_rate, found.failed) == (4e12, ())
    products = [r for r in worker.asked if getattr(r, "what", "") in {"fp32", "low"}]
    assert len(products) == 2 * SAMPLES
    assert {(r.size, r.depth) for r in products} == {(4096, 8)}
    assert [r.size for r in worker.asked if getattr(r, "what", "") == "memory"] == [1 << 30] * 3


async def test_a_device_too_slow_to_be_shown_has_no_exact_rate_and_the_others():
    found = await measure_device(Answering(exact=1e7, fp32=1e9, memory=1e9), ["exact", "fp32"])
    assert [rate.numeric_class for rate in found.rates] == ["fp32"]
    assert found.failed == ()


@pytest.mark.parametrize("error", [FULL, ODD], ids=["no memory", "a library"])
async def test_what_fails_is_told_and_the_rest_is_measured(error):
    worker = Answering(exact=2e12, fp32=3e13, low=error, memory=error)
    found = await measure_device(worker, CLASSES, CARD)
    assert [rate.numeric_class for rate in found.rates] == ["exact", "fp32"]
    assert found.memory_rate == 0.0
    assert found.failed == (("low", error.message), ("memory", error.message))


async def test_nothing_is_asked_any_more_of_a_card_that_is_gone():
    worker = Answering(exact=2e12, fp32=LOST)
    with pytest.raises(ComputeError, match="is gone"):
        await measure_device(worker, CLASSES, CARD)
    assert worker.asked[-1].what == "fp32"


async def test_where_all_of_it_fails_the_first_error_is_the_device_s():
    with pytest.raises(ProgramError, match="a library"):
        await measure_device(Answering(fp32=ODD, memory=FULL), ["fp32"], ON_CPU)


async def test_what_others_took_meanwhile_is_told_of_the_class_that_it_was_taken_from(
    monkeypatch,
):
    looks = []

    def look(pid):
        # The first piece is the first class's: its threads waited most of the time.
        looks.append(pid)
        later = len(looks) > 1
        return Look(float(len(looks)), ran_s=later * 1.0, waited_s=later * 9.0)

    monkeypatch.setattr(contention, "look", look)
    found = await measure_device(Answering(fp32=1e9, memory=1e9), ["fp32"])
    assert "for 90% of the time" in found.beside
    assert set(looks) == {1}
    monkeypatch.setattr(contention, "look", lambda _: Look())
    assert (await measure_device(Answering(fp32=1e9, memory=1e9), ["fp32"])).beside == ""


async def test_the_first_piece_waits_longest_and_each_is_told_when_its_turn_has_come():
    worker, began = Answering(fp32=1e9, memory=1e9), []
    await measure_device(worker, ["fp32"], began=lambda: began.append(1))
    first, *others = worker.patience
    assert first == PATIENCE_S
    assert set(others) == {NEXT_PATIENCE_S}
    assert len(began) == len(worker.asked) == 2 * SAMPLES
