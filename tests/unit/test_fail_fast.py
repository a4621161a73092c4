"""When the plan fails a job that is not to wait: where nobody's bid stands, and only there."""

import pytest
from leases import lease_granted
from simulated_peers import CLASS

from shoal.node.scheduling import actions as do
from shoal.node.scheduling import events
from shoal.node.scheduling import state as s
from shoal.node.scheduling.placement import CALLED_LIMIT, LEASES_AT_PEER
from shoal.node.scheduling.plan import plan

OFFER = s.Offer(1.0, 10, 10)
BUSY_S = 2.0
FAILS = do.FailFast("j")


def a_job(name, **more):
    return s.JobQueue(name, ("p", CLASS), CLASS, **more)


class NotToWait:
    """One such job, of which units have been read, and its peers."""

    def __init__(self, *peers, units=1):
        self.state, self.job = s.State(), a_job("j", units=units, fail_fast=True)
        events.peers_known(self.state, {CLASS: {peer: s.Facts() for peer in peers}})
        events.job_started(self.state, self.job)
        self.called = []
        self.begun(0.0)
        events.units_read(self.state, "j", range(units), more=False)

    def begun(self, now_s=0.0):
        """Begin all that is to be done; gives it."""
        begun = []
        while actions := plan(self.state, now_s).actions:
            for action in actions:
                events.apply(self.state, action, now_s)
                begun.append(action)
                if isinstance(action, do.Call):
                    self.called += action.peers
        return begun

    def refuses(self, peer, now_s=0.0):
        events.refused(self.state, "j", peer, "busy", now_s + BUSY_S)

    def bids(self, peer, offer=OFFER):
        events.bid_came(self.state, "j", peer, offer, 0.0)


def test_it_fails_when_the_last_one_has_refused():
    it = NotToWait("a", "b")
    assert FAILS not in it.begun()
    it.refuses("a")
    assert FAILS not in it.begun()
    it.refuses("b")
    assert FAILS in it.begun()


@pytest.mark.parametrize("state", ["asked", "awarding"])
def test_it_goes_on_while_one_that_refused_before_is_with_it_again(state):
    it = NotToWait("a", "b")
    it.refuses("a")
    it.refuses("b")
    setattr(it.job.candidates["a"], state, True)
    assert FAILS not in it.begun()
    setattr(it.job.candidates["a"], state, False)
    assert FAILS in it.begun()


def test_it_fails_where_there_is_nobody_to_call():
    assert FAILS in NotToWait().begun()


@pytest.mark.parametrize("units_max", [10, 1])
def test_it_goes_on_while_its_first_lease_is_expected(units_max):
    it = NotToWait("a", "b", units=2)
    it.refuses("b")
    it.bids("a", s.Offer(1.0, units_max, 10))
    assert do.Award("j", "a") in it.begun()
    lease = events.lease_expected(it.state, "j", "a", 0.0)
    begun = it.begun()
    assert any(isinstance(action, do.HandOver) for action in begun)
    assert FAILS not in begun
    events.lease_confirmed(it.state, lease)
    assert FAILS not in it.begun()


def test_it_fails_when_its_one_award_was_refused():
    it = NotToWait("a", units=2)
    it.bids("a")
    it.begun()
    lease = events.lease_expected(it.state, "j", "a", 0.0)
    it.begun()
    events.lease_refused(it.state, lease)
    it.refuses("a")
    assert FAILS in it.begun()


def test_it_goes_on_with_whom_it_passed_over_for_a_better_one():
    it = NotToWait("a", "b")
    it.bids("a", s.Offer(0.1, 10, 10))
    it.bids("b")
    begun = it.begun()
    assert [do.Award("j", "a"), do.Decline("j", "b")] == begun
    it.refuses("a")
    assert FAILS not in it.begun(0.1)
    assert it.begun(1.1) == [do.Call("j", ("b",), 1)]


def test_it_calls_all_before_it_fails():
    peers = {f"p{number}" for number in range(CALLED_LIMIT + 3)}
    it, refused = NotToWait(*peers), set()
    while FAILS not in it.begun():
        refused.update(it.called)
        for peer in refused:
            it.refuses(peer)
    assert refused == peers


def test_it_waits_for_peers_that_other_jobs_of_this_node_fill():
    it = NotToWait("a")
    it.refuses("a")
    other = a_job("other", units=1, leased=True)
    events.job_started(it.state, other)
    events.units_read(it.state, "other", [0], more=False)
    events.peers_known(it.state, {CLASS: {"a": s.Facts(), "full": s.Facts()}})
    for _ in range(LEASES_AT_PEER):
        events.bid_came(it.state, "other", "full", OFFER, 0.0)
        events.lease_closed(it.state, lease_granted(it.state, "other", "full", 0.0))
    assert FAILS not in plan(it.state, 0.0).actions
