"""Invitations: what is in them comes out again, and each way to spoil one has a name."""

import msgspec
import pytest

from shoal.node import invitation
from shoal.node.errors import ConfigError
from shoal.node.invitation import read_token, write_token
from shoal.node.swarm_key import SwarmKey

PEER = "12D3KooWHn3bA8p3tDoZbEjJujVbkLo1t8uSprj4caNCTZZXm7ii"
PLACES = ("/ip4/192.0.2.7/tcp/4711", "/dns4/shoal.example/tcp/4712", "/ip6/2001:db8::7/tcp/1")
KEY = SwarmKey("lab 7", bytes(range(32)), tuple(f"{place}/p2p/{PEER}" for place in PLACES))
TOKEN = write_token(KEY)
CHARACTERS = "abcdefghijklmnopqrstuvwxyz234567"


def refused(token):
    """The code that ``token`` is refused with; no piece of it is in the sentence."""
    with pytest.raises(ConfigError) as caught:
        read_token(token)
    text = str(caught.value)
    assert caught.value.hint
    assert not any(TOKEN[at : at + 8] in text for at in range(7, len(TOKEN) - 8))
    return caught.value.code


def forged(*fields):
    """A token as `write_token` makes one, round a body that it never would."""
    body = msgspec.msgpack.encode(fields)
    data = len(body).to_bytes(2) + body + invitation._checksum(body)
    return f"shoal1_{invitation._to_text(data)}"


def test_a_token_brings_name_secret_and_addresses():
    assert read_token(TOKEN) == KEY


def test_a_token_is_one_word_of_small_letters_and_digits():
    assert set(TOKEN) <= set(CHARACTERS + "1_")
    assert len(TOKEN) < 350


def test_wrapped_quoted_in_capitals_or_with_spaces_round_it_is_the_same_token():
    wrapped = "\n  ".join(TOKEN[at : at + 40] for at in range(0, len(TOKEN), 40))
    assert read_token(f"  {wrapped}\r\n") == KEY
    assert read_token(TOKEN.upper()) == KEY


def test_a_token_cut_anywhere_is_said_to_be_cut():
    for length in range(7, len(TOKEN)):
        assert refused(TOKEN[:length]) == "token_cut"


def test_a_token_without_its_beginning_is_none():
    for start in (1, 7, 100):
        assert refused(TOKEN[start:]) == "token_malformed"
    assert refused("") == "token_malformed"


def test_one_wrong_character_is_noticed_wherever_it_is():
    for at in range(7, len(TOKEN)):
        after = CHARACTERS[(CHARACTERS.index(TOKEN[at]) + 1) % len(CHARACTERS)]
        code = refused(TOKEN[:at] + after + TOKEN[at + 1 :])
        # In the first four letters it changes the length that the token claims.
        assert code == "token_damaged" or (at < 11 and code == "token_cut")


def test_a_character_too_many_is_noticed():
    assert refused(TOKEN + "a") == "token_damaged"
    assert refused(TOKEN + TOKEN[7:]) == "token_damaged"


def test_a_token_of_another_version_is_named_as_such():
    assert refused(TOKEN.replace("shoal1_", "shoal2_")) == "token_version"


def test_a_token_in_another_base_is_named_as_such():
    for other in (KEY.secret.hex(), "AbC+/=", "0189", "é"):
        assert refused(f"shoal1_{other}") == "token_alphabet"


@pytest.mark.parametrize(
    "fields",
    [
        ("lab", bytes(31), PEER, PLACES),
        ("lab", bytes(33), PEER, PLACES),
        ("lab", bytes(32), "nobody", PLACES),
        ("lab", bytes(32), PEER, ["http://192.0.2.7"]),
        ("lab", bytes(32), PEER, PLACES * 3),
        ("\x1b[2Jlab", bytes(32), PEER, PLACES),
        ("public", bytes(32), PEER, PLACES),
        ("lab", bytes(32), PEER, PLACES, "more"),
        ("lab", bytes(32)),
        ({"a": 1},),
    ],
    ids=repr,
)
def test_a_token_that_somebody_made_up_is_checked_like_any_strangers_words(fields):
    assert refused(forged(*fields)) == "token_malformed"


def test_what_is_forged_here_differs_from_a_good_one_in_nothing_else():
    assert forged(KEY.name, KEY.secret, PEER, PLACES) == TOKEN
