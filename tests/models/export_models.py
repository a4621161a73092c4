"""Write the graphs of the whole models that PyTorch makes: run by hand, once.

``python tests/models/export_models.py`` (with tests/models and tests/vectors on
PYTHONPATH, and ``shoal[models]``) writes ``tests/vectors/programs``.
"""

import numpy as np
import onnx
import torch
import whole_models
from onnx import numpy_helper
from torch_modules import MiniLM, SmallCausal, SmallCausalStep, SmallCNN, theirs

from shoal import export

LARGE_BYTES = 1024


def modules():
    """Each model: its module, example inputs, and dynamic axes."""
    words = {0: "batch", 1: "tokens"}
    past = {1: "batch", 2: "past"}
    causal = drawn("causal", SmallCausal())
    return {
        "minilm": (
            MiniLM(),
            {
                "input_ids": torch.ones(2, 5, dtype=torch.int64),
                "attention_mask": torch.ones(2, 5, dtype=torch.int64),
            },
            {"input_ids": words, "attention_mask": words},
        ),
        "cnn": (
            drawn("cnn", SmallCNN()),
            {"image": torch.zeros(2, 3, 16, 16)},
            {"image": {0: "batch"}},
        ),
        "causal": (
            causal,
            {"input_ids": torch.ones(2, 5, dtype=torch.int64)},
            {"input_ids": words},
        ),
        whole_models.STEP: (
            SmallCausalStep(causal),
            {
                "input_ids": torch.ones(2, 1, dtype=torch.int64),
                "past_keys": torch.zeros(2, 2, 3, 64),
                "past_values": torch.zeros(2, 2, 3, 64),
            },
            {"input_ids": {0: "batch"}, "past_keys": past, "past_values": past},
        ),
    }


def drawn(name, module):
    """A module with the parameters that its name draws."""
    state = {
        key: torch.from_numpy(whole_models.parameter(name, key, tuple(value.shape)))
        for key, value in module.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    module.load_state_dict(state, strict=False)
    return module


def without_weights(model, name, state):
    """Take the large parameters out of a model, and note in its metadata which they were."""
    named = {key: value.numpy() for key, value in state.items()}
    del model.metadata_props[:]
    for tensor in model.graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.nbytes <= LARGE_BYTES:
            continue
        for key, parameter in named.items():
            forms = {"": parameter, ".T": parameter.T}
            suffix = next((s for s, form in forms.items() if np.array_equal(form, value)), None)
            if suffix is not None:
                source = theirs(key) if name == "minilm" else key.removeprefix("whole.")
                model.metadata_props.add(key=tensor.name, value=source + suffix)
                tensor.ClearField("raw_data")
                break
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    return model


def main():
    for name, (module, example_inputs, dynamic_axes) in modules().items():
        module.eval()
        model = export.to_onnx(module, example_inputs, dynamic_axes=dynamic_axes)
        bare = without_weights(model, name, module.state_dict())
        onnx.save(bare, whole_models.PROGRAMS / f"{name}.onnx")


if __name__ == "__main__":
    main()
