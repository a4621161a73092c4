"""ONNX's own node tests on the exact class: what is claimed passes, the rest is refused."""

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from fnmatch import fnmatch

import numpy as np
import onnx
import pytest
from onnx.backend.test.loader import load_model_tests

from shoal.compute.errors import ProgramError
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.operators import OPERATORS
from shoal.compute.exact.plan import make_plan
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import X20

REFUSED_CODES = {"unsupported_operator", "wrong_dtype"}
"""What making a plan may say of a program that is not claimed."""

NAN_AND_INFINITY = {
    "test_isinf*": "its input holds +inf and NaN, which end a unit where they enter",
    "test_isnan": "likewise",
    "test_reduce_log_sum_empty_set*": "the logarithm of an empty sum is -inf",
    "test_reduce_log_sum_exp_empty_set": "likewise",
    "test_reduce_max_empty_set": "the largest float of nothing is -inf",
    "test_reduce_min_empty_set": "the smallest float of nothing is +inf",
    "test_attention_*_expanded": "a softmax written as its parts meets a mask's -inf in "
    "ReduceMax, or a row is masked entirely; the operator Softmax takes the first",
}
"""Cases that are claimed and fail, with ``nan`` or ``infinity``: names, and why."""

PARTS_REFUSED = {
    "BatchNormalization": ("training_mode=1", "no training yet"),
    "BitShift": ("is int", "signed integers are shifted by opset 28 only"),
    "Dropout": ("a training_mode input", "no training yet"),
    "Mod": ("floats and fmod=0", "ONNX up to opset 27 does not define it"),
    "Pow": ("an integer base and a float exponent", "no rounding of it is defined"),
    "ReduceProd": ("is float32", "a product of floats depends on its order"),
    "ScatterElements": ("the reduction 'mul'", "a product of floats depends on its order"),
    "ScatterND": ("the reduction 'mul'", "a product of floats depends on its order"),
}
"""What of operators in the table is refused although its dtypes are known: words, and why."""

FOREIGN_DTYPE = re.compile(r" is (float64|b?float16|float8\w*|float4\w*|u?int[24]|string), ")

NOT_TESTED_BY_ONNX = {"IsInf", "IsNaN", "ReduceLogSumExp", "ReduceProd"}
"""Operators of the table that no node test has with dtypes and values of the exact class."""

OLDEST, NEWEST = 18, 23


@dataclass(frozen=True)
class Verdict:
    """What became of one test case.

    ``outcome`` is "passed", "refused", "outside" (another opset's or domain's, or not
    tensors), or "failed"; ``about`` is the operators it has, and why.
    """

    name: str
    outcome: str
    operators: tuple[str, ...]
    about: str


def cases():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


def judge(case):
    operators = tuple(sorted({node.op_type for node in case.model.graph.node}))

    def verdict(outcome, about=""):
        return Verdict(case.name, outcome, operators, about)

    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    why = _outside(model)
    if why:
        return verdict("outside", why)
    try:
        plan = make_plan(model, {}, X20, (), ReferenceKernels())
    except ExactError as error:
        refused = error.code in REFUSED_CODES and error.node and error.operator
        return verdict("refused" if refused else "failed", f"{error.code}: {error}")
    except ProgramError as error:
        return verdict("failed", f"{error.code}: {error}")
    for inputs, outputs in case.data_sets:
        names = [value.name for value in model.graph.input]
        fed = dict(zip(names, map(_array, inputs), strict=True))
        try:
            given = plan.run(fed)
        except ExactError as error:
            return verdict("failed", f"{error.code}: {error}")
        for value, wanted in zip(model.graph.output, map(_array, outputs), strict=True):
            found = given[value.name]
            if found.dtype != wanted.dtype or found.shape != wanted.shape:
                return verdict(
                    "failed",
                    f"{found.dtype}{found.shape}, not {wanted.dtype}{wanted.shape}",
                )
            try:
                np.testing.assert_allclose(found, wanted, case.rtol, case.atol)
            except AssertionError as error:
                return verdict("failed", " ".join(str(error).split())[:200])
    return verdict("passed")


def _array(value):
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def _outside(model):
    """Why a model means nothing to programs of opset 18 to 23; brings it to one of these.

    A case declares the opset that its operator is from, which may be older or newer.
    An older operator that 18 still has is the same there; of newer ones those are
    run that 23 has under the same name, since mostly they only take more dtypes.
    """
    for opset in model.opset_import:
        if opset.domain in {"", "ai.onnx"}:
            declared, opset.version = opset.version, min(max(opset.version, OLDEST), NEWEST)
            break
    else:
        return "another domain"
    for value in (*model.graph.input, *model.graph.output):
        if not value.type.HasField("tensor_type"):
            return "not tensors"
    for node in model.graph.node:
        try:
            then = onnx.defs.get_schema(node.op_type, declared, node.domain)
            now = onnx.defs.get_schema(node.op_type, opset.version, node.domain)
        except onnx.defs.SchemaError:
            return f"{node.op_type} is not of opset {OLDEST} to {NEWEST}"
        if then.since_version < now.since_version or now.deprecated:
            return f"{node.op_type} changed since opset {declared}"
        if any(a.name not in now.attributes for a in node.attribute):
            return f"an attribute of {node.op_type} is newer than opset {NEWEST}"
    return ""


@pytest.fixture(scope="module")
def verdicts():
    return [judge(case) for case in cases()]


def test_every_node_test_that_is_claimed_passes_save_for_nan_and_infinity(verdicts, capsys):
    counts = Counter(verdict.outcome for verdict in verdicts)
    with capsys.disabled():
        print(f"\n{len(verdicts)} node tests of ONNX on the exact class: {dict(counts)}")
    failed = [verdict for verdict in verdicts if verdict.outcome == "failed"]
    unexpected = [
        verdict
        for verdict in failed
        if not any(fnmatch(verdict.name, pattern) for pattern in NAN_AND_INFINITY)
        or not verdict.about.startswith(("nan: ", "infinity: "))
    ]
    assert not unexpected
    for pattern in NAN_AND_INFINITY:
        assert any(fnmatch(verdict.name, pattern) for verdict in failed), pattern


def test_what_is_refused_is_an_operator_a_dtype_or_a_listed_part(verdicts):
    refused = [verdict for verdict in verdicts if verdict.outcome == "refused"]
    assert not [verdict for verdict in refused if not is_listed(verdict)]


def is_listed(verdict):
    if not OPERATORS.keys() >= set(verdict.operators) or FOREIGN_DTYPE.search(verdict.about):
        return True
    words, _ = PARTS_REFUSED.get(verdict.operators[0], ("?", ""))
    return len(verdict.operators) == 1 and words in verdict.about


def test_every_operator_of_the_table_is_in_a_node_test_that_passes_where_onnx_has_one(verdicts):
    passed = {op for v in verdicts if v.outcome == "passed" for op in v.operators}
    assert OPERATORS.keys() - passed == NOT_TESTED_BY_ONNX
