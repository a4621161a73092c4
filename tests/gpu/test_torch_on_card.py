"""The executor ``torch`` on a card beside ONNX Runtime on the CPU, and a card's faults.

On any accelerator that torch has: NVIDIA, AMD, Intel or Apple.
"""

import numpy as np
import onnxruntime as ort
import pytest
import torch
import whole_models
from cases import CASES
from onnx import parser
from rehearsal import REHEARSED, little_memory, some

from shoal.compute.convert import convert
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.base import Evidence, NumericClass
from shoal.compute.executors.onnxruntime import _ORT_ERRORS
from shoal.compute.executors.torch import TorchExecutor
from shoal.compute.loading import load
from shoal.compute.tensor import to_blob
from shoal.compute.tolerance import near, tolerance_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (REHEARSED or torch.accelerator.is_available()),
        reason="torch finds no accelerator here",
    ),
]

DEVICE = "cpu" if REHEARSED else "accelerator"
SIDE = 2048 if REHEARSED else 46340
"""Of a square matrix: 16 MiB, and 8 GiB."""


@pytest.fixture(scope="module", params=[NumericClass.FP32, NumericClass.LOW])
def executor(request):
    made = TorchExecutor(DEVICE, request.param)
    made.start_threads()
    return made


def loaded(data):
    program = convert(data)
    return load(program.program_id, program.blobs)


def by_onnxruntime(data, inputs):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return session.run(None, inputs)
    except _ORT_ERRORS as error:
        return error


def assert_alike(executor, data, inputs):
    wanted = by_onnxruntime(data, inputs)
    if isinstance(wanted, Exception):
        with pytest.raises(ProgramError):
            executor.run(executor.prepare(loaded(data)), inputs)
        return
    found = executor.run(executor.prepare(loaded(data)), inputs)
    tolerance = tolerance_of(data, executor._class.value)
    for (name, ours), theirs in zip(found.items(), wanted, strict=True):
        assert near(to_blob(ours), to_blob(theirs), tolerance), name


def test_the_canary_ran_on_the_card(executor):
    probe = executor.probe()
    assert probe.evidence is Evidence.EXECUTED
    assert probe.numeric_class is executor._class
    assert ("CPU" in probe.runtime) is REHEARSED


@pytest.mark.parametrize("case", some(CASES, 60), ids=lambda case: case.name)
def test_a_case_is_within_its_class_tolerance_of_onnx_runtime(executor, case):
    assert_alike(executor, case.model().SerializeToString(), case.inputs())


@pytest.mark.parametrize("name", whole_models.MODELS)
def test_a_whole_model_is_within_its_class_tolerance_of_onnx_runtime(executor, name):
    if not whole_models.is_installed(name):
        pytest.skip(f"the package with {name}'s weights is not installed")
    assert_alike(executor, whole_models.onnx_bytes(name), whole_models.inputs(name, 4))


def test_a_wrong_index_is_the_programs_fault_and_the_card_goes_on(executor):
    text = (
        '<ir_version: 9, opset_import: ["" : 18]> g (float[3, 200] x, int64[1, 90] i)'
        " => (float[1, 90, 200] y) { y = Gather (x, i) }"
    )
    handle = executor.prepare(loaded(parser.parse_model(text).SerializeToString()))
    inputs = {"x": np.ones((3, 200), np.float32), "i": np.full((1, 90), 3)}
    with pytest.raises(ProgramError) as caught:
        executor.run(handle, inputs)
    assert (caught.value.code, caught.value.node) == ("out_of_range", "y")
    inputs["i"] = np.full((1, 90), 2)
    assert executor.run(handle, inputs)["y"].shape == (1, 90, 200)


def test_more_memory_than_the_card_has_is_a_memory_limit_and_the_card_goes_on(executor):
    # Products of columns and rows: all of them are alive at the end.
    count = 128
    products = " ".join(f"p{i} = MatMul (a, b)" for i in range(count))
    last = ", ".join(f"p{i}" for i in range(count))
    text = (
        f'<ir_version: 9, opset_import: ["" : 18]> g (float[{SIDE}, 1] a, float[1, {SIDE}] b)'
        f" => (float[{SIDE}, {SIDE}] y) {{ {products} y = Max ({last}) }}"
    )
    handle = executor.prepare(loaded(parser.parse_model(text).SerializeToString()))
    ones = np.ones(SIDE, np.float32)
    with little_memory(1 << 28), pytest.raises(ComputeError) as caught:
        executor.run(handle, {"a": ones.reshape(-1, 1), "b": ones.reshape(1, -1)})
    assert (caught.value.code, caught.value.operator) == ("memory_limit", "MatMul")
    del caught
    executor.probe()


def test_a_fp32_product_has_no_tf32_in_it():
    executor = TorchExecutor(DEVICE, NumericClass.FP32)
    text = (
        '<ir_version: 9, opset_import: ["" : 18]> g (float[512, 512] a, float[512, 512] b)'
        " => (float[512, 512] y) { y = MatMul (a, b) }"
    )
    handle = executor.prepare(loaded(parser.parse_model(text).SerializeToString()))
    a, b = np.random.default_rng(3).standard_normal((2, 512, 512), np.float32)
    right = a.astype(np.float64) @ b.astype(np.float64)
    y = executor.run(handle, {"a": a, "b": b})["y"]
    assert np.abs(y - right).max() / np.abs(right).max() < 2.0**-18  # TF32 comes to 2^-12
