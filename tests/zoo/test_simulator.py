"""The simulator's short form, and what holds in it whatever is lost and whoever lies."""

from dataclasses import asdict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulator import Scenario, Swarm, liars_of
from simulator_measures import of_kinds, of_run, of_runs
from simulator_requester import DONE

from shoal.node.result_standing import Deed

SMALL = {"nodes": 60, "units": 1500, "requesters": 2, "job": 400}


def run(**terms):
    return Swarm(Scenario(**(SMALL | terms))).run()


def assert_whole(swarm):
    """Each unit was delivered once, and nobody was banned who signed nothing false."""
    counts, scenario = swarm.counts, swarm.scenario
    given_out = scenario.units // scenario.requesters * scenario.requesters
    assert counts.units == given_out - counts.given_up
    assert not counts.given_up
    for requester in swarm.requesters.values():
        assert set(requester.journal.values()) == {DONE}
    assert not counts.honest_banned
    for court in swarm.spread.courts.values():
        for peer in court.bans:
            assert swarm.world.nodes[peer].first_lie_s is not None


def test_of_sixty_nodes_under_auto_next_to_nothing_wrong_is_delivered():
    swarm = run(units=3000)
    assert_whole(swarm)
    assert swarm.counts.all_wrong("fetched") <= 0.001 * swarm.counts.units
    early, late = swarm.counts.extra_between(0.0, 0.25), swarm.counts.extra_between(0.75, 1.0)
    assert late < early


@pytest.mark.parametrize("verify", ["sample:1", "quorum:3"])
def test_where_every_unit_is_checked_nothing_wrong_is_delivered(verify):
    swarm = run(verify=verify)
    assert_whole(swarm)
    assert not swarm.counts.all_wrong("delivered")


def test_without_verification_lies_are_delivered():
    swarm = run(verify="receipt")
    assert swarm.counts.all_wrong("fetched") > 0.01 * swarm.counts.units
    assert not swarm.counts.extra


def test_of_45_percent_colluding_verifiers_those_who_vouched_for_a_liar_are_found_out():
    swarm = run(units=3000, colluding=0.45)
    assert_whole(swarm)
    vouched = [
        node
        for node in swarm.world.nodes.values()
        if node.kind.name == "colluding_verifier" and node.first_lie_s is not None
    ]
    banned = [node for node in vouched if node.peer in swarm.counts.bans]
    assert len(banned) >= 0.7 * len(vouched) > 0
    assert swarm.counts.all_wrong("fetched") <= 0.01 * swarm.counts.units


def test_with_30_percent_loss_and_45_percent_colluding_verifiers_no_honest_node_is_banned():
    swarm = run(loss=0.3, colluding=0.45)
    assert_whole(swarm)
    assert any(n.kind.name == "colluding_verifier" for n in swarm.world.nodes.values())


def test_the_same_seed_gives_the_same_run():
    one, two = run(units=400), run(units=400)
    assert of_runs([of_run(one)]) == of_runs([of_run(two)])
    assert of_kinds(one) == of_kinds(two)
    assert of_kinds(one) != of_kinds(run(units=400, seed=2))


def test_a_false_accuser_convinces_nobody_and_is_not_heard_again():
    swarm = run(liars=0.0, units=10)
    accuser, accused, *_ = swarm.world.nodes.values()
    for _ in range(3):
        swarm.spread.accuse_falsely(accuser, accused)
        swarm.world.run(lambda: False)
    courts = [swarm.spread.court(link) for link in accuser.links]
    assert courts
    for court in courts:
        (grounds,) = [
            g
            for g in court.standings.of(accuser.peer).reasons
            if g.deed is Deed.FALSE_ACCUSATION
        ]
        assert grounds.count == 1
        assert not court.bans
        assert court.standings.share(accuser.peer) < 0.2


def test_a_conviction_reaches_every_node_though_messages_are_lost():
    swarm = run(liars=0.0, units=10, loss=0.3)
    node, liar, *_ = swarm.world.nodes.values()
    swarm.spread.dispute(node, liar, is_false=True)
    swarm.world.run(lambda: False)
    banned = [liar.peer in swarm.spread.court(n).bans for n in swarm.world.nodes.values()]
    assert banned.count(True) >= len(banned) - 1  # the liar itself may hear of it or not


def test_all_kinds_that_provide_are_among_the_liars():
    names = {kind.name for kind in liars_of(40)}
    assert {"lazy", "honest_then_cheat", "colluder", "sybil", "equivocator"} <= names
    assert "honest" not in names


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(
        Scenario,
        seed=st.integers(0, 10_000),
        nodes=st.integers(12, 40),
        liars=st.sampled_from([0.0, 0.2, 0.5]),
        units=st.integers(20, 300),
        requesters=st.integers(1, 3),
        job=st.sampled_from([10, 60, 500]),
        verify=st.sampled_from(["auto", "sample:1", "sample:0.2", "quorum:2", "quorum:3"]),
        loss=st.sampled_from([0.0, 0.1, 0.3]),
        colluding=st.sampled_from([0.0, 0.45]),
    )
)
def test_whatever_is_lost_no_honest_node_is_banned_and_each_unit_is_delivered_once(scenario):
    swarm = Swarm(scenario).run()
    assert_whole(swarm)
    if scenario.liars == 0.0 and scenario.colluding == 0.0:
        assert not swarm.counts.all_wrong("delivered"), asdict(scenario)
        assert not swarm.counts.bans
