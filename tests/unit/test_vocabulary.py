"""What is said to whom: the table, and words that a peer is too old for."""

from typing import get_args

import msgspec
import pytest
from strategies import ALICE, INPUT, a_bid, a_call, a_unit, some_results, some_units

from shoal.protocol import vocabulary
from shoal.protocol.challenge_messages import Challenge, Draw
from shoal.protocol.checking_messages import Reveal
from shoal.protocol.codec import encode
from shoal.protocol.errors import VersionError
from shoal.protocol.limits import PROTOCOL_MINOR
from shoal.protocol.messages import Hello, Problem, Request, RequestBody, Response, ResponseBody
from shoal.protocol.negotiation_messages import (
    Bid,
    Cancel,
    Reason,
    Refusal,
    Share,
    UnitRefusal,
    UnitRequest,
    UnitsRequest,
    UnitsResult,
)
from shoal.protocol.versions import OWN, is_newer, misfit
from shoal.protocol.vocabulary import SINCE, knows, read_greeting, said_to

OLD = (OWN[0], 0)
REFUSAL = Refusal(call="ab" * 16, reason=Reason.BUSY, detail="later")


def test_the_table_has_every_message_and_no_future():
    assert set(SINCE) == set(get_args(RequestBody)) | set(get_args(ResponseBody))
    assert max(SINCE.values()) <= PROTOCOL_MINOR


def test_a_message_that_a_peer_does_not_know_is_not_said():
    challenge = Draw(nonce="ab" * 16, places=((0, 0),))
    assert said_to(OWN, challenge) == challenge
    with pytest.raises(VersionError, match=r"protocol 1\.0 does not know Draw") as refused:
        said_to(OLD, challenge)
    assert refused.value.code == "peer_too_old"


def test_a_newer_peer_knows_whatever_we_know():
    assert all(knows((OWN[0], OWN[1] + 5), message) for message in SINCE)
    assert not knows(OLD, Challenge)


def test_a_field_that_a_peer_does_not_know_is_left_out(monkeypatch):
    monkeypatch.setattr(vocabulary, "FIELDS_SINCE", {(Refusal, "detail"): 2, (Bid, "x"): 9})
    assert said_to((OWN[0], 2), REFUSAL) == REFUSAL
    old = said_to((OWN[0], 1), REFUSAL)
    assert b"detail" not in encode(old)
    assert old.reason is Reason.BUSY


def test_a_reason_that_a_peer_does_not_know_is_said_in_words(monkeypatch):
    monkeypatch.setattr(vocabulary, "REASONS_SINCE", {Reason.BUSY: 2})
    assert said_to((OWN[0], 2), REFUSAL) == REFUSAL
    old = said_to((OWN[0], 1), REFUSAL)
    assert (old.reason, old.detail) == (Reason.INTERNAL, "later")


def test_what_every_version_knows_is_said_as_it_is():
    for body in (a_call(), a_bid(batch_max=1), REFUSAL):
        assert said_to(OLD, body) is body


def test_of_batches_an_older_peer_hears_nothing():
    old = said_to((OWN[0], 2), a_bid(batch_max=64))
    assert b"batch_max" not in encode(old)
    assert old.in_flight_max == a_bid().in_flight_max
    several = said_to((OWN[0], 5), a_bid(at_once=2))
    assert b"at_once" not in encode(several)
    assert said_to((OWN[0], 6), a_bid(at_once=2)).at_once == 2
    many = Cancel(call="ab" * 16, unit="a", others=("b",))
    assert b"others" not in encode(said_to((OWN[0], 2), many))
    for batch in (some_units("a"), some_results("a")):
        assert said_to(OWN, batch) is batch
        with pytest.raises(VersionError):
            said_to((OWN[0], 2), batch)


def test_every_field_that_is_younger_than_its_message_has_a_default():
    for holder, name in vocabulary.FIELDS_SINCE:
        field = next(f for f in msgspec.structs.fields(holder) if f.name == name)
        assert not field.required


def test_what_is_said_of_kept_outputs_is_left_out_for_older_peers():
    keep = UnitRequest(
        call="ab" * 16, unit="j/0", inputs=(), keep=True, sources=((INPUT, ALICE.peer_id),)
    )
    missing = msgspec.structs.replace(REFUSAL, missing=INPUT)
    for body, words in ((keep, (b"keep", b"sources")), (missing, (b"missing",))):
        old = encode(said_to((OWN[0], 2), body))
        assert not any(word in old for word in words)
        assert said_to((OWN[0], 3), body) is body
    with pytest.raises(VersionError, match="Share"):
        said_to((OWN[0], 2), Share(blobs=(INPUT,), peer=ALICE.peer_id))


def test_what_1_4_brought_inside_a_batch_is_left_out_for_older_peers():
    """Both are inside a message that 1.3 knows, where it would end the stream."""
    plain, traced = a_unit("a"), msgspec.structs.replace(a_unit("b"), trace=True)
    batch = UnitsRequest(call=plain.call, units=(plain, traced))
    old = said_to((OWN[0], 3), batch)
    assert [unit.unit for unit in old.units] == ["a", "b"]
    assert b"trace" not in encode(old)
    assert said_to(OWN, batch) is batch
    refusal = UnitRefusal(unit="b", reason=Reason.UNSETTLED, detail="acknowledge first")
    answers = UnitsResult(call=plain.call, answers=(*some_results("a").answers, refusal))
    old = said_to((OWN[0], 3), answers)
    assert old.answers[0] is answers.answers[0]
    assert (old.answers[1].reason, old.answers[1].detail) == (Reason.INTERNAL, refusal.detail)
    assert said_to(OWN, answers) is answers


def test_of_bans_and_debts_an_older_peer_hears_in_words_alone():
    for reason in (Reason.BANNED, Reason.UNSETTLED):
        refusal = msgspec.structs.replace(REFUSAL, reason=reason)
        old = said_to((OWN[0], 3), refusal)
        assert (old.reason, old.detail) == (Reason.INTERNAL, "later")
    with pytest.raises(VersionError, match="Reveal"):
        said_to((OWN[0], 3), Reveal(award=INPUT, salt=bytes(32), candidates=()))


@pytest.mark.parametrize(
    ("theirs", "advice"),
    [
        ((OWN[0] + 1, 0), "upgrade this node"),
        ((OWN[0] - 1, 99), "its operator must upgrade it"),
    ],
)
def test_another_major_is_a_misfit_that_says_what_to_upgrade(theirs, advice):
    assert misfit(theirs) == f"speaks protocol {theirs[0]}: {advice}"


def test_minors_of_one_major_fit():
    assert misfit((OWN[0], OWN[1] + 9)) is None
    assert misfit(OLD) is None
    assert is_newer((OWN[0], OWN[1] + 1))
    assert not is_newer(OWN)


@pytest.mark.parametrize("version", [(OWN[0], OWN[1] + 1), (OWN[0] + 1, 0)])
def test_the_hello_of_any_newer_version_is_read(version):
    hello = {"type": "hello", "protocol": list(version), "agent": "x/9", "new": {"a": 1}}
    wire = msgspec.msgpack.encode({"type": "request", "id": 3, "body": hello})
    assert read_greeting(wire, Request) == Request(id=3, body=Hello(version, "x/9"))


def test_a_problem_in_place_of_a_hello_is_read_whoever_says_it():
    problem = {"type": "problem", "code": "version_unsupported", "message": "x", "new": 1}
    wire = msgspec.msgpack.encode({"type": "response", "id": 3, "body": problem})
    assert read_greeting(wire, Response).body == Problem("version_unsupported", "x")
