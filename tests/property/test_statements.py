import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    ALICE,
    BOB,
    one_byte_changed,
    signed_acknowledgement,
    signed_advert,
    signed_receipt,
    signed_trace_root,
    structs_of,
)

from shoal.crypto.envelope import ENVELOPE_LIMIT_BYTES, Statement
from shoal.crypto.errors import VerificationError
from shoal.protocol.codec import encode
from shoal.protocol.statements import (
    Receipt,
    open_acknowledgement,
    open_advert,
    open_award,
    open_receipt,
    open_trace_root,
)

RECEIPT = signed_receipt()


@settings(max_examples=500)
@given(one_byte_changed(RECEIPT))
def test_a_receipt_with_any_byte_changed_is_refused(changed):
    with pytest.raises(VerificationError):
        open_receipt(changed)


@given(one_byte_changed(signed_advert()))
def test_an_advert_with_any_byte_changed_is_refused(changed):
    with pytest.raises(VerificationError):
        open_advert(changed)


YOUNGER = {
    open_acknowledgement: signed_acknowledgement(),
    open_trace_root: signed_trace_root(),
}


@given(st.data(), st.sampled_from(list(YOUNGER)))
def test_a_statement_with_any_byte_changed_is_refused(data, opener):
    with pytest.raises(VerificationError):
        opener(data.draw(one_byte_changed(YOUNGER[opener])))


@settings(deadline=None)
@given(structs_of(Receipt))
def test_a_signed_receipt_is_good_or_refused_by_name(receipt):
    """Whatever a provider signs, nothing but `VerificationError` comes of it."""
    payload = encode(receipt)
    if len(payload) > ENVELOPE_LIMIT_BYTES // 2:
        return
    refused = None
    try:
        opened = open_receipt(BOB.sign(Statement.RECEIPT, payload))
    except VerificationError as error:
        refused = error
    if refused is None:
        assert opened == receipt
    else:
        assert refused.code in {"wrong_signer", "bad_receipt", "version_unsupported"}


@given(
    st.binary(max_size=100), st.sampled_from([open_receipt, open_award, open_advert, *YOUNGER])
)
def test_nonsense_is_refused_signed_or_not(data, opener):
    envelopes = [data, *(ALICE.sign(kind, data) for kind in Statement)]
    for envelope in envelopes:
        with pytest.raises(VerificationError):
            opener(envelope)
