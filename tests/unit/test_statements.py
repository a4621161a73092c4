import math

import msgpack
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from strategies import (
    ALICE,
    BOB,
    CAROL,
    INPUT,
    MALLORY,
    OUTPUT,
    a_receipt,
    a_trace_root,
    an_acknowledgement,
    an_award,
    signed_acknowledgement,
    signed_advert,
    signed_receipt,
    signed_trace_root,
)

from shoal.crypto.content import blob_id_of
from shoal.crypto.envelope import Statement, signature_of
from shoal.crypto.errors import VerificationError
from shoal.protocol import limits
from shoal.protocol.codec import encode
from shoal.protocol.statements import (
    UnitError,
    check_receipt,
    open_acknowledgement,
    open_advert,
    open_award,
    open_receipt,
    open_trace_root,
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
    assert open_acknowledgement(signed_acknowledgement()) == an_acknowledgement()
    assert open_trace_root(signed_trace_root(stage=4)) == a_trace_root(stage=4)


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
        (open_acknowledgement, signed_acknowledgement(signer=BOB)),  # its provider
        (open_trace_root, signed_trace_root(signer=ALICE)),
    ],
)
def test_nobody_signs_for_another(opener, envelope):
    assert refusal_of(opener, envelope).code == "wrong_signer"


SIGNED = {
    open_receipt: signed_receipt(),
    open_award: AWARD,
    open_advert: signed_advert(),
    open_acknowledgement: signed_acknowledgement(),
    open_trace_root: signed_trace_root(),
}


@pytest.mark.parametrize("opener", SIGNED)
@pytest.mark.parametrize("envelope", SIGNED.values())
def test_one_kind_of_statement_never_passes_for_another(opener, envelope):
    if SIGNED[opener] != envelope:
        assert refusal_of(opener, envelope).code == "wrong_statement"


def test_the_signature_of_an_envelope_is_the_one_that_was_checked():
    payload = encode(a_receipt())
    key = Ed25519PrivateKey.from_private_bytes(bytes([1]) * 32)
    parts = (b"shoal-receipt-v1", b"/shoal/receipt", payload)
    signed = b"".join(bytes([len(part)]) + part for part in parts[:2])
    signed += bytes([len(payload) & 0x7F | 0x80, len(payload) >> 7]) + payload
    assert signature_of(signed_receipt()) == key.sign(signed)
    for other in (b"", b"*", signed_receipt()[:-1], signed_receipt() + b"x"):
        assert refusal_of(signature_of, other).code == "bad_envelope"


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


def test_stages_are_counted_under_a_root_or_not_at_all():
    staged = signed_receipt(trace="bb" * 32, stages=12)
    assert open_receipt(staged).stages == 12
    assert refusal_of(open_receipt, signed_receipt(stages=12)).code == "bad_receipt"


def test_what_older_awards_and_receipts_do_not_have_is_not_written_where_there_is_none():
    """Their bytes are then as those of 1.3, which anybody reads."""
    for statement in (an_award(), a_receipt()):
        written = msgpack.unpackb(encode(statement))
        assert not {"candidates", "salt_hash", "stages"} & set(written)
    drawn = an_award(candidates="bb" * 32, salt_hash=bytes(range(32)))
    assert open_award(ALICE.sign(Statement.AWARD, encode(drawn))) == drawn


def test_a_receipt_stands_in_an_acknowledgement_once():
    twice = signed_acknowledgement(receipts=("bb" * 32,) * 2)
    assert refusal_of(open_acknowledgement, twice).code == "bad_acknowledgement"


@pytest.mark.parametrize(
    ("opener", "envelope"),
    [
        (open_acknowledgement, (Statement.ACKNOWLEDGEMENT, an_acknowledgement(receipts=()))),
        (
            open_acknowledgement,
            (
                Statement.ACKNOWLEDGEMENT,
                an_acknowledgement(
                    receipts=tuple(
                        f"{number:064x}" for number in range(limits.ACKNOWLEDGED_LIMIT + 1)
                    )
                ),
            ),
        ),
        (open_trace_root, (Statement.TRACE_ROOT, a_trace_root(leaves=0))),
        (open_trace_root, (Statement.TRACE_ROOT, a_trace_root(root=bytes(31)))),
    ],
)
def test_what_is_signed_and_out_of_its_bounds_is_malformed(opener, envelope):
    kind, statement = envelope
    payload = msgpack.packb(msgspec.to_builtins(statement, builtin_types=(bytes,)))
    signed = [who.sign(kind, payload) for who in (ALICE, BOB, CAROL)]
    assert {refusal_of(opener, one).code for one in signed} == {"bad_payload"}


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
