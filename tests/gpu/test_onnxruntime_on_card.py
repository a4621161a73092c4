"""ONNX Runtime's provider of a card: it computes, all of it, and what it may not is refused.

With the build that has it, ``onnxruntime-gpu`` or ``onnxruntime-migraphx`` in place of
``onnxruntime``; beside ONNX Runtime on the CPU, which that build has as well.
"""

import numpy as np
import onnxruntime as ort
import pytest
import torch
import whole_models
from cases import CASES
from onnx import parser

from shoal.compute.convert import convert
from shoal.compute.devices.cards import Card
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors import providers
from shoal.compute.executors.base import Evidence, NumericClass
from shoal.compute.executors.onnxruntime import OnnxRuntime
from shoal.compute.loading import load
from shoal.compute.tensor import to_blob
from shoal.compute.tolerance import near, tolerance_of

RUNTIME = "hip" if torch.version.hip else "cuda"
PROVIDER = providers.of_card(Card("gpu0", RUNTIME, "", 0), 8 << 30)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        PROVIDER.name not in ort.get_available_providers(),
        reason=f"this build of ONNX Runtime has no {PROVIDER.name}: `pip uninstall "
        f"onnxruntime`, then `pip install '{PROVIDER.package}'`",
    ),
]

ABSENT = "unsupported_operator"


@pytest.fixture(scope="module")
def on_card():
    if RUNTIME == "cuda":
        ort.preload_dlls()
    made = OnnxRuntime(PROVIDER, threads=1)
    made.probe()
    return made


@pytest.fixture(scope="module")
def on_cpu():
    return OnnxRuntime(threads=2)


def loaded(data):
    program = convert(data)
    return load(program.program_id, program.blobs)


def text(body, head):
    model = f'<ir_version: 9, opset_import: ["" : 18]> g {head} {{ {body} }}'
    return parser.parse_model(model).SerializeToString()


def ran(executor, data, inputs):
    """The outputs; None where the program fails."""
    try:
        return executor.run(executor.prepare(loaded(data)), inputs)
    except ProgramError:
        return None


def is_alike(on_card, on_cpu, data, inputs):
    """Whether the card takes a program; then its results are within the class's tolerance."""
    wanted = ran(on_cpu, data, inputs)
    try:
        found = ran(on_card, data, inputs)
    except ComputeError as error:
        if error.code == ABSENT and error.operator:
            return False
        raise
    assert (found is None) == (wanted is None)
    tolerance = tolerance_of(data, NumericClass.FP32.value)
    for name in found or ():
        assert near(to_blob(found[name]), to_blob(wanted[name]), tolerance), name
    return True


def test_the_canary_ran_on_the_card_and_every_node_of_it(on_card):
    probe = on_card.probe()
    assert probe.evidence is Evidence.EXECUTED
    assert probe.numeric_class is NumericClass.FP32
    assert probe.runtime.endswith(f" {PROVIDER.name}")


def test_a_session_has_the_options_it_was_asked_for_and_its_nodes_on_the_card(on_card):
    data = text("z = MatMul (x, x) y = Softmax (z)", "(float[n, n] x) => (float[n, n] y)")
    session = on_card.prepare(loaded(data)).session
    told = session.get_provider_options()[PROVIDER.name]
    assert {name: told.get(name) for name in PROVIDER.options} == dict(PROVIDER.options)
    parts = session.get_provider_graph_assignment_info()
    assert {part.ep_name for part in parts} == {PROVIDER.name}


def test_cases_are_within_the_class_s_tolerance_of_the_cpu_or_are_refused(on_card, on_cpu):
    taken = [
        is_alike(on_card, on_cpu, case.model().SerializeToString(), case.inputs())
        for case in CASES
    ]
    assert sum(taken) > len(taken) / 2


@pytest.mark.parametrize("name", whole_models.MODELS)
def test_a_whole_model_is_within_the_class_s_tolerance_or_is_refused(name, on_card, on_cpu):
    if not whole_models.is_installed(name):
        pytest.skip(f"the package with {name}'s weights is not installed")
    inputs = whole_models.inputs(name, 4)
    if not is_alike(on_card, on_cpu, whole_models.onnx_bytes(name), inputs):
        pytest.skip(f"{PROVIDER.name} leaves nodes of {name} to the CPU")


def test_an_operator_that_the_card_lacks_is_refused_by_name_and_not_run_on_the_cpu(on_card):
    data = text("y = Det (x)", "(float[3, 3] x) => (float y)")
    with pytest.raises(ComputeError) as caught:
        on_card.prepare(loaded(data))
    assert (caught.value.code, caught.value.operator) == (ABSENT, "Det")


def test_a_product_has_no_tf32_in_it(on_card):
    head = "(float[512, 512] a, float[512, 512] b) => (float[512, 512] y)"
    data = text("y = MatMul (a, b)", head)
    a, b = np.random.default_rng(3).standard_normal((2, 512, 512), np.float32)
    right = a.astype(np.float64) @ b.astype(np.float64)
    y = on_card.run(on_card.prepare(loaded(data)), {"a": a, "b": b})["y"]
    assert np.abs(y - right).max() / np.abs(right).max() < 2.0**-18  # TF32 comes to 2^-12


def test_more_memory_than_is_lent_is_a_memory_limit_and_the_card_goes_on(on_card):
    # Products of columns and rows: each is 8 GiB, and all of them are alive at the end.
    count = 128
    products = " ".join(f"p{i} = MatMul (a, b)" for i in range(count))
    last = ", ".join(f"p{i}" for i in range(count))
    head = "(float[46340, 1] a, float[1, 46340] b) => (float[46340, 46340] y)"
    ones = np.ones(46340, np.float32)
    data = text(f"{products} y = Max ({last})", head)
    with pytest.raises(ComputeError) as caught:
        ran(on_card, data, {"a": ones.reshape(-1, 1), "b": ones.reshape(1, -1)})
    assert caught.value.code == "memory_limit"
    del caught
    on_card.probe()


@pytest.mark.skipif(RUNTIME != "cuda", reason="MIGraphX's memory is not served by an arena")
def test_what_a_run_worked_in_is_given_back_when_it_ends(on_card):
    size = 16_384  # each product is 1 GiB
    head = f"(float[{size}, 1] a, float[1, {size}] b) => (float[1, 1] y)"
    data = text("p = MatMul (a, b) y = ReduceSum (p)", head)
    handle = on_card.prepare(loaded(data))
    free_before, _ = torch.cuda.mem_get_info()
    ones = np.ones(size, np.float32)
    on_card.run(handle, {"a": ones.reshape(-1, 1), "b": ones.reshape(1, -1)})
    free_after, _ = torch.cuda.mem_get_info()
    assert free_before - free_after < 1 << 29
