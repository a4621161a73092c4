"""A requester and a provider, joined by a network that loses, doubles, delays and cuts.

Everything goes over it as bytes. Whatever it does, the two machines raise
nothing but `RemoteProtocolError`, no unit is run twice, nothing is delivered that
was not run, and both ends come to an end.
"""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)
from strategies import (
    ALICE,
    BOB,
    CALL_ID,
    a_bid,
    a_call,
    a_result,
    a_unit,
    an_offer,
    some_units,
)

from shoal.protocol.codec import decode, encode
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.messages import Frame, Request, Response
from shoal.protocol.negotiation import (
    PROVIDER,
    REQUESTER,
    Abandon,
    Answer,
    Await,
    Deliver,
    Execute,
    ProviderSide,
    RequesterSide,
    State,
    Way,
)
from shoal.protocol.negotiation_messages import (
    Cancel,
    Lease,
    Reason,
    Refusal,
    Release,
    UnitRefusal,
    UnitResult,
    UnitsResult,
)
from shoal.protocol.statements import statement_id

UNITS = ("u0", "u1", "u2", "u3", "u4", "u5")
IN_FLIGHT_MAX, UNITS_MAX, BATCH_MAX = 2, 4, 2
TERMS = {"in_flight_max": IN_FLIGHT_MAX, "batch_max": BATCH_MAX}
IDLE_S = 30.0
OFFER = an_offer(units_max=UNITS_MAX, idle_s=IDLE_S)
LEASE = Lease(call=CALL_ID, award=statement_id(OFFER.award), idle_s=IDLE_S)
seldom = st.integers(0, 7).map(lambda number: number == 7)
units = st.sampled_from(UNITS)
batches = st.lists(units, min_size=1, max_size=BATCH_MAX + 1)
"""Too long ones among them, and ones with a unit twice."""


@dataclass
class Letter:
    """A frame on its way; ``units`` are those that it asks for, or that it answers."""

    to_provider: bool
    data: bytes
    units: tuple[str, ...] = ()


class Conversation(RuleBasedStateMachine):
    mail = Bundle("mail")

    def __init__(self):
        super().__init__()
        self.now_s = 0.0
        self.requester = RequesterSide(ALICE.peer_id, BOB.peer_id)
        self.provider = ProviderSide(ALICE.peer_id, BOB.peer_id)
        self.executed: list[str] = []
        self.waiting: list[tuple[str, ...]] = []
        """Batches that the provider has not answered."""
        self.ended: dict[str, UnitResult | Refusal] = {}
        self.delivered: list[str] = []

    def post(self, message, units=()):
        to_provider = isinstance(message, REQUESTS)
        frame = (Request if to_provider else Response)(id=1, body=message)
        return Letter(to_provider, encode(frame), tuple(units))

    @initialize(steps=st.sampled_from([0, 4, 4, 4]))
    def begin(self, steps):
        """Most often with a lease: chance alone hardly ever gets that far."""
        for message in (a_call(), a_bid(**TERMS), OFFER, LEASE)[:steps]:
            asker, other = self.requester, self.provider
            if not isinstance(message, REQUESTS):
                asker, other = other, asker
            asker.send(message, self.now_s)
            other.receive(message, self.now_s)

    # --- the requester's own moves -----------------------------------------------

    @precondition(lambda self: self.requester.state is not State.LEASED)
    @rule(target=mail, message=st.sampled_from([a_call(), OFFER]))
    def open(self, message):
        return self.requesters(message)

    @rule(target=mail, now=seldom)
    def release(self, now):
        return self.requesters(Release(call=CALL_ID)) if now else multiple()

    @rule(target=mail, name=units)
    def ask_for_a_unit(self, name):
        return self.requesters(a_unit(name), [name])

    @rule(target=mail, names=batches)
    def ask_for_a_batch(self, names):
        return self.requesters(some_units(*names), names)

    @rule(target=mail, name=units, others=st.lists(units, max_size=2), now=seldom)
    def cancel(self, name, others, now):
        if not now:
            return multiple()
        return self.requesters(Cancel(call=CALL_ID, unit=name, others=tuple(others)))

    def requesters(self, message, units=()):
        """Send it if the machine lets us, else send it all the same, as a villain would."""
        known = set(self.requester.units)
        before = self.requester.state
        try:
            self.requester.send(message, self.now_s)
        except LocalProtocolError:
            assert self.requester.state is before
            assert set(self.requester.units) == known
        return self.post(message, units)

    # --- the provider's own moves ------------------------------------------------

    @precondition(lambda self: self.provider.state is State.CALLED)
    @rule(target=mail, refuse=st.booleans())
    def bid(self, refuse):
        return self.providers(self.refusal() if refuse else a_bid(**TERMS))

    @precondition(lambda self: self.provider.state is State.AWARDED)
    @rule(target=mail, refuse=st.booleans())
    def lease(self, refuse):
        return self.providers(self.refusal() if refuse else LEASE)

    @precondition(lambda self: self.provider.state is State.LEASED and self.provider.units)
    @rule(target=mail, data=st.data(), refuse=st.booleans())
    def answer(self, data, refuse):
        name = data.draw(st.sampled_from(sorted(self.provider.units)))
        self.ended[name] = self.refusal() if refuse else a_result(name)
        return self.providers(self.ended[name], name)

    @precondition(lambda self: self.provider.state is State.LEASED and self.waiting)
    @rule(target=mail, data=st.data())
    def answer_a_batch(self, data):
        """Once none of its units is out any more."""
        names = data.draw(st.sampled_from(self.waiting))
        if not self.provider.units.keys().isdisjoint(names):
            return multiple()
        self.waiting.remove(names)
        answers = [self.ended.get(name, self.refusal()) for name in names]
        message = UnitsResult(
            call=CALL_ID,
            answers=tuple(
                UnitRefusal(unit=name, reason=answer.reason)
                if isinstance(answer, Refusal)
                else answer
                for name, answer in zip(names, answers, strict=True)
            ),
        )
        self.provider.send(message, self.now_s)
        return self.post(message, names)

    @precondition(lambda self: self.provider.state is State.LEASED and self.executed)
    @rule(target=mail, data=st.data())
    def answer_late(self, data):
        """A worker that ended after its unit was cancelled or answered."""
        name = data.draw(st.sampled_from(self.executed))
        return self.providers(a_result(name), name)

    def providers(self, message, unit=""):
        self.provider.send(message, self.now_s, unit)
        return self.post(message, [unit])

    def refusal(self):
        return Refusal(call=CALL_ID, reason=Reason.BUSY)

    # --- the network ---------------------------------------------------------------

    @rule(target=mail, letter=consumes(mail))
    def deliver(self, letter):
        """Bundles are drawn from in any order: this reorders as well."""
        return self.arrive(letter)

    @rule(target=mail, letter=mail)
    def deliver_and_keep_a_copy(self, letter):
        return self.arrive(letter)

    @rule(letter=consumes(mail))
    def lose(self, letter):
        pass

    @rule(letter=mail, data=st.data())
    def truncate(self, letter, data):
        end = data.draw(st.integers(0, len(letter.data) - 1))
        before = self.states()
        self.arrive(Letter(letter.to_provider, letter.data[:end], letter.units))
        assert self.states() == before

    def arrive(self, letter):
        """Gives the letter that the provider answers at once with, if any."""
        try:
            body = decode(letter.data, Frame).body
            if not letter.to_provider:
                self.took(self.requester.receive(body, self.now_s, *letter.units))
                return multiple()
            effects = self.provider.receive(body, self.now_s)
        except RemoteProtocolError:
            return multiple()
        if body.__struct_config__.tag == "units":
            assert len(effects) == len(letter.units)
            self.waiting.append(letter.units)
        for effect in effects:
            match effect:
                case Execute(unit):
                    assert unit.unit not in self.executed, "run twice under one lease"
                    self.executed.append(unit.unit)
                case Answer(message) if len(letter.units) == 1:
                    return self.providers(message, letter.units[0])
                case Answer(message):
                    assert isinstance(message, Refusal) or message.unit in self.executed
                case Await(unit):
                    assert unit in self.executed
                case Abandon(unit):
                    assert unit in self.executed
        return multiple()

    def took(self, effects):
        for effect in effects:
            assert isinstance(effect, Deliver)
            self.delivered.append(effect.unit.unit)

    @rule(seconds=st.floats(0.0, 1.0), long=seldom)
    def wait(self, seconds, long):
        seconds *= 1.5 * IDLE_S if long else 1.0
        self.now_s += seconds
        self.requester.expire(self.now_s)
        self.provider.expire(self.now_s)

    def states(self):
        return self.requester.state, self.provider.state

    # --- what always holds -----------------------------------------------------------

    @invariant()
    def the_provider_does_no_more_than_it_bid_for(self):
        assert len(self.provider.units) <= IN_FLIGHT_MAX
        assert len(self.executed) == self.provider.units_asked <= UNITS_MAX
        assert set(self.provider.units) <= set(self.executed)

    @invariant()
    def the_requester_asks_for_no_more_than_it_awarded(self):
        assert len(self.requester.units) <= IN_FLIGHT_MAX
        assert self.requester.units_asked <= UNITS_MAX

    @invariant()
    def a_lease_has_an_award_and_an_award_a_bid(self):
        for side in (self.requester, self.provider):
            if side.state in {State.AWARDED, State.LEASED}:
                assert side.award is not None
                assert side.bid is not None
                assert side.ends_at_s is not None
        if self.requester.state is State.LEASED:
            assert self.requester.award_id == self.provider.award_id

    @invariant()
    def what_was_delivered_was_run(self):
        assert set(self.delivered) <= set(self.executed)

    def teardown(self):
        """When nobody says anything any more, both end, the provider by itself."""
        self.now_s += 1.0
        for unit in list(self.provider.units):
            self.provider.send(a_result(unit), self.now_s, unit)
        if self.provider.state is State.CALLED:
            self.provider.send(self.refusal(), self.now_s)
        if self.requester.state is State.LEASED:
            for unit in list(self.requester.units):  # their requests time out
                self.requester.send(Cancel(call=CALL_ID, unit=unit), self.now_s)
        self.wait(2.0, long=True)
        ends = {State.ENDED, State.IDLE}
        assert self.provider.state in ends
        assert self.requester.state in ends | {State.CALLED}  # that request times out


REQUESTS = tuple({kind for _, way, kind in REQUESTER if way is Way.SENT})
assert set(REQUESTS) == {kind for _, way, kind in PROVIDER if way is Way.GOT}

Conversation.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None
)
test_a_conversation_survives_its_network = Conversation.TestCase
