"""A long thin link (100 ms, 50 Mbit/s): a large blob fills it, a unit takes few round trips.

Both daemons are real; between them, for libp2p and for the bulk port, is the proxy of
`shaping`. 256 MiB with ``SHOAL_SOAK_S`` of 300 or more, else 24 MiB.

A unit's round trips are counted by how much longer it takes than by the same link without
its delay: what the daemons and the worker do is in both. The proxy loses nothing; with loss
it is shown only where the machine's kernel has netem.
"""

import os
import statistics
import subprocess
import sys
import time

import models
import numpy as np
import pytest
from daemons import eventually
from shaping import free_port, shaped_link

from shoal import Executor
from shoal.node.demo.swarm import Swarm

FULL = float(os.environ.get("SHOAL_SOAK_S", "60")) >= 300
BLOB_BYTES = (256 if FULL else 24) << 20
LOSSY_BYTES = 8 << 20
GOODPUT_SHARE = 0.8
ROUND_TRIP_S = 0.1
BITS_PER_S = 50e6
FETCH_LIMIT_S = 4 * BLOB_BYTES * 8 / BITS_PER_S + 60

WARM_UP_UNITS = 150
"""By then the provider is no newcomer any more, of whom each result is checked."""

CALLS = 15 if FULL else 7
COLD_ROUND_TRIPS, WARM_ROUND_TRIPS = 4, 1
ROWS = 1000
"""16 KB of input, which the provider does not hold."""


class OverALink(Swarm):
    """Two daemons; what one dials of the other, for libp2p and in bulk, is over the link."""

    def __init__(self, ports):
        super().__init__(2, settings=["--cores=1"])
        self._ports = ports

    def __enter__(self):
        super().__enter__()
        for node in self.nodes:
            port = free_port()
            (node.home / "config.toml").write_text(
                f'bulk = {port}\nbulk_announce = "127.0.0.1:{self._ports.to(port)}"\n'
            )
        return self

    def _bootstrap(self, node):
        first = self.nodes[0]
        if node is first:
            return ()
        start, _, rest = first.address.partition("/tcp/")
        port, _, peer = rest.partition("/")
        return (f"{start}/tcp/{self._ports.to(int(port))}/{peer}",)


@pytest.fixture(scope="module")
def shaped():
    """The link and the two daemons, who are acquainted; the first runs nothing itself."""
    with shaped_link(0.0, BITS_PER_S) as (link, ports), OverALink(ports) as swarm:
        swarm.start_all()
        swarm.wait_acquainted(timeout_s=90)
        with swarm.nodes[0].client() as client:
            client.pause("cpu")
        yield link, swarm


def fetched(asker, taker, size_bytes):
    """Have the taker fetch so much; gives its seconds, from its first file to the blob's."""
    blobs = taker.home / "blobs"
    x = np.random.default_rng().random((size_bytes // 16, 4), np.float32)
    with asker.client() as client:
        job = client.submit(models.identity(), [{"x": x}])
        partial = eventually(
            lambda: next((blobs / "partial").glob("*.chunks"), None), 60, "it is fetched"
        )
        began = time.monotonic()
        held = blobs / partial.stem[:2] / partial.stem
        eventually(held.exists, FETCH_LIMIT_S, f"{held} is held")
        took_s = time.monotonic() - began
        client.cancel(job.id)
        client.wait(job.id, 60)
    return took_s


def test_a_large_blob_takes_the_link_to_its_full(shaped):
    link, swarm = shaped
    link.round_trip_s = ROUND_TRIP_S
    before = link.there.bytes + link.back.bytes
    took_s = fetched(*swarm.nodes, BLOB_BYTES)
    assert link.there.bytes + link.back.bytes - before >= BLOB_BYTES, "it went another way"
    share = BLOB_BYTES * 8 / took_s / BITS_PER_S
    print(f"{BLOB_BYTES >> 20} MiB in {took_s:.1f} s: {share:.0%} of the link")
    assert share >= GOODPUT_SHARE


def test_a_unit_takes_four_round_trips_cold_and_one_warm(shaped):
    link, swarm = shaped
    asker, taker = swarm.nodes
    link.round_trip_s = 0.0
    random = np.random.default_rng()

    def timed(call):
        x = random.random((ROWS, 4), np.float32)
        began = time.perf_counter()
        outputs = call(x)
        took_s = time.perf_counter() - began
        assert outputs.provider == taker.peer, "it did not cross the link"
        return took_s

    with asker.client() as client, Executor(socket=asker.socket) as executor:
        program = client.prepare(models.identity())

        def cold(x):
            return client.run(program, {"x": x})

        def warm(x):
            return executor.submit(program, x).result()

        for _ in range(WARM_UP_UNITS):
            timed(warm)
        timed(cold)
        seconds = {
            (call, delay_s): [] for call in (cold, warm) for delay_s in (0, ROUND_TRIP_S)
        }
        for _ in range(CALLS):
            for (call, delay_s), found in seconds.items():
                link.round_trip_s = delay_s
                if call is warm:
                    timed(warm)  # the lease
                found.append(timed(call))
    counted = {
        call: statistics.median(seconds[call, ROUND_TRIP_S])
        - statistics.median(seconds[call, 0])
        for call in (cold, warm)
    }
    found = {call: added_s / ROUND_TRIP_S for call, added_s in counted.items()}
    print(f"round trips: {found[cold]:.2f} cold, {found[warm]:.2f} warm")
    assert round(found[cold]) <= COLD_ROUND_TRIPS
    assert round(found[warm]) <= WARM_ROUND_TRIPS


# --- with loss, where the machine can lose packets ------------------------------------------


@pytest.fixture
def lossy():
    """A network namespace whose loopback is as long and thin, and loses one packet in 100."""
    name = f"shoal{os.getpid()}loss"
    lose = f"netem delay {500 * ROUND_TRIP_S:g}ms rate {BITS_PER_S:g}bit loss 1%"
    try:
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "set", "lo", "up", "mtu", "1500")
        run("tc", "-n", name, "qdisc", "add", "dev", "lo", "root", *lose.split())
        yield ("ip", "netns", "exec", name)
    except FileNotFoundError as error:
        pytest.skip(f"without {error.filename} no packet can be made to be lost")
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine cannot lose packets (netem): {error.stderr.strip()}")
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def run(*command):
    subprocess.run(command, check=True, capture_output=True, text=True)


BARE_FLOW = """
import socket, sys, threading, time
size = int(sys.argv[1])
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=lambda: server.accept()[0].sendall(bytes(size)), daemon=True).start()
taker = socket.create_connection(server.getsockname())
began, left = time.monotonic(), size
while left:
    left -= len(taker.recv(1 << 20))
print(time.monotonic() - began)
"""


class OnOneMachine(Swarm):
    """Two daemons in one namespace."""

    def __init__(self, inside):
        super().__init__(2, settings=["--cores=1"])
        self._inside = inside

    def _before(self, node):
        return self._inside


def test_with_one_packet_in_a_hundred_lost_it_does_as_well_as_a_bare_flow(lossy):
    bare = subprocess.run(
        [*lossy, sys.executable, "-c", BARE_FLOW, str(LOSSY_BYTES)],
        check=True,
        capture_output=True,
        text=True,
    )
    with OnOneMachine(lossy) as swarm:
        swarm.start_all()
        swarm.wait_acquainted(timeout_s=120)
        with swarm.nodes[0].client() as client:
            client.pause("cpu")
        took_s = fetched(*swarm.nodes, LOSSY_BYTES)
    ratio = float(bare.stdout) / took_s
    print(f"with 1 % loss: {ratio:.2f} of a bare flow of TCP")
    assert ratio >= GOODPUT_SHARE
