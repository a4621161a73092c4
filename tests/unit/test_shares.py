"""Percentages of what this process may use."""

import pytest

from shoal.compute.cgroups import CgroupLimits
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
    monkeypatch.setattr(shares, "usable_cores", lambda: 8)
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


def test_half_of_one_core_is_one_core(monkeypatch):
    monkeypatch.setattr(shares, "usable_cores", lambda: 1)
    assert read_cores_or_share("50%") == 1


def test_the_machine_is_no_more_than_what_its_container_may_use(monkeypatch):
    for quota, cpus in ((None, 2.0), (0.5, 0.5), (64.0, 2.0)):
        monkeypatch.setattr(shares.os, "sched_getaffinity", lambda _: {0, 1})
        monkeypatch.setattr(shares, "read_limits", lambda quota=quota: CgroupLimits(cpus=quota))
        assert shares.usable_cpus() == cpus
