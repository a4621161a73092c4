"""Invitations: a private network in one line that can be pasted into a terminal.

A token holds the network's name and secret and where the inviting node is reached.
Its letters and digits are all lower case, so that a double click takes the whole of
it, and neither line breaks nor capitals on its way do harm. It carries its version,
its length and a checksum, so that each way of spoiling it has a name. The checksum
guards against accidents: who can make a token can put into it what they like, and
what is in it is checked like anything that a stranger wrote.

Pure: what a token does on a disk is the command line's and `swarm_key`'s.
"""

from __future__ import annotations

import base64
import re
from typing import Annotated, NewType

import msgspec
from blake3 import blake3
from msgspec import Meta

from shoal.node.addresses import parse_peer_address
from shoal.node.errors import ConfigError
from shoal.node.swarm_key import SECRET_SIZE_BYTES, SwarmKey, check_name

Token = NewType("Token", str)

VERSION = 1
ADDRESSES_LIMIT = 8
"""In one token: more make it long, and one that works is enough."""

_ALPHABET = frozenset("abcdefghijklmnopqrstuvwxyz234567")
_LENGTH_SIZE_BYTES = 2
_CHECKSUM_SIZE_BYTES = 8
_CHECKSUM_DOMAIN = b"shoal invitation 1\n"
_TEXT_LIMIT = 20_000
_COPY_AGAIN = "copy the whole line as the other machine printed it, or have it print another"


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    name: str
    secret: Annotated[bytes, Meta(min_length=SECRET_SIZE_BYTES, max_length=SECRET_SIZE_BYTES)]
    peer: str
    places: Annotated[tuple[str, ...], Meta(max_length=ADDRESSES_LIMIT)]


def write_token(key: SwarmKey) -> Token:
    """Put a network into a token.

    Args:
        key: Its ``bootstrap`` holds the addresses of one peer, at most
            `ADDRESSES_LIMIT`.
    """
    pairs = [parse_peer_address(address) for address in key.bootstrap]
    peer, *others = dict.fromkeys(peer for peer, _ in pairs)
    assert not others, "a token brings to one peer"
    body = msgspec.msgpack.encode(
        _Body(key.name, key.secret, peer, tuple(place for _, place in pairs))
    )
    data = len(body).to_bytes(_LENGTH_SIZE_BYTES) + body + _checksum(body)
    return Token(f"shoal{VERSION}_{_to_text(data)}")


def read_token(text: str) -> SwarmKey:
    """Read a token, however it was wrapped or capitalised.

    Raises:
        ConfigError: ``token_malformed``, ``token_version``, ``token_alphabet``,
            ``token_cut``, ``token_damaged``. The sentence holds nothing of the token.
    """
    match = re.fullmatch(r"shoal(\d{1,9})_(.*)", "".join(text[:_TEXT_LIMIT].split()).lower())
    if match is None:
        raise _refused(
            "malformed", "this is no invitation: one begins with shoal1_", _COPY_AGAIN
        )
    version, letters = int(match[1]), match[2]
    if version != VERSION:
        raise _refused(
            "version",
            f"this invitation has the form {version}, and this shoal reads the form {VERSION}",
            "use the same version of shoal on both machines",
        )
    if not _ALPHABET.issuperset(letters):
        raise _refused(
            "alphabet",
            "the invitation holds characters that none has: they are a to z and 2 to 7",
            _COPY_AGAIN,
        )
    return _key_of(_checked(letters))


def _checked(letters: str) -> bytes:
    """The body of a token whose letters are whole and unchanged."""
    head = _from_text(letters[:4])
    size = _LENGTH_SIZE_BYTES + int.from_bytes(head[:_LENGTH_SIZE_BYTES]) + _CHECKSUM_SIZE_BYTES
    whole = -(-size * 8 // 5)
    if len(letters) < 4 or len(letters) < whole:
        raise _refused("cut", "the end of the invitation is missing", _COPY_AGAIN)
    data = _from_text(letters)
    body = data[_LENGTH_SIZE_BYTES:-_CHECKSUM_SIZE_BYTES]
    if len(letters) > whole or _to_text(data) != letters or not data.endswith(_checksum(body)):
        raise _refused("damaged", "a character of the invitation is wrong", _COPY_AGAIN)
    return body


def _key_of(body: bytes) -> SwarmKey:
    try:
        found = msgspec.msgpack.decode(body, type=_Body)
        bootstrap = tuple(f"{place}/p2p/{found.peer}" for place in found.places)
        for address in bootstrap:
            parse_peer_address(address)
        return SwarmKey(check_name(found.name), found.secret, bootstrap)
    except (msgspec.MsgspecError, ConfigError):
        raise _refused(
            "malformed",
            "the invitation was not written by shoal: what is in it is no network",
            "ask for one that was made by shoal invite",
        ) from None


def _checksum(body: bytes) -> bytes:
    return blake3(_CHECKSUM_DOMAIN + body).digest(_CHECKSUM_SIZE_BYTES)


def _to_text(data: bytes) -> str:
    return base64.b32encode(data).decode().rstrip("=").lower()


def _from_text(letters: str) -> bytes:
    """Decode as many letters as make whole bytes."""
    count = len(letters) * 5 // 8
    bits = 0
    for letter in letters:
        bits = bits << 5 | (ord(letter) - 97 if letter >= "a" else ord(letter) - 24)
    return (bits >> (len(letters) * 5 - count * 8)).to_bytes(count)


def _refused(what: str, message: str, hint: str) -> ConfigError:
    return ConfigError(message, code=f"token_{what}", hint=hint)
