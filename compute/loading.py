"""A program's blobs, checked and put together for an executor: the reverse of converting.

This is the first step inside a worker. The blobs came from a peer, and nobody has
looked into them yet: the daemon checked only that they are the ones their ids
promise. So the manifest is decoded, the graph is held against the validity rules,
and what the manifest says about ports and weights is compared with the graph. A user's
kernel has rules of its own (`shoal.compute.user_kernels`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shoal.compute.convert import PROGRAM_OPSET
from shoal.compute.errors import ProgramError
from shoal.compute.graph import STANDARD_DOMAINS, fed_inputs, parse, port_of
from shoal.compute.kernel_manifest import is_kernel_manifest
from shoal.compute.manifest import Manifest, Port, decode
from shoal.compute.program import check
from shoal.compute.tensor import from_blob, spec_of_array
from shoal.compute.user_kernels import parsing

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from onnx import ModelProto

    from shoal.compute.user_kernels.parsing import LoadedKernel
    from shoal.crypto.content import BlobId, Buffer

GRAPH_LIMIT_BYTES: Final = 256 << 20
"""A graph without its weights; the largest models' have a few megabytes."""


@dataclass(frozen=True, slots=True)
class LoadedProgram:
    """A program that keeps to all rules, its weights as arrays that share the blobs' memory."""

    program_id: BlobId
    manifest: Manifest
    model: ModelProto
    weights: Mapping[str, np.ndarray]


def load(program_id: BlobId, blobs: Mapping[BlobId, Buffer]) -> LoadedProgram | LoadedKernel:
    """Check a program's blobs and put them together; a user's kernel is one as well.

    Args:
        program_id: The id of the manifest, which is among the blobs.
        blobs: The manifest, the graph and the weights, already checked against
            their ids.

    Raises:
        ProgramError: A blob is missing, malformed or breaks a rule, or graph and
            manifest contradict each other.
    """
    encoded = bytes(_blob(blobs, program_id, "manifest"))
    if is_kernel_manifest(encoded):
        return parsing.load(program_id, blobs)
    manifest = decode(encoded)
    graph = _blob(blobs, manifest.graph, "graph")
    if len(graph) > GRAPH_LIMIT_BYTES:
        raise ProgramError(
            f"a graph of {len(graph)} bytes is over {GRAPH_LIMIT_BYTES}", code="graph_too_large"
        )
    model = parse(graph)
    check(model)
    if any(
        o.domain in STANDARD_DOMAINS and o.version < PROGRAM_OPSET for o in model.opset_import
    ):
        raise ProgramError(
            f"the program's graph is of an opset below {PROGRAM_OPSET}",
            code="unsupported_opset",
            hint="convert the model with shoal before submitting it",
        )
    weights = {
        weight.name: from_blob(_blob(blobs, weight.blob_id, f"tensor {weight.name!r}"))
        for weight in manifest.tensors
    }
    promised = (
        *manifest.inputs,
        *(_port_of_array(name, array) for name, array in weights.items()),
    )
    if tuple(port_of(value) for value in fed_inputs(model.graph)) != promised:
        raise _contradiction("inputs")
    if tuple(port_of(value) for value in model.graph.output) != manifest.outputs:
        raise _contradiction("outputs")
    return LoadedProgram(program_id, manifest, model, weights)


def _blob(blobs: Mapping[BlobId, Buffer], blob_id: str, what: str) -> Buffer:
    try:
        return blobs[blob_id]  # type: ignore[index]  # a manifest's ids have the form of one
    except KeyError:
        raise ProgramError(
            f"the program's {what} ({blob_id[:16]}…) is missing", code="missing_blob"
        ) from None


def _port_of_array(name: str, array: np.ndarray) -> Port:
    spec = spec_of_array(array)
    return Port(name=name, dtype=spec.dtype, shape=spec.shape)


def _contradiction(what: str) -> ProgramError:
    return ProgramError(
        f"the {what} that the manifest lists are not those of its graph",
        code="manifest_mismatch",
        hint="convert the model again with this version of shoal",
    )
