"""The fraud proofs that a node believes, and which of them are public: a part of `convictions`.

Proof and blobs are kept where others can fetch them, within `PUBLIC_SHARE` of the blob
store, so that whoever is told can judge them; the newest and this node's own stay longest.
A proof of a job that keeps its proofs at home is never public.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import structlog

from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.envelope import is_signed_together
from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import PeerId
from shoal.node.blob_transfer import EVERYBODY
from shoal.node.errors import StoreError
from shoal.node.peer_views import ProofView
from shoal.protocol.checking_messages import Accusation
from shoal.protocol.limits import (
    ACCUSATIONS_LIMIT,
    ACCUSED_BLOBS_LIMIT,
    PROOF_BLOBS_LIMIT,
    PROOF_BLOBS_LIMIT_BYTES,
    PROTOCOL_MAJOR,
)
from shoal.protocol.verification import fraud_proof
from shoal.protocol.vocabulary import SIGNED_TOGETHER_SINCE

if TYPE_CHECKING:
    from shoal.node.house import House
    from shoal.node.journal_verdicts import KeptProof
    from shoal.protocol.versions import Version

PUBLIC_SHARE: Final = 1 / 8
"""Of the blob store, for proofs and their blobs."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Charge:
    """What a well-formed proof says before it is judged.

    Attributes:
        accused: Whom it is against.
        at_s: When the award was given under which that peer lied, since the epoch.
    """

    accused: PeerId
    at_s: float


@dataclass(slots=True)
class Believed:
    """A proof that this node believes.

    Attributes:
        accusation: What others are told of it.
        verdict: What it shows.
        own: Whether it is of work that this node gave.
        at: When it was judged here, in seconds since the epoch.
        private: Whether it is for this node alone.
        public: Whether anybody can fetch it here now.
        since: The version of the protocol from which on a node can read it. An older one
            would call it false, and whoever told it of that a liar.
    """

    accusation: Accusation
    verdict: str
    own: bool
    at: float
    private: bool = False
    public: bool = False
    since: Version = (PROTOCOL_MAJOR, 0)

    @property
    def size_bytes(self) -> int:
        """Of the proof and of what it takes to judge it."""
        return self.accusation.proof_bytes + self.accusation.blobs_bytes

    def view(self) -> ProofView:
        """It as a person sees it."""
        said = self.accusation
        return ProofView(
            id=BlobId(said.proof),
            accused=PeerId(said.accused),
            verdict=self.verdict,
            own=self.own,
            at=self.at,
            proof_bytes=said.proof_bytes,
            blobs=tuple(map(BlobId, said.blobs)),
            blobs_bytes=said.blobs_bytes,
            public=self.public,
            private=self.private,
        )


@dataclass(slots=True)
class BelievedProofs:
    """The proofs of the bans that last, by their ids."""

    _known: dict[BlobId, Believed] = field(default_factory=dict)

    def views(self) -> list[ProofView]:
        """All of them, the newest first."""
        views = (known.view() for known in self._known.values())
        return sorted(views, key=lambda view: (-view.at, view.id))

    def add(self, believed: Believed) -> None:
        """Believe one; it is not public yet."""
        self._known[BlobId(believed.accusation.proof)] = believed

    async def restore(self, house: House, kept: KeptProof, charge: Charge) -> None:
        """Believe one of before the start, and make it public again, where it may be."""
        store = house.store
        sizes = {id_: store.size_bytes(id_) if store.holds(id_) else 0 for id_ in kept.blobs}
        accusation = accusation_of(kept.proof, charge, sizes)
        since = readable_since(kept.proof)
        self.add(
            Believed(accusation, kept.verdict, kept.own, kept.at, kept.private, since=since)
        )
        for blob_id in (kept.id, *kept.blobs):
            store.pin(blob_id, pin_of(kept.id))
        try:
            await store.put_bytes(kept.proof)
        except StoreError as error:
            log.warning("a proof is not public", proof=kept.id, error=str(error))
        self.publish(house, kept.id)

    async def put(
        self, house: House, proof: bytes, accusation: Accusation, blobs: Iterable[bytes]
    ) -> None:
        """Put a proof of this node's own where others can fetch it from."""
        name = pin_of(BlobId(accusation.proof))
        for blob_id in (accusation.proof, *accusation.blobs):
            house.store.pin(BlobId(blob_id), name)
        try:
            for blob in (proof, *blobs):
                await house.store.put_bytes(blob)
        except StoreError as error:  # it bans here, and is not told
            log.warning("there is no room to make a proof public", error=str(error))

    def publish(self, house: House, proof_id: BlobId) -> bool:
        """Let anybody fetch a proof and its blobs, where they are here and fit."""
        store, known = house.store, self._known[proof_id]
        said, name = known.accusation, pin_of(proof_id)
        ids = [proof_id, *map(BlobId, said.blobs)]
        room = int(store.quota_bytes * PUBLIC_SHARE)
        fits = (
            not known.private
            and len(said.blobs) <= PROOF_BLOBS_LIMIT
            and known.size_bytes <= min(room, PROOF_BLOBS_LIMIT_BYTES)
            and all(map(store.holds, ids))
        )
        if not fits:
            store.unpin(name)
            log.info("a proof is kept, and not public", proof=proof_id)
            return False
        for blob_id in ids:
            store.pin(blob_id, name)
        house.rights.grant(name, EVERYBODY, ids)
        known.public = True
        public = [one for one in self._known.values() if one.public]
        over = sum(one.size_bytes for one in public) - room
        for other in sorted(public, key=lambda one: (one.own, one.at)):
            if over > 0 and other is not known:
                over -= other.size_bytes
                self._unpublish(house, other)
        return True

    def _unpublish(self, house: House, known: Believed) -> None:
        name = pin_of(BlobId(known.accusation.proof))
        house.rights.withdraw(name)
        house.store.unpin(name)
        known.public = False

    def withdraw(self, house: House, peer: PeerId) -> None:
        """Tell no more of what a peer was banned by."""
        for proof_id, known in list(self._known.items()):
            if known.accusation.accused == peer:
                self._unpublish(house, known)
                del self._known[proof_id]

    def lacking(self, known: Collection[str], theirs: Version) -> tuple[Accusation, ...]:
        """The newest public proofs that somebody does not know, as many as one answer has.

        Args:
            known: Ids of those that it knows.
            theirs: Its version of the protocol.
        """
        lacking: list[Accusation] = []
        blobs = 0
        for one in sorted(self._known.values(), key=lambda one: -one.at):
            said = one.accusation
            if not one.public or said.proof in known or one.since > theirs:
                continue
            blobs += len(said.blobs)
            if len(lacking) >= ACCUSATIONS_LIMIT or blobs > ACCUSED_BLOBS_LIMIT:
                break
            lacking.append(said)
        return tuple(lacking)


def accusation_of(proof: bytes, charge: Charge, sizes: Mapping[BlobId, int]) -> Accusation:
    """What a node tells of a proof; ``sizes`` are those of the blobs that it needs."""
    return Accusation(
        proof=blob_id_of(proof),
        accused=charge.accused,
        proof_bytes=len(proof),
        blobs=tuple(sizes),
        blobs_bytes=sum(sizes.values()),
    )


def readable_since(proof: bytes) -> Version:
    """The version of the protocol that brought the form in which a proof's receipts are."""
    try:
        read = fraud_proof.decode(proof)
        together = any(map(is_signed_together, filter(None, (read.receipt, read.other))))
    except VerificationError:  # a proof to whoever made this node's `Reader`
        together = False
    return SIGNED_TOGETHER_SINCE if together else (PROTOCOL_MAJOR, 0)


def pin_of(proof_id: BlobId) -> str:
    """Under which name the blobs of a proof are pinned, and public."""
    return f"proof/{proof_id}"
