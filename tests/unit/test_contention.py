"""What others took of a machine while something was measured on it."""

import os

import pytest

from shoal.compute.contention import (
    Contention,
    Look,
    contention,
    disturbance,
    is_quiet,
    look,
    read_schedstats,
    read_stat,
)

STAT = """cpu  999 999 999 999 999 999 999 999 0 0
cpu0 100 20 30 5000 40 1 2 7 50 0
cpu1 100 0 0 5000 0 0 0 0 0 0
intr 5
"""


def test_only_what_takes_a_good_part_of_the_machine_disturbs():
    assert disturbance(Contention()) == ""
    assert disturbance(Contention(waited_share=0.2, stolen_share=0.05)) == ""
    assert "for 94% of the time" in disturbance(Contention(waited_share=0.94))
    assert "hypervisor withheld 30%" in disturbance(Contention(stolen_share=0.3))
    assert "heat" in disturbance(Contention(throttled=True))


def test_what_was_waited_counts_beside_what_ran_and_not_beside_idle_time():
    first = Look(at_s=10.0, ran_s=1.0, waited_s=5.0, processors=4)
    last = Look(at_s=20.0, ran_s=2.0, waited_s=8.0, stolen_s=4.0, processors=4)
    found = contention([(first, last), (last, last)])
    assert found == Contention(waited_share=0.75, stolen_share=0.1)
    assert contention([]) == contention([(first, first)]) == Contention()
    assert contention([(first, Look(11.0, throttled=1))]).throttled


def test_a_machine_is_quiet_that_does_next_to_nothing():
    first = Look(at_s=0.0, busy_s=100.0, processors=4)
    assert is_quiet(first, Look(at_s=5.0, busy_s=103.0, processors=4))
    assert not is_quiet(first, Look(at_s=5.0, busy_s=105.0, processors=4))
    assert not is_quiet(first, first)


def test_the_kernel_s_figures_are_read():
    assert read_schedstats(["2000000000 1000000000 3\n", "0 500000000 1\n"]) == (2.0, 1.5)
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    assert read_stat(STAT, [0]) == pytest.approx((160 * tick_s, 7 * tick_s))
    assert read_stat(STAT, [0, 1])[0] == pytest.approx(260 * tick_s)


def test_a_look_at_a_process_that_is_gone_or_no_process_says_nothing_of_it():
    for pid in (None, 1 << 22):
        found = look(pid)
        assert (found.ran_s, found.waited_s) == (0.0, 0.0)
        assert found.processors >= 1
    assert look(os.getpid()).ran_s >= 0.0
