"""One operator run again, alone, by the reference: what a proof about a leaf rests on.

Part of *verify*. An operator is a pure function of its inputs, its attributes and the
program's precision, so that whoever holds a program's manifest and graph and the operator's
inputs can say what its outputs are, without the program's other weights, and without numba.
What a proof says of it is `compute.judging`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import numpy as np
from onnx import numpy_helper

from shoal.compute.convert import PROGRAM_OPSET
from shoal.compute.errors import ProgramError
from shoal.compute.exact.kernels import ErrorCode, ExactError
from shoal.compute.exact.plan import run_node
from shoal.compute.exact.reading import read
from shoal.compute.exact.reference import ReferenceKernels
from shoal.compute.exact.spec import PRECISIONS
from shoal.compute.exact.stages import Stages, stages_of
from shoal.compute.exact.tracing import tensor_id
from shoal.compute.graph import fed_inputs, parse, port_of
from shoal.compute.loading import GRAPH_LIMIT_BYTES
from shoal.compute.manifest import Manifest, decode
from shoal.compute.program import check
from shoal.compute.tensor import from_blob
from shoal.crypto.content import BlobId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.compute.exact.kernels import Kernels
    from shoal.compute.exact.operators.node import Array, Node
    from shoal.compute.exact.reading import Graph
    from shoal.crypto.content import Buffer

_REFERENCE: Final[Kernels] = ReferenceKernels()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value comes from.

    Attributes:
        kind: An input of the unit, a constant of the program, or a node.
        name: The value's name.
        blob_id: The constant's.
        index: The node's place in the graph.
        position: Which of the node's outputs it is.
    """

    kind: Literal["input", "constant", "node"]
    name: str
    blob_id: BlobId | None = None
    index: int = -1
    position: int = -1


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a node's leaf has to say, whatever the unit's inputs.

    Attributes:
        node: The name that an error has.
        operator: The ONNX operator.
        version: The opset.
        inputs: Where each input comes from; None for one that is not given.
        outputs: For each output whether it is asked for, and so has an id.
    """

    node: str
    operator: str
    version: int
    inputs: tuple[Source | None, ...]
    outputs: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Operated:
    """What an operator gives: its outputs' ids, None for one not asked for; or an error."""

    outputs: tuple[BlobId | None, ...]
    error: ErrorCode | None = None


class Operators:
    """A program as who judges its operators sees it: manifest and graph, and no weights.

    Args:
        manifest: The canonical bytes of the manifest.
        graph: The blob that it names as its graph; the caller has checked both ids.

    Raises:
        ProgramError: They are not a program of the class exact.
    """

    def __init__(self, manifest: bytes, graph: Buffer) -> None:
        self.manifest: Manifest = decode(manifest)
        if self.manifest.precision is None:
            raise ProgramError(
                "the program names no precision, so it has no leaves", code="no_precision"
            )
        if memoryview(graph).nbytes > GRAPH_LIMIT_BYTES:
            raise ProgramError("the graph is over its limit", code="graph_too_large")
        model = parse(graph)
        check(model)
        self._check_ports(model)
        self.graph: Graph = read(
            model, PRECISIONS[self.manifest.precision], self.manifest.scale_axes
        )
        if self.graph.opset < PROGRAM_OPSET:
            raise ProgramError("the graph is of an older opset", code="unsupported_opset")
        self._made = {
            name: (index, position)
            for index, node in enumerate(self.graph.nodes)
            for position, name in enumerate(node.outputs)
            if name
        }

    def _check_ports(self, model: Any) -> None:
        """Hold the graph against the manifest, as far as that goes without weights."""
        fed = [port_of(value) for value in fed_inputs(model.graph)]
        count = len(self.manifest.inputs)
        weights = tuple(weight.name for weight in self.manifest.tensors)
        outputs = tuple(port_of(value) for value in model.graph.output)
        if (
            tuple(fed[:count]) != self.manifest.inputs
            or tuple(port.name for port in fed[count:]) != weights
            or outputs != self.manifest.outputs
        ):
            raise ProgramError(
                "the manifest does not list what its graph has", code="manifest_mismatch"
            )

    @cached_property
    def constant_ids(self) -> Mapping[str, BlobId]:
        """The ids of the program's constants, by name."""
        small = {
            name: tensor_id(numpy_helper.to_array(tensor))
            for name, tensor in self.graph.initializers.items()
        }
        weights = {weight.name: BlobId(weight.blob_id) for weight in self.manifest.tensors}
        return {**small, **weights}

    @cached_property
    def stages(self) -> Stages:
        """How the graph is cut into stages."""
        return stages_of(self.graph)

    def source(self, name: str) -> Source:
        """Where a value of the graph comes from."""
        if name in self._made:
            index, position = self._made[name]
            return Source("node", name, index=index, position=position)
        if name in self.constant_ids:
            return Source("constant", name, self.constant_ids[name])
        return Source("input", name)

    def wiring(self, index: int) -> Wiring:
        """What the leaf of a node has to say.

        Raises:
            ProgramError: ``no_such_node``.
        """
        node = self.node(index)
        return Wiring(
            node=node.name,
            operator=node.operator,
            version=self.graph.opset,
            inputs=tuple(self.source(name) if name else None for name in node.inputs),
            outputs=tuple(map(bool, node.outputs)),
        )

    def node(self, index: int) -> Node:
        """The node at a place in the graph.

        Raises:
            ProgramError: ``no_such_node``.
        """
        if not 0 <= index < len(self.graph.nodes):
            raise ProgramError(
                f"there is no node {index} in a graph of {len(self.graph.nodes)}",
                code="no_such_node",
            )
        return self.graph.nodes[index]

    def arrays(self, node: Node, blobs: Sequence[Buffer | None]) -> list[Any]:
        """The node's inputs, from their blobs, as it reads them.

        Raises:
            ProgramError: ``bad_tensor`` or ``not_its_inputs``: no run of the program gives
                it these.
        """
        if len(blobs) != len(node.inputs):
            raise _not_its_inputs(node, f"it takes {len(node.inputs)}, and has {len(blobs)}")
        arrays: list[Any] = []
        for name, blob in zip(node.inputs, blobs, strict=True):
            if (blob is None) != (not name):
                raise _not_its_inputs(node, "one is missing, or one is not asked for")
            arrays.append(None if blob is None else self._array(node, name, blob))
        return arrays

    def _array(self, node: Node, name: str, blob: Buffer) -> Array:
        array = from_blob(blob)
        if array.dtype.name != self.graph.dtypes[name]:
            raise _not_its_inputs(node, f"one is {array.dtype.name}")
        if array.dtype != np.float32:
            return array
        try:
            return _REFERENCE.admit(array)
        except ExactError:
            raise _not_its_inputs(node, "one holds what no operator gives") from None


def _not_its_inputs(node: Node, why: str) -> ProgramError:
    return ProgramError(
        f"these are not inputs of node {node.name!r} ({node.operator}): {why}",
        code="not_its_inputs",
        node=node.name,
        operator=node.operator,
    )


def run_operator(program: Operators, index: int, inputs: Sequence[Buffer | None]) -> Operated:
    """Run one node of a program by the reference.

    Args:
        program: The program.
        index: The node's place in its graph.
        inputs: The blobs of the node's inputs, which its leaf names; None for an optional
            one that is not given.

    Raises:
        ProgramError: ``no_such_node``; ``bad_tensor`` or ``not_its_inputs`` where no run
            of the program gives the node these inputs.
    """
    node = program.node(index)
    arrays = program.arrays(node, inputs)
    try:
        results = run_node(node, arrays, _REFERENCE)
    except ExactError as error:
        return Operated((), cast("ErrorCode", error.code))
    given = dict(zip(node.outputs, results, strict=False))
    return Operated(tuple(tensor_id(given[name]) if name else None for name in node.outputs))
