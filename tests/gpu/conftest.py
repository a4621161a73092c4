"""What needs a card: `make test-gpu`. Elsewhere one test stands for all, and says why."""

import os
from importlib.util import find_spec

import pytest


def why_not():
    """Why no kernel can run on a card in this process; empty where one can."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "kernels of this process run in Triton's interpreter: `make test-gpu`"
    if find_spec("torch") is None:
        return "PyTorch is not installed: pip install -c constraints.txt '.[gpu]'"
    import torch  # it takes seconds, and most processes stop above

    if not torch.cuda.is_available():
        return "PyTorch finds no card (CUDA's and ROCm's are both its `cuda`)"
    return ""


REASON = why_not()
collect_ignore_glob = ["test_*_on_card.py"] if REASON else []


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/gpu/" in item.path.as_posix():
            item.add_marker(pytest.mark.gpu)
            if REASON:
                item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture(scope="session")
def card_name():
    import torch

    return torch.cuda.get_device_name()
