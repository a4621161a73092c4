"""Drawn programs of one operator as a worker holds them: a manifest, a graph, weights."""

from __future__ import annotations

from dataclasses import dataclass

from onnx import helper

from shoal.compute.errors import ProgramError
from shoal.compute.exact.reading import read
from shoal.compute.exact.spec import PRECISIONS
from shoal.compute.graph import port_of
from shoal.compute.loading import LoadedProgram
from shoal.compute.manifest import Manifest, ScaleAxis, Weight, encode
from shoal.compute.tensor import to_blob
from shoal.crypto.content import blob_id_of


@dataclass(frozen=True)
class Loaded:
    """The program, its manifest's bytes, its graph's bytes, and what is fed to it."""

    program: LoadedProgram
    manifest: bytes
    graph: bytes
    fed: dict


def loaded_of(drawn) -> Loaded | None:
    """A drawn program; None where it is refused before anything runs."""
    model = drawn.model
    axes = () if drawn.axis is None else (ScaleAxis(drawn.outputs[0], drawn.axis),)
    try:
        graph = read(model, PRECISIONS[drawn.precision], axes)
    except ProgramError:
        return None
    for value in model.graph.output:
        code = helper.np_dtype_to_tensor_dtype(helper.np.dtype(graph.dtypes[value.name]))
        value.CopyFrom(helper.make_tensor_value_info(value.name, code, None))
    weights = {name: drawn.inputs[name] for name in sorted(drawn.constant)}
    values = sorted(model.graph.input, key=lambda v: (v.name in weights, v.name))
    del model.graph.input[:]
    model.graph.input.extend(values)
    data = model.SerializeToString(deterministic=True)
    manifest = Manifest(
        graph=blob_id_of(data),
        tensors=tuple(Weight(n, blob_id_of(to_blob(a))) for n, a in weights.items()),
        inputs=tuple(port_of(v) for v in values if v.name not in weights),
        outputs=tuple(port_of(v) for v in model.graph.output),
        precision=drawn.precision,
        scale_axes=axes,
    )
    encoded = encode(manifest)
    fed = {name: array for name, array in drawn.inputs.items() if name not in weights}
    program = LoadedProgram(blob_id_of(encoded), manifest, model, weights)
    return Loaded(program, encoded, data, fed)
