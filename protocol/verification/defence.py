"""The defender's side of a dispute (`shoal.protocol.verification.dispute` has the rules).

It holds the trees that it committed to, and answers what is asked about them: any question
as often as it is asked, by the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shoal.crypto.content import BlobId
from shoal.crypto.merkle import leaf_of, levels_of, path_of
from shoal.crypto.peer_id import PeerId
from shoal.protocol.checking_messages import (
    LeafGiven,
    LeafWanted,
    NodesGiven,
    NodesWanted,
    TraceGiven,
    TraceWanted,
)
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.negotiation import Way
from shoal.protocol.verification.dispute import (
    DEFENDER,
    NO_TRACE,
    Answer,
    Question,
    State,
)
from shoal.protocol.verification.search import LEVELS_AT_ONCE

if TYPE_CHECKING:
    from collections.abc import Sequence

TRACES_LIMIT = 2
"""Traces that a defender makes about one receipt: an honest challenger needs one."""


@dataclass(frozen=True, slots=True)
class MakeTrace:
    """Run the unit again, whole or one stage, and give its operator leaves to `traced`."""

    stage: int | None


@dataclass(slots=True)
class _Tree:
    leaves: tuple[bytes, ...]
    levels: list[list[bytes]]
    root: bytes | None = None
    """The signed envelope, of a tree over operators."""


@dataclass(slots=True)
class Defender:
    """The defender's machine: about one receipt that its node signed.

    Args:
        receipt: Its id.
        requester: The only peer that may ask.
        stages: The stage leaves that the receipt commits to, or none.
    """

    receipt: BlobId
    requester: PeerId
    stages: tuple[bytes, ...] = ()
    state: State = State.IDLE
    _stage_tree: _Tree | None = None
    _traces: dict[int | None, _Tree] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stages:
            self._stage_tree = _tree(self.stages)

    def receive(self, peer: PeerId, question: Question) -> Answer | MakeTrace:
        """What to answer, or what to make first.

        Raises:
            RemoteProtocolError: Not its requester, about another receipt, out of turn, or
                about a place that there is not.
        """
        if peer != self.requester or question.receipt != self.receipt:
            raise RemoteProtocolError(
                "there is no such receipt of yours here", code="no_such_receipt"
            )
        after = DEFENDER.get((self.state, Way.GOT, type(question)))
        if after is None:
            raise RemoteProtocolError(
                f"{type(question).__name__} while the dispute is {self.state}",
                code="out_of_turn",
            )
        answer = self._answer(question)
        self.state = after
        if not isinstance(answer, MakeTrace):
            self.state = DEFENDER[after, Way.SENT, type(answer)]
        return answer

    def traced(self, stage: int | None, leaves: Sequence[bytes], root: bytes) -> TraceGiven:
        """Take the operator leaves that were made, and the signed root over them."""
        tree = _tree(leaves)
        tree.root = root
        self._traces[stage] = tree
        answer = TraceGiven(root=root)
        self.state = State.OPERATORS
        return answer

    def _answer(self, question: Question) -> Answer | MakeTrace:
        match question:
            case TraceWanted(stage=stage):
                return self._trace(stage)
            case NodesWanted(stage=stage, level=level, index=index):
                levels = self._tree(stage).levels
                if not 0 < level < len(levels) or index >= len(levels[level]):
                    raise _no_place(f"node {index} of level {level}")
                below = max(0, level - LEVELS_AT_ONCE)
                first = index << (level - below)
                digests = levels[below][first : first + (1 << (level - below))]
                return NodesGiven(digests=tuple(digests))
            case LeafWanted(stage=stage, index=index):
                tree = self._tree(stage)
                if index >= len(tree.leaves):
                    raise _no_place(f"leaf {index}")
                path = path_of(tree.levels[0], index)
                return LeafGiven(leaf=tree.leaves[index], path=path)

    def _trace(self, stage: int | None) -> TraceGiven | MakeTrace:
        if (stage is None) != (self._stage_tree is None) or (
            stage is not None and stage >= len(self.stages)
        ):
            raise _no_place(f"a trace of stage {stage}")
        held = self._traces.get(stage)
        if held is not None and held.root is not None:
            return TraceGiven(root=held.root)
        if len(self._traces) >= TRACES_LIMIT:
            raise RemoteProtocolError(
                f"{TRACES_LIMIT} traces of this unit were made already", code="too_many_traces"
            )
        return MakeTrace(stage)

    def _tree(self, stage: int | None) -> _Tree:
        tree = self._stage_tree if stage is None else None
        tree = tree or self._traces.get(stage)
        if tree is None:
            raise RemoteProtocolError(
                "the trace was not asked for yet, or is not kept any more", code=NO_TRACE
            )
        return tree


def _tree(leaves: Sequence[bytes]) -> _Tree:
    return _Tree(tuple(leaves), levels_of([leaf_of(leaf) for leaf in leaves]))


def _no_place(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"there is no {what}", code="no_such_place")
