"""What committing to stages costs.

A unit of about a minute with stages beside the same unit without, as pairs of which one runs
right after the other; the ratio is the median of the pairs'. What lies within the recorder of
stages is timed by itself too: where others use the machine, runs of the same differ by more
than stages cost, and this does not. How long a proof is judged, `tests/bench/fraud_proof.py`
measures. Needs MiniLM's weights (``shoal[models]``).

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
from shoal.compute.exact.stages import StageRecorder
from shoal.compute.executors import exact
from shoal.compute.loading import load

BATCH, TOKENS, THREADS = 32, 128, 2
COST_TARGET = 1.03


def taken(run):
    """Wall and CPU seconds of one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


class Recorder(StageRecorder):
    """The product's, with a clock."""

    spent_s = 0.0

    def reached(self, place, values):
        """See `StageRecorder.reached`."""
        began = time.perf_counter()
        super().reached(place, values)
        Recorder.spent_s += time.perf_counter() - began


def main():
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    program = convert(whole_models.onnx_bytes("minilm"), "x20")
    kernels = CpuKernels(THREADS)
    exact.StageRecorder = Recorder
    executor = exact.Exact(kernels, "numba", kernels.warm_up)
    executor.start_threads()
    handle = executor.prepare(load(program.program_id, program.blobs))
    inputs = whole_models.inputs("minilm", BATCH, TOKENS)
    executor.run_in_stages(handle, inputs)
    batch_s, _ = min(taken(lambda: executor.run(handle, inputs)) for _ in range(2))
    batch = max(BATCH, round(BATCH * options.seconds / batch_s))
    inputs = whole_models.inputs("minilm", batch, TOKENS)
    count, nodes = len(handle.stages.ends), len(handle.traceable.graph.nodes)
    print(f"MiniLM, {batch} x {TOKENS}, {THREADS} threads, {nodes} nodes, {count} stages")
    print(f"{'':<8}{'without':>18}{'with stages':>18}{'ratio':>16}{'committing':>15}")
    columns = f"{'wall s':>9}{'CPU s':>9}" * 2 + f"{'wall':>8}{'CPU':>8}{'s':>8}{'share':>7}"
    print(f"{'turn':<8}{columns}", flush=True)
    rows = []
    for turn in range(options.turns):
        ways = [executor.run, executor.run_in_stages]
        found, Recorder.spent_s = {}, 0.0
        for way in ways[:: 1 if turn % 2 else -1]:  # neither always goes first
            found[way] = taken(lambda way=way: way(handle, inputs))
        plain, staged = (found[way] for way in ways)
        wall, cpu = (b / a for a, b in zip(plain, staged, strict=True))
        share = Recorder.spent_s / staged[0]
        rows.append((wall, cpu, share))
        seconds = "".join(f"{value:9.2f}" for value in (*plain, *staged))
        spent = f"{wall:8.4f}{cpu:8.4f}{Recorder.spent_s:8.3f}{share:7.2%}"
        print(f"{turn:<8}{seconds}{spent}", flush=True)
    wall, cpu, share = (statistics.median(column) for column in zip(*rows, strict=True))
    for name, ratio in (("wall", wall), ("CPU", cpu), ("1 + share", 1 + share)):
        verdict = "met" if ratio <= COST_TARGET else "MISSED"
        print(f"median, {name:<10}{ratio:.4f}  target <= {COST_TARGET}  {verdict}")
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
