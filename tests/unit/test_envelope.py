import pytest
from libp2p.crypto.ed25519 import Ed25519PrivateKey as Libp2pKey
from libp2p.crypto.rsa import create_new_key_pair as new_rsa_pair
from libp2p.peer import envelope as libp2p_envelope
from strategies import ALICE, BOB

from shoal.crypto.envelope import ENVELOPE_LIMIT_BYTES, Opened, Statement, open_envelope, seal
from shoal.crypto.errors import VerificationError

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
