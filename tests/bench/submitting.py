"""How fast a client hands over trivial units and gets results back, and in how much memory.

    python tests/bench/submitting.py [UNITS] [--paused]

One daemon on this machine, one client in this process. Three parts: a job is submitted
whole, its results are read once it has ended, and the same number goes through a lazy map.
With ``--paused`` the device is paused, so that nothing runs beside the hand-over, and only
the first part is measured. Memory is the resident set of each process.
"""

import sys
import time
from pathlib import Path

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

import models

from shoal.node.demo.swarm import Swarm

UNITS = 100_000


def mib(process):
    return process.memory_info().rss / (1 << 20)


def report(what, count, seconds, client, daemon, before):
    print(
        f"{what}: {count} units in {seconds:.1f} s, {count / seconds:.0f}/s; "
        f"client {before[0]:.0f} -> {mib(client):.0f} MiB, "
        f"daemon {before[1]:.0f} -> {mib(daemon):.0f} MiB",
        flush=True,
    )


def main():
    numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    count = numbers[0] if numbers else UNITS
    paused = "--paused" in sys.argv
    array = models.rows(1)

    def inputs(number):
        for index in range(number):
            yield {"x": array + np.float32(index)}

    with Swarm(1) as swarm:
        swarm.start_all()
        (node,) = swarm.nodes
        client_process = psutil.Process()
        with node.client() as client:
            daemon = psutil.Process(client.status().pid)
            model = client.prepare(models.dense())
            list(client.map(model, inputs(500)))  # warm: workers, imports, allocators
            if paused:
                client.pause("cpu")
            before = mib(client_process), mib(daemon)
            began = time.monotonic()
            job = client.submit(model, inputs(count))
            took = time.monotonic() - began
            report("handed over", count, took, client_process, daemon, before)
            if paused:
                return
            client.wait(job.id)
            took = time.monotonic() - began
            report("ended", count, took, client_process, daemon, before)
            for ordered in (True, False):
                began = time.monotonic()
                found = sum(1 for _ in client.results(job.id, ordered=ordered))
                took = time.monotonic() - began
                order = "in order" if ordered else "as they ended"
                report(f"results {order}", found, took, client_process, daemon, before)
            began = time.monotonic()
            found = sum(1 for _ in client.map(model, inputs(count), ordered=False))
            took = time.monotonic() - began
            report("lazy map", found, took, client_process, daemon, before)


if __name__ == "__main__":
    main()
