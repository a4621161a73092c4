"""The executor ``torch`` as a worker uses it: canary, refusals, faults, the end of a run.

No card is needed: its faults are staged, by errors in the words that torch has for them.
"""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, parser

from shoal.compute.convert import convert
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors import torch as executor_module
from shoal.compute.executors.base import Evidence, NumericClass
from shoal.compute.executors.torch import TorchExecutor
from shoal.compute.loading import load
from shoal.compute.torch_graph import operators
from shoal.compute.torch_graph.errors import translated
from shoal.compute.torch_graph.node import Operator
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


# -- the canary ------------------------------------------------------------------------------


@pytest.mark.parametrize("numeric_class", CLASSES)
def test_the_canary_is_right_on_a_cpu_and_says_what_ran_it(numeric_class):
    probe = executor(numeric_class).probe()
    assert probe.numeric_class is numeric_class
    assert probe.evidence is Evidence.EXECUTED
    assert probe.runtime == f"torch {torch.__version__} CPU"


def shortened(operator, bits):
    """The operator on inputs whose float32 mantissas lost so many bits."""

    def compute(node, inputs, run):
        short = [
            (x.view(torch.int32) >> bits << bits).view(torch.float32)
            if x is not None and x.dtype == torch.float32
            else x
            for x in inputs
        ]
        return operator.run(node, short, run)

    return Operator(compute, operator.host, operator.width)


@pytest.mark.parametrize("name", ["Conv", "MatMul"])
def test_a_device_that_shortens_float32_products_as_tf32_does_fails_the_canary(
    monkeypatch, name
):
    table = {**operators.OPERATORS, name: shortened(operators.OPERATORS[name], bits=13)}
    monkeypatch.setattr(executor_module, "OPERATORS", table)
    error = error_of(ComputeError, executor().probe)
    assert error.code == "probe_failed"
    assert "wrong" in error.message


def test_tf32_and_short_sums_are_switched_off():
    torch.set_float32_matmul_precision("high")
    executor()
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction


def test_a_canary_that_ran_on_another_device_is_refused(monkeypatch):
    staged = executor()
    monkeypatch.setattr(executor_module, "make_plan", lambda *_: OnTheCpu())
    staged._device = torch.device("meta")
    error = error_of(ComputeError, staged.probe)
    assert error.code == "wrong_provider"
    assert "computed on cpu, not on meta" in error.message


class OnTheCpu:
    def run(self, _inputs, _run):
        return [torch.zeros(2, 8), torch.zeros(2, 4)]


def test_the_canary_on_mps_is_refused_while_torch_may_fall_back(monkeypatch):
    staged = executor()
    staged._device = torch.device("mps")
    monkeypatch.setenv("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    error = error_of(ComputeError, staged.probe)
    assert error.code == "wrong_provider"
    assert error.hint == "unset PYTORCH_ENABLE_MPS_FALLBACK"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
@pytest.mark.parametrize("device", ["cuda", "accelerator", "toaster:1"])
def test_a_device_that_is_not_here_is_said_so(device):
    error = error_of(ComputeError, TorchExecutor, device, NumericClass.FP32)
    assert error.code == "no_device"
    assert error.hint


def test_the_class_exact_is_not_torchs():
    assert error_of(ComputeError, executor, NumericClass.EXACT).code == "no_executor"


def test_threads_are_started_before_a_worker_locks_itself_in():
    # In a process of its own: another test may have started them here.
    script = (
        "import threading, os\n"
        "from shoal.compute.executors.base import NumericClass\n"
        "from shoal.compute.executors.torch import TorchExecutor\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "e = TorchExecutor('cpu', NumericClass.FP32, threads=3)\n"
        "e.start_threads()\n"
        "before = count()\n"
        "e.probe()\n"
        "import torch; torch.ones(1 << 22).sin(); torch.ones(700, 700) @ torch.ones(700, 700)\n"
        "print(before >= 3, count() - before)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["True", "0"]


def test_programs_open_no_file_and_import_nothing_after_the_start():
    script = Path(__file__).with_name("torch_locked_in.py")
    said = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == ["watched"]


# -- refusals --------------------------------------------------------------------------------


def test_an_operator_that_torch_lacks_is_refused_by_node_before_anything_runs():
    graph = model(
        "(float[1, 1, 4, 4] x) => (float[n, c, h, w] y) { a = Relu (x) y = GlobalOdd (a) }"
    )
    graph.graph.node[1].name = "strange"
    program = loaded(model("(float[2] x) => (float[2] y) { y = Relu (x) }"))
    program.model.CopyFrom(graph)
    error = error_of(ProgramError, executor().prepare, program)
    assert (error.code, error.node, error.operator) == (
        "unsupported_operator",
        "strange",
        "GlobalOdd",
    )


def test_part_of_an_operator_that_is_missing_is_refused_by_name():
    text = (
        "(float[1, 1, 4, 4] x, float[4] s) => (float[n, c, h, w] y)"
        ' { y = Resize <antialias = 1, mode = "linear"> (x, , s) }'
    )
    error = error_of(ProgramError, executor().prepare, loaded(model(text)))
    assert (error.code, error.node, error.operator) == ("unsupported_operator", "y", "Resize")
    assert "antialias" in error.message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "(float[2] x, int64[2] i) => (float[2] y) { y = Add (x, i) }",
            "and another one beside it a",
        ),
        ("(float[2] x) => (float[2] y) { y = Relu (z) }", "nothing before it gives 'z'"),
        ("(float[2] x) => (float[2] y) { y = Relu<slope = 2>(x) }", "slope"),
        ("(float[2] x) => (float[2] y) { a = Relu(x) a = Neg(x) y = Neg(a) }", "given twice"),
        ("(float[2] x) => (float[2] y) { a = Relu (x) }", "nothing gives the output 'y'"),
    ],
)
def test_what_is_no_valid_onnx_is_refused_before_anything_runs(text, words):
    error = error_of(ProgramError, read, model(text), operators.OPERATORS)
    assert error.code == "invalid_model"
    assert words in error.message


def test_an_output_that_an_operator_does_not_give_in_this_way_is_the_programs_fault():
    runner = executor()
    graph = model(
        "(float[1, 2, 3] x, float[2] s) => (float[1, 2, 3] y, float[2] m)"
        " { y, m, v = BatchNormalization (x, s, s, s, s) }"
    )
    handle = runner.prepare(loaded(graph))
    inputs = {"x": np.ones((1, 2, 3), np.float32), "s": np.ones(2, np.float32)}
    error = error_of(ProgramError, runner.run, handle, inputs)
    assert (error.code, error.operator) == ("invalid_model", "BatchNormalization")


def test_an_opset_that_the_table_does_not_mean_is_refused():
    graph = model("(float[2] x) => (float[2] y) { y = Relu (x) }", opset=17)
    assert error_of(ProgramError, read, graph, operators.OPERATORS).code == "unsupported_opset"


def test_an_input_of_another_dtype_than_declared_is_refused():
    runner = executor()
    handle = runner.prepare(loaded(model("(float[2] x) => (float[2] y) { y = Relu (x) }")))
    error = error_of(ProgramError, runner.run, handle, {"x": np.zeros(2)})
    assert error.code == "wrong_dtype"
    assert "'x' is float64" in error.message


def test_a_tensor_over_the_limit_is_refused_before_it_is_made():
    runner = executor()
    text = "(float[1] x, int64[2] s) => (float[a, b] y) { e = Expand (x, s) y = Neg (e) }"
    handle = runner.prepare(loaded(model(text)))
    inputs = {"x": np.ones(1, np.float32), "s": np.array([1 << 20, 1 << 20])}
    error = error_of(ProgramError, runner.run, handle, inputs)
    assert (error.code, error.node, error.operator) == ("too_large", "e", "Expand")


@pytest.mark.parametrize(
    ("text", "inputs", "operator"),
    [
        (
            "(float[1] x, int64 n) => (float[a] y) { s = Expand (n, m) y = Reshape (x, s) }",
            {"x": np.ones(1, np.float32), "n": np.array(1)},
            "Reshape",
        ),
        (
            "(int64 n) => (float[a] y) { y = HannWindow (n) }",
            {"n": np.array(1 << 27)},
            "HannWindow",
        ),
        (
            "(float[1] x, int64[1] n) => (float[a] y) { y = Resize (x, , , n) }",
            {"x": np.ones(1, np.float32), "n": np.array([1 << 27])},
            "Resize",
        ),
        (
            '(float[1] x, int64[2] n) => (float[a] y) { y = Pad <mode = "edge"> (x, n) }',
            {"x": np.ones(1, np.float32), "n": np.array([0, 1 << 27])},
            "Pad",
        ),
    ],
)
def test_what_the_host_would_need_much_memory_for_is_refused(text, inputs, operator):
    graph = model(text)
    if operator == "Reshape":
        size = np.array([1 << 20], np.int64)
        graph.graph.initializer.append(onnx.numpy_helper.from_array(size, "m"))
    runner = executor()
    error = error_of(ProgramError, runner.run, runner.prepare(loaded(graph)), inputs)
    assert (error.code, error.operator) == ("too_large", operator)


@pytest.mark.parametrize(
    ("text", "inputs"),
    [
        (
            """(float[1, 3] x, int64[1] l, float[2] w) => (float y)
            { y = NegativeLogLikelihoodLoss (x, l, w) }""",
            {
                "x": np.zeros((1, 3), np.float32),
                "l": np.array([2]),
                "w": np.ones(2, np.float32),
            },
        ),
        (
            """(float[1, 1, 1, 2] x, float[4, 1] c, float[2, 1] s, int64[1, 1] p) =>
            (float[1, 1, 1, 2] y) { y = RotaryEmbedding (x, c, s, p) }""",
            {
                "x": np.zeros((1, 1, 1, 2), np.float32),
                "c": np.zeros((4, 1), np.float32),
                "s": np.zeros((2, 1), np.float32),
                "p": np.array([[3]]),
            },
        ),
    ],
)
def test_a_table_that_is_too_short_for_an_index_is_refused_and_not_left_to_the_card(
    text, inputs
):
    runner = executor()
    handle = runner.prepare(loaded(model(text, opset=23)))
    assert error_of(ProgramError, runner.run, handle, inputs).code == "shape_mismatch"


def test_a_constant_that_errs_does_so_in_its_turn_and_not_when_prepared():
    runner = executor()
    graph = model(
        "(float[2] x) => (float[n] y) { t = Constant<value_floats = [1.0, 2.0]>()"
        " i = Constant<value_int = 7>() g = Gather (t, i) y = Add (x, g) }"
    )
    handle = runner.prepare(loaded(graph))
    error = error_of(ProgramError, runner.run, handle, {"x": np.zeros(2, np.float32)})
    assert (error.code, error.node) == ("out_of_range", "g")


# -- faults ----------------------------------------------------------------------------------


def failing_at_neg(monkeypatch, error):
    def fail(_node, _inputs, _run):
        raise error

    monkeypatch.setitem(operators.OPERATORS, "Neg", Operator(fail))
    runner = executor()
    graph = model("(float[2] x) => (float[2] y) { a = Relu (x) y = Neg (a) }")
    graph.graph.node[1].name = "second"
    handle = runner.prepare(loaded(graph))
    return error_of(ComputeError, runner.run, handle, {"x": np.zeros(2, np.float32)})


@pytest.mark.parametrize(
    "raised",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 4000 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("HIP out of memory."),
        MemoryError(),
    ],
    ids=lambda error: str(error)[:24] or "MemoryError",
)
def test_no_memory_is_this_nodes_trouble_and_names_node_and_operator(monkeypatch, raised):
    error = failing_at_neg(monkeypatch, raised)
    assert (error.code, error.node, error.operator) == ("memory_limit", "second", "Neg")


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`",
        "CUDA error: unspecified launch failure",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: CUDA-capable device(s) is/are busy or unavailable",
        "HIP error: hipErrorNoDevice",
        "No HIP GPUs are available",
        "cudaErrorDeviceUnavailable",
        "CUDA error: uncorrectable ECC error encountered",
        "level_zero backend failed with error: 20 (UR_RESULT_ERROR_DEVICE_LOST)",
    ],
)
def test_a_lost_device_is_said_so_by_node(monkeypatch, words):
    error = failing_at_neg(monkeypatch, RuntimeError(words))
    assert (error.code, error.node, error.operator) == ("device_lost", "second", "Neg")
    assert "\n" not in error.message
    assert error.hint


def test_any_other_failure_is_the_programs():
    error = translated(RuntimeError("The size of tensor a (3) must match tensor b (4)"))
    assert isinstance(error, ProgramError)
    assert error.code == "operator_failed"


# -- the end of a run ------------------------------------------------------------------------


def test_a_run_that_is_ended_stops_before_its_next_node(monkeypatch):
    runner, ran = executor(), []
    real = operators.OPERATORS["Neg"]

    def ends_at_the_third(node, inputs, run):
        ran.append(node.name)
        if len(ran) == 3:
            ending = threading.Thread(target=runner.terminate)
            ending.start()
            ending.join()
        return real.run(node, inputs, run)

    monkeypatch.setitem(operators.OPERATORS, "Neg", Operator(ends_at_the_third))
    nodes = [helper.make_node("Neg", [f"v{i}"], [f"v{i + 1}"]) for i in range(6)]
    ports = [helper.make_tensor_value_info(v, 1, [2]) for v in ("v0", "v6")]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:])
    opsets = [helper.make_opsetid("", 18)]
    handle = runner.prepare(
        loaded(helper.make_model(graph, opset_imports=opsets, ir_version=9))
    )
    inputs = {"v0": np.array([1, -2], np.float32)}
    error = error_of(ComputeError, runner.run, handle, inputs)
    assert error.code == "terminated"
    assert len(ran) == 3
    monkeypatch.setitem(operators.OPERATORS, "Neg", real)
    assert runner.run(handle, inputs)["v6"].tolist() == [1, -2]  # and it can run again


def test_a_loop_without_an_end_is_ended_between_its_turns():
    runner = executor()
    graph = model(
        "(float[2] x) => (float[2] y) { go = Constant<value = bool {1}>()"
        " y = Loop(, go, x)<body = b (int64 i, bool c, float[2] v) => (bool again, float[2] w)"
        " { again = Identity(c) w = Identity(v) }> }"
    )
    handle = runner.prepare(loaded(graph))
    ending = threading.Timer(0.2, runner.terminate)
    ending.start()
    error = error_of(ComputeError, runner.run, handle, {"x": np.zeros(2, np.float32)})
    ending.join()
    assert error.code == "terminated"


def test_inputs_and_weights_are_never_written_to():
    runner = executor()
    graph = model(
        "(float[4] x, int64[1, 1] i) => (float[4] y, float[4] z)"
        " { u = Constant<value_floats = [9.0]>() y = ScatterND (x, i, u) z = Identity (x) }"
    )
    x = np.arange(4, dtype=np.float32)
    x.flags.writeable = False
    found = runner.run(runner.prepare(loaded(graph)), {"x": x, "i": np.array([[2]])})
    assert found["y"].tolist() == [0, 1, 9, 3]
    assert found["z"].tolist() == x.tolist() == [0, 1, 2, 3]


def test_the_model_that_the_canary_is_has_no_shortcut():
    names = {node.op_type for node in executor_module._canary().graph.node}
    assert {"Conv", "MatMul", "Softmax", "LayerNormalization", "Gather"} <= names
    onnx.checker.check_model(executor_module._canary())
