"""The contract net between one requester and one provider, as two state machines.

One conversation is about one call: a call for bids, a bid or a refusal, a
signed award, a lease, units and their results under it, release. Each side
holds one machine per conversation, puts every message it sends through
``send`` and every message it gets through ``receive``, and reads ``ends_at_s``
for when silence ends it. Which message may come in which state is in the two
tables below and nowhere else; what is not in a table raises. Time is an
argument; both sides measure durations on their own clocks.

The rules, in one paragraph. A bid binds for ``valid_s``. An award within that
time becomes a lease, or a refusal when something changed meanwhile, within the
award's ``idle_s``. Under a lease up to ``in_flight_max`` units are out at once
and ``units_max`` in all. A unit's name stands for one run, ever: a unit asked
for again (its answer was lost) is answered again and not run again, and a
cancelled one is answered by a refusal. An answer that crosses a cancel, or comes
twice, is nobody's fault and is dropped. A lease ends by release, or when no unit
was out for ``idle_s``. A message that is refused changes nothing.

What silence does not end: a call that is not answered, and a unit that is out.
Those are requests, and whoever made them bounds how long it waits.

Prior art: contract net (Smith 1980) for the steps, h11 for the form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from shoal.crypto.content import BlobId
from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.limits import LEASE_ANSWERS_LIMIT_BYTES
from shoal.protocol.messages import (
    AwardOffer,
    Bid,
    Call,
    Cancel,
    Lease,
    Reason,
    Refusal,
    Release,
    UnitRequest,
    UnitResult,
)
from shoal.protocol.statements import Award, open_award, statement_id


class State(StrEnum):
    """Where a conversation stands; both roles pass through the same states."""

    IDLE = "idle"
    CALLED = "called"
    BID = "bid"
    AWARDED = "awarded"
    LEASED = "leased"
    ENDED = "ended"


class Way(StrEnum):
    """Which side a message comes from, as this side sees it."""

    SENT = "sent"
    GOT = "got"


Message: TypeAlias = (
    Call | Bid | Refusal | AwardOffer | Lease | UnitRequest | UnitResult | Cancel | Release
)
Table: TypeAlias = dict[tuple[State, Way, type[Message]], State]

REQUESTER: Table = {
    (State.IDLE, Way.SENT, Call): State.CALLED,
    (State.CALLED, Way.GOT, Bid): State.BID,
    (State.CALLED, Way.GOT, Refusal): State.ENDED,
    (State.BID, Way.SENT, AwardOffer): State.AWARDED,
    (State.BID, Way.SENT, Release): State.ENDED,
    (State.AWARDED, Way.GOT, Lease): State.LEASED,
    (State.AWARDED, Way.GOT, Refusal): State.ENDED,
    (State.LEASED, Way.SENT, UnitRequest): State.LEASED,
    (State.LEASED, Way.GOT, UnitResult): State.LEASED,
    (State.LEASED, Way.GOT, Refusal): State.LEASED,
    (State.LEASED, Way.SENT, Cancel): State.LEASED,
    (State.LEASED, Way.SENT, Release): State.ENDED,
}

PROVIDER: Table = {
    (State.IDLE, Way.GOT, Call): State.CALLED,
    (State.CALLED, Way.SENT, Bid): State.BID,
    (State.CALLED, Way.SENT, Refusal): State.ENDED,
    (State.BID, Way.GOT, AwardOffer): State.AWARDED,
    (State.BID, Way.GOT, Release): State.ENDED,
    (State.AWARDED, Way.SENT, Lease): State.LEASED,
    (State.AWARDED, Way.SENT, Refusal): State.ENDED,
    (State.LEASED, Way.GOT, UnitRequest): State.LEASED,
    (State.LEASED, Way.SENT, UnitResult): State.LEASED,
    (State.LEASED, Way.SENT, Refusal): State.LEASED,
    (State.LEASED, Way.GOT, Cancel): State.LEASED,
    (State.LEASED, Way.GOT, Release): State.ENDED,
}


# --- effects: what the caller of ``receive`` is to do ---------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this message again: the unit was answered before."""

    message: UnitResult | Refusal


@dataclass(frozen=True, slots=True)
class Execute:
    """Run this unit and answer it; it was not asked for before."""

    unit: UnitRequest


@dataclass(frozen=True, slots=True)
class Await:
    """Answer this unit when it ends: it is running already."""

    unit: str


@dataclass(frozen=True, slots=True)
class Abandon:
    """Stop this unit if it has not ended; nobody waits for it."""

    unit: str


@dataclass(frozen=True, slots=True)
class Deliver:
    """A unit that was out came back."""

    unit: UnitRequest
    answer: UnitResult | Refusal


Effect: TypeAlias = Answer | Execute | Await | Abandon | Deliver


@dataclass(slots=True)
class _Conversation:
    """What both roles keep; the tables decide, this applies them."""

    requester: PeerId
    provider: PeerId
    state: State = State.IDLE
    call: Call | None = None
    bid: Bid | None = None
    award_id: BlobId | None = None
    award: Award | None = None
    idle_s: float = 0.0
    ends_at_s: float | None = None
    units: dict[str, UnitRequest] = field(default_factory=dict)
    """Units out: asked for and not yet answered."""
    units_asked: int = 0
    """Names of units used up, of ``award.units_max``."""

    def expire(self, now_s: float) -> bool:
        """End the conversation if its time is up; True when this call ended it."""
        if self.state is State.ENDED or self.ends_at_s is None or now_s < self.ends_at_s:
            return False
        if self.state is State.LEASED and self.units:
            return False
        self.state = State.ENDED
        return True

    def _next(self, table: Table, way: Way, message: Message) -> State:
        error = LocalProtocolError if way is Way.SENT else RemoteProtocolError
        if self.call is not None and message.call != self.call.call:
            raise error(
                f"{_name(message)} is about call {message.call}, which is not this one",
                code="unknown_call",
            )
        try:
            return table[self.state, way, type(message)]
        except KeyError:
            raise error(
                f"{_name(message)} cannot be {way.value} while a conversation is {self.state}",
                code="out_of_turn",
            ) from None

    def _next_after_expiry(self, table: Table, message: Message, now_s: float) -> State:
        before = self.state
        if self.expire(now_s):
            raise RemoteProtocolError(
                f"{_name(message)} came too late: the conversation expired while {before}",
                code="expired",
            )
        return self._next(table, Way.GOT, message)

    def _take_bid(self, bid: Bid, now_s: float) -> None:
        self.bid, self.ends_at_s = bid, now_s + bid.valid_s

    def _take_award(self, offer: AwardOffer, award: Award, now_s: float) -> None:
        self.award_id, self.award = statement_id(offer.award), award
        self.ends_at_s = now_s + award.idle_s

    def _take_lease(self, lease: Lease, now_s: float) -> None:
        self.idle_s = lease.idle_s
        self._touch(now_s)

    def _touch(self, now_s: float) -> None:
        self.ends_at_s = now_s + self.idle_s

    def _check_award(
        self, offer: AwardOffer, error: type[LocalProtocolError | RemoteProtocolError]
    ) -> Award:
        """Open the award and hold it against what was agreed."""
        assert self.call is not None
        assert self.bid is not None
        try:
            award = open_award(offer.award)
        except VerificationError as cause:
            raise error(cause.message, code="bad_award") from None
        agreed = (
            ("call", award.call, self.call.call),
            ("nonce", award.nonce, self.bid.nonce),
            ("requester", award.requester, self.requester),
            ("provider", award.provider, self.provider),
            ("program", award.program, self.call.program),
            ("numeric class", award.numeric_class, self.call.numeric_class),
            ("precision", award.precision, self.call.precision),
            ("price", award.price, self.bid.price),
        )
        for name, got, want in agreed:
            if got != want:
                raise error(
                    f"the award's {name} is {got!r}, and {want!r} was agreed"[:250],
                    code="award_mismatch",
                )
        if award.units_max > self.bid.units_max:
            raise error(
                f"the award is for {award.units_max} units, the bid was for "
                f"{self.bid.units_max}",
                code="award_mismatch",
            )
        return award

    def _check_room(self, error: type[LocalProtocolError | RemoteProtocolError]) -> None:
        """Refuse one more unit where the lease's terms do."""
        assert self.bid is not None
        assert self.award is not None
        if len(self.units) >= self.bid.in_flight_max:
            raise error(f"{len(self.units)} units are out already", code="too_many_in_flight")
        if self.units_asked >= self.award.units_max:
            raise error("the lease is used up", code="lease_used_up")


class RequesterSide(_Conversation):
    """The requester's half of a conversation."""

    def __init__(self, requester: PeerId, provider: PeerId) -> None:
        super().__init__(requester, provider)
        self._closed: set[str] = set()
        """Units answered or cancelled; another answer to one is dropped."""

    def send(
        self, message: Call | AwardOffer | UnitRequest | Cancel | Release, now_s: float
    ) -> None:
        """Note that ``message`` is about to be sent.

        Raises:
            LocalProtocolError: Not in this state, or not within the bid's terms.
        """
        state = self._next(REQUESTER, Way.SENT, message)
        match message:
            case Call():
                self.call = message
            case AwardOffer():
                self._take_award(message, self._check_award(message, LocalProtocolError), now_s)
            case UnitRequest() if message.unit not in self.units:
                self._check_room(LocalProtocolError)
                self.units[message.unit] = message
                self.units_asked += message.unit not in self._closed
            case Cancel() if self.units.pop(message.unit, None) is not None:
                self._closed.add(message.unit)
                self._touch(now_s)
        self.state = state

    def receive(
        self, message: Bid | Refusal | Lease | UnitResult, now_s: float, unit: str = ""
    ) -> list[Effect]:
        """Take the provider's answer; ``unit`` says to which unit, under a lease.

        Raises:
            RemoteProtocolError: Out of turn, about another call, award or unit.
        """
        state = self._next_after_expiry(REQUESTER, message, now_s)
        effects: list[Effect] = []
        match message:
            case Bid():
                self._take_bid(message, now_s)
            case Lease():
                if message.award != self.award_id:
                    raise RemoteProtocolError(
                        "the lease names an award that was not given", code="unknown_award"
                    )
                self._take_lease(message, now_s)
            case UnitResult() | Refusal() if self.state is State.LEASED:
                effects = self._take_answer(message, unit)
                self._touch(now_s)
        self.state = state
        return effects

    def _take_answer(self, answer: UnitResult | Refusal, unit: str) -> list[Effect]:
        names_it = answer.unit == unit if isinstance(answer, UnitResult) else True
        if not names_it or (unit not in self.units and unit not in self._closed):
            raise RemoteProtocolError(
                f"an answer about a unit other than {unit!r}, or one not asked for",
                code="unknown_unit",
            )
        asked = self.units.pop(unit, None)
        self._closed.add(unit)
        return [] if asked is None else [Deliver(asked, answer)]


class ProviderSide(_Conversation):
    """The provider's half of a conversation."""

    def __init__(self, requester: PeerId, provider: PeerId) -> None:
        super().__init__(requester, provider)
        self._answers: dict[str, UnitResult | Refusal] = {}
        self._results: dict[str, int] = {}
        """Size in bytes of each result among the answers, oldest first."""

    def send(
        self, message: Bid | Refusal | Lease | UnitResult, now_s: float, unit: str = ""
    ) -> None:
        """Note that ``message`` is about to be sent; ``unit`` as in `RequesterSide.receive`.

        Raises:
            LocalProtocolError: Not in this state, not about the award that was
                given, or about a unit nobody asked for.
        """
        state = self._next(PROVIDER, Way.SENT, message)
        match message:
            case Bid():
                self._take_bid(message, now_s)
            case Lease():
                if message.award != self.award_id:
                    raise LocalProtocolError(
                        "the lease names another award", code="unknown_award"
                    )
                self._take_lease(message, now_s)
            case UnitResult() | Refusal() if self.state is State.LEASED:
                self._note_answer(message, unit)
                self._touch(now_s)
        self.state = state

    def receive(
        self, message: Call | AwardOffer | UnitRequest | Cancel | Release, now_s: float
    ) -> list[Effect]:
        """Take the requester's message and say what is to be done.

        Raises:
            RemoteProtocolError: Out of turn, expired, over the terms, or an award
                that is not signed by the requester for this provider and call.
        """
        state = self._next_after_expiry(PROVIDER, message, now_s)
        effects: list[Effect] = []
        match message:
            case Call():
                self.call = message
            case AwardOffer():
                self._take_award(
                    message, self._check_award(message, RemoteProtocolError), now_s
                )
            case UnitRequest():
                effects = self._take_unit(message)
                self._touch(now_s)
            case Cancel() if self.units.pop(message.unit, None) is not None:
                self._answers[message.unit] = self._gone("the unit was cancelled")
                self._touch(now_s)
                effects = [Abandon(message.unit)]
            case Release():
                effects = [Abandon(unit) for unit in self.units]
                self.units.clear()
        self.state = state
        return effects

    def _take_unit(self, message: UnitRequest) -> list[Effect]:
        answered = self._answers.get(message.unit)
        if answered is not None:
            return [Answer(answered)]
        if message.unit in self.units:
            return [Await(message.unit)]
        self._check_room(RemoteProtocolError)
        self.units[message.unit] = message
        self.units_asked += 1
        return [Execute(message)]

    def _note_answer(self, answer: UnitResult | Refusal, unit: str) -> None:
        if isinstance(answer, UnitResult) and answer.unit != unit:
            raise LocalProtocolError(
                f"a result of unit {answer.unit!r} is no answer to {unit!r}",
                code="unknown_unit",
            )
        if self.units.pop(unit, None) is None:
            if unit not in self._answers:
                raise LocalProtocolError(
                    f"unit {unit!r} was not asked for", code="unknown_unit"
                )
            return  # sent again, or crossed by a cancel
        self._answers[unit] = answer
        if isinstance(answer, UnitResult):
            self._results[unit] = len(answer.receipt) + sum(map(len, answer.blobs))
        while sum(self._results.values()) > LEASE_ANSWERS_LIMIT_BYTES:
            oldest = next(iter(self._results))
            del self._results[oldest]
            self._answers[oldest] = self._gone("the answer was sent and is not kept any more")

    def _gone(self, detail: str) -> Refusal:
        assert self.call is not None
        return Refusal(call=self.call.call, reason=Reason.EXPIRED, detail=detail)


def _name(message: Message) -> str:
    return type(message).__name__


TERMINAL = frozenset({State.ENDED})
"""States that no message leaves; a conversation in one is forgotten."""
