"""Equal cards in one line of an advert, and which line a card is in."""

import pytest

from shoal.node.device_lines import SPREAD, line_of, lines_of
from shoal.protocol.device_offers import ClassRate, DeviceOffer


def card(number, exact=1e12, fp32=3e13, *, name="H200", memory_rate=4e12, count=1, named=""):
    rates = [("exact", "x20", exact), ("fp32", None, fp32)]
    return DeviceOffer(
        id=named or f"gpu{number}",
        kind="nvidia",
        name=name,
        memory_bytes=1,
        executors=("exact", "torch"),
        rates=tuple(ClassRate(*each) for each in rates if each[2]),
        memory_rate=memory_rate,
        count=count,
    )


CPU = DeviceOffer(id="cpu", kind="cpu", name="Xeon", memory_bytes=1)


def test_equal_cards_are_one_line_that_claims_what_the_slowest_of_them_does():
    lines = lines_of([CPU, card(0, 1.0e12, 3.1e13), card(1, 1.1e12, 3.0e13, memory_rate=3e12)])
    assert lines == (CPU, card(0, 1.0e12, 3.0e13, memory_rate=3e12, count=2))
    assert lines_of(lines) == lines


@pytest.mark.parametrize(
    "other",
    [card(1, name="H100"), card(1, 1e12 / SPREAD / 1.01), card(1, 0), card(1, 0, 0)],
    ids=["of another kind", "much slower", "another class", "not measured"],
)
def test_cards_that_differ_are_lines_of_their_own(other):
    assert lines_of([card(0), other]) == (card(0), other)


def test_cards_that_were_not_measured_are_one_line_that_claims_nothing():
    (line,) = lines_of([card(n, 0, 0, memory_rate=0.0) for n in range(8)])
    assert (line.count, line.rates) == (8, ())


@pytest.mark.parametrize(
    ("device", "lines", "found"),
    [
        ("cpu", (CPU, card(0, count=2)), 0),
        ("gpu0", (CPU, card(0, count=2)), 1),
        ("gpu1", (CPU, card(0, count=2)), 1),
        ("gpu1", (CPU, card(0)), None),
        ("gpu7", (card(0, count=4), card(4, name="A100", count=4)), 1),
        ("gpu3", (card(0, count=4), card(4, name="A100", count=4)), 0),
        ("gpu8", (card(0, count=4), card(4, name="A100", count=4)), None),
        ("gpu2", (card(0, count=2), card(1, name="A100", count=2)), None),
        ("gpu2", (card(0, count=2), card(1, name="A100")), 0),
        ("gpu1-mig2", (card(0), card(0, named="gpu1-mig0", count=7)), 1),
        ("cpu1", (CPU, card(0, count=2)), 1),
        ("", (CPU, card(0, count=2)), None),
    ],
)
def test_which_line_a_card_is_in_is_told_by_its_number_or_not_at_all(device, lines, found):
    assert line_of(lines, device) == (None if found is None else lines[found])


def test_a_name_that_is_no_card_s_is_in_no_line_whatever_it_is():
    for device in ("gpu", "x" * 1000, "9" * 5000, "-1"):
        line_of((CPU, card(0, count=2), card(2, name="A100", count=3)), device)
