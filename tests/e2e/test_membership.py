"""Which nodes a daemon lists, while others come, die, hang and return."""

import signal
import sqlite3
import time

from daemons import eventually, listed, peers_of, shoal

from shoal.crypto.identity import generate
from shoal.node.demo.swarm import Swarm

ACQUAINTED_LIMIT_S = 30.0
GONE_LIMIT_S = 30.0
"""Some seconds, and what a busy machine adds; its advert alone would last for 40 s."""


def others(swarm, node):
    return {other.peer for other in swarm.nodes if other is not node}


def all_list_each_other(swarm):
    return all(peers_of(node) >= others(swarm, node) for node in swarm.nodes)


def all_linked(swarm):
    """Whether each has a link to each: who has none to a peer learns late that it is gone."""

    def linked(node):
        with node.client() as client:
            return {view.peer for view in client.peers() if view.linked}

    return all(linked(node) >= others(swarm, node) for node in swarm.nodes)


def test_three_daemons_that_know_only_the_first_soon_list_each_other():
    with Swarm(3) as swarm:
        swarm.start_all()
        ready = time.monotonic()
        for node in swarm.nodes:
            limit_s = ACQUAINTED_LIMIT_S - (time.monotonic() - ready)
            eventually(
                lambda node=node: listed(node) == others(swarm, node), limit_s, "acquainted"
            )


def test_a_killed_peer_is_gone_soon_and_is_back_once_it_is_restarted(swarm):
    first, second, killed = swarm.nodes
    eventually(lambda: all_linked(swarm), 60, "linked")
    killed.kill()
    died = time.monotonic()
    for node in (first, second):
        limit_s = GONE_LIMIT_S - (time.monotonic() - died)
        eventually(lambda node=node: killed.peer not in peers_of(node), limit_s, "gone")
    assert second.peer in peers_of(first)
    swarm.start(killed)
    swarm.wait_ready(killed)
    eventually(lambda: all_list_each_other(swarm), 60, "back")
    with killed.client() as client:
        assert client.status().peer == killed.peer


def test_a_stopped_peer_is_gone_soon_and_is_back_once_it_goes_on(swarm):
    first, second, stopped = swarm.nodes
    eventually(lambda: all_linked(swarm), 60, "linked")
    stopped.signal(signal.SIGSTOP)
    since = time.monotonic()
    for node in (first, second):
        limit_s = GONE_LIMIT_S - (time.monotonic() - since)
        eventually(lambda node=node: stopped.peer not in peers_of(node), limit_s, "gone")
    stopped.signal(signal.SIGCONT)
    eventually(lambda: all_list_each_other(swarm), 60, "back")


def test_a_restarted_node_that_has_no_bootstrap_peer_remembers_the_others(swarm):
    first = swarm.nodes[0]  # it alone is given no bootstrap peer
    eventually(lambda: all_linked(swarm), 60, "linked")
    first.kill()
    for node in swarm.nodes[1:]:
        eventually(lambda node=node: first.peer not in peers_of(node), GONE_LIMIT_S, "gone")
    first.address = ""  # another port than the others know, so that they cannot dial it
    swarm.start(first)
    swarm.wait_ready(first)
    eventually(lambda: all_list_each_other(swarm), 60, "found again")


def test_a_restarted_node_remembers_somebody_alive_behind_many_who_are_dead(swarm):
    first, second, third = swarm.nodes
    eventually(lambda: all_list_each_other(swarm), 60, "acquainted")
    first.kill()
    second.kill()
    with sqlite3.connect(first.home / "state.sqlite") as state:
        for number in range(8):  # seen after those that are alive: looked for before them
            place = "127.0.0.1/tcp/1" if number % 2 else f"10.255.255.{number}/tcp/1"
            state.execute(
                "INSERT INTO peers (peer, addresses, seen_at) VALUES (?, ?, ?)",
                (generate().peer_id, f'["/ip4/{place}"]', time.time() + 100),
            )
    state.close()
    first.address = ""
    swarm.start(first)
    swarm.wait_ready(first)
    eventually(lambda: peers_of(first) >= {third.peer}, 60, "found again")
    with first.client() as client:
        dead = [seed for seed in client.status().joining.seeds if not seed.linked]
    assert len(dead) >= 8


def test_a_node_that_is_alone_says_why(stranger):
    nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{generate().peer_id}"
    shoal("down", node=stranger)
    flags = ("--detach", "--listen=/ip4/127.0.0.1/tcp/0", "--provide=no")
    more = (f"--bootstrap={nobody}", "--bootstrap=/dnsaddr/shoal.invalid")
    assert shoal("up", *flags, *more, node=stranger).code == 0
    said = eventually(
        lambda: "refused" in (text := shoal("status", node=stranger).stdout) and text, 60
    )
    (line,) = [one for one in said.splitlines() if one.startswith("joining")]
    assert "bootstrap peer" in line
    log = stranger.log_path.read_text()
    assert log.count("a bootstrap peer cannot be reached") >= 1
    assert f"{nobody.partition('/p2p/')[0]}: connection refused" in log


def test_a_node_that_knows_nobody_joins_by_one_address(swarm, stranger):
    alone = shoal("peers", node=stranger)
    assert (alone.code, alone.stdout) == (0, "")
    assert "bootstrap" in alone.stderr
    joined = shoal("peers", f"--connect={swarm.nodes[2].address}", node=stranger)
    assert joined.code == 0, joined
    everybody = {node.peer for node in swarm.nodes}
    eventually(lambda: peers_of(stranger) >= everybody, 60, "joined")


def test_an_address_where_nobody_answers_is_said_so(stranger):
    nobody = f"/ip4/127.0.0.1/tcp/1/p2p/{generate().peer_id}"
    ended = shoal("peers", f"--connect={nobody}", node=stranger)
    assert ended.code == 1
    assert "connection refused" in ended.stderr
    assert "next:" in ended.stderr
