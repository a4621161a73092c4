"""The order of the test files: those that take longest begin first. And no test is timed.

What is marked ``soak`` is for `make soak` and `make soak-short`, which repeat nothing of
`make test`: beside their own files and the property tests, which draw more examples there,
they run what is marked alone.

`make test` hands out whole files to four processes. One that begins last should not be one
that takes a minute while three of them have nothing left to do; and not all four should have
daemons that run and wait for each other at once.
"""

import gc
import os
from itertools import islice

import hypothesis
import pytest

# Triton reads it when it is first imported, by whatever test: kernels of this process run on
# the CPU. What compiles them does so in a process of its own; `make test-gpu` sets 0.
os.environ.setdefault("TRITON_INTERPRET", "1")

hypothesis.settings.register_profile(
    "house",
    max_examples=100 if "SHOAL_SOAK_S" in os.environ else 50,
    deadline=None,  # machines are noisy: how fast drawing goes says nothing
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("house")

# Every process of `make test` imports all test files and makes thousands of items, none of
# which is garbage: looking for some takes a third of that time.
gc.disable()

NEEDS = {
    "e2e/test_kernel_jobs.py": ("torch", "triton"),
    "emulated/test_compiled_code.py": ("torch", "triton"),
    "gpu/test_card.py": ("torch", "triton"),
    "net/test_kernel_units.py": ("torch", "triton"),
    "net/test_torch_onnx_backend.py": ("torch",),
    "property/test_torch_hostile.py": ("torch",),
    "unit/test_exact_card.py": ("torch", "triton"),
    "unit/test_exact_card_challenge.py": ("torch", "triton"),
    "unit/test_exact_card_chains.py": ("torch", "triton"),
    "unit/test_exact_card_targets.py": ("torch", "triton"),
    "unit/test_torch_executor.py": ("torch",),
    "unit/test_torch_operators.py": ("torch",),
    "unit/test_torch_placement.py": ("torch",),
    "unit/test_triton_executor.py": ("torch", "triton"),
    "unit/test_user_kernels.py": ("torch", "triton"),
}
"""Files that import what not every machine has: gigabytes, where there is no build for CPUs."""

LONG = (
    "soak/",
    "unit/test_exact_card_targets.py",
    "e2e/test_owner.py",
    "e2e/test_lifecycle.py",
    "e2e/test_demo.py",
    "e2e/test_doctor.py",
    "e2e/test_why.py",
    "e2e/test_data_path.py",
    "e2e/test_bulk.py",
    "e2e/test_local_faults.py",
    "e2e/test_chaos.py",
    "e2e/test_notebook.py",
    "e2e/test_zoo.py",
    "e2e/test_malicious_provider.py",
    "e2e/test_private_network.py",
    "e2e/test_reachability.py",
    "e2e/test_those_who_serve.py",
    "e2e/test_shared_programs.py",
    "e2e/",
    "unit/test_exact_card.py",
    "emulated/test_compiled_code.py",
    "net/test_card_worker.py",
    "net/test_misbehaving_worker.py",
    "net/test_hostile_programs.py",
    "unit/test_torch_operators.py",
    "property/test_torch_hostile.py",
    "property/test_exact_cpu.py",
    "zoo/test_simulator.py",
    "net/test_card_faults.py",
    "net/test_kernel_units.py",
    "net/test_libp2p_compat.py",
    "net/test_exact_onnx_backend.py",
    "net/test_chained_jobs.py",
    "unit/test_exact_card",
    "unit/test_user_kernels.py",
    "unit/test_torch_executor.py",
    "emulated/",
    "property/test_judging.py",
    "property/test_exact_operators.py",
    "net/test_connection_limits.py",
    "interop/",
    "net/",
    "property/",
)
"""Beginnings of paths below ``tests/``; what is named earlier begins earlier."""

OTHERS_PER_E2E = 4
"""Files without daemons that are handed out after each that has them.

Those compute and these mostly wait: so many keep both going until little is left of either.
"""


def pytest_collection_modifyitems(config, items):
    tests = config.rootpath / "tests"
    soak = "SHOAL_SOAK_S" in os.environ

    def wanted(item):
        if item.get_closest_marker("soak"):
            return soak
        return not soak or item.path.relative_to(tests).parts[0] in ("soak", "property")

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = [item for item in items if wanted(item)]
    files = {}
    for item in items:  # within a file nothing moves
        files.setdefault(item.path.relative_to(tests).as_posix(), []).append(item)
    items[:] = [item for file in in_turns(sorted(files, key=place)) for item in files[file]]


def pytest_collection_finish():
    """From now on there is garbage; what was collected until now is never looked at again."""
    gc.freeze()
    gc.enable()


def place(file):
    """Where among the others a file begins."""
    return next((n for n, start in enumerate(LONG) if file.startswith(start)), len(LONG))


def in_turns(files):
    """The same files: one that has daemons, some that have none, and so on."""
    with_daemons = iter([file for file in files if file.startswith("e2e/")])
    others = iter([file for file in files if not file.startswith("e2e/")])
    while turn := [*islice(with_daemons, 1), *islice(others, OTHERS_PER_E2E)]:
        yield from turn


class NeedingModule(pytest.Module):
    """A test file that is skipped as a whole where a package is not installed."""

    def collect(self):
        for package in NEEDS[_place(self.path)]:
            pytest.importorskip(package, reason=f"{package} is not here: EXTRAS=…,gpu")
        return super().collect()


def pytest_pycollect_makemodule(module_path, parent):
    if _place(module_path) in NEEDS:
        return NeedingModule.from_parent(parent, path=module_path)
    return None


def _place(path):
    return "/".join(path.parts[-2:])
