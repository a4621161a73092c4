"""The watchdog barks once at a block that takes too long, and at no other."""

import threading

from shoal.compute.watchdog import Watchdog

LONG_S = 60.0


def started():
    barked = threading.Semaphore(0)
    watchdog = Watchdog(barked.release)
    watchdog.start()
    return watchdog, barked


def test_a_block_that_takes_too_long_is_barked_at_once():
    watchdog, barked = started()
    with watchdog.within(0.01):
        assert barked.acquire(timeout=LONG_S)
        assert not barked.acquire(timeout=0.05)


def test_a_block_that_ends_in_time_is_not_and_the_next_one_may_be():
    watchdog, barked = started()
    with watchdog.within(0.05):
        pass
    assert not barked.acquire(timeout=0.2)
    with watchdog.within(0.01):
        assert barked.acquire(timeout=LONG_S)


def test_a_shorter_time_than_the_last_block_s_is_kept():
    watchdog, barked = started()
    with watchdog.within(LONG_S):
        pass
    with watchdog.within(0.01):
        assert barked.acquire(timeout=LONG_S / 10)
