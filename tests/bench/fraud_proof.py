"""The size of a fraud proof about MiniLM, and how long `shoal proof verify` takes over it.

Batch 32, 128 tokens; targets: 100 KB without blobs, 10 s. The lie is the output of one operator
after the other. Needs ``shoal[models]``.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path += [
    str(Path(__file__).parents[1] / name) for name in ("models", "vectors", "property")
]

BATCH, TOKENS = 32, 128
OPERATORS = {"MatMul", "Gemm", "Softmax", "LayerNormalization", "Erf", "Gelu"}


def main():
    """Print the table."""
    import fraud_samples
    import whole_models
    from fraud_samples import a_receipt, a_root, an_award

    from shoal.compute import accusing
    from shoal.compute.convert import convert
    from shoal.compute.exact import tracing
    from shoal.compute.exact.cpu import CpuKernels
    from shoal.compute.exact.leaves import leaf_bytes
    from shoal.crypto.merkle import leaf_of, root_of
    from shoal.protocol.verification import fraud_proof
    from shoal.protocol.verification.search import Search

    program = convert(whole_models.onnx_bytes("minilm"), "x20")
    inputs = whole_models.inputs("minilm", BATCH, TOKENS)
    sample = fraud_samples.Sample(program.program_id, dict(program.blobs), inputs)
    kernels = CpuKernels(2)
    started = time.perf_counter()
    leaves = tracing.trace(sample.traceable, sample.inputs, kernels)
    print(
        f"MiniLM {BATCH} x {TOKENS}: {len(leaves)} operators, "
        f"traced in {time.perf_counter() - started:.1f} s"
    )
    chosen = {}
    for node, leaf in zip(sample.graph.nodes, leaves, strict=True):
        if node.operator in OPERATORS:  # the first of each kind, and eight products
            count = sum(operator == node.operator for operator, _ in chosen)
            if count < (8 if node.operator == "MatMul" else 1):
                chosen[node.operator, leaf.index] = leaf
    print(f"{'operator':<26}{'multiply-adds':>14}{'proof':>9}{'blobs':>10}{'verify':>9}")
    for (operator, _), leaf in chosen.items():
        false = type(leaf)(
            leaf.index,
            leaf.operator,
            leaf.version,
            leaf.inputs,
            ("ab" * 32,) * len(leaf.outputs),
        )
        shown = [leaf_bytes(each) for each in leaves]
        shown[leaf.index] = leaf_bytes(false)
        award = an_award(sample)
        receipt = a_receipt(sample, award, sample.outputs(leaves))
        digests = [leaf_of(each) for each in shown]
        path = Search(root_of(digests), len(digests), digests).path_of(leaf.index)
        proof = fraud_proof.encode(
            accusing._proof(
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
        )
        found = tracing.tensors_of(sample.traceable, sample.inputs, kernels, leaf.index)
        blobs = sample.blobs | dict(found.blobs)
        with tempfile.TemporaryDirectory() as directory:
            named = fraud_proof.decode(proof).blobs
            for blob_id in named:
                (Path(directory) / blob_id).write_bytes(blobs[blob_id])
            file = Path(directory) / "it.proof"
            file.write_bytes(proof)
            started = time.perf_counter()
            command = [sys.executable, "-m", "shoal.node.cli", "proof", "verify", str(file)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            took_s = time.perf_counter() - started
        size = sum(len(blobs[blob_id]) for blob_id in named)
        print(
            f"{operator + ' ' + str(leaf.index):<26}{found.multiply_adds / 1e9:>12.2f} G"
            f"{len(proof):>7} B{size / 1e6:>7.1f} MB{took_s:>8.2f}s   {done.stdout.split()[0]}"
        )


if __name__ == "__main__":
    main()
