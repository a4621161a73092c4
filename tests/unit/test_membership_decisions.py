"""How often things are done, whom to dial, and when again: pure decisions."""

import pytest

from shoal.protocol.dialling import (
    ABSENT_LIMIT,
    ADDRESSES_LIMIT,
    BACK_OFF_FIRST_S,
    BACK_OFF_LIMIT_S,
    BOOTSTRAP_PLACES_LIMIT,
    DIALS_AT_ONCE,
    SCOUT_FIRST_S,
    SCOUT_LIMIT_S,
    BackOff,
    Places,
    choose_dials,
)
from shoal.protocol.limits import ADVERT_LIFETIME_LIMIT_S
from shoal.protocol.pace import (
    advert_gap_s,
    advert_lifetime_s,
    comparing_interval_s,
    gossip_gap_s,
    ping_interval_s,
    renewal_interval_s,
)

HERE = ("/ip4/10.0.0.1/tcp/1",)
THERE = ("/ip4/10.0.0.2/tcp/2",)


def dials(**changes):
    arguments = {
        "bootstrap": [],
        "known": [],
        "absent": [],
        "wanting": 0,
        "alone": False,
        "may_scout": False,
        "dialling": set(),
        **changes,
    }
    return choose_dials(**arguments)


def places(bootstrap=None, remembered=None, now_s=0.0):
    return Places(dict(bootstrap or {}), remembered or {}, lambda: 0.5, now_s)


# --- whom to dial ------------------------------------------------------------------


def test_known_nodes_are_dialled_as_far_as_links_are_wanting():
    assert dials(known=["a", "b", "c"], wanting=2) == ["a", "b"]
    assert dials(known=["a"], wanting=0) == []
    assert dials(known=["a"], wanting=-3) == []


def test_a_bootstrap_peer_that_is_not_in_the_table_is_dialled_whatever_links_there_are():
    assert dials(bootstrap=["seed"], wanting=-3) == ["seed"]


def test_a_node_alone_dials_whatever_it_has_heard_of_and_others_scout_one_by_one():
    assert dials(absent=["a", "b"], alone=True) == ["a", "b"]
    assert dials(absent=["a", "b"], may_scout=True) == ["a"]
    assert dials(absent=["a", "b"]) == []


def test_nobody_is_dialled_twice_and_few_at_once():
    names = [f"peer{k}" for k in range(20)]
    chosen = dials(bootstrap=names[:3], known=names, wanting=20)
    assert len(chosen) == len(set(chosen)) == DIALS_AT_ONCE
    assert chosen[:3] == names[:3]
    assert dials(known=names, wanting=20, dialling=set(names[:3])) == names[3:4]
    assert dials(known=names, wanting=20, dialling=set(names)) == []


# --- and when again ------------------------------------------------------------------


def test_back_off_doubles_to_its_limit_and_never_ends():
    back_off, waits = BackOff(), []
    for _ in range(12):
        back_off.failed(now_s=100.0, jitter=0.5)
        waits.append(back_off.over_at_s() - 100.0)
    assert waits[0] == BACK_OFF_FIRST_S
    assert waits[1] == 2 * BACK_OFF_FIRST_S
    assert waits[-1] == BACK_OFF_LIMIT_S
    assert back_off.over_at_s(limit_s=3.0) == 103.0


def test_remembered_peers_are_scouted_for_at_once():
    assert places(remembered={"old": HERE}).due(0.0) == ["old"]


def test_a_lost_peer_is_scouted_for_for_ever_and_ever_less_often():
    scouted = places()
    scouted.lost("gone", HERE, 0.0)
    absent, now_s, waits = scouted.absent["gone"], 0.0, []
    for _ in range(200):
        waits.append(absent.due_at_s - now_s)
        now_s = absent.due_at_s
        assert scouted.due(now_s) == ["gone"]
        assert scouted.due(now_s - 0.1) == []
        absent.tried(now_s, jitter=0.5)
    assert waits[0] == SCOUT_FIRST_S
    assert waits == sorted(waits)
    assert waits[-1] == SCOUT_LIMIT_S


def test_those_who_lose_a_peer_at_once_do_not_all_scout_for_it_at_once():
    scouted = places()  # which always draws 0.5
    scouted.lost("gone", HERE, 0.0, spread_s=100.0)
    assert scouted.absent["gone"].due_at_s == SCOUT_FIRST_S + 50.0


def test_a_peer_that_was_cut_off_for_two_minutes_is_tried_again_within_half_a_minute():
    scouted = places()
    scouted.lost("gone", HERE, 0.0)
    for jitter in (0.0, 0.999):
        scouted.absent["gone"].tried(120.0, jitter)
        assert scouted.absent["gone"].due_at_s <= 150.0


def test_who_was_lost_last_is_scouted_for_first():
    scouted = places(remembered={"long ago": HERE}, now_s=-1000.0)
    scouted.lost("now", HERE, 0.0)
    assert scouted.due(100.0) == ["now", "long ago"]


def test_who_is_in_the_table_is_not_scouted_for():
    scouted = places(remembered={"back": HERE})
    scouted.found("back")
    assert scouted.due(1000.0) == []
    assert scouted.addresses("back") == HERE  # for the day its advert is gone


def test_places_that_are_heard_of_are_tried_at_once_and_the_newest_address_first():
    scouted = places()
    scouted.hear_of("new", HERE, 10.0, bootstrap=False)
    assert scouted.due(10.0) == ["new"]
    scouted.absent["new"].tried(10.0, 0.5)
    scouted.hear_of("new", THERE, 11.0, bootstrap=False)
    assert scouted.due(11.0) == ["new"]
    assert scouted.addresses("new") == THERE + HERE
    scouted.hear_of("seed", HERE, 12.0, bootstrap=True)
    scouted.hear_of("seed", THERE, 12.0, bootstrap=True)
    assert scouted.bootstrap == {"seed": THERE + HERE}


def test_places_are_bounded():
    scouted = places()
    for number in range(2 * ABSENT_LIMIT):
        scouted.lost(f"peer{number}", HERE, 0.0)
        scouted.hear_of(f"seed{number}", HERE, 0.0, bootstrap=True)
        scouted.hear_of("seed0", [f"/ip4/10.0.0.1/tcp/{number}"], 0.0, bootstrap=True)
        scouted.hear_of("peer0", [f"/ip4/10.0.0.1/tcp/{number}"], 0.0, bootstrap=False)
    assert len(scouted.absent) == ABSENT_LIMIT
    assert len(scouted.bootstrap) == BOOTSTRAP_PLACES_LIMIT
    assert len(scouted.addresses("seed0")) == ADDRESSES_LIMIT
    assert len(scouted.addresses("peer0")) <= ADDRESSES_LIMIT


def test_a_peer_without_addresses_is_not_scouted_for():
    scouted = places()
    scouted.lost("nowhere", (), 0.0)
    assert scouted.absent == {}


# --- pace ------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", [1, 10, 100, 1_000, 3_000])
def test_an_advert_outlives_two_lost_renewals(nodes):
    assert advert_lifetime_s(nodes) >= 3 * renewal_interval_s(advert_lifetime_s(nodes))
    assert advert_lifetime_s(nodes) <= ADVERT_LIFETIME_LIMIT_S


@pytest.mark.parametrize("nodes", [1, 10, 100, 1_000, 3_000])
def test_news_can_go_round_several_times_in_the_life_of_an_advert(nodes):
    assert advert_lifetime_s(nodes) >= 12 * comparing_interval_s(nodes)


def test_the_dead_are_forgotten_within_20_minutes_in_a_network_of_a_thousand():
    assert advert_lifetime_s(1_000 + 170) <= 20 * 60  # the dead of 17 minutes among them
    assert advert_lifetime_s(10) <= 60


def test_a_digest_costs_the_same_bytes_per_second_however_large_the_network_is():
    for nodes in (100, 1_000, 4_096):
        assert 16 * nodes / comparing_interval_s(nodes) <= 201


def test_in_small_networks_what_changed_is_gossiped_and_compared_within_seconds():
    assert advert_gap_s(3) <= 1.0
    assert gossip_gap_s(10) <= 1.0
    assert comparing_interval_s(3) <= 3


def test_changes_in_large_networks_go_by_comparison_and_not_by_gossip():
    for nodes in (100, 1_000, 3_000):
        copies_per_s = 5 * nodes / gossip_gap_s(nodes)
        assert copies_per_s * 1_200 <= 850  # bytes a second, if every node always changes


def test_a_link_that_hangs_is_given_up_within_10_s():
    for links in range(100):
        assert ping_interval_s(links) + 2.0 + 2.0 <= 9.0
