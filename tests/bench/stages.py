"""What committing to stages costs.

A unit of about a minute with stages beside the same unit without, in turns, each as a pair
that runs one right after the other; the ratio is the median of the pairs', of wall time and
of CPU time. Needs MiniLM's weights (``shoal[models]``). How long a proof about one operator is
judged is `tests/bench/fraud_proof.py`'s.

python tests/bench/stages.py [--turns 3] [--seconds 60]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("models", "vectors")]

import whole_models

from shoal.compute.convert import convert
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.executors.exact import Exact
from shoal.compute.loading import load

BATCH, TOKENS, THREADS = 32, 128, 2
COST_TARGET = 1.03


def taken(run):
    """Wall and CPU seconds of one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def main():
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    program = convert(whole_models.onnx_bytes("minilm"), "x20")
    kernels = CpuKernels(THREADS)
    executor = Exact(kernels, "numba", kernels.warm_up)
    executor.start_threads()
    handle = executor.prepare(load(program.program_id, program.blobs))
    inputs = whole_models.inputs("minilm", BATCH, TOKENS)
    executor.run_in_stages(handle, inputs)
    batch_s, _ = min(taken(lambda: executor.run(handle, inputs)) for _ in range(2))
    batch = max(BATCH, round(BATCH * options.seconds / batch_s))
    inputs = whole_models.inputs("minilm", batch, TOKENS)
    count, nodes = len(handle.stages.ends), len(handle.traceable.graph.nodes)
    print(f"MiniLM, {batch} x {TOKENS}, {THREADS} threads, {nodes} nodes, {count} stages")
    print(f"{'':<8}{'without':>18}{'with stages':>18}{'ratio':>16}")
    print(
        f"{'turn':<8}" + f"{'wall s':>9}{'CPU s':>9}" * 2 + f"{'wall':>8}{'CPU':>8}", flush=True
    )
    ratios = []
    for turn in range(options.turns):
        ways = [executor.run, executor.run_in_stages]
        found = {}
        for way in ways[:: 1 if turn % 2 else -1]:  # neither always goes first
            found[way] = taken(lambda way=way: way(handle, inputs))
        plain, staged = (found[way] for way in ways)
        ratios.append([b / a for a, b in zip(plain, staged, strict=True)])
        seconds = "".join(f"{value:9.2f}" for value in (*plain, *staged))
        print(f"{turn:<8}{seconds}" + "".join(f"{r:8.4f}" for r in ratios[-1]), flush=True)
    wall, cpu = (statistics.median(column) for column in zip(*ratios, strict=True))
    verdict = "met" if cpu <= COST_TARGET else "MISSED"
    print(f"median ratio: wall {wall:.4f}, CPU {cpu:.4f}; target <= {COST_TARGET}  {verdict}")
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
