"""The executor of users' kernels, with a card's driver that is a fake.

What is real here: parsing, the rules, compiling, Triton's kernel object and how it launches.
What is not: the card, whose memory is this process's, and on which numpy runs the kernel.
`tests/gpu/test_kernel_jobs.py` is the same on a card.
"""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import user_kernels
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors import triton as executor
from shoal.compute.executors.base import Evidence, NumericClass
from shoal.compute.loading import load


def floats(tensor):
    return tensor.numpy().view(np.float32)


def run_softmax(grid, x, y, n):
    rows = floats(x).reshape(grid[0], n)
    powers = np.exp(rows - rows.max(1, keepdims=True))
    floats(y)[:] = (powers / powers.sum(1, keepdims=True)).reshape(-1)


def run_add_multiply(grid, x, z, y, n, factor):
    assert grid == (-(-n // 256), 1, 1)
    floats(y)[:] = floats(x) * factor + floats(z)


def run_count_up(grid, x, n, limit):
    assert (grid, limit) == ((1, 1, 1), 1 << 40)
    x.numpy().view(np.int64)[:] += n


KERNELS = {"softmax": run_softmax, "add_multiply": run_add_multiply, "count_up": run_count_up}


class Card:
    """What Triton's driver does with a card, as far as the executor goes."""

    def __init__(self):
        self.launched = []
        self.fault = None
        self.target = GPUTarget("cuda", 80, 32)
        self.utils = SimpleNamespace(
            load_binary=self.load_binary,
            get_device_properties=lambda _: {"max_shared_mem": 160 << 10},
        )
        self.launcher_cls = self.launcher

    def load_binary(self, name, binary, shared, device):
        assert binary.startswith(b"\x7fELF")
        return object(), name, 32, 0, 1024

    def launcher(self, source, metadata):
        def launch(
            x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments
        ):
            assert len(arguments) == len(source.signature)
            assert packed == (metadata.num_warps, 1, metadata.shared)
            self.launched.append((function, (x, y, z)))
            if self.fault:
                raise self.fault
            KERNELS[function]((x, y, z), *arguments)

        return launch

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 7

    def get_current_target(self):
        return self.target


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    return user_kernels.lowered(tmp_path_factory.mktemp("kernels"))[0]


@pytest.fixture
def card(monkeypatch):
    card = Card()
    monkeypatch.setattr(driver, "_active", card)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    return card


@pytest.fixture
def triton_executor(card):
    return executor.Triton("cpu")


def prepared(triton_executor, programs, name):
    program = programs[name]
    return triton_executor.prepare(load(program.program_id, program.blobs))


def test_a_kernel_is_launched_over_tensors_by_name(triton_executor, programs, card):
    x = np.random.default_rng(1).normal(size=(3, 100)).astype(np.float32)
    handle = prepared(triton_executor, programs, "softmax")
    (y,) = triton_executor.run(handle, {"x": x}).values()
    assert y.shape == (3, 100)
    np.testing.assert_allclose(y, np.exp(x) / np.exp(x).sum(1, keepdims=True), rtol=1e-5)
    assert card.launched == [("softmax", (3, 1, 1))]


def test_numbers_go_where_the_function_has_them(triton_executor, programs):
    x, z = np.arange(1000, dtype=np.float32), np.ones(1000, np.float32)
    handle = prepared(triton_executor, programs, "add_multiply")
    assert np.array_equal(triton_executor.run(handle, {"z": z, "x": x})["y"], 3 * x + 1)


def test_a_tensor_changed_in_place_leaves_the_one_that_was_given_as_it_is(
    triton_executor, programs
):
    x = np.arange(10, dtype=np.int64)
    x.flags.writeable = False
    handle = prepared(triton_executor, programs, "count_up")
    assert np.array_equal(triton_executor.run(handle, {"x": x})["x"], x + 10)


def test_an_empty_grid_runs_nothing_and_gives_empty_outputs(triton_executor, programs, card):
    handle = prepared(triton_executor, programs, "softmax")
    y = triton_executor.run(handle, {"x": np.zeros((0, 4), np.float32)})["y"]
    assert (y.shape, y.dtype, card.launched) == ((0, 4), np.float32, [])


def test_a_grid_over_the_cards_limits_is_refused_before_anything_runs(
    triton_executor, programs, card
):
    handle = prepared(triton_executor, programs, "product")
    # An axis of 65536 × 32 columns; no memory is taken for them.
    a = np.zeros((0, 1), np.float32)
    b = np.broadcast_to(np.float32(0), (1, 65536 * 32))
    with pytest.raises(ProgramError) as refused:
        triton_executor.run(handle, {"a": a, "b": b})
    assert (refused.value.code, card.launched) == ("grid_too_large", [])


def test_a_launch_that_hip_cannot_count_is_refused(triton_executor, programs, card):
    card.target = GPUTarget("hip", "gfx90a", 64)
    handle = prepared(triton_executor, programs, "softmax")
    rows = np.broadcast_to(np.float32(0), (2**24, 0))
    with pytest.raises(ProgramError, match="4294967296 threads") as refused:
        triton_executor.run(handle, {"x": rows})
    assert (refused.value.code, card.launched) == ("grid_too_large", [])


def test_what_a_cards_runtime_raises_is_left_to_the_worker_to_name(
    triton_executor, programs, card
):
    card.fault = RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered")
    handle = prepared(triton_executor, programs, "softmax")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        triton_executor.run(handle, {"x": np.zeros((1, 4), np.float32)})


def test_a_kernel_that_takes_more_of_a_card_than_it_has_is_not_for_it(
    triton_executor, programs, card, monkeypatch
):
    from triton.compiler import compiler

    monkeypatch.setattr(compiler, "max_shared_mem", lambda _device: 1024)
    with pytest.raises(ComputeError) as refused:
        prepared(triton_executor, programs, "product")
    assert refused.value.code == "not_for_this_card"


def test_what_was_ended_says_so(triton_executor, programs, monkeypatch):
    handle = prepared(triton_executor, programs, "softmax")
    monkeypatch.setitem(KERNELS, "softmax", lambda *_: triton_executor.terminate())
    with pytest.raises(ComputeError) as ended:
        triton_executor.run(handle, {"x": np.zeros((1, 4), np.float32)})
    assert ended.value.code == "terminated"


def test_under_the_interpreter_it_says_that_it_does_not_work(triton_executor):
    with pytest.raises(ComputeError, match="TRITON_INTERPRET") as refused:
        triton_executor.probe()
    assert refused.value.code == "probe_failed"


@pytest.mark.parametrize(
    "target", ["GPUTarget('cuda', 90, 32)", "GPUTarget('hip', 'gfx90a', 64)"]
)
def test_for_a_card_that_is_not_here_it_shows_that_kernels_compile_and_no_more(target):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    script = f"""
from triton.backends.compiler import GPUTarget
from shoal.compute.executors.triton import compiles
probe = compiles({target})
print(probe.runtime, probe.numeric_class.value, probe.evidence.value, sep="|")
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    said = done.stdout.strip()
    name, _, arch = said.partition("|")[0].partition(" for ")
    assert name.startswith("triton 3.")
    assert arch in {"sm_90", "gfx90a"}
    assert said.endswith(f"|{NumericClass.KERNEL.value}|{Evidence.COMPILE_ONLY.value}")
