import itertools

import msgspec
import pytest
from strategies import (
    ALICE,
    BOB,
    CALL_ID,
    INPUT,
    MALLORY,
    PROGRAM,
    a_bid,
    a_call,
    a_result,
    a_unit,
    an_offer,
    some_results,
    some_units,
)

from shoal.protocol import negotiation
from shoal.protocol.errors import LocalProtocolError, RemoteProtocolError
from shoal.protocol.limits import IN_FLIGHT_LIMIT_BYTES, INLINE_LIMIT_BYTES, SOURCE_BYTES
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
    AwardOffer,
    Cancel,
    Lease,
    Reason,
    Refusal,
    Release,
    UnitRefusal,
    UnitRequest,
    UnitsRequest,
    UnitsResult,
    unit_bytes,
)
from shoal.protocol.statements import statement_id

OTHER_CALL = "0c" * 16
OFFER = an_offer()
AWARD_ID = statement_id(OFFER.award)
LEASE = Lease(call=CALL_ID, award=AWARD_ID, idle_s=30.0)
REFUSAL = Refusal(call=CALL_ID, reason=Reason.BUSY)
RELEASE = Release(call=CALL_ID)
CANCEL = Cancel(call=CALL_ID, unit="job/0")

MESSAGES = (
    *(a_call(), a_bid(), REFUSAL, OFFER, LEASE, a_unit(), a_result(), CANCEL, RELEASE),
    *(some_units("job/0"), some_results("job/0")),
)

THE_PATH = (a_call(), a_bid(), OFFER, LEASE, a_unit())
"""One conversation up to a unit that is out, at the requester's and provider's turns."""
STATES_ON_IT = (State.IDLE, State.CALLED, State.BID, State.AWARDED, State.LEASED, State.LEASED)
REQUESTERS = (type(a_call()), AwardOffer, type(a_unit()), UnitsRequest, Cancel, Release)


def speak(side, message, now_s=0.0, unit=""):
    """Put a message through ``side`` the way it goes; gives the effects."""
    sent = isinstance(message, REQUESTERS) == isinstance(side, RequesterSide)
    if isinstance(side, RequesterSide):
        return side.send(message, now_s) if sent else side.receive(message, now_s, unit)
    return side.send(message, now_s, unit) if sent else side.receive(message, now_s)


def inline(name, size_bytes):
    return msgspec.structs.replace(a_unit(name), blobs=(bytes(size_bytes),))


def side_after(role, steps, now_s=0.0):
    side = role(ALICE.peer_id, BOB.peer_id)
    for message in THE_PATH[:steps]:
        speak(side, message, now_s)
    assert side.state is STATES_ON_IT[steps]
    return side


def side_in(role, state):
    if state is State.ENDED:
        side = side_after(role, 1)
        speak(side, REFUSAL)
        assert side.state is State.ENDED
        return side
    return side_after(role, max(i for i, s in enumerate(STATES_ON_IT) if s is state))


@pytest.fixture
def requester():
    return side_after(RequesterSide, 4)


@pytest.fixture
def provider():
    return side_after(ProviderSide, 4)


def local_error(action, *arguments):
    with pytest.raises(LocalProtocolError) as caught:
        action(*arguments)
    return caught.value.code


def remote_error(action, *arguments):
    with pytest.raises(RemoteProtocolError) as caught:
        action(*arguments)
    return caught.value.code


# --- the tables ------------------------------------------------------------------


@pytest.mark.parametrize("message", MESSAGES, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("way", Way)
@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("role", "table"), [(RequesterSide, REQUESTER), (ProviderSide, PROVIDER)]
)
def test_what_is_in_the_table_moves_the_state_and_all_else_raises(
    role, table, state, way, message
):
    side = side_in(role, state)
    act = side.send if way is Way.SENT else side.receive
    extra = ("job/0",) if (way is Way.SENT) == (role is ProviderSide) else ()
    wanted = table.get((state, way, type(message)))
    if wanted is not None:
        act(message, 0.0, *extra)
        assert side.state is wanted
    else:
        error = local_error if way is Way.SENT else remote_error
        assert error(act, message, 0.0, *extra) == "out_of_turn"
        assert side.state is state


def test_the_two_tables_mirror_each_other():
    other = {Way.SENT: Way.GOT, Way.GOT: Way.SENT}
    mirrored = {(s, other[w], m): then for (s, w, m), then in REQUESTER.items()}
    for early in (UnitRequest, UnitsRequest):  # reading in order, a provider gets them later
        assert mirrored.pop((State.AWARDED, Way.GOT, early)) is State.AWARDED
    assert mirrored == PROVIDER


def test_every_state_is_reached_and_every_state_but_the_last_is_left():
    assert {State.IDLE, *REQUESTER.values()} == set(State)
    assert {state for state, _, _ in REQUESTER} == set(State) - {State.ENDED}


@pytest.mark.parametrize("role", [RequesterSide, ProviderSide])
@pytest.mark.parametrize("steps", range(1, 5))
def test_a_message_about_another_call_is_refused(role, steps):
    side = side_after(role, steps)
    before = side.state
    for message in (Release(call=OTHER_CALL), Refusal(call=OTHER_CALL, reason=Reason.BUSY)):
        with pytest.raises((LocalProtocolError, RemoteProtocolError)) as caught:
            speak(side, message, unit="job/0")
        assert caught.value.code == "unknown_call"
    assert side.state is before


def test_a_bid_for_an_unknown_call_is_refused():
    assert remote_error(side_after(RequesterSide, 1).receive, a_bid(call=OTHER_CALL), 0.0) == (
        "unknown_call"
    )


# --- time --------------------------------------------------------------------------


def test_a_bid_binds_until_its_time_is_up():
    side = side_after(ProviderSide, 2)
    assert not side.expire(9.9)
    side.receive(OFFER, 9.9)
    assert side.state is State.AWARDED


def test_an_award_to_an_expired_bid_is_refused():
    side = side_after(ProviderSide, 2)
    assert remote_error(side.receive, OFFER, 10.0) == "expired"
    assert side.state is State.ENDED
    assert side.award is None


def test_an_expired_bid_ends_on_both_sides():
    for role in (RequesterSide, ProviderSide):
        side = side_after(role, 2)
        assert side.expire(10.0)
        assert not side.expire(11.0), "it ends once"


def test_a_lease_may_come_after_the_bids_time_when_the_award_was_in_time():
    side = side_after(RequesterSide, 2)
    side.send(OFFER, 9.0)
    side.receive(LEASE, 15.0)
    assert side.state is State.LEASED


def test_an_award_that_is_not_answered_ends_by_its_own_idle_time():
    for role in (RequesterSide, ProviderSide):
        side = side_after(role, 2)
        speak(side, OFFER, 9.0)
        assert not side.expire(38.9)
        assert side.expire(39.0)


def test_a_unit_on_an_expired_lease_is_refused(provider):
    assert remote_error(provider.receive, a_unit(), 30.0) == "expired"
    assert provider.state is State.ENDED
    assert provider.units == {}


def test_a_lease_does_not_expire_while_a_unit_is_out(requester, provider):
    for side in (requester, provider):
        speak(side, a_unit(), 29.0)
        assert not side.expire(1000.0)
        speak(side, a_result(), 1000.0, "job/0")
        assert not side.expire(1029.0)
        assert side.expire(1030.0)


def test_a_lease_lives_on_after_its_only_unit_was_cancelled(requester, provider):
    for side in (requester, provider):
        speak(side, a_unit(), 1.0)
        speak(side, CANCEL, 1000.0)
        assert not side.expire(1029.0)
        assert side.expire(1030.0)


# --- awards ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "code"),
    [
        (an_offer(signer=MALLORY), "bad_award"),
        (an_offer(signer=MALLORY, requester=MALLORY.peer_id), "award_mismatch"),
        (an_offer(provider=MALLORY.peer_id), "award_mismatch"),
        (an_offer(call=OTHER_CALL), "award_mismatch"),
        (an_offer(program="bb" * 32), "award_mismatch"),
        (an_offer(numeric_class="exact"), "award_mismatch"),
        (an_offer(precision="x20"), "award_mismatch"),
        (an_offer(price=1.4), "award_mismatch"),
        (an_offer(units_max=6), "award_mismatch"),
        (AwardOffer(call=CALL_ID, award=b"nonsense"), "bad_award"),
        (AwardOffer(call=CALL_ID, award=OFFER.award[:-1] + b"\0"), "bad_award"),
    ],
)
def test_an_award_that_is_not_what_was_agreed_is_refused_and_changes_nothing(offer, code):
    provider = side_after(ProviderSide, 2)
    assert remote_error(provider.receive, offer, 0.0) == code
    assert provider.state is State.BID
    assert provider.award is None
    provider.receive(OFFER, 0.0)
    requester = side_after(RequesterSide, 2)
    assert local_error(requester.send, offer, 0.0) == code
    assert requester.state is State.BID


def test_an_award_for_fewer_units_than_were_bid_is_taken():
    side = side_after(ProviderSide, 2)
    side.receive(an_offer(units_max=1), 0.0)
    assert side.award.units_max == 1


def test_an_award_is_not_taken_twice(provider):
    assert remote_error(provider.receive, OFFER, 0.0) == "out_of_turn"


@pytest.mark.parametrize("award", ["bb" * 32, PROGRAM])
def test_a_lease_on_another_award_is_refused_and_changes_nothing(award):
    wrong = Lease(call=CALL_ID, award=award, idle_s=30.0)
    requester = side_after(RequesterSide, 3)
    assert remote_error(requester.receive, wrong, 0.0) == "unknown_award"
    assert requester.state is State.AWARDED
    requester.receive(LEASE, 0.0)
    assert local_error(side_after(ProviderSide, 3).send, wrong, 0.0) == "unknown_award"


# --- units ---------------------------------------------------------------------------


def test_a_unit_goes_out_and_comes_back(requester, provider):
    requester.send(a_unit(), 0.0)
    assert provider.receive(a_unit(), 0.0) == [Execute(a_unit())]
    provider.send(a_result(), 1.0, "job/0")
    assert requester.receive(a_result(), 1.0, "job/0") == [Deliver(a_unit(), a_result())]
    assert requester.units == provider.units == {}


def test_a_refused_unit_is_delivered_as_such(requester):
    requester.send(a_unit(), 0.0)
    assert requester.receive(REFUSAL, 1.0, "job/0") == [Deliver(a_unit(), REFUSAL)]
    assert requester.state is State.LEASED


def test_a_unit_asked_for_again_is_answered_again_and_not_run_again(provider):
    assert provider.receive(a_unit(), 0.0) == [Execute(a_unit())]
    assert provider.receive(a_unit(), 1.0) == [Await("job/0")]
    provider.send(a_result(), 2.0, "job/0")
    assert provider.receive(a_unit(), 3.0) == [Answer(a_result())]
    provider.send(a_result(), 3.0, "job/0")
    assert provider.units_asked == 1


def test_asking_again_takes_no_room_at_the_requester(requester):
    for name in ("a", "b"):
        requester.send(a_unit(name), 0.0)
    requester.send(a_unit("a"), 1.0)
    assert requester.units_asked == 2
    requester.receive(a_result("a"), 2.0, "a")
    requester.send(a_unit("a"), 3.0)
    assert requester.units_asked == 2


def test_a_second_answer_is_dropped(requester):
    requester.send(a_unit(), 0.0)
    requester.receive(a_result(), 1.0, "job/0")
    assert requester.receive(a_result(), 2.0, "job/0") == []


def test_no_more_units_are_out_than_the_bid_allows(requester, provider):
    for name in ("a", "b"):
        speak(requester, a_unit(name))
        speak(provider, a_unit(name))
    assert local_error(requester.send, a_unit("c"), 0.0) == "too_many_in_flight"
    assert remote_error(provider.receive, a_unit("c"), 0.0) == "too_many_in_flight"
    assert provider.units.keys() == requester.units.keys() == {"a", "b"}


def test_no_more_units_are_run_than_were_awarded(requester, provider):
    for name in "abcd":
        for side in (requester, provider):
            speak(side, a_unit(name))
            speak(side, a_result(name), unit=name)
    assert local_error(requester.send, a_unit("e"), 0.0) == "lease_used_up"
    assert remote_error(provider.receive, a_unit("e"), 0.0) == "lease_used_up"
    assert provider.receive(a_unit("a"), 0.0) == [Answer(a_result("a"))]


def test_cancelled_units_count_too(provider):
    for name in "abcd":
        provider.receive(a_unit(name), 0.0)
        provider.receive(Cancel(call=CALL_ID, unit=name), 0.0)
    assert remote_error(provider.receive, a_unit("e"), 0.0) == "lease_used_up"


def test_a_cancelled_unit_is_abandoned_and_never_run_again(provider):
    provider.receive(a_unit(), 0.0)
    assert provider.receive(CANCEL, 0.0) == [Abandon("job/0")]
    assert provider.receive(CANCEL, 0.0) == []
    (answer,) = provider.receive(a_unit(), 0.0)
    assert answer.message.reason is Reason.EXPIRED


def test_an_answer_that_crosses_a_cancel_is_nobodys_fault(requester, provider):
    for side in (requester, provider):
        speak(side, a_unit())
        speak(side, CANCEL)
    provider.send(a_result(), 1.0, "job/0")
    assert requester.receive(a_result(), 1.0, "job/0") == []
    (answer,) = provider.receive(a_unit(), 2.0)
    assert isinstance(answer.message, Refusal), "a late result does not undo a cancel"


def test_cancelling_what_is_not_out_does_nothing(provider):
    assert provider.receive(Cancel(call=CALL_ID, unit="never asked"), 0.0) == []
    provider.receive(a_unit(), 0.0)
    provider.send(a_result(), 0.0, "job/0")
    assert provider.receive(CANCEL, 0.0) == []
    assert provider.receive(a_unit(), 0.0) == [Answer(a_result())]


@pytest.mark.parametrize(("about", "as_unit"), [("x", "x"), ("job/0", "x"), ("x", "job/0")])
def test_an_answer_about_a_unit_not_asked_for_is_refused(requester, provider, about, as_unit):
    speak(requester, a_unit())
    speak(provider, a_unit())
    assert remote_error(requester.receive, a_result(about), 0.0, as_unit) == "unknown_unit"
    assert local_error(provider.send, a_result(about), 0.0, as_unit) == "unknown_unit"
    assert requester.units.keys() == provider.units.keys() == {"job/0"}


def test_release_abandons_whatever_is_out(provider):
    for name in ("a", "b"):
        provider.receive(a_unit(name), 0.0)
    assert provider.receive(RELEASE, 0.0) == [Abandon("a"), Abandon("b")]
    assert provider.state is State.ENDED


def test_nothing_is_said_after_release(requester):
    requester.send(a_unit(), 0.0)
    requester.send(RELEASE, 0.0)
    for message in (a_unit(), CANCEL, RELEASE):
        assert local_error(requester.send, message, 0.0) == "out_of_turn"


def test_answers_kept_are_bounded_and_the_oldest_are_forgotten(provider, monkeypatch):
    monkeypatch.setattr(negotiation, "LEASE_ANSWERS_LIMIT_BYTES", 250)
    results = {name: a_result(name, blobs=(bytes(100),)) for name in "abc"}
    for name, result in results.items():
        provider.receive(a_unit(name), 0.0)
        provider.send(result, 0.0, name)
    answers = list(itertools.chain(*(provider.receive(a_unit(name), 0.0) for name in "abc")))
    assert answers[1:] == [Answer(results["b"]), Answer(results["c"])]
    assert answers[0].message.reason is Reason.EXPIRED


# --- several units in one message --------------------------------------------------------


def test_the_units_of_a_batch_go_out_and_come_back_each_by_its_name(requester, provider):
    batch = some_units("a", "b")
    requester.send(batch, 0.0)
    assert provider.receive(batch, 0.0) == [Execute(a_unit("a")), Execute(a_unit("b"))]
    provider.send(a_result("b"), 1.0, "b")  # as it ends
    refused = UnitRefusal(unit="a", reason=Reason.NO_ROOM, detail="full")
    answer = UnitsResult(call=CALL_ID, answers=(refused, a_result("b")))
    provider.send(answer, 2.0)
    no = Refusal(call=CALL_ID, reason=Reason.NO_ROOM, detail="full")
    assert requester.receive(answer, 3.0, "a", "b") == [
        Deliver(a_unit("a"), no),
        Deliver(a_unit("b"), a_result("b")),
    ]
    assert requester.units == provider.units == {}
    assert provider.receive(a_unit("a"), 4.0) == [Answer(no)]


def test_a_batch_is_its_units_and_each_is_run_once(provider):
    provider.receive(a_unit("a"), 0.0)
    assert provider.receive(some_units("b", "a"), 0.0) == [Execute(a_unit("b")), Await("a")]
    provider.send(a_result("a"), 1.0, "a")
    assert provider.receive(some_units("a", "b"), 1.0) == [Answer(a_result("a")), Await("b")]
    assert provider.units_asked == 2


def test_one_refusal_answers_a_whole_batch(requester):
    requester.send(some_units("a", "b"), 0.0)
    delivered = requester.receive(REFUSAL, 1.0, "a", "b")
    assert delivered == [Deliver(a_unit("a"), REFUSAL), Deliver(a_unit("b"), REFUSAL)]
    assert requester.state is State.LEASED


def test_a_unit_of_a_batch_is_cancelled_alone_and_the_batch_answered_all_the_same(
    requester, provider
):
    for side in (requester, provider):
        speak(side, some_units("a", "b"))
    cancel = Cancel(call=CALL_ID, unit="a")
    requester.send(cancel, 1.0)
    assert provider.receive(cancel, 1.0) == [Abandon("a")]
    assert provider.units.keys() == {"b"}
    answer = some_results("a", "b")  # its result crossed the cancel
    provider.send(answer, 2.0)
    assert requester.receive(answer, 2.0, "a", "b") == [Deliver(a_unit("b"), a_result("b"))]
    (kept,) = provider.receive(a_unit("a"), 3.0)
    assert isinstance(kept.message, Refusal)


def test_several_units_are_cancelled_by_one_message(requester, provider):
    cancel = Cancel(call=CALL_ID, unit="a", others=("b", "never asked"))
    for side in (requester, provider):
        speak(side, some_units("a", "b"))
    assert provider.receive(cancel, 1.0) == [Abandon("a"), Abandon("b")]
    requester.send(cancel, 1.0)
    assert requester.units == provider.units == {}


@pytest.mark.parametrize(
    ("batch", "code"),
    [
        (some_units("a", "b", "c"), "batch_too_large"),
        (some_units("a", "a"), "duplicate_unit"),
        (
            UnitsRequest(
                call=CALL_ID,
                units=(a_unit("a"), msgspec.structs.replace(a_unit("b"), call=OTHER_CALL)),
            ),
            "unknown_call",
        ),
    ],
)
def test_a_batch_that_is_not_what_was_agreed_is_refused_whole(requester, provider, batch, code):
    assert local_error(requester.send, batch, 0.0) == code
    assert remote_error(provider.receive, batch, 0.0) == code
    assert requester.units == provider.units == {}
    assert requester.units_asked == provider.units_asked == 0


def test_no_batch_is_taken_where_the_bid_does_not_offer_it():
    for role, error in ((RequesterSide, local_error), (ProviderSide, remote_error)):
        side = role(ALICE.peer_id, BOB.peer_id)
        for message in (a_call(), a_bid(batch_max=1), OFFER, LEASE):
            speak(side, message)
        act = side.send if role is RequesterSide else side.receive
        assert error(act, some_units("a", "b"), 0.0) == "batch_too_large"
        act(some_units("a"), 0.0)


def test_a_batch_of_which_one_unit_has_no_room_is_refused_whole(requester, provider):
    for side, error in ((requester, local_error), (provider, remote_error)):
        speak(side, a_unit("a"))
        act = side.send if side is requester else side.receive
        assert error(act, some_units("b", "c"), 0.0) == "too_many_in_flight"
        assert side.units.keys() == {"a"}
        for name in "abc":
            speak(side, a_unit(name))
            speak(side, a_result(name), unit=name)
        assert error(act, some_units("d", "e"), 0.0) == "lease_used_up"
        assert side.units_asked == 3
        assert side.room == 1


def test_what_is_out_has_no_more_bytes_than_a_provider_may_be_made_to_hold():
    half = INLINE_LIMIT_BYTES // 2
    for role, error in ((RequesterSide, local_error), (ProviderSide, remote_error)):
        side = role(ALICE.peer_id, BOB.peer_id)
        for message in (
            a_call(),
            a_bid(in_flight_max=64, units_max=64),
            an_offer(units_max=64),
        ):
            speak(side, message)
        speak(side, Lease(call=CALL_ID, award=side.award_id, idle_s=30.0))
        assert side.room_bytes == IN_FLIGHT_LIMIT_BYTES
        batches = IN_FLIGHT_LIMIT_BYTES // (2 * unit_bytes(inline("0a", half)))
        for batch in range(batches):
            units = (inline(f"{batch}a", half), inline(f"{batch}b", half))
            speak(side, UnitsRequest(call=CALL_ID, units=units))
        left = side.room_bytes
        assert left == IN_FLIGHT_LIMIT_BYTES - 2 * batches * unit_bytes(units[0])
        sourced = msgspec.structs.replace(a_unit(), sources=((INPUT, BOB.peer_id),) * 3)
        assert unit_bytes(sourced) == unit_bytes(a_unit()) + 3 * SOURCE_BYTES
        act = side.send if role is RequesterSide else side.receive
        too_large = inline("one more", left)  # its names count too
        assert error(act, too_large, 0.0) == "too_many_in_flight"
        speak(side, inline("one more", left - unit_bytes(a_unit("one more"))))
        assert side.room_bytes == 0
        speak(side, a_result("0a"), unit="0a")
        speak(side, Cancel(call=CALL_ID, unit="0b"))
        assert side.room_bytes == 2 * unit_bytes(units[0])


@pytest.mark.parametrize(
    "answer",
    [
        some_results("a"),
        some_results("b", "a"),
        some_results("a", "c"),
        some_results("a", "b", "c"),
        some_results("a", "a"),
        a_result("a"),
    ],
)
def test_an_answer_to_a_batch_that_is_not_about_its_units_is_refused(requester, answer):
    requester.send(some_units("a", "b"), 0.0)
    assert remote_error(requester.receive, answer, 1.0, "a", "b") == "unknown_unit"
    assert requester.units.keys() == {"a", "b"}


def test_a_second_answer_to_a_batch_is_dropped(requester):
    requester.send(some_units("a", "b"), 0.0)
    requester.receive(some_results("a", "b"), 1.0, "a", "b")
    assert requester.receive(some_results("a", "b"), 2.0, "a", "b") == []


def test_units_that_go_out_with_the_award_are_answered_under_the_lease():
    requester = side_after(RequesterSide, 3)
    requester.send(a_unit("a"), 0.0)
    requester.send(a_unit("b"), 0.0)
    assert local_error(requester.send, a_unit("c"), 0.0) == "too_many_in_flight"
    assert remote_error(requester.receive, a_result("a"), 0.0, "a") == "out_of_turn"
    requester.receive(Lease(call=CALL_ID, award=requester.award_id, idle_s=30.0), 1.0)
    (delivered,) = requester.receive(a_result("a"), 2.0, "a")
    assert delivered.unit.unit == "a"


def test_there_is_no_room_before_a_lease_and_none_after_it(requester):
    assert side_after(RequesterSide, 3).room == 0
    assert requester.room == 2
    requester.send(a_unit("a"), 0.0)
    assert requester.room == 1
    requester.send(RELEASE, 0.0)
    assert requester.room == 0
