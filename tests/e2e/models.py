"""ONNX models small enough to write down, for what the end-to-end tests need of one."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

WIDTH = 4


def rows(count):
    """Distinct float32 rows of shape (count, WIDTH)."""
    return np.arange(count * WIDTH, dtype=np.float32).reshape(count, WIDTH) / 7


def dense(seed=7):
    """y = tanh(x · W + b) over a batch of rows."""
    random = np.random.default_rng(seed)
    weights = {"w": random.normal(size=(WIDTH, WIDTH)), "b": random.normal(size=WIDTH)}
    return _model(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"]),
            helper.make_node("Add", ["xw", "b"], ["xwb"]),
            helper.make_node("Tanh", ["xwb"], ["y"]),
        ],
        initializers=[
            helper.make_tensor(name, TensorProto.FLOAT, value.shape, value.ravel())
            for name, value in weights.items()
        ],
    )


def slow(turns):
    """y = x after an even number of ``turns`` of a loop that negates it.

    100,000 turns take some tenths of a second.
    """
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still_going"]),
            helper.make_node("Neg", ["state"], ["next_state"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            _rows_named("state"),
        ],
        [
            helper.make_tensor_value_info("still_going", TensorProto.BOOL, []),
            _rows_named("next_state"),
        ],
    )
    return _model(
        [helper.make_node("Loop", ["turns", "", "x"], ["y"], body=body)],
        initializers=[helper.make_tensor("turns", TensorProto.INT64, [], [turns])],
    )


def identity():
    """y = x."""
    return _model([helper.make_node("Identity", ["x"], ["y"])])


def gather(table=(0.5, 1.5, 2.5)):
    """y = table[x]: an index that is out of range is found when it runs, and not before."""
    return _model(
        [helper.make_node("Gather", ["table", "x"], ["y"], name="look_up")],
        inputs=[helper.make_tensor_value_info("x", TensorProto.INT64, ["n"])],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
        initializers=[numpy_helper.from_array(np.asarray(table, np.float32), "table")],
    )


def outer_sum():
    """y = x + z, a column and a row: much comes of little."""
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1]),
        helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, "m"]),
    ]
    return _model(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        inputs=inputs,
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "m"])],
    )


def first_row():
    """y = the first row of x."""
    both = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n", "m"]) for n in "xy"]
    return _model(
        [helper.make_node("Gather", ["x", "first"], ["y"])],
        inputs=both[:1],
        outputs=[helper.make_tensor_value_info("y", TensorProto.FLOAT, ["k", "m"])],
        initializers=[numpy_helper.from_array(np.array([0]), "first")],
    )


def with_custom_domain():
    """A model that needs an operator of somebody's own."""
    return _model(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain="com.example")],
        opsets=[helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)],
    )


def with_external_data(location):
    """A model whose weights are said to lie in a file at ``location``."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [WIDTH], [0.0] * WIDTH)
    del weight.float_data[:]
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    return _model([helper.make_node("Add", ["x", "w"], ["y"])], initializers=[weight])


def _rows_named(name):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH])


def _model(nodes, *, inputs=None, outputs=None, initializers=(), opsets=None):
    graph = helper.make_graph(
        nodes,
        "g",
        inputs or [_rows_named("x")],
        outputs or [_rows_named("y")],
        list(initializers),
    )
    model = helper.make_model(graph, opset_imports=opsets or [helper.make_opsetid("", 18)])
    model.ir_version = 8
    return model.SerializeToString()
