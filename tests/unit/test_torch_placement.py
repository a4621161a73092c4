"""Where the executor ``torch`` keeps values, and compiled programs: staged without a card.

Torch's device ``meta`` has shapes and no data: whoever looks at a value there fails, where a
card would make the host wait.
"""

import numpy as np
import pytest
import torch
import whole_models
from onnx import parser

from shoal.compute.convert import convert
from shoal.compute.errors import ProgramError
from shoal.compute.executors.base import NumericClass
from shoal.compute.executors.torch import TorchExecutor
from shoal.compute.loading import load
from shoal.compute.torch_graph import operators
from shoal.compute.torch_graph.compiled import Compiled
from shoal.compute.torch_graph.graph import make_plan, placed_input, settle
from shoal.compute.torch_graph.node import Run, Width
from shoal.compute.torch_graph.reading import read

CLASSES = [NumericClass.FP32, NumericClass.LOW]


def executor(numeric_class=NumericClass.FP32, **options):
    return TorchExecutor("cpu", numeric_class, **options)


def model(text, opset=18):
    return parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> g {text}')


def loaded(graph):
    data = graph if isinstance(graph, bytes) else graph.SerializeToString()
    program = convert(data)
    return load(program.program_id, program.blobs)


def error_of(kind, call, *args):
    with pytest.raises(kind) as caught:
        call(*args)
    return caught.value


# -- what a card would meet ------------------------------------------------------------------


def on_meta(graph, weights, inputs, numeric_class):
    """Run on a device without data: whoever looks at a value there fails."""
    run = Run(torch.device("meta"), low=numeric_class is NumericClass.LOW)
    plan = make_plan(read(graph, operators.OPERATORS), weights, run)
    placed = {name: placed_input(array, run.device) for name, array in inputs.items()}
    return plan.run(placed, run), run


@pytest.mark.parametrize("numeric_class", CLASSES)
@pytest.mark.parametrize("name", whole_models.MODELS)
def test_a_whole_model_never_waits_for_the_device_before_its_end(name, numeric_class):
    if not whole_models.is_installed(name):
        pytest.skip(f"the package with {name}'s weights is not installed")
    program = loaded(whole_models.onnx_bytes(name))
    inputs = whole_models.inputs(name, 2)
    outputs, _ = on_meta(program.model, program.weights, inputs, numeric_class)
    assert {y.device.type for y in outputs} == {"meta"}


def test_a_size_that_depends_on_data_would_wait():
    graph = model("(float[2, 3] x) => (int64[2, n] y) { y = NonZero (x) }")
    inputs = {"x": np.zeros((2, 3), np.float32)}
    error_of(ProgramError, on_meta, graph, {}, inputs, NumericClass.FP32)


def test_a_wrong_index_on_a_card_is_named_at_the_end_and_takes_no_device_down():
    graph = model("(float[3] x, int64[1, 1] i) => (float[1, 1] y) { y = Gather (x, i) }")
    run = Run(torch.device("cpu"), lazy=True)  # as on a card: nothing is looked at on the way
    plan = make_plan(read(graph, operators.OPERATORS), {}, run)
    for index, right in ((2, True), (-3, True), (3, False), (-4, False)):
        plan.run({"x": torch.ones(3), "i": torch.tensor([[index]])}, run)
        if right:
            settle(run)
        else:
            error = error_of(ProgramError, settle, run)
            assert (error.code, error.node, error.operator) == ("out_of_range", "y", "Gather")


def test_weights_are_placed_once_and_narrowed_where_products_alone_read_them():
    program = loaded(whole_models.onnx_bytes("cnn"))
    run = Run(torch.device("cpu"), low=True)
    plan = make_plan(read(program.model, operators.OPERATORS), program.weights, run)
    dtypes = {
        plan.constants[name].dtype
        for step in plan.steps
        if step.row.width is Width.PRODUCT
        for name in step.node.inputs
        if name in plan.constants
    }
    assert dtypes == {torch.bfloat16}
    placed = {
        name: placed_input(array, run.device)
        for name, array in whole_models.inputs("cnn", 1).items()
    }
    plan.run(placed, run)
    copies = dict(plan.copies)
    plan.run(placed, run)
    assert {key: id(x) for key, x in plan.copies.items()} == {
        key: id(x) for key, x in copies.items()
    }


# -- compiled --------------------------------------------------------------------------------


def test_a_compiled_program_gives_the_same_for_each_set_of_shapes():
    program = loaded(whole_models.onnx_bytes("causal"))
    run = Run(torch.device("cpu"))
    plan = make_plan(read(program.model, operators.OPERATORS), program.weights, run)
    compiled = Compiled(plan, Run(torch.device("cpu"), lazy=True), backend="eager")
    with torch.no_grad():
        for batch, tokens in ((1, 4), (2, 9), (1, 4)):
            inputs = {
                name: torch.from_numpy(array)
                for name, array in whole_models.inputs("causal", batch, tokens).items()
            }
            (y,) = compiled.run(inputs)
            torch.testing.assert_close(y, plan.run(inputs, run)[0])
    assert len(compiled._of_shapes) == 2


def test_a_program_that_cannot_be_recorded_runs_as_it_is_when_compiled():
    runner = executor(compile_graphs=True)
    graph = model("(float[2, 3] x) => (int64[2, n] y) { y = NonZero (x) }")
    handle = runner.prepare(loaded(graph))
    x = np.array([[0, 1, 0], [2, 0, 0]], np.float32)
    assert runner.run(handle, {"x": x})["y"].tolist() == [[0, 1], [1, 0]]
