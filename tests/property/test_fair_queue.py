"""Whoever asks, and however much: shares are fair, and nobody saves up or is forgotten."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.compute.fair_queue import FairQueue

seconds = st.floats(0.001, 10.0)


def serve(queue):
    """Take one turn; items are (rank, flow, seconds)."""
    item = queue.take()
    rank, flow, took_s = item[:3]
    queue.charge(rank, flow, took_s)
    return item


@given(st.dictionaries(st.sampled_from("abcde"), st.lists(seconds, min_size=1), min_size=2))
def test_flows_that_wait_throughout_get_the_same_seconds_but_for_one_turn(flows):
    queue = FairQueue()
    for flow, turns in flows.items():
        for took_s in turns:
            queue.add(0, flow, (0, flow, took_s))
    longest = {flow: max(turns) for flow, turns in flows.items()}
    left = {flow: len(turns) for flow, turns in flows.items()}
    had = dict.fromkeys(flows, 0.0)
    while all(left.values()):
        _, flow, took_s = serve(queue)
        left[flow] -= 1
        had[flow] += took_s
        for one in flows:
            for other in flows:
                assert had[one] - had[other] <= longest[one] + longest[other] + 1e-9


@given(st.lists(seconds, min_size=1, max_size=60), st.integers(0, 20), seconds)
def test_a_newcomer_waits_for_one_turn_of_each_other_and_no_more(turns, before, own_s):
    """However many another waits with, and however long the newcomer has been away."""
    queue = FairQueue()
    for number, took_s in enumerate(turns):
        queue.add(0, "ab"[number % 2], (0, "ab"[number % 2], took_s))
    for _ in range(min(before, len(turns) - 1)):
        serve(queue)
    queue.add(0, "newcomer", (0, "newcomer", own_s))
    ahead = []
    while (item := serve(queue))[1] != "newcomer":
        ahead.append(item[1])
    assert len(ahead) == len(set(ahead))


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abc"), seconds), min_size=1))
def test_a_lower_rank_always_goes_first_and_a_flow_keeps_its_order(items):
    queue = FairQueue()
    for number, (rank, flow, took_s) in enumerate(items):
        queue.add(rank, flow, (rank, flow, took_s, number))
    order = [serve(queue) for _ in items]
    assert [item[0] for item in order] == sorted(item[0] for item in order)
    for rank in range(3):
        for flow in "abc":
            of_flow = [item[3] for item in order if item[:2] == (rank, flow)]
            assert of_flow == sorted(of_flow)
    assert len(queue) == 0


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), seconds), min_size=1))
def test_nothing_is_lost_and_nothing_is_given_twice(steps):
    queue, waiting, given_out = FairQueue(), [], []
    for number, (flow, gives_up, took_s) in enumerate(steps):
        item = (0, flow, took_s, number)
        queue.add(0, flow, item)
        waiting.append(item)
        if gives_up:
            queue.remove(0, flow, item)
            waiting.remove(item)
        elif number % 3 == 0:
            given_out.append(serve(queue))
    while len(queue):
        given_out.append(serve(queue))
    assert sorted(given_out) == sorted(waiting)


def test_time_away_is_no_credit():
    queue = FairQueue()
    queue.add(0, "away", (0, "away", 1.0))
    for _ in range(50):
        queue.add(0, "steady", (0, "steady", 1.0))
    for _ in range(40):
        serve(queue)  # the other had one turn and left
    for _ in range(10):
        queue.add(0, "away", (0, "away", 1.0))
    order = "".join(serve(queue)[1][0] for _ in range(8))
    assert order in {"asasasas", "sasasasa"}


def test_what_was_used_before_counts_while_others_wait():
    queue = FairQueue()
    for flow, took_s in (("long", 10.0), ("short", 1.0), ("short", 1.0), ("short", 1.0)):
        queue.add(0, flow, (0, flow, took_s))
    assert serve(queue)[1] == "long"
    queue.add(0, "long", (0, "long", 10.0))
    assert [serve(queue)[1] for _ in range(4)] == ["short", "short", "short", "long"]


def test_when_nobody_waits_nobody_owes_anything():
    queue = FairQueue()
    queue.add(0, "long", (0, "long", 1000.0))
    serve(queue)
    for flow in ("long", "new", "long", "new"):
        queue.add(0, flow, (0, flow, 1.0))
    assert [serve(queue)[1] for _ in range(4)] == ["long", "new", "long", "new"]


def test_an_empty_queue_gives_nothing():
    queue = FairQueue()
    with pytest.raises(IndexError):
        queue.take()
    queue.remove(0, "nobody", object())
    queue.charge(0, "nobody", math.pi)
    assert len(queue) == 0
