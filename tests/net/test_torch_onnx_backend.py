"""ONNX's own node tests on the executor ``torch``: what is claimed passes."""

from collections import Counter

import numpy as np
import onnx
import pytest
import test_exact_onnx_backend as node_tests
import torch

from shoal.compute.errors import ProgramError, ShoalError
from shoal.compute.program import OPERATORS as ACCEPTED
from shoal.compute.tensor import DTYPE_OF_ONNX_CODE
from shoal.compute.torch_graph.arrays import to_array
from shoal.compute.torch_graph.graph import make_plan, placed_input, settle
from shoal.compute.torch_graph.node import Run
from shoal.compute.torch_graph.operators import OPERATORS
from shoal.compute.torch_graph.reading import read

NOT_TESTED_BY_ONNX = {"GlobalLpPool"}
"""Operators of the table without a node test that fits: `test_torch_operators` has one."""

UINT64 = {"test_bitshift_right_uint64", "test_div_uint64", "test_mod_uint64"}
"""Torch cannot divide it, nor shift it to the right."""

NARROW = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def outcome(case):
    """Of one case: "passed", "refused", "outside" or "failed"; its operators; and why."""
    names = {node.op_type for node in case.model.graph.node}
    if (why := node_tests._outside(case.model)) or not names <= ACCEPTED[""]:
        return "outside", names, why
    if any(node.op_type == "Dropout" and any(node.input[2:]) for node in case.model.graph.node):
        return "outside", names, "random"
    if not all(code in DTYPE_OF_ONNX_CODE for code in dtypes(case)):
        return "outside", names, "a dtype that does not travel"
    rtol = 2e-2 if NARROW & dtypes(case) else max(case.rtol, 1e-3)
    for inputs, outputs in case.data_sets:
        try:
            found = computed(case.model, map(node_tests._array, inputs))
        except ProgramError as error:
            return "refused", names, f"{error.code}: {error.message}"
        except ShoalError as error:
            return "failed", names, f"{error.code}: {error.message}"
        for ours, theirs in zip(found, map(node_tests._array, outputs), strict=True):
            if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
                return (
                    "failed",
                    names,
                    f"{ours.dtype}{ours.shape}, {theirs.dtype}{theirs.shape}",
                )
            a, b = ours.astype(np.float64), theirs.astype(np.float64)
            if not np.allclose(a, b, rtol, max(case.atol, 1e-6), equal_nan=True):
                return "failed", names, f"{np.abs(a - b).max()} apart"
    return "passed", names, ""


def dtypes(case):
    typed = [
        *case.model.graph.input,
        *case.model.graph.output,
        *case.model.graph.value_info,
    ]
    given = [*case.model.graph.initializer]
    given += [a.t for n in case.model.graph.node for a in n.attribute if a.HasField("t")]
    return {v.type.tensor_type.elem_type for v in typed} | {t.data_type for t in given}


def computed(model, arrays):
    run = Run(torch.device("cpu"))
    with torch.no_grad():
        plan = make_plan(read(model, OPERATORS), {}, run)
        values = zip(plan.inputs, arrays, strict=True)
        outputs = plan.run({n: placed_input(a, run.device) for n, a in values}, run)
        settle(run)
        return [to_array(y) for y in outputs]


@pytest.fixture(scope="module")
def verdicts():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {case.name: outcome(case) for case in node_tests.cases()}
    torch.set_num_threads(before)


def test_every_node_test_that_is_claimed_passes(verdicts, capsys):
    counts = Counter(verdict for verdict, _, _ in verdicts.values())
    with capsys.disabled():
        print(f"\n{len(verdicts)} node tests of ONNX on the executor torch: {dict(counts)}")
    failed = {name: why for name, (verdict, _, why) in verdicts.items() if verdict == "failed"}
    assert not failed
    assert counts["passed"] > 1100


def test_what_is_refused_is_a_missing_operator_part_or_dtype(verdicts):
    for name, (verdict, _, why) in verdicts.items():
        if verdict == "refused":
            listed = why.startswith("unsupported_operator: ") or name in UINT64
            newer = "may not be a tensor" in why or "not in range [min=3, max=6]" in why
            assert listed or newer, (name, why)


def test_every_operator_of_the_table_is_in_a_node_test_that_passes(verdicts):
    passed = {op for verdict, ops, _ in verdicts.values() if verdict == "passed" for op in ops}
    assert OPERATORS.keys() - passed == NOT_TESTED_BY_ONNX
