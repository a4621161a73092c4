"""Leaves of every operator: any backend gives the same, and the reference alone confirms them.

Over the drawn programs of one operator that `test_exact_operators` has.
"""

from __future__ import annotations

from collections import Counter

import pytest
import whole_models
from effort import THOROUGH, examples
from exact_programs import Failure, programs
from hypothesis import HealthCheck, given, settings
from traced_programs import loaded_of

from shoal.compute.convert import convert
from shoal.compute.errors import ProgramError
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.digits import DigitKernels
from shoal.compute.exact.judging_operators import Operators, run_operator
from shoal.compute.exact.leaves import decode_operator_leaf, leaf_bytes
from shoal.compute.exact.operators import OPERATORS
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.stages import stage_leaves, stages_of
from shoal.compute.exact.tracing import Traceable, tensors_of, trace
from shoal.compute.executors.exact import Exact
from shoal.compute.loading import load
from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of

REFERENCE = ReferenceKernels()
BACKENDS = {"numba": CpuKernels(2), "digits": DigitKernels(2)}


def leaves_of(loaded, kernels):
    """The leaves, or the error before the first node."""
    try:
        return trace(Traceable(loaded.program), loaded.fed, kernels)
    except ProgramError as error:
        return Failure(error.code, error.node, error.operator)


@pytest.mark.parametrize("operator", sorted(OPERATORS))
def test_all_backends_give_the_same_leaf_and_the_reference_alone_confirms_it(operator):
    seen: Counter[str] = Counter()

    @given(programs(operator))
    @settings(
        max_examples=examples(25, least=12),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    def check(drawn):
        loaded = loaded_of(drawn)
        if loaded is None:
            return
        leaves = leaves_of(loaded, REFERENCE)
        for name, kernels in BACKENDS.items():
            assert leaves_of(loaded, kernels) == leaves, name
        ran = drawn.run(REFERENCE)
        if isinstance(leaves, Failure):
            assert leaves == ran
            return
        (leaf,) = leaves
        assert decode_operator_leaf(leaf_bytes(leaf)) == leaf
        if isinstance(ran, Failure):
            assert (leaf.error, leaf.outputs) == (ran.code, ())
        else:
            found = dict(zip(drawn.model.graph.node[0].output, leaf.outputs, strict=True))
            ids = {name: blob_id_of(to_blob(array)) for name, array in ran.items()}
            assert {name: found[name] for name in ids} == ids
            seen["gave a result"] += 1
        confirm(loaded, leaf)

    check()
    assert seen["gave a result"] or not THOROUGH  # a dozen programs may all be in error


def confirm(loaded, leaf):
    """Run the operator of a leaf alone, from the blobs that the leaf names."""
    given_tensors = tensors_of(Traceable(loaded.program), loaded.fed, BACKENDS["numba"], 0)
    assert given_tensors.leaf == leaf
    assert all(blob_id_of(blob) == name for name, blob in given_tensors.blobs.items())
    program = Operators(loaded.manifest, loaded.graph)
    wiring = program.wiring(0)
    for wire, named in zip(wiring.inputs, leaf.inputs, strict=True):
        assert (wire is None) == (named is None)
        if wire is not None and wire.kind == "constant":
            assert wire.blob_id == named
    blobs = [given_tensors.blobs[name] if name else None for name in leaf.inputs]
    found = run_operator(program, 0, blobs)
    assert (found.outputs, found.error) == (leaf.outputs, leaf.error)


@pytest.mark.parametrize("name", ["minilm", "magika", "cnn", "causal"])
def test_whole_models_have_the_same_leaves_and_stages_on_all_backends(name):
    if not whole_models.is_installed(name):
        pytest.skip(f"the weights of {name} are not installed")
    program = convert(whole_models.onnx_bytes(name), "x16")
    traceable = Traceable(load(program.program_id, program.blobs))
    fed = whole_models.inputs(name, 1, 8)
    leaves = trace(traceable, fed, BACKENDS["numba"])
    assert [leaf.index for leaf in leaves] == list(range(len(traceable.graph.nodes)))
    assert leaves == trace(traceable, fed, REFERENCE)
    stages = stages_of(traceable.graph)
    executor = Exact(BACKENDS["numba"], "numba")
    handle = executor.prepare(load(program.program_id, program.blobs))
    outputs, recorded = executor.run_in_stages(handle, fed)
    assert recorded == stage_leaves(stages, leaves, traceable.graph)
    assert len(recorded) == len(stages.ends)
    ids = {blob_id_of(to_blob(array)) for array in outputs.values()}
    assert ids <= set(recorded[-1].state)
