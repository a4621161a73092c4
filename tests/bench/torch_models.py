"""The executor ``torch`` beside ONNX Runtime on the CPU: MiniLM, magika and the small CNN.

    python tests/bench/torch_models.py                    # torch on the CPU, two threads each
    python tests/bench/torch_models.py --device cuda      # torch on a card

The ways take turns in one process; the least time of a run counts, from numpy to numpy, with
the transfers to and from a card. On a card the figures are those of small batches too, where
starting kernels takes longer than they do. Needs ``shoal[models]``.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("models", "vectors")]

import numpy as np
import onnxruntime
import whole_models

from shoal.compute.convert import convert
from shoal.compute.executors.base import NumericClass
from shoal.compute.executors.torch import TorchExecutor
from shoal.compute.loading import load

TOKENS = 128


def runners(name, device, batch, threads, compiled):
    """The ways to run a model: functions of no arguments that give its first output."""
    data = whole_models.onnx_bytes(name)
    inputs = whole_models.inputs(name, batch, TOKENS)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    program = convert(data)
    loaded = load(program.program_id, program.blobs)
    ways = {"ONNX Runtime, CPU": lambda: session.run(None, inputs)[0]}

    def with_torch(numeric_class, compile_graphs):
        executor = TorchExecutor(
            device, numeric_class, threads=threads, compile_graphs=compile_graphs
        )
        handle = executor.prepare(loaded)
        return lambda: next(iter(executor.run(handle, inputs).values()))

    for numeric_class in (NumericClass.FP32, NumericClass.LOW):
        ways[f"torch {device} {numeric_class.value}"] = with_torch(numeric_class, False)
    if compiled:
        ways[f"torch {device} fp32 compiled"] = with_torch(NumericClass.FP32, True)
    return ways


def measured(ways, turns):
    """Of each way: the least time of a run in seconds, and its output."""
    outputs = {way: run() for way, run in ways.items()}  # the first run loads and compiles
    times = {way: [] for way in ways}
    for _ in range(turns):
        for way, run in ways.items():
            start = time.perf_counter()
            run()
            times[way].append(time.perf_counter() - start)
    return {way: min(taken) for way, taken in times.items()}, outputs


def main():
    """Print a table for each model."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu", help="as torch names it, such as cuda")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    args = parser.parse_args()
    for numeric_class in (NumericClass.FP32, NumericClass.LOW):
        executor = TorchExecutor(args.device, numeric_class, threads=args.threads)
        executor.start_threads()
        print(executor.probe().runtime, numeric_class.value)
    for name in ("minilm", "magika", "cnn"):
        if not whole_models.is_installed(name):
            print(f"{name}: not installed")
            continue
        ways = runners(name, args.device, args.batch, args.threads, args.compile)
        times, outputs = measured(ways, args.turns)
        base, *_ = ways
        print(f"\n{name}, batch {args.batch}, {args.threads} threads on the CPU")
        print(f"{'':<28}{'time':>11}{'ratio':>8}{'difference':>12}")
        for way, taken in times.items():
            difference = np.abs(outputs[way] - outputs[base]).max()
            relative = difference / np.abs(outputs[base]).max()
            print(
                f"{way:<28}{taken * 1e3:>8.2f} ms{taken / times[base]:>8.2f}{relative:>12.1e}"
            )


if __name__ == "__main__":
    main()
