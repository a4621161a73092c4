"""The card's kernels compile for both vendors' cards with no card here.

`make soak` and `make soak-short` compile every kernel for every generation; the tests of
each day a function and a scatter.
"""

import inspect
import json
import os
import subprocess
import sys

import pytest

from shoal.compute.exact.gpu.kernels import variants

KEYS = """
import itertools
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import create_function_from_signature
from shoal.compute.exact.gpu.steps import chain_kernel as kernel

x, chain = torch.empty(64), {"READS": "all", "STEPS": "exp 0", "WIDE": False, "BLOCK": 1024}
backend = make_backend(GPUTarget("cuda", 90, 32))
told_apart_by = create_function_from_signature(kernel.signature, kernel.params, backend)
sizes = itertools.product((1, 7, 16, 1 << 40), repeat=3)
print(len({str(told_apart_by(*[x] * 10, *s, *[1] * 14, **chain)[1]) for s in sizes}))
"""
FEW = ("STEPS=add 0 1; gelu 2,", "add_kernel[TARGETED=True")
TARGETS = {"sm_80", "sm_90", "gfx90a", "gfx942", "gfx1100"}


def compiled(cache, *arguments):
    """The rows that the command gives, and how it ended."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "shoal.compute.exact.gpu", "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
    )
    return [json.loads(line) for line in done.stdout.splitlines()], done


@pytest.mark.parametrize("kernel", FEW)
def test_a_kernel_compiles_for_every_generation(kernel, tmp_path):
    rows, done = compiled(tmp_path, "--kernel", kernel)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["target"] for row in rows} == TARGETS
    assert all(row["size_bytes"] > 0 and not row["error"] for row in rows)
    assert all(0 < row["registers"] <= 512 for row in rows)


def test_a_chain_is_compiled_once_for_all_sizes():
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", KEYS],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert done.stdout.split() == ["1"]


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_where_a_package_is_missing_the_command_says_what_to_install(package):
    code = (
        f"import runpy, sys; sys.modules[{package!r}] = None\n"
        "runpy.run_module('shoal.compute.exact.gpu', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {package} is not installed")
    assert "next: in a checkout of shoal: `pip install" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_launch_has_the_whole_numbers_types_that_are_compiled_ahead_of_time():
    for variant in variants():
        declared = inspect.get_annotations(variant.kernel.fn, eval_str=False)
        wide = {name for name, kind in variant.signature.items() if kind == "i64"}
        assert wide == {n for n, kind in declared.items() if kind == "tl.int64"}, variant.name


@pytest.mark.soak
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_kernel_compiles(target, tmp_path):
    rows, done = compiled(tmp_path, "--target", target)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(rows) > 100


def test_a_kernel_that_is_not_there_is_named(tmp_path):
    rows, done = compiled(tmp_path, "--kernel", "no_such_kernel")
    assert (rows, done.returncode) == ([], 2)
    assert "no_such_kernel" in done.stderr
