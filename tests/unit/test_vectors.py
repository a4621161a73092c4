"""`tests/vectors/expected.json` is what the reference gives, alone, and what the CPU gives.

The reference runs in a process where numba cannot be imported.
"""

import json
import subprocess
import sys
from pathlib import Path

import make
import pytest
import whole_models
from cases import CASES

from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.digits import DigitKernels

TESTS = Path(__file__).parents[1]
EXPECTED = json.loads(make.EXPECTED.read_text())
ALONE = """
import sys
sys.path += sys.argv[1:]
sys.modules["numba"] = None  # importing it is an ImportError
import json, make
computed = make.compute()
print(json.dumps({"computed": computed, "modules": sorted(sys.modules)}))
"""


@pytest.fixture(scope="module")
def alone():
    """What `make.compute` gives in a process without numba, and the modules it imported."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(TESTS / "models"), str(TESTS / "vectors")],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cpu():
    return CpuKernels()


@pytest.fixture(scope="module")
def digits():
    return DigitKernels()


def test_the_reference_needs_no_compiler_and_no_other_runtime(alone):
    imported = {name.partition(".")[0] for name in alone["modules"]}
    assert imported.isdisjoint({"llvmlite", "torch", "onnxruntime"})
    assert not any("exact.cpu" in name for name in alone["modules"])


def test_the_inputs_are_drawn_as_they_were(alone):
    assert alone["computed"]["inputs"] == EXPECTED["inputs"]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_the_reference_gives_the_ids_of_an_operator(alone, case):
    assert alone["computed"]["operators"][case.name] == EXPECTED["operators"][case.name]


@pytest.mark.parametrize("name", whole_models.MODELS)
def test_the_reference_gives_the_ids_of_a_whole_model(alone, name):
    if not whole_models.is_installed(name):
        pytest.skip(f"the package that holds the weights of {name} is not installed")
    assert alone["computed"]["models"][name] == EXPECTED["models"][name]


def test_nothing_is_expected_that_is_not_made():
    assert EXPECTED["operators"].keys() == {case.name for case in CASES}
    assert EXPECTED["models"].keys() == set(whole_models.MODELS)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
@pytest.mark.parametrize("kernels", ["cpu", "digits"])
def test_numba_and_digits_give_the_ids_of_an_operator(request, kernels, case):
    computed = make.operator(case, request.getfixturevalue(kernels))
    assert computed == EXPECTED["operators"][case.name]


@pytest.mark.parametrize("name", whole_models.MODELS)
@pytest.mark.parametrize("kernels", ["cpu", "digits"])
def test_numba_and_digits_give_the_ids_of_a_whole_model(request, kernels, name):
    if not whole_models.is_installed(name):
        pytest.skip(f"the package that holds the weights of {name} is not installed")
    assert make.model(name, request.getfixturevalue(kernels)) == EXPECTED["models"][name]
