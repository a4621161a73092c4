"""Daemons on one link that find each other by multicast DNS, and what a hostile one can do.

Each lives in a network namespace of its own, with a bridge between them.
"""

import subprocess
import sys
import time

import mdns_flood
import psutil
import pytest
from daemons import eventually, peers_of, shoal
from links import link_or_skip

from shoal.node.demo.swarm import Swarm
from shoal.node.swarm_key import make_key, save_new_key

FOUND_LIMIT_S = 15.0
SILENT_S = 3.0


class Machines(Swarm):
    """Daemons that are told of nobody, each on a machine of its own."""

    def __init__(self, link, settings=("--lan=yes",)):
        super().__init__(3, settings=["--provide=no", *settings])
        self.link = link

    def _before(self, node):
        return self.link.inside(node.number - 1)

    def _listen(self, node):
        return "/ip4/0.0.0.0/tcp/4711"

    def _bootstrap(self, node):
        return ()


@pytest.fixture(scope="module")
def link():
    with link_or_skip(3) as found:
        yield found


@pytest.fixture(scope="module")
def machines(link):
    """Two daemons of the public network; the third is for tests to start."""
    with Machines(link) as found:
        for node in found.nodes[:2]:
            found.start(node)
        for node in found.nodes[:2]:
            found.wait_ready(node)
        yield found


def lan_state(node):
    with node.client() as client:
        return client.status().joining.lan


def test_two_daemons_on_one_link_that_are_told_of_nobody_find_each_other(machines):
    first, second, _ = machines.nodes
    eventually(lambda: peers_of(first) == {second.peer}, FOUND_LIMIT_S, "found")
    eventually(lambda: peers_of(second) == {first.peer}, FOUND_LIMIT_S, "found")
    assert "announced" in lan_state(first)


def test_a_private_network_on_the_same_link_is_neither_heard_nor_told_of(machines):
    first, _, third = machines.nodes
    save_new_key(make_key("lab"), third.home / "swarm.key")
    machines.start(third)
    machines.wait_ready(third)
    try:
        eventually(lambda: "announced" in lan_state(third), FOUND_LIMIT_S, "announced")
        time.sleep(SILENT_S)
        assert peers_of(third) == set()
        assert near(third) == set()
        assert third.peer not in near(first)
    finally:
        third.kill()
        (third.home / "swarm.key").unlink()


def test_a_daemon_with_lan_off_says_and_hears_nothing(link):
    with Machines(link, settings=["--lan=no"]) as silent:
        node = silent.nodes[2]
        silent.start(node)
        silent.wait_ready(node)
        time.sleep(SILENT_S)
        assert lan_state(node) == "off"
        assert peers_of(node) == set()
        ended = shoal("status", node=node)
        assert "alone: no bootstrap peer is set" in ended.stdout


def test_a_flood_of_lies_harms_nobody(machines, link):
    first, second, _ = machines.nodes
    eventually(lambda: peers_of(first) == {second.peer}, FOUND_LIMIT_S, "found")
    memory_before_mb = memory_mb(first)
    command = (sys.executable, mdns_flood.__file__, "8", "20000", link.hosts[2], link.hosts[1])
    flood = subprocess.Popen([*link.inside(2), *command], stdout=subprocess.PIPE, text=True)
    slowest_s = 0.0
    while flood.poll() is None:
        began = time.monotonic()
        with first.client() as client:
            assert client.status().peers_linked == 1
        slowest_s = max(slowest_s, time.monotonic() - began)
        time.sleep(0.1)
    eventually(lambda: "silent on the local network for" in lan_state(first), 10, "silent")
    print(
        f"\n{flood.stdout.read().strip()}: slowest status {slowest_s:.2f} s, memory "
        f"{memory_before_mb:.0f} to {memory_mb(first):.0f} MB; {lan_state(first)}"
    )
    assert slowest_s < 1.0
    assert memory_mb(first) < memory_before_mb + 40
    assert peers_of(first) == {second.peer}
    assert near(first) <= {second.peer}


def near(node):
    """The peers that a daemon has heard of on its local network."""
    with node.client() as client:
        seeds = client.status().joining.seeds
    return {seed.peer for seed in seeds if seed.source == "lan"}


def memory_mb(node):
    return psutil.Process(node.process.pid).memory_info().rss / 1e6
