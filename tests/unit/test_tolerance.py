"""How far apart honest results may be, where bits are not defined."""

import models
import numpy as np
import pytest
from onnx import TensorProto, helper

from shoal.compute.errors import ProgramError
from shoal.compute.tensor import to_blob
from shoal.compute.tolerance import CAP, LEAST_U, SUM_U, Tolerance, near, tolerance_of


def chain(*operators):
    """A model of these operators, one after another."""
    nodes = [
        helper.make_node(operator, [f"v{place}"], [f"v{place + 1}"])
        for place, operator in enumerate(operators)
    ]
    port = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [port("v0", TensorProto.FLOAT, [4])],
        [port(f"v{len(nodes)}", TensorProto.FLOAT, [4])],
    )
    return helper.make_model(graph).SerializeToString()


def relative(*operators, numeric_class="fp32"):
    return tolerance_of(chain(*operators), numeric_class).relative


def test_a_tolerance_grows_along_a_path_and_not_with_what_only_moves():
    moved, once, twice = relative("Reshape"), relative("Tanh"), relative("Tanh", "Tanh")
    assert moved < once < twice
    assert twice - once == pytest.approx(once - moved)


def test_branches_do_not_add_up():
    def model(width):
        nodes = [helper.make_node("Tanh", ["x"], [f"t{k}"]) for k in range(width)]
        nodes.append(helper.make_node("Concat", [f"t{k}" for k in range(width)], ["y"], axis=0))
        port = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "g",
            [port("x", TensorProto.FLOAT, [4])],
            [port("y", TensorProto.FLOAT, [4 * width])],
        )
        return helper.make_model(graph).SerializeToString()

    assert tolerance_of(model(1), "fp32") == tolerance_of(model(9), "fp32")


def test_an_unknown_operator_counts_as_a_long_sum_and_no_program_gets_all():
    assert relative("NoSuchThing") == pytest.approx((LEAST_U + SUM_U) * 2.0**-23)
    assert relative(*["NoSuchThing"] * 5000) == CAP["fp32"]
    assert relative("Tanh", numeric_class="low") > 1000 * relative("Tanh")


def test_a_whole_model_is_read():
    assert 1e-6 < tolerance_of(models.dense(), "fp32").relative < 1e-4


@pytest.mark.parametrize("graph", [b"\x3a\xff", b"\x3a\x7f\x01", b"\xff" * 20])
def test_what_is_no_model_is_refused_by_name(graph):
    with pytest.raises(ProgramError) as caught:
        tolerance_of(graph, "fp32")
    assert caught.value.code == "malformed_model"


CLOSE = Tolerance(1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_nearness_is_relative_to_the_largest_element(dtype):
    one = np.array([1000.0, 1e-4, -3.0], dtype=dtype)
    assert near(to_blob(one), to_blob(one.copy()), CLOSE)
    moved = one.astype("float64")
    moved[1] = 5e-3  # far from what it was, and near beside 1000
    assert near(to_blob(one), to_blob(moved.astype(dtype)), CLOSE)
    moved[2] = -4.0
    assert not near(to_blob(one), to_blob(moved.astype(dtype)), CLOSE)


def test_what_is_not_finite_is_near_its_like_alone():
    nan, inf = np.float32("nan"), np.float32("inf")
    one = to_blob(np.array([1, nan, inf], dtype=np.float32))
    assert near(one, to_blob(np.array([1 + 1e-6, nan, inf], dtype=np.float32)), CLOSE)
    assert not near(one, to_blob(np.array([1, nan, -inf], dtype=np.float32)), CLOSE)
    assert not near(one, to_blob(np.array([1, 0, inf], dtype=np.float32)), CLOSE)
    assert not near(one, to_blob(np.array([1, nan, 5], dtype=np.float32)), CLOSE)


def test_another_shape_dtype_or_no_tensor_at_all_is_not_near():
    one = to_blob(np.zeros((2, 2), dtype=np.float32))
    assert not near(one, to_blob(np.zeros(4, dtype=np.float32)), CLOSE)
    assert not near(one, to_blob(np.zeros((2, 2), dtype=np.float64)), CLOSE)
    assert not near(one, b"no tensor", CLOSE)
    assert not near(one, one[:-1], CLOSE)


def test_whole_numbers_are_equal_but_behind_a_comparison():
    one = np.arange(1000, dtype=np.int64)
    other = one.copy()
    other[3] += 1
    assert not near(to_blob(one), to_blob(other), CLOSE)
    flipping = tolerance_of(chain("ArgMax"), "fp32")
    assert near(to_blob(one), to_blob(other), flipping)
    other[:50] += 1
    assert not near(to_blob(one), to_blob(other), flipping)
