"""What a node gives for judging others' proofs about MiniLM, and what its own units lose by it.

Each proof is judged as the daemon does it: in a locked-in process of its own at the lowest
priority. Seconds of a processor include that process's start; beside other work the seconds
by the clock are many times as many. Then units of this node's own run with and without proofs
of whole units being judged beside them, in turns; the ratio of the medians is the loss.
Needs ``shoal[models]``.

python tests/bench/judging.py [BATCH [TOKENS]]
"""

import os
import sys
import time
from pathlib import Path
from statistics import median

sys.path += [
    str(Path(__file__).parents[1] / name) for name in ("models", "vectors", "property")
]

import fraud_proof as bench
import fraud_samples
import psutil
import trio
import whole_models
from fraud_samples import a_receipt, an_award

from shoal.compute import accusing
from shoal.compute.convert import convert
from shoal.compute.exact import tracing
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.frames import UnitLimits
from shoal.compute.judging import missing
from shoal.compute.supervisor import open_worker
from shoal.compute.tensor import to_blob
from shoal.protocol.verification import fraud_proof

OPERATORS = {"Gather", "MatMul", "LayerNormalization", "Softmax", "Erf", "Div"}
LIMITS = UnitLimits(time_s=1800.0, memory_bytes=8 << 30, output_bytes=1 << 20)
PROCESSOR_S = 600.0
ROUNDS, UNITS_IN_A_ROUND = 8, 6
UNITS_NICENESS = 5


def proofs(sample):
    """A proof of each kind of operator, and one of the whole unit."""
    kernels = CpuKernels(1)
    leaves = tracing.trace(sample.traceable, sample.inputs, kernels)
    chosen = {leaf.operator: leaf for leaf in reversed(leaves) if leaf.operator in OPERATORS}
    for operator, leaf in sorted(chosen.items()):
        found = tracing.tensors_of(sample.traceable, sample.inputs, kernels, leaf.index)
        blobs = sample.blobs | dict(found.blobs)
        yield f"{operator} {leaf.index}", bench.operator_proof(sample, leaves, leaf), blobs
    award = an_award(sample)
    receipt = a_receipt(sample, award, dict.fromkeys(sample.graph.outputs, bench.FALSE))
    yield "the whole unit", accusing.unit_proof(award, receipt), sample.blobs


def needed(proof, blobs):
    """Just the blobs that judging it takes."""
    held = {}
    while lacking := missing(proof, held):
        held |= {blob_id: blobs[blob_id] for blob_id in lacking}
    return held


async def peak_of_children(peak):
    """Keep the most memory that a child of this process has had, in bytes."""
    while True:
        for child in psutil.Process(os.getpid()).children():
            try:
                peak[0] = max(peak[0], child.memory_info().rss)
            except psutil.Error:
                continue
        await trio.sleep(0.02)


async def judge(worker, name, proof, blobs):
    """One line of the table."""
    held, peak, before_s = needed(proof, blobs), [0], worker.judging_s
    data, began_s = fraud_proof.encode(proof), time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peak_of_children, peak)
        verdict = await worker.judge(data, held, LIMITS, PROCESSOR_S)
        nursery.cancel_scope.cancel()
    size = sum(map(len, held.values()))
    print(
        f"{name:<26}{len(data):>7} B{size / 1e6:>8.2f} MB{worker.judging_s - before_s:>8.2f}"
        f"{time.perf_counter() - began_s:>8.2f}{peak[0] / 2**20:>8.0f}   {verdict.outcome}",
        flush=True,
    )


async def units(worker, sample):
    """Run some units; gives the seconds of each."""
    inputs = {name: to_blob(array) for name, array in sample.inputs.items()}
    took = []

    async def blobs():
        return sample.blobs

    for _ in range(UNITS_IN_A_ROUND):
        began_s = time.perf_counter()
        await worker.run("ann", sample.program_id, blobs, inputs, LIMITS)
        took.append(time.perf_counter() - began_s)
    return took


async def loss(worker, sample, proof, blobs):
    """How much longer units take while proofs are judged beside them."""
    data, held = fraud_proof.encode(proof), needed(proof, blobs)

    async def keep_judging():
        while True:
            await worker.judge(data, held, LIMITS, PROCESSOR_S)

    await worker.enable_exact()
    await units(worker, sample)
    alone, beside = [], []
    for _ in range(ROUNDS):
        alone += await units(worker, sample)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_judging)
            beside += await units(worker, sample)
            nursery.cancel_scope.cancel()
    print(
        f"\na unit of this node's own: {median(alone) * 1e3:.0f} ms alone, "
        f"{median(beside) * 1e3:.0f} ms beside judging: {median(beside) / median(alone):.2f}x"
    )


async def main(batch, tokens):
    """Print both."""
    program = convert(whole_models.onnx_bytes("minilm"), "x20")
    inputs = whole_models.inputs("minilm", batch, tokens)
    sample = fraud_samples.Sample(program.program_id, dict(program.blobs), inputs)
    cores = os.cpu_count() or 1
    async with open_worker(threads=cores, niceness=UNITS_NICENESS) as worker:
        print(f"MiniLM {batch} x {tokens}")
        print(f"{'proof of':<26}{'size':>9}{'blobs':>11}{'CPU s':>8}{'s':>8}{'MiB':>8}")
        for name, proof, blobs in proofs(sample):
            await judge(worker, name, proof, blobs)
        await loss(worker, sample, proof, blobs)


if __name__ == "__main__":
    trio.run(main, *(map(int, sys.argv[1:3]) if len(sys.argv) > 2 else (2, 32)))
