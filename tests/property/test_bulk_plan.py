"""A blob from several sources: all of it comes, once, whoever is slow or leaves."""

import heapq
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.node.bulk.plan import (
    FIRST_CHUNKS,
    GROUP_CHUNKS,
    REQUEST_S,
    STALLED_S,
    STARVED_S,
    Plan,
    Role,
    owner_of,
)
from shoal.protocol.limits import CHANNEL_AHEAD_LIMIT, CHANNEL_CHUNKS_LIMIT

paces = st.floats(0.0005, 2.0)


class Transfer:
    """Sources that each send one chunk after another, in virtual time.

    Args:
        missing: The chunks to get.
        pace_s: Of each source, seconds for a chunk.
        dies_s: When a source is killed.
    """

    def __init__(self, missing, pace_s, dies_s=()):
        self.plan = Plan(missing)
        self.pace_s, self.dies_s = pace_s, dict(dies_s)
        self.now_s = 0.0
        self.came = []
        self.asked = {source: [] for source in pace_s}
        self._events = []
        self._serial = count()
        for source, at_s in self.dies_s.items():
            self._at(at_s, self._die, source)

    def _at(self, when_s, what, source):
        heapq.heappush(self._events, (when_s, next(self._serial), what, source))

    def run(self):
        for source in self.pace_s:
            self.plan.join(source, Role.HOLDER, 0.0)
        for source in self.pace_s:
            self._ask(source)
        while not self.plan.done and self._events:
            self.now_s, _, what, source = heapq.heappop(self._events)
            what(source)
        return self

    def _ask(self, source):
        queue = self.asked[source]
        idle = not queue
        while len(queue) < CHANNEL_AHEAD_LIMIT:
            chunks = self.plan.more(source, self.now_s)
            if chunks is None:
                break
            assert 1 <= len(chunks) <= CHANNEL_CHUNKS_LIMIT
            queue.append(list(chunks))
        if idle and queue:
            self._at(self.now_s + self.pace_s[source], self._send, source)
        elif idle:
            self._at(self.now_s + 0.1, self._look, source)

    def _look(self, source):
        if self.plan.knows(source) and not self.asked[source]:
            self._ask(source)

    def _send(self, source):
        queue = self.asked[source]
        if not self.plan.knows(source):
            return
        index = queue[0].pop(0)
        self.came.append(index)
        self.plan.came(source, index, self.now_s)
        if not queue[0]:
            queue.pop(0)
            if not queue:
                self._ask(source)
                return
            self._ask(source)
        self._at(self.now_s + self.pace_s[source], self._send, source)

    def _die(self, source):
        if self.plan.knows(source):
            self.plan.leave(source)
            self.asked[source] = []


@given(
    st.sets(st.integers(0, 400), min_size=1),
    st.lists(paces, min_size=1, max_size=5),
)
def test_every_chunk_comes_and_few_come_twice(missing, pace_s):
    transfer = Transfer(missing, dict(enumerate(pace_s))).run()
    assert transfer.plan.done
    assert set(transfer.came) == missing
    assert len(transfer.came) - len(missing) <= max(1, len(missing) // 100)


@given(
    st.integers(1, 2048),
    st.lists(paces, min_size=2, max_size=5),
    st.data(),
)
@settings(max_examples=50)
def test_what_a_lost_source_had_not_sent_comes_from_the_others(chunks, pace_s, data):
    victims = data.draw(st.sets(st.integers(1, len(pace_s) - 1)))
    dies_s = {victim: data.draw(st.floats(0.0, 20.0)) for victim in victims}
    transfer = Transfer(range(chunks), dict(enumerate(pace_s)), dies_s).run()
    assert transfer.plan.done
    assert set(transfer.came) == set(range(chunks))
    assert len(transfer.came) - chunks <= max(1, chunks // 100)


@given(st.integers(64, 1024), paces, st.floats(1.0, 50.0))
def test_a_faster_source_sends_more_and_neither_waits_long_for_the_other(chunks, pace_s, times):
    transfer = Transfer(range(chunks), {"fast": pace_s, "slow": pace_s * times}).run()
    alone_s = chunks * pace_s
    together_s = alone_s * times / (1 + times)
    # What the slow one may still be sending at the end, beyond what is taken over.
    asked_s = CHANNEL_AHEAD_LIMIT * max(REQUEST_S, FIRST_CHUNKS * pace_s * times)
    assert transfer.now_s <= together_s + asked_s + pace_s * times + 0.2


def test_the_last_chunk_of_a_slow_source_is_taken_over_by_an_idle_one():
    plan = Plan(range(2))
    plan.join("slow", Role.HOLDER, 0.0)
    assert plan.more("slow", 0.0) == range(2)
    plan.join("fast", Role.HOLDER, 0.0)
    assert plan.more("fast", 1.0) == range(1, 2)
    assert plan.more("fast", 1.0) is None  # one is the most for so small a blob


def test_a_source_that_sends_nothing_is_given_up_where_another_has_nothing_to_do():
    plan = Plan(range(100))
    plan.join("hung", Role.HOLDER, 0.0)
    asked = [plan.more("hung", 0.0) for _ in range(CHANNEL_AHEAD_LIMIT)]
    plan.join("good", Role.HOLDER, 0.0)
    now_s = 0.0
    while (chunks := plan.more("good", now_s)) is not None:
        for index in chunks:
            now_s += 0.01
            plan.came("good", index, now_s)
    assert not plan.done
    assert plan.stalled(now_s) == []
    assert plan.stalled(now_s + STALLED_S) == ["hung"]
    plan.leave("hung")
    freed = plan.more("good", now_s + STALLED_S)
    assert freed is not None
    assert freed[0] == asked[0][0]


def test_what_a_taker_does_not_have_yet_is_had_from_another_and_asked_again_later():
    plan = Plan(range(1), own="own")
    plan.join("half", Role.AFTER, 0.0)
    assert plan.more("half", 0.0) == range(1)
    plan.lacking("half", range(1), 0.0)
    assert not plan.starved("half", 0.0)
    assert plan.more("half", 0.01) is None
    plan.join("whole", Role.HOLDER, 0.0)
    assert plan.more("whole", 0.01) == range(1)
    plan.leave("whole")
    assert plan.more("half", 0.1) == range(1)
    plan.lacking("half", range(1), STARVED_S)
    assert plan.starved("half", STARVED_S)


def test_a_holder_that_lacks_what_it_is_asked_for_is_no_source():
    plan = Plan(range(1))
    plan.join("holder", Role.HOLDER, 0.0)
    assert plan.more("holder", 0.0) == range(1)
    plan.lacking("holder", range(1), 0.0)
    assert plan.starved("holder", 0.0)


@given(st.sets(st.text(max_size=8), min_size=1, max_size=9), st.integers(0, 500))
def test_takers_agree_on_owners_and_one_that_goes_moves_only_its_own(takers, group):
    owner = owner_of("blob", group, sorted(takers))
    assert owner == owner_of("blob", group, sorted(takers, reverse=True))
    for gone in takers - {owner}:
        assert owner_of("blob", group, takers - {gone}) == owner


class Swarm:
    """Takers of one blob, in rounds: each gets one chunk a round from each of its sources."""

    def __init__(self, chunks, joins):
        self.chunks, self.joins = chunks, joins
        self.plans, self.held = {}, {}
        self.sent_by_origin = 0

    def run(self, rounds=5000):
        for step in range(rounds):
            now_s = step * 0.02
            for taker, at in self.joins.items():
                if at == step:
                    self._join(taker, now_s)
            for taker in list(self.plans):
                self._round(taker, now_s)
            if len(self.plans) == len(self.joins) and all(
                plan.done for plan in self.plans.values()
            ):
                return self
        raise AssertionError("the swarm did not end")

    def _join(self, taker, now_s):
        plan = Plan(range(self.chunks), own=taker, name="blob")
        plan.join("origin", Role.ORIGIN, now_s)
        for other, theirs in self.plans.items():
            plan.join(other, Role.BEFORE, now_s)
            theirs.join(taker, Role.AFTER, now_s)
        self.plans[taker], self.held[taker] = plan, set()

    def _round(self, taker, now_s):
        plan = self.plans[taker]
        for source in ["origin", *(other for other in self.plans if other != taker)]:
            if plan.done or (chunks := plan.more(source, now_s)) is None:
                continue
            for index in chunks:
                if source == "origin" or index in self.held[source]:
                    self.sent_by_origin += source == "origin"
                    self.held[taker].add(index)
                    plan.came(source, index, now_s)
                else:
                    plan.lacking(source, range(index, chunks.stop), now_s)
                    break


@given(st.integers(1, 8), st.integers(1, 200), st.data())
@settings(max_examples=40, deadline=None)
def test_the_origin_sends_a_blob_to_many_takers_less_than_twice(takers, groups, data):
    """Whether they begin together or one after another."""
    joins = {f"taker {n}": data.draw(st.integers(0, 300)) for n in range(takers)}
    swarm = Swarm(groups * GROUP_CHUNKS, joins).run()
    assert all(held == set(range(swarm.chunks)) for held in swarm.held.values())
    assert swarm.sent_by_origin <= 2 * swarm.chunks
