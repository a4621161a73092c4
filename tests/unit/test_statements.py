import math

import msgpack
import msgspec
import pytest
from strategies import (
    ALICE,
    BOB,
    INPUT,
    MALLORY,
    OUTPUT,
    a_receipt,
    an_award,
    signed_advert,
    signed_receipt,
)

from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement
from shoal.crypto.errors import VerificationError
from shoal.protocol import limits
from shoal.protocol.codec import encode
from shoal.protocol.statements import (
    UnitError,
    check_receipt,
    open_advert,
    open_award,
    open_receipt,
    statement_id,
)

ERROR = UnitError(code="nan", message="a NaN came out", node="node 17", operator="Div")
AWARD = ALICE.sign(Statement.AWARD, encode(an_award()))


def refusal_of(action, *arguments):
    with pytest.raises(VerificationError) as caught:
        action(*arguments)
    return caught.value


def test_what_is_signed_is_read_back():
    assert open_receipt(signed_receipt()) == a_receipt()
    assert open_award(AWARD) == an_award()
    assert open_advert(signed_advert()).peer == ALICE.peer_id


def test_a_statements_id_is_that_of_its_stored_bytes():
    assert statement_id(AWARD) == blob_id_of(AWARD)


@pytest.mark.parametrize(
    ("opener", "envelope"),
    [
        (open_receipt, signed_receipt(signer=MALLORY)),
        (open_receipt, signed_receipt(signer=ALICE)),  # its requester
        (open_award, MALLORY.sign(Statement.AWARD, encode(an_award()))),
        (open_award, BOB.sign(Statement.AWARD, encode(an_award()))),  # its provider
        (open_advert, signed_advert(ALICE, signer=MALLORY)),
    ],
)
def test_nobody_signs_for_another(opener, envelope):
    assert refusal_of(opener, envelope).code == "wrong_signer"


@pytest.mark.parametrize("opener", [open_receipt, open_award, open_advert])
@pytest.mark.parametrize("envelope", [signed_receipt(), AWARD, signed_advert()])
def test_one_kind_of_statement_never_passes_for_another(opener, envelope):
    fits = [
        (open_receipt, signed_receipt()),
        (open_award, AWARD),
        (open_advert, signed_advert()),
    ]
    if (opener, envelope) not in fits:
        assert refusal_of(opener, envelope).code == "wrong_statement"


def signed_tree(tree):
    return BOB.sign(Statement.RECEIPT, msgpack.packb(tree))


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"award": "aa" * 32 + "\n"},
        {"provider": "x" * 52},
        {"started_at_ms": math.nan},
        {"started_at_ms": -1},
        {"inputs": [["x", INPUT]] * (limits.PORTS_LIMIT + 1)},
        {"inputs": [["x"]]},
        {"outputs": {}},
        {"trace": ""},
    ],
)
def test_a_signature_does_not_make_a_malformed_receipt_good(change):
    tree = msgspec.to_builtins(a_receipt()) | change
    assert refusal_of(open_receipt, signed_tree(tree)).code == "bad_payload"


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x80\x80", bytes(1000)])
def test_a_signature_does_not_make_nonsense_good(payload):
    assert refusal_of(open_receipt, BOB.sign(Statement.RECEIPT, payload)).code == "bad_payload"


def test_an_error_is_a_receipt_too():
    receipt = open_receipt(signed_receipt(outputs=None, error=ERROR))
    assert receipt.error == ERROR


@pytest.mark.parametrize(
    ("outputs", "error"), [(None, None), ((("y", OUTPUT),), ERROR), ((), ERROR)]
)
def test_a_receipt_gives_outputs_or_an_error_and_not_both_or_neither(outputs, error):
    assert refusal_of(open_receipt, signed_receipt(outputs=outputs, error=error)).code == (
        "bad_receipt"
    )


@pytest.mark.parametrize("side", ["inputs", "outputs"])
@pytest.mark.parametrize("names", ["ba", "aa", "aba"])
def test_a_receipt_lists_each_name_once_and_in_order(side, names):
    listed = tuple((name, INPUT) for name in names)
    assert refusal_of(open_receipt, signed_receipt(**{side: listed})).code == "bad_receipt"


def test_an_advert_has_its_own_smaller_limit():
    largest = signed_advert(addresses=("a" * 250,) * 7)
    assert len(largest) > limits.ADVERT_LIMIT_BYTES
    assert refusal_of(open_advert, largest).code == "advert_too_large"


GIVEN = (statement_id(AWARD), an_award(), "job/0", {"x": INPUT})


def test_a_receipt_about_the_unit_that_was_given_passes():
    check_receipt(a_receipt(award=GIVEN[0]), *GIVEN)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("award", {"award": "bb" * 32}),
        ("unit", {"unit": "job/1"}),
        ("program", {"program": "bb" * 32}),
        ("numeric class", {"numeric_class": "low"}),
        ("precision", {"precision": "x20"}),
        ("provider", {"provider": MALLORY.peer_id}),
        ("requester", {"requester": MALLORY.peer_id}),
        ("inputs", {"inputs": ()}),
        ("inputs", {"inputs": (("x", OUTPUT),)}),
        ("inputs", {"inputs": (("x", INPUT), ("z", INPUT))}),
    ],
)
def test_the_first_field_that_differs_from_what_was_given_is_named(field, change):
    error = refusal_of(check_receipt, a_receipt(**{"award": GIVEN[0], **change}), *GIVEN)
    assert error.code == "receipt_mismatch"
    assert error.message.startswith(f"the receipt's {field} is ")


def test_inputs_are_compared_in_the_receipts_order_and_not_the_callers():
    inputs = {"b": INPUT, "a": OUTPUT}
    receipt = a_receipt(award=GIVEN[0], inputs=(("a", OUTPUT), ("b", INPUT)))
    check_receipt(receipt, *GIVEN[:3], inputs)
