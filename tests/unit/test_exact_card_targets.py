"""The card's kernels compile for both vendors' cards with no card here.

`make soak` and `make soak-short` compile every kernel for every generation; the tests of
each day a function and a scatter.
"""

import json
import os
import subprocess
import sys

import pytest

FEW = ("unary_kernel[NAME=gelu,", "add_kernel[TARGETED=True")
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
