"""Proof of possession: a keyed hash that only who has a blob's bytes can give now.

The verifier draws 32 fresh bytes, the prover answers with the BLAKE3 of the
blob's first bytes, keyed by the 32-byte digest of

    the 32 bytes ‖ the blob's id (32 bytes) ‖ how many bytes are hashed (8 bytes,
    little-endian) ‖ the prover's peer id ‖ the verifier's, each behind its length
    (2 bytes, big-endian)

taken in BLAKE3's key derivation mode with the context
``shoal 2026-11-26 possession of a blob``. The verifier takes the same hash of its
own copy. As both peer ids are in the key, an answer given to one
verifier is worth nothing before another, nor as the answer of another prover: a
stranger between the two cannot pass it on. An id or a chunk list is no help.

Asking, answering and comparing are for `node.blob_proofs`.
"""

from __future__ import annotations

from typing import Final

from blake3 import blake3

from shoal.crypto.content import BlobId, Buffer
from shoal.crypto.peer_id import PeerId

CONTEXT: Final = "shoal 2026-11-26 possession of a blob"
CHALLENGE_SIZE_BYTES: Final = 32
PROOF_SIZE_BYTES: Final = 32


class PossessionHasher:
    """Takes a blob's first bytes in pieces of any size and gives the proof.

    Args:
        challenge: `CHALLENGE_SIZE_BYTES` that the verifier drew for this proof alone.
        blob_id: The blob.
        size_bytes: How many of its bytes are to be hashed, from the first on.
        prover: Who answers.
        verifier: Who asked.
    """

    def __init__(
        self,
        challenge: bytes,
        blob_id: BlobId,
        size_bytes: int,
        *,
        prover: PeerId,
        verifier: PeerId,
    ) -> None:
        assert len(challenge) == CHALLENGE_SIZE_BYTES
        about = challenge + bytes.fromhex(blob_id) + size_bytes.to_bytes(8, "little")
        for peer in (prover, verifier):
            about += len(peer.encode()).to_bytes(2, "big") + peer.encode()
        key = blake3(about, derive_key_context=CONTEXT).digest()
        self._hash = blake3(key=key)

    def update(self, data: Buffer) -> None:
        """Take the next piece; other threads run while it is hashed."""
        self._hash.update(data)

    def digest(self) -> bytes:
        """The proof over all bytes taken, `PROOF_SIZE_BYTES` long."""
        return self._hash.digest()
