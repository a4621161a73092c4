"""One trivial unit at a time: from the client's call to the result in its hands.

x + x over four float32 numbers, each call waited for before the next. shoal has two daemons
as processes on loopback: one that the client speaks with, whose own device is paused, and
one that runs the units, so that each unit crosses the wire, is signed there and verified
here. It is called through an `Executor` (one open job: a warm lease) and by `Client.run` (a
job and a lease of its own for each call), as jobs are by default. Ray's task and Dask's
`submit` are as their manuals have them. All of them are up at once and take turns, so that
what else the machine does weighs on each alike. Prints a table, and where the time of the
executor's calls went, as `shoal job show JOB --unit N --timing` tells it.

    python tests/bench/wire_unit.py [--rounds 6] [--calls 100] [--peers-python PYTHON]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from contextlib import ExitStack, contextmanager

import numpy as np
from contestants import asked

ROUNDS = 6
CALLS = 100
"""Of one contestant in one turn."""

PROFILED = 100

WARM_UP = 100
GETTING_KNOWN = 1000

RAY_LIMIT, DASK_LIMIT = 3.0, 0.5
"""Times their p50, which the median of `executor` is to be under."""


def twice(x):
    return x + x


@contextmanager
def shoal(call_of):
    """Two daemons and a client; ``call_of`` makes the call that is measured."""
    from onnx import parser

    from shoal.node.demo.swarm import Swarm

    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[4] x) => (float[4] y) { y = Add(x, x) }"
    ).SerializeToString()
    with Swarm(2, settings=["--cores=1"]) as swarm:
        swarm.start_all()
        swarm.wait_acquainted(timeout_s=150.0)
        home = swarm.nodes[0]
        with home.client() as client, ExitStack() as stack:
            program = client.prepare(model)
            # Each result of a newcomer is checked, by this node itself where there is no third;
            # then as seldom as of any provider that is known.
            rows = ({"x": np.full(4, index, np.float32)} for index in range(GETTING_KNOWN))
            for _ in client.map(program, rows, ordered=False):
                pass
            client.pause("cpu")
            call = call_of(client, home, program, stack)

            def checked(x):
                outputs = call(x)
                assert outputs.provider == swarm.nodes[1].peer, "it did not cross the wire"
                assert outputs.receipt, "nobody signed it"
                return outputs["y"]

            checked.timing = client.timing
            yield checked


def by_executor():
    def call_of(_client, home, program, stack):
        from shoal import Executor

        executor = stack.enter_context(Executor(socket=home.socket))

        def call(x):
            future = executor.submit(program, x)
            outputs = future.result()
            LATEST.append(future)
            return outputs

        return call

    return shoal(call_of)


def by_run():
    def call_of(client, _home, program, _stack):
        return lambda x: client.run(program, {"x": x})

    return shoal(call_of)


@contextmanager
def by_ray():
    import ray

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    task = ray.remote(twice)
    yield lambda x: ray.get(task.remote(x))
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
        yield lambda x: client.submit(twice, x, pure=False).result()


LATEST = deque(maxlen=PROFILED)
"""The last calls through the executor."""


def profile(call):
    """The median of each step over the last calls, in seconds; and of all steps together."""
    from shoal.node.timing_view import STEPS

    found = [call.timing(future.job_id, future.unit) for future in LATEST]
    steps = {step: [one.steps.get(step, 0.0) for one in found] for step in STEPS}
    medians = {step: statistics.median(each) for step, each in steps.items() if any(each)}
    return medians, statistics.median(one.total_s for one in found)


CONTESTANTS = {"executor": by_executor, "run": by_run, "ray": by_ray, "dask": by_dask}
FOREIGN = ("ray", "dask")


def inside(name):
    """Serve turns: a number of calls comes in on one line, their seconds go out on another."""
    import logging
    import warnings

    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a peer prints is no answer
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with CONTESTANTS[name]() as call:
        for index in range(WARM_UP):
            call(np.full(4, index, np.float32))
        print("ready", file=out)
        for line in sys.stdin:
            if line == "profile\n":
                print(json.dumps(profile(call)), file=out)
                continue
            took = []
            for index in range(int(line)):
                x = np.full(4, index, np.float32)
                began = time.perf_counter()
                result = call(x)
                took.append(time.perf_counter() - began)
                assert result[0] == 2 * index, "the result is wrong"
            print(json.dumps(took), file=out)


class Contestant:
    """A process of its own, which is given turns."""

    def __init__(self, name, python):
        self.name = name
        self.seconds = []
        self._process = subprocess.Popen(
            [python, __file__, "--inside", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if name in FOREIGN else None,
            text=True,
        )

    def ready(self):
        """Wait until it has warmed up; says whether it has."""
        return self._process.stdout.readline() == "ready\n"

    def turn(self, calls):
        """Let it call so many times."""
        self.seconds += self.ask(calls)

    def ask(self, what):
        """Say a line; gives what is answered."""
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def end(self):
        """Close its input, at which it ends in order."""
        self._process.stdin.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def ms(self, percent):
        """A percentile of its calls, in milliseconds."""
        return 1e3 * float(np.percentile(self.seconds, percent))


def main(names, rounds, calls, peers_python):
    """Print the table; whether all were measured and the targets are met."""
    up = []
    try:
        for name in names:
            one = Contestant(name, peers_python if name in FOREIGN else sys.executable)
            up.append(one)
            if not one.ready():
                print(f"{name} failed", file=sys.stderr)
                return False
        for _ in range(rounds):
            for one in up:
                one.turn(calls)
        steps = up[0].ask("profile") if names[0] == "executor" else None
    finally:
        for one in up:
            one.end()
    found = {one.name: one for one in up}
    print(f"one trivial unit at a time, {rounds * calls} calls of each, in turns of {calls}")
    print(f"  {'(ms)':10s}{'p50':>8s}{'p90':>8s}{'p99':>8s}   executor's p50 is")
    ours = found.get("executor")
    for one in up:
        ratio = f"{ours.ms(50) / one.ms(50):8.2f} x" if ours and one is not ours else ""
        print(
            f"  {one.name:10s}{one.ms(50):8.2f}{one.ms(90):8.2f}{one.ms(99):8.2f}{ratio:>12s}"
        )
    met = True
    for name, limit in (("ray", RAY_LIMIT), ("dask", DASK_LIMIT)):
        if ours and name in found:
            good = statistics.median(ours.seconds) <= limit * statistics.median(
                found[name].seconds
            )
            print(f"  target: <= {limit:g} x {name}'s p50: {'met' if good else 'MISSED'}")
            met = met and good
    if steps:
        tell(*steps, ours.ms(50) / 1e3)
    return met


def tell(medians, total_s, call_s):
    """Print where the time went."""
    from shoal.node.timing_view import STEPS

    print(f"where it went, medians of the last {PROFILED} calls (ms)")
    rows = [(step.replace("_", " "), seconds, STEPS[step]) for step, seconds in medians.items()]
    rows.append(("all of it", total_s, "as the daemon saw it"))
    rows.append(("the rest", call_s - total_s, "the client, and the local API's HTTP"))
    for step, seconds, what in rows:
        print(f"  {step:12s}{1e3 * seconds:8.2f}   {what}")


if __name__ == "__main__":
    given = asked(__doc__, CONTESTANTS, ROUNDS, calls=CALLS)
    if given.inside:
        inside(given.inside)
    else:
        chosen = given.only or list(CONTESTANTS)
        sys.exit(not main(chosen, given.rounds, given.calls, given.peers_python))
