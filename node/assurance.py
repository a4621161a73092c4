"""What the checks of a unit rule out and what they do not, in words: for `shoal job show`.

Pure. It says who ran a unit, who checked it, how, and how far that carries; what a check is
made of is `node.checking`'s. Nothing here is stronger than what was done: a unit of which a
receipt alone is held is said to be that, and the classes whose results are compared by a
tolerance are called weaker wherever they are told of.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from shoal.crypto.peer_id import PeerId
from shoal.node.records import Check, Job, Unit, UnitState
from shoal.node.wording import count, names, spans
from shoal.protocol.verification.policy import Verify


class Ground(StrEnum):
    """What the result of a unit rests on, the strongest first."""

    OWN = "own"
    """This node ran it: first, or again as a check."""
    QUORUM = "quorum"
    """Several ran it, as was asked, and gave the same."""
    RE_RUN = "re-run"
    """Somebody who was drawn ran it again and gave the same."""
    RECEIPT = "receipt"
    """Its receipt was checked, and nobody ran it again."""
    NOTHING = "nothing"
    """It has no result."""


class Assurance(msgspec.Struct, frozen=True):
    """How far one unit's result can be relied on, in sentences without a full stop.

    Attributes:
        ran: Who ran it.
        checked: Who checked it, and how.
        rules_out: What that rules out; "" where there is no result.
        leaves: What it does not rule out; "" likewise.
        verifiers: Those whose own run came to the same.
        differed: Those whose own run came to something else.
        weaker: Whether results are compared by a tolerance, and not bit by bit.
        run_again_here: Of a peer's unit: this node ran it again and came to the same.
    """

    unit: int
    ground: Ground
    ran: str
    checked: str
    rules_out: str
    leaves: str
    verifiers: tuple[PeerId, ...] = ()
    differed: tuple[PeerId, ...] = ()
    weaker: bool = False
    run_again_here: bool = False


def assure(job: Job, unit: Unit, checks: Sequence[Check], own: PeerId) -> Assurance:
    """Say of one unit how far its result can be relied on.

    Args:
        job: The job.
        unit: The unit, as it stands.
        checks: Those of this unit, in any order.
        own: This node.
    """
    weaker = job.numeric_class != "exact"
    if unit.state is not UnitState.DONE or unit.provider is None:
        return Assurance(
            unit=unit.index,
            ground=Ground.NOTHING,
            ran=_not_done(unit, own),
            checked="there is no result to check",
            rules_out="",
            leaves="",
            weaker=weaker,
        )
    agreed = _of(checks, "agrees")
    ran = (unit.provider, *agreed)
    ground = _ground(unit, [check for check in checks if check.verdict == "agrees"], own)
    differed = _of(checks, "differs")
    return Assurance(
        unit=unit.index,
        ground=ground,
        ran=f"{names([unit.provider], own)} ran it",
        checked="; ".join(
            [
                _checked(ground, unit, checks, agreed, differed, own, weaker=weaker),
                *_in_place_of_a_quorum(quorum_of(job), ran, own),
            ]
        ),
        rules_out=_RULES_OUT[ground, weaker],
        leaves=_leaves(ground, ran, own, weaker=weaker),
        verifiers=agreed,
        differed=differed,
        weaker=weaker,
        run_again_here=unit.provider != own and own in agreed,
    )


class JobAssurance(msgspec.Struct, frozen=True):
    """The same of all units of a job, counted.

    Attributes:
        units: How many rest on which ground; those of none are left out.
        differed: Of how many somebody gave another result than the one that was used.
        weaker: As in `Assurance`.
        doubted: The units that are done and for whose results nobody stands but peers that
            were convicted, the first `DOUBTED_LIMIT` of them.
        doubted_units: How many there are of those.
        quorum: How many nodes were to run each unit; 0 where no quorum was asked for.
        below_quorum: How many units fewer nodes ran, since this node did and is trusted.
    """

    units: dict[Ground, int]
    differed: int = 0
    weaker: bool = False
    doubted: tuple[int, ...] = ()
    doubted_units: int = 0
    quorum: int = 0
    below_quorum: int = 0

    @property
    def summary(self) -> list[str]:
        """A sentence for each ground, the strongest first."""
        sentences = []
        for ground in Ground:
            if not (number := self.units.get(ground, 0)):
                continue
            told = f"{count(number, 'unit')} {_SUMMED[ground]}"
            if ruled_out := _RULES_OUT[ground, self.weaker]:
                told += f", which rules out {ruled_out}"
            sentences.append(told)
        if self.below_quorum:
            sentences.append(self.own_runs)
        if self.differed:
            sentences.append(
                f"of {count(self.differed, 'unit')} somebody gave another result, "
                "which was not used"
            )
        if self.doubted:
            more = self.doubted_units - len(self.doubted)
            which = spans(self.doubted) + (f" and {more} more" if more else "")
            sentences.append(
                f"{count(self.doubted_units, 'result')} rest on peers that were convicted "
                f"later and on nobody else: unit{'s' if self.doubted_units > 1 else ''} {which}"
            )
        if self.weaker and self.units.keys() - {Ground.NOTHING}:
            sentences.append(WEAKER)
        return sentences

    @property
    def own_runs(self) -> str:
        """A sentence on the units that this node ran in place of a quorum; "" for none."""
        if not self.below_quorum:
            return ""
        one = self.below_quorum == 1
        return (
            f"{count(self.below_quorum, 'unit')} {'was' if one else 'were'} run by fewer than "
            f"the {self.quorum} nodes that quorum:{self.quorum} asks for: this node ran "
            f"{'it' if one else 'them'} itself, and its own run decides"
        )


DOUBTED_LIMIT = 1000
"""Units that are named one by one: as many as one answer tells of."""

WEAKER = (
    "weaker than exact: honest results of this class differ in their last digits, so that a "
    "check compares within a tolerance, a falsehood within it passes, and none can be proved"
)

_SUMMED = {
    Ground.OWN: "run or run again by this node",
    Ground.QUORUM: "run by several, who gave the same",
    Ground.RE_RUN: "run again by a drawn verifier, who gave the same",
    Ground.RECEIPT: "with a receipt, and not run again",
    Ground.NOTHING: "without a result",
}

_RULES_OUT = {
    (Ground.OWN, False): "every wrong result, as far as this machine is right",
    (Ground.OWN, True): "a result that is off by more than the tolerance",
    (Ground.QUORUM, False): "a lie of any one of them: not a bit differs between them",
    (Ground.QUORUM, True): "a lie of any one of them that is beyond the tolerance",
    (Ground.RE_RUN, False): "a lie of its provider alone: not a bit differs",
    (Ground.RE_RUN, True): "a lie of its provider alone that is beyond the tolerance",
    (Ground.RECEIPT, False): (
        "a result of other inputs, another program or another node than its receipt names"
    ),
    (Ground.RECEIPT, True): (
        "a result of other inputs, another program or another node than its receipt names"
    ),
    (Ground.NOTHING, False): "",
    (Ground.NOTHING, True): "",
}


def _ground(unit: Unit, good: Sequence[Check], own: PeerId) -> Ground:
    if unit.provider == own or any(check.verifier == own for check in good):
        return Ground.OWN
    if any(check.level == "quorum" for check in good):
        return Ground.QUORUM
    return Ground.RE_RUN if good else Ground.RECEIPT


def quorum_of(job: Job) -> int:
    """How many nodes are to run each unit of a job; 0 where no quorum was asked for."""
    verify = Verify.parse(job.verify)
    return verify.k if verify.level == "quorum" else 0


def _in_place_of_a_quorum(quorum: int, ran: Sequence[PeerId], own: PeerId) -> list[str]:
    if own not in ran or len(ran) >= quorum:
        return []
    return [f"its own run stands in place of the {quorum} nodes that quorum:{quorum} asks for"]


def _of(checks: Sequence[Check], verdict: str) -> tuple[PeerId, ...]:
    return tuple(dict.fromkeys(check.verifier for check in checks if check.verdict == verdict))


def _not_done(unit: Unit, own: PeerId) -> str:
    who = names([unit.provider], own) if unit.provider is not None else "nobody"
    match unit.state:
        case UnitState.LEASED:
            return f"{who} runs it"
        case UnitState.FAILED:
            return f"{who} ran it, and it failed"
        case UnitState.CANCELLED:
            return "it was cancelled"
    return "nobody has run it yet"


def _checked(  # every part of one sentence
    ground: Ground,
    unit: Unit,
    checks: Sequence[Check],
    agreed: tuple[PeerId, ...],
    differed: tuple[PeerId, ...],
    own: PeerId,
    *,
    weaker: bool,
) -> str:
    same = "the same within the tolerance" if weaker else "the same bits"
    said = []
    drawn = [peer for peer in agreed if peer != own]
    if drawn:
        how = "as one of a quorum" if ground is Ground.QUORUM else "drawn by lot"
        said.append(
            f"{names(drawn, own)} ran it too, {how} and without knowing what it was compared "
            f"with, and gave {same}"
        )
    if own in agreed:
        said.append(f"this node ran it again and got {same}")
    if differed:
        said.append(f"{names(differed, own)} gave another result, which was not used")
    silent = [p for p in _of(checks, "no_answer") if p not in (*agreed, *differed)]
    if silent:
        said.append(f"{names(silent, own)} was to check it and gave no answer")
    if agreed:
        return "; ".join(said)
    if unit.provider == own:
        return "; ".join([*said, "what this node runs itself needs no check"])
    return "; ".join([*said, "its receipt was checked: signature, award, program and inputs"])


def _leaves(ground: Ground, ran: Sequence[PeerId], own: PeerId, *, weaker: bool) -> str:
    beyond = f"; {WEAKER}" if weaker else ""
    match ground:
        case Ground.OWN:
            return f"that this machine itself is wrong{beyond}"
        case Ground.QUORUM | Ground.RE_RUN:
            return f"that {names(ran, own)} are in league and lied alike{beyond}"
    if weaker:
        return f"that its provider gave a wrong result{beyond}"
    return (
        "that its provider gave a wrong result; it has signed it, and whoever runs the unit "
        "again can prove the lie"
    )
