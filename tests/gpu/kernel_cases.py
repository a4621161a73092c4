"""Users' kernels with inputs, and what torch makes of the same."""

import numpy as np
import torch
import user_kernels
from rehearsal import DEVICE, REHEARSED

RANDOM = np.random.default_rng(11)


def floats(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


INPUTS = {
    "softmax": {"x": floats(300, 777)},
    "add_multiply": {"x": floats(100_001), "z": floats(100_001)},
    "product": {"a": floats(130, 70), "b": floats(70, 250)},
    "count_up": {"x": np.arange(37, dtype=np.int64)},
}


def lowered(directory):
    """The programs, and hostile texts; a process that interprets has another one lower them."""
    if REHEARSED:
        return user_kernels.lowered(directory)
    return user_kernels.programs(), user_kernels.hostile_texts()


def expected(name, inputs):
    on_card = {n: torch.from_numpy(array).to(DEVICE) for n, array in inputs.items()}
    match name:
        case "softmax":
            return {"y": torch.softmax(on_card["x"], 1)}
        case "add_multiply":
            return {"y": 3 * on_card["x"] + on_card["z"]}
        case "product":
            return {"c": on_card["a"] @ on_card["b"]}
    return {"x": 2 * on_card["x"] + on_card["x"].numel()}  # what was there, and the count


def assert_right(name, found):
    right = expected(name, INPUTS[name])
    assert found.keys() == right.keys()
    for output, tensor in right.items():
        np.testing.assert_allclose(found[output], tensor.cpu().numpy(), rtol=1e-4, atol=1e-4)
