"""How much of a job is checked: what its owner asks for, and how often that comes to.

`Verify` is what `--verify` says. Under ``auto`` each provider is checked as often as
makes honesty its best strategy, and no oftener: a cheater saves the cost of a unit and
loses, when caught, the reward and all the work that its standing would have brought.
Cheating pays nothing where

    p > C / (d · (1 − r) · (R + S))

C is the cost saved by cheating, R the reward of the unit, S what is lost when caught, d
how surely a check shows a false result, and r the part of the verifiers that collude with
the provider. `probability` is the greatest of this, 1 % and 1/n after n good results in a
row; it is 1 for newcomers, whose standing is worth nothing to lose.

Source: the argument of Proof of Sampling (Zhang et al. 2024), with standing as the stake.
"""

from __future__ import annotations

import math
from typing import Final, Literal, TypeAlias, get_args

import msgspec

from shoal.protocol.errors import LocalProtocolError

Level: TypeAlias = Literal["receipt", "quorum", "sample", "auto"]

QUORUM_MIN: Final = 2
QUORUM_LIMIT: Final = 7
"""Providers of one unit; each is paid in full, and seven that agree leave little to doubt."""

P_MIN: Final = 0.01
"""Whoever is never checked is free to cheat: one in a hundred always is."""

UNITS_AT_STAKE: Final = 25.0
"""What a peer in full standing loses when it is banned, in units of work: S = this · R. A key
is cheap: what it takes to be trusted again is some 8 results that are all checked, and about
as many again of which most are. So one in twenty is checked for good, and who turns false
delivers some twenty results before it is found, in the whole network
(tests/zoo/simulator.py)."""

_EXAMPLES = "receipt, quorum:2, sample:0.1 or auto"


class Verify(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the results of a job are checked.

    Attributes:
        level: ``receipt``: signatures and ids alone. ``quorum``: every unit runs at ``k``
            providers. ``sample``: of all units, ``p`` are run again. ``auto``: as often as
            each provider's standing asks for.
        k: Providers of a unit; counts under ``quorum``.
        p: From 0 to 1; counts under ``sample``.
    """

    level: Level = "auto"
    k: int = QUORUM_MIN
    p: float = 1.0

    def __post_init__(self) -> None:
        if not QUORUM_MIN <= self.k <= QUORUM_LIMIT:
            raise ValueError(f"a quorum has {QUORUM_MIN} to {QUORUM_LIMIT} providers")
        if not 0.0 < self.p <= 1.0:  # NaN is not
            raise ValueError("a sample is over 0 and at most 1")

    @classmethod
    def parse(cls, text: str) -> Verify:
        """Read what ``str`` gives: ``receipt``, ``quorum:K``, ``sample:P`` or ``auto``.

        Raises:
            LocalProtocolError: ``bad_verify``, naming what is wrong with it.
        """
        level, colon, number = text.strip().partition(":")
        try:
            match level:
                case "receipt" | "auto" if not colon:
                    return cls(level)
                case "quorum" if colon:
                    return cls(level, k=_whole(number))
                case "sample" if colon:
                    return cls(level, p=float(number))
        except ValueError as error:
            why = str(error)
        else:
            known = level in get_args(Level)
            needs = "needs a number" if level in {"quorum", "sample"} else "takes no number"
            why = f"{level} {needs}" if known else f"there is no level {level[:40]!r}"
        raise LocalProtocolError(
            f"{text[:60]!r} says no way to verify: {why}",
            code="bad_verify",
            hint=f"for example {_EXAMPLES}",
        )

    def __str__(self) -> str:
        match self.level:
            case "quorum":
                return f"quorum:{self.k}"
            case "sample":
                return f"sample:{self.p!r}".removesuffix(".0")
        return self.level


def check_proofs(proofs: str, numeric_class: str, verify: Verify) -> None:
    """See that ``--proofs`` says who gets proofs, and that there can be some.

    Args:
        proofs: ``public``: everybody. ``private``: nobody but this node.
        numeric_class: Of the job.
        verify: How its results are checked.

    Raises:
        LocalProtocolError: ``bad_proofs``, naming what does not fit.
    """
    if proofs not in {"public", "private"}:
        why, hint = f"{proofs[:40]!r} says nobody who gets proofs", "public or private"
    elif proofs == "private" and numeric_class != "exact":
        why = f"there are no proofs in the class {numeric_class}, so that none is private"
        hint = "leave it out, or choose the class exact"
    elif proofs == "private" and verify.level == "receipt":
        why = "nothing is proved of results that nobody checks, so that no proof is private"
        hint = "leave it out, or have results checked: verify auto, sample:P or quorum:K"
    else:
        return
    raise LocalProtocolError(why, code="bad_proofs", hint=hint)


def _whole(number: str) -> int:
    if not (number.isascii() and number.isdecimal() and len(number) <= len("1000")):
        raise ValueError(f"{number[:20]!r} is no number of providers")
    return int(number)


def probability(
    *,
    good_in_a_row: int,
    newcomer: bool,
    standing: float,
    cost: float,
    reward: float,
    colluding: float,
    detection: float = 1.0,
) -> float:
    """How often to check a provider's results, from `P_MIN` to 1.

    Args:
        good_in_a_row: Results of its that were checked and good, since the last bad one.
        newcomer: Whether it has no standing yet.
        standing: From 0 to 1.
        cost: What it saves by not running a unit, in credits.
        reward: What it gets for one, in credits.
        colluding: Which part of the candidates is assumed to be with it, from 0 to 1.
        detection: How surely a check shows a false result: 1 in ``exact``.
    """
    if newcomer or good_in_a_row <= 0:
        return 1.0
    at_stake = reward * (1.0 + UNITS_AT_STAKE * max(0.0, standing))
    caught = detection * (1.0 - colluding) * at_stake
    deterring = cost / caught if caught > 0.0 else math.inf
    return min(1.0, max(P_MIN, deterring, 1.0 / good_in_a_row))
