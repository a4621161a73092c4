"""A real card gives the ids that every node gives: all vectors, and the whole models."""

import json

import make
import numpy as np
import pytest
import whole_models
from cases import CASES, PRECISIONS
from exact_runs import ids_of, outcome, prepared
from rehearsal import DEVICE, REHEARSED, leave_out, some

from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.gpu.card import Card
from shoal.compute.exact.gpu.kernels import CardKernels
from shoal.compute.exact.spec import PRECISIONS as ALL_PRECISIONS
from shoal.compute.executors.exact import Exact

EXPECTED = json.loads(make.EXPECTED.read_text())
INSTALLED = [name for name in whole_models.MODELS if whole_models.is_installed(name)]
SIZES = [(1, 1, 1), (300, 1000, 700), (129, 70_000, 65)]
REHEARSED_SIZES = [(1, 1, 1), (30, 100, 70)]

# The interpreter divides by zero where a card would, before the kernel looks at the result.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in :RuntimeWarning")


@pytest.fixture(scope="module", params=["digits", "float64"])
def kernels(request):
    return CardKernels(Card(DEVICE), request.param)


@pytest.fixture(scope="module")
def cpu():
    return CpuKernels()


@pytest.mark.parametrize("case", some(CASES, 24), ids=lambda case: case.name)
def test_every_vector_has_the_id_that_all_backends_give(case, kernels):
    model, inputs = case.model().SerializeToString(), case.inputs()
    given = {name: outcome(model, inputs, name, kernels) for name in case.precisions}
    assert given == EXPECTED["operators"][case.name]


@pytest.mark.parametrize("precision", some(PRECISIONS, 2))
@pytest.mark.parametrize("name", INSTALLED)
def test_a_whole_model_has_the_id_that_all_backends_give(name, precision, kernels):
    if name != "cnn":
        leave_out("whole models")
    data, inputs = whole_models.onnx_bytes(name), make.model_inputs(name)
    assert outcome(data, inputs, precision, kernels) == EXPECTED["models"][name][precision]


@pytest.mark.parametrize("precision", some(PRECISIONS, 2))
@pytest.mark.parametrize("name", INSTALLED)
def test_a_larger_batch_of_a_whole_model_is_the_cpu_s(name, precision, kernels, cpu):
    if name != "cnn":
        leave_out("whole models")
    batch, tokens = (2, 8) if REHEARSED else (8, 64)
    data, inputs = whole_models.onnx_bytes(name), whole_models.inputs(name, batch, tokens)
    on_cpu = ids_of(prepared(data, precision, cpu)(inputs))
    assert ids_of(prepared(data, precision, kernels)(inputs)) == on_cpu


@pytest.mark.parametrize("shape", REHEARSED_SIZES if REHEARSED else SIZES, ids=str)
@pytest.mark.parametrize("axis", ["column", "k"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_products_of_awkward_sizes_are_the_cpu_s(shape, axis, precision, kernels, cpu):
    rows, terms, columns = shape
    rng = np.random.default_rng(1)
    a = (rng.normal(size=(rows, terms)) * 2.0 ** rng.integers(-9, 9, (rows, 1))).astype("f4")
    b = (rng.normal(size=(terms, columns)) * 2.0 ** rng.integers(-9, 9, (1, columns))).astype(
        "f4"
    )
    how = ALL_PRECISIONS[precision]
    on_card = np.asarray(kernels.product(a, b, how, axis))
    assert on_card.tobytes() == cpu.product(a, b, how, axis).tobytes()


def test_atomic_additions_have_no_order(kernels, cpu):
    rng = np.random.default_rng(2)
    data = rng.normal(size=1000).astype(np.float32)
    count = 2000 if REHEARSED else 200_000
    updates = (rng.normal(size=count) * 2.0 ** rng.integers(-20, 20, count)).astype("f4")
    targets = rng.integers(0, 1000, count)
    expected = cpu.scatter_add(data, targets, updates).tobytes()
    for _ in range(5):
        assert np.asarray(kernels.scatter_add(data, targets, updates)).tobytes() == expected


def test_the_executor_s_canary_has_the_id_that_it_has_everywhere(kernels, card_name):
    assert "triton" in Exact(kernels, "triton").probe().runtime, card_name
