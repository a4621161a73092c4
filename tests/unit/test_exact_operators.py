"""Operators of the exact class beside ONNX Runtime, on random float32 tensors.

The two round differently, so values agree to 1e-4; shapes, axes and attributes have to
agree entirely. The bits themselves are held by the kernels' own tests.
"""

import numpy as np
import onnxruntime
import pytest
from onnx import parser

from shoal.compute.exact.plan import make_plan
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import X20

# A graph of inputs named after their shapes' use, and the opset it needs where not 20.
GRAPHS = {
    "matmul of a vector and a matrix": """(float[5] a, float[5,3] b) => (float y)
        {y = MatMul(a, b)}""",
    "matmul of a matrix and a vector": """(float[4,5] a, float[5] b) => (float y)
        {y = MatMul(a, b)}""",
    "matmul of two vectors": "(float[5] a, float[5] b) => (float y) {y = MatMul(a, b)}",
    "matmul of batches": "(float[2,3,4,5] a, float[2,3,5,6] b) => (float y) {y = MatMul(a, b)}",
    "matmul, batches broadcast": """(float[3,4,5] a, float[2,1,5,6] b) => (float y)
        {y = MatMul(a, b)}""",
    "matmul, one matrix for all": """(float[2,3,4,5] a, float[5,6] b) => (float y)
        {y = MatMul(a, b)}""",
    "attention": """(float[2,4,8] q, float[2,4,8] k, float[2,4,8] v) => (float y)
        {t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax(s) y = MatMul(p, v)}""",
    "gemm": "(float[4,5] a, float[5,3] b, float[3] c) => (float y) {y = Gemm(a, b, c)}",
    "gemm, transposed and scaled": """(float[5,4] a, float[3,5] b, float[4,1] c) => (float y)
        {y = Gemm<transA=1, transB=1, alpha=0.5, beta=2.0>(a, b, c)}""",
    "conv": "(float[2,3,9,8] x, float[4,3,3,2] w, float[4] b) => (float y) {y = Conv(x, w, b)}",
    "conv, strided and padded": """(float[2,3,9,8] x, float[4,3,3,3] w) => (float y)
        {y = Conv<strides=[2,1], pads=[1,0,2,1], dilations=[1,2]>(x, w)}""",
    "conv, in groups": """(float[2,6,7,7] x, float[4,3,3,3] w) => (float y)
        {y = Conv<group=2>(x, w)}""",
    "conv, depthwise": """(float[1,4,7,7] x, float[4,1,3,3] w) => (float y)
        {y = Conv<group=4>(x, w)}""",
    "conv, same lower": """(float[1,2,7,6] x, float[3,2,2,2] w) => (float y)
        {y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w)}""",
    "conv of one axis": """(float[2,3,9] x, float[4,3,4] w) => (float y)
        {y = Conv<pads=[2,1]>(x, w)}""",
    "conv of three axes": """(float[1,2,5,4,5] x, float[3,2,2,3,2] w) => (float y)
        {y = Conv(x, w)}""",
    "max pool": """(float[2,3,9,8] x) => (float y)
        {y = MaxPool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1]>(x)}""",
    "max pool, rounded up": """(float[1,2,8,8] x) => (float y)
        {y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1, dilations=[1,2]>(x)}""",
    "max pool with indices": """(float[2,3,6,6] x) => (float y, int64 i)
        {y, i = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x)}""",
    "average pool": """(float[2,3,9,8] x) => (float y)
        {y = AveragePool<kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]>(x)}""",
    "average pool, padding counted": """(float[2,3,9,8] x) => (float y) {y = AveragePool
        <kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1], count_include_pad=1,
        ceil_mode=1>(x)}""",
    "global pools": """(float[2,3,4,5] x) => (float y, float z)
        {y = GlobalAveragePool(x) z = GlobalMaxPool(x)}""",
    "batch norm": """(float[2,3,4,5] x, float[3] s, float[3] b, float[3] m, float[3] r)
        => (float y) {v = Abs(r) y = BatchNormalization<epsilon=0.01>(x, s, b, m, v)}""",
    "layer norm": """(float[2,3,8] x, float[8] s, float[8] b) => (float y, float m, float d)
        {y, m, d = LayerNormalization(x, s, b)}""",
    "layer norm of two axes": """(float[2,3,8] x, float[3,8] s) => (float y)
        {y = LayerNormalization<axis=1, epsilon=0.1>(x, s)}""",
    "instance norm": """(float[2,3,4,5] x, float[3] s, float[3] b) => (float y)
        {y = InstanceNormalization(x, s, b)}""",
    "group norm": """<opset> (float[2,6,4,5] x, float[6] s, float[6] b) => (float y)
        {y = GroupNormalization<num_groups=3>(x, s, b)}""",
    "softmax of an axis": "(float[2,5,3] x) => (float y) {y = Softmax<axis=1>(x)}",
    "log softmax": "(float[2,5,3] x) => (float y) {y = LogSoftmax<axis=-2>(x)}",
    "cumulative sum": """(float[3,7] x) => (float y) <int64 axis = {1}>
        {y = CumSum<exclusive=1, reverse=1>(x, axis)}""",
    "reductions": """(float[3,4,5] x) => (float a, float b, float c, float d, float e, float f)
        <int64[2] axes = {0, -1}> {
        a = ReduceSum(x, axes) b = ReduceMean<keepdims=0>(x, axes) c = ReduceMax(x, axes)
        d = ReduceMin(x, axes) e = ReduceL2(x, axes) f = ReduceLogSumExp<keepdims=0>(x)}""",
    "arg max and min": """(float[3,4,5] x) => (int64 y, int64 z)
        {y = ArgMax<axis=1>(x) z = ArgMin<axis=-1, keepdims=0>(x)}""",
    "top k": """(float[3,9] x) => (float y, int64 i) <int64[1] k = {4}>
        {y, i = TopK<axis=-1, largest=0>(x, k)}""",
    "functions": """(float[4,9] x)
        => (float a, float b, float c, float d, float e, float f, float g)
        {a = Tanh(x) b = Sigmoid(x) c = Erf(x)
        d = Gelu(x) e = Exp(x) f = Softplus(x) g = Sin(x)}""",
    "activations": """(float[4,9] x) => (float a, float b, float c, float d, float e, float f)
        {a = Elu(x) b = Selu(x) c = LeakyRelu(x) d = HardSwish(x) e = Mish(x) f = Celu(x)}""",
    "powers": """(float[4,9] x, float[9] y) => (float a, float b, float c)
        <float two = {2}, float half = {0.5}>
        {m = Abs(x) a = Pow(x, two) b = Pow(m, half) c = Pow(m, y)}""",
    "broadcast": """(float[3,1,5] x, float[4,1] y) => (float a, float b)
        {a = Add(x, y) b = Div(x, y)}""",
    "choice": """(float[3,5] x, float[5] y) => (float a, bool b)
        {b = Less(x, y) a = Where(b, x, y)}""",
    "slices": """(float[6,7] x) => (float y)
        <int64[2] s = {-1, 5}, int64[2] e = {-100, 1}, int64[2] a = {0, 1},
        int64[2] t = {-2, -1}>
        {y = Slice(x, s, e, a, t)}""",
    "pad, reflected": """(float[4,5] x) => (float y) <int64[4] p = {2, 1, 1, 3}>
        {y = Pad<mode="reflect">(x, p)}""",
    "pad, one axis cut": """(float[4,5] x) => (float y) <int64[2] p = {-1, 2}, int64[1] a = {1}>
        {y = Pad(x, p, , a)}""",
    "split unevenly": """(float[7,2] x) => (float a, float b, float c)
        {a, b, c = Split<num_outputs=3>(x)}""",
    "scatter-add of elements": """(float[4,3] x, float[2,3] u) => (float y)
        <int64[2,3] i = {0, 1, 0, 0, 3, 2}>
        {y = ScatterElements<reduction="add">(x, i, u)}""",
    "scatter-add of slices": """(float[4,3] x, float[3,3] u) => (float y)
        <int64[3,1] i = {1, -1, 1}> {y = ScatterND<reduction="add">(x, i, u)}""",
    "gather slices of a batch": """(float[2,3,4] x)
        => (float y) <int64[2,2,1] i = {2, 0, 1, -1}>
        {y = GatherND<batch_dims=1>(x, i)}""",
    "gather along an axis": """(float[3,4] x) => (float y) <int64[2,2] i = {-1, 0, 2, 1}>
        {y = Gather<axis=1>(x, i)}""",
    "a triangle": "(float[2,4,5] x) => (float y) <int64 k = {-1}> {y = Trilu<upper=0>(x, k)}",
    "there and back by int8": """(float[3,4] x) => (float y, int8 q)
        <float[4] s = {0.5, 0.25, 0.1, 0.3}, int8[4] z = {0, 3, -4, 1}>
        {q = QuantizeLinear<axis=1>(x, s, z) y = DequantizeLinear<axis=1>(q, s, z)}""",
    "quantised dynamically": """(float[3,4] x) => (uint8 q, float s, uint8 z)
        {q, s, z = DynamicQuantizeLinear(x)}""",
}


def parsed(graph, opset=21):
    graph = graph.replace("<opset>", "")
    return parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> g {graph}')


def inputs_of(model, seed=3):
    random = np.random.default_rng(seed)
    return {
        value.name: random.normal(
            size=[dim.dim_value for dim in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
    }


@pytest.mark.parametrize("name", GRAPHS)
def test_values_are_those_of_onnx_runtime(name):
    model = parsed(GRAPHS[name])
    inputs = inputs_of(model)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    wanted = session.run(None, inputs)
    found = make_plan(model, {}, X20, (), ReferenceKernels()).run(inputs)
    for value, expected in zip(model.graph.output, wanted, strict=True):
        assert found[value.name].dtype == expected.dtype
        np.testing.assert_allclose(found[value.name], expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "name", [name for name in GRAPHS if name.startswith(("matmul", "gemm", "conv"))]
)
def test_a_constant_operand_quantised_once_gives_the_bits_of_one_that_is_fed(name):
    model = parsed(GRAPHS[name])
    inputs = inputs_of(model)
    fed = make_plan(model, {}, X20, (), ReferenceKernels()).run(inputs)
    operand = model.graph.input[1].name
    plan = make_plan(model, {operand: inputs[operand]}, X20, (), ReferenceKernels())
    (product,) = [step.node for step in plan.steps if step.node.product]
    assert product.product.prepared
    kept = {name: array for name, array in inputs.items() if name != operand}
    assert plan.run(kept)["y"].tobytes() == fed["y"].tobytes()


@pytest.mark.parametrize(
    ("expression", "x", "y", "wanted"),
    [
        ("Div", [7, -7, 7, -7], [2, 2, -2, -2], [3, -3, -3, 3]),
        ("Div", [-(2**31)], [-1], [-(2**31)]),
        ("Mod", [7, -7, 7, -7], [3, 3, -3, -3], [1, 2, -2, -1]),
        ("Mod<fmod=1>", [7, -7, 7, -7], [3, 3, -3, -3], [1, -1, 1, -1]),
        ("Pow", [3, -2, 2], [4, 3, 33], [81, -8, 0]),
        ("Add", [2**31 - 1], [1], [-(2**31)]),
    ],
)
def test_integers_divide_toward_zero_and_wrap_around(expression, x, y, wanted):
    name, _, attributes = expression.partition("<")
    operator = f"{name}<{attributes}" if attributes else name
    model = parsed(f"(int32[n] x, int32[n] y) => (int32[n] z) {{z = {operator}(x, y)}}")
    inputs = {"x": np.array(x, np.int32), "y": np.array(y, np.int32)}
    found = make_plan(model, {}, X20, (), ReferenceKernels()).run(inputs)["z"]
    np.testing.assert_array_equal(found, np.array(wanted, np.int32))


def test_equal_values_are_chosen_by_the_lower_index():
    model = parsed(
        "(float[n] x) => (float v, int64 i, int64 first) <int64[1] k = {3}>"
        "{v, i = TopK(x, k) first = ArgMax<keepdims=0>(x)}"
    )
    x = np.array([1, 2, 0.0, 2, -0.0, 2], np.float32)
    found = make_plan(model, {}, X20, (), ReferenceKernels()).run({"x": x})
    assert found["i"].tolist() == [1, 3, 5]
    assert found["first"] == 1


def test_of_equal_scatter_indices_the_last_update_stands_and_maxima_know_the_sign_of_zero():
    model = parsed(
        "(float[3] x, float[2] u) => (float a, float b) <int64[2] i = {1, 1}>"
        '{a = ScatterElements(x, i, u) b = ScatterElements<reduction="max">(x, i, u)}'
    )
    x, u = np.array([5, -0.0, 7], np.float32), np.array([-0.0, 0.0], np.float32)
    found = make_plan(model, {}, X20, (), ReferenceKernels()).run({"x": x, "u": u})
    assert not np.signbit(found["a"][1])
    assert not np.signbit(found["b"][1])
    found = make_plan(model, {}, X20, (), ReferenceKernels()).run({"x": x, "u": u[::-1].copy()})
    assert np.signbit(found["a"][1])
    assert not np.signbit(found["b"][1])


def test_a_row_beside_a_mask_never_depends_on_what_it_hides():
    model = parsed(
        "(float[n,n] s, float[n,m] v) => (float y) <int64[2] shape = {4, 4}>"
        "{p = Softmax(s) r = Reshape(p, shape) y = MatMul(r, v)}"
    )
    random = np.random.default_rng(5)
    scores = np.where(np.tri(4) > 0, random.normal(size=(4, 4)), -np.inf).astype(np.float32)
    values = random.normal(size=(4, 6)).astype(np.float32)
    plan = make_plan(model, {}, X20, (), ReferenceKernels())
    before = plan.run({"s": scores, "v": values})["y"]
    values[3] *= 1000
    after = plan.run({"s": scores, "v": values})["y"]
    assert after[:3].tobytes() == before[:3].tobytes()
    assert after[3].tobytes() != before[3].tobytes()
