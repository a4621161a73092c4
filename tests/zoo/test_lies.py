"""Each lie looks like a result, and is none: what is signed has the form of what was asked."""

import lies
import numpy as np
import pytest
import whole_models

from shoal.compute.convert import convert
from shoal.compute.exact.cpu import CpuKernels
from shoal.compute.exact.plan import make_plan
from shoal.compute.exact.spec import PRECISIONS
from shoal.compute.loading import load
from shoal.compute.tensor import from_blob, to_blob


@pytest.fixture(scope="module")
def magika():
    """Magika's program with its blobs, inputs as blobs, and what it gives for them."""
    program = convert(whole_models.onnx_bytes("magika"), "x20")
    given = {n: to_blob(a) for n, a in whole_models.inputs("magika", 2).items()}
    return program, given, run(program.program_id, program.blobs, given)


def run(program_id, blobs, given):
    loaded = load(program_id, blobs)
    precision = PRECISIONS[loaded.manifest.precision]
    axes = loaded.manifest.scale_axes
    plan = make_plan(loaded.model, loaded.weights, precision, axes, CpuKernels(1))
    ran = plan.run({name: from_blob(blob) for name, blob in given.items()})
    return {name: to_blob(array) for name, array in ran.items()}


@pytest.mark.parametrize("change", [lies.in_x8, lies.without_layers])
def test_a_changed_program_runs_and_gives_something_else_of_the_same_form(magika, change):
    program, given, true = magika
    changed = run(*change(program.manifest, program.blobs), given)
    assert lies.spec_of(changed) == lies.spec_of(true)
    assert changed != true


def test_other_inputs_run_and_give_something_else(magika):
    program, given, true = magika
    changed = run(program.program_id, program.blobs, lies.reversed_inputs(given))
    assert lies.spec_of(changed) == lies.spec_of(true)
    assert changed != true


def test_drawn_outputs_have_the_form_of_the_true_ones(magika):
    *_, true = magika
    drawn = lies.drawn(true, 5)
    assert lies.spec_of(drawn) == lies.spec_of(true)
    assert drawn != true
    assert drawn == lies.drawn(true, 5)


@pytest.mark.parametrize("number", [0, 1, 10**9])
def test_one_bit_is_one_bit(magika, number):
    *_, true = magika
    (name,) = true
    turned = lies.with_one_bit_turned(true, number)
    before, after = (np.frombuffer(outputs[name], np.uint8) for outputs in (true, turned))
    assert np.bitwise_count(before ^ after).sum() == 1
    np.testing.assert_allclose(from_blob(turned[name]), from_blob(true[name]), rtol=1e-6)
