"""A dispute about one receipt: from "your result differs" to the first step that differs.

The challenger has run the unit itself and holds its own leaves; the defender, who signed the
receipt, commits to a leaf for each stage of a long unit and for each operator, and opens
them on demand. Each side is a machine: it says what is to be asked, computed or answered,
and is told what came. Time is an argument. What is made of the end is
`shoal.compute.accusing`'s, and what is true `shoal.compute.judging`'s.

The rules, in one paragraph. A question is about one node of a Merkle tree whose digest is
known, the root at first; the answer is the up to 16 digests four levels below it, which
must hash up to that digest. The challenger goes on with the first that differs from its
own, down to a leaf: all before it are equal. First it searches the stages, if the receipt
commits to some; then the defender signs a root over the operators of the stage that
differs, or of the whole unit, and the challenger searches those; last it has the one leaf
opened. Where a whole trace equals the challenger's and the receipt does not, the trace
itself is evidence. Each question can be asked again, since its answer stays the same; an
answer to another question than the one that is open is dropped. A question that is not
answered by its deadline is asked again with twice the time, and after some tries the
defender has withheld. Digests that do not hash up, or a leaf that is not the one committed
to, are a false answer: the search ends, since nothing more can be believed. Whoever
withholds or answers falsely has gained nothing: the receipt itself can still be judged by
running the whole unit.

1,000 stages of 500 operators are 3 questions about stages, one for the root, 3 about
operators, one for the leaf.

Prior art: refereed delegation by bisection (Canetti, Riva, Rothblum 2011); TrueBit and Verde
bisect over steps of one machine; 16 ways at once trade 15 digests for 3 of 4 round trips.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, TypeAlias

import msgspec

from shoal.crypto.content import BlobId
from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import leaf_of
from shoal.crypto.peer_id import PeerId
from shoal.protocol.checking_messages import (
    LeafGiven,
    LeafWanted,
    NodesGiven,
    NodesWanted,
    TraceGiven,
    TraceWanted,
)
from shoal.protocol.errors import LocalProtocolError
from shoal.protocol.messages import Problem
from shoal.protocol.negotiation import Way
from shoal.protocol.statements import TraceRoot, open_trace_root
from shoal.protocol.verification.fraud_proof import Opening
from shoal.protocol.verification.search import Search

if TYPE_CHECKING:
    from collections.abc import Sequence

TRIES_LIMIT = 4
"""How often one question is asked before its silence counts as withholding."""

ANSWER_LIMIT_S = 10.0
"""The least time for an answer that is only looked up."""

TRACE_FACTOR = 4.0
TRACE_GRACE_S = 60.0
"""A trace is the unit run again with every value hashed, behind whatever runs now."""

NO_TRACE = "no_trace"
"""Code of the problem that a defender answers whose trace is gone: it restarted."""


class State(StrEnum):
    """Where a dispute stands; both roles pass through the same states."""

    IDLE = "idle"
    STAGES = "stages"
    ROOT = "root"
    OPERATORS = "operators"
    LEAF = "leaf"
    ENDED = "ended"


Question: TypeAlias = NodesWanted | TraceWanted | LeafWanted
Answer: TypeAlias = NodesGiven | TraceGiven | LeafGiven | Problem
Table: TypeAlias = dict[tuple[State, Way, type[Question | Answer]], State]

CHALLENGER: Table = {
    (State.IDLE, Way.SENT, NodesWanted): State.STAGES,
    (State.IDLE, Way.SENT, TraceWanted): State.ROOT,
    (State.STAGES, Way.SENT, NodesWanted): State.STAGES,
    (State.STAGES, Way.GOT, NodesGiven): State.STAGES,
    (State.STAGES, Way.GOT, Problem): State.ENDED,
    (State.STAGES, Way.SENT, TraceWanted): State.ROOT,
    (State.ROOT, Way.SENT, TraceWanted): State.ROOT,
    (State.ROOT, Way.GOT, TraceGiven): State.OPERATORS,
    (State.ROOT, Way.GOT, Problem): State.ENDED,
    (State.OPERATORS, Way.SENT, NodesWanted): State.OPERATORS,
    (State.OPERATORS, Way.GOT, NodesGiven): State.OPERATORS,
    (State.OPERATORS, Way.GOT, Problem): State.ENDED,
    (State.OPERATORS, Way.SENT, LeafWanted): State.LEAF,
    (State.OPERATORS, Way.SENT, TraceWanted): State.ROOT,
    (State.LEAF, Way.SENT, LeafWanted): State.LEAF,
    (State.LEAF, Way.SENT, TraceWanted): State.ROOT,
    (State.LEAF, Way.GOT, LeafGiven): State.ENDED,
    (State.LEAF, Way.GOT, Problem): State.ENDED,
}
"""A problem ends it, but for the one that the trace is gone: then the trace is asked for again,
and the search goes on where it was."""

DEFENDER: Table = {
    (State.IDLE, Way.GOT, NodesWanted): State.STAGES,
    (State.IDLE, Way.GOT, LeafWanted): State.STAGES,
    (State.IDLE, Way.GOT, TraceWanted): State.ROOT,
    (State.STAGES, Way.GOT, NodesWanted): State.STAGES,
    (State.STAGES, Way.GOT, LeafWanted): State.STAGES,
    (State.STAGES, Way.SENT, NodesGiven): State.STAGES,
    (State.STAGES, Way.SENT, LeafGiven): State.STAGES,
    (State.STAGES, Way.GOT, TraceWanted): State.ROOT,
    (State.ROOT, Way.GOT, TraceWanted): State.ROOT,
    (State.ROOT, Way.SENT, TraceGiven): State.OPERATORS,
    (State.ROOT, Way.GOT, NodesWanted): State.ROOT,
    (State.ROOT, Way.GOT, LeafWanted): State.ROOT,
    (State.ROOT, Way.SENT, NodesGiven): State.ROOT,
    (State.ROOT, Way.SENT, LeafGiven): State.ROOT,
    (State.OPERATORS, Way.GOT, TraceWanted): State.OPERATORS,
    (State.OPERATORS, Way.SENT, TraceGiven): State.OPERATORS,
    (State.OPERATORS, Way.GOT, NodesWanted): State.OPERATORS,
    (State.OPERATORS, Way.SENT, NodesGiven): State.OPERATORS,
    (State.OPERATORS, Way.GOT, LeafWanted): State.OPERATORS,
    (State.OPERATORS, Way.SENT, LeafGiven): State.OPERATORS,
}
"""A challenger that restarted asks again from the start, so a defender goes back and forth."""


# --- what is to be done -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ask:
    """Send this question; the answer goes to `Challenger.receive`."""

    question: Question


@dataclass(frozen=True, slots=True)
class Compute:
    """Make one's own operator leaves, of a stage or of all, for `Challenger.know`."""

    stage: int | None


class Ending(StrEnum):
    """How a dispute ended for the challenger."""

    LEAF = "leaf"  # the first leaf that differs is known, with its bytes
    TRACE = "trace"  # the whole trace equals one's own, and the receipt does not
    WITHHELD = "withheld"  # no answer by the deadlines, or a refusal
    FALSE_ANSWER = "false_answer"


@dataclass(frozen=True, slots=True)
class Finding:
    """The end: what is known, and what the defender did.

    Attributes:
        stage: The stage that differs, or None where the receipt has no stages, or where all
            of them are equal.
        first: The place of the first operator leaf that differs; None where none does.
        leaf: Its bytes, as the accused committed to them; or those of the stage's leaf,
            where all operators of the stage are equal.
        reason: What the defender did, for people; "" where it answered all.
    """

    ending: Ending
    stage: int | None = None
    first: int | None = None
    leaf: bytes | None = None
    reason: str = ""


Step: TypeAlias = Ask | Compute | Finding
_Fields: TypeAlias = tuple[Ending, int | None, int | None, bytes | None, str]


def _fields(finding: Finding) -> _Fields:
    return finding.ending, finding.stage, finding.first, finding.leaf, finding.reason


class _Saved(msgspec.Struct, frozen=True, array_like=True):
    """A challenger's state, written down."""

    state: State
    stage_node: tuple[int, int] | None
    stage_known: tuple[tuple[int, int, bytes], ...]
    root: bytes | None
    operator_node: tuple[int, int] | None
    operator_known: tuple[tuple[int, int, bytes], ...]
    own_operators: tuple[bytes, ...] | None
    finding: _Fields | None
    round_trips: int


@dataclass(slots=True)
class Challenger:
    """The challenger's machine.

    Args:
        receipt: Id of the disputed receipt.
        accused: Who signed it.
        trace: The root over stages that the receipt names, or None.
        stages: How many stages it says there are.
        unit_s: How long the unit ran, by the receipt and by this node, whichever is longer.
        own_stages: This node's own stage leaves, where the receipt has a trace.
    """

    receipt: BlobId
    accused: PeerId
    trace: bytes | None
    stages: int
    unit_s: float
    own_stages: tuple[bytes, ...] = ()
    state: State = State.IDLE
    root: bytes | None = None
    """The envelope of the accused's `TraceRoot`, once it is there."""
    round_trips: int = 0
    own_operators: tuple[bytes, ...] | None = None
    finding: Finding | None = None
    stage_search: Search | None = None
    operator_search: Search | None = None
    _signed: TraceRoot | None = None
    _gone: int = 0
    """How often the trace was gone."""
    _wants_again: bool = False
    _tries: int = 0
    _asked_at_s: float | None = None
    _slowest_s: float = 0.0

    def __post_init__(self) -> None:
        if self.trace is None:
            return
        if self.stages < 1:
            self._end(
                self._without(Ending.FALSE_ANSWER, "its receipt has a trace of no stages")
            )
            return
        self.stage_search = self._search(self.trace, self.stages, self.own_stages)
        if self.stage_search.same:
            self._end(Finding(Ending.TRACE))

    # --- what is next ---

    @property
    def stage(self) -> int | None:
        """The stage that differs, once it is found."""
        return self.stage_search.found if self.stage_search else None

    def next(self) -> Step:
        """What is to be done now; the same, until something of it has happened."""
        if self.finding is not None:
            return self.finding
        question = self._question()
        return question if isinstance(question, Compute) else Ask(question)

    def _question(self) -> Question | Compute:
        stages = self.stage_search
        if stages is not None and stages.found is None:
            level, index = stages.node
            return NodesWanted(receipt=self.receipt, stage=None, level=level, index=index)
        if self._signed is None or self._wants_again:
            return TraceWanted(receipt=self.receipt, stage=self.stage)
        if self.operator_search is None:
            return Compute(self.stage)
        operators = self.operator_search
        if operators.same:  # then the stage's own leaf is not what its operators give
            assert self.stage is not None
            return LeafWanted(receipt=self.receipt, stage=None, index=self.stage)
        if operators.found is None:
            level, index = operators.node
            return NodesWanted(receipt=self.receipt, stage=self.stage, level=level, index=index)
        return LeafWanted(receipt=self.receipt, stage=self.stage, index=operators.found)

    # --- what happened ---

    def send(self, question: Question, now_s: float) -> None:
        """Note that a question is about to be sent, for the first time or again.

        Raises:
            LocalProtocolError: It is not the one that is open.
        """
        if self.finding is not None or question != self._question():
            raise LocalProtocolError(
                f"{type(question).__name__} while another step is next", code="out_of_turn"
            )
        after = CHALLENGER.get((self.state, Way.SENT, type(question)))
        assert after is not None, (self.state, question)
        self.state = after
        self._asked_at_s = now_s
        self._tries += 1

    @property
    def next_deadline(self) -> float | None:
        """By when an answer has to be there; None while none is waited for.

        It grows with what the defender took before, and doubles with each try.
        """
        if self._asked_at_s is None:
            return None
        if self.state is State.ROOT:
            limit_s = TRACE_GRACE_S + TRACE_FACTOR * self.unit_s
        else:
            limit_s = max(ANSWER_LIMIT_S, 4.0 * self._slowest_s)
        return self._asked_at_s + limit_s * 2.0 ** max(0, self._tries - 1)

    def expire(self, now_s: float) -> None:
        """Note the time: a question whose deadline is over is open again, or the last try."""
        deadline = self.next_deadline
        if deadline is None or now_s < deadline:
            return
        self._asked_at_s = None
        if self._tries >= TRIES_LIMIT:
            self._end(self._without(Ending.WITHHELD, "it gave no answer in time"))

    def receive(self, question: Question, answer: Answer, now_s: float) -> None:
        """Take an answer to ``question``; one to another than the open question is dropped.

        Nothing that the accused can say raises: what is false ends the dispute.
        """
        if self.finding is not None or question != self._question():
            return
        after = CHALLENGER.get((self.state, Way.GOT, type(answer)))
        if after is None:
            self._end(
                self._without(
                    Ending.FALSE_ANSWER,
                    f"it answered {type(question).__name__} by {type(answer).__name__}",
                )
            )
            return
        if self._asked_at_s is not None and self.state is not State.ROOT:
            self._slowest_s = max(self._slowest_s, now_s - self._asked_at_s)
        self._asked_at_s, self._tries = None, 0
        self.round_trips += 1
        self.state = after
        try:
            self._take(answer)
        except VerificationError as error:
            self._end(self._without(Ending.FALSE_ANSWER, error.message))

    def know(self, leaves: Sequence[bytes]) -> None:
        """Take one's own operator leaves that `Compute` asked for."""
        if self._signed is None or self.operator_search is not None:
            return
        self.own_operators = tuple(leaves)
        self._search_operators()

    def abandon(self, reason: str) -> None:
        """End it without the defender's help: it is not reached, or too old to be asked."""
        if self.finding is None:
            self._end(self._without(Ending.WITHHELD, reason))

    def _take(self, answer: Answer) -> None:
        match answer:
            case NodesGiven(digests=digests):
                search = self.operator_search or self.stage_search
                assert search is not None
                search.take(digests)
            case TraceGiven(root=envelope):
                self._take_root(envelope, self._checked(envelope))
            case LeafGiven(leaf=leaf):
                self._take_leaf(leaf)
            case Problem(code=code) if (
                code == NO_TRACE and self._signed and self._gone < TRIES_LIMIT
            ):
                self._gone += 1
                self._wants_again, self.state = True, State.OPERATORS
            case Problem(message=message):
                self._end(self._without(Ending.WITHHELD, f"it refused: {message}"))

    def _take_root(self, envelope: bytes, root: TraceRoot) -> None:
        was = self._signed
        if was is not None and (root.root, root.leaves) != (was.root, was.leaves):
            raise VerificationError(
                "it committed to another trace than the first time", code="trace_mismatch"
            )
        self._signed, self._wants_again = root, False
        self.root = envelope
        if self.own_operators is not None and self.operator_search is None:
            self._search_operators()

    def _take_leaf(self, leaf: bytes) -> None:
        operators = self.operator_search
        assert operators is not None
        search = self.stage_search if operators.same else operators
        assert search is not None
        search.check(leaf)
        self._end(Finding(Ending.LEAF, self.stage, operators.found, leaf))

    def _checked(self, envelope: bytes) -> TraceRoot:
        root = open_trace_root(envelope)
        wanted: tuple[tuple[str, object, object], ...] = (
            ("receipt", root.receipt, self.receipt),
            ("provider", root.provider, self.accused),
            ("stage", root.stage, self.stage),
        )
        for name, got, want in wanted:
            if got != want:
                raise VerificationError(
                    f"the {name} of its trace is {got!r}, and {want!r} was asked for"[:600],
                    code="trace_mismatch",
                )
        return root

    def _search_operators(self) -> None:
        assert self._signed is not None
        assert self.own_operators is not None
        self.operator_search = self._search(
            self._signed.root, self._signed.leaves, self.own_operators
        )
        if self.operator_search.same and self.stage_search is None:
            self._end(Finding(Ending.TRACE))

    def _search(self, root: bytes, count: int, own: Sequence[bytes]) -> Search:
        return Search(root, count, [leaf_of(leaf) for leaf in own])

    def _without(self, ending: Ending, reason: str) -> Finding:
        return Finding(ending, self.stage, None, None, reason[:256])

    def _end(self, finding: Finding) -> None:
        self.finding, self.state, self._asked_at_s = finding, State.ENDED, None

    # --- evidence ---

    def open_operator(self, index: int, leaf: bytes | None = None) -> Opening:
        """An opening under the accused's root: of one's own leaf, where the two are equal."""
        assert self.operator_search is not None
        assert self.own_operators is not None
        leaf = self.own_operators[index] if leaf is None else leaf
        return Opening(index, leaf, self.operator_search.path_of(index))

    def open_stage(self, index: int, leaf: bytes | None = None) -> Opening:
        """The same under the root over stages."""
        assert self.stage_search is not None
        leaf = self.own_stages[index] if leaf is None else leaf
        return Opening(index, leaf, self.stage_search.path_of(index))

    # --- over a restart ---

    def encode(self) -> bytes:
        """All of it but what the constructor is given, to be written down."""
        stages, operators, finding = self.stage_search, self.operator_search, self.finding
        stage_node, stage_known = stages.state() if stages else (None, ())
        operator_node, operator_known = operators.state() if operators else (None, ())
        saved = _Saved(
            state=self.state,
            stage_node=stage_node,
            stage_known=stage_known,
            root=self.root,
            operator_node=operator_node,
            operator_known=operator_known,
            own_operators=self.own_operators,
            finding=_fields(finding) if finding is not None else None,
            round_trips=self.round_trips,
        )
        return msgspec.msgpack.encode(saved)

    def restore(self, saved: bytes) -> None:
        """Go on where a challenger that was made with the same arguments was.

        A question that was open is asked again.

        Raises:
            LocalProtocolError: ``bad_state``: these bytes are no state of a challenger.
        """
        try:
            was = msgspec.msgpack.decode(saved, type=_Saved)
            root = open_trace_root(was.root) if was.root is not None else None
        except (msgspec.MsgspecError, VerificationError) as error:
            raise LocalProtocolError(
                f"this is no state of a challenger: {error!s:.200}", code="bad_state"
            ) from None
        self.state, self.root, self._signed = was.state, was.root, root
        self.round_trips = was.round_trips
        self.own_operators = was.own_operators
        if self.stage_search is not None and was.stage_node is not None:
            self.stage_search.restore(was.stage_node, was.stage_known)
        if root is not None and was.own_operators is not None:
            self._search_operators()
            if self.operator_search is not None and was.operator_node is not None:
                self.operator_search.restore(was.operator_node, was.operator_known)
        self.finding = Finding(*was.finding) if was.finding else None
