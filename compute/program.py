"""Which ONNX models are programs: the validity rules, as a table.

A program is data, never code: standard operators from a list, no files, nothing
random, every size bounded. `check` walks a model and holds each part against the
rules of its kind, in order; the first one broken names the node and the operator.
A client checks before it takes the program id, and a worker again before it loads
what came from a peer. What only the graph as a whole can show (an input that no
node gives, a wrong attribute) is left to onnx's checker, which runs after these.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Final

from onnx import GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto

from shoal.compute.errors import ProgramError
from shoal.compute.graph import (
    STANDARD_DOMAINS,
    Site,
    fed_inputs,
    onnx_dtype_name,
    port_of,
    printable,
    walk,
)
from shoal.compute.manifest import NAME_LIMIT_BYTES, PORT_COUNT_LIMIT, TENSOR_COUNT_LIMIT
from shoal.compute.tensor import DTYPE_OF_ONNX_CODE, RANK_LIMIT, TENSOR_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

OPSETS: Final = range(13, 24)
"""Versions of the standard operators that are accepted: 13 to 23."""

NODE_COUNT_LIMIT: Final = 50_000
"""Nodes, those of subgraphs included; a transformer's training step has 800 per few layers."""

SUBGRAPH_DEPTH_LIMIT: Final = 4
"""How deep If, Loop and Scan may nest; a decoding loop uses two levels."""

ML_DOMAIN: Final = "ai.onnx.ml"

_STANDARD_OPERATORS: Final = """
Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh Attention
AveragePool BatchNormalization BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress Concat
Constant ConstantOfShape Conv ConvInteger ConvTranspose Cos Cosh CumSum DFT
DeformConv DepthToSpace DequantizeLinear Det Div Dropout DynamicQuantizeLinear
Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements
GatherND Gelu Gemm GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid
HardSwish Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM
LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax Loop LpNormalization
LpPool MatMul MatMulInteger Max MaxPool MaxRoiPool MaxUnpool Mean
MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul Neg
NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow
QLinearConv QLinearMatMul QuantizeLinear RMSNormalization RNN Range Reciprocal
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin
ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize ReverseSequence RoiAlign
RotaryEmbedding Round STFT Scan ScatterElements ScatterND Selu Shape Shrink Sigmoid
Sign Sin Sinh Size Slice Softmax SoftmaxCrossEntropyLoss Softplus Softsign
SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
Transpose Trilu Unique Unsqueeze Where Xor
"""

_ML_OPERATORS: Final = "ArrayFeatureExtractor Binarizer LinearRegressor Normalizer Scaler"

_RANDOM_OPERATORS: Final = (
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike"
)

OPERATORS: Final[Mapping[str, frozenset[str]]] = {
    "": frozenset(_STANDARD_OPERATORS.split()),
    ML_DOMAIN: frozenset(_ML_OPERATORS.split()),
}
"""Accepted operators by domain: arithmetic on tensors, and control flow.

Not here: strings, sequences and optionals (not tensors), ImageDecoder (a parser of
files), and whatever draws random numbers of the library's own making. For people,
``docs/PROGRAMS.md`` says the same, and a test compares.
"""


@dataclass(frozen=True, slots=True)
class Rule:
    """One thing that every part of some kind must keep to.

    Attributes:
        code: The error's stable code.
        breach: Gives None where the rule is kept, and otherwise what breaks it.
        sentence: The error, with ``{site}`` and ``{breach}`` to be filled in.
        hint: The next thing to do; filled in likewise.
    """

    code: str
    breach: Callable[[Any], object]
    sentence: str
    hint: str = ""


def _unfit_opset(model: ModelProto) -> object:
    versions = [o.version for o in model.opset_import if o.domain in STANDARD_DOMAINS]
    if len(versions) == 1 and versions[0] in OPSETS:
        return None
    return ", ".join(map(str, versions[:8])) or "none"


MODEL_RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "empty_model",
        lambda model: None if model.graph.output else "output",
        "the model has no {breach}, so there is nothing to compute",
        "was it exported whole?",
    ),
    Rule(
        "unsupported_opset",
        _unfit_opset,
        f"the model declares opset {{breach}}, and {OPSETS[0]} to {OPSETS[-1]} are accepted",
        f"export it with opset 18 to {OPSETS[-1]}, e.g. "
        "opset_imports=[onnx.helper.make_opsetid('', 18)]",
    ),
    Rule(
        "local_functions",
        lambda model: printable(model.functions[0].name) if model.functions else None,
        "the model defines functions of its own, such as {breach!r}",
        "inline them: onnx.inliner.inline_local_functions(model)",
    ),
    Rule(
        "training_info",
        lambda model: len(model.training_info) or None,
        "the model carries ONNX training information ({breach} entries)",
        "export the training step as an ordinary graph",
    ),
    Rule(
        "too_many_ports",
        lambda model: _over(
            max(len(fed_inputs(model.graph)), len(model.graph.output)), PORT_COUNT_LIMIT
        ),
        f"the model has {{breach}} inputs or outputs, and {PORT_COUNT_LIMIT} is the limit",
    ),
    Rule(
        "too_many_tensors",
        lambda model: _over(len(model.graph.initializer), TENSOR_COUNT_LIMIT),
        f"the model has {{breach}} initializers, and {TENSOR_COUNT_LIMIT} is the limit",
    ),
    Rule(
        "too_many_nodes",
        lambda model: _over(_node_count(model), NODE_COUNT_LIMIT),
        f"the model has more than {NODE_COUNT_LIMIT} nodes",
    ),
)


def _repeated_name(graph: GraphProto) -> object:
    # An initializer may share a name with an input (its default), so they are apart.
    inputs = Counter(value.name for value in graph.input)
    initializers = Counter(tensor.name for tensor in graph.initializer)
    made = Counter(name for node in graph.node for name in node.output if name)
    given = Counter(inputs.keys() | initializers.keys())
    outputs = Counter(value.name for value in graph.output)
    for names in (inputs, initializers, made + given, outputs):
        for name, count in names.items():
            if count > 1:
                return printable(name)
    return None


def _overlong_name(graph: GraphProto) -> object:
    values = chain(graph.input, graph.output)
    names = chain((v.name for v in values), (tensor.name for tensor in graph.initializer))
    return next(
        (printable(name) for name in names if not 0 < len(name.encode()) <= NAME_LIMIT_BYTES),
        None,
    )


GRAPH_RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "subgraph_too_deep",
        lambda site: _over(site.depth, SUBGRAPH_DEPTH_LIMIT),
        f"{{site}} nests subgraphs {{breach}} deep, and {SUBGRAPH_DEPTH_LIMIT} is the limit",
    ),
    Rule(
        "duplicate_name",
        lambda site: _repeated_name(site.part),
        "the name {breach!r} stands for two values in one graph",
        "is the file damaged? names must be unique",
    ),
    Rule(
        "bad_name",
        lambda site: _overlong_name(site.part),
        f"the name {{breach!r}} is empty or over {NAME_LIMIT_BYTES} bytes",
    ),
)


def node_rules(operators: Mapping[str, frozenset[str]]) -> tuple[Rule, ...]:
    """The rules for nodes, where these operators, by domain, are the ones allowed."""
    return (
        Rule(
            "custom_domain",
            lambda site: _unless(_domain(site.part) in OPERATORS, printable(site.part.domain)),
            "{site} uses the operator domain {breach!r}, and only standard ONNX is accepted",
            "replace the operator by standard ones when exporting",
        ),
        Rule(
            "random_operator",
            lambda site: _unless(not _draws_random_numbers(site.part), "random"),
            "{site} draws {breach} numbers, so nobody could check its results",
            "draw them outside, and pass them in as an input",
        ),
        Rule(
            "operator_not_allowed",
            lambda site: _unlisted(site.part, operators),
            "{site} is not among the {breach.domain} operators that are accepted",
            "{breach.near}docs/PROGRAMS.md lists them, and says why others are refused",
        ),
    )


@dataclass(frozen=True, slots=True)
class _Unlisted:
    """An operator that is not accepted: its domain, and which ones were perhaps meant."""

    domain: str
    near: str


def _unlisted(node: NodeProto, operators: Mapping[str, frozenset[str]]) -> _Unlisted | None:
    domain, name = _domain(node), printable(node.op_type)
    if node.op_type in operators.get(domain, ()):
        return None
    # Read in lower case, since "RELU" for "Relu" is the likeliest slip.
    named = {listed.lower(): listed for listed in sorted(operators.get(domain, ()))}
    near = [named[match] for match in get_close_matches(name.lower(), named, cutoff=0.75)]
    return _Unlisted(domain or "standard", f"is {' or '.join(near)} meant? " if near else "")


def _domain(node: NodeProto) -> str:
    return "" if node.domain in STANDARD_DOMAINS else node.domain


def _draws_random_numbers(node: NodeProto) -> bool:
    # A third input switches Dropout into training.
    return node.op_type in _RANDOM_OPERATORS.split() or (
        node.op_type == "Dropout" and any(node.input[2:])
    )


def _data_bytes(tensor: TensorProto) -> tuple[int, int]:
    """How many bytes a tensor's dims claim, and how many its data has."""
    dtype = DTYPE_OF_ONNX_CODE[tensor.data_type]
    claimed = math.prod(tensor.dims) * dtype.size_bytes
    if tensor.HasField("raw_data"):
        return claimed, len(tensor.raw_data)
    elements = next(
        (len(getattr(tensor, field)) for field in _DATA_FIELDS if getattr(tensor, field)), 0
    )
    return claimed, elements * dtype.size_bytes


_DATA_FIELDS: Final = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")


def _wrong_size(tensor: TensorProto) -> object:
    claimed, there = _data_bytes(tensor)
    return None if claimed == there else f"claims {claimed} bytes and has {there}"


TENSOR_RULES: Final[tuple[Rule, ...]] = (
    Rule(
        "sparse_tensor",
        lambda site: _unless(not isinstance(site.part, SparseTensorProto), "sparse"),
        "{site} holds a {breach} tensor",
        "make it dense before exporting",
    ),
    Rule(
        "external_data",
        lambda site: _external_location(site.part),
        "the data of {site} lies in the file {breach!r}, and a model may not name files",
        "save the model with its data inside, or give its path to `shoal run`",
    ),
    Rule(
        "unsupported_dtype",
        lambda site: _unless(
            site.part.data_type in DTYPE_OF_ONNX_CODE, onnx_dtype_name(site.part.data_type)
        ),
        "{site} holds a tensor of dtype {breach}, which does not travel",
    ),
    Rule(
        "tensor_too_large",
        lambda site: _unless(
            len(site.part.dims) <= RANK_LIMIT
            and all(size >= 0 for size in site.part.dims)
            and math.prod(max(size, 1) for size in site.part.dims) <= TENSOR_LIMIT_BYTES // 8,
            list(site.part.dims[:RANK_LIMIT]),
        ),
        "{site} holds a tensor of shape {breach}, which is over the limits",
    ),
    Rule(
        "tensor_size_mismatch",
        lambda site: _wrong_size(site.part),
        "the tensor of {site} {breach}",
        "is the file damaged?",
    ),
)


def _external_location(tensor: TensorProto) -> object:
    if tensor.data_location != TensorProto.EXTERNAL and not tensor.external_data:
        return None
    return next((printable(e.value) for e in tensor.external_data if e.key == "location"), "?")


def check(model: ModelProto, operators: Mapping[str, frozenset[str]] = OPERATORS) -> None:
    """Check that a model is a program.

    Args:
        model: A parsed ONNX model, its data inside.
        operators: The operators allowed, by domain.

    Raises:
        ProgramError: The first rule that is broken, by code, node and operator.
    """
    rules: dict[type, tuple[Rule, ...]] = {
        GraphProto: GRAPH_RULES,
        NodeProto: node_rules(operators),
        TensorProto: TENSOR_RULES,
        SparseTensorProto: TENSOR_RULES,
    }
    _hold(MODEL_RULES, model)
    for site in walk(model.graph):
        _hold(rules[type(site.part)], site)
    for value in (*fed_inputs(model.graph), *model.graph.output):
        port_of(value)


def _hold(rules: Iterable[Rule], subject: ModelProto | Site) -> None:
    node, operator = (
        (subject.node_name, subject.operator) if isinstance(subject, Site) else ("", "")
    )
    for rule in rules:
        breach = rule.breach(subject)
        if breach is not None:
            raise ProgramError(
                rule.sentence.format(site=subject, breach=breach),
                code=rule.code,
                hint=rule.hint.format(site=subject, breach=breach),
                node=node,
                operator=operator,
            )


def _node_count(model: ModelProto) -> int:
    nodes = (site for site in walk(model.graph) if isinstance(site.part, NodeProto))
    return sum(1 for _ in islice(nodes, NODE_COUNT_LIMIT + 1))


def _over(value: int, limit: int) -> object:
    return value if value > limit else None


def _unless(kept: bool, breach: object) -> object:
    return None if kept else breach
