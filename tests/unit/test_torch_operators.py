"""The executor ``torch`` on a CPU beside ONNX Runtime: each operator, and whole models."""

from pathlib import Path

import cases
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import whole_models
from onnx import parser

from shoal.compute.convert import convert
from shoal.compute.errors import ProgramError
from shoal.compute.executors.base import NumericClass
from shoal.compute.executors.torch import TorchExecutor
from shoal.compute.loading import load
from shoal.compute.program import OPERATORS as ACCEPTED
from shoal.compute.tensor import to_blob
from shoal.compute.tolerance import near, tolerance_of
from shoal.compute.torch_graph.operators import OPERATORS

FAILS_THERE_TOO = {
    "Div/integers by zero": "division_by_zero",
    "Gather/out of range": "out_of_range",
    "Add/shapes": "operator_failed",
    "ConstantOfShape/10^12 elements": "too_large",
}
"""Cases that ONNX Runtime refuses, and our code for them."""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def session(data):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def loaded(data):
    program = convert(data)
    return load(program.program_id, program.blobs)


def by_torch(data, inputs, numeric_class="fp32"):
    executor = TorchExecutor("cpu", NumericClass(numeric_class))
    return executor.run(executor.prepare(loaded(data)), inputs)


def assert_near(found, wanted, data, numeric_class):
    tolerance = tolerance_of(data, numeric_class)
    assert len(found) == len(wanted)
    for (name, ours), theirs in zip(found.items(), wanted, strict=True):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        assert near(to_blob(ours), to_blob(theirs), tolerance), name


def text_model(body, inputs, opset=18):
    graph = f'<ir_version: 9, opset_import: ["" : {opset}]> g ({inputs}) => ({body}'
    return parser.parse_model(graph).SerializeToString()


@pytest.mark.parametrize("numeric_class", ["fp32", "low"])
@pytest.mark.parametrize("case", cases.CASES, ids=lambda case: case.name)
def test_a_case_is_within_its_class_tolerance_of_onnx_runtime(case, numeric_class):
    data, inputs = case.model().SerializeToString(), case.inputs()
    if case.name in FAILS_THERE_TOO:
        with pytest.raises(Exception, match="ONNXRuntimeError"):
            session(data).run(None, inputs)
        with pytest.raises(ProgramError) as error:
            by_torch(data, inputs, numeric_class)
        assert (error.value.code, error.value.operator) == (
            FAILS_THERE_TOO[case.name],
            case.name.partition("/")[0],
        )
        return
    wanted = session(data).run(None, inputs)
    assert_near(by_torch(data, inputs, numeric_class), wanted, data, numeric_class)


@pytest.mark.parametrize("numeric_class", ["fp32", "low"])
@pytest.mark.parametrize("name", whole_models.MODELS)
def test_a_whole_model_is_within_its_class_tolerance_of_onnx_runtime(name, numeric_class):
    if not whole_models.is_installed(name):
        pytest.skip(f"the package with {name}'s weights is not installed")
    data, inputs = whole_models.onnx_bytes(name), whole_models.inputs(name, 2)
    wanted = session(data).run(None, inputs)
    assert_near(by_torch(data, inputs, numeric_class), wanted, data, numeric_class)


@pytest.mark.parametrize("numeric_class", ["fp32", "low"])
def test_a_decoding_step_with_a_past_is_near_onnx_runtimes(numeric_class):
    data = whole_models.onnx_bytes(whole_models.STEP)
    drawn = np.random.default_rng(5).standard_normal((2, 2, 3, 2, 7, 64), np.float32)
    inputs = {
        "input_ids": np.array([[5], [250]]),
        "past_keys": drawn[0, :, 0],
        "past_values": drawn[1, :, 0],
    }
    wanted = session(data).run(None, inputs)
    assert_near(by_torch(data, inputs, numeric_class), wanted, data, numeric_class)


def test_low_differs_from_fp32_or_it_would_be_no_class_of_its_own():
    data, inputs = whole_models.onnx_bytes("cnn"), whole_models.inputs("cnn", 2)
    (exact,) = by_torch(data, inputs).values()
    (low,) = by_torch(data, inputs, "low").values()
    assert low.dtype == np.float32
    difference = np.abs(low - exact).max() / np.abs(exact).max()
    assert tolerance_of(data, "fp32").relative < difference < tolerance_of(data, "low").relative


def test_low_keeps_sums_and_softmax_in_float32():
    # 4096 ones: a sum in bfloat16 would stop at 256, and a softmax would give 1/4096 + 2^-21.
    data = text_model(
        "float total, float[1, 4096] shares) { total = ReduceSum<keepdims = 0>(x)"
        " shares = Softmax(x) }",
        "float[1, 4096] x",
    )
    found = by_torch(data, {"x": np.full((1, 4096), 1 + 2.0**-10, np.float32)}, "low")
    assert found["total"] == np.float32(4096 + 4)
    np.testing.assert_allclose(found["shares"], 1 / 4096, rtol=1e-6)


def test_low_casts_like_the_declared_dtype_not_the_one_it_carries():
    data = text_model(
        "float[2] y) { p = MatMul(a, a) y = CastLike(i, p) }", "float[2, 2] a, int64[2] i"
    )
    inputs = {"a": np.ones((2, 2), np.float32), "i": np.array([257, 65537])}
    assert by_torch(data, inputs, "low")["y"].tolist() == [257, 65537]


BEYOND_THE_CASES = {
    "If": (
        ("float[n] y) { s = ReduceSum<keepdims = 0>(x) zero = Constant<value_float = 0.0>()"
        " c = Greater(s, zero)"
        " y = If(c)<then_branch = t () => (a) { a = Neg(x) },"
        " else_branch = e () => (b) { b = Add(x, x) }> }"),
        "float[3] x",
        {"x": np.array([1, 2, -9], np.float32)},
    ),
    "Loop": (
        ("float[n] y, float[m, n] rows) { trips = Constant<value_int = 4>()"
        " go = Constant<value = bool {1}>()"
        " y, rows = Loop(trips, go, x)<body = b (int64 i, bool c, float[n] v)"
        " => (bool again, float[n] w, float[n] row)"
        " { again = Identity(c) k = Cast<to = 1>(i) w = Add(v, k) row = Mul(w, x) }> }"),
        "float[3] x",
        {"x": np.array([1, 2, -9], np.float32)},
    ),
    "Scan": (
        ("float[n] last, float[m, n] sums) { last, sums = Scan(start, x)"
        "<num_scan_inputs = 1, body = b (float[n] s, float[n] v) => (float[n] t, float[n] o)"
        " { t = Add(s, v) o = Identity(t) }> }"),
        "float[3] start, float[5, 3] x",
        {"start": np.ones(3, np.float32), "x": np.arange(15, dtype=np.float32).reshape(5, 3)},
    ),
    "Einsum": (
        'float[a, b, c] y) { y = Einsum<equation = "bij, bjk -> bik">(p, q) }',
        "float[2, 3, 4] p, float[2, 4, 5] q",
        {
            "p": np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4),
            "q": np.linspace(-2, 1, 40, dtype=np.float32).reshape(2, 4, 5),
        },
    ),
    "Resize": (
        ("float[n, c, h, w] y, float[n, c, h, w] z) {"
        ' y = Resize<mode = "linear">(x, , scales) z = Resize<mode = "cubic">(x, , , sizes) }'),
        "float[1, 2, 4, 5] x, float[4] scales, int64[4] sizes",
        {
            "x": np.sin(np.arange(40, dtype=np.float32)).reshape(1, 2, 4, 5),
            "scales": np.array([1, 1, 2.5, 0.6], np.float32),
            "sizes": np.array([1, 2, 3, 9]),
        },
    ),
    "GlobalLpPool": (
        ("float[n, c, h, w] y, float[n, c, h, w] z) {"
        " y = GlobalLpPool(x) z = GlobalLpPool<p = 3>(x) }"),
        "float[1, 2, 4, 5] x",
        {"x": np.sin(np.arange(40, dtype=np.float32)).reshape(1, 2, 4, 5)},
    ),
    "ConvTranspose": (
        ("float[n, c, h, w] y) { y = ConvTranspose<strides = [2, 3], pads = [1, 0, 0, 2],"
        " output_padding = [1, 2], group = 2>(x, w, b) }"),
        "float[1, 4, 3, 4] x, float[4, 3, 3, 3] w, float[6] b",
        {
            "x": np.cos(np.arange(48, dtype=np.float32)).reshape(1, 4, 3, 4),
            "w": np.sin(np.arange(108, dtype=np.float32)).reshape(4, 3, 3, 3),
            "b": np.arange(6, dtype=np.float32),
        },
    ),
    "LSTM": (
        ('float[t, d, b, h] y, float[d, b, h] last) { y, last = LSTM<hidden_size = 3,'
        ' direction = "bidirectional">(x, w, r, bias, lengths) }'),
        ("float[5, 2, 4] x, float[2, 12, 4] w, float[2, 12, 3] r, float[2, 24] bias,"
        " int32[2] lengths"),
        {
            "x": np.sin(np.arange(40, dtype=np.float32)).reshape(5, 2, 4),
            "w": np.cos(np.arange(96, dtype=np.float32)).reshape(2, 12, 4),
            "r": np.sin(np.arange(72, dtype=np.float32)).reshape(2, 12, 3),
            "bias": np.cos(np.arange(48, dtype=np.float32)).reshape(2, 24),
            "lengths": np.array([5, 2], np.int32),
        },
    ),
}  # fmt: skip
"""What no case of the exact class has: a model's text, and its inputs."""


@pytest.mark.parametrize("name", BEYOND_THE_CASES)
def test_what_the_exact_class_lacks_is_near_onnx_runtime_too(name):
    body, ports, inputs = BEYOND_THE_CASES[name]
    data = text_model(body, ports)
    wanted = session(data).run(None, inputs)
    assert_near(by_torch(data, inputs), wanted, data, "fp32")


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64"])
def test_unsigned_integers_that_torch_hardly_knows_wrap_and_compare(dtype):
    high = int(np.iinfo(dtype).max)
    data = text_model(
        f"{dtype}[3] sums, bool[3] less, {dtype}[3] most)"
        " { sums = Add(a, b) less = Less(a, b) most = Max(a, b) }",
        f"{dtype}[3] a, {dtype}[3] b",
    )
    a, b = np.array([high, 1, high // 2 + 1], dtype), np.array([2, high, 5], dtype)
    found = by_torch(data, {"a": a, "b": b})
    np.testing.assert_array_equal(found["sums"], a + b)
    np.testing.assert_array_equal(found["less"], a < b)
    np.testing.assert_array_equal(found["most"], np.maximum(a, b))


def test_bfloat16_goes_in_and_comes_out():
    bfloat16 = onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    data = text_model("bfloat16[2] y) { y = Add(x, x) }", "bfloat16[2] x")
    (y,) = by_torch(data, {"x": np.array([1.5, -3], bfloat16)}).values()
    assert y.dtype == bfloat16
    assert y.astype(np.float32).tolist() == [3.0, -6.0]


def test_every_operator_of_the_table_is_one_that_programs_may_have():
    assert set(OPERATORS) <= ACCEPTED[""]


def test_docs_programs_lists_what_torch_lacks_and_nothing_else():
    text = (Path(__file__).parents[2] / "docs" / "PROGRAMS.md").read_text(encoding="utf-8")
    section = text.partition("\n## What the executors lack\n")[2]
    listed = section.partition("```text\n")[2].partition("```")[0].split()
    assert listed == sorted(ACCEPTED[""] - OPERATORS.keys())
