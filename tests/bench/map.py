"""Many trivial units: how many a second, and what the processes hold meanwhile.

x + x over four float32 numbers, once for each of 100,000 arrays, one call per array, by
two workers: shoal with two daemons, each with one worker of its own; Ray and Dask, each
as its manual has it. Each has a process of its own to call from, and its workers have
seen some calls before the clock starts. Prints a table.

    python tests/bench/map.py [--units 100000] [--only shoal]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress

import numpy as np
import psutil

UNITS = 100_000
WORKERS = 2
WARM_UP = 200
SAMPLE_S = 1.0
GROWTH_LIMIT_MB = 64.0
"""From the middle to the end of the run: what does not grow with the units stays below."""


def arrays(count):
    """What the units get, made when it is asked for."""
    return (np.full(4, index, np.float32) for index in range(count))


def twice(x):
    return x + x


class Progress:
    """Counts results, sums them up, and samples what the processes hold.

    Args:
        others: Gives the processes beside this one, by what they are called.
    """

    def __init__(self, units, others):
        self._units, self._others = units, others
        self.count, self.total = 0, 0.0
        self._held = []
        self._over = threading.Event()

    def __enter__(self):
        self._began_s = time.perf_counter()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.took_s = time.perf_counter() - self._began_s
        self._over.set()
        self._thread.join()
        self._held.append((self.count, self._now()))

    def add(self, result):
        self.count += 1
        self.total += float(result[0])

    def told(self):
        """The figures, once all results are there and right."""
        assert self.count == self._units, f"{self.count} results of {self._units}"
        assert self.total == float(self._units) * (self._units - 1), "the sum is wrong"
        middle = next(held for count, held in self._held if count >= self._units // 2)
        return {
            "took_s": self.took_s,
            "start": self._held[0][1],
            "middle": middle,
            "end": self._held[-1][1],
            "most": {
                name: max(held.get(name, 0.0) for _, held in self._held)
                for name in self._held[-1][1]
            },
        }

    def _sample(self):
        while True:
            self._held.append((self.count, self._now()))
            if self._over.wait(SAMPLE_S):
                return

    def _now(self):
        held = {"client": megabytes([psutil.Process()])}
        return held | {name: megabytes(found) for name, found in self._others().items()}


def megabytes(processes):
    """Of resident memory, shared pages of forks counted each time."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total / 1e6


def by_shoal(units):
    from onnx import parser

    from shoal.node.demo.swarm import Swarm

    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[4] x) => (float[4] y) { y = Add(x, x) }"
    ).SerializeToString()

    with Swarm(WORKERS, settings=["--cores=1"]) as swarm:
        swarm.start_all()
        swarm.wait_acquainted()
        daemons = [psutil.Process(node.process.pid) for node in swarm.nodes]

        def others():
            found = {"daemon": daemons[:1], "provider": daemons[1:]}
            found["workers"] = [w for d in daemons for w in d.children(recursive=True)]
            return found

        with swarm.nodes[0].client() as client:

            def results(count):
                given = ({"x": array} for array in arrays(count))
                return client.map(model, given, ordered=False)

            for _ in results(WARM_UP):
                pass
            with Progress(units, others) as progress:
                for outputs in results(units):
                    progress.add(outputs["y"])
    return progress.told()


def by_ray(units):
    import ray

    with quietly():
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
        call = ray.remote(twice)
        ray.get([call.remote(array) for array in arrays(WARM_UP)])
        with Progress(units, children) as progress:
            for result in ray.get([call.remote(array) for array in arrays(units)]):
                progress.add(result)
        ray.shutdown()
    return progress.told()


def by_dask(units):
    from distributed import Client, LocalCluster

    with (
        quietly(),
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        client.gather(client.map(twice, list(arrays(WARM_UP)), pure=False))
        with Progress(units, children) as progress:
            for result in client.gather(client.map(twice, list(arrays(units)), pure=False)):
                progress.add(result)
    return progress.told()


def children():
    return {"others": psutil.Process().children(recursive=True)}


@contextmanager
def quietly():
    """What a peer prints is no part of the table."""
    import logging
    import os
    import warnings

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    yield


CONTESTANTS = {"shoal": by_shoal, "ray": by_ray, "dask": by_dask}


def measure(name, units):
    """The figures of one contestant, from a process of its own; None where it failed."""
    command = [sys.executable, __file__, "--inside", name, "--units", str(units)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        print(f"{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def main(units, names):
    """Print the table; whether all of it was measured, and memory stayed constant."""
    figures = {name: measure(name, units) for name in names}
    ours = figures.get("shoal")
    print(f"map over {units:,} trivial units, {WORKERS} workers")
    print(f"  {'':8s}{'units/s':>10s}{'shoal is':>10s}   MB held at start, middle, end (most)")
    for name, found in figures.items():
        if found is None:
            print(f"  {name:8s}    failed")
            continue
        ratio = f"{found['took_s'] / ours['took_s']:8.2f} x" if ours else ""
        line = f"  {name:8s}{units / found['took_s']:10.0f}{ratio:>10s}"
        for process in found["end"]:
            held = [found[when].get(process, 0.0) for when in ("start", "middle", "end")]
            told = ", ".join(f"{one:.0f}" for one in held)
            print(f"{line}   {process:9s} {told} ({found['most'][process]:.0f})")
            line = " " * 30
    constant = ours is None or all(
        ours["most"][process] - ours["middle"][process] < GROWTH_LIMIT_MB
        for process in ("client", "daemon", "provider")
    )
    if ours:
        told = f"by < {GROWTH_LIMIT_MB:.0f} MB: {'met' if constant else 'MISSED'}"
        print(f"  shoal's client and daemons grow in the second half {told}")
    return constant and None not in figures.values()


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given.add_argument("--units", type=int, default=UNITS)
    given.add_argument("--only", choices=CONTESTANTS, action="append")
    given.add_argument("--inside", choices=CONTESTANTS, help=argparse.SUPPRESS)
    asked = given.parse_args()
    if asked.inside:
        print(json.dumps(CONTESTANTS[asked.inside](asked.units)))
    else:
        sys.exit(not main(asked.units, asked.only or list(CONTESTANTS)))
