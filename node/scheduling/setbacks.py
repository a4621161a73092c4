"""What a peer's refusal or failure means for a job: how long it is left alone, and why.

Pure. Refusals pass by themselves or do not; links come back; who says what is false gets
nothing more of the job.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shoal.crypto.errors import ShoalError, VerificationError
from shoal.node.answering import TOO_MANY_REQUESTS
from shoal.node.control import LEFT_ALONE_S
from shoal.node.errors import JobError
from shoal.node.scheduling.placement import SETBACKS_LIMIT
from shoal.node.standing import Offence
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.negotiation_messages import Reason, Refusal

COOL_DOWN_S = {
    Reason.BUSY: 2.0,
    Reason.EXPIRED: 0.5,
    Reason.DRAINING: 30.0,
    Reason.PAUSED: 5.0,
    Reason.NO_ROOM: 20.0,
    Reason.UNSETTLED: 1.0,
}
COOL_DOWN_REFUSED_S = 20.0
"""After a refusal for a reason that does not pass by itself."""

COOL_DOWN_BROKEN_S = 5.0
"""After a broken link, or words that broke the protocol."""

COOL_DOWN_TOO_MANY_S = LEFT_ALONE_S
"""After a peer said that it is asked too much: it is asked nothing before by anybody here."""

HANDED_BACK = frozenset(
    {Reason.BUSY, Reason.DRAINING, Reason.PAUSED, Reason.NO_ROOM, Reason.UNSETTLED}
)
"""Refusals of a unit under a lease that tell of the provider and nothing of the unit."""

OFFENCES = {
    "unfitting_answer": Offence.UNFITTING_ANSWER,
    "unknown_call": Offence.UNFITTING_ANSWER,
    "unknown_award": Offence.UNFITTING_ANSWER,
    "unknown_unit": Offence.UNFITTING_ANSWER,
}
"""Which words of a provider break the rules: not those that only came too late."""


@dataclass(frozen=True, slots=True)
class Setback:
    """One peer's refusal or failure, as a job takes it.

    Attributes:
        verdict: Its code, for ``job why``.
        wait_s: How long the peer is not asked; infinity for not any more in this job.
        count: What it adds to the setbacks in a row.
        offence: What it broke of the rules of the wire, if anything.
        broken: Whether a lease broke by it, which is worth a line in the log.
    """

    verdict: str
    detail: str
    wait_s: float
    count: int
    offence: Offence | None = None
    broken: bool = False


def setback_of(problem: Refusal | ShoalError) -> Setback:
    """How a job takes an answer that is no bid, no lease and no result."""
    match problem:
        case Refusal(reason=reason, detail=detail):
            wait_s = COOL_DOWN_S.get(reason, COOL_DOWN_REFUSED_S)
            if reason is Reason.PAUSED:  # for how long, nobody knows
                return Setback(reason.value, detail, wait_s, 1)
            passes = reason in COOL_DOWN_S
            return Setback(reason.value, detail, wait_s, 0 if passes else SETBACKS_LIMIT)
        case VerificationError(code=code, message=message):  # what it says is false
            newer = code == "bad_payload"  # a newer node's receipt, maybe
            offence = None if newer else Offence.BAD_RESULT
            return Setback(code, message, math.inf, SETBACKS_LIMIT, offence, broken=True)
        case JobError(code=code, message=message):  # a unit was refused under a lease
            reasons = {reason.value: reason for reason in Reason}
            wait_s = COOL_DOWN_BROKEN_S
            if code in reasons:
                wait_s = COOL_DOWN_S.get(reasons[code], wait_s)
            return Setback(code, message, wait_s, 1)
        case ShoalError(code=code, message=message):
            busy = code == TOO_MANY_REQUESTS
            wait_s = COOL_DOWN_TOO_MANY_S if busy else COOL_DOWN_BROKEN_S
            remote = isinstance(problem, RemoteProtocolError)
            offence = OFFENCES.get(code) if remote else None
            return Setback(code, message, wait_s, 1, offence, broken=True)
