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
award's ``idle_s``; one that got neither in time is released all the same. Under
a lease up to ``in_flight_max`` units are out at once and ``units_max`` in all.
A unit's name stands for one run, ever: a unit asked for again (its answer was
lost) is answered again and not run again, and a cancelled one is answered by a
refusal. An answer that crosses a cancel, or comes twice, is nobody's fault and
is dropped. A lease ends by release, or when no unit was out for ``idle_s``. A
message that is refused changes nothing.

To a provider of 1.5 or newer the first units may go right behind the award, on the same
stream, and the lease is waited for with their answers: it takes what one stream brings in
order, so that they find the lease there or, where the award was refused, are refused with it.

Up to ``batch_max`` units go in one `UnitsRequest`, and stand there for what they would
be one by one: each is run, answered again or waited for by its own name, and may be
cancelled alone. All of them are taken or, where one is against the terms, none. The
message is answered once, when none of its units is out any more, with the result or the
refusal of each in the same order; or by one refusal, which is then every unit's.

What silence does not end: a call that is not answered, and a unit that is out.
Those are requests, and whoever made them bounds how long it waits.

Prior art: contract net (Smith 1980) for the steps, h11 for the form.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from shoal.crypto.content import BlobId
from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.limits import IN_FLIGHT_LIMIT_BYTES, LEASE_ANSWERS_LIMIT_BYTES
from shoal.protocol.negotiation_messages import (
    AwardOffer,
    Bid,
    Call,
    Cancel,
    Lease,
    Reason,
    Refusal,
    Release,
    UnitRefusal,
    UnitRequest,
    UnitResult,
    UnitsRequest,
    UnitsResult,
    unit_bytes,
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
    Call
    | Bid
    | Refusal
    | AwardOffer
    | Lease
    | UnitRequest
    | UnitResult
    | UnitsRequest
    | UnitsResult
    | Cancel
    | Release
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
    (State.AWARDED, Way.SENT, Release): State.ENDED,
    (State.AWARDED, Way.SENT, UnitRequest): State.AWARDED,
    (State.AWARDED, Way.SENT, UnitsRequest): State.AWARDED,
    (State.LEASED, Way.SENT, UnitRequest): State.LEASED,
    (State.LEASED, Way.SENT, UnitsRequest): State.LEASED,
    (State.LEASED, Way.GOT, UnitResult): State.LEASED,
    (State.LEASED, Way.GOT, UnitsResult): State.LEASED,
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
    (State.AWARDED, Way.GOT, Release): State.ENDED,
    (State.LEASED, Way.GOT, UnitRequest): State.LEASED,
    (State.LEASED, Way.GOT, UnitsRequest): State.LEASED,
    (State.LEASED, Way.SENT, UnitResult): State.LEASED,
    (State.LEASED, Way.SENT, UnitsResult): State.LEASED,
    (State.LEASED, Way.SENT, Refusal): State.LEASED,
    (State.LEASED, Way.GOT, Cancel): State.LEASED,
    (State.LEASED, Way.GOT, Release): State.ENDED,
}


# --- effects: what the caller of ``receive`` is to do ---------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """Send this again: the unit was answered before."""

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
    award_bytes: bytes = b""
    """The signed award itself, which is evidence of what was given."""
    idle_s: float = 0.0
    ends_at_s: float | None = None
    units: dict[str, UnitRequest] = field(default_factory=dict)
    """Units out: asked for and not yet answered."""
    units_asked: int = 0
    """Names of units used up, of ``award.units_max``."""
    _out_bytes: int = 0

    @property
    def room(self) -> int:
        """How many more units may go out now; 0 where there is no lease."""
        if self.state is not State.LEASED or self.bid is None or self.award is None:
            return 0
        free = self.bid.in_flight_max - len(self.units)
        return max(0, min(free, self.award.units_max - self.units_asked))

    @property
    def room_bytes(self) -> int:
        """How many bytes of blobs, names and ids may go out with them now."""
        return IN_FLIGHT_LIMIT_BYTES - self._out_bytes

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
        self.award_bytes = offer.award
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

    def _check_batch(
        self, batch: UnitsRequest, error: type[LocalProtocolError | RemoteProtocolError]
    ) -> None:
        """Refuse a message of several units that is not what was agreed."""
        assert self.bid is not None
        if len(batch.units) > self.bid.batch_max:
            raise error(
                f"{len(batch.units)} units in one message, of {self.bid.batch_max}",
                code="batch_too_large",
            )
        for unit in batch.units:
            if unit.call != batch.call:
                raise error(f"unit {unit.unit!r} is of another call", code="unknown_call")
        if len({unit.unit for unit in batch.units}) < len(batch.units):
            raise error("a unit stands twice in one message", code="duplicate_unit")

    def _check_room(
        self,
        units: Sequence[UnitRequest],
        unused: int,
        error: type[LocalProtocolError | RemoteProtocolError],
    ) -> None:
        """Refuse to let ``units`` out, ``unused`` names among them, where the terms do."""
        assert self.bid is not None
        assert self.award is not None
        out = len(self.units)
        if units and out + len(units) > self.bid.in_flight_max:
            raise error(
                f"{out} units are out already, of {self.bid.in_flight_max}",
                code="too_many_in_flight",
            )
        if unused and self.units_asked + unused > self.award.units_max:
            raise error("the lease is used up", code="lease_used_up")
        if units and sum(map(unit_bytes, units)) > self.room_bytes:
            raise error(
                f"the units that are out are more than {IN_FLIGHT_LIMIT_BYTES} bytes",
                code="too_many_in_flight",
            )

    def _put_out(self, units: Sequence[UnitRequest]) -> None:
        self.units |= {unit.unit: unit for unit in units}
        self._out_bytes += sum(map(unit_bytes, units))

    def _take_back(self, name: str) -> UnitRequest | None:
        """The unit of this name, which is out no more; None where it was not."""
        unit = self.units.pop(name, None)
        if unit is not None:
            self._out_bytes -= unit_bytes(unit)
        return unit


class RequesterSide(_Conversation):
    """The requester's half of a conversation."""

    def __init__(self, requester: PeerId, provider: PeerId) -> None:
        super().__init__(requester, provider)
        self._closed: set[str] = set()
        """Units answered or cancelled; another answer to one is dropped."""

    def has_answered(self, unit: str) -> bool:
        """Whether a unit was answered or cancelled: asked for again, it is not run again."""
        return unit in self._closed

    def send(
        self,
        message: Call | AwardOffer | UnitRequest | UnitsRequest | Cancel | Release,
        now_s: float,
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
            case UnitRequest():
                self._let_out((message,))
            case UnitsRequest():
                self._check_batch(message, LocalProtocolError)
                self._let_out(message.units)
            case Cancel():
                for name in (message.unit, *message.others):
                    if self._take_back(name) is not None:
                        self._closed.add(name)
                        self._touch(now_s)
        self.state = state

    def _let_out(self, units: Sequence[UnitRequest]) -> None:
        fresh = [unit for unit in units if unit.unit not in self.units]
        unused = sum(unit.unit not in self._closed for unit in fresh)
        self._check_room(fresh, unused, LocalProtocolError)
        self._put_out(fresh)
        self.units_asked += unused

    def receive(
        self,
        message: Bid | Refusal | Lease | UnitResult | UnitsResult,
        now_s: float,
        *units: str,
    ) -> list[Effect]:
        """Take the provider's answer; ``units`` are those that were asked, under a lease.

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
            case UnitResult() | UnitsResult() | Refusal() if self.state is State.LEASED:
                effects = self._take_answers(message, units)
                self._touch(now_s)
        self.state = state
        return effects

    def _take_answers(
        self, message: UnitResult | UnitsResult | Refusal, units: Sequence[str]
    ) -> list[Effect]:
        answers: Sequence[UnitResult | UnitRefusal | Refusal]
        match message:
            case UnitsResult():
                answers = message.answers
            case UnitResult():
                answers = (message,)
            case Refusal():
                answers = (message,) * len(units)
        named = [a.unit for a in answers if not isinstance(a, Refusal)]
        unknown = not all(unit in self.units or unit in self._closed for unit in units)
        if unknown or not units or named not in ([], list(units)):
            raise RemoteProtocolError(
                f"an answer about other units than {', '.join(units)!r:.150}, "
                "or ones not asked for",
                code="unknown_unit",
            )
        effects: list[Effect] = []
        for unit, answer in zip(units, answers, strict=True):
            asked = self._take_back(unit)
            self._closed.add(unit)
            if asked is not None:
                effects.append(Deliver(asked, _as_answer(answer, message.call)))
        return effects


class ProviderSide(_Conversation):
    """The provider's half of a conversation."""

    def __init__(self, requester: PeerId, provider: PeerId) -> None:
        super().__init__(requester, provider)
        self._answers: dict[str, UnitResult | Refusal] = {}
        self._results: dict[str, int] = {}
        """Size in bytes of each result among the answers, oldest first."""
        self._results_bytes = 0

    def send(
        self,
        message: Bid | Refusal | Lease | UnitResult | UnitsResult,
        now_s: float,
        unit: str = "",
    ) -> None:
        """Note that ``message`` is about to be sent, or that ``unit`` has ended with it.

        The units of a `UnitsResult` may have been noted one by one before, as they ended.

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
            case UnitsResult():
                for answer in message.answers:
                    self._note_answer(_as_answer(answer, message.call), answer.unit)
                self._touch(now_s)
        self.state = state

    def receive(
        self,
        message: Call | AwardOffer | UnitRequest | UnitsRequest | Cancel | Release,
        now_s: float,
    ) -> list[Effect]:
        """Take the requester's message and say what is to be done.

        Of several units there is one effect for each, in their order.

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
                effects = self._take_units((message,))
                self._touch(now_s)
            case UnitsRequest():
                self._check_batch(message, RemoteProtocolError)
                effects = self._take_units(message.units)
                self._touch(now_s)
            case Cancel():
                for name in (message.unit, *message.others):
                    if self._take_back(name) is not None:
                        self._answers[name] = self._gone("the unit was cancelled")
                        self._touch(now_s)
                        effects.append(Abandon(name))
            case Release():
                effects = [Abandon(unit) for unit in self.units]
                self.units.clear()
        self.state = state
        return effects

    def _take_units(self, units: Sequence[UnitRequest]) -> list[Effect]:
        effects = [self._effect_of(unit) for unit in units]
        fresh = [effect.unit for effect in effects if isinstance(effect, Execute)]
        self._check_room(fresh, len(fresh), RemoteProtocolError)
        self._put_out(fresh)
        self.units_asked += len(fresh)
        return effects

    def _effect_of(self, unit: UnitRequest) -> Effect:
        answered = self._answers.get(unit.unit)
        if answered is not None:
            return Answer(answered)
        return Await(unit.unit) if unit.unit in self.units else Execute(unit)

    def _note_answer(self, answer: UnitResult | Refusal, unit: str) -> None:
        if isinstance(answer, UnitResult) and answer.unit != unit:
            raise LocalProtocolError(
                f"a result of unit {answer.unit!r} is no answer to {unit!r}",
                code="unknown_unit",
            )
        if self._take_back(unit) is None:
            if unit not in self._answers:
                raise LocalProtocolError(
                    f"unit {unit!r} was not asked for", code="unknown_unit"
                )
            return  # sent again, or crossed by a cancel
        self._answers[unit] = answer
        if isinstance(answer, UnitResult):
            size_bytes = len(answer.receipt) + sum(map(len, answer.blobs))
            self._results[unit] = size_bytes
            self._results_bytes += size_bytes
        while self._results_bytes > LEASE_ANSWERS_LIMIT_BYTES:
            oldest = next(iter(self._results))
            self._results_bytes -= self._results.pop(oldest)
            self._answers[oldest] = self._gone("the answer was sent and is not kept any more")

    def _gone(self, detail: str) -> Refusal:
        assert self.call is not None
        return Refusal(call=self.call.call, reason=Reason.EXPIRED, detail=detail)


def _name(message: Message) -> str:
    return type(message).__name__


def _as_answer(answer: UnitResult | UnitRefusal | Refusal, call: str) -> UnitResult | Refusal:
    """A unit's answer as it would be by itself."""
    if not isinstance(answer, UnitRefusal):
        return answer
    return Refusal(
        call=call, reason=answer.reason, detail=answer.detail, missing=answer.missing
    )
