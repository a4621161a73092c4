"""Daemons on one link that find each other by multicast DNS.

Each lives in a network namespace of its own, with a bridge between them.
"""

import time

import pytest
from daemons import eventually, peers_of
from links import Machines, lan_state, link_or_skip, near

from shoal.node.swarm_key import make_key, save_new_key

FOUND_LIMIT_S = 60.0
SILENT_S = 3.0


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
