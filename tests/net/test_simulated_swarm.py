"""What becomes of whole networks, with the real machine in virtual time."""

import pytest
from simulated_swarm import Swarm, measure, table

from shoal.protocol.dialling import LINKS_LIMIT, LINKS_WANTED


def star(nodes, *, seed=1, pause_s=1.0):
    """A network in which everybody was told of one bootstrap peer."""
    swarm = Swarm(seed)
    first = swarm.join()
    for _ in range(nodes - 1):
        swarm.run(pause_s)
        swarm.join([first])
    return swarm, first


def until(swarm, condition, limit_s):
    """Let time pass until ``condition`` holds; gives how long that took."""
    since_s = swarm.now_s
    while not condition():
        assert swarm.now_s < since_s + limit_s, f"not within {limit_s} s"
        swarm.run(0.5)
    return swarm.now_s - since_s


def all_list_all(swarm):
    return min(swarm.completeness()) == 1.0


def test_twenty_nodes_with_one_bootstrap_peer_list_each_other_soon():
    swarm, _ = star(20, pause_s=0.2)
    until(swarm, lambda: all_list_all(swarm), 30)


def test_who_joins_by_another_peer_after_the_bootstrap_peer_died_is_listed_by_all():
    swarm, first = star(20, pause_s=0.2)
    until(swarm, lambda: all_list_all(swarm), 30)
    swarm.kill(first)
    for _ in range(3):
        swarm.join([swarm.living[5]])
    until(swarm, lambda: all_list_all(swarm), 30)


def test_a_star_becomes_a_mesh_that_outlives_its_centre():
    swarm, first = star(100)
    swarm.run(60)
    links = [len(node.member.links) for node in swarm.living]
    assert min(links) >= LINKS_WANTED
    assert max(links) <= LINKS_LIMIT + 3  # several were greeted at once
    swarm.kill(first, silent=True)
    swarm.run(30)
    assert is_connected(swarm)
    until(swarm, lambda: swarm.listed_by(first) == 0, 200)
    assert all_list_all(swarm)
    newcomer = swarm.join([swarm.living[50]])
    until(swarm, lambda: swarm.listed_by(newcomer) == 1, 60)


@pytest.mark.parametrize(
    ("sizes", "seed"),
    [((60, 40), 1), *((sizes, k) for sizes in [(10, 10), (1, 3), (1, 1)] for k in range(3))],
)
def test_halves_that_were_cut_apart_for_two_minutes_merge_within_one(sizes, seed):
    swarm, _ = star(sum(sizes), seed=seed, pause_s=0.5)
    until(swarm, lambda: all_list_all(swarm), 120)
    nodes = list(swarm.living)
    swarm.random.shuffle(nodes)
    swarm.cut([nodes[: sizes[0]], nodes[sizes[0] :]])
    swarm.run(120)
    assert max(swarm.completeness()) < 1
    swarm.heal()
    until(swarm, lambda: all_list_all(swarm), 60)


def test_halves_that_were_cut_apart_for_an_hour_meet_again():
    swarm, _ = star(10, pause_s=0.5)
    until(swarm, lambda: all_list_all(swarm), 60)
    swarm.cut([swarm.living[:5], swarm.living[5:]])
    swarm.run(3600)
    swarm.heal()
    until(swarm, lambda: all_list_all(swarm), 180)


def test_a_machine_that_restarts_alone_is_found_by_what_others_remember():
    swarm, first = star(5)
    swarm.run(60)
    swarm.kill(first)
    swarm.run(300)
    back = swarm.join(remembered=swarm.living[:1])
    until(swarm, lambda: swarm.listed_by(back) == 1, 20)


def test_a_network_that_changes_all_the_time_stays_known_and_cheap():
    results = [
        measure(10, warm_s=60, churn_s=600, churn_share=1.0),
        measure(100, warm_s=120, churn_s=450),
    ]
    print("\n" + table(results))
    for result in results:
        assert result.known_s
        assert max(result.known_s) <= 60
        assert result.gone_s
        assert max(result.gone_s) <= 200
        assert result.unknown == result.lingering == 0
        assert max(result.sent_mean, result.received_mean) <= 2048
        assert result.cpu_mean <= 0.01
        assert result.completeness > 0.99


def test_a_run_can_be_repeated():
    def what_became(seed):
        swarm, first = star(15, seed=seed)
        swarm.kill(first)
        swarm.run(60)
        return [
            (node.cost.sent, node.cost.messages, sorted(node.member.links))
            for node in swarm.living
        ]

    assert what_became(1) == what_became(1) != what_became(2)


def is_connected(swarm):
    """Whether every node is reached from every other over links."""
    reached, edge = set(), [swarm.living[0]]
    while edge:
        node = edge.pop()
        if node not in reached:
            reached.add(node)
            edge += [other for other in node.connected if other.alive]
    return len(reached) == len(swarm.living)
