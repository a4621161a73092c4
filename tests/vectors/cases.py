"""One small model for each operator and way to use it: what `operators.json` has ids for.

A case is a graph in ONNX's text form with its inputs, drawn under the name
``case/input`` (`draw`). Products come once per precision.
"""

from dataclasses import dataclass, field

import draw
import numpy as np
from onnx import helper, parser

PRECISIONS = ("x20", "x16", "x8")
_TYPES = {"float32": "float", "int64": "int64", "int32": "int32", "bool": "bool"}
_TYPES |= {"int8": "int8", "uint8": "uint8"}


@dataclass(frozen=True)
class Drawn:
    """An input to be drawn: how, and of which shape."""

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """One graph and what goes in."""

    name: str
    body: str
    given: dict[str, object]
    outputs: str = "y"
    opset: int = 18
    precisions: tuple[str, ...] = field(default=("x20",))

    def inputs(self):
        """The input arrays by name."""
        return {name: self._array(name, value) for name, value in self.given.items()}

    def model(self):
        """The case as an ONNX model."""
        ports = ", ".join(
            f"{_TYPES[array.dtype.name]}[{', '.join(map(str, array.shape))}] {name}"
            for name, array in self.inputs().items()
        )
        graph = parser.parse_graph(f"g ({ports}) => (float y) {{ {self.body} }}")
        del graph.output[:]
        for output in self.outputs.split():
            name, _, dtype = output.partition(":")
            code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or "float32"))
            graph.output.append(helper.make_tensor_value_info(name, code, None))
        return helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8
        )

    def _array(self, name, value):
        if not isinstance(value, Drawn):
            return np.asarray(value)
        seed = f"{self.name}/{name}"
        if value.kind.startswith("below"):
            _, limit, dtype = value.kind.split(":")
            return draw.below(seed, int(limit), *value.shape, dtype=dtype)
        if value.kind == "positive":
            return np.abs(draw.unit(seed, *value.shape)) + np.float32(2**-10)
        if value.kind == "masked":  # an eighth of it is -inf, never a whole row
            drawn = draw.unit(seed, *value.shape) * np.float32(8)
            hidden = draw.words(seed, drawn.size).reshape(value.shape) % 8 == 0
            hidden[..., 0] = False
            return np.where(hidden, np.float32(-np.inf), drawn)
        return getattr(draw, value.kind)(seed, *value.shape)


def unit(*shape):
    return Drawn("unit", shape)


def wide(*shape):
    return Drawn("wide", shape)


def awkward(*shape):
    return Drawn("awkward", shape)


def positive(*shape):
    return Drawn("positive", shape)


def masked(*shape):
    return Drawn("masked", shape)


def below(limit, *shape, dtype="int64"):
    return Drawn(f"below:{limit}:{dtype}", shape)


def integers(*values, dtype="int64"):
    return np.array(values, dtype)


def floats(*values):
    return np.array(values, np.float32)


def _case(name, body, outputs="y", opset=18, **given):
    return Case(name, body, given, outputs, opset)


def _product(name, body, outputs="y", **given):
    return Case(name, body, given, outputs, precisions=PRECISIONS)


_SHAPE = (3, 5, 7)

PRODUCTS = (
    _product("MatMul/matrices", "y = MatMul(a, b)", a=awkward(5, 33), b=awkward(33, 4)),
    _product("MatMul/rows far apart", "y = MatMul(a, b)", a=wide(6, 40), b=wide(40, 3)),
    _product("MatMul/batches", "y = MatMul(a, b)", a=unit(2, 1, 3, 9), b=unit(4, 9, 5)),
    _product("MatMul/vectors", "y = MatMul(a, b)", a=unit(21), b=unit(21)),
    _product("MatMul/a long sum", "y = MatMul(a, b)", a=unit(2, 20_000), b=unit(20_000, 2)),
    _product("MatMul/nothing to sum", "y = MatMul(a, b)", a=unit(2, 0), b=unit(0, 3)),
    _product(
        "MatMul/after a softmax, with a mask",
        "p = Softmax<axis=-1>(scores) y = MatMul(p, v)",
        scores=masked(2, 4, 6),
        v=awkward(2, 6, 5),
    ),
    _product(
        "Gemm/all attributes",
        "y = Gemm<alpha=0.3, beta=0.7, transA=1, transB=1>(a, b, c)",
        a=unit(11, 3),
        b=unit(4, 11),
        c=unit(4),
    ),
    _product("Gemm/plain", "y = Gemm(a, b)", a=unit(3, 11), b=unit(11, 4)),
    _product(
        "Conv/two dimensions",
        "y = Conv<pads=[1,1,1,1], strides=[2,1], dilations=[1,2]>(x, w, b)",
        x=awkward(2, 3, 7, 8),
        w=unit(4, 3, 3, 3),
        b=unit(4),
    ),
    _product(
        "Conv/groups",
        "y = Conv<group=2>(x, w)",
        x=unit(1, 4, 5, 5),
        w=unit(6, 2, 3, 3),
    ),
    _product(
        "Conv/one dimension, same",
        'y = Conv<auto_pad="SAME_UPPER">(x, w)',
        x=unit(2, 3, 10),
        w=unit(2, 3, 4),
    ),
)

ELEMENTWISE = (
    *(
        _case(f"{operator}/awkward", f"y = {operator}(x)", x=awkward(*_SHAPE))
        for operator in ("Abs", "Neg", "Relu", "Floor", "Ceil", "Round", "Sign", "Identity")
    ),
    *(
        _case(f"{operator}/moderate", f"y = {operator}(x)", x=unit(*_SHAPE))
        for operator in ("Exp", "Sin", "Cos", "Tanh", "Sigmoid", "Erf", "Softplus")
    ),
    *(
        _case(f"{operator}/wide", f"y = {operator}(x)", x=wide(4, 30))
        for operator in ("Tanh", "Sigmoid", "Erf")
    ),
    *(
        _case(f"{operator}/positive", f"y = {operator}(x)", x=positive(*_SHAPE))
        for operator in ("Log", "Sqrt", "Reciprocal")
    ),
    _case("Exp/far below zero", "y = Exp(x)", x=floats(-1, -80, -87.5, -104, 0, 88)),
    _case("Gelu/none", "y = Gelu(x)", opset=20, x=awkward(6, 20)),
    _case("Gelu/tanh", 'y = Gelu<approximate="tanh">(x)', opset=20, x=awkward(6, 20)),
    _case("LeakyRelu/slope", "y = LeakyRelu<alpha=0.1>(x)", x=awkward(6, 20)),
    _case("Celu/default", "y = Celu(x)", x=unit(4, 6)),
    _case("Selu/default", "y = Selu(x)", x=unit(4, 6)),
    _case("Mish/default", "y = Mish(x)", x=unit(4, 6)),
    _case("Softsign/default", "y = Softsign(x)", x=wide(4, 6)),
    _case("ThresholdedRelu/default", "y = ThresholdedRelu<alpha=0.5>(x)", x=wide(4, 6)),
    _case("IsNaN/never", "y = IsNaN(x)", "y:bool", x=awkward(20)),
    _case("IsInf/a mask", "y = IsInf(x)", "y:bool", x=masked(4, 5)),
    _case("PRelu/slopes", "y = PRelu(x, s)", x=awkward(4, 6), s=unit(6)),
    _case("Elu/default", "y = Elu<alpha=0.7>(x)", x=unit(4, 6)),
    _case("HardSwish/default", "y = HardSwish(x)", x=wide(4, 6)),
    _case("HardSigmoid/default", "y = HardSigmoid(x)", x=wide(6, 20)),
    *(
        _case(
            f"{operator}/broadcast",
            f"y = {operator}(a, b)",
            a=awkward(3, 1, 5),
            b=awkward(4, 5),
        )
        for operator in ("Add", "Sub", "Mul")
    ),
    _case("Add/mask", "y = Add(a, b)", a=unit(2, 4, 6), b=masked(4, 6)),
    _case("Div/by what is not zero", "y = Div(a, b)", a=awkward(3, 1, 5), b=positive(4, 5)),
    _case("Sum/three", "y = Sum(a, b, c)", a=wide(6), b=wide(2, 6), c=wide(2, 1)),
    _case("Mean/three", "y = Mean(a, b, c)", a=wide(6), b=wide(2, 6), c=wide(2, 1)),
    _case("Min/three", "y = Min(a, b, c)", a=awkward(6), b=awkward(2, 6), c=awkward(2, 1)),
    _case("Max/three", "y = Max(a, b, c)", a=awkward(6), b=awkward(2, 6), c=awkward(2, 1)),
    _case("Mod/fmod", "y = Mod<fmod=1>(a, b)", a=wide(40), b=positive(40)),
    _case("Mod/integers", "y = Mod(a, b)", "y:int64", a=below(99, 30), b=integers(7)),
    _case("Pow/square", "two = Constant<value_float=2.0>() y = Pow(x, two)", x=awkward(30)),
    _case("Pow/root", "half = Constant<value_float=0.5>() y = Pow(x, half)", x=positive(30)),
    _case("Pow/elements", "y = Pow(a, b)", a=positive(5, 6), b=unit(5, 6)),
    _case("Pow/odd powers of negatives", "y = Pow(a, b)", a=unit(12), b=floats(3)),
    _case(
        "Clip/both",
        "y = Clip(x, low, high)",
        x=awkward(30),
        low=floats(-0.5).reshape(()),
        high=floats(2).reshape(()),
    ),
    _case(
        "Where/select",
        "y = Where(c, a, b)",
        c=below(2, 4, 5, dtype="bool"),
        a=awkward(4, 5),
        b=awkward(5),
    ),
    *(
        _case(
            f"{operator}/floats",
            f"y = {operator}(a, b)",
            "y:bool",
            a=awkward(40),
            b=awkward(40),
        )
        for operator in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    *(
        _case(
            f"{operator}/booleans",
            f"y = {operator}(a, b)",
            "y:bool",
            a=below(2, 20, dtype="bool"),
            b=below(2, 20, dtype="bool"),
        )
        for operator in ("And", "Or", "Xor")
    ),
    _case("Not/booleans", "y = Not(a)", "y:bool", a=below(2, 20, dtype="bool")),
    _case(
        "Add/integers wrap",
        "y = Add(a, b)",
        "y:int32",
        a=integers(2**31 - 1, 5, dtype="int32"),
        b=integers(1, 2, dtype="int32"),
    ),
    _case(
        "Div/integers truncate",
        "y = Div(a, b)",
        "y:int64",
        a=integers(-7, 7, -6),
        b=integers(2, -2, 3),
    ),
    *(
        _case(
            f"{operator}/integers",
            f"y = {operator}(a, b)",
            "y:int32",
            a=below(2**31, 20, dtype="int32"),
            b=below(2**31, 20, dtype="int32"),
        )
        for operator in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    ),
    _case("BitwiseNot/integers", "y = BitwiseNot(a)", "y:int32", a=below(99, 9, dtype="int32")),
    _case(
        "BitShift/left",
        'y = BitShift<direction="LEFT">(a, b)',
        "y:uint8",
        a=below(256, 9, dtype="uint8"),
        b=below(8, 9, dtype="uint8"),
    ),
    _case("CastLike/integers", "y = CastLike(x, z)", "y:int64", x=wide(30), z=integers(0)),
    _case("Cast/to integers", "y = Cast<to=7>(x)", "y:int64", x=wide(30)),
    _case("Cast/to floats", "y = Cast<to=1>(x)", x=integers(0, -3, 2**24 + 1, 2**53 + 1)),
    _case("Cast/to bool", "y = Cast<to=9>(x)", "y:bool", x=awkward(64)),
)

SUMS = (
    *(
        _case(
            f"{operator}/inner axis",
            f"axes = Constant<value_ints=[1]>() y = {operator}(x, axes)",
            x=awkward(*_SHAPE),
        )
        for operator in (
            "ReduceSum",
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
        )
    ),
    *(
        _case(f"{operator}/all, dropped", f"y = {operator}<keepdims=0>(x)", x=unit(*_SHAPE))
        for operator in (
            "ReduceSum",
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceSumSquare",
            "ReduceLogSumExp",
        )
    ),
    _case("ReduceLogSum/positive", "y = ReduceLogSum<keepdims=0>(x)", x=positive(*_SHAPE)),
    _case(
        "ArgMax/first of equals",
        "y = ArgMax<axis=1, keepdims=0>(x)",
        "y:int64",
        x=floats(1, 3, 3, -2, -2, -5).reshape(2, 3),
    ),
    _case("ArgMin/axis", "y = ArgMin<axis=0>(x)", "y:int64", x=awkward(5, 6)),
    _case(
        "TopK/ties", "v, i = TopK<axis=-1>(x, k)", "v i:int64", x=awkward(4, 12), k=integers(5)
    ),
    _case("CumSum/plain", "y = CumSum(x, axis)", x=wide(4, 9), axis=integers(1).reshape(())),
    _case(
        "CumSum/reverse, exclusive",
        "y = CumSum<reverse=1, exclusive=1>(x, axis)",
        x=unit(4, 9),
        axis=integers(0).reshape(()),
    ),
    _case("Softmax/mask", "y = Softmax<axis=-1>(x)", x=masked(3, 4, 9)),
    _case("Softmax/middle axis", "y = Softmax<axis=1>(x)", x=wide(2, 6, 3)),
    _case("LogSoftmax/last axis", "y = LogSoftmax<axis=-1>(x)", x=unit(3, 9)),
    _case(
        "LayerNormalization/all",
        "y = LayerNormalization<axis=-1, epsilon=1e-5>(x, w, b)",
        x=wide(2, 3, 8),
        w=unit(8),
        b=unit(8),
    ),
    _case(
        "LayerNormalization/two axes",
        "y = LayerNormalization<axis=1>(x, w)",
        x=unit(2, 3, 8),
        w=unit(3, 8),
    ),
    _case(
        "RMSNormalization/last axis",
        "y = RMSNormalization<axis=-1>(x, w)",
        opset=23,
        x=unit(2, 3, 8),
        w=unit(8),
    ),
    _case(
        "BatchNormalization/inference",
        "y = BatchNormalization(x, s, b, m, v)",
        x=unit(2, 3, 4, 4),
        s=unit(3),
        b=unit(3),
        m=unit(3),
        v=positive(3),
    ),
    _case(
        "InstanceNormalization/plain",
        "y = InstanceNormalization(x, s, b)",
        x=unit(2, 3, 4, 4),
        s=unit(3),
        b=unit(3),
    ),
    _case(
        "GroupNormalization/two groups",
        "y = GroupNormalization<num_groups=2>(x, s, b)",
        opset=21,
        x=unit(2, 4, 3, 3),
        s=unit(4),
        b=unit(4),
    ),
    _case(
        "AveragePool/padding",
        "y = AveragePool<kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]>(x)",
        x=unit(2, 3, 7, 6),
    ),
    _case(
        "AveragePool/padding counted",
        "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)",
        x=unit(1, 2, 5, 5),
    ),
    _case(
        "MaxPool/padding",
        "y = MaxPool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,1]>(x)",
        x=awkward(2, 3, 7, 6),
    ),
    _case("GlobalAveragePool/plain", "y = GlobalAveragePool(x)", x=unit(2, 3, 5, 4)),
    _case("GlobalMaxPool/plain", "y = GlobalMaxPool(x)", x=awkward(2, 3, 5, 4)),
    _case(
        "ScatterElements/add",
        'y = ScatterElements<axis=0, reduction="add">(x, i, u)',
        x=unit(5, 4),
        i=below(5, 7, 4),
        u=wide(7, 4),
    ),
    _case(
        "ScatterND/add",
        'y = ScatterND<reduction="add">(x, i, u)',
        x=unit(5, 4),
        i=below(5, 6, 1),
        u=unit(6, 4),
    ),
)

MOVES = (
    _case(
        "Gather/negative index",
        "y = Gather<axis=1>(x, i)",
        x=awkward(3, 5, 2),
        i=integers(0, -1, 3),
    ),
    _case(
        "GatherElements/axis",
        "y = GatherElements<axis=1>(x, i)",
        x=awkward(3, 5),
        i=below(5, 3, 4),
    ),
    _case(
        "GatherND/batch",
        "y = GatherND<batch_dims=1>(x, i)",
        x=awkward(3, 5, 2),
        i=below(5, 3, 4, 1),
    ),
    _case(
        "ScatterElements/set",
        "y = ScatterElements<axis=1>(x, i, u)",
        x=awkward(2, 5),
        i=integers(1, 3, 0, 2).reshape(2, 2),
        u=unit(2, 2),
    ),
    _case(
        "ScatterND/set",
        "y = ScatterND(x, i, u)",
        x=awkward(4, 3),
        i=integers(2, 0).reshape(2, 1),
        u=unit(2, 3),
    ),
    _case(
        "Slice/backwards",
        "y = Slice(x, starts, ends, axes, steps)",
        x=awkward(4, 9),
        starts=integers(8, 0),
        ends=integers(-100, 3),
        axes=integers(1, 0),
        steps=integers(-2, 1),
    ),
    _case("Concat/axis", "y = Concat<axis=1>(a, b)", a=awkward(2, 3), b=masked(2, 4)),
    _case(
        "Split/uneven", "a, b = Split<axis=1>(x, s)", "a b", x=awkward(2, 7), s=integers(3, 4)
    ),
    _case(
        "Pad/constant",
        "y = Pad(x, p, v)",
        x=awkward(2, 3),
        p=integers(1, 0, 2, 1),
        v=floats(0.25).reshape(()),
    ),
    _case(
        "Pad/reflect", 'y = Pad<mode="reflect">(x, p)', x=awkward(4, 5), p=integers(1, 2, 2, 0)
    ),
    _case("Reshape/inferred", "y = Reshape(x, s)", x=awkward(2, 3, 4), s=integers(0, -1)),
    _case("Transpose/permuted", "y = Transpose<perm=[2,0,1]>(x)", x=masked(2, 3, 4)),
    _case("Expand/broadcast", "y = Expand(x, s)", x=awkward(3, 1), s=integers(2, 1, 4)),
    _case("Tile/twice", "y = Tile(x, r)", x=awkward(2, 3), r=integers(2, 2)),
    _case("Squeeze/axes", "y = Squeeze(x, a)", x=awkward(1, 3, 1), a=integers(0)),
    _case("Unsqueeze/axes", "y = Unsqueeze(x, a)", x=awkward(3), a=integers(0, 2)),
    _case("Flatten/axis", "y = Flatten<axis=2>(x)", x=awkward(2, 3, 4)),
    _case("Shape/part", "y = Shape<start=1>(x)", "y:int64", x=awkward(2, 3, 4)),
    _case("Size/plain", "y = Size(x)", "y:int64", x=awkward(2, 3, 4)),
    _case(
        "Range/integers",
        "y = Range(a, b, c)",
        "y:int64",
        a=integers(2).reshape(()),
        b=integers(11).reshape(()),
        c=integers(3).reshape(()),
    ),
    _case(
        "ConstantOfShape/floats",
        "y = ConstantOfShape<value = float[1] {0.5}>(s)",
        s=integers(2, 3),
    ),
    _case(
        "Trilu/lower",
        "k = Constant<value_int=-1>() y = Trilu<upper=0>(x, k)",
        x=masked(2, 4, 5),
    ),
    _case("DepthToSpace/plain", "y = DepthToSpace<blocksize=2>(x)", x=awkward(1, 8, 2, 3)),
    _case("SpaceToDepth/plain", "y = SpaceToDepth<blocksize=2>(x)", x=awkward(1, 2, 4, 6)),
    _case("EyeLike/above", "y = EyeLike<k=1>(x)", x=unit(3, 4)),
    _case(
        "OneHot/last axis",
        "y = OneHot(i, depth, values)",
        i=integers(0, 2, -1),
        depth=integers(4),
        values=floats(-0.5, 3),
    ),
    _case("Dropout/inference", "y = Dropout(x)", x=awkward(2, 3)),
)

INTEGERS = (
    _case(
        "MatMulInteger/zero points",
        "y = MatMulInteger(a, b, p, q)",
        "y:int32",
        a=below(256, 3, 50, dtype="uint8"),
        b=below(256, 50, 4, dtype="int8"),
        p=integers(7, dtype="uint8").reshape(()),
        q=integers(-3, dtype="int8").reshape(()),
    ),
    _case(
        "ConvInteger/zero point",
        "y = ConvInteger<pads=[1,1,1,1]>(x, w, p)",
        "y:int32",
        x=below(256, 1, 3, 5, 5, dtype="uint8"),
        w=below(256, 2, 3, 3, 3, dtype="uint8"),
        p=integers(9, dtype="uint8").reshape(()),
    ),
    _case(
        "DynamicQuantizeLinear/plain",
        "y, s, z = DynamicQuantizeLinear(x)",
        "y:uint8 s z:uint8",
        x=unit(4, 9),
    ),
    _case("ReduceProd/integers", "y = ReduceProd(x)", "y:int64", x=integers(3, -5, 2**40)),
    _case(
        "QuantizeLinear/saturates",
        "y = QuantizeLinear(x, s, z)",
        "y:uint8",
        x=wide(4, 9),
        s=floats(0.05).reshape(()),
        z=integers(128, dtype="uint8").reshape(()),
    ),
    _case(
        "DequantizeLinear/axis",
        "y = DequantizeLinear<axis=0>(x, s, z)",
        x=below(256, 3, 8, dtype="int8"),
        s=floats(0.5, 0.01, 3),
        z=integers(0, 1, -2, dtype="int8"),
    ),
)

ERRORS = (
    _case("Log/of a negative number", "y = Log(x)", x=floats(1, -1)),
    _case("Exp/overflow", "y = Exp(x)", x=floats(1, 89)),
    _case("Div/by zero", "y = Div(a, b)", a=floats(1), b=floats(0)),
    _case("Div/integers by zero", "y = Div(a, b)", "y:int64", a=integers(1), b=integers(0)),
    _case("Mul/a mask", "y = Mul(a, b)", a=floats(1), b=floats(-np.inf)),
    _case("Softmax/nothing but a mask", "y = Softmax(x)", x=floats(-np.inf, -np.inf)),
    _case("Add/nan", "y = Add(a, a)", a=floats(np.nan)),
    _case("Gather/out of range", "y = Gather(x, i)", x=unit(3), i=integers(3)),
    _case("Add/shapes", "y = Add(a, b)", a=unit(3), b=unit(4)),
    _case("ConstantOfShape/10^12 elements", "y = ConstantOfShape(s)", s=integers(10**6, 10**6)),
)

CASES = (*PRODUCTS, *ELEMENTWISE, *SUMS, *MOVES, *INTEGERS, *ERRORS)
