"""XSalsa20 against libsodium's, which PyNaCl's secretbox is built on."""

from hypothesis import given
from hypothesis import strategies as st
from nacl.secret import SecretBox

from shoal.crypto.xsalsa20 import xsalsa20


@given(
    key=st.binary(min_size=32, max_size=32),
    nonce=st.binary(min_size=24, max_size=24),
    text=st.binary(max_size=300),
    cut=st.integers(0, 300),
)
def test_in_pieces_it_gives_what_libsodium_gives_at_once(key, nonce, text, cut):
    add_stream = xsalsa20(key, nonce)
    add_stream(bytes(32))  # secretbox keeps the first 32 bytes for its authenticator
    ours = add_stream(text[:cut]) + add_stream(text[cut:])
    assert ours == SecretBox(key).encrypt(text, nonce).ciphertext[16:]
