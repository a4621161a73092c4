"""Programs that go from provider to provider: who may have one from whom, for which requester.

A requester that gives the same large program to several providers names them to each other:
to a new one in its award, and to the earlier ones by `Share` with the program's id. Whoever
is named may fetch the program's blobs here in the requester's name, and is asked for them.
What is served to them is only what came for that requester: that a blob is held for
somebody else is not to be learnt.

`ProgramShares` is a provider's table and `Awarded` a requester's, both pure and in memory:
a restart ends all leases. What is done by them is in `node.program_sources`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from shoal.node.bulk.plan import Role
from shoal.protocol.limits import PROGRAM_SOURCES_LIMIT

if TYPE_CHECKING:
    from shoal.crypto.content import BlobId
    from shoal.crypto.peer_id import PeerId

_Key: TypeAlias = "tuple[PeerId, BlobId]"


@dataclass(slots=True)
class _Program:
    """A program under leases of one requester.

    Attributes:
        blobs: All that belong to it, once its manifest is here.
        here: Those that came for the requester.
    """

    awards: set[str] = field(default_factory=set)
    peers: dict[PeerId, Role] = field(default_factory=dict)
    blobs: frozenset[BlobId] = frozenset()
    here: set[BlobId] = field(default_factory=set)


class ProgramShares:
    """A provider's: with whom it shares which requester's programs."""

    def __init__(self) -> None:
        self._programs: dict[_Key, _Program] = {}
        self._of_award: dict[str, _Key] = {}
        self._arriving: Counter[tuple[PeerId, BlobId]] = Counter()

    def lease(
        self, award: str, requester: PeerId, program: BlobId, peers: Collection[PeerId]
    ) -> None:
        """Begin with a lease, whose award names ``peers`` that began before."""
        key = requester, program
        self._of_award[award] = key
        known = self._programs.setdefault(key, _Program())
        known.awards.add(award)
        for peer in peers:
            if peer != requester and len(known.peers) < PROGRAM_SOURCES_LIMIT:
                known.peers.setdefault(peer, Role.BEFORE)

    def end(self, award: str) -> None:
        """A lease has ended; with the last one of a program its sharing does."""
        key = self._of_award.pop(award, None)
        if key is None:
            return
        program = self._programs[key]
        program.awards.discard(award)
        if not program.awards:
            del self._programs[key]

    def share(self, requester: PeerId, program: BlobId, peer: PeerId) -> bool:
        """Share a program with one who begins now; False where there is no lease for it.

        The one who came first goes where there are too many: it has it all by then.
        """
        known = self._programs.get((requester, program))
        if known is None:
            return False
        if peer not in known.peers and peer != requester:
            known.peers[peer] = Role.AFTER
            if len(known.peers) > PROGRAM_SOURCES_LIMIT:
                del known.peers[next(iter(known.peers))]
        return True

    def peers(self, requester: PeerId, program: BlobId) -> dict[PeerId, Role]:
        """Who else has a program for the requester, or gets it."""
        known = self._programs.get((requester, program))
        return dict(known.peers) if known is not None else {}

    def lists(self, requester: PeerId, program: BlobId, blob_ids: Iterable[BlobId]) -> None:
        """These blobs belong to a program, by its manifest."""
        known = self._programs.get((requester, program))
        if known is not None:
            known.blobs = frozenset(blob_ids)

    def came(self, requester: PeerId, program: BlobId, blob_id: BlobId) -> None:
        """A blob of a program is here, by the requester and whom it named."""
        known = self._programs.get((requester, program))
        if known is not None:
            known.here.add(blob_id)

    @contextmanager
    def arriving(self, requester: PeerId | None, blob_id: BlobId) -> Iterator[None]:
        """While a blob comes for a requester, of which nothing was here before."""
        if requester is None:
            yield
            return
        self._arriving[requester, blob_id] += 1
        try:
            yield
        finally:
            self._arriving[requester, blob_id] -= 1
            if not self._arriving[requester, blob_id]:
                del self._arriving[requester, blob_id]

    def serves(self, requester: PeerId) -> bool:
        """Whether there are leases of a requester's."""
        return any(whose == requester for whose, _ in self._programs)

    def allows(self, peer: PeerId, blob_id: BlobId, requester: PeerId | None) -> bool:
        """Whether a peer may have a blob in a requester's name."""
        if requester is None:
            return False
        arrives = (requester, blob_id) in self._arriving
        return any(
            peer in program.peers
            and (blob_id in program.here or (arrives and blob_id in program.blobs))
            for (whose, _), program in self._programs.items()
            if whose == requester
        )


class Awarded:
    """A requester's: which peers have a program under an award of its own."""

    def __init__(self) -> None:
        self._awards: dict[str, _Key] = {}

    def add(self, award: str, peer: PeerId, program: BlobId) -> None:
        """Note an award."""
        self._awards[award] = peer, program

    def remove(self, award: str) -> None:
        """An award's lease has ended, or never was."""
        self._awards.pop(award, None)

    def others(self, peer: PeerId, program: BlobId) -> list[PeerId]:
        """Those beside ``peer`` that have a program, the latest of them."""
        found = dict.fromkeys(
            other for other, what in self._awards.values() if what == program and other != peer
        )
        return list(found)[-PROGRAM_SOURCES_LIMIT:]
