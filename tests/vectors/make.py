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
TOKENS = 16


def operators(kernels):
    """For each case and precision: ids of the outputs, or the error."""
    return {
        case.name: {
            precision: outcome(
                case.model().SerializeToString(), case.inputs(), precision, kernels
            )
            for precision in case.precisions
        }
        for case in CASES
    }


def models(kernels, names=whole_models.MODELS, precisions=PRECISIONS):
    """For each whole model whose weights are there, and precision: ids of the outputs."""
    return {
        name: {
            precision: outcome(
                whole_models.onnx_bytes(name),
                whole_models.inputs(name, batch=1, tokens=TOKENS),
                precision,
                kernels,
            )
            for precision in precisions
        }
        for name in names
        if whole_models.is_installed(name)
    }


def inputs():
    """The ids of the inputs, so that whoever draws them knows them to be right."""
    drawn = {case.name: ids_of(case.inputs()) for case in CASES}
    return drawn | {
        name: ids_of(whole_models.inputs(name, batch=1, tokens=TOKENS))
        for name in whole_models.MODELS
    }


def compute():
    """All that the file says, by the reference."""
    kernels = ReferenceKernels()
    return {
        "spec_version": SPEC_VERSION,
        "inputs": inputs(),
        "operators": operators(kernels),
        "models": models(kernels),
    }


if __name__ == "__main__":
    EXPECTED.write_text(json.dumps(compute(), indent=1) + "\n")
