"""Makes `expected.json`: the output ids of every case and whole model, by the reference.

``python tests/vectors/make.py`` (with tests/models and tests/vectors on PYTHONPATH)
writes the file; `tests/unit/test_vectors.py` computes it again, without numba. A change
of any id is a change of the exact class, and so of ``SPEC_VERSION``.
"""

import json
from pathlib import Path

import whole_models
from cases import CASES, PRECISIONS
from exact_runs import ids_of, outcome

from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import SPEC_VERSION

EXPECTED = Path(__file__).parent / "expected.json"


def operator(case, kernels):
    """For each precision of a case: ids of the outputs, or the error."""
    model, given = case.model().SerializeToString(), case.inputs()
    return {name: outcome(model, given, name, kernels) for name in case.precisions}


def model(name, kernels):
    """For each precision of a whole model: ids of the outputs."""
    data, given = whole_models.onnx_bytes(name), model_inputs(name)
    return {precision: outcome(data, given, precision, kernels) for precision in PRECISIONS}


def model_inputs(name):
    """Few enough for the reference."""
    return whole_models.inputs(name, batch=1, tokens=16)


def inputs():
    """The ids of the inputs, so that whoever draws them knows them to be right."""
    drawn = {case.name: ids_of(case.inputs()) for case in CASES}
    return drawn | {name: ids_of(model_inputs(name)) for name in whole_models.MODELS}


def compute():
    """All that the file says, by the reference."""
    kernels = ReferenceKernels()
    return {
        "spec_version": SPEC_VERSION,
        "inputs": inputs(),
        "operators": {case.name: operator(case, kernels) for case in CASES},
        "models": {
            name: model(name, kernels)
            for name in whole_models.MODELS
            if whole_models.is_installed(name)
        },
    }


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(compute(), indent=1) + "\n")
