"""How much a peer may ask of this node: what a request costs, and who has how much left.

Pure, with time as an argument. Everything is counted in milliseconds of the daemon's
one thread, since that is what requests use up. A request is paid for after it was
answered, by what it turned out to cost; a peer that is in debt is not read from until
it is out of it, so that a flood waits in the flooder's own memory. That alone keeps
this node well, and is all that a busy peer ever meets. One that stays in debt for
`PATIENCE_S` is told so, by the problem ``too_many_requests``; one that asks on and on
all the same, as no node of ours does, commits an offence (`node.standing`).

Units are nearly free: a lease bounds how many are out, a bid's price pays for them,
and a stream of them from an honest requester must run as fast as it can. So what a
unit costs is seen by its answer: the one without a lease finds nothing, and pays for
what it made this node look for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from shoal.protocol.challenge_messages import Challenge, Draw, ProofOffer
from shoal.protocol.channel_messages import ChannelWanted
from shoal.protocol.checking_messages import Acknowledge
from shoal.protocol.messages import Adverts, Digest, Done, Problem, RequestBody, ResponseBody
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Call,
    Cancel,
    Refusal,
    Release,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
)

MS_PER_S: Final = 250.0
"""What one peer may use of this node's thread: a quarter of it."""

BURST_MS: Final = 2500.0
"""At once, after a while of silence: the calls of a few hundred jobs."""

STRANGERS_MS_PER_S: Final = 500.0
STRANGERS_BURST_MS: Final = 5000.0
"""The same for all peers together that are not on the allow list: whatever number of
keys somebody makes, half of the thread is left for the owner and the owner's friends."""

PATIENCE_S: Final = 10.0
"""In debt, or only just out of it, for so long: it is told that it asks too much."""

REFUSALS_BURST: Final = 1000.0
REFUSALS_PER_S: Final = 20.0
"""How often a peer may be told so before that is an offence. A node of ours leaves a peer
alone for half a minute then (`node.control`); what it had under way, 256 requests, is less."""

FRAME_MS: Final = 1.0
"""A message in and one out, through libp2p."""

STREAM_MS: Final = 5.0
"""A stream that is opened: libp2p agrees on its protocol, and the two ends greet."""

MS_PER_KIB: Final = 0.05
"""Encryption and msgpack, either way."""

ADVERT_MS: Final = 0.15
"""Its signature."""

UNIT_MS: Final = 0.25
"""Of a unit that ran: less than it costs, so that it is the lease that bounds units."""

BATCHED_MS: Final = 0.02
"""The same of each unit that came with others in one message."""

NOTHING_MS: Final = 4.0
"""For what is refused or fails: honest peers seldom ask for what they do not get."""

_KIND_MS: Final[Mapping[type, float]] = {
    Digest: 1.0,  # beside its bytes: the table is gone through
    Call: 0.5,
    AwardOffer: 1.0,  # a signature
    Challenge: 4.0,
    Draw: 3.0,  # Merkle paths
    ProofOffer: 1.0,  # a signature
    ChannelWanted: 3.0,  # the TLS handshake that it leads to
}


def cost_ms(
    body: RequestBody | None, request_bytes: int, answer: ResponseBody, answer_bytes: int
) -> float:
    """What a request has cost, with its answer; None is one that was not understood."""
    if isinstance(body, UnitRequest) and isinstance(answer, UnitResult):
        return UNIT_MS
    if isinstance(body, UnitsRequest) and isinstance(answer, UnitsResult):
        ran = sum(isinstance(unit, UnitResult) for unit in answer.answers)
        refused = len(answer.answers) - ran
        return UNIT_MS + BATCHED_MS * ran + NOTHING_MS * (not ran) + UNIT_MS * refused
    if isinstance(body, Acknowledge) and isinstance(answer, Done):
        return UNIT_MS  # it settles receipts, of which there are no more than units
    cost = FRAME_MS + (request_bytes + answer_bytes) / 1024 * MS_PER_KIB
    cost += _KIND_MS.get(type(body), 0.0)
    if isinstance(body, Adverts):
        cost += ADVERT_MS * len(body.adverts)
    if isinstance(answer, Refusal | Problem):
        cost += NOTHING_MS
    return cost


def is_refusable(body: RequestBody) -> bool:
    """Whether a peer that asks too much may be refused this without looking at it.

    What belongs to a lease is held back and no more: a unit refused would break a
    lease that both sides need, for the sake of whatever else the peer asks.
    """
    return not isinstance(body, UnitRequest | UnitsRequest | Acknowledge | Cancel | Release)


@dataclass(slots=True)
class Bucket:
    """A token bucket that may be overdrawn: pay first, then wait until it is not.

    Attributes:
        per_s: What comes in.
        burst: What it holds.
    """

    per_s: float
    burst: float
    left: float = math.inf
    at_s: float = 0.0

    def pay(self, amount: float, now_s: float) -> None:
        """Take ``amount`` out, whether it is there or not."""
        self.left = self.holds(now_s) - amount
        self.at_s = now_s

    def holds(self, now_s: float) -> float:
        """What is in it; below 0 is a debt."""
        return min(self.burst, self.left + max(0.0, now_s - self.at_s) * self.per_s)

    def wait_s(self, now_s: float) -> float:
        """How long until it is not overdrawn."""
        return max(0.0, -self.holds(now_s) / self.per_s)


@dataclass(slots=True)
class Allowance:
    """What one peer may ask, over all its streams."""

    bucket: Bucket = field(default_factory=lambda: Bucket(MS_PER_S, BURST_MS))
    refusals: Bucket = field(default_factory=lambda: Bucket(REFUSALS_PER_S, REFUSALS_BURST))
    pressed_since_s: float = math.inf
    """Since when it is in debt, or was and has not got half of its burst back."""

    def pay(self, amount_ms: float, now_s: float) -> None:
        """Pay for a request."""
        self.bucket.pay(amount_ms, now_s)
        if self.bucket.left < 0.0:
            self.pressed_since_s = min(self.pressed_since_s, now_s)

    def is_too_much(self, now_s: float) -> bool:
        """Whether the next request is to be refused."""
        if self.bucket.holds(now_s) > BURST_MS / 2:
            self.pressed_since_s = math.inf
        return now_s - self.pressed_since_s > PATIENCE_S

    def refuse(self, now_s: float) -> bool:
        """Note a refusal; gives whether it was one too many."""
        self.pay(FRAME_MS, now_s)
        self.refusals.pay(1.0, now_s)
        return self.refusals.left < 0.0

    def is_full(self, now_s: float) -> bool:
        """Whether there is nothing to remember of this peer."""
        full = self.bucket.holds(now_s) >= BURST_MS
        return full and self.refusals.holds(now_s) >= REFUSALS_BURST
