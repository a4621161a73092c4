"""The size of a fraud proof, and how long `shoal proof verify` takes over it.

MiniLM at 32 x 128 tokens: the lie is the output of one operator after the other, then the whole
unit (whose provider gave no trace); and one product alone, as large as the widest of a model of
7 G parameters at 4,096 tokens. Targets: 100 KB without blobs, 10 s. Seconds are of the whole
command, Python's start among them; CPU seconds tell what a machine with other work adds.
Needs ``shoal[models]``.

python tests/bench/fraud_proof.py [--only operators | unit | product]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path += [
    str(Path(__file__).parents[1] / name) for name in ("models", "vectors", "property")
]

import fraud_samples
import numpy as np
import whole_models
from fraud_samples import a_receipt, a_root, an_award
from onnx import parser

from shoal.compute import accusing
from shoal.compute.convert import convert
from shoal.compute.exact import tracing
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.leaves import leaf_bytes
from shoal.compute.judging import missing
from shoal.crypto.merkle import leaf_of, root_of
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.search import Search

BATCH, TOKENS = 32, 128
OPERATORS = {"MatMul", "Gemm", "Softmax", "LayerNormalization", "Erf", "Gelu"}
LARGE = (4096, 4096, 11008)
TARGET_BYTES, TARGET_S = 100_000, 10.0
FALSE = "ab" * 32


def verify(name, proof, blobs):
    """One line of the table: the command in a process of its own, on files."""
    data = fraud_proof.encode(proof)
    with tempfile.TemporaryDirectory() as directory:
        size = 0
        held = {}
        while needed := missing(proof, held):
            for blob_id in needed:
                held[blob_id] = bytes(blobs[blob_id])
                (Path(directory) / blob_id).write_bytes(held[blob_id])
                size += len(held[blob_id])
        file = Path(directory) / "it.proof"
        file.write_bytes(data)
        del held
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter()
        command = [sys.executable, "-m", "shoal.node.cli", "proof", "verify", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        took_s = time.perf_counter() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    met = took_s <= TARGET_S and len(data) <= TARGET_BYTES
    print(
        f"{name:<26}{len(data):>7} B{size / 1e6:>8.1f} MB{took_s:>8.2f}{cpu_s:>8.2f}"
        f"   {done.stdout.split()[0]:<10} {'met' if met else 'MISSED'}",
        flush=True,
    )


def operator_proof(sample, leaves, leaf):
    """The proof against whoever says that an operator gives something else."""
    false = type(leaf)(
        leaf.index, leaf.operator, leaf.version, leaf.inputs, (FALSE,) * len(leaf.outputs)
    )
    shown = [leaf_bytes(each) for each in leaves]
    shown[leaf.index] = leaf_bytes(false)
    award = an_award(sample)
    receipt = a_receipt(sample, award, sample.outputs(leaves))
    digests = [leaf_of(each) for each in shown]
    path = Search(root_of(digests), len(digests), digests).path_of(leaf.index)
    return accusing._proof(
        "operator",
        award,
        receipt,
        root=a_root(receipt, shown),
        leaves=[fraud_proof.Opening(leaf.index, shown[leaf.index], path)],
        blobs=(
            sample.program_id,
            sample.manifest.graph,
            *(each for each in leaf.inputs if each),
        ),
    )


def operators(sample, kernels):
    """The first of each kind, and eight products."""
    leaves = tracing.trace(sample.traceable, sample.inputs, kernels)
    chosen = []
    for node, leaf in zip(sample.graph.nodes, leaves, strict=True):
        count = sum(leaf.operator == node.operator for leaf in chosen)
        if node.operator in OPERATORS and count < (8 if node.operator == "MatMul" else 1):
            chosen.append(leaf)
    for leaf in chosen:
        found = tracing.tensors_of(sample.traceable, sample.inputs, kernels, leaf.index)
        proof = operator_proof(sample, leaves, leaf)
        verify(f"{leaf.operator} {leaf.index}", proof, sample.blobs | dict(found.blobs))


def unit(sample):
    """The whole unit, whose provider gave no trace."""
    award = an_award(sample)
    receipt = a_receipt(sample, award, dict.fromkeys(sample.graph.outputs, FALSE))
    verify("the whole unit", accusing.unit_proof(award, receipt), sample.blobs)


def product(kernels):
    """One large product, both operands of which come with the unit."""
    m, k, n = LARGE
    model = parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 20]> one (float[{m},{k}] a, float[{k},{n}] b) '
        f"=> (float[{m},{n}] y) {{ y = MatMul (a, b) }}"
    )
    program = convert(model.SerializeToString(), "x20")
    rng = np.random.default_rng(1)
    inputs = {
        "a": rng.standard_normal((m, k), np.float32),
        "b": rng.standard_normal((k, n), np.float32),
    }
    sample = fraud_samples.Sample(program.program_id, dict(program.blobs), inputs)
    leaves = tracing.trace(sample.traceable, sample.inputs, kernels)
    verify(
        f"MatMul, {m * k * n / 1e9:.0f} G mult.-adds",
        operator_proof(sample, leaves, leaves[0]),
        sample.blobs,
    )


def main():
    """Print the table."""
    options = argparse.ArgumentParser()
    options.add_argument("--only", choices=("operators", "unit", "product"))
    only = options.parse_args().only
    kernels = CpuKernels(2)
    print(f"{'the lie':<26}{'proof':>9}{'blobs':>11}{'wall s':>8}{'CPU s':>8}")
    if only != "product":
        program = convert(whole_models.onnx_bytes("minilm"), "x20")
        inputs = whole_models.inputs("minilm", BATCH, TOKENS)
        sample = fraud_samples.Sample(program.program_id, dict(program.blobs), inputs)
        if only != "unit":
            operators(sample, kernels)
        if only != "operators":
            unit(sample)
    if only in {None, "product"}:
        product(kernels)


if __name__ == "__main__":
    main()
