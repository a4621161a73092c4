"""What the scheduler makes of peers of differing speeds, in virtual time."""

import math
from collections import Counter
from dataclasses import replace
from statistics import median_low

import pytest
from leases import lease_granted
from simulated_peers import CLASS, Peer, Simulation

from shoal.crypto.peer_id import PeerId
from shoal.node.scheduling import actions as do
from shoal.node.scheduling import estimates, events
from shoal.node.scheduling import state as s
from shoal.node.scheduling.feeding import BATCH_S, COPIES_FEW, COPIES_SHARE
from shoal.node.scheduling.outlooks import outlook
from shoal.node.scheduling.placement import score
from shoal.node.scheduling.plan import plan


def ideal_s(units, *unit_s):
    """The makespan of whole units where each goes to the peer that ends it first."""
    free = [0.0] * len(unit_s)
    for _ in range(units):
        first = min(range(len(free)), key=lambda k: free[k] + unit_s[k])
        free[first] += unit_s[first]
    return max(free)


def even(count, unit_s=1.0, **more):
    return [Peer(f"p{k}", unit_s, **more) for k in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_what_others_take_is_the_lower_median_of_all_but_one(count):
    state, job = s.State(), a_job(units=1)
    events.peers_known(state, {CLASS: {}})
    events.job_started(state, job)
    measured = {}
    for number in range(3 * count):  # ties among them, and each measured three times
        peer, unit_s = PeerId(f"p{number % count}"), 1.0 + (7 * number) % 4
        events._measure(state, job, peer, unit_s)
        measured = {p: speed.unit_s for p, speed in state.speeds[job.kind].items()}
        for but in (None, *measured, PeerId("nobody")):
            others = [each for p, each in measured.items() if p != but]
            expected = median_low(others) if others else None
            assert estimates.typical_s(state, job, but) == expected
    assert len(measured) == count


def test_a_peer_s_time_is_estimated_by_the_claim_of_the_device_that_it_bids_with():
    state, job = s.State(), a_job(units=9)
    known, slow, fast = map(PeerId, ("known", "slow", "fast"))
    events.peers_known(state, {CLASS: dict.fromkeys((known, slow, fast), s.Facts(rate=1e12))})
    events.job_started(state, job)
    events._measure(state, job, known, 1.0)
    assert estimates.unit_s(state, job, slow) == 1.0
    for peer, rate in ((slow, 8e11), (fast, 1.25e12)):
        events.bid_came(state, "j", peer, s.Offer(1.0, 10, 10, rate=rate), 0.0)
    assert estimates.unit_s(state, job, slow) == 1.25
    assert estimates.unit_s(state, job, fast) == 0.8


# --- one slow peer, and the end of a job --------------------------------------------------


@pytest.mark.parametrize("unit_s", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("units", [20, 50, 200, 2000])
def test_a_peer_that_is_ten_times_slower_hardly_delays_a_job(units, unit_s):
    peers = [*even(3, unit_s), Peer("slow", 10 * unit_s)]
    simulation = Simulation(*peers)
    simulation.job("j", units)
    ended_s = simulation.run()
    assert ended_s <= 1.3 * ideal_s(units, *(peer.unit_s for peer in peers))
    assert len(simulation.results["j"]) == units
    assert simulation.units_run - units <= COPIES_SHARE * units + COPIES_FEW


@pytest.mark.parametrize("units", [50, 200])
def test_so_it_is_where_peers_know_no_batches(units):
    peers = [*even(3, batch_max=1, in_flight_max=2), Peer("slow", 10.0, batch_max=1)]
    simulation = Simulation(*peers)
    simulation.job("j", units)
    assert simulation.run() <= 1.3 * ideal_s(units, 1, 1, 1, 10)


@pytest.mark.parametrize(("slow_s", "takes"), [(0.6, 1), (5.0, 0)])
def test_a_slow_peer_gets_nothing_that_a_faster_one_would_end_sooner(slow_s, takes):
    state, job = s.State(), a_job(units=2)
    events.peers_known(state, {CLASS: {"fast": s.Facts(), "slow": s.Facts()}})
    events.job_started(state, job)
    events.units_read(state, "j", [0, 1], more=False, near={})
    state.speeds[job.kind] = {"fast": s.Speed(0.4), "slow": s.Speed(slow_s)}
    leases = {}
    for peer in ("fast", "slow"):
        events.bid_came(state, "j", peer, s.Offer(1.0, 10, 10, batch_max=10), 0.0)
        leases[lease_granted(state, "j", peer, 0.0)] = peer
    handed = Counter()
    while actions := plan(state, 0.0).actions:
        for action in actions:
            events.apply(state, action, 0.0)
            if isinstance(action, do.HandOver):
                handed[leases[action.lease]] += len(action.units)
    assert handed == Counter(fast=2 - takes, slow=takes)


def a_peer_with_places(at_once, units=8):
    """A job whose units take 10 s each, and a lease at a peer that runs some at a time."""
    state, job = s.State(), a_job(units=units)
    events.peers_known(state, {CLASS: {"p": s.Facts(rtt_s=0.0)}})
    events.job_started(state, job)
    events.units_read(state, "j", list(range(units)), more=False, near={})
    state.speeds[job.kind] = {"p": s.Speed(10.0)}
    offer = s.Offer(1.0, 100, 100, batch_max=10, at_once=at_once)
    events.bid_came(state, "j", "p", offer, 0.0)
    lease_granted(state, "j", "p", 0.0)
    return state, job


def handed_over(state, now_s):
    """The batches that go out now."""
    batches = []
    while actions := plan(state, now_s).actions:
        for action in actions:
            events.apply(state, action, now_s)
            if isinstance(action, do.HandOver):
                batches.append(action.batch)
    return batches


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_as_many_long_units_are_out_as_a_peer_runs_at_once_and_the_next_one_just_in_time(
    at_once,
):
    state, job = a_peer_with_places(at_once)
    first = handed_over(state, 0.0)
    assert len(first) == at_once
    assert handed_over(state, 5.0) == []
    assert len(handed_over(state, 9.5)) == 1  # its inputs arrive while those run
    for batch in first:
        events.came_back(state, batch, 10.0, 1)
    assert state.speeds[job.kind]["p"].unit_s == pytest.approx(
        10.0
    )  # each of them took so long


def test_a_peer_is_free_when_the_first_of_its_places_is():
    state, _ = a_peer_with_places(2)
    first, second = handed_over(state, 0.0)
    assert estimates.ends(state, "p", 1.0) == {first: 10.0, second: 10.0}
    events.came_back(state, first, 8.0, 1)
    assert estimates.free_at_s(state, "p", 8.0) == 8.0


def test_a_unit_that_one_peer_called_an_error_is_taken_to_another_one_at_once():
    state, job = s.State(), a_job(units=1)

    def done_at(now_s):
        begun = []
        while actions := plan(state, now_s).actions:
            for action in actions:
                events.apply(state, action, now_s)
                begun.append(action)
        return begun

    events.peers_known(state, {CLASS: {"first": s.Facts(rtt_s=0.0)}})
    events.job_started(state, job)
    done_at(0.0)
    events.units_read(state, "j", [0], more=False, near={})
    events.bid_came(state, "j", "first", s.Offer(1.0, 10, 10), 0.0)
    lease = lease_granted(state, "j", "first", 0.0)
    (batch,) = [action.batch for action in done_at(0.0) if isinstance(action, do.HandOver)]
    events.peers_known(state, {CLASS: {"first": s.Facts(rtt_s=0.0), "other": s.Facts()}})
    events.came_back(state, batch, 1.0, 1)
    events.failed(state, batch, 0)
    events.batch_over(state, batch)
    assert do.Call("j", ("other",), 1) in done_at(1.0)
    released = do.Release("j", lease)
    assert released not in done_at(2.9)
    assert released in done_at(3.1)  # it takes nothing that waits, and is not kept for it


def test_small_units_go_many_in_a_message_and_large_ones_alone():
    small = Simulation(*even(2, 0.001))
    small.job("j", 5000)
    small.run()
    assert small.state.next_batch < 5000 / 40
    large = Simulation(*even(2, 3 * BATCH_S))
    large.job("j", 20)
    large.run()
    assert large.state.next_batch == large.units_run


def test_a_cold_peer_is_not_taken_for_a_slow_one_for_long():
    simulation = Simulation(*even(3, 0.1, cold_s=3.0))
    simulation.job("j", 600)
    assert simulation.run() <= 3.0 + 1.1 * 600 * 0.1 / 3


def short_jobs(simulation, count, units=12):
    for number in range(count):
        simulation.job(f"j{number}", units, at_s=2.0 * number)
    simulation.run()


def test_who_ends_no_unit_before_others_do_is_given_up_however_short_the_jobs_are():
    simulation = Simulation(*even(3, 0.05), Peer("slow_roller", 57.0))
    short_jobs(simulation, 60)
    assert set(simulation.dropped) == {"slow_roller"}
    held_s = sum(simulation.ended_s[f"j{number}"] - 2.0 * number for number in range(60))
    assert len(simulation.dropped) <= 1 + held_s / estimates.COLD_PEER_S


def test_who_was_fast_and_is_overtaken_again_and_again_is_given_up():
    simulation = Simulation(*even(3, 0.05), Peer("turns", 0.05))
    simulation.at(9.9, lambda: setattr(simulation.peers["turns"], "unit_s", 57.0))
    short_jobs(simulation, 20)
    assert set(simulation.dropped) == {"turns"}


@pytest.mark.parametrize("units", [12, 60])
@pytest.mark.parametrize(
    "honest",
    [
        Peer("as slow as it says", 0.5, rate=1e8),
        Peer("as fast as it says", 0.05, rate=1e9),
        Peer("cold", 0.05, cold_s=8.0),
    ],
    ids=lambda peer: peer.name,
)
def test_who_takes_what_it_says_is_not_given_up_though_others_overtake_it(honest, units):
    simulation = Simulation(*even(3, 0.05, rate=1e9), replace(honest))
    short_jobs(simulation, 60, units)
    assert simulation.dropped == []
    if units > 12:
        assert honest.name in simulation.state.speeds["p", CLASS], "it was let end a unit"


def test_who_is_still_sent_the_program_is_not_given_up_but_who_fetches_for_ever_is():
    """The first unit waits for the program, which takes long where both are busy."""
    simulation = Simulation(
        *even(3, 0.05),
        Peer("fetches", 0.05, cold_s=30.0, fetches_s=25.0),
        Peer("dribbles", 1e6, fetches_s=1e8),
    )
    short_jobs(simulation, 120, 60)
    assert set(simulation.dropped) == {"dribbles"}
    assert "fetches" in simulation.state.speeds["p", CLASS], "it was let end a unit"


# --- churn -----------------------------------------------------------------------------------


def test_what_a_peer_had_when_it_died_is_run_by_others():
    simulation = Simulation(*even(4))
    simulation.job("j", 100)
    simulation.at(7.3, simulation.down, "p0")
    simulation.at(11.1, simulation.down, "p1")
    simulation.at(20.0, simulation.comes_up, "p0")
    assert simulation.run() < 45
    assert len(simulation.results["j"]) == 100


def test_a_job_ends_though_a_peer_takes_units_and_answers_nothing_any_more():
    simulation = Simulation(*even(3, 0.05))
    simulation.job("j", 1000)
    simulation.at(2.0, simulation.hangs, "p0")
    assert simulation.run() < 2.0 + 1000 * 0.05 / 2 + 5
    assert simulation.units_run - 1000 <= COPIES_SHARE * 1000 + COPIES_FEW


def test_a_single_unit_at_a_peer_that_hangs_is_run_again_by_another():
    simulation = Simulation(Peer("good", 1.0, rtt_s=0.5), Peer("bad", 1.0))
    simulation.hangs("bad")
    simulation.job("j", 1)
    assert simulation.run() < 60
    assert simulation.results["j"]


def test_a_job_waits_for_peers_that_come_later():
    simulation = Simulation(Peer("late", 1.0, up=False))
    simulation.job("j", 3)
    simulation.at(100.0, simulation.comes_up, "late")
    assert simulation.run() == pytest.approx(103, abs=1)


def test_a_unit_that_kills_every_provider_fails_and_spares_the_others_of_its_batch():
    simulation = Simulation(*even(2, 0.1))
    simulation.job("j", 30)
    poison = 7
    ran = simulation._ran

    def killing(peer, generation, turn, entry):
        if peer.generation == generation and entry["left"][0] == poison:
            simulation.down(peer.name)
            simulation.at(simulation.now_s + 0.5, simulation.comes_up, peer.name)
        else:
            ran(peer, generation, turn, entry)

    simulation._ran = killing
    assert simulation.run() < 1000
    assert simulation.failed == [("j", poison)]
    assert len(simulation.results["j"]) == 30


# --- fairness -------------------------------------------------------------------------------


def test_a_short_job_behind_a_long_one_gets_its_share_at_once():
    simulation = Simulation(*even(2, 0.1))
    simulation.job("long", 3000)
    simulation.job("short", 100, at_s=20.0)
    simulation.run()
    alone_s = 100 * 0.1 / 2
    assert simulation.ended_s["short"] - 20.0 <= 2 * alone_s + 2 * BATCH_S + 0.5
    assert simulation.ended_s["long"] <= 3100 * 0.1 / 2 * 1.02


def test_a_short_job_of_the_same_program_behind_long_units_waits_for_one_of_them_only():
    simulation = Simulation(*even(2, 1.0))
    simulation.job("long", 40, factor=10.0)
    simulation.job("short", 2, at_s=25.0, program="q", factor=0.1)
    simulation.run()
    assert simulation.ended_s["short"] - 25.0 <= 10.0 + 1.0


def test_shares_go_by_priority():
    simulation = Simulation(*even(2, 0.1))
    simulation.job("high", 600, priority=1)
    simulation.job("low", 600)
    simulation.run()
    by_then = sum(
        end <= simulation.ended_s["high"] for end in simulation.results["low"].values()
    )
    assert by_then == pytest.approx(300, rel=0.15)


def test_a_job_that_had_nothing_to_do_has_saved_up_nothing():
    simulation = Simulation(*even(1, 0.1))
    simulation.job("open", 1)
    simulation.job("steady", 600)
    simulation._checked = lambda job_id: (
        events.not_finished(simulation.state, job_id)
        if job_id == "open" and len(simulation.results["open"]) < 100
        else simulation._over(job_id)
    )

    def add():
        simulation.journal["open"] = dict.fromkeys(range(1, 100))
        events.units_ready(simulation.state, "open", 100)

    simulation.at(30.0, add)
    simulation.run()
    steady = simulation.results["steady"].values()
    assert sum(30.0 < end <= 40.0 for end in steady) == pytest.approx(50, abs=10)


# --- placement and outlook ------------------------------------------------------------------


def a_job(**more):
    return s.JobQueue("j", ("p", CLASS), CLASS, **more)


def test_the_score_prefers_fast_near_cheap_proven_peers_in_good_standing():
    job = a_job(unit_bytes=1_000_000)
    state = s.State(jobs={"j": job})
    state.offering = {
        CLASS: {
            "own": s.Facts(rtt_s=0.0),
            "near": s.Facts(rtt_s=0.01),
            "far": s.Facts(rtt_s=0.3),
            "bad": s.Facts(rtt_s=0.01, standing=0.2),
        }
    }
    cheap, dear = s.Offer(1.0, 10, 10), s.Offer(5.0, 10, 10)
    names = ["own", "near", "far", "bad"]
    for name in names:
        events.bid_came(state, "j", name, cheap, 0.0)
    scores = [score(state, job, name) for name in names]
    assert scores == sorted(scores)
    events.bid_came(state, "j", "own", dear, 0.0)
    assert score(state, job, "own") > score(state, job, "near")
    plain = score(state, job, "near")
    events.bid_came(state, "j", "near", s.Offer(1.0, 10, 10, proven=True), 0.0)
    assert score(state, job, "near") < plain
    state.speeds[job.kind] = {"near": s.Speed(9.0), "far": s.Speed(0.1)}
    assert score(state, job, "far") < score(state, job, "near")


def test_an_outlook_tells_what_each_peer_does():
    simulation = Simulation(*even(2), Peer("down", 1.0, up=False))
    simulation.job("j", 100)
    simulation.run(until_s=10.0)
    simulation.state.offering[CLASS]["down"] = s.Facts()
    job = simulation.state.jobs["j"]
    job.candidate("down").not_before_s = math.inf
    seen = outlook(simulation.state, job, 0, simulation.now_s)
    assert {peer.peer: peer.doing.value for peer in seen.peers} == {
        "p0": "leased",
        "p1": "leased",
        "down": "excluded",
    }
    assert seen.units_waiting + seen.units_out == 100 - len(simulation.results["j"])
    assert seen.ends_in_s == pytest.approx((100 - len(simulation.results["j"])) / 2, rel=0.2)
    assert seen.share == 1.0


@pytest.mark.parametrize(
    ("why", "said", "asked"),
    [
        ("price", 2, True),  # it has issued a new advert since
        ("price", 1, False),
        ("no_answer", 2, False),  # that is no opinion which it could have changed
    ],
)
def test_who_refused_and_has_something_new_to_say_is_asked_again_at_once(why, said, asked):
    state = s.State(jobs={"j": a_job()})
    events.peers_known(state, {CLASS: {"p0": s.Facts(said=1)}})
    events.refused(state, "j", "p0", why, 20.0, setbacks=3)
    events.peers_known(state, {CLASS: {"p0": s.Facts(said=said)}})
    candidate = state.jobs["j"].candidate("p0")
    assert (candidate.not_before_s <= 0.0, candidate.setbacks == 0) == (asked, asked)


def test_what_is_kept_of_peers_is_bounded(monkeypatch):
    monkeypatch.setattr(events, "SPEEDS_LIMIT", 3)
    state, job = s.State(), a_job()
    events.job_started(state, job)
    for name in "abcabde":
        events._measure(state, job, PeerId(name), 1.0)
    assert [*state.speeds[job.kind]] == ["b", "d", "e"]
    for name in "abc":
        state.line(PeerId(name))
    state.line(PeerId("b")).batches[s.BatchId(1)] = None
    events.peers_known(state, {"fp32": {PeerId("c"): s.Facts()}})
    assert sorted(state.lines) == ["b", "c"]
