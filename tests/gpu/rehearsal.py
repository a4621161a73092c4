"""Whether there is a card, or a rehearsal without one, and what then stands in for it.

``SHOAL_REHEARSE=1`` (`make rehearse-gpu`): exact kernels run in Triton's interpreter, torch on
the CPU, users' kernels on a driver that is a fake (``stand_in_driver.py``). It executes what
the tests are made of, with fewer cases and smaller sizes; it shows nothing of a card.
"""

import os
import resource
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest

REHEARSED = os.environ.get("SHOAL_REHEARSE") == "1"

DEVICE = "cpu" if REHEARSED else "cuda:0"
"""Where tensors lie."""

LEFT_OUT = (
    "whole models of the exact class but the convolutional one: minutes in the interpreter",
    "products whose sums are longer than 32,768 terms: likewise",
    "atomic additions by threads at once, cards' compilers: the interpreter has none",
    "a card's own memory limit: the worker says what torch would",
    "the canary of users' kernels: it is lowered in this process, which interprets",
    "a job of a kernel: nothing runs its Triton IR without a card; a model's job stands in",
)
"""What a rehearsal does not do; what it does otherwise is said where that is."""


def why_not():
    """Why these tests cannot run in this process; empty where they can."""
    absent = [name for name in ("torch", "triton") if find_spec(name) is None]
    if absent:
        return f"{' and '.join(absent)} not installed: pip install -c constraints.txt '.[gpu]'"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if REHEARSED:
        return "" if interpreted else "a rehearsal takes TRITON_INTERPRET=1"
    if interpreted:
        return "kernels of this process run in Triton's interpreter: `make test-gpu`"
    import torch  # it takes seconds, and most processes stop above

    if not torch.cuda.is_available():
        return "PyTorch finds no card (CUDA's and ROCm's are both its `cuda`)"
    return ""


def some(things, count):
    """All of them on a card; in a rehearsal so many, from the first to the last."""
    things = list(things)
    if not REHEARSED or len(things) <= count:
        return things
    step = (len(things) - 1) / (count - 1)
    return [things[round(n * step)] for n in range(count)]


def leave_out(what):
    """Skip in a rehearsal, by one of the reasons above."""
    if REHEARSED:
        (reason,) = (reason for reason in LEFT_OUT if reason.startswith(what))
        pytest.skip(f"rehearsal: {reason}")


@contextmanager
def little_memory(more_bytes):
    """In a rehearsal this process may take so much more; a card has what it has."""
    if not REHEARSED:
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
