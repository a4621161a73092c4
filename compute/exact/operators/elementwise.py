"""Elementwise operators on float32 and integers, broadcast as ONNX says.

Part of *execute*. Each float operation is one kernel call, so it is rounded by
itself; activations that have no kernel are composed of such, in the order of ONNX's
own definition. Integer tensors wrap around, as ONNX and numpy have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from shoal.compute.exact.operators.integers import divided, power, remainder
from shoal.compute.exact.operators.node import (
    ANY,
    BOOL,
    FLOAT,
    INTEGER,
    NUMBER,
    SIGNED,
    UNSIGNED,
    Array,
    Inputs,
    Node,
    Operator,
    Outputs,
    as_array,
    broadcast_shape,
    dense,
    fail,
    finite,
    float32,
)

if TYPE_CHECKING:
    from shoal.compute.exact.kernels import BinaryName, Kernels, UnaryName

    Arithmetic: TypeAlias = Callable[[Array, Array], Array]

_SELU_ALPHA: Final = 1.67326319217681884765625
_SELU_GAMMA: Final = 1.05070102214813232421875


def _is_float(array: Array) -> bool:
    return bool(array.dtype == np.float32)


def unary(
    name: UnaryName,
    integers: Callable[[Array], Array] | None = None,
    dtypes: frozenset[str] = FLOAT,
) -> Operator:
    """One kernel on every element; integers by a function of numpy's where there is one."""

    def run(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
        (x,) = inputs
        if integers is not None and not _is_float(x):
            return (integers(x),)
        return (kernels.unary(name, dense(x)),)

    return Operator(run, dtypes)


def combined(
    name: BinaryName, integers: Arithmetic | None, x: Array, y: Array, kernels: Kernels
) -> Array:
    """One kernel on every pair of elements, or a function of numpy's on integers."""
    broadcast_shape(x, y)
    if _is_float(x):
        return kernels.binary(name, dense(x), dense(y))
    assert integers is not None
    with np.errstate(over="ignore"):  # scalars that wrap around would warn
        return np.asarray(integers(x, y), x.dtype)


def binary(
    name: BinaryName, integers: Arithmetic | None = None, dtypes: frozenset[str] = NUMBER
) -> Operator:
    """One kernel on pairs of elements."""

    def run(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
        x, y = inputs
        return (combined(name, integers, x, y, kernels),)

    return Operator(run, dtypes)


def variadic(name: BinaryName, integers: Arithmetic, dtypes: frozenset[str]) -> Operator:
    """One kernel over any number of inputs, from the left."""

    def run(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
        return (reduce(lambda x, y: combined(name, integers, x, y, kernels), inputs),)

    return Operator(run, dtypes)


def compare(test: Arithmetic, dtypes: frozenset[str]) -> Operator:
    """A comparison, or logic on bits: no arithmetic, so -inf may enter."""

    def run(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
        x, y = inputs
        broadcast_shape(x, y)
        return (as_array(test(x, y)),)

    return Operator(run, dtypes)


def bitwise_not(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
    """Not, on bools and on bits."""
    return (as_array(np.invert(inputs[0])),)


def bit_shift(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """BitShift."""
    x, y = inputs
    broadcast_shape(x, y)
    shift = np.left_shift if node.get("direction") == "LEFT" else np.right_shift
    return (as_array(shift(x, y)),)


def mean(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """Mean of several tensors: their sum from the left, over their count."""
    total = reduce(lambda x, y: combined("add", None, x, y, kernels), inputs)
    return (kernels.binary("div", dense(total), float32(len(inputs))),)


def where(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
    """Where: a choice, so -inf may enter."""
    broadcast_shape(*inputs)
    return (np.where(*inputs),)


def clip(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """Clip: min(max(x, low), high), each bound where it is given."""
    x, low, high = (*inputs, None, None)[:3]
    if any(bound is not None and bound.size != 1 for bound in (low, high)):
        fail("shape_mismatch", "a bound of Clip is not a scalar")
    if low is not None:
        x = combined("max", np.maximum, x, low.reshape(()), kernels)
    if high is not None:
        x = combined("min", np.minimum, x, high.reshape(()), kernels)
    return (x,)


def modulo(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """Mod: with fmod the sign of the dividend, without it (integers only) the divisor's."""
    x, y = inputs
    fmod = bool(node.get("fmod", 0))
    return (combined("fmod", lambda x, y: remainder(x, y, fmod=fmod), x, y, kernels),)


def _refuses_modulo(node: Node, dtypes: Sequence[str | None]) -> str | None:
    whole = dtypes[0] != "float32" or node.get("fmod", 0)
    return None if whole else "floats and fmod=0"


def raise_to(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """Pow: the result has the base's dtype."""
    base, exponent = inputs
    broadcast_shape(base, exponent)
    if _is_float(base):
        return (kernels.binary("pow", dense(base), dense(exponent.astype(np.float32))),)
    return (power(base, exponent),)


def _refuses_power(_: Node, dtypes: Sequence[str | None]) -> str | None:
    mixed = dtypes[0] != "float32" and dtypes[1] == "float32"
    return "an integer base and a float exponent" if mixed else None


def _refuses_gelu(node: Node, _: Sequence[str | None]) -> str | None:
    kind = node.get("approximate", "none")
    return None if kind in {"none", "tanh"} else f"the approximation {kind!r}"


def gelu(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    """Gelu, exact or by tanh."""
    name: Literal["gelu", "gelu_tanh"] = (
        "gelu_tanh" if node.get("approximate", "none") == "tanh" else "gelu"
    )
    return (kernels.unary(name, dense(inputs[0])),)


def is_nan(_: Node, inputs: Inputs, __: Kernels) -> Outputs:
    """IsNaN: nothing is, in the exact class."""
    return (np.zeros(inputs[0].shape, np.bool_),)


def is_inf(node: Node, inputs: Inputs, _: Kernels) -> Outputs:
    """IsInf: a mask's -inf is the only one."""
    (x,) = inputs
    if not node.get("detect_negative", 1):
        return (np.zeros(x.shape, np.bool_),)
    return (as_array(np.isneginf(x)),)


# -- activations composed of kernels ----------------------------------------------------


class _Steps:
    """Float32 operations on one tensor and scalars, for compositions that read as formulas."""

    def __init__(self, kernels: Kernels) -> None:
        self.unary = kernels.unary
        self._kernels = kernels

    def __call__(self, name: BinaryName, x: Array | float, y: Array | float) -> Array:
        x, y = (float32(v) if isinstance(v, float | int) else dense(v) for v in (x, y))
        return self._kernels.binary(name, x, y)


def _activation(formula: Callable[[Node, Array, _Steps], Array]) -> Operator:
    def run(node: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
        return (formula(node, dense(inputs[0]), _Steps(kernels)),)

    return Operator(run, FLOAT)


def _leaky_relu(node: Node, x: Array, do: _Steps) -> Array:
    return np.where(x < 0, do("mul", node.get("alpha", 0.01), x), x)


def _prelu(_: Node, inputs: Inputs, kernels: Kernels) -> Outputs:
    x, slope = inputs
    return (np.where(x < 0, combined("mul", None, slope, x, kernels), x),)


def _hard_sigmoid_of(x: Array, alpha: float, beta: float, do: _Steps) -> Array:
    return do("max", 0.0, do("min", 1.0, do("add", do("mul", alpha, x), beta)))


def _hard_sigmoid(node: Node, x: Array, do: _Steps) -> Array:
    return _hard_sigmoid_of(x, node.get("alpha", 0.2), node.get("beta", 0.5), do)


def _hard_swish(_: Node, x: Array, do: _Steps) -> Array:
    return do("mul", x, _hard_sigmoid_of(x, 1 / 6, 0.5, do))


def _exp_less_1(x: Array, do: _Steps) -> Array:
    """e^x - 1 of what is negative, 0 elsewhere, where e^x could overflow."""
    return do("sub", do.unary("exp", do("min", x, 0.0)), 1.0)


def _elu(node: Node, x: Array, do: _Steps) -> Array:
    return np.where(x < 0, do("mul", node.get("alpha", 1.0), _exp_less_1(x, do)), x)


def _selu(node: Node, x: Array, do: _Steps) -> Array:
    negative = do("mul", node.get("alpha", _SELU_ALPHA), _exp_less_1(x, do))
    return do("mul", node.get("gamma", _SELU_GAMMA), np.where(x < 0, negative, x))


def _celu(node: Node, x: Array, do: _Steps) -> Array:
    alpha = node.get("alpha", 1.0)
    return np.where(x < 0, do("mul", alpha, _exp_less_1(do("div", x, alpha), do)), x)


def _softsign(_: Node, x: Array, do: _Steps) -> Array:
    return do("div", x, do("add", 1.0, do.unary("abs", x)))


def _mish(_: Node, x: Array, do: _Steps) -> Array:
    return do("mul", x, do.unary("tanh", do.unary("softplus", x)))


def _thresholded_relu(node: Node, x: Array, _: _Steps) -> Array:
    return np.where(finite(x) > np.float32(node.get("alpha", 1.0)), x, np.float32(0))


def _on_integers(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda x: np.asarray(function(x))


def _relu_of_integers(x: Array) -> Array:
    return np.maximum(x, np.zeros((), x.dtype))


OPERATORS: Final[dict[str, Operator]] = {
    # one kernel each
    "Abs": unary("abs", _on_integers(np.abs), NUMBER),
    "Ceil": unary("ceil"),
    "Cos": unary("cos"),
    "Erf": unary("erf"),
    "Exp": unary("exp"),
    "Floor": unary("floor"),
    "Log": unary("log"),
    "Neg": unary("neg", _on_integers(np.negative), FLOAT | SIGNED),
    "Reciprocal": unary("reciprocal"),
    "Relu": unary("relu", _relu_of_integers, FLOAT | SIGNED),
    "Round": unary("round"),
    "Sigmoid": unary("sigmoid"),
    "Sign": unary("sign", _on_integers(np.sign), NUMBER),
    "Sin": unary("sin"),
    "Softplus": unary("softplus"),
    "Sqrt": unary("sqrt"),
    "Tanh": unary("tanh"),
    "Gelu": Operator(gelu, FLOAT, refuses=_refuses_gelu),
    "Add": binary("add", np.add),
    "Sub": binary("sub", np.subtract),
    "Mul": binary("mul", np.multiply),
    "Div": binary("div", divided),
    "Mod": Operator(modulo, NUMBER, refuses=_refuses_modulo),
    "Pow": Operator(raise_to, FLOAT | frozenset({"int32", "int64"}), refuses=_refuses_power),
    "Max": variadic("max", np.maximum, NUMBER),
    "Min": variadic("min", np.minimum, NUMBER),
    "Sum": variadic("add", np.add, FLOAT),
    "Mean": Operator(mean, FLOAT),
    "Clip": Operator(clip, NUMBER),
    # choices and comparisons
    "Where": Operator(where, ANY),
    "Equal": compare(np.equal, ANY),
    "Greater": compare(np.greater, NUMBER),
    "GreaterOrEqual": compare(np.greater_equal, NUMBER),
    "Less": compare(np.less, NUMBER),
    "LessOrEqual": compare(np.less_equal, NUMBER),
    "IsNaN": Operator(is_nan, FLOAT),
    "IsInf": Operator(is_inf, FLOAT),
    # logic and bits
    "And": compare(np.logical_and, BOOL),
    "Or": compare(np.logical_or, BOOL),
    "Xor": compare(np.logical_xor, BOOL),
    "Not": Operator(bitwise_not, BOOL),
    "BitwiseAnd": compare(np.bitwise_and, INTEGER),
    "BitwiseOr": compare(np.bitwise_or, INTEGER),
    "BitwiseXor": compare(np.bitwise_xor, INTEGER),
    "BitwiseNot": Operator(bitwise_not, INTEGER),
    "BitShift": Operator(bit_shift, UNSIGNED),
    # compositions
    "Celu": _activation(_celu),
    "Elu": _activation(_elu),
    "HardSigmoid": _activation(_hard_sigmoid),
    "HardSwish": _activation(_hard_swish),
    "LeakyRelu": _activation(_leaky_relu),
    "Mish": _activation(_mish),
    "PRelu": Operator(_prelu, FLOAT),
    "Selu": _activation(_selu),
    "Softsign": _activation(_softsign),
    "ThresholdedRelu": _activation(_thresholded_relu),
}
