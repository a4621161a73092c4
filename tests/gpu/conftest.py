"""What needs a card: `make test-gpu`. Elsewhere each test is skipped, and says why."""

import os

import pytest
import torch


def why_not():
    """Why no kernel can run on a card in this process; empty where one can."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "kernels of this process run in Triton's interpreter; run `make test-gpu`"
    if not torch.cuda.is_available():
        return "PyTorch finds no card (CUDA and ROCm are both its `cuda`)"
    return ""


def pytest_collection_modifyitems(items):
    reason = why_not()
    for item in items:
        if "tests/gpu/" not in item.path.as_posix():
            continue
        item.add_marker(pytest.mark.gpu)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def card_name():
    return torch.cuda.get_device_name()
