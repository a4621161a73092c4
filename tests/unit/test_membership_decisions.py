from shoal.node.membership import (
    BACK_OFF_FIRST_S,
    BACK_OFF_LIMIT_S,
    DIALS_AT_ONCE,
    LINKS_WANTED,
    BackOff,
    advert_gap_s,
    advert_interval_s,
    advert_lifetime_s,
    choose_dials,
    exchange_interval_s,
)
from shoal.protocol.limits import ADVERT_LIFETIME_LIMIT_S


def dials(**changes):
    arguments = {
        "bootstrap": [],
        "known": [],
        "remembered": [],
        "linked": set(),
        "ready": lambda peer: True,
        **changes,
    }
    return choose_dials(**arguments)


def test_a_bootstrap_peer_that_is_not_linked_is_always_dialled():
    many = {f"peer{k}" for k in range(LINKS_WANTED + 3)}
    assert dials(bootstrap=["seed"], linked=many) == ["seed"]
    assert dials(bootstrap=["seed"], linked={"seed"}) == []


def test_known_nodes_are_dialled_while_links_are_wanting():
    few = {f"peer{k}" for k in range(LINKS_WANTED - 1)}
    assert dials(known=["new"], linked=few) == ["new"]
    assert dials(known=["new"], linked=few | {"one more"}) == []


def test_remembered_peers_are_dialled_only_by_a_node_without_links():
    assert dials(remembered=["old"]) == ["old"]
    assert dials(remembered=["old"], linked={"any"}) == []


def test_a_peer_that_backs_off_is_left_alone():
    assert dials(bootstrap=["a", "b"], ready=lambda peer: peer == "b") == ["b"]


def test_nobody_is_dialled_twice_and_few_at_once():
    names = [f"peer{k}" for k in range(20)]
    chosen = dials(bootstrap=names[:3], known=names)
    assert len(chosen) == len(set(chosen)) == DIALS_AT_ONCE
    assert chosen[:3] == names[:3]


def test_back_off_doubles_to_its_limit_and_never_ends():
    back_off, waits = BackOff(), []
    for _ in range(12):
        back_off.failed(now_s=100.0, jitter=0.5)
        waits.append(back_off.over_at_s() - 100.0)
    assert waits[0] == BACK_OFF_FIRST_S
    assert waits[1] == 2 * BACK_OFF_FIRST_S
    assert waits[-1] == BACK_OFF_LIMIT_S
    assert back_off.over_at_s(limit_s=3.0) == 103.0


def test_gossip_costs_at_most_a_hundredth_of_a_core_in_large_networks():
    for nodes in (100, 1_000, 3_000):
        messages_per_s = nodes / advert_interval_s(nodes)
        assert messages_per_s * 0.0028 <= 0.01 + 1e-9


def test_a_peer_that_comes_and_goes_makes_gossip_cost_little_more():
    for nodes in (1, 100, 3_000):
        assert advert_interval_s(nodes) / advert_gap_s(nodes) <= 15
    assert advert_gap_s(3) <= 1.0


def test_an_advert_outlives_three_lost_successors_up_to_a_thousand_nodes():
    for nodes in (1, 10, 100, 1_000):
        assert advert_lifetime_s(nodes) >= 4 * advert_interval_s(nodes)
        assert advert_lifetime_s(nodes) <= ADVERT_LIFETIME_LIMIT_S
    assert advert_lifetime_s(1_000) <= 20 * 60


def test_small_networks_compare_tables_every_few_seconds():
    assert exchange_interval_s(3) <= 3
