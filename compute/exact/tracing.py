"""Traces: a unit run node by node, with the ids of what each takes and gives.

Part of *verify*, in the worker: who is accused makes a trace to show where it stands, and
who accuses makes one to find the first leaf that differs. A trace is made by whatever
backend runs the class here; the leaves (`shoal.compute.exact.leaves`) are the same.

Every node of the graph has a leaf, in the graph's order, those of constants alone too; a
unit that errs ends with the leaf that says so. What goes wrong before the first node (an
input that is not a number) has no leaf: it is raised.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
from onnx import numpy_helper

from shoal.compute.errors import ProgramError
from shoal.compute.exact.kernels import ExactError
from shoal.compute.exact.leaves import LEAF_VALUES_LIMIT, OperatorLeaf
from shoal.compute.exact.operators.node import dense
from shoal.compute.exact.plan import admitted, last_uses, run_node, settled
from shoal.compute.exact.reading import Graph, read
from shoal.compute.exact.spec import PRECISIONS
from shoal.compute.tensor import encode_header, spec_of_array, to_blob
from shoal.crypto.content import BlobHasher, BlobId, blob_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from shoal.compute.exact.kernels import ErrorCode, Kernels
    from shoal.compute.exact.operators.node import Array, Node
    from shoal.compute.loading import LoadedProgram

_COPIED_BYTES: Final = 1 << 20
"""A tensor of so much is copied into a blob to be hashed; a larger one is hashed in place."""


def tensor_id(array: Array) -> BlobId:
    """The id of the blob that an array is, without a copy of a large one.

    Raises:
        ProgramError: It is no tensor that travels.
    """
    if array.nbytes <= _COPIED_BYTES or array.dtype == np.bool_:
        return blob_id_of(to_blob(array))
    hasher = BlobHasher()
    hasher.update(encode_header(spec_of_array(array)))
    hasher.update(dense(array).reshape(-1).view(np.uint8).data)
    return hasher.finish().blob_id


class Traceable:
    """A program that can be traced: its graph, its weights, and the ids of its constants.

    Args:
        program: Of the class exact.

    Raises:
        ExactError: ``unsupported_operator`` or ``wrong_dtype``.
        ProgramError: The graph is not a valid one.
    """

    def __init__(self, program: LoadedProgram) -> None:
        manifest = program.manifest
        if manifest.precision is None:
            raise ProgramError(
                "the program names no precision, so it has no trace", code="no_precision"
            )
        self.graph: Graph = read(
            program.model, PRECISIONS[manifest.precision], manifest.scale_axes
        )
        self.constants: dict[str, Array] = {
            name: numpy_helper.to_array(tensor)
            for name, tensor in self.graph.initializers.items()
        }
        self._weights = {weight.name: BlobId(weight.blob_id) for weight in manifest.tensors}
        self._small = tuple(self.constants)
        self.constants.update(program.weights)

    @property
    def inputs(self) -> dict[str, str]:
        """The dtype of each input that a unit gives, by name."""
        return {
            name: dtype
            for name, dtype in self.graph.inputs.items()
            if name not in self._weights
        }

    @cached_property
    def constant_ids(self) -> Mapping[str, BlobId]:
        """The ids of the weights, as the manifest has them, and of what lies in the graph."""
        small = {name: tensor_id(self.constants[name]) for name in self._small}
        return {**small, **self._weights}

    def folded_ids(
        self, names: Iterable[str], kernels: Kernels, before_node: Callable[[], None]
    ) -> dict[str, BlobId]:
        """The ids of those of the values that nodes make of constants alone.

        Raises:
            ProgramError: One of them is no tensor that travels.
        """
        wanted = set(names)
        known = set(self.constants)
        nodes: list[Node] = []
        for node in self.graph.nodes:
            if all(name in known for name in node.inputs if name):
                nodes.append(node)
                known.update(node.outputs)
        wanted &= known - set(self.constants)
        walk = _Walk(self, {}, kernels)
        frees = last_uses(nodes, wanted)
        for node, free in zip(nodes, frees, strict=True):
            if not wanted - set(walk.ids):
                break
            before_node()
            try:
                outputs = walk.run(node)
            except ExactError:  # and so will every unit
                break
            for name in wanted.intersection(outputs):
                walk.id_of(name)
            walk.free(free)
        return {name: walk.ids[name] for name in wanted & set(walk.ids)}


@dataclass(frozen=True, slots=True)
class OperatorTensors:
    """What one node of a unit took and gave.

    Attributes:
        leaf: Its leaf.
        blobs: The tensors that the leaf names, by id.
    """

    leaf: OperatorLeaf
    blobs: Mapping[BlobId, bytes]


def trace(
    program: Traceable,
    inputs: Mapping[str, Array],
    kernels: Kernels,
    span: range | None = None,
    before_node: Callable[[], None] = lambda: None,
) -> tuple[OperatorLeaf, ...]:
    """Run a unit, and say what each of its operators takes and gives.

    Args:
        program: What is run.
        inputs: Arrays by input name.
        kernels: Any backend.
        span: Of which nodes leaves are wanted; of all, where it is None. Nodes behind it
            are not run.
        before_node: Called before each node; what it raises ends the run.

    Returns:
        The leaves in order; the last one may hold an error.

    Raises:
        ExactError: What went wrong before the first node, or before the span began.
        ProgramError: A node has more inputs or outputs than a leaf can name
            (``too_many_values``), or a tensor that does not travel.
    """
    nodes = program.graph.nodes
    span = range(len(nodes)) if span is None else span
    walk = _entered(program, inputs, kernels)
    leaves: list[OperatorLeaf] = []
    frees = last_uses(nodes, program.graph.outputs)
    for index in range(span.stop):
        node = nodes[index]
        before_node()
        if index not in span:
            walk.run(node)
            walk.free(frees[index])
            continue
        leaf = walk.leaf_of(index, node, program.graph.opset)
        leaves.append(leaf)
        if leaf.error is not None:
            break
        walk.free(frees[index])
    return tuple(leaves)


def tensors_of(
    program: Traceable,
    inputs: Mapping[str, Array],
    kernels: Kernels,
    index: int,
    before_node: Callable[[], None] = lambda: None,
) -> OperatorTensors:
    """Run a unit up to one node, and give what that one takes and gives, as blobs.

    Args:
        program: What is run.
        inputs: Arrays by input name.
        kernels: Any backend.
        index: The node's place in the graph.
        before_node: As for `trace`.

    Raises:
        ProgramError: As for `trace`; ``no_such_node`` where the graph has none there.
    """
    nodes = program.graph.nodes
    if not 0 <= index < len(nodes):
        raise ProgramError(
            f"there is no node {index} in a graph of {len(nodes)}", code="no_such_node"
        )
    walk = _entered(program, inputs, kernels)
    frees = last_uses(nodes, program.graph.outputs)
    for before in range(index):
        before_node()
        walk.run(nodes[before])
        walk.free(frees[before])
    before_node()
    leaf = walk.leaf_of(index, nodes[index], program.graph.opset)
    names = [*nodes[index].inputs, *(nodes[index].outputs if leaf.error is None else ())]
    blobs = {walk.id_of(name): to_blob(walk.given(name)) for name in names if name}
    return OperatorTensors(leaf, blobs)


def _entered(program: Traceable, inputs: Mapping[str, Array], kernels: Kernels) -> _Walk:
    """A walk at its start, its inputs and all constants held against the exact class.

    Raises:
        ExactError: As `plan.make_plan` and `plan.Plan.run` raise it, in their order.
    """
    dtypes = program.graph.dtypes
    with settled(kernels):
        for name, array in program.constants.items():
            admitted(name, array, dtypes[name], "constant", kernels)
        for name, dtype in program.inputs.items():
            admitted(name, inputs[name], dtype, "input", kernels)
    return _Walk(program, inputs, kernels)


class _Walk:
    """The values of a unit between two nodes, and their ids, each found when it is asked for.

    What nodes gave is in ``made``; inputs and constants stay as they were given, which is
    what their ids are of, and are flushed when a node reads them.
    """

    def __init__(
        self, program: Traceable, inputs: Mapping[str, Array], kernels: Kernels
    ) -> None:
        self._constants = program.constants
        self._inputs = inputs
        self._kernels = kernels
        self._made: dict[str, Array] = {}
        self.ids: dict[str, BlobId] = dict(program.constant_ids)

    def run(self, node: Node) -> tuple[str, ...]:
        """Run a node; gives the names of what it gave.

        Raises:
            ExactError: It errs.
        """
        arrays = [self._read(name) for name in node.inputs]
        with settled(self._kernels):  # a leaf says where a node errs
            results = run_node(node, arrays, self._kernels)
        given = {n: a for n, a in zip(node.outputs, results, strict=False) if n}
        self._made.update(given)
        return tuple(given)

    def leaf_of(self, index: int, node: Node, version: int) -> OperatorLeaf:
        """Run a node; gives its leaf, which says so where it errs.

        Raises:
            ProgramError: Of a leaf that cannot be; see `trace`.
        """
        if len(node.inputs) + len(node.outputs) > LEAF_VALUES_LIMIT:
            raise ProgramError(
                f"a leaf names at most {LEAF_VALUES_LIMIT} tensors",
                code="too_many_values",
                node=node.name,
                operator=node.operator,
            )
        error: ErrorCode | None = None
        outputs: tuple[BlobId | None, ...] = ()
        inputs = tuple(self.id_of(name) if name else None for name in node.inputs)
        try:
            self.run(node)
            outputs = tuple(self.id_of(name) if name else None for name in node.outputs)
        except ExactError as raised:
            error = cast("ErrorCode", raised.code)
        return OperatorLeaf(index, node.operator, version, inputs, outputs, error)

    def id_of(self, name: str) -> BlobId:
        """The id of a value: found once."""
        if name not in self.ids:
            self.ids[name] = tensor_id(self.given(name))
        return self.ids[name]

    def given(self, name: str) -> Array:
        """A value as its id is of."""
        for known in (self._made, self._inputs, self._constants):
            if name in known:
                return known[name]
        raise AssertionError(f"no node gave {name!r}")

    def free(self, names: Sequence[str]) -> None:
        """Let go of values that no node reads any more."""
        for name in names:
            self._made.pop(name, None)

    def _read(self, name: str) -> Any:
        """A value as nodes read it."""
        if not name or name in self._made:
            return self._made.get(name)
        array = self.given(name)
        return self._kernels.admit(dense(array)) if _is_float(array) else array


def _is_float(array: Array) -> bool:
    return bool(array.dtype == np.float32)
