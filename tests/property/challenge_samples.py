"""A capability challenge in small: a verifier, a prover, and honest leaves for both.

The "products" are made up of hashes of seed and row, so that the machines are tried
without arithmetic: a verifier that computes a row asks `leaf_at`.
"""

from __future__ import annotations

from typing import Any

import msgspec
from strategies import ALICE, BOB, CAROL, MALLORY

from shoal.crypto.envelope import Statement
from shoal.crypto.merkle import leaf_of, root_of
from shoal.protocol.challenge import ProverSide, VerifierSide
from shoal.protocol.challenge_messages import Challenge, Committed, Draw, Opened, ProofOffer
from shoal.protocol.challenge_terms import first_seed, next_seed
from shoal.protocol.codec import encode
from shoal.protocol.statements import CapabilityProof, Commitment
from shoal.protocol.versions import OWN

__all__ = ["ALICE", "BOB", "CAROL", "MALLORY"]

NONCE = "ab" * 16
OTHER_NONCE = "cd" * 16
WALL_MS = 1_700_000_000_000


def a_challenge(**changes: Any) -> Challenge:
    challenge = Challenge(
        nonce=NONCE,
        device="cpu",
        numeric_class="exact",
        precision="x20",
        rate=1e6,
        rows=5,
        size=128,
        steps=2,
    )
    return msgspec.structs.replace(challenge, **changes)


def leaf_at(seed: bytes, row: int) -> bytes:
    """What stands for the digest of a product's row."""
    return leaf_of(seed + bytes([row]))


def honest_leaves(root: bytes, challenge: Challenge) -> list[list[bytes]]:
    """Of each step, the leaves of an honest prover."""
    seed, steps = first_seed(root), []
    for _ in range(challenge.steps):
        steps.append([leaf_at(seed, row) for row in range(challenge.rows)])
        seed = next_seed(seed, root_of(steps[-1]))
    return steps


def a_commitment(
    challenge: Challenge, products: list[list[bytes]], **changes: Any
) -> Commitment:
    side = ProverSide(ALICE.peer_id, BOB.peer_id, challenge=challenge)
    commitment = side.commitment_to(tuple(map(root_of, products)), elapsed_s=0.1)
    return msgspec.structs.replace(commitment, **changes)


def committed(commitment: Commitment, signer: Any = BOB) -> Committed:
    envelope = signer.sign(Statement.COMMITMENT, encode(commitment))
    return Committed(nonce=commitment.nonce, commitment=envelope)


def joined(steps: list[list[bytes]]) -> tuple[bytes, ...]:
    return tuple(b"".join(leaves) for leaves in steps)


def signed_proof(signer: Any = ALICE, **changes: Any) -> bytes:
    proof = CapabilityProof(
        protocol=OWN,
        prover=BOB.peer_id,
        device="cpu",
        numeric_class="exact",
        precision="x20",
        rate=2e9,
        shown=1e9,
        commitment=b"c" * 32,
        issued_at_ms=WALL_MS,
    )
    proof = msgspec.structs.replace(proof, **changes)
    return signer.sign(Statement.CAPABILITY, encode(proof))


class Pair:
    """A verifier and a prover, joined; each step is one call, with its time."""

    def __init__(self, challenge: Challenge | None = None, round_trip_s: float = 0.0) -> None:
        self.challenge = challenge or a_challenge()
        self.verifier = VerifierSide(ALICE.peer_id, BOB.peer_id, round_trip_s=round_trip_s)
        self.prover = ProverSide(ALICE.peer_id, BOB.peer_id)
        self.steps: list[list[bytes]] = []
        self.places = ((0, 0), (1, 4), (1, 2), (0, 3))

    def ask(self, now_s: float = 0.0) -> None:
        self.verifier.send(self.challenge, now_s)
        self.prover.receive(self.challenge, now_s)
        self.steps = honest_leaves(self.prover.root, self.challenge)

    def commit(self, now_s: float = 0.1, answer: Committed | None = None) -> None:
        self.prover.leaves = joined(self.steps)
        honest = committed(a_commitment(self.challenge, self.steps))
        self.prover.send(honest, now_s)
        self.verifier.receive(answer or honest, now_s)

    def draw(self, now_s: float = 0.2) -> Opened:
        draw = Draw(nonce=self.challenge.nonce, places=self.places)
        self.verifier.send(draw, now_s)
        self.prover.receive(draw, now_s)
        opened = self.prover.open()
        self.prover.send(opened, now_s)
        return opened

    def judge(self) -> CapabilityProof:
        leaves = [leaf_at(row.seed, row.row) for row in self.verifier.rows]
        return self.verifier.judge(leaves, WALL_MS)

    def finish(self, now_s: float = 0.3) -> ProofOffer:
        self.verifier.receive(self.draw(now_s), now_s)
        proof = ALICE.sign(Statement.CAPABILITY, encode(self.judge()))
        offer = ProofOffer(nonce=self.challenge.nonce, proof=proof)
        self.verifier.send(offer, now_s)
        return offer
