"""The table of adverts: which nodes there are, by their own signed words.

Pure state with time as an argument. Adverts come by gossip and by anti-entropy;
both end in `AdvertTable.accept`. An advert's *age* travels beside it and grows
at every node that holds it (as in OSPF, RFC 2328 section 14), so that expiry
needs no agreement of clocks: a clock that is an hour wrong hides no node, and
an advert handed round between peers still dies on time. The wall clock only
bounds how old a replay can be (`limits.CLOCK_TOLERANCE_MS`).

A node that is found dead is *buried*: its advert goes, and only one with a
higher sequence brings it back, whatever slower peers still believe.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from shoal.crypto.peer_id import PeerId
from shoal.protocol.limits import ADVERTS_PER_MESSAGE_LIMIT, CLOCK_TOLERANCE_MS, DIGEST_LIMIT
from shoal.protocol.messages import Adverts, Digest
from shoal.protocol.statements import Advert, open_advert

if TYPE_CHECKING:
    from collections.abc import Iterator

GRAVE_LIMIT = 4 * DIGEST_LIMIT
"""Sequences kept of nodes that are gone; the oldest graves are forgotten first."""


class Verdict(Enum):
    """What became of an advert that came in."""

    NEW = "new"
    KNOWN = "known"
    STALE = "stale"
    EXPIRED = "expired"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Entry:
    """An advert held, with the monotonic times at which it was born and dies."""

    advert: Advert
    envelope: bytes
    born_at_s: float
    expires_at_s: float


@dataclass(slots=True)
class AdvertTable:
    """The newest valid advert of each peer, this node's own included."""

    _entries: dict[PeerId, Entry] = field(default_factory=dict)
    _by_envelope: dict[bytes, PeerId] = field(default_factory=dict)
    _graves: dict[PeerId, int] = field(default_factory=dict)

    def accept(
        self, envelope: bytes, *, age_s: float, now_s: float, wall_ms: int
    ) -> tuple[Verdict, Advert]:
        """Take an advert in, if it is good and newer than what is held.

        Args:
            envelope: The signed bytes as they came.
            age_s: Its age as the sender told it; 0 by gossip.
            now_s: This node's monotonic clock.
            wall_ms: This node's wall clock, in milliseconds.

        Raises:
            VerificationError: Forged or malformed; whoever sent it is at fault.
        """
        known = self._by_envelope.get(envelope)
        if known is not None:  # spares a signature check for each copy
            return Verdict.KNOWN, self._entries[known].advert
        advert = open_advert(envelope)
        peer = PeerId(advert.peer)
        held = self._entries.get(peer)
        newest = held.advert.sequence if held else self._graves.get(peer, -1)
        if advert.sequence <= newest:
            return Verdict.STALE, advert
        age_by_clock_ms = wall_ms - advert.issued_at_ms
        if age_s >= advert.lifetime_s or not (
            -CLOCK_TOLERANCE_MS
            <= age_by_clock_ms
            <= CLOCK_TOLERANCE_MS + advert.lifetime_s * 1000
        ):
            return Verdict.EXPIRED, advert
        if held is None and len(self._entries) >= DIGEST_LIMIT:
            return Verdict.FULL, advert
        born_at_s = now_s - age_s
        self._remove(peer)
        self._by_envelope[envelope] = peer
        self._entries[peer] = Entry(advert, envelope, born_at_s, born_at_s + advert.lifetime_s)
        self._graves.pop(peer, None)
        return Verdict.NEW, advert

    def expire(self, now_s: float) -> tuple[PeerId, ...]:
        """Drop what has outlived its lifetime; gives the peers that went."""
        gone = tuple(p for p, e in self._entries.items() if e.expires_at_s <= now_s)
        for peer in gone:
            self.bury(peer)
        return gone

    def bury(self, peer: PeerId) -> bool:
        """Drop a peer found dead; only a newer advert of its own brings it back."""
        entry = self._remove(peer)
        if entry is None:
            return False
        while len(self._graves) >= GRAVE_LIMIT:
            del self._graves[next(iter(self._graves))]
        self._graves[peer] = entry.advert.sequence
        return True

    def digest(self) -> Digest:
        """What this table holds, for a peer to compare with its own."""
        return Digest(
            held=tuple((peer, entry.advert.sequence) for peer, entry in self._entries.items())
        )

    def answer(self, digest: Digest, now_s: float) -> Adverts:
        """What the sender of ``digest`` lacks, and what this table wants of it."""
        theirs = dict(digest.held)
        lacking = [
            peer
            for peer, entry in self._entries.items()
            if entry.advert.sequence > theirs.get(peer, -1)
        ]
        wanted = tuple(
            peer for peer, sequence in digest.held if sequence > self._newest(PeerId(peer))
        )
        return Adverts(adverts=self.aged(lacking, now_s), wanted=wanted)

    def aged(self, peers: list[PeerId], now_s: float) -> tuple[tuple[bytes, float], ...]:
        """The adverts of ``peers`` that are held, each with its age, within one message.

        The youngest come first: what a peer will not take (it buried its node, or
        its clock is wrong) grows old, and must not crowd out what it lacks.
        """
        held = {peer: self._entries[peer] for peer in peers if peer in self._entries}
        entries = sorted(held.values(), key=lambda entry: entry.born_at_s, reverse=True)
        return tuple(
            (entry.envelope, max(0.0, now_s - entry.born_at_s))
            for entry in entries[:ADVERTS_PER_MESSAGE_LIMIT]
        )

    def get(self, peer: PeerId) -> Entry | None:
        """The entry of one peer, if it is held."""
        return self._entries.get(peer)

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def _newest(self, peer: PeerId) -> int:
        entry = self._entries.get(peer)
        return entry.advert.sequence if entry else self._graves.get(peer, -1)

    def _remove(self, peer: PeerId) -> Entry | None:
        entry = self._entries.pop(peer, None)
        if entry is not None:
            del self._by_envelope[entry.envelope]
        return entry
