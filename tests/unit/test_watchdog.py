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


def test_many_blocks_in_a_row_are_each_watched_by_their_own_deadline():
    watchdog, barked = started()
    for _ in range(1000):
        with watchdog.within(0.2):
            pass
    with watchdog.within(0.3):
        assert not barked.acquire(timeout=0.25)  # not at the deadline of one that ended
        assert barked.acquire(timeout=LONG_S)


def test_a_deadline_that_passes_while_the_thread_sleeps_for_a_later_one_is_kept():
    watchdog, barked = started()
    for time_s in (LONG_S, 0.3, 0.01):
        with watchdog.within(time_s):
            if time_s == 0.01:
                assert barked.acquire(timeout=LONG_S / 10)
