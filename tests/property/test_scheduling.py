"""The scheduler under whatever happens in whatever order.

Bids, refusals, results, errors, lost leases and new units come at random; `Simulation.check`
and the assertions here hold after each of them.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from leases import lease_granted
from simulated_peers import CLASS, Peer, Simulation

from shoal.node.scheduling import actions as do
from shoal.node.scheduling import events
from shoal.node.scheduling.plan import LOSSES_LIMIT, plan
from shoal.node.scheduling.state import Facts, JobQueue, Offer, State

PEERS = ("a", "b", "c")
JOBS = ("i", "j")
UNITS = 12

peers_drawn = st.lists(
    st.builds(
        dict,
        unit_s=st.sampled_from([0.01, 0.1, 1.0, 10.0]),
        rtt_s=st.sampled_from([0.001, 0.1]),
        cold_s=st.sampled_from([0.0, 3.0]),
        batch_max=st.sampled_from([1, 8, 64]),
        in_flight_max=st.sampled_from([1, 2, 64]),
    ),
    min_size=1,
    max_size=5,
)
troubles_drawn = st.lists(
    st.tuples(st.floats(0.0, 30.0), st.sampled_from(["down", "comes_up"]), st.integers(0, 4)),
    max_size=8,
)
jobs_drawn = st.lists(
    st.tuples(st.integers(1, 60), st.floats(0.0, 20.0), st.integers(-2, 2)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(peers_drawn, troubles_drawn, jobs_drawn)
def test_all_jobs_end_while_one_peer_works_whatever_the_others_do(peers, troubles, jobs):
    named = [Peer(f"p{k}", **drawn) for k, drawn in enumerate(peers)]
    simulation = Simulation(Peer("steady", 0.1), *named)
    for number, (units, at_s, priority) in enumerate(jobs):
        simulation.job(f"j{number}", units, at_s=at_s, priority=priority)
    for at_s, what, which in troubles:
        if which < len(named):
            simulation.at(at_s, getattr(simulation, what), f"p{which}")
    simulation.run()
    for number, (units, _, _) in enumerate(jobs):
        assert sorted(simulation.results[f"j{number}"]) == list(range(units))
    assert not simulation.failed


class World:
    """A state to which anything may happen, and what has to hold all the while."""

    def __init__(self):
        self.state, self.now_s = State(), 0.0
        self.over = {name: set() for name in JOBS}
        offering = {CLASS: {peer: Facts() for peer in PEERS}}
        events.peers_known(self.state, offering)
        for name in JOBS:
            job = JobQueue(name, ("p", CLASS), CLASS, units=UNITS, unread=False)
            events.job_started(self.state, job)
            events.units_read(self.state, name, range(UNITS), more=False)

    def settle(self):
        for _ in range(1000):
            decided = plan(self.state, self.now_s)
            assert decided == plan(self.state, self.now_s)
            if not decided.actions:
                break
            for action in decided.actions:
                if isinstance(action, do.GiveUp):
                    self.ends(action.job, action.unit)
                events.apply(self.state, action, self.now_s)
        else:
            pytest.fail("the plan never comes to an end")
        self.check()

    def ends(self, job, unit):
        assert unit not in self.over[job]
        self.over[job].add(unit)

    def check(self):
        state = self.state
        for name, job in state.jobs.items():
            units = [*job.waiting, *job.out, *self.over[name]]
            assert sorted(units) == list(range(UNITS))
            for copies in job.out.values():
                holders = [state.batches[batch].peer for batch in copies]
                assert 1 <= len(holders) <= 2
                assert len(set(holders)) == len(holders)
        for lease in state.leases.values():
            out = sum(state.batches[batch].units for batch in lease.batches)
            assert out <= lease.offer.in_flight_max
            assert lease.left >= 0
        for batch in state.batches.values():
            assert batch.lease in state.leases

    def happen(self, draw):
        state, job = self.state, self.state.jobs[draw(st.sampled_from(JOBS))]
        peer = draw(st.sampled_from(PEERS))
        candidate = job.candidate(peer)
        batches = list(state.batches.values())
        self.now_s += draw(st.sampled_from([0.0, 0.01, 1.0, 40.0]))
        match draw(st.sampled_from(["negotiate", "answer", "answer", "break", "close"])):
            case "negotiate" if candidate.asked and draw(st.booleans()):
                offer = Offer(1.0, draw(st.integers(1, 8)), draw(st.integers(1, 4)), 2)
                events.bid_came(state, job.id, peer, offer, self.now_s)
            case "negotiate" if candidate.awarding and draw(st.booleans()):
                lease_granted(state, job.id, peer, self.now_s)
            case "negotiate" if candidate.asked or candidate.awarding:
                events.refused(state, job.id, peer, "busy", self.now_s + 1.0)
            case "answer" if batches:
                self.answer(draw, draw(st.sampled_from(batches)))
            case "break" if state.leases:
                events.lease_broken(state, draw(st.sampled_from(list(state.leases))))
            case "close" if state.leases:
                events.lease_closed(state, draw(st.sampled_from(list(state.leases))))

    def answer(self, draw, batch):
        state, units = self.state, list(batch.open)
        events.came_back(state, batch.id, self.now_s, len(units), 1.0)
        for unit in units:
            match draw(st.sampled_from(["done", "done", "failed", "handed back", "silence"])):
                case "done" if events.ended(state, batch.job, unit, batch.id):
                    self.ends(batch.job, unit)
                    assert not events.ended(state, batch.job, unit, batch.id)
                case "failed":
                    events.failed(state, batch.id, unit)
                case "handed back":
                    events.handed_back(state, batch.id, unit)
        events.batch_over(state, batch.id)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_whatever_happens_a_unit_ends_once_and_nobody_has_too_many(data):
    world = World()
    world.settle()
    for _ in range(data.draw(st.integers(1, 60))):
        world.happen(data.draw)
        world.settle()
    for job in world.state.jobs.values():
        assert all(losses <= LOSSES_LIMIT for losses in job.losses.values())
