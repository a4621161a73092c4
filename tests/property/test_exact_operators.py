"""Every operator of the exact class, over drawn shapes, attributes, dtypes and values.

What is checked, on programs of one operator (`exact_programs`):

* Every operator: the reference, the CPU's kernels on one thread and on three, and
  products by int8 digits come to the same bits, or to the same error at the same place.
  Results have the dtypes that the plan found, and are flushed, with no NaN and no +inf.
* That says nothing of what all of them share, the numpy code in
  `shoal.compute.exact.operators`. So results are held against `onnx.reference` too, or
  against a loop over elements where that errs (`exact_programs.oracle`): bit for bit
  where elements are moved, converted or compared (`MOVES`), and for every operator
  where neither inputs nor outputs are floats; as numbers, zeros of either sign being
  equal, where a float is chosen (`CHOICES`); by shape and dtype alone for the rest,
  since onnx.reference rounds as it likes.

The values of float arithmetic are held against fractions in the kernels' own tests, and
against ONNX Runtime in tests/unit/test_exact_operators.py.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from effort import THOROUGH, examples
from exact_programs import CALLS, Failure, Program, programs
from exact_programs.oracle import ROUNDED_GAPS, results_by_onnx
from hypothesis import HealthCheck, given, settings

from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.digits import DigitKernels
from shoal.compute.exact.operators import OPERATORS
from shoal.compute.exact.reference import ReferenceKernels

REFERENCE = ReferenceKernels()
WAYS = {"one thread": CpuKernels(1), "three threads": CpuKernels(3), "digits": DigitKernels(2)}

MOVES = {
    "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Dropout",
    "Equal", "Expand", "EyeLike", "Flatten", "Gather", "GatherElements", "GatherND",
    "Greater", "GreaterOrEqual", "Identity", "IsInf", "IsNaN", "Less", "LessOrEqual",
    "OneHot", "Pad", "Reshape", "Shape", "Size", "Slice", "SpaceToDepth", "Split",
    "Squeeze", "Tile", "Transpose", "Trilu", "Unsqueeze", "Where",
}  # fmt: skip
"""Operators whose results are compared bit for bit whatever their dtype."""

CHOICES = {
    "Abs", "ArgMax", "ArgMin", "Ceil", "Clip", "Floor", "GlobalMaxPool", "Max", "MaxPool",
    "Min", "Neg", "ReduceMax", "ReduceMin", "Relu", "Round", "Sign", "TopK",
}  # fmt: skip
"""Operators whose float results are exact, but for the sign of a zero."""

LEAST_SHARE = 0.25
"""Of an operator's programs, how many have to give a result."""


def test_every_operator_of_the_table_is_drawn_and_no_other():
    assert CALLS.keys() == OPERATORS.keys()
    assert OPERATORS.keys() >= MOVES | CHOICES
    assert not ROUNDED_GAPS.keys() & (MOVES | CHOICES)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_all_ways_of_computing_agree_with_each_other_and_with_onnx(operator):
    seen: Counter[str] = Counter()

    @given(programs(operator))
    @settings(
        max_examples=examples(80, least=20),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    def check(program):
        expected = program.run(REFERENCE)
        for name, kernels in WAYS.items():
            assert bits_of(program.run(kernels)) == bits_of(expected), name
        seen["drawn"] += 1
        if not isinstance(expected, Failure):
            seen["gave a result"] += 1
            check_results(program, expected)

    check()
    assert seen["gave a result"] >= (LEAST_SHARE * seen["drawn"] if THOROUGH else 1)


def bits_of(results):
    """What has to be equal: of each output its dtype, shape and bytes; or the error."""
    if isinstance(results, Failure):
        return results
    return {
        name: (array.dtype.name, array.shape, array.tobytes())
        for name, array in results.items()
    }


def check_results(program: Program, results):
    for array in results.values():
        if array.dtype == np.float32:
            assert not np.isnan(array).any()
            assert not np.isposinf(array).any()
            assert not (np.abs(array[array != 0]) < 2.0**-126).any()
    for name, array in zip(program.outputs, results_by_onnx(program) or (), strict=False):
        found = results[name]
        assert (found.dtype, found.shape) == (array.dtype, array.shape), name
        if program.operator in MOVES or not has_floats(program, results):
            assert found.tobytes() == array.tobytes(), name
        elif program.operator in CHOICES:
            np.testing.assert_array_equal(found, array, name)


def has_floats(program, results):
    return any(a.dtype == np.float32 for a in (*program.inputs.values(), *results.values()))
