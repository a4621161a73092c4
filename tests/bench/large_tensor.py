"""What a large tensor costs in memory: from the client's array to the result in its hands.

x + x over one float32 array, once by a daemon itself and once by another one on loopback.
Tells how much each process holds at most above what it held idle, its mapped files and
shared memory left out: those are the system's to take back. Target: 64 MB for the daemon
that the client speaks with.

    python tests/bench/large_tensor.py [--mib 1024]
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from onnx import parser

from shoal.node.demo.swarm import Swarm

TARGET_MB = 64.0
SAMPLE_S = 0.02


def held_mb(pid):
    """Anonymous memory of a process."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024 / 1e6


class Watch:
    """Samples processes; tells how much more than at first each held at most."""

    def __init__(self, pids):
        self._pids = pids
        self._over = threading.Event()
        self.idle = {name: held_mb(pid) for name, pid in pids.items()}
        self.most = dict(self.idle)

    def _sample(self):
        while not self._over.wait(SAMPLE_S):
            for name, pid in self._pids.items():
                self.most[name] = max(self.most[name], held_mb(pid))

    @contextmanager
    def on(self):
        thread = threading.Thread(target=self._sample)
        thread.start()
        yield
        self._over.set()
        thread.join()

    def told(self):
        return {name: most - self.idle[name] for name, most in self.most.items()}


def main(mib):
    """Print a line for each way; whether the target is met."""
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]>'
        "g (float[n] x) => (float[n] y) { y = Add(x, x) }"
    ).SerializeToString()
    met = True
    print(f"one tensor of {mib} MiB in and one out; MB above idle, of memory of its own")
    print(f"  {'':14s}{'client':>8s}{'daemon':>8s}{'provider':>10s}{'seconds':>9s}")
    with Swarm(2, settings=["--cores=1"]) as swarm:
        swarm.start_all()
        swarm.wait_acquainted(timeout_s=150.0)
        pids = {"client": "self", "daemon": swarm.nodes[0].process.pid}
        pids["provider"] = swarm.nodes[1].process.pid
        options = {"memory_limit_bytes": (4 * mib) << 20, "verify": "receipt"}
        with swarm.nodes[0].client() as client, swarm.nodes[1].client() as other:
            program = client.prepare(model)
            for way, paused in (("by itself", other), ("by another", client)):
                paused.pause("cpu")
                client.run(program, {"x": np.zeros(4, np.float32)}, **options)
                x = np.full(mib << 18, len(way), np.float32)
                watch, began_s = Watch(pids), time.perf_counter()
                with watch.on():
                    y = client.run(program, {"x": x}, **options)["y"]
                took_s = time.perf_counter() - began_s
                assert float(y[-1]) == 2 * len(way)
                del x, y
                told = watch.told()
                met = met and told["daemon"] <= TARGET_MB
                print(
                    f"  {way:14s}{told['client']:8.0f}{told['daemon']:8.0f}"
                    f"{told['provider']:10.0f}{took_s:9.1f}"
                )
                paused.resume("cpu")
    print(f"  target: the daemon <= {TARGET_MB:.0f} MB: {'met' if met else 'MISSED'}")
    return met


if __name__ == "__main__":
    given = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    given.add_argument("--mib", type=int, default=1024)
    sys.exit(not main(given.parse_args().mib))
