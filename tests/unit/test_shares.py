"""Percentages of what this process may use."""

import pytest

from shoal.node import shares
from shoal.node.shares import (
    read_cores_or_share,
    read_memory_or_share,
    read_share,
    read_share_or_off,
)


@pytest.fixture
def machine(monkeypatch):
    """A machine of 8 CPUs and 64 GB."""
    monkeypatch.setattr(shares, "usable_cpus", lambda: 8.0)
    monkeypatch.setattr(shares, "usable_memory_bytes", lambda: 64 * 10**9)


@pytest.mark.parametrize(
    ("text", "cores"), [("50%", 4), ("60 %", 4), ("100%", 8), ("1%", 1), ("3", 3), (3, 3)]
)
def test_cores_come_as_a_number_or_as_a_share_rounded_down_to_no_less_than_one(
    machine, text, cores
):
    assert read_cores_or_share(text) == cores


@pytest.mark.parametrize(("text", "size"), [("25%", 16 * 10**9), ("2GB", 2 * 10**9)])
def test_memory_comes_as_a_size_or_as_a_share(machine, text, size):
    assert read_memory_or_share(text) == size


def test_stepping_back_is_a_share_or_off():
    assert read_share_or_off("25%") == 0.25
    assert read_share_or_off("off") is None
    assert read_share_or_off(False) is None


@pytest.mark.parametrize("text", ["0%", "101%", "-5%", "%", "25", "x%", True])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ValueError, match="percentage"):
        read_share(text)
    with pytest.raises(ValueError, match="percentage"):
        read_share_or_off(text)


def test_a_container_of_half_a_core_gives_one_core(monkeypatch):
    monkeypatch.setattr(shares, "usable_cpus", lambda: 0.5)
    assert shares.usable_cores() == 1
    assert read_cores_or_share("50%") == 1
