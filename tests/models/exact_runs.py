"""Programs of the exact class run in this process, by whatever backend a test names."""

from shoal.compute.convert import convert
from shoal.compute.errors import ProgramError
from shoal.compute.exact.plan import make_plan
from shoal.compute.exact.spec import PRECISIONS
from shoal.compute.loading import load
from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of


def prepared(data, precision, kernels, axes_like=None):
    """A function from inputs to outputs, by name, for the bytes of an ONNX file.

    ``axes_like`` is another model, with products of the same names, whose scale axes
    are to be used: those of a permuted model are its original's.
    """
    program = convert(data, precision)
    loaded = load(program.program_id, program.blobs)
    axes = (convert(axes_like, precision) if axes_like else program).manifest.scale_axes
    return make_plan(loaded.model, loaded.weights, PRECISIONS[precision], axes, kernels).run


def ids_of(arrays):
    """Content ids by name."""
    return {name: blob_id_of(to_blob(array)) for name, array in arrays.items()}


def outcome(data, inputs, precision, kernels):
    """What running a model once comes to: ids by name, or an error that all nodes give."""
    try:
        return ids_of(prepared(data, precision, kernels)(inputs))
    except ProgramError as error:
        return {"error": [error.code, error.node, error.operator]}
