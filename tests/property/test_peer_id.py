from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import peer_id_of, public_key_of

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


@given(st.binary(min_size=32, max_size=32))
def test_name_and_key_say_the_same(key):
    assert public_key_of(peer_id_of(key)) == key


@given(st.text(BASE58, min_size=44, max_size=44))
def test_no_key_has_two_names(end):
    text = "12D3KooW" + end
    with suppress(VerificationError):
        assert peer_id_of(public_key_of(text)) == text


@given(st.text(max_size=60) | st.text(min_size=52, max_size=52))
def test_text_is_a_peer_id_or_refused(text):
    if text.startswith("12D3KooW"):
        return
    with pytest.raises(VerificationError):
        public_key_of(text)
