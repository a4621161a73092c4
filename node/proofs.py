"""What a claimed rate is worth here: whose word stands behind it.

A proof of capability (`protocol.statements.CapabilityProof`) is a verifier's word about
a prover's device, and is worth what the verifier is worth. This node counts proofs by
itself and by the peers on its allow list; others are shown and not counted, since
anybody can make keys and let one vouch for another. Proofs come from three places: this
node's own challenges, what verifiers gave this node about itself, and what others show
of themselves when they are asked (`node.proof_asking`).

Decisions and a book in memory; `node.capability_records` keeps on disk what others gave
and what this node saw itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node.capability_views import Claim
from shoal.node.device_lines import line_of
from shoal.protocol.limits import CLOCK_TOLERANCE_MS, PROOFS_LIMIT
from shoal.protocol.statements import CapabilityProof, open_proof

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from shoal.protocol.device_offers import ClassRate, DeviceOffer
    from shoal.protocol.statements import Advert

PROOF_LIFETIME_MS: Final = 30 * 86400 * 1000
"""A machine that was fast a month ago may have been sold."""

CLAIM_GROWTH: Final = 1.25
"""A claim that was measured anew may be so many times what was proven: noise, no upgrade."""

BOOK_LIMIT: Final = 1024
"""Proofs kept, by this node about others and by others about it."""

SHOWN_LIMIT: Final = 1024
"""Nodes of which is kept what they show of themselves, 3 KB each at the most."""


class Proof(msgspec.Struct, frozen=True):
    """A proof whose signature was checked."""

    envelope: bytes
    verifier: PeerId
    said: CapabilityProof


def checked(envelope: bytes) -> Proof:
    """Check a proof; raises VerificationError."""
    said, verifier = open_proof(envelope)
    return Proof(envelope, verifier, said)


def is_valid(proof: Proof, wall_ms: int) -> bool:
    """Whether its time is not over, and has come; clocks may differ."""
    age_ms = wall_ms - proof.said.issued_at_ms
    return -CLOCK_TOLERANCE_MS <= age_ms <= PROOF_LIFETIME_MS


def supports(proof: Proof, prover: str, device: str, rate: ClassRate) -> bool:
    """Whether a proof is about this claim."""
    said = proof.said
    return (
        (said.prover, said.device) == (prover, device)
        and (said.numeric_class, said.precision) == (rate.numeric_class, rate.precision)
        and rate.rate <= CLAIM_GROWTH * said.rate
    )


def claims_of(
    prover: str,
    devices: Iterable[DeviceOffer],
    proofs: Sequence[Proof],
    counted: Collection[str],
    wall_ms: int,
    lines: Sequence[DeviceOffer] = (),
) -> tuple[Claim, ...]:
    """A node's claims, with who has seen them shown.

    A claim is about each card of its line: who has seen any of them show it has seen it.

    Args:
        prover: The node.
        devices: Those whose claims are meant.
        proofs: All there are; those about something else do not matter.
        counted: Verifiers whose word counts.
        wall_ms: This node's wall clock.
        lines: As it offers them, where that is not what ``devices`` are.
    """
    devices = tuple(devices)
    lines = lines or devices
    valid = [(p, line_of(lines, p.said.device)) for p in proofs if is_valid(p, wall_ms)]
    claims = []
    for device in devices:
        line = line_of(lines, device.id)
        seen = [p for p, at in valid if p.said.device == device.id or (at and at is line)]
        for rate in device.rates:
            by = {p.verifier for p in seen if supports(p, prover, p.said.device, rate)}
            claims.append(
                Claim(
                    device=device.id,
                    numeric_class=rate.numeric_class,
                    precision=rate.precision,
                    rate=rate.rate,
                    proven=not by.isdisjoint(counted),
                    verifiers=tuple(sorted(by)),
                )
            )
    return tuple(claims)


def to_give(
    proofs: Sequence[Proof],
    claimed: Collection[tuple[str, ClassRate]],
    preferred: Collection[str],
    wall_ms: int,
) -> tuple[Proof, ...]:
    """What a node shows of what it ``claimed``: those that its peers will most likely count.

    By verifiers that this node trusts itself first, so that strangers who challenge
    often displace nobody; then the newest.
    """
    fitting = (
        proof
        for proof in proofs
        if is_valid(proof, wall_ms)
        and any(supports(proof, proof.said.prover, device, rate) for device, rate in claimed)
    )
    ranked = sorted(
        fitting, key=lambda proof: (proof.verifier not in preferred, -proof.said.issued_at_ms)
    )
    return tuple(ranked[:PROOFS_LIMIT])


@dataclass(slots=True)
class ProofBook:
    """The proofs this node knows of.

    Args:
        own: This node.
        allowed: Peers whose word counts, beside its own.
    """

    own: PeerId
    allowed: frozenset[str]
    _kept: dict[tuple[str, ...], Proof] = field(default_factory=dict)
    _shown: dict[str, tuple[int, tuple[Proof, ...]]] = field(default_factory=dict)

    @property
    def counted(self) -> frozenset[str]:
        """Verifiers whose word counts here."""
        return self.allowed | {self.own}

    def keep(self, proof: Proof) -> None:
        """Keep a proof by or about this node, in place of an older one of the same.

        Where there are too many, the oldest that does not count goes: anybody can make
        keys, and with them proofs that would displace those that count.
        """
        said = proof.said
        key = (proof.verifier, said.prover, said.device, said.numeric_class, said.precision)
        self._kept.pop(key, None)
        while len(self._kept) >= BOOK_LIMIT:
            uncounted = (k for k, p in self._kept.items() if p.verifier not in self.counted)
            del self._kept[next(uncounted, next(iter(self._kept)))]
        self._kept[key] = proof

    def about(self, prover: str) -> list[Proof]:
        """The kept proofs about a node."""
        return [proof for proof in self._kept.values() if proof.said.prover == prover]

    def lacks(self, advert: Advert) -> bool:
        """Whether a node has newer proofs to show than were taken in here."""
        seen_ms, _ = self._shown.get(advert.peer, (0, ()))
        return advert.proven_at_ms > seen_ms

    def take_in(self, advert: Advert, envelopes: Sequence[bytes]) -> None:
        """Keep what a node showed when it was asked, in place of what it showed before.

        What is no proof, or about another node, is left out. Where there are too many
        nodes, the one that was asked first is forgotten.
        """
        self._shown.pop(advert.peer, None)
        while len(self._shown) >= SHOWN_LIMIT:
            del self._shown[next(iter(self._shown))]
        proofs = []
        for envelope in envelopes:
            try:
                proofs.append(checked(envelope))
            except VerificationError:
                continue
        mine = tuple(proof for proof in proofs if proof.said.prover == advert.peer)
        self._shown[advert.peer] = (advert.proven_at_ms, mine)

    def claims(self, advert: Advert, wall_ms: int) -> tuple[Claim, ...]:
        """What a node claims in its advert, and what that is worth here."""
        _, shown = self._shown.get(advert.peer, (0, ()))
        proofs = [*self.about(advert.peer), *shown]
        return claims_of(advert.peer, advert.devices, proofs, self.counted, wall_ms)
