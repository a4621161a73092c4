"""XSalsa20 against the vectors that NaCl was published with."""

import hashlib

import pytest

from shoal.crypto.xsalsa20 import hsalsa20, xsalsa20

# NaCl's tests/core1, core2, stream and stream3 (D. J. Bernstein, "Cryptography in NaCl", 2009).
SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
FIRST_KEY = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
SECOND_KEY = bytes.fromhex("dc908dda0b9344a953629b733820778880f3ceb421bb61b91cbd4c3e66256ce4")
NONCE = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
STREAM = bytes.fromhex("eea6a7251c1e72916d11c2cb214d3c252539121d8e234e652d651fa4c8cff880")
STREAM_4_MIB_SHA256 = "662b9d0e3463029156069b12f918691a98f7dfb2ca0393c96bbfc6b1fbd630a2"


def test_hsalsa20_gives_the_keys_of_nacls_vectors():
    assert hsalsa20(SHARED, bytes(16)) == FIRST_KEY
    assert hsalsa20(FIRST_KEY, NONCE[:16]) == SECOND_KEY


def test_the_key_stream_is_that_of_nacls_vectors():
    stream = xsalsa20(FIRST_KEY, NONCE)(bytes(1 << 22))
    assert stream[:32] == STREAM
    assert hashlib.sha256(stream).hexdigest() == STREAM_4_MIB_SHA256


@pytest.mark.parametrize("size", [8, 23, 25])
def test_a_nonce_of_another_size_is_refused(size):
    with pytest.raises(ValueError, match="24 bytes"):
        xsalsa20(FIRST_KEY, bytes(size))
