"""The size of a fraud proof about MiniLM, and how long `shoal proof verify` takes over it.

Batch 32, 128 tokens. The lie is one bit of the output of the largest operators in turn. Needs
``shoal[models]``.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path += [
    str(Path(__file__).parents[1] / name) for name in ("models", "vectors", "property")
]

BATCH, TOKENS, TARGET_S = 32, 128, 10.0


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
    print(f"MiniLM {BATCH} x {TOKENS}: {len(leaves)} operators, "
          f"traced in {time.perf_counter() - started:.1f} s")
    largest = {}
    for node, leaf in zip(sample.graph.nodes, leaves, strict=True):
        if node.operator in {"MatMul", "Gemm", "Softmax", "LayerNormalization", "Erf", "Gelu"}:
            largest.setdefault((node.operator, sizes(sample, leaf, kernels, node)), leaf)
    print(f"{'operator':<22}{'proof':>9}{'blobs':>10}{'verify':>9}   target {TARGET_S:g} s")
    chosen = sorted(largest.items(), key=lambda item: -item[0][1])[:6]
    for (operator, _), leaf in chosen:
        false = type(leaf)(leaf.index, leaf.operator, leaf.version, leaf.inputs,
                           ("ab" * 32,) * len(leaf.outputs))
        shown = [leaf_bytes(each) for each in leaves]
        shown[leaf.index] = leaf_bytes(false)
        award = an_award(sample)
        receipt = a_receipt(sample, award, sample.outputs(leaves))
        digests = [leaf_of(each) for each in shown]
        path = Search(root_of(digests), len(digests), digests).path_of(leaf.index)
        proof = fraud_proof.encode(
            accusing._proof(
                "operator", award, receipt,
                root=a_root(receipt, shown),
                leaves=[fraud_proof.Opening(leaf.index, shown[leaf.index], path)],
                blobs=(sample.program_id, sample.manifest.graph,
                       *(each for each in leaf.inputs if each)),
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
        print(f"{operator + ' ' + str(leaf.index):<22}{len(proof):>7} B{size / 1e6:>7.1f} MB"
              f"{took_s:>8.2f}s   {done.stdout.split()[0]}")


def sizes(sample, leaf, kernels, node):
    """Multiply-adds of an operator, or its elements; of those alike one is measured."""
    from shoal.compute.tensor import from_blob

    if node.operator in {"MatMul", "Gemm"}:
        key = (node.operator, node.inputs[1] in sample.traceable.constants)
        if key not in _SEEN or _SEEN[key] < 2:
            _SEEN[key] = _SEEN.get(key, 0) + 1
            found = tracing_of(sample, leaf, kernels)
            return found
        return 0
    if node.operator in _SEEN:
        return 0
    _SEEN[node.operator] = 1
    from_blob  # noqa: B018
    return 1


_SEEN = {}


def tracing_of(sample, leaf, kernels):
    from shoal.compute.exact import tracing

    return tracing.tensors_of(sample.traceable, sample.inputs, kernels, leaf.index).multiply_adds


if __name__ == "__main__":
    main()
