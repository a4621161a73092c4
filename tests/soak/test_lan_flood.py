"""What a hostile neighbour on the local network can do to a daemon: nothing much."""

import os
import subprocess
import sys
import time

import mdns_flood
import psutil
from daemons import eventually, peers_of
from links import Machines, lan_state, link_or_skip, near

FLOOD_S = 60.0 if float(os.environ.get("SHOAL_SOAK_S", "60")) >= 300 else 10.0
FOUND_LIMIT_S = 30.0
MEMORY_LIMIT_MB = 60.0
"""Of the caches of zeroconf, full: 10,000 records and as many questions."""


def memory_mb(node):
    return psutil.Process(node.process.pid).memory_info().rss / 1e6


def linked(node):
    with node.client() as client:
        return client.status().peers_linked


def test_a_flood_of_lies_and_garbage_harms_nobody():
    with link_or_skip(3) as link, Machines(link, 2) as machines:
        first, second = machines.nodes
        for node in machines.nodes:
            machines.start(node)
        for node in machines.nodes:
            machines.wait_ready(node)
        eventually(lambda: linked(first) == 1, FOUND_LIMIT_S, "found and linked")
        before_mb, slowest_s = memory_mb(first), 0.0
        words = (mdns_flood.__file__, str(FLOOD_S), "20000", link.hosts[2], link.hosts[1])
        command = [*link.inside(2), sys.executable, *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as flood:
            while flood.poll() is None:
                began = time.monotonic()
                with first.client() as client:
                    assert client.status().peers_linked == 1
                slowest_s = max(slowest_s, time.monotonic() - began)
                time.sleep(0.1)
            assert flood.returncode == 0
            said = flood.stdout.read().strip()
        print(
            f"\n{said} for {FLOOD_S:.0f} s: slowest status {slowest_s:.2f} s, memory "
            f"{before_mb:.0f} to {memory_mb(first):.0f} MB; now {lan_state(first)}"
        )
        assert memory_mb(first) < before_mb + MEMORY_LIMIT_MB
        assert peers_of(first) == {second.peer}
        assert near(first) <= {second.peer}
