"""Whether a result is checked, by whom, and what a set of opinions comes to: all pure.

A *check* is an ordinary unit: a verifier gets program and inputs under an award like any
other, does not know that it is a check, and its signed receipt is its *opinion*. The
provider's result is the first opinion. What a re-run (one more opinion) and a quorum (K in
all) come to is one machine, `UnitCheck`; its transitions are the table below, and a pair
that is not in it raises.

In the class ``exact`` two opinions that differ cannot both be honest: this node runs the
unit by itself, and whoever differs from that is *false*, with a receipt to show for it. In
the other classes results are compared within a tolerance (`compute.tolerance`), more
opinions are asked, and a majority is right: that lowers standing and proves nothing.

Nobody is waited for: who is slow, refuses or vanishes is *silent*, and the next of the draw
is asked; when the draw is used up, this node runs the unit. What is done about it is
`node.checking`'s.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, TypeAlias

from shoal.crypto.peer_id import PeerId
from shoal.node.records import CheckLevel, CheckVerdict
from shoal.protocol.errors import LocalProtocolError
from shoal.protocol.statements import Receipt, UnitError
from shoal.protocol.verification.draw import is_drawn
from shoal.protocol.verification.policy import Verify

FOUND_FALSE: Final = "found_false"
"""What ``job why`` says of a peer whose result was false."""

VOTES_LEAST: Final = 3
"""Opinions that a vote takes: of two that differ nobody knows which one is right."""

OF_THE_PROGRAM: Final = frozenset(
    {
        "infinity",
        "k_limit",
        "nan",
        "out_of_range",
        "shape_mismatch",
        "too_large",
        "unsupported_operator",
        "wrong_dtype",
    }
)
"""The errors of the class ``exact``: every honest node says the same, where a limit or a
worker that died is of one node and one attempt."""


@dataclass(frozen=True, slots=True)
class Draw:
    """What verifiers of one lease's receipts are drawn by; kept secret until it is over.

    Attributes:
        salt: 32 random bytes, whose hash is in the award.
        candidates: Whose list's id is in the award.
    """

    salt: bytes
    candidates: tuple[PeerId, ...]


def wanted(
    verify: Verify, signature: bytes, salt: bytes, p: float, *, doubted: bool = False
) -> int:
    """How many opinions beside the provider's own a receipt is to have.

    Args:
        verify: The job's policy.
        signature: Of the receipt.
        salt: Of its lease.
        p: With which probability ``auto`` checks a result of its provider.
        doubted: Whether a peer that was false had the unit before. Its friends know by the
            inputs what it said, and may say it again: whoever runs it is checked.
    """
    match verify.level:
        case "receipt":
            return 0
        case "quorum":
            return verify.k - 1
        case "sample":
            return int(doubted or is_drawn(signature, salt, verify.p))
        case _:
            return int(doubted or is_drawn(signature, salt, p))


AUDITED: Final = 1 / 16
"""Of the results that are checked, the share that this node runs too, though a verifier
agrees: a ring of which all that are drawn are members is found out by nothing else."""

AUDITED_OF_FEW: Final = 1 / 2
"""The same of what newcomers give where few may verify: those few may be one ring, which would
vouch for all that are with it, and of eight results one is run here all but surely."""

AUDITED_WHILE: Final = 4
"""Only while so few results wait for this node: where it checks all there is, as in a cold
start, nobody else has to be checked, and the job must not wait for it."""


def audited(
    verify: Verify,
    signature: bytes,
    salt: bytes,
    p: float,
    *,
    few: bool = False,
    doubted: bool = False,
) -> bool:
    """Whether a result that is checked is one of those that this node runs as well.

    Only under ``auto``: who names a sample or a quorum gets what was named. What is doubted,
    as in `wanted`, always is.

    Args:
        verify: The job's policy.
        signature: Of the receipt.
        salt: Of its lease.
        p: With which probability it is checked.
        doubted: As in `wanted`.
        few: Whether it is a newcomer's, and hardly anybody may verify.
    """
    share = AUDITED_OF_FEW if few else AUDITED
    return verify.level == "auto" and (doubted or is_drawn(signature, salt, p * share))


class Said(NamedTuple):
    """What a receipt says came of a unit, without who says it: equal means the same bits."""

    outputs: tuple[tuple[str, str], ...] | None
    error: tuple[str, str, str] | None


def said_by(receipt: Receipt) -> Said:
    """What a receipt says; an error counts by its code and its place."""
    error = receipt.error
    place = None if error is None else (error.code, error.node, error.operator)
    return Said(receipt.outputs, place)


class Stage(StrEnum):
    """Where a check stands; the last three are final."""

    WAITING = "waiting"
    ASKED = "asked"
    DIFFERS = "differs"
    AGREED = "agreed"
    JUDGED = "judged"
    UNCHECKED = "unchecked"

    @property
    def final(self) -> bool:
        """Whether it is known what is to be delivered."""
        return self in {Stage.AGREED, Stage.JUDGED, Stage.UNCHECKED}


class Event(StrEnum):
    """What happens to a check."""

    ASKS = "asks"
    """Somebody is given the unit."""
    SAME = "same"
    """An opinion came that agrees with all before it."""
    OTHER = "other"
    """One came that differs from the provider's, or from another."""
    SILENT = "silent"
    """Somebody who was asked gave no opinion."""
    GIVEN_UP = "given_up"
    """Nobody can be found who gives one."""


_OPEN: Final = frozenset({Stage.WAITING, Stage.ASKED, Stage.AGREED, Stage.JUDGED})
_SPLIT: Final = frozenset({Stage.DIFFERS, Stage.JUDGED})

TRANSITIONS: Final[dict[tuple[Stage, Event], frozenset[Stage]]] = {
    (Stage.WAITING, Event.ASKS): frozenset({Stage.ASKED}),
    (Stage.WAITING, Event.GIVEN_UP): frozenset({Stage.UNCHECKED}),
    (Stage.ASKED, Event.ASKS): frozenset({Stage.ASKED}),
    (Stage.ASKED, Event.SAME): _OPEN,
    (Stage.ASKED, Event.OTHER): _SPLIT,
    (Stage.ASKED, Event.SILENT): frozenset({Stage.WAITING, Stage.ASKED, Stage.AGREED}),
    (Stage.DIFFERS, Event.ASKS): frozenset({Stage.DIFFERS}),
    (Stage.DIFFERS, Event.SAME): _SPLIT,
    (Stage.DIFFERS, Event.OTHER): _SPLIT,
    (Stage.DIFFERS, Event.SILENT): _SPLIT,
    (Stage.DIFFERS, Event.GIVEN_UP): frozenset({Stage.UNCHECKED}),
    **{
        (stage, event): frozenset({stage})  # what comes late changes nothing any more
        for stage in (Stage.AGREED, Stage.JUDGED, Stage.UNCHECKED)
        for event in (Event.SAME, Event.OTHER, Event.SILENT)
    },
}
"""Which stages an event may lead to; which of them it does, the opinions say."""

Key: TypeAlias = object
"""Opinions with equal keys agree."""


@dataclass(slots=True)
class UnitCheck:
    """The check of one result.

    Attributes:
        provider: Whose result it is.
        own: This node: it is asked last, and in ``exact`` its word decides.
        order: The draw: who is asked, one after another.
        more: How many opinions are wanted beside the provider's.
        exact: Whether equal bits are the measure, and not a vote.
        audit: Whether this node runs the unit too where others agree.
        quorum: Whether the job asked for so many opinions, and nobody was drawn.
        opinions: What each said, as it came, the provider first.
        out: Who has been asked and has not answered.
        silent: Who was asked, and gave no opinion.
    """

    provider: PeerId
    own: PeerId
    order: tuple[PeerId, ...]
    more: int
    exact: bool
    key: Key
    audit: bool = False
    quorum: bool = False
    stage: Stage = Stage.WAITING
    opinions: dict[PeerId, Key] = field(init=False)
    out: set[PeerId] = field(default_factory=set)
    silent: dict[PeerId, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.opinions = {self.provider: self.key}

    # --- whom to ask ---

    def next(self, usable: Callable[[PeerId], bool]) -> tuple[PeerId, ...]:
        """Whom to ask now: nobody where enough are out, or where it is decided.

        Args:
            usable: Whether a peer of the draw may be asked at this moment.
        """
        count = self._missing()
        chosen: list[PeerId] = []
        if count and not self._own_decides() and not self._audits():
            for peer in self.order:
                if len(chosen) == count:
                    break
                if not self._had(peer) and usable(peer):
                    chosen.append(peer)
        if len(chosen) < count and not self._had(self.own):
            chosen.append(self.own)
        return tuple(chosen)

    def _missing(self) -> int:
        if self.stage.final:
            return 0
        if self._own_decides() or self._audits():
            return 1 if self.own not in self.out else 0
        have = len(self.opinions) + len(self.out)
        if self.own in self.out and self.stage is Stage.DIFFERS:
            return 0
        return max(0, self._votes() - have)

    def _votes(self) -> int:
        """How many opinions are wanted in all, as things stand."""
        if self.stage is not Stage.DIFFERS:
            return self.more + 1
        votes = max(VOTES_LEAST, self.more + 1)
        if len(self.opinions) >= votes:  # a tie: one more has to break it
            return len(self.opinions) + 1
        return votes

    def _own_decides(self) -> bool:
        """Whether what is left to do is to run the unit here."""
        return self.exact and self.stage is Stage.DIFFERS and self.own not in self.silent

    def _audits(self) -> bool:
        """Whether others agree, and what is left to do is to see whether they are right."""
        return (
            self.audit
            and self.stage is not Stage.DIFFERS
            and len(self.opinions) > self.more
            and self.own not in self.opinions
            and self.own not in self.silent
        )

    def _had(self, peer: PeerId) -> bool:
        return peer in self.opinions or peer in self.out or peer in self.silent

    # --- what happens ---

    def asks(self, peer: PeerId) -> None:
        """``peer`` is given the unit."""
        self.out.add(peer)
        self._go(Event.ASKS, self.stage if self.stage is Stage.DIFFERS else Stage.ASKED)

    def answers(self, peer: PeerId, key: Key) -> None:
        """``peer``, which was asked, gave its opinion."""
        self.out.discard(peer)
        self.opinions.setdefault(peer, key)
        split = len(set(self.opinions.values())) > 1
        self._go(Event.OTHER if split else Event.SAME, self._judged())

    def says_nothing(self, peer: PeerId) -> None:
        """``peer``, which was asked, refused, is gone, or took too long."""
        if peer in self.opinions:
            return
        self.out.discard(peer)
        self.silent[peer] = None
        self._go(Event.SILENT, self._judged())

    def try_again(self) -> None:
        """Those who gave no opinion may be asked once more."""
        self.silent.clear()

    def give_up(self) -> None:
        """Nobody can be found who would run the unit."""
        self._go(Event.GIVEN_UP, Stage.UNCHECKED)

    def _go(self, event: Event, to: Stage) -> None:
        if to not in TRANSITIONS.get((self.stage, event), ()):
            raise LocalProtocolError(
                f"a check that is {self.stage} cannot become {to} by {event}",
                code="out_of_turn",
            )
        self.stage = to

    def _judged(self) -> Stage:
        """The stage that the opinions come to."""
        if self.stage.final:
            return self.stage
        split = len(set(self.opinions.values())) > 1
        enough = len(self.opinions) > self.more
        if self.own in self.opinions:
            return Stage.JUDGED if split else Stage.AGREED
        if not split:
            if enough and not self._audits():
                return Stage.AGREED
            return Stage.ASKED if self.out else Stage.WAITING
        if not self._votable():
            return Stage.DIFFERS
        votes = max(VOTES_LEAST, self.more + 1, len(self.opinions))
        (_, most) = Counter(self.opinions.values()).most_common(1)[0]
        return Stage.JUDGED if 2 * most > votes else Stage.DIFFERS

    def _votable(self) -> bool:
        """Whether a majority may decide: in ``exact`` only where this node cannot."""
        return not self.exact or self.own in self.silent

    # --- what it comes to ---

    @property
    def right(self) -> PeerId:
        """Whose result is to be delivered; of several that agree, the provider's first."""
        key = self._right_key()
        return next(peer for peer, said in self.opinions.items() if said == key)

    @property
    def false(self) -> tuple[PeerId, ...]:
        """Whose opinion is not the right one; nobody's before it is judged."""
        if self.stage is not Stage.JUDGED:
            return ()
        key = self._right_key()
        return tuple(peer for peer, said in self.opinions.items() if said != key)

    @property
    def verdicts(self) -> tuple[tuple[PeerId, CheckLevel, CheckVerdict], ...]:
        """What each verifier says of the result that is delivered."""
        level: CheckLevel = "quorum" if self.quorum else "re-run"
        right, key = self.right, self._right_key()
        found: list[tuple[PeerId, CheckLevel, CheckVerdict]] = []
        for peer, said in self.opinions.items():
            if peer != right:
                found.append(
                    (
                        peer,
                        "own" if peer == self.own else level,
                        "agrees" if said == key else "differs",
                    )
                )
        silent = (peer for peer in self.silent if peer != self.own)
        return (*found, *((peer, level, "no_answer") for peer in silent))

    def _right_key(self) -> Key:
        if self.stage is not Stage.JUDGED:
            return self.opinions[self.provider]
        if self.own in self.opinions:
            return self.opinions[self.own]
        return Counter(self.opinions.values()).most_common(1)[0][0]


def of_the_program(error: UnitError, codes: Iterable[str] = OF_THE_PROGRAM) -> bool:
    """Whether an error is a result like any other: every honest node would say the same."""
    return error.code in codes
