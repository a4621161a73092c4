import pytest
from libp2p.crypto.ed25519 import Ed25519PrivateKey as Libp2pKey
from libp2p.crypto.rsa import create_new_key_pair as new_rsa_pair
from libp2p.peer import envelope as libp2p_envelope
from strategies import ALICE, BOB

from shoal.crypto import envelope as envelopes
from shoal.crypto.envelope import (
    ENVELOPE_LIMIT_BYTES,
    TOGETHER_LIMIT,
    Opened,
    Statement,
    open_envelope,
    seal,
    seal_many,
    signature_of,
)
from shoal.crypto.errors import VerificationError
from shoal.crypto.merkle import check_path, leaf_of, path_of, root_of, root_over

PAYLOAD = b"what is said"
SEALED = seal(Statement.AWARD, PAYLOAD, ALICE.key)


def refusal_of(envelope, kind=Statement.AWARD):
    with pytest.raises(VerificationError) as caught:
        open_envelope(envelope, kind)
    return caught.value.code


@pytest.mark.parametrize("kind", Statement)
@pytest.mark.parametrize("payload", [b"", PAYLOAD, bytes(200), bytes(40_000)])
def test_what_is_sealed_can_be_opened(kind, payload):
    sealed = seal(kind, payload, ALICE.key)
    assert open_envelope(sealed, kind) == Opened(ALICE.peer_id, payload)


@pytest.mark.parametrize("kind", Statement)
def test_libp2p_opens_ours(kind):
    theirs = libp2p_envelope.unmarshal_envelope(seal(kind, PAYLOAD, ALICE.key))
    theirs.validate(kind.value)
    assert theirs.raw_payload == PAYLOAD
    assert theirs.payload_type == kind.payload_type
    assert theirs.marshal_envelope() == seal(kind, PAYLOAD, ALICE.key)
    with pytest.raises(ValueError, match="signature"):
        theirs.validate("shoal-another-v1")


def sealed_by_libp2p(key, kind=Statement.AWARD):
    unsigned = libp2p_envelope.make_unsigned(kind.value, kind.payload_type, PAYLOAD)
    return libp2p_envelope.Envelope(
        public_key=key.get_public_key(),
        payload_type=kind.payload_type,
        raw_payload=PAYLOAD,
        signature=key.sign(unsigned),
    ).marshal_envelope()


@pytest.mark.parametrize("kind", Statement)
def test_ours_opens_libp2ps(kind):
    sealed = sealed_by_libp2p(Libp2pKey.from_bytes(ALICE.seed), kind)
    assert open_envelope(sealed, kind) == Opened(ALICE.peer_id, PAYLOAD)


def test_a_key_that_is_not_ed25519_is_refused():
    assert refusal_of(sealed_by_libp2p(new_rsa_pair(2048).private_key)) == "bad_public_key"


def test_domain_strings_and_payload_types_never_change_and_never_repeat():
    assert {kind.value: kind.payload_type for kind in Statement} == {
        "shoal-advert-v1": b"/shoal/advert",
        "shoal-award-v1": b"/shoal/award",
        "shoal-receipt-v1": b"/shoal/receipt",
        "shoal-commitment-v1": b"/shoal/commitment",
        "shoal-capability-v1": b"/shoal/capability",
        "shoal-renewal-v1": b"/shoal/renewal",
        "shoal-acknowledgement-v1": b"/shoal/acknowledgement",
        "shoal-trace-root-v1": b"/shoal/trace-root",
    }


@pytest.mark.parametrize("kind", [each for each in Statement if each is not Statement.AWARD])
def test_a_statement_of_one_kind_is_no_statement_of_another(kind):
    assert refusal_of(SEALED, kind) == "wrong_statement"
    relabelled = SEALED.replace(
        b"\x0c/shoal/award", bytes([len(kind.payload_type)]) + kind.payload_type
    )
    assert relabelled != SEALED
    assert refusal_of(relabelled, kind) == "bad_signature"


def test_every_byte_counts():
    for at in range(len(SEALED)):
        for changed in {SEALED[at] ^ 1, SEALED[at] ^ 0x80, (SEALED[at] + 1) % 256}:
            refusal_of(SEALED[:at] + bytes([changed]) + SEALED[at + 1 :])


def test_a_piece_of_an_envelope_is_none():
    for end in range(len(SEALED)):
        assert refusal_of(SEALED[:end]) == "bad_envelope"


@pytest.mark.parametrize("tail", [b"\0", SEALED, b"\x2a\x00"])
def test_nothing_may_follow(tail):
    assert refusal_of(SEALED + tail) == "bad_envelope"


@pytest.mark.parametrize("length", [b"\xa4\x00", b"\xa4\x80\x00", b"\xa4\x80\x80\x80\x00"])
def test_lengths_have_one_encoding(length):
    assert SEALED[1] == 0x24
    assert refusal_of(SEALED[:1] + length + SEALED[2:]) == "bad_envelope"


@pytest.mark.parametrize("length", [b"\xff\xff\xff\x7f", b"\xff" * 10 + b"\x01"])
def test_a_length_beyond_the_end_is_refused(length):
    assert refusal_of(SEALED[:1] + length + SEALED[2:]) == "bad_envelope"


def test_fields_come_in_one_order():
    first_field = SEALED[: 2 + 0x24]
    assert refusal_of(SEALED[len(first_field) :] + first_field) == "bad_envelope"


def test_another_key_cannot_claim_a_signature():
    bobs_field = seal(Statement.AWARD, PAYLOAD, BOB.key)[: 2 + 0x24]
    assert refusal_of(bobs_field + SEALED[len(bobs_field) :]) == "bad_signature"


def test_nothing_over_the_limit_is_opened_or_sealed():
    assert refusal_of(bytes(ENVELOPE_LIMIT_BYTES + 1)) == "envelope_too_large"
    with pytest.raises(VerificationError) as caught:
        seal(Statement.RECEIPT, bytes(ENVELOPE_LIMIT_BYTES), ALICE.key)
    assert caught.value.code == "envelope_too_large"


def test_the_largest_envelope_is_opened():
    around = len(seal(Statement.RECEIPT, bytes(20_000), ALICE.key)) - 20_000
    payload = bytes(ENVELOPE_LIMIT_BYTES - around)
    sealed = seal(Statement.RECEIPT, payload, ALICE.key)
    assert len(sealed) == ENVELOPE_LIMIT_BYTES
    assert open_envelope(sealed, Statement.RECEIPT).payload == payload


# --- signed together ---

PAYLOADS = [b"payload %d" % number for number in range(5)]
TOGETHER = seal_many(Statement.AWARD, PAYLOADS, ALICE.key)


def field(tag, value):
    assert len(value) < 1 << 14
    size = len(value)
    return (
        bytes([tag])
        + (bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7]))
        + value
    )


def fields_of(envelope):
    """Field by field, by another reader than the one that is tested."""
    fields, at = {}, 0
    while at < len(envelope):
        tag, size, at = envelope[at], envelope[at + 1], at + 2
        if size > 127:
            size, at = size & 127 | envelope[at] << 7, at + 1
        fields[tag], at = envelope[at : at + size], at + size
    return fields


def with_place(place, envelope=TOGETHER[1]):
    """The envelope with another place in the tree."""
    return b"".join(
        field(tag, value) for tag, value in (fields_of(envelope) | {0x22: place}).items()
    )


@pytest.mark.parametrize("count", [2, 3, 5, 8, 64, 129, TOGETHER_LIMIT])
def test_each_of_those_signed_together_can_be_opened_by_itself(count):
    payloads = [b"%d" % number for number in range(count)]
    for payload, sealed in zip(
        payloads, seal_many(Statement.AWARD, payloads, ALICE.key), strict=True
    ):
        assert open_envelope(sealed, Statement.AWARD) == Opened(ALICE.peer_id, payload)


def test_a_stranger_checks_one_with_ed25519_and_blake3_alone():
    """As docs/PROTOCOL.md says it is done."""
    fields = fields_of(TOGETHER[3])
    assert fields[0x1A] == PAYLOADS[3]
    index, count, path = fields[0x22][0], fields[0x22][1], fields[0x22][2:]
    root = root_over(PAYLOADS)
    check_path(root, leaf_of(fields[0x1A]), index, count, path)
    parts = (b"shoal-award-v1-root", b"/shoal/award", root + bytes([count]))
    signed = b"".join(bytes([len(part)]) + part for part in parts)
    ALICE.key.public_key().verify(fields[0x2A], signed)


def test_one_alone_is_signed_as_ever_and_has_no_other_form():
    assert seal_many(Statement.AWARD, [PAYLOAD], ALICE.key) == [SEALED]
    assert seal_many(Statement.AWARD, [], ALICE.key) == []
    root = leaf_of(PAYLOAD)
    signed = b"".join(
        bytes([len(part)]) + part
        for part in (b"shoal-award-v1-root", b"/shoal/award", root + b"\1")
    )
    fields = fields_of(SEALED) | {0x22: b"\0\1", 0x2A: ALICE.key.sign(signed)}
    assert (
        refusal_of(b"".join(field(tag, fields[tag]) for tag in sorted(fields)))
        == "bad_envelope"
    )


def test_there_is_a_limit_to_what_is_signed_together():
    with pytest.raises(VerificationError) as caught:
        seal_many(Statement.AWARD, [b""] * (TOGETHER_LIMIT + 1), ALICE.key)
    assert caught.value.code == "too_many_statements"


def test_the_signature_over_a_root_is_checked_once(monkeypatch):
    checked = []
    monkeypatch.setattr(envelopes, "_check_signature", lambda *what: checked.append(what))
    for sealed in seal_many(Statement.AWARD, [b"only here", b"and here"], ALICE.key) * 2:
        open_envelope(sealed, Statement.AWARD)
    assert len(checked) == 1


def test_a_false_signature_over_a_root_is_refused_each_time():
    fields = fields_of(TOGETHER[0])
    forged = b"".join(
        field(tag, bytes(64) if tag == 0x2A else value) for tag, value in fields.items()
    )
    assert [refusal_of(forged) for _ in range(3)] == ["bad_signature"] * 3
    open_envelope(TOGETHER[0], Statement.AWARD)
    assert refusal_of(forged) == "bad_signature"


def test_every_byte_of_one_signed_together_counts():
    for sealed in (TOGETHER[1], TOGETHER[4]):
        for at in range(len(sealed)):
            for changed in {sealed[at] ^ 1, sealed[at] ^ 0x80, (sealed[at] + 1) % 256}:
                refusal_of(sealed[:at] + bytes([changed]) + sealed[at + 1 :])
        for end in range(len(sealed)):
            assert refusal_of(sealed[:end]) == "bad_envelope"


@pytest.mark.parametrize("kind", [each for each in Statement if each is not Statement.AWARD])
def test_one_signed_together_is_no_statement_of_another_kind(kind):
    assert refusal_of(TOGETHER[1], kind) == "wrong_statement"
    relabelled = fields_of(TOGETHER[1]) | {0x12: kind.payload_type}
    changed = b"".join(field(tag, value) for tag, value in relabelled.items())
    assert refusal_of(changed, kind) == "bad_signature"


def test_a_place_is_the_only_one_that_it_is():
    path = path_of([leaf_of(payload) for payload in PAYLOADS], 1)
    assert with_place(b"\1\5" + path) == TOGETHER[1]
    for index in (0, 2, 3):
        assert refusal_of(with_place(bytes([index, 5]) + path)) == "bad_signature"
    for count in (6, 8):  # the path fits, and that is not what was signed
        assert refusal_of(with_place(bytes([1, count]) + path)) == "bad_signature"
    for place in (
        b"",
        b"\1",
        b"\5\5" + path,  # no such leaf
        b"\1\5" + path[:-32],
        b"\1\5" + path + bytes(32),
        b"\1\5" + path + b"\0",
        b"\x81\x00\5" + path,  # a longer varint
        b"\1\x85\x00" + path,
        b"\1\x81\x08" + path,  # over the limit
    ):
        assert refusal_of(with_place(place)) == "bad_envelope"


def test_the_last_of_an_odd_number_has_a_shorter_path_and_no_longer_one():
    lone = with_place(b"\4\5" + root_of([leaf_of(p) for p in PAYLOADS[:4]]), TOGETHER[4])
    assert lone == TOGETHER[4]
    longer = b"\4\5" + path_of([leaf_of(payload) for payload in PAYLOADS], 1)
    assert refusal_of(with_place(longer, TOGETHER[4])) == "bad_envelope"


def test_neither_form_passes_for_the_other():
    fields = fields_of(TOGETHER[1])
    del fields[0x22]
    assert (
        refusal_of(b"".join(field(tag, fields[tag]) for tag in sorted(fields)))
        == "bad_signature"
    )
    root = root_over(PAYLOADS) + b"\5"  # a root, signed as a payload, gives no leaf away
    fields = fields_of(TOGETHER[1]) | {
        0x2A: fields_of(seal(Statement.AWARD, root, ALICE.key))[0x2A]
    }
    assert (
        refusal_of(b"".join(field(tag, fields[tag]) for tag in sorted(fields)))
        == "bad_signature"
    )


def test_what_is_drawn_by_differs_for_all_that_is_signed_together():
    same = seal_many(Statement.AWARD, [PAYLOAD, PAYLOAD, PAYLOADS[0]], ALICE.key)
    drawn_by = {signature_of(sealed) for sealed in [*same, *TOGETHER, SEALED]}
    assert len(drawn_by) == 9
    assert {len(each) for each in drawn_by} == {64}
    assert signature_of(SEALED) == SEALED[-64:]
