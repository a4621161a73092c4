"""What a locked-in worker costs, beside the targets.

python tests/bench/worker.py [--repeat 20]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys

LOCK_IN_TARGET_MS = 5.0

LOCK_IN = """
import json, os, sys, time
import shoal.compute.worker
if "exact" in sys.argv:
    import shoal.compute.exact.cpu.kernels
from shoal.compute.sandbox import CPU, HardLimits, Meter, lock_in
meter = Meter()
began = time.perf_counter()
lock = lock_in(CPU)
locked = time.perf_counter()
lock.close(meter, HardLimits(1 << 30))
closed = time.perf_counter()
print(json.dumps([(locked - began) * 1e3, (closed - locked) * 1e3, str(lock)]), flush=True)
os._exit(0)  # as a worker ends
"""
ENVIRONMENT = {**os.environ, "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}


def row(what: str, value: float, target: float, unit: str) -> None:
    verdict = "met" if value <= target else f"missed by {100 * (value / target - 1):.0f} %"
    print(f"{what:<48} {value:8.2f} {unit:<3} target <= {target:g} {unit:<3} {verdict}")


def lock_in(repeat: int, *what: str) -> None:
    """Lock in fresh processes that have loaded what a worker loads."""
    locked, closed, said = [], [], ""
    for _ in range(repeat):
        done = subprocess.run(
            [sys.executable, "-c", LOCK_IN, *what],
            stdout=subprocess.PIPE,
            check=True,
            env=ENVIRONMENT,
        )
        lock_ms, close_ms, said = json.loads(done.stdout)
        locked.append(lock_ms)
        closed.append(close_ms)
    loaded = " and ".join(["fp32", *what])
    both = [a + b for a, b in zip(locked, closed, strict=True)]
    row(f"lock-in with {loaded} loaded, p50", statistics.median(both), LOCK_IN_TARGET_MS, "ms")
    row(f"lock-in with {loaded} loaded, worst", max(both), LOCK_IN_TARGET_MS, "ms")
    print(
        f"  (of p50 {statistics.median(closed):.2f} ms for the hard limits and the end of "
        f"new threads; {said})"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=20)
    repeat = parser.parse_args().repeat
    lock_in(repeat)
    lock_in(repeat, "exact")
    print(f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.release()}")


if __name__ == "__main__":
    main()
