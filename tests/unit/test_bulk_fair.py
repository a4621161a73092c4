"""Turns at the disk: a peer with many threads gets no more of them than one with a single."""

import threading
from contextlib import ExitStack

from shoal.crypto.peer_id import PeerId
from shoal.node.bulk.fair import FairTurns

LIMIT_S = 10.0


class Waiter(threading.Thread):
    def __init__(self, turns, peer, order):
        super().__init__(daemon=True)
        self._turns, self.peer, self._order = turns, PeerId(peer), order

    def run(self):
        with self._turns.take(self.peer):
            self._order.append(self.peer)


def wait_until_queued(turns, count):
    reached = threading.Event()
    while sum(map(len, turns._waiting.values())) < count:
        reached.wait(0.001)


def test_peers_take_turns_however_many_threads_each_has():
    turns, order, threads = FairTurns(1), [], []
    with turns.take(PeerId("own")):
        for peer in ("ann", "ann", "ann", "bob", "eve", "bob"):
            threads.append(Waiter(turns, peer, order))
            threads[-1].start()
            wait_until_queued(turns, len(threads))
    for thread in threads:
        thread.join(LIMIT_S)
    assert order == ["ann", "bob", "eve", "ann", "bob", "ann"]


def test_so_many_have_a_turn_at_once_and_a_turn_comes_back_after_an_error():
    turns = FairTurns(2)
    for _ in range(5):
        try:
            with turns.take(PeerId("ann")):
                raise OSError
        except OSError:
            pass
    order = []
    with ExitStack() as held:
        held.enter_context(turns.take(PeerId("ann")))
        held.enter_context(turns.take(PeerId("ann")))
        third = Waiter(turns, "bob", order)
        third.start()
        wait_until_queued(turns, 1)
        assert not order
    third.join(LIMIT_S)
    assert order == ["bob"]
