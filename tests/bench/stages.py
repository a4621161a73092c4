"""What committing to stages costs, and how long judging one operator takes.

A unit of about a minute with stages beside the same unit without, in turns; and the largest
MatMul, Softmax, LayerNormalization and Gelu of MiniLM at 32 x 128 by the reference, with
the tile of the MatMul. Needs MiniLM's weights (``shoal[models]``).

python tests/bench/stages.py [--turns 3] [--seconds 60]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("models", "vectors")]

import whole_models

from shoal.compute.convert import convert
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.judging_operators import Operators, run_operator, run_tile
from shoal.compute.executors.exact import Exact
from shoal.compute.loading import load
from shoal.compute.tensor import from_blob, spec_of_blob

BATCH, TOKENS, THREADS = 32, 128, 2
COST_TARGET, JUDGING_TARGET_S = 1.03, 10.0
JUDGED = ("MatMul", "Softmax", "LayerNormalization", "Gelu", "Erf")


def verdict(met):
    return "met" if met else "MISSED"


def least(run, turns):
    """The least time of some runs: what else the machine does only adds to it."""
    taken = []
    for _ in range(turns):
        began = time.perf_counter()
        run()
        taken.append(time.perf_counter() - began)
    return min(taken)


def cost_of_stages(executor, handle, batch_s, seconds, turns):
    batch = max(BATCH, round(BATCH * seconds / batch_s))
    inputs = whole_models.inputs("minilm", batch, TOKENS)
    plain, staged = [], []
    for turn in range(turns):
        ways = [
            (plain, lambda: executor.run(handle, inputs)),
            (staged, lambda: executor.run_in_stages(handle, inputs)),
        ]
        for taken, run in ways[:: 1 if turn % 2 else -1]:  # neither always goes first
            taken.append(least(run, 1))
    ratio = min(staged) / min(plain)
    count, nodes = len(handle.stages.ends), len(handle.traceable.graph.nodes)
    print(f"MiniLM, {batch} x {TOKENS}, {THREADS} threads, {nodes} nodes, {count} stages")
    print(
        f"  without stages {min(plain):7.2f} s; with {min(staged):7.2f} s; ratio {ratio:.4f}"
        f"  target <= {COST_TARGET}  {verdict(ratio <= COST_TARGET)}"
    )
    print(
        f"  turns without {[round(t, 2) for t in plain]}, with {[round(t, 2) for t in staged]}"
    )


def judging(executor, handle, program):
    inputs = whole_models.inputs("minilm", BATCH, TOKENS)
    began = time.perf_counter()
    leaves, _ = executor.trace(handle, inputs, None)
    print(
        f"operator leaves of {BATCH} x {TOKENS}: {len(leaves)} in "
        f"{time.perf_counter() - began:.2f} s"
    )
    largest = {}
    for index, node in enumerate(handle.traceable.graph.nodes):
        if node.operator in JUDGED:
            found = executor.tensors_of(handle, inputs, index)
            size = found.multiply_adds or max(map(len, found.blobs.values()))
            if size > largest.get(node.operator, (0,))[0]:
                largest[node.operator] = (size, index, found)
    for operator, (_, index, found) in largest.items():
        began = time.perf_counter()
        judge = Operators(
            program.blobs[program.program_id], program.blobs[program.manifest.graph]
        )
        read_s = time.perf_counter() - began
        blobs = [found.blobs[name] if name else None for name in found.leaf.inputs]
        began = time.perf_counter()
        assert run_operator(judge, index, blobs).outputs == found.leaf.outputs
        whole_s = read_s + time.perf_counter() - began
        shapes = ", ".join(str(spec_of_blob(b, len(b))) for b in blobs if b)
        print(
            f"  {operator:<19}{whole_s:6.2f} s  target <= {JUDGING_TARGET_S:g} s  "
            f"{verdict(whole_s <= JUDGING_TARGET_S)}  (reading {read_s:.2f} s)  {shapes}"
        )
        if found.row_elements:
            output = found.blobs[found.leaf.outputs[0]]
            began = time.perf_counter()
            assert run_tile(judge, index, blobs, range(1)).is_in(output)
            print(
                f"  {'':<19}{read_s + time.perf_counter() - began:6.2f} s  one row of "
                f"{found.row_elements} of {from_blob(output).size // found.row_elements}, "
                f"of {found.multiply_adds / 1e9:.2f} G multiply-adds"
            )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    program = convert(whole_models.onnx_bytes("minilm"), "x20")
    kernels = CpuKernels(THREADS)
    executor = Exact(kernels, "numba", kernels.warm_up)
    executor.start_threads()
    handle = executor.prepare(load(program.program_id, program.blobs))
    inputs = whole_models.inputs("minilm", BATCH, TOKENS)
    executor.run_in_stages(handle, inputs)
    batch_s = least(lambda: executor.run(handle, inputs), 2)
    judging(executor, handle, program)
    cost_of_stages(executor, handle, batch_s, options.seconds, options.turns)
    print(f"{os.cpu_count()} cores")


if __name__ == "__main__":
    main()
