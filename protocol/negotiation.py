"""The contract net between one requester and one provider, as two state machines.

One conversation is about one call: a call for bids, a bid or a refusal, a
signed award, a lease, units and their results under it, release. Each side
holds one machine per conversation, puts every message it sends through
``send`` and every message it gets through ``receive``, and reads ``ends_at_s``
for when silence ends it. Which message may come in which state is in the two
tables below and nowhere else; what is not in a table raises. Time is an
argument; both sides measure durations on their own clocks.

The rules, in one paragraph: a bid binds for ``valid_s``. An award within that
time becomes a lease, or a refusal when something changed meanwhile. Under a
lease up to ``in_flight_max`` units are out at once and ``units_max`` in all; a
unit asked for again (its answer was lost) is answered again and not run again.
A lease ends by release, or when no unit was out for ``idle_s``.

Prior art: contract net (Smith 1980) for the steps, h11 for the form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.messages import (
    AwardOffer,
    Bid,
    Call,
    Cancel,
    Lease,
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

    def expire(self, now_s: float) -> bool:
        """End the conversation if its time is up; True when this call ended it."""
        if self.state is State.ENDED or self.ends_at_s is None or now_s < self.ends_at_s:
            return False
        if self.state is State.LEASED and self.units:
            return False
        self.state = State.ENDED
        return True

    def _send(self, table: Table, message: Message) -> None:
        self.state = self._next(table, Way.SENT, message, LocalProtocolError)

    def _receive(self, table: Table, message: Message, now_s: float) -> None:
        if self.expire(now_s):
            raise RemoteProtocolError(
                f"{_name(message)} came after the {'bid' if self.award is None else 'lease'} "
                "had expired",
                code="expired",
            )
        if self.call is not None and message.call != self.call.call:
            raise RemoteProtocolError(
                f"{_name(message)} is about call {message.call}, which is not this one",
                code="unknown_call",
            )
        self.state = self._next(table, Way.GOT, message, RemoteProtocolError)

    def _next(
        self,
        table: Table,
        way: Way,
        message: Message,
        error: type[LocalProtocolError | RemoteProtocolError],
    ) -> State:
        try:
            return table[self.state, way, type(message)]
        except KeyError:
            raise error(
                f"{_name(message)} cannot be {way.value} while a conversation is {self.state}",
                code="out_of_turn",
            ) from None

    def _touch(self, now_s: float) -> None:
        if self.state is State.LEASED:
            self.ends_at_s = now_s + self.idle_s


class RequesterSide(_Conversation):
    """The requester's half of a conversation."""

    def send(self, message: Call | AwardOffer | UnitRequest | Cancel | Release) -> None:
        """Note that ``message`` is about to be sent.

        Raises:
            LocalProtocolError: Not in this state, or over the bid's terms.
        """
        match message:
            case UnitRequest() if self.bid is not None:
                if message.unit in self.units:
                    return  # asked again because the answer may have been lost
                if len(self.units) >= self.bid.in_flight_max:
                    raise LocalProtocolError(
                        f"{len(self.units)} units are out already", code="too_many_in_flight"
                    )
                if self.award is not None and self.units_asked >= self.award.units_max:
                    raise LocalProtocolError("the lease is used up", code="lease_used_up")
        self._send(REQUESTER, message)
        match message:
            case Call():
                self.call = message
            case AwardOffer():
                self.award_id = statement_id(message.award)
                self.award = open_award(message.award)
            case UnitRequest():
                self.units[message.unit] = message
                self.units_asked += 1
            case Cancel():
                self.units.pop(message.unit, None)

    def receive(
        self, message: Bid | Refusal | Lease | UnitResult, now_s: float, unit: str = ""
    ) -> list[Effect]:
        """Take the provider's answer; ``unit`` says to which unit, under a lease.

        Raises:
            RemoteProtocolError: Out of turn, about another call, award or unit.
        """
        self._receive(REQUESTER, message, now_s)
        match message:
            case Bid():
                self.bid = message
                self.ends_at_s = now_s + message.valid_s
            case Lease():
                if message.award != self.award_id:
                    raise RemoteProtocolError(
                        "the lease names an award that was not given", code="unknown_award"
                    )
                self.idle_s = message.idle_s
                self._touch(now_s)
            case UnitResult() | Refusal() if self.state is State.LEASED:
                name = message.unit if isinstance(message, UnitResult) else unit
                asked = self.units.pop(name, None)
                if asked is None or name != unit:
                    raise RemoteProtocolError(
                        f"an answer about unit {name!r}, which was not asked for",
                        code="unknown_unit",
                    )
                self._touch(now_s)
                return [Deliver(asked, message)]
        return []


class ProviderSide(_Conversation):
    """The provider's half of a conversation."""

    def __init__(self, requester: PeerId, provider: PeerId) -> None:
        super().__init__(requester, provider)
        self._answers: dict[str, UnitResult | Refusal] = {}

    def send(
        self, message: Bid | Refusal | Lease | UnitResult, now_s: float, unit: str = ""
    ) -> None:
        """Note that ``message`` is about to be sent; ``unit`` as in `RequesterSide.receive`.

        Raises:
            LocalProtocolError: Not in this state, or about a unit nobody asked for.
        """
        under_lease = self.state is State.LEASED
        self._send(PROVIDER, message)
        match message:
            case Bid():
                self.bid = message
                self.ends_at_s = now_s + message.valid_s
            case Lease():
                self.idle_s = message.idle_s
                self._touch(now_s)
            case UnitResult() | Refusal() if under_lease:
                if self.units.pop(unit, None) is not None:
                    self._answers[unit] = message
                self._touch(now_s)

    def receive(
        self, message: Call | AwardOffer | UnitRequest | Cancel | Release, now_s: float
    ) -> list[Effect]:
        """Take the requester's message and say what is to be done.

        Raises:
            RemoteProtocolError: Out of turn, expired, over the terms, or an award
                that is not signed by the requester for this provider and call.
        """
        if isinstance(message, AwardOffer):
            award = self._check_award(message)
        self._receive(PROVIDER, message, now_s)
        match message:
            case Call():
                self.call = message
            case AwardOffer():
                self.award_id, self.award = statement_id(message.award), award
            case UnitRequest():
                return self._take_unit(message, now_s)
            case Cancel():
                self.units.pop(message.unit, None)
                return [Abandon(message.unit)]
            case Release():
                units = list(self.units)
                self.units.clear()
                return [Abandon(unit) for unit in units]
        return []

    def _take_unit(self, message: UnitRequest, now_s: float) -> list[Effect]:
        answered = self._answers.get(message.unit)
        if answered is not None:
            return [Answer(answered)]
        if message.unit in self.units:
            return [Await(message.unit)]
        assert self.bid is not None
        assert self.award is not None
        if len(self.units) >= self.bid.in_flight_max:
            raise RemoteProtocolError("too many units at once", code="too_many_in_flight")
        if self.units_asked >= self.award.units_max:
            raise RemoteProtocolError("the lease is used up", code="lease_used_up")
        self.units[message.unit] = message
        self.units_asked += 1
        self._touch(now_s)
        return [Execute(message)]

    def _check_award(self, offer: AwardOffer) -> Award:
        award = open_award(offer.award)
        call, bid = self.call, self.bid
        if call is None or bid is None:
            return award  # out of turn; the table says so
        wanted = (
            ("call", award.call, call.call),
            ("requester", award.requester, self.requester),
            ("provider", award.provider, self.provider),
            ("program", award.program, call.program),
            ("numeric class", award.numeric_class, call.numeric_class),
            ("precision", award.precision, call.precision),
            ("price", award.price, bid.price),
        )
        for name, got, want in wanted:
            if got != want:
                raise RemoteProtocolError(
                    f"the award's {name} is {got!r}, and {want!r} was agreed"[:250],
                    code="award_mismatch",
                )
        if award.units_max > bid.units_max:
            raise RemoteProtocolError(
                f"the award is for {award.units_max} units, the bid was for {bid.units_max}",
                code="award_mismatch",
            )
        return award


def _name(message: Message) -> str:
    return type(message).__name__


TERMINAL = frozenset({State.ENDED})
"""States that no message leaves; a conversation in one is forgotten."""
