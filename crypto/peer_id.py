"""libp2p peer ids of Ed25519 keys: the name of a node, and its public key at once.

An Ed25519 peer id is the base58 text of an identity multihash over the
protobuf of the public key, so the key is read out of the name and no look-up
can go wrong. Source: libp2p peer ids specification, "Ed25519 keys".
"""

from __future__ import annotations

from functools import lru_cache
from typing import NewType

import base58

from shoal.crypto.errors import VerificationError

PeerId = NewType("PeerId", str)
"""Base58 text of an Ed25519 libp2p peer id: ``12D3KooW…``, 52 characters."""

PUBLIC_KEY_SIZE_BYTES = 32
PUBLIC_KEY_PROTOBUF_PREFIX = bytes([0x08, 0x01, 0x12, 0x20])
"""Protobuf of ``PublicKey{Type: Ed25519, Data: 32 bytes}`` before the data."""

_IDENTITY_MULTIHASH_PREFIX = bytes([0x00, 0x24])
_PREFIX = _IDENTITY_MULTIHASH_PREFIX + PUBLIC_KEY_PROTOBUF_PREFIX
_TEXT_SIZE = 52

_REMEMBERED = 1024
"""Peer ids whose text is kept: to encode one takes half as long as to sign a receipt."""


def peer_id_of(public_key: bytes) -> PeerId:
    """Name the node that holds the private half of ``public_key`` (32 raw bytes)."""
    if len(public_key) != PUBLIC_KEY_SIZE_BYTES:
        message = f"an Ed25519 public key has 32 bytes, this one has {len(public_key)}"
        raise VerificationError(message, code="bad_public_key")
    return _text_of(bytes(public_key))


@lru_cache(maxsize=_REMEMBERED)
def _text_of(public_key: bytes) -> PeerId:
    return PeerId(base58.b58encode(_PREFIX + public_key).decode("ascii"))


def public_key_of(peer_id: str) -> bytes:
    """Read the 32 raw bytes of the Ed25519 public key out of a peer id.

    Raises:
        VerificationError: The text is not the canonical form of an Ed25519 peer id.
    """
    try:
        raw = base58.b58decode(peer_id) if len(peer_id) == _TEXT_SIZE else b""
    except ValueError:
        raw = b""
    if len(raw) != len(_PREFIX) + PUBLIC_KEY_SIZE_BYTES or not raw.startswith(_PREFIX):
        message = f"{peer_id[:64]!r} is not an Ed25519 peer id"
        raise VerificationError(
            message,
            code="bad_peer_id",
            hint="a peer id is 52 characters and begins with 12D3KooW",
        )
    return raw[len(_PREFIX) :]


def check_peer_id(text: str) -> PeerId:
    """Give ``text`` back as a peer id, or raise as `public_key_of` does."""
    public_key_of(text)
    return PeerId(text)
