"""From a user's ONNX model to a program: checked, normalised, its weights taken out.

Runs before anything is submitted, in the client's process, or in a worker for
models that come by plain HTTP. The same model gives the same program id wherever
and however often it is converted: opset 18 or above, no names of tools, comments
or metadata, no initializer that nothing reads, everything without an order sorted.
Inputs and outputs stay as the model declares them.

Initializers of up to `INLINE_LIMIT_BYTES` stay inside the graph, and large
constants become initializers. That is a fixed part of the format: shapes, axes and
scalars would cost a request each as blobs of their own (25 of magika's 36
initializers are such), and conversion between opsets needs to see their values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import onnx
import onnx.shape_inference
import onnx.version_converter
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from onnx.helper import find_min_ir_version_for, make_opsetid, make_tensor_value_info

from shoal.compute.errors import ProgramError
from shoal.compute.exact.axes import scale_axes_of
from shoal.compute.graph import (
    STANDARD_DOMAINS,
    fed_inputs,
    parse,
    port_of,
    printable,
    tensor_spec_of,
    walk,
)
from shoal.compute.manifest import Manifest, Weight, decode, encode
from shoal.compute.program import check
from shoal.compute.tensor import to_blob
from shoal.crypto.content import BlobId, blob_id_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from google.protobuf.message import Message

    from shoal.crypto.content import Buffer

PROGRAM_OPSET: Final = 18
"""Programs are of this opset or above: it made reductions take their axes as inputs."""

INLINE_LIMIT_BYTES: Final = 1024
"""An initializer of at most this size stays in the graph."""


@dataclass(frozen=True, slots=True)
class Program:
    """A converted model, ready to be submitted.

    ``blobs`` holds everything that it consists of: the manifest, whose id is
    ``program_id``, the graph, and one blob per distinct weight.
    """

    program_id: BlobId
    manifest: Manifest
    blobs: Mapping[BlobId, bytes]


def convert(model: Buffer, precision: str | None = None) -> Program:
    """Make a program of an ONNX file's bytes.

    Args:
        model: The file.
        precision: ``x20``, ``x16`` or ``x8`` for a program of the class ``exact``.

    Raises:
        ProgramError: The model breaks a rule of `shoal.compute.program`, is not
            valid ONNX, or cannot be brought to the opset of programs.
    """
    try:
        return _convert(parse(model), precision)
    except UnicodeDecodeError:
        raise ProgramError(
            "the model is not valid ONNX: a name in it is not UTF-8 text", code="invalid_model"
        ) from None


def convert_file(path: Path, precision: str | None = None) -> Program:
    """Make a program of the user's own ONNX file, with the data files beside it.

    Data is read only from regular files inside the model's own directory.

    Raises:
        ProgramError: As for `convert`, or a data file is missing, too short or
            elsewhere.
        OSError: The model's file cannot be read.
    """
    model = parse(path.read_bytes())
    directory = path.resolve().parent
    for site in walk(model.graph):
        if (
            isinstance(site.part, TensorProto)
            and site.part.data_location == TensorProto.EXTERNAL
        ):
            _read_external(site.part, directory)
    return _convert(model, precision)


def _convert(model: ModelProto, precision: str | None) -> Program:
    check(model)
    _normalise_domains(model)
    weights = _take_weights(model.graph)
    model = _canonical(_raise_opset(model))
    graph = model.SerializeToString(deterministic=True)
    fed = [value for value in fed_inputs(model.graph) if value.name not in weights]
    manifest = Manifest(
        graph=blob_id_of(graph),
        tensors=tuple(
            Weight(name=name, blob_id=blob_id_of(blob))
            for name, blob in sorted(weights.items())
        ),
        inputs=tuple(port_of(value) for value in fed),
        outputs=tuple(port_of(value) for value in model.graph.output),
        precision=precision,  # type: ignore[arg-type]  # decoding checks that it is one
        scale_axes=scale_axes_of(model.graph) if precision else (),
    )
    manifest_blob = encode(manifest)
    decode(manifest_blob)  # what a worker would refuse is refused here
    program_id = blob_id_of(manifest_blob)
    blobs = {program_id: manifest_blob, BlobId(manifest.graph): graph}
    blobs |= {BlobId(weight.blob_id): weights[weight.name] for weight in manifest.tensors}
    return Program(program_id, manifest, blobs)


def _normalise_domains(model: ModelProto) -> None:
    """Write the standard domain as "", and declare only the domains that are used."""
    nodes = [site.part for site in walk(model.graph) if isinstance(site.part, NodeProto)]
    for node in nodes:
        node.domain = "" if node.domain in STANDARD_DOMAINS else node.domain
    used = {"", *(node.domain for node in nodes)}
    declared = {
        "" if opset.domain in STANDARD_DOMAINS else opset.domain: opset.version
        for opset in model.opset_import
    }
    del model.opset_import[:]
    model.opset_import.extend(
        make_opsetid(domain, declared[domain]) for domain in sorted(used & declared.keys())
    )


def _take_weights(graph: GraphProto) -> dict[str, bytes]:
    """Turn the large initializers and constants into inputs; gives their blobs by name."""
    read = _names_read(graph)
    tensors = [*_take_large_constants(graph), *graph.initializer]
    inputs = fed_inputs(graph)
    weights: dict[str, bytes] = {}
    inline: list[TensorProto] = []
    for tensor in (tensor for tensor in tensors if tensor.name in read):
        array = numpy_helper.to_array(tensor)
        if _is_large(tensor):
            weights[tensor.name] = to_blob(array)
            inputs.append(make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            inline.append(numpy_helper.from_array(array, tensor.name))
    fed_count = len(inputs) - len(weights)
    inputs = inputs[:fed_count] + sorted(inputs[fed_count:], key=_name)
    _replace(graph.initializer, sorted(inline, key=_name))
    _replace(graph.input, inputs)
    return weights


def _names_read(graph: GraphProto) -> set[str]:
    """What some node, in a subgraph or not, takes, or the graph gives.

    An initializer outside of it would travel for nothing, and ONNX Runtime refuses
    to be handed data for it.
    """
    names: set[str] = set()
    for site in walk(graph):
        if isinstance(site.part, NodeProto):
            names.update(site.part.input)
        elif isinstance(site.part, GraphProto):
            names.update(value.name for value in site.part.output)
    return names


def _take_large_constants(graph: GraphProto) -> list[TensorProto]:
    """Take out Constant nodes that hold weights, as initializers of their outputs' names."""
    taken: list[TensorProto] = []
    kept: list[NodeProto] = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type == "Constant" and value is not None and _is_large(value):
            tensor = TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            taken.append(tensor)
        else:
            kept.append(node)
    _replace(graph.node, kept)
    return taken


def _is_large(tensor: TensorProto) -> bool:
    return tensor_spec_of(tensor).data_bytes > INLINE_LIMIT_BYTES


def _raise_opset(model: ModelProto) -> ModelProto:
    """Bring a model without its weights to the opset of programs, and validate it."""
    # An IR version below 4 would make onnx turn inline initializers into inputs.
    model.ir_version = max(model.ir_version, 4)
    model.graph.name = "program"
    try:
        if _opset(model) < PROGRAM_OPSET:
            model = _with_ports_of(
                model, onnx.version_converter.convert_version(model, PROGRAM_OPSET)
            )
        model.ir_version = find_min_ir_version_for(
            list(model.opset_import), ignore_unknown=True
        )
        onnx.checker.check_model(_with_every_shape(model))
    except (
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise ProgramError(
            f"the model is not valid ONNX: {_first_line(error)}", code="invalid_model"
        ) from None
    # The converter is C++: a failed assertion of its own is a RuntimeError here.
    except (onnx.version_converter.ConvertError, RuntimeError) as error:
        raise ProgramError(
            f"the model cannot be brought to opset {PROGRAM_OPSET}: {_first_line(error)}",
            code="unconvertible_model",
            hint=f"export it again with opset {PROGRAM_OPSET} or above",
        ) from None
    return model


def _with_ports_of(declared: ModelProto, converted: ModelProto) -> ModelProto:
    """Undo what conversion did to the ports: it writes over them what it infers.

    What a version of onnx can infer would otherwise be part of the program id.
    """
    _replace(converted.graph.input, declared.graph.input)
    _replace(converted.graph.output, declared.graph.output)
    return converted


def _with_every_shape(model: ModelProto) -> ModelProto:
    """A copy for onnx's checker, which asks for a shape where ONNX leaves it open."""
    copy = ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.shape.SetInParent()
    return copy


def _opset(model: ModelProto) -> int:
    return next(opset.version for opset in model.opset_import if not opset.domain)


def _canonical(model: ModelProto) -> ModelProto:
    """A model with nothing left that does not change what it computes."""
    bare = ModelProto(ir_version=model.ir_version, graph=model.graph)
    bare.opset_import.extend(sorted(model.opset_import, key=lambda opset: opset.domain))
    bare.graph.name = "program"
    for site in walk(bare.graph):
        if isinstance(site.part, GraphProto):
            _strip_graph(site.part)
        elif isinstance(site.part, NodeProto):
            _strip_node(site.part)
        else:
            site.part.ClearField("doc_string")
            site.part.ClearField("metadata_props")
    bare.DiscardUnknownFields()
    return bare


def _strip_graph(graph: GraphProto) -> None:
    for field in ("doc_string", "metadata_props", "value_info", "quantization_annotation"):
        graph.ClearField(field)
    for value in (*graph.input, *graph.output):
        value.ClearField("doc_string")
        value.ClearField("metadata_props")
        value.type.ClearField("denotation")
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("denotation")


def _name(part: Any) -> str:
    name: str = part.name
    return name


def _strip_node(node: NodeProto) -> None:
    for field in ("doc_string", "metadata_props", "device_configurations"):
        node.ClearField(field)
    node.name = node.name or next(iter(node.output), "")  # errors name their node
    for attribute in node.attribute:
        attribute.ClearField("doc_string")
    _replace(node.attribute, sorted(node.attribute, key=_name))


def _read_external(tensor: TensorProto, directory: Path) -> None:
    """Put the data that lies in a file beside the model into the tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    file = (directory / location).resolve()
    # Resolved first, so that neither "..", nor an absolute path, nor a link leads out.
    if not file.is_relative_to(directory) or not file.is_file():
        raise ProgramError(
            f"initializer {printable(tensor.name)!r} points to {printable(location)!r}, "
            "which is not a file in the model's directory",
            code="external_data",
            hint="put the data file beside the model",
        )
    size_bytes = tensor_spec_of(tensor).data_bytes
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", size_bytes))
        with file.open("rb") as opened:
            opened.seek(offset)
            data = opened.read(size_bytes)
    except (ValueError, OSError) as error:
        raise ProgramError(
            f"the data of initializer {printable(tensor.name)!r} cannot be read: {error}",
            code="external_data",
        ) from None
    if len(data) != size_bytes or length != size_bytes:
        raise ProgramError(
            f"initializer {printable(tensor.name)!r} takes {size_bytes} bytes, and its "
            f"entry in {printable(location)!r} has {min(length, len(data))}",
            code="external_data",
            hint="is the data file damaged, or another model's?",
        )
    tensor.raw_data = data
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _replace(field: Any, items: Sequence[Message]) -> None:
    """Put other messages into a repeated field (protobuf has no assignment for it)."""
    copies = list(items)
    del field[:]
    field.extend(copies)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return printable(lines[0] if lines else type(error).__name__, 300)
