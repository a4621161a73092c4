import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import ALICE, one_byte_changed

from shoal.crypto.envelope import Statement, open_envelope, seal, seal_many, signature_of
from shoal.crypto.errors import VerificationError

kinds = st.sampled_from(Statement)
several = st.lists(st.binary(max_size=60), min_size=2, max_size=40)


@given(kinds, st.binary(max_size=400))
def test_what_is_sealed_can_be_opened(kind, payload):
    opened = open_envelope(seal(kind, payload, ALICE.key), kind)
    assert (opened.signer, opened.payload) == (ALICE.peer_id, payload)


@given(st.data(), kinds, st.binary(max_size=300))
def test_an_envelope_with_any_byte_changed_is_refused(data, kind, payload):
    changed = data.draw(one_byte_changed(seal(kind, payload, ALICE.key)))
    for claimed in Statement:
        with pytest.raises(VerificationError):
            open_envelope(changed, claimed)


@given(st.binary(max_size=300), kinds)
def test_random_bytes_are_no_envelope(data, kind):
    with pytest.raises(VerificationError):
        open_envelope(data, kind)


@given(kinds, several)
def test_what_is_sealed_together_is_opened_one_by_one_and_drawn_one_by_one(kind, payloads):
    sealed = seal_many(kind, payloads, ALICE.key)
    assert [open_envelope(one, kind).payload for one in sealed] == payloads
    assert len({signature_of(one) for one in sealed}) == len(payloads)


@given(st.data(), kinds, several)
def test_one_sealed_together_with_any_byte_changed_is_refused(data, kind, payloads):
    one = data.draw(st.sampled_from(seal_many(kind, payloads, ALICE.key)))
    changed = data.draw(one_byte_changed(one))
    for claimed in Statement:
        with pytest.raises(VerificationError):
            open_envelope(changed, claimed)
