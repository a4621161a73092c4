"""Calls of the operators of `shoal.compute.exact.operators.elementwise` and ``casts``."""

from __future__ import annotations

import numpy as np

from exact_programs.program import Call
from exact_programs.source import Source, code_of
from shoal.compute.exact.operators.node import ANY, NUMBER


def unary(source: Source) -> Call:
    """Functions of any value, of every dtype that is claimed."""
    return Call((source.array(source.shape(), source.dtype()),))


def moderate(source: Source) -> Call:
    """Functions that overflow, or are out of range, where the values are large."""
    return Call((source.floats(source.shape(), high=1),))


def positive(source: Source) -> Call:
    """Functions of positive numbers."""
    return Call((source.floats(source.shape(), positive=True),))


def gelu(source: Source) -> Call:
    kind = source.pick({}, {"approximate": "none"}, {"approximate": "tanh"})
    return Call((source.floats(source.shape()),), kind)


def activation(**parameters: tuple[float, ...]):
    """An activation with float attributes, each left out or one of these."""

    def call(source: Source) -> Call:
        drawn = {name: source.pick(None, *values) for name, values in parameters.items()}
        return Call(
            (source.floats(source.shape(), high=1),),
            {name: value for name, value in drawn.items() if value is not None},
        )

    return call


def is_inf(source: Source) -> Call:
    attributes = source.pick({}, {"detect_negative": 0}, {"detect_positive": 0})
    return Call((source.floats(source.shape(), masks=True),), attributes)


def binary(source: Source) -> Call:
    """Two tensors that broadcast."""
    dtype = source.dtype()
    masks = source.operator in {"Add", "Equal", "Greater", "GreaterOrEqual", "Less"}
    left, right = source.shapes(2)
    return Call(
        (source.array(left, dtype, masks=masks), source.array(right, dtype, masks=masks))
    )


def division(source: Source) -> Call:
    """Div and Mod, mostly by something."""
    dtype = source.dtype()
    left, right = source.shapes(2)
    x, y = source.array(left, dtype), source.array(right, dtype)
    if not source.rarely():
        y = np.where(y == 0, np.ones((), y.dtype), y)
    if source.operator == "Div":
        return Call((x, y))
    return Call((x, y), {"fmod": 1 if dtype == "float32" else source.flag()})


def power(source: Source) -> Call:
    """Floats to powers of any dtype; integers to powers of any integer dtype."""
    dtype = source.dtype()
    exponents = NUMBER if dtype == "float32" else NUMBER - {"float32"}
    exponent = source.pick(*sorted(exponents))
    left, right = source.shapes(2)
    if exponent == "float32":
        y = source.floats(right, high=1)
        if source.flag():
            y = np.full(right, source.pick(0.5, 2, 0, -1, 3, -0.0, 0.25), np.float32)
    else:
        y = source.integers(right, exponent)
        y = y if source.rarely() else (y % np.array(6, y.dtype)).astype(y.dtype)
    x = source.array(left, dtype, positive=exponent == "float32" or bool(source.flag()))
    return Call((x, y))


def bit_shift(source: Source) -> Call:
    dtype = source.dtype()
    left, right = source.shapes(2)
    return Call(
        (source.integers(left, dtype), source.integers(right, dtype)),
        {"direction": source.pick("LEFT", "RIGHT")},
    )


def variadic(source: Source) -> Call:
    dtype = source.dtype()
    masks = source.operator in {"Max", "Sum"}
    shapes = source.shapes(source.integer(1, 4))
    return Call(tuple(source.array(shape, dtype, masks=masks) for shape in shapes))


def prelu(source: Source) -> Call:
    shape = source.shape()
    return Call((source.floats(shape), source.floats(source.part_of(shape))))


def clip(source: Source) -> Call:
    dtype = source.dtype()
    bounds = [
        source.array((2,) if source.rarely() else (), dtype) if given else None
        for given in source.pick((True, True), (True, False), (False, True), (False, False))
    ]
    return Call((source.array(source.shape(), dtype), *bounds))


def where(source: Source) -> Call:
    # The schema's first input is the condition; the choice takes every dtype.
    dtype = source.pick("float32", *sorted(ANY))
    chosen, *others = source.shapes(3)
    return Call(
        (
            source.array(chosen, "bool"),
            *(source.array(shape, dtype, masks=True) for shape in others),
        )
    )


def cast(source: Source) -> Call:
    to = source.pick(*sorted(ANY), *sorted(ANY), "float16")
    return Call((_castable(source, to),), {"to": code_of(to)})


def cast_like(source: Source) -> Call:
    to = source.pick(*sorted(ANY))
    return Call((_castable(source, to), source.array(source.shape(), to)))


def _castable(source: Source, to: str) -> np.ndarray:
    dtype = source.pick("float32", *sorted(ANY))
    x = source.array(source.shape(), dtype, masks=to in {"float32", "bool"})
    whole = np.dtype(to).kind in "iu"
    if dtype == "float32" and whole and not source.rarely():
        bounds = np.iinfo(to)  # the upper one may not fit once it is a float32
        x = np.clip(x, bounds.min, np.nextafter(np.float32(bounds.max), np.float32(0)))
    return x


_BINARY = (
    "Add", "Sub", "Mul", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
    "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor",
)  # fmt: skip
_UNARY = (
    "Abs", "Ceil", "Floor", "Neg", "Relu", "Round", "Sign", "Erf", "Sigmoid", "Tanh",
    "Softplus", "IsNaN", "Not", "BitwiseNot", "HardSwish", "Softsign",
)  # fmt: skip

CALLS = {
    **dict.fromkeys(_UNARY, unary),
    **dict.fromkeys(("Cos", "Sin", "Exp", "Mish"), moderate),
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal"), positive),
    **dict.fromkeys(_BINARY, binary),
    **dict.fromkeys(("Div", "Mod"), division),
    **dict.fromkeys(("Max", "Min", "Sum", "Mean"), variadic),
    "BitShift": bit_shift,
    "Cast": cast,
    "CastLike": cast_like,
    "Celu": activation(alpha=(0.5, -2.0, 1.0)),
    "Clip": clip,
    "Elu": activation(alpha=(0.7, 0.0, -1.5)),
    "Gelu": gelu,
    "HardSigmoid": activation(alpha=(0.3, -1.0), beta=(0.1, 1e30)),
    "IsInf": is_inf,
    "LeakyRelu": activation(alpha=(0.1, 0.0, -3.0)),
    "Pow": power,
    "PRelu": prelu,
    "Selu": activation(alpha=(1.5, 0.0), gamma=(2.0, -0.5)),
    "ThresholdedRelu": activation(alpha=(0.5, 0.0, -1.0)),
    "Where": where,
}
