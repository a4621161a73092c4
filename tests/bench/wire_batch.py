"""Many trivial units at once: how many a second, and the processor time that each takes.

x + x over four float32 numbers, one unit for each array. shoal has two daemons as processes
on loopback: one that the client speaks with, whose own device is paused, and one that runs
the units, so that each crosses the wire, is signed there and verified here; it is called by
`Client.map`. Ray is measured twice, one task waited for before the next (``ray_sync``) and
all of them out at once (``ray_async``); Dask has all of them out. All are up at once and
take turns, so that what else the machine does weighs on each alike. Prints a table.

    python tests/bench/wire_batch.py [--rounds 4] [--units 4000] [--peers-python PYTHON]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import numpy as np
import psutil
from contestants import asked

ROUNDS = 4
UNITS = 4000
"""Of one contestant in one turn."""

WARM_UP = 1000
"""By then the provider is no newcomer any more, of whom each result is checked."""

SYNC_SHARE = 0.2
"""Of a turn's units for who goes one by one: it takes long enough."""


def twice(x):
    return x + x


def arrays(count):
    return (np.full(4, index, np.float32) for index in range(count))


@contextmanager
def by_shoal():
    from onnx import parser

    from shoal.node.demo.swarm import Swarm

    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[4] x) => (float[4] y) { y = Add(x, x) }"
    ).SerializeToString()
    with Swarm(2, settings=["--cores=1"]) as swarm:
        swarm.start_all()
        swarm.wait_acquainted(timeout_s=150.0)
        ours, other = (psutil.Process(node.process.pid) for node in swarm.nodes)

        def processes():
            workers = [w for d in (ours, other) for w in d.children(recursive=True)]
            return {
                "client": [psutil.Process()],
                "daemon": [ours],
                "provider": [other],
                "workers": workers,
            }

        with swarm.nodes[0].client() as client:
            client.pause("cpu")
            program = client.prepare(model)

            def results(count):
                given = ({"x": array} for array in arrays(count))
                for outputs in client.map(program, given, ordered=False):
                    assert outputs.provider == swarm.nodes[1].peer, "it did not cross the wire"
                    assert outputs.receipt, "nobody signed it"
                    yield outputs["y"]

            yield results, processes


def everything():
    """A contestant's processes together."""
    return {"all": [psutil.Process(), *psutil.Process().children(recursive=True)]}


@contextmanager
def by_ray(*, together):
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    task = ray.remote(twice)

    def results(count):
        if together:
            yield from ray.get([task.remote(array) for array in arrays(count)])
        else:
            for array in arrays(int(count * SYNC_SHARE)):
                yield ray.get(task.remote(array))

    yield results, everything
    ray.shutdown()


@contextmanager
def by_dask():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):

        def results(count):
            yield from client.gather(client.map(twice, list(arrays(count)), pure=False))

        yield results, everything


CONTESTANTS = {
    "shoal": by_shoal,
    "ray_sync": lambda: by_ray(together=False),
    "ray_async": lambda: by_ray(together=True),
    "dask": by_dask,
}


def processor_s(processes):
    """What they have used so far, by what they are called."""
    used = {}
    for name, some in processes.items():
        used[name] = 0.0
        for process in some:
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                used[name] += times.user + times.system
    return used


def inside(name):
    """Serve turns: a number of units comes in on one line, what they took goes out."""
    import logging
    import warnings

    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints is no answer
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with CONTESTANTS[name]() as (results, processes):
        for _ in results(WARM_UP):
            pass
        print("ready", file=out)
        for line in sys.stdin:
            before_s, began_s = processor_s(processes()), time.perf_counter()
            total, count = 0.0, 0
            for result in results(int(line)):
                total += float(result[0])
                count += 1
            took_s = time.perf_counter() - began_s
            used_s = {p: s - before_s.get(p, 0.0) for p, s in processor_s(processes()).items()}
            assert total == float(count) * (count - 1), "the sum is wrong"
            print(json.dumps([count, took_s, used_s]), file=out)


class Contestant:
    """A process of its own, which is given turns."""

    def __init__(self, name, python):
        self.name = name
        self.units, self.took_s, self.used_s = 0, 0.0, {}
        self._process = subprocess.Popen(
            [python, __file__, "--inside", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if name == "shoal" else subprocess.DEVNULL,
            text=True,
        )

    def ready(self):
        """Wait until it has warmed up; says whether it has."""
        return self._process.stdout.readline() == "ready\n"

    def turn(self, units):
        """Let it do so many."""
        self._process.stdin.write(f"{units}\n")
        self._process.stdin.flush()
        count, took_s, used_s = json.loads(self._process.stdout.readline())
        self.units += count
        self.took_s += took_s
        for process, seconds in used_s.items():
            self.used_s[process] = self.used_s.get(process, 0.0) + seconds

    def end(self):
        """Close its input, at which it ends in order."""
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    @property
    def per_s(self):
        """Units a second, over all its turns."""
        return self.units / self.took_s

    def used_us(self):
        """Processor time of a unit in microseconds, in words."""
        each = {name: 1e6 * seconds / self.units for name, seconds in self.used_s.items()}
        parts = ", ".join(f"{name} {us:.0f}" for name, us in each.items())
        return f"{sum(each.values()):7.0f} ({parts})"


def main(names, rounds, units, peers_python):
    """Print the table; whether all were measured and the targets are met."""
    up = []
    try:
        for name in names:
            one = Contestant(name, sys.executable if name == "shoal" else peers_python)
            up.append(one)
            if not one.ready():
                print(f"{name} failed", file=sys.stderr)
                return False
        for _ in range(rounds):
            for one in up:
                one.turn(units)
    finally:
        for one in up:
            one.end()
    found = {one.name: one for one in up}
    ours = found.get("shoal")
    print(f"trivial units, {rounds} turns of {units} of each, one worker")
    print(f"  {'':10s}{'units/s':>9s}{'shoal is':>10s}   processor time of a unit, us")
    for one in up:
        ratio = f"{ours.per_s / one.per_s:8.2f} x" if ours and one is not ours else ""
        print(f"  {one.name:10s}{one.per_s:9.0f}{ratio:>10s}   {one.used_us()}")
    met = True
    for name, wanted in (("ray_sync", "target"), ("ray_async", "aim")):
        if ours and name in found:
            good = ours.per_s >= found[name].per_s
            print(f"  {wanted}: >= {name}'s rate: {'met' if good else 'MISSED'}")
            met = met and (good or wanted == "aim")
    return met


if __name__ == "__main__":
    given = asked(__doc__, CONTESTANTS, ROUNDS, units=UNITS)
    if given.inside:
        inside(given.inside)
    else:
        chosen = given.only or list(CONTESTANTS)
        sys.exit(not main(chosen, given.rounds, given.units, given.peers_python))
