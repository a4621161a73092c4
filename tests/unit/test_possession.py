"""A proof of possession is of these bytes, for this challenge, between these two."""

import pytest
from blake3 import blake3

from shoal.crypto.content import blob_id_of
from shoal.crypto.peer_id import PeerId
from shoal.crypto.possession import PossessionHasher

CHALLENGE = bytes(range(32))
DATA = b"a private tensor"
BLOB = blob_id_of(DATA)
PROVER, VERIFIER = PeerId("prover"), PeerId("verifier")


def proof(
    data=DATA,
    challenge=CHALLENGE,
    blob=BLOB,
    size_bytes=16,
    prover=PROVER,
    verifier=VERIFIER,
):
    hasher = PossessionHasher(challenge, blob, size_bytes, prover=prover, verifier=verifier)
    hasher.update(data)
    return hasher.digest()


def test_a_proof_is_what_the_document_says():
    about = (
        CHALLENGE
        + bytes.fromhex(BLOB)
        + bytes([16, 0, 0, 0, 0, 0, 0, 0])
        + b"\0\x06prover\0\x08verifier"
    )
    key = blake3(about, derive_key_context="shoal 2026-11-26 possession of a blob").digest()
    assert proof() == blake3(DATA, key=key).digest()


@pytest.mark.parametrize(
    "change",
    [
        {"data": DATA[:-1]},
        {"challenge": bytes(32)},
        {"blob": blob_id_of(b"another")},
        {"size_bytes": 15},
        {"prover": PeerId("another")},
        {"verifier": PeerId("another")},
        {"prover": VERIFIER, "verifier": PROVER},
        {"prover": PeerId("proververifie"), "verifier": PeerId("r")},
    ],
    ids=str,
)
def test_a_proof_fits_nothing_else(change):
    assert proof(**change) != proof()


def test_a_proof_does_not_depend_on_how_the_bytes_came():
    hasher = PossessionHasher(CHALLENGE, BLOB, 16, prover=PROVER, verifier=VERIFIER)
    for byte in DATA:
        hasher.update(bytes([byte]))
    assert hasher.digest() == proof()
