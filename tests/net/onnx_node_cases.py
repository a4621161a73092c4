"""ONNX's own node tests, run by the exact executor: what passes, what is refused.

``python tests/net/onnx_node_cases.py`` prints every verdict; the test beside this file
holds the counts against what is claimed.
"""

import warnings
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
from onnx.backend.test.loader import load_model_tests

from shoal.compute.errors import ProgramError
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.plan import make_plan
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import X20

REFUSED_CODES = {"unsupported_operator", "wrong_dtype"}
"""What making a plan may say of a program that is not claimed."""

OLDEST, NEWEST = 18, 23


@dataclass(frozen=True)
class Verdict:
    """What became of one test case.

    ``outcome`` is "passed", "refused", "outside" (another opset's or domain's, or not
    tensors), or "failed"; ``about`` is the operators it has, and why.
    """

    name: str
    outcome: str
    operators: str
    about: str


def cases():
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return load_model_tests(kind="node")


def judge(case):
    operators = ",".join(sorted({node.op_type for node in case.model.graph.node}))[:80]

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


def main():
    verdicts = [judge(case) for case in cases()]
    for verdict in verdicts:
        print(f"{verdict.outcome:8} {verdict.name:60} {verdict.operators}: {verdict.about}")
    print(Counter(verdict.outcome for verdict in verdicts))


if __name__ == "__main__":
    main()
