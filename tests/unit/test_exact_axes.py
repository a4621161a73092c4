import pytest
from onnx import parser

from shoal.compute.exact.axes import scale_axes_of

HEAD = """
<ir_version: 9, opset_import: ["" : 20]>
attention (float[2, 4] q, float[4, 2] k, float[2, 3] v, bool[2, 2] hidden, float[1] zero)
=> (float[2, 3] y)
"""


def axes(body):
    model = parser.parse_model(f"{HEAD} {{ {body} }}")
    return {axis.product: axis.axis for axis in scale_axes_of(model.graph)}


@pytest.mark.parametrize(
    "between",
    [
        "p = Softmax(s)",
        "e = Softmax(s) p = Identity(e)",
        "e = Softmax(s) t = Transpose<perm=[1,0]>(e) p = Transpose<perm=[1,0]>(t)",
        "e = Softmax(s) p = Where(hidden, zero, e)",
        "e = Softmax(s) n = IsNaN(e) w = Where(n, zero, e) p = Cast<to=1>(w)",
    ],
)
def test_a_product_of_a_softmax_takes_a_scale_for_each_token(between):
    assert axes(f"s = MatMul(q, k) {between} y = MatMul(p, v)") == {"s": "column", "y": "k"}


@pytest.mark.parametrize(
    "between",
    [
        "p = Tanh(s)",
        "e = Softmax(s) p = Mul(e, s)",
        "e = Softmax(s) p = Where(hidden, s, zero)",
    ],
)
def test_every_other_product_takes_a_scale_for_each_column(between):
    assert axes(f"s = MatMul(q, k) {between} y = MatMul(p, v)") == {
        "s": "column",
        "y": "column",
    }


def test_a_softmax_on_the_right_changes_nothing():
    assert axes("r = Softmax(v) y = MatMul(q, r)") == {"y": "column"}
