"""Leaves of a trace: what a node says of one operator, or of one stage, of a unit.

Part of *verify*. A leaf names tensors by the ids of their blobs and holds none; a Merkle
root over leaves (`shoal.crypto.merkle`) commits to all of them. Any backend gives the same
leaves, so that two traces of one unit differ where one of them is false. SPEC.md, "Traces",
is the format. The daemon imports this module, so it knows nothing of arrays and graphs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import msgspec

from shoal.compute.errors import ProgramError
from shoal.compute.exact.kernels import ErrorCode
from shoal.protocol.limits import PORTS_LIMIT, Count, HexId

if TYPE_CHECKING:
    from shoal.crypto.content import Buffer

LEAF_VALUES_LIMIT: Final = 900
"""Inputs and outputs, together, of a node that has a leaf: ids of 66 bytes each.

A graph may have nodes with more (a Concat of a thousand); a unit of it gives no trace."""

LEAF_LIMIT_BYTES: Final = 64 << 10
"""One leaf, encoded."""

LEAVES_LIMIT: Final = 50_000
"""Operator leaves of one unit: no graph has more nodes (`shoal.compute.program`)."""

STAGE_LEAF_LIMIT_BYTES: Final = 17 << 10
"""A leaf of a stage: an id of 66 bytes for each of the most outputs of a program."""

STAGES_LIMIT: Final = 1000
"""Stages of one unit."""

STAGE_ALIVE_LIMIT: Final = 64
"""Values alive at the end of a stage, but for the last, which ends with the outputs."""

_Operator = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
_Ids = Annotated[tuple[HexId | None, ...], msgspec.Meta(max_length=LEAF_VALUES_LIMIT)]
_State = Annotated[tuple[HexId, ...], msgspec.Meta(max_length=PORTS_LIMIT)]
_Version = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]


class OperatorLeaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One node of the graph that ran, or tried to.

    Attributes:
        index: The node's place in the graph, from 0.
        operator: Its ONNX operator.
        version: The opset of the graph.
        inputs: The blob id of each input, in the node's order. A program's input and a
            constant have the id of their blob as it was given, before anything was
            flushed. None for an optional input that is not given.
        outputs: The blob id of each output, None for one that is not asked for; none at
            all where ``error`` is set.
        error: Why the unit ended here.
    """

    index: Count
    operator: _Operator
    version: _Version
    inputs: _Ids
    outputs: _Ids
    error: ErrorCode | None = None


class StageLeaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of one stage.

    Attributes:
        index: Which stage, from 0.
        state: The ids of the values that nodes so far gave and that a later node reads,
            or that are outputs; in the order in which the nodes gave them. Which values
            those are follows from the graph (`shoal.compute.exact.stages`).
    """

    index: Count
    state: _State


_Leaf = TypeVar("_Leaf", OperatorLeaf, StageLeaf)


def leaf_bytes(leaf: OperatorLeaf | StageLeaf) -> bytes:
    """The one encoding of a leaf: msgpack, every field written, in order."""
    return msgspec.msgpack.encode(leaf)


def decode_operator_leaf(data: Buffer) -> OperatorLeaf:
    """Read an operator's leaf; only its canonical bytes are accepted.

    Raises:
        ProgramError: ``bad_leaf``.
    """
    leaf = _decoded(data, OperatorLeaf)
    if leaf.error is not None and leaf.outputs:
        raise _bad("it names an error and outputs")
    return leaf


def decode_stage_leaf(data: Buffer) -> StageLeaf:
    """Read a stage's leaf; only its canonical bytes are accepted.

    Raises:
        ProgramError: ``bad_leaf``.
    """
    return _decoded(data, StageLeaf)


def _decoded(data: Buffer, kind: type[_Leaf]) -> _Leaf:
    try:
        leaf = msgspec.msgpack.decode(data, type=kind, strict=True)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _bad(str(error)[:200]) from None
    if leaf_bytes(leaf) != bytes(data):
        raise _bad("it is not in its canonical encoding")
    return leaf


def _bad(why: str) -> ProgramError:
    return ProgramError(f"these bytes are no leaf of a trace: {why}", code="bad_leaf")
