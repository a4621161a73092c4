"""What the exact class refuses, and that each error names its node and its operator."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, parser

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.operators.node import ELEMENT_LIMIT
from shoal.compute.exact.plan import make_plan
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import K_LIMIT, X20
from shoal.compute.manifest import ScaleAxis

NAN, INF = np.nan, np.inf


def parsed(graph, opset=20):
    model = parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> g {graph}')
    for node in model.graph.node:
        node.name = f"the_{node.op_type}"
    return model


def plan_of(graph, weights=None, axes=()):
    model = graph if not isinstance(graph, str) else parsed(graph)
    return make_plan(model, weights or {}, X20, axes, ReferenceKernels())


def floats(*values):
    return np.array(values, np.float32)


def refusal(graph, **inputs):
    """The error of running a graph, which has to name a node and an operator."""
    plan = plan_of(graph)
    with pytest.raises(ExactError) as refused:
        plan.run(inputs)
    assert refused.value.node
    assert refused.value.operator
    return refused.value


def refusal_before_running(graph, weights=None):
    with pytest.raises(ExactError) as refused:
        plan_of(graph, weights)
    assert refused.value.node
    assert refused.value.operator
    return refused.value


# -- NaN and infinity -----------------------------------------------------------------------


@pytest.mark.parametrize(("value", "code"), [(NAN, "nan"), (INF, "infinity")])
def test_nan_and_infinity_in_an_input_are_refused_where_they_enter(value, code):
    error = refusal("(float[n] x) => (float[n] y) {y = Identity(x)}", x=floats(1, value))
    assert (error.code, error.node, error.operator) == (code, "x", "input")


@pytest.mark.parametrize(("value", "code"), [(NAN, "nan"), (INF, "infinity")])
def test_nan_and_infinity_in_a_constant_are_refused_before_anything_runs(value, code):
    graph = "(float[2] x, float[2] w) => (float[2] y) {y = Add(x, w)}"
    error = refusal_before_running(graph, {"w": floats(1, value)})
    assert (error.code, error.node, error.operator) == (code, "w", "constant")


@pytest.mark.parametrize(
    ("expression", "x", "code"),
    [
        ("Log(x)", -1, "nan"),
        ("Log(x)", 0, "infinity"),
        ("Sqrt(x)", -1, "nan"),
        ("Exp(x)", 89, "infinity"),
        ("Reciprocal(x)", 0, "infinity"),
        ("Div(x, x)", 0, "nan"),
        ("Mul(x, x)", 1e30, "infinity"),
        ("Sin(x)", 2e6, "out_of_range"),
        ("Softmax(x)", -INF, "nan"),
    ],
)
def test_nan_and_infinity_that_arise_inside_name_their_node(expression, x, code):
    error = refusal(f"(float[n] x) => (float[n] y) {{y = {expression}}}", x=floats(x))
    operator = expression.partition("(")[0]
    assert (error.code, error.node, error.operator) == (code, f"the_{operator}", operator)


def test_a_mask_passes_where_masks_may():
    plan = plan_of(
        "(float[n] x, float[n] m) => (float[n] y, float[n] z, bool[n] b)"
        "{a = Add(x, m) y = Softmax(a) l = Less(m, x) z = Where(l, m, x) b = Equal(m, m)}"
    )
    found = plan.run({"x": floats(1, 2, 3), "m": floats(0, 0, -INF)})
    assert found["y"][2] == 0
    assert found["z"][2] == -INF


@pytest.mark.parametrize(
    "expression",
    [
        "Mul(x, x)", "Sub(x, x)", "Min(x, x)", "Exp(x)", "Neg(x)", "LogSoftmax(x)",
        "ReduceMax(x)", "ReduceSum(x)", "ArgMax(x)", "Cast<to=7>(x)", "MatMul(x, x)",
        "ThresholdedRelu(x)", "LeakyRelu(x)",
    ],
)  # fmt: skip
def test_a_mask_is_refused_everywhere_else(expression):
    graph = f"(float[n] x) => ({'int64' if expression[:2] in {'Ar', 'Ca'} else 'float'} y)"
    error = refusal(f"{graph} {{y = {expression}}}", x=floats(1, -INF))
    operator = expression.partition("(")[0].partition("<")[0]
    assert (error.code, error.operator) == ("infinity", operator)


def test_a_mask_under_a_maximum_of_windows_is_refused():
    graph = "(float[1,1,n] x) => (float y) {y = MaxPool<kernel_shape=[2]>(x)}"
    assert refusal(graph, x=floats(1, -INF, 2).reshape(1, 1, 3)).code == "infinity"


def test_subnormals_become_zeros_of_their_sign():
    plan = plan_of("(float[n] x) => (float[n] y) {y = Identity(x)}")
    found = plan.run({"x": floats(1e-40, -1e-40, 1.5e-38)})["y"]
    assert found.tobytes() == floats(0.0, -0.0, 1.5e-38).tobytes()


# -- sizes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["MatMul", "Gemm"])
def test_a_sum_of_more_terms_than_the_limit_is_refused(operator):
    row = np.broadcast_to(np.float32(1), (1, K_LIMIT + 1))
    graph = f"(float[1,k] a, float[k,1] b) => (float y) {{y = {operator}(a, b)}}"
    error = refusal(graph, a=row, b=row.T)
    assert (error.code, error.operator) == ("k_limit", operator)


def test_a_convolution_whose_windows_are_over_the_limit_is_refused():
    x = np.broadcast_to(np.float32(1), (1, K_LIMIT + 1, 1))
    graph = "(float[1,c,1] x, float[1,c,1] w) => (float y) {y = Conv(x, w)}"
    assert refusal(graph, x=x, w=x).code == "k_limit"


@pytest.mark.parametrize(
    ("graph", "operator"),
    [
        ("(int64[2] s) => (float y) {y = ConstantOfShape(s)}", "ConstantOfShape"),
        ("(int64[2] s) => (float y) <float one = {1}> {y = Expand(one, s)}", "Expand"),
        ("(int64[2] s) => (float y) <float[1,1] one = {1}> {y = Tile(one, s)}", "Tile"),
        (
            """(int64[2] s) => (int64 y) <int64 zero = {0}, int64 one = {1}>
            {n = ReduceProd<keepdims=0>(s) y = Range(zero, n, one)}""",
            "Range",
        ),
        (
            """(int64[2] s) => (float y) <float[1] one = {1}>
            {n = ReduceProd(s) z = Sub(n, n) p = Concat<axis=0>(z, n) y = Pad(one, p)}""",
            "Pad",
        ),
    ],
)
def test_a_tensor_of_a_million_millions_is_refused_before_it_is_made(graph, operator):
    error = refusal(graph, s=np.array([10**6, 10**6]))
    assert (error.code, error.operator) == ("too_large", operator)
    assert str(ELEMENT_LIMIT) in error.message


@pytest.mark.parametrize(
    "expression", ["Add(x, y)", "MatMul(x, y)", "Where(b, x, y)", "Max(x, y)"]
)
def test_results_of_broadcasting_over_the_limit_are_refused(expression):
    graph = f"(float[n,1] x, float[1,m] y, bool[1] b) => (float z) {{z = {expression}}}"
    line = np.broadcast_to(np.float32(1), (10**6, 1))
    error = refusal(graph, x=line, y=line.T, b=np.array([True]))
    assert error.code == "too_large"


@pytest.mark.parametrize(
    "expression",
    [
        "Add(x, x)", "Relu(x)", "Softmax(x)", "ReduceSum<keepdims=0>(x, a)", "Transpose(x)",
        "Concat<axis=0>(x, x)", "LayerNormalization(x, s)", "Gather(x, i)", "Exp(x)",
    ],
)  # fmt: skip
def test_tensors_of_no_elements_go_through(expression):
    plan = plan_of(
        "(float[n,3] x) => (float y)"
        "<int64[1] a = {1}, int64[0] i = {}, float[3] s = {1, 1, 1}>"
        f"{{y = {expression}}}"
    )
    assert plan.run({"x": np.zeros((0, 3), np.float32)})["y"].size == 0


def test_sums_of_nothing_are_zero_and_means_of_nothing_are_refused():
    empty = np.zeros((2, 0), np.float32)
    graph = "(float[n,m] x) => (float y) <int64[1] a = {1}> {y = %s(x, a)}"
    total = plan_of(graph % "ReduceSum").run({"x": empty})["y"]
    np.testing.assert_array_equal(total, np.zeros((2, 1), np.float32))
    assert refusal(graph % "ReduceMean", x=empty).code == "nan"
    product = plan_of("(float[n,k] a, float[k,m] b) => (float y) {y = MatMul(a, b)}")
    found = product.run({"a": empty, "b": empty.T})["y"]
    np.testing.assert_array_equal(found, np.zeros((2, 2), np.float32))


# -- shapes and indices -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "Add(x, y)", "Where(b, x, y)", "Less(x, y)", "MatMul(x, y)", "Gemm(x, y)",
        "Concat<axis=0>(x, y)", "Reshape(x, s)", "Expand(x, s)", "Squeeze(x, z)",
        "LayerNormalization(x, y)", "Pow(x, y)", "Tile(x, o)", "Transpose<perm=[0,0]>(x)",
        "Slice(x, o, s)", "PRelu(x, y)",
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_refused(expression):
    error = refusal(
        "(float[n,m] x, float[k,l] y, bool[1] b) => (float r)"
        "<int64[2] s = {5, 2}, int64[1] o = {1}, int64[1] z = {0}>"
        f"{{r = {expression}}}",
        x=np.ones((2, 3), np.float32),
        y=np.ones((2, 4), np.float32),
        b=np.array([True]),
    )
    assert error.code == "shape_mismatch"


@pytest.mark.parametrize(
    "expression",
    [
        "Gather(x, i)", "GatherElements(x, j)", "GatherND(x, j)", "ScatterElements(x, j, u)",
        "ScatterND(x, k, u)", "TopK(x, i)", "Softmax<axis=2>(x)", "Flatten<axis=3>(x)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("index", [3, -4, 1 << 62])
def test_what_is_out_of_range_is_refused(expression, index):
    outputs = "y, positions" if expression.startswith("TopK") else "y"
    error = refusal(
        "(float[n,m] x, float[1,1] u, int64[n] i, int64[n,m] j, int64[n,m] k)"
        " => (float y)"
        f"{{{outputs} = {expression}}}",
        x=np.ones((3, 2), np.float32),
        u=np.ones((1, 1), np.float32),
        i=np.array([index]),
        j=np.array([[index]]),
        k=np.array([[0, index]]),
    )
    assert error.code in {"out_of_range", "shape_mismatch"}
    if not expression.startswith("ScatterND"):
        assert error.code == "out_of_range"


@pytest.mark.parametrize(
    ("expression", "x"), [("Div(x, x)", 0), ("Mod(x, x)", 0), ("Pow(x, x)", -1)]
)
def test_integers_without_a_result_are_refused(expression, x):
    graph = f"(int64[n] x) => (int64[n] y) {{y = {expression}}}"
    assert refusal(graph, x=np.array([x])).code == "out_of_range"


@pytest.mark.parametrize("value", [3e9, -3e9])
def test_a_float_that_no_integer_holds_is_not_cast(value):
    error = refusal("(float[n] x) => (int32[n] y) {y = Cast<to=6>(x)}", x=floats(value))
    assert (error.code, error.operator) == ("out_of_range", "Cast")


# -- before anything runs ---------------------------------------------------------------------


@pytest.mark.parametrize("operator", ["Acos", "NonZero", "Det", "Hardmax"])
def test_an_operator_that_is_not_in_the_table_is_refused_by_name(operator):
    error = refusal_before_running(f"(float[n,n] x) => (float y) {{y = {operator}(x)}}")
    assert error.code == "unsupported_operator"
    assert (error.node, error.operator) == (f"the_{operator}", operator)
    assert operator in error.message


def test_an_operator_of_another_domain_is_refused_by_name():
    model = parsed("(float[n] x) => (float[n] y) {y = Relu(x)}")
    model.graph.node[0].domain = "com.example"
    error = refusal_before_running(model)
    assert error.code == "unsupported_operator"
    assert "com.example.Relu" in error.message


def test_an_unsupported_node_at_the_end_is_refused_before_a_bad_constant_at_the_start():
    graph = (
        "(float[1] x) => (float y) <float[1] c = {-1}> {l = Log(c) a = Add(l, x) y = Acos(a)}"
    )
    assert refusal_before_running(graph).code == "unsupported_operator"


@pytest.mark.parametrize("dtype", ["float16", "double", "bfloat16"])
def test_a_program_of_another_float_is_refused_by_its_name(dtype):
    error = refusal_before_running(f"({dtype}[n] x) => ({dtype}[n] y) {{y = Relu(x)}}")
    assert (error.code, error.node) == ("wrong_dtype", "x")
    assert {"double": "float64"}.get(dtype, dtype) in error.message


def test_a_cast_to_another_float_is_refused_by_its_name():
    error = refusal_before_running("(float[n] x) => (float16[n] y) {y = Cast<to=10>(x)}")
    assert (error.code, error.operator) == ("wrong_dtype", "Cast")
    assert "float16" in error.message


def test_a_constant_of_another_float_is_refused_by_its_name():
    model = parsed("(float[n] x) => (float[n] y) {y = Relu(x)}")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(2), "c"))
    error = refusal_before_running(model)
    assert (error.code, error.node, error.operator) == ("wrong_dtype", "c", "constant")


def test_dtypes_that_an_operator_does_not_mix_are_refused():
    error = refusal_before_running("(float[n] x, int64[n] i) => (float y) {y = Add(x, i)}")
    assert (error.code, error.operator) == ("wrong_dtype", "Add")


def test_an_input_of_another_dtype_than_declared_is_refused():
    error = refusal("(float[n] x) => (float[n] y) {y = Relu(x)}", x=np.zeros(3))
    assert (error.code, error.node, error.operator) == ("wrong_dtype", "x", "input")


@pytest.mark.parametrize("opset", [17, 24])
def test_another_opset_is_refused(opset):
    with pytest.raises(ProgramError) as refused:
        plan_of(parsed("(float[n] x) => (float[n] y) {y = Relu(x)}", opset))
    assert refused.value.code == "unsupported_opset"


@pytest.mark.parametrize(
    "graph",
    [
        "(float[n] x) => (float[n] y) {y = Relu(z)}",
        "(float[n] x) => (float[n] y) {y = Relu(t) t = Abs(x)}",
        "(float[n] x) => (float[n] y) {y = Relu<alpha=1.0>(x)}",
        "(float[n] x) => (float[n] y) {y = Relu(x, x)}",
        "(float[n] x) => (float[n] y) {y = Concat(x, x)}",
        "(float[n] x) => (float[n] y) {y = Relu(x) y = Abs(x)}",
        "(float[n] x) => (float[n] y) {t = Relu(x)}",
    ],
)
def test_a_graph_that_is_not_valid_is_refused(graph):
    with pytest.raises(ProgramError) as refused:
        plan_of(graph)
    assert refused.value.code == "invalid_model"


@pytest.mark.parametrize(
    "axis", [ScaleAxis("nothing", "k"), ScaleAxis("t", "column"), ScaleAxis("c", "k")]
)
def test_a_scale_axis_that_does_not_fit_the_graph_is_refused(axis):
    graph = """(float[1,2,3] x, float[2,2,1] w) => (float y)
        {c = Conv(x, w) t = Relu(c) y = MatMul(t, x)}"""
    with pytest.raises(ProgramError) as refused:
        plan_of(graph, axes=(axis,))
    assert refused.value.code == "manifest_mismatch"


def test_a_written_scale_axis_overrides_the_derived_one():
    graph = "(float[n,k] a, float[k,m] b) => (float y) {y = MatMul(a, b)}"
    plan = plan_of(graph, axes=(ScaleAxis("y", "k"),))
    assert plan.steps[0].node.product.axis == "k"
    assert plan_of(graph).steps[0].node.product.axis == "column"


def test_values_are_freed_after_their_last_use():
    plan = plan_of(
        "(float[n] x) => (float[n] z) {a = Relu(x) b = Abs(a) c = Add(a, b) z = Neg(c)}"
    )
    assert [set(step.frees) for step in plan.steps] == [{"x"}, set(), {"a", "b"}, {"c"}]


def test_what_depends_on_constants_alone_runs_once():
    plan = plan_of(
        "(float[2,2] x) => (float y) <float[2,2] w = {1, 2, 3, 4}>"
        "{t = Transpose(w) u = Mul(t, t) y = MatMul(x, u)}"
    )
    assert [step.node.operator for step in plan.steps] == ["MatMul"]
    assert plan.constants.keys() == {"u"}


def test_a_run_can_be_ended_between_two_nodes():
    plan = plan_of("(float[n] x) => (float[n] y) {a = Relu(x) y = Abs(a)}")
    calls = []

    def end_at_the_second():
        calls.append(1)
        if len(calls) == 2:
            raise ComputeError("ended", code="terminated")

    with pytest.raises(ComputeError, match="ended"):
        plan.run({"x": floats(1)}, end_at_the_second)


def test_a_node_without_a_name_is_named_by_its_first_output():
    node = helper.make_node("Log", ["x"], ["result"])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("result", TensorProto.FLOAT, [1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 8
    assert refusal(model, x=floats(-1)).node == "result"


@pytest.mark.parametrize(
    "expression",
    [
        "Split<num_outputs=0>(x)", "Conv<group=0>(i, w)", "Conv<strides=[0,1]>(i, w)",
        "Conv<pads=[-1,0,0,0]>(i, w)", "Conv(i, x)", "Conv<dilations=[1]>(i, w)",
        "Conv<group=2>(i, w)", "MatMul(x, c)", "Gemm(i, x)", "DepthToSpace<blocksize=0>(i)",
        "GroupNormalization<num_groups=0>(i, v, v)", "BatchNormalization(i, x, x, x, x)",
        "MaxPool<kernel_shape=[9,9]>(i)", "AveragePool<kernel_shape=[0,0]>(i)",
        "Reshape<allowzero=1>(x, z)", "Trilu(v)", "Clip(x, x)", "Flatten<axis=-9>(x)",
        "OneHot(k, k, v)", "CumSum(x, z)", "Pad(x, z)", "Slice(x, z, z, z, z)",
        "Unsqueeze(x, h)", "Concat<axis=5>(x, x)", "Expand(x, k)", "Tile(x, k)",
        "QuantizeLinear<axis=0>(x, v)", "GatherND(x, k)",
        "Conv<strides=[4611686018427387904,1]>(i, w)",
        'Pad<mode="edge">(x, h)', "Range(c, c, zero)",
    ],
)  # fmt: skip
@pytest.mark.parametrize("constant", [False, True])
def test_attributes_and_shapes_that_make_no_sense_end_in_an_error_with_its_place(
    expression, constant
):
    """Whether its inputs are fed or constants, from which plans are made."""
    inputs = {
        "x": np.ones((2, 3), np.float32),
        "i": np.ones((1, 3, 4, 4), np.float32),
        "w": np.ones((3, 3, 9, 9), np.float32),
        "v": np.ones(3, np.float32),
        "c": np.ones((), np.float32),
        "zero": np.zeros((), np.float32),
        "z": np.array([0, 0, 0]),
        "k": np.array([-3]),
        "h": np.full(4, 1 << 62),
    }
    graph = (
        "(float[a,b] x, float[c,d,e,f] i, float[g,h,j,k] w, float[l] v, float c, float zero,"
        f" int64[m] z, int64[n] k, int64[o] h) => (float y) {{y = {expression}}}"
    )
    weights = inputs if constant else {}
    with pytest.raises(ExactError) as refused:
        make_plan(parsed(graph, 21), weights, X20, (), ReferenceKernels()).run(inputs)
    assert refused.value.operator == expression.partition("(")[0].partition("<")[0]
    assert refused.value.code in {"shape_mismatch", "out_of_range", "too_large"}
