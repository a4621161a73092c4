"""Many daemons that join by one address, lose it, take in others, and are cut in two.

Short by default; with ``SHOAL_SOAK_S`` of 300 or more with twenty daemons and a cut of
two minutes. The daemons take no work. Each half lives in a network namespace of its own,
with a bridge between them that can be taken out: packets are lost then, as when a switch
dies. Where namespaces are not to be had, all live on loopback, and nothing is cut.
"""

import os
import time

import pytest
from daemons import eventually, peers_of
from links import link_or_none

from shoal.crypto import identity
from shoal.node.demo.swarm import Node, Swarm

FULL = float(os.environ.get("SHOAL_SOAK_S", "60")) >= 300
NODES = 20 if FULL else 6
NEWCOMERS = 3 if FULL else 2
CUT_S = 120.0 if FULL else 25.0
ACQUAINTED_LIMIT_S = 30.0
MERGED_LIMIT_S = 60.0


class Halves(Swarm):
    """Daemons of which every second one lives in the other namespace."""

    def __init__(self, count, link):
        super().__init__(count, settings=["--provide=no"])
        self.link = link
        self.by = {}

    def side(self, node):
        """In which of the two namespaces a daemon lives."""
        return node.number % 2

    def _before(self, node):
        return self.link.inside(self.side(node)) if self.link else ()

    def _listen(self, node):
        host = self.link.hosts[self.side(node)] if self.link else "127.0.0.1"
        return f"/ip4/{host}/tcp/0"

    def _bootstrap(self, node):
        return (self.by[node.number],) if node.number in self.by else super()._bootstrap(node)

    def add(self):
        """One more daemon, which is given the address of one in its half alone.

        Else it would dial that one over the cut for ever, and the halves would merge by it.
        """
        node = Node(len(self.nodes) + 1, self._root / f"node{len(self.nodes) + 1}", None)
        node.home.mkdir(mode=0o700)
        key = identity.generate()
        identity.save(key, node.home / "identity.key")
        node.peer = key.peer_id
        others = (n for n in self.nodes if n.running and self.side(n) == self.side(node))
        self.by[node.number] = next(others).address
        self.nodes.append(node)
        return node


@pytest.fixture(scope="module")
def link():
    with link_or_none(2) as found:
        yield found


@pytest.fixture(scope="module")
def swarm(link):
    with Halves(NODES, link) as found:
        began = time.monotonic()
        found.start_all()
        print(f"\n{NODES} daemons started in {time.monotonic() - began:.1f} s")
        yield found


def running(swarm):
    return [node for node in swarm.nodes if node.running]


def seconds_until_acquainted(nodes, limit_s):
    """How long it takes until each of ``nodes`` lists all the others."""
    began = time.monotonic()
    for node in nodes:
        others = {other.peer for other in nodes if other is not node}
        left_s = limit_s - (time.monotonic() - began)
        eventually(
            lambda node=node, others=others: others <= peers_of(node),
            left_s,
            f"daemon {node.number} lists all of {len(others)} others",
        )
    return time.monotonic() - began


def test_daemons_with_one_address_all_list_each_other(swarm):
    took_s = seconds_until_acquainted(swarm.nodes, ACQUAINTED_LIMIT_S)
    print(f"{NODES} daemons with one address: all list all after {took_s:.1f} s")


def test_newcomers_join_by_another_once_the_first_is_dead(swarm):
    seconds_until_acquainted(running(swarm), ACQUAINTED_LIMIT_S)
    swarm.nodes[0].kill()
    newcomers = [swarm.add() for _ in range(NEWCOMERS)]
    for node in newcomers:
        swarm.start(node)
    for node in newcomers:
        swarm.wait_ready(node)
    took_s = seconds_until_acquainted(running(swarm), ACQUAINTED_LIMIT_S)
    print(f"the first killed, {NEWCOMERS} more by others: all list all after {took_s:.1f} s")


def test_two_halves_that_were_cut_apart_merge(swarm, link):
    if link is None:
        pytest.skip("network namespaces are not to be had: root and iproute2 are needed")
    nodes = running(swarm)
    seconds_until_acquainted(nodes, ACQUAINTED_LIMIT_S)
    link.cut(1)
    began = time.monotonic()
    try:
        if not FULL:  # else by expiry too
            here = [node for node in nodes if swarm.side(node) == 0]
            there = {node.peer for node in nodes} - {node.peer for node in here}
            eventually(lambda: all(not there <= peers_of(n) for n in here), CUT_S, "apart")
        time.sleep(max(0.0, CUT_S - (time.monotonic() - began)))
        left = [len(peers_of(node)) for node in nodes]
    finally:
        link.mend(1)
    took_s = seconds_until_acquainted(nodes, MERGED_LIMIT_S)
    print(
        f"cut apart for {CUT_S:.0f} s, after which daemons listed {min(left)} to "
        f"{max(left)} of {len(nodes) - 1}: all list all {took_s:.1f} s after"
    )
