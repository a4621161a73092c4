"""A converted model keeps the ports it declares, loads, and computes what it did before."""

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from shoal.compute.convert import convert
from shoal.compute.executors.onnxruntime import OnnxRuntime
from shoal.compute.graph import fed_inputs, port_of
from shoal.compute.loading import load
from shoal.compute.program import OPSETS

X = np.arange(24, dtype=np.float32).reshape(3, 8) - 7
SIZES = np.array([4, 6])
LARGE = np.random.default_rng(0).normal(size=(8, 40)).astype(np.float32)
SMALL = LARGE[:, :4].copy()

# What is computed, its result, and whether shape inference knows the result's shape:
# all of it for the first three, some of it for the next, nothing for the last.
BODIES = {
    "product with a weight": ("MatMul", ["x", "large"], X @ LARGE),
    "product with an inline initializer": ("MatMul", ["x", "small"], X @ SMALL),
    "transposed": ("Transpose", ["x"], X.T),
    "where not zero": ("NonZero", ["x"], np.array(np.nonzero(X))),
    "of a shape that is an input": ("Reshape", ["x", "sizes"], X.reshape(4, 6)),
    "the input itself": ("Identity", ["x"], X),
}


def declared(shape, symbols):
    """Ways to declare a shape: each size, a symbol, or nothing; or no shape at all."""
    dims = [st.sampled_from([size, None, *symbols]) for size in shape]
    return st.none() | st.tuples(*dims)


@st.composite
def models(draw):
    chosen = draw(st.lists(st.sampled_from(sorted(BODIES)), min_size=1, max_size=3))
    nodes, outputs, expected = [], [], {}
    for index, name in enumerate(chosen):
        operator, inputs, result = BODIES[name]
        output = f"y{index}"
        nodes.append(helper.make_node(operator, inputs, [output]))
        kind = helper.np_dtype_to_tensor_dtype(result.dtype)
        shape = draw(declared(result.shape, ["N", "A", "B"]))
        outputs.append(helper.make_tensor_value_info(output, kind, shape))
        expected[output] = result
    rows, columns = draw(st.sampled_from([3, None, "N"])), draw(st.sampled_from([8, None, "K"]))
    x_shape = draw(st.sampled_from([None, (rows, columns)]))
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x_shape),
            helper.make_tensor_value_info("sizes", onnx.TensorProto.INT64, [2]),
        ],
        outputs,
        [numpy_helper.from_array(LARGE, "large"), numpy_helper.from_array(SMALL, "small")],
    )
    opset = draw(st.sampled_from(OPSETS))
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)]
    )
    return model, expected


@settings(deadline=None)  # the first example loads the runtime
@given(models())
def test_whatever_dimensions_a_model_declares_its_program_lists_them_loads_and_runs(case):
    model, expected = case
    program = convert(model.SerializeToString())
    assert program.manifest.inputs == tuple(map(port_of, fed_inputs(model.graph)))
    assert program.manifest.outputs == tuple(map(port_of, model.graph.output))
    executor = OnnxRuntime(threads=1)
    prepared = executor.prepare(load(program.program_id, program.blobs))
    results = executor.run(prepared, {"x": X, "sizes": SIZES})
    assert results.keys() == expected.keys()
    for name, result in results.items():
        np.testing.assert_allclose(result, expected[name], rtol=1e-5, atol=1e-5)
