"""How fast a client hands over trivial units and gets results back, and in how much memory.

    python tests/bench/submitting.py [UNITS] [--paused | --ended]

One daemon on this machine, one client in this process. Three parts: a job is submitted
whole, its results are read once it has ended, and the same number goes through a lazy map.
With ``--paused`` the device is paused, so that nothing runs beside the hand-over, and only
the first part is measured. With ``--ended`` a job that has ended is written into the
journal, so that only reading its results is measured. Memory is the resident set of each
process.
"""

import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import trio

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))

import models

from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of
from shoal.node.demo.swarm import Swarm
from shoal.node.records import (
    Ended,
    Job,
    JobId,
    JobSpec,
    JobState,
    Policy,
    Unit,
    UnitState,
)
from shoal.node.state import open_state

UNITS = 100_000
PIECE = 2000


def mib(process):
    return process.memory_info().rss / (1 << 20)


def report(what, count, seconds, client, daemon, before):
    print(
        f"{what}: {count} units in {seconds:.1f} s, {count / seconds:.0f}/s; "
        f"client {before[0]:.0f} -> {mib(client):.0f} MiB, "
        f"daemon {before[1]:.0f} -> {mib(daemon):.0f} MiB",
        flush=True,
    )


async def write_ended(path, count):
    """A job of ``count`` units that are all done, as a daemon would have written it."""
    job_id, program = JobId(f"{int(time.time() * 1000):011x}" + "0" * 16), "00" * 32
    job = Job(job_id, Policy.MAP, program, "fp32", "", JobState.RUNNING, 0.0, None, 0, 0, 0)
    async with open_state(path) as journal:
        opened = msgspec.structs.replace(job, open=True)
        await journal.add_job(opened, JobSpec(Policy.MAP, program, (), open=True))
        for first in range(0, count, PIECE):
            units, ends = [], []
            for index in range(first, min(first + PIECE, count)):
                tensor = to_blob(models.rows(1) + np.float32(index))
                known = blob_id_of(tensor)
                unit = Unit(job_id, index, UnitState.QUEUED, {"x": known})
                units.append(unit)
                done = msgspec.structs.replace(
                    unit, state=UnitState.DONE, outputs={"y": known}, seconds=0.01
                )
                ends.append(Ended(done, tensors={known: tensor}))
            tensors = {i: t for end in ends for i, t in end.tensors.items()}
            await journal.add_units(job_id, units, tensors)
            await journal.end_units(ends)
        await journal.seal_job(job_id)
        await journal.end_job(job_id, JobState.DONE, 1.0)
    return job_id


def read_ended(count):
    with Swarm(1) as swarm:
        (node,) = swarm.nodes
        job_id = trio.run(write_ended, node.home / "state.sqlite", count)
        swarm.start_all()
        client_process = psutil.Process()
        with node.client() as client:
            daemon = psutil.Process(client.status().pid)
            for ordered in (True, False):
                before = mib(client_process), mib(daemon)
                began = time.monotonic()
                found = sum(1 for _ in client.results(job_id, ordered=ordered))
                took = time.monotonic() - began
                order = "in order" if ordered else "as they ended"
                report(f"results {order}", found, took, client_process, daemon, before)


def main():
    numbers = [int(word) for word in sys.argv[1:] if word.isdecimal()]
    count = numbers[0] if numbers else UNITS
    paused = "--paused" in sys.argv
    if "--ended" in sys.argv:
        read_ended(count)
        return
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
