"""The draw: whether a receipt is checked, and by whom, so that anybody can draw again.

An award names the list of candidates and the hash of a salt. The draw follows from the
signature of the receipt, which the provider alone can make, and from the salt, which the
requester alone knows until it reveals it: neither can choose who is drawn. Ed25519 lets a
signer make many good signatures of one receipt, and receipts that are signed together can
be put in any order; that is of no use to it: it does not know the salt by which they would
be compared. The requester might try salts, but it has
named the hash before the receipt was there.

Everything is hashed with BLAKE3, each use behind a prefix of its own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgpack
from blake3 import blake3

from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.envelope import SIGNATURE_SIZE_BYTES, signature_of
from shoal.crypto.peer_id import PeerId
from shoal.protocol.errors import LocalProtocolError
from shoal.protocol.limits import CANDIDATES_LIMIT

__all__ = [
    "SALT_SIZE_BYTES",
    "encode_list",
    "is_drawn",
    "list_id",
    "salt_hash",
    "signature_of",
    "verifiers",
]

SALT_SIZE_BYTES = 32

_DRAW, _VERIFIER = b"shoal-draw", b"shoal-verifier"


def encode_list(peers: Iterable[PeerId]) -> bytes:
    """A list of candidates as bytes: msgpack of the peer ids, sorted, each once.

    Raises:
        LocalProtocolError: ``too_many_candidates``.
    """
    listed = sorted(set(peers))
    if len(listed) > CANDIDATES_LIMIT:
        raise LocalProtocolError(
            f"{len(listed)} candidates, and {CANDIDATES_LIMIT} may be in a list",
            code="too_many_candidates",
        )
    encoded: bytes = msgpack.packb(listed)
    return encoded


def list_id(peers: Iterable[PeerId]) -> BlobId:
    """The content id of a list, as an award names it; raises as `encode_list`."""
    return blob_id_of(encode_list(peers))


def salt_hash(salt: bytes) -> bytes:
    """What an award says of a salt."""
    return blake3(salt).digest()


def is_drawn(signature: bytes, salt: bytes, p: float) -> bool:
    """Whether a receipt is checked, where ``p`` of all are (0 none, 1 all).

    Args:
        signature: Of the receipt's envelope (`signature_of`).
        salt: Of the award.
        p: Which part of all receipts; what is drawn at one ``p`` is drawn at any greater.
    """
    _check_sizes(signature, salt)
    drawn = int.from_bytes(blake3(_DRAW + signature + salt).digest(8), "big")
    return drawn < p * 2.0**64


def verifiers(
    signature: bytes,
    salt: bytes,
    candidates: Iterable[PeerId],
    exclude: Collection[PeerId] = (),
) -> list[PeerId]:
    """All candidates in the order in which they are asked to verify a receipt.

    Args:
        signature: Of the receipt's envelope (`signature_of`).
        salt: Of the award.
        candidates: The award's list, in any order.
        exclude: Those who may not judge it: its provider, and the requester itself.
    """
    _check_sizes(signature, salt)
    base = _VERIFIER + signature + salt
    able = set(candidates).difference(exclude)
    return sorted(able, key=lambda peer: (blake3(base + peer.encode()).digest(), peer))


def _check_sizes(signature: bytes, salt: bytes) -> None:
    """Both have one size, so that no two draws are over the same bytes."""
    assert len(signature) == SIGNATURE_SIZE_BYTES
    assert len(salt) == SALT_SIZE_BYTES
