"""The table of adverts: which nodes there are, by their own signed words.

Pure state with time as an argument. Adverts come by gossip and by anti-entropy;
both end in `AdvertTable.accept`, and what renews them in `AdvertTable.renew`.

An advert's *age* travels beside it and grows at every node that holds it (as in
OSPF, RFC 2328 section 14), so that expiry needs no agreement of clocks: a clock
that is an hour wrong hides no node, and an advert handed round between peers still
dies on time. A renewal sets the age back to its own. An age is only its sender's
word: it counts as at least what the issuer's clock says, less the tolerance for
wrong clocks (`limits.CLOCK_TOLERANCE_MS`). So a liar can keep a dead node listed
for as long as that tolerance and one lifetime, and no longer; and a node that
calls a dead one in the meantime buries it.

A node that is found dead is *buried*: its advert goes, and only a newer mark brings
it back, whatever slower peers still believe; or a connection to it.

Whose place a newcomer takes in a full table is `protocol.hearsay`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum

from shoal.crypto.peer_id import PeerId
from shoal.protocol.hearsay import Hearsay
from shoal.protocol.limits import (
    ADVERTS_PER_MESSAGE_LIMIT,
    CLOCK_TOLERANCE_MS,
    DIGEST_LIMIT,
    RENEWALS_PER_MESSAGE_LIMIT,
)
from shoal.protocol.marks import NOTHING, Marks, is_of, mark_of, prefix_of, read_marks
from shoal.protocol.messages import Adverts, Digest
from shoal.protocol.statements import Advert, Renewal, open_advert, open_renewal


class Verdict(Enum):
    """What became of an advert or a renewal that came in."""

    NEW = "new"
    KNOWN = "known"
    STALE = "stale"
    EXPIRED = "expired"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Entry:
    """An advert held, with the monotonic times at which it was renewed and dies.

    Attributes:
        renewal: The newest renewal's envelope; empty if there is none.
        number: That renewal's number, or 0.
        issued_at_ms: When it was renewed by its node's own clock.
    """

    advert: Advert
    envelope: bytes
    born_at_s: float
    expires_at_s: float
    renewal: bytes = b""
    number: int = 0
    issued_at_ms: int = 0

    @property
    def mark(self) -> int:
        """Its sequence and its renewal's number: greater is newer."""
        return mark_of(self.advert.sequence, self.number)


@dataclass(slots=True)
class AdvertTable:
    """The newest valid advert of each peer, this node's own included.

    Args:
        open_advert: How an advert's envelope is checked and read; the simulator has
            a faster one with the same outcome.
        open_renewal: Likewise for a renewal's.
    """

    open_advert: Callable[[bytes], Advert] = open_advert
    open_renewal: Callable[[bytes], tuple[Renewal, PeerId]] = open_renewal
    changes: int = 0
    """How often something new was taken in."""
    next_expiry_s: float = math.inf
    """When an entry may expire next: never later than when one does."""
    _entries: dict[PeerId, Entry] = field(default_factory=dict)
    _by_envelope: dict[bytes, PeerId] = field(default_factory=dict)
    _marks: Marks = field(default_factory=Marks)
    _hearsay: Hearsay = field(default_factory=Hearsay)

    # -- taking in --

    def accept(
        self,
        envelope: bytes,
        *,
        age_s: float,
        now_s: float,
        wall_ms: int,
        source: PeerId | None = None,
        renewal: tuple[bytes, Renewal] | None = None,
    ) -> tuple[Verdict, Advert]:
        """Take an advert in, if it is good and newer than what is held.

        Args:
            envelope: The signed bytes as they came.
            age_s: Its age as the sender told it, since ``renewal`` if there is one;
                0 by gossip.
            now_s: This node's monotonic clock.
            wall_ms: This node's wall clock, in milliseconds.
            source: The link that told of it; None for this node's own.
            renewal: A renewal by the same node that came with it.

        Raises:
            VerificationError: Forged or malformed; whoever sent it is at fault.
        """
        known = self._by_envelope.get(envelope)
        if known is not None:  # spares a signature check for each copy
            self._vouch(known, source)
            return Verdict.KNOWN, self._entries[known].advert
        advert = self.open_advert(envelope)
        return self._accept(envelope, advert, age_s, now_s, wall_ms, source, renewal), advert

    def _accept(
        self,
        envelope: bytes,
        advert: Advert,
        age_s: float,
        now_s: float,
        wall_ms: int,
        source: PeerId | None,
        renewal: tuple[bytes, Renewal] | None,
    ) -> Verdict:
        peer = PeerId(advert.peer)
        number, stated = 0, (advert.issued_at_ms, advert.lifetime_s)
        if renewal is not None and renewal[1].sequence == advert.sequence:
            number, stated = renewal[1].number, (renewal[1].issued_at_ms, renewal[1].lifetime_s)
        held = self._entries.get(peer)
        newest = held.mark if held else self._marks.buried_at(peer)
        if mark_of(advert.sequence, number) <= newest:
            return Verdict.STALE
        born_at_s = _born_at_s(*stated, age_s, now_s, wall_ms)
        if born_at_s is None:
            return Verdict.EXPIRED
        if held is None and not self._make_room(peer, source):
            return Verdict.FULL
        if held is not None:
            del self._by_envelope[held.envelope]
            self._vouch(peer, source)
        self._by_envelope[envelope] = peer
        self._hold(
            Entry(
                advert,
                envelope,
                born_at_s,
                born_at_s + stated[1],
                renewal[0] if number and renewal else b"",
                number,
                stated[0],
            )
        )
        return Verdict.NEW

    def renew(
        self,
        envelope: bytes,
        opened: tuple[Renewal, PeerId],
        *,
        age_s: float,
        now_s: float,
        wall_ms: int,
        source: PeerId | None = None,
    ) -> Verdict:
        """Set back the age of an advert that is held, by its node's own word.

        Args:
            envelope: The renewal's signed bytes as they came.
            opened: What ``open_renewal`` gave for them.
            age_s: Its age as the sender told it.
            now_s: This node's monotonic clock.
            wall_ms: This node's wall clock, in milliseconds.
            source: The link that sent it; None for this node's own.
        """
        renewal, peer = opened
        held = self._entries.get(peer)
        if held is None or renewal.sequence != held.advert.sequence:
            return Verdict.STALE
        self._vouch(peer, source)
        if renewal.number <= held.number:
            return Verdict.KNOWN
        born_at_s = _born_at_s(renewal.issued_at_ms, renewal.lifetime_s, age_s, now_s, wall_ms)
        if born_at_s is None:
            return Verdict.EXPIRED
        self._hold(
            Entry(
                held.advert,
                held.envelope,
                born_at_s,
                born_at_s + renewal.lifetime_s,
                envelope,
                renewal.number,
                renewal.issued_at_ms,
            )
        )
        return Verdict.NEW

    def take(
        self, message: Adverts, *, now_s: float, wall_ms: int, source: PeerId | None = None
    ) -> list[Advert]:
        """Take in what a peer gave in anti-entropy; gives the adverts that were new.

        Raises:
            VerificationError: Part of it is forged or malformed; what came before is kept.
        """
        renewals: dict[PeerId, tuple[tuple[bytes, Renewal], float]] = {}
        for envelope, age_s in message.renewals:
            opened, peer = self.open_renewal(envelope)
            renewals[peer] = ((envelope, opened), age_s)
        new = []
        for envelope, age_s in message.adverts:
            if envelope in self._by_envelope:
                continue
            advert = self.open_advert(envelope)
            renewal, age_by_renewal_s = renewals.get(PeerId(advert.peer), (None, age_s))
            verdict = self._accept(
                envelope, advert, age_by_renewal_s, now_s, wall_ms, source, renewal
            )
            if verdict is Verdict.NEW:
                new.append(advert)
        for peer, ((envelope, opened), age_s) in renewals.items():
            self.renew(
                envelope,
                (opened, peer),
                age_s=age_s,
                now_s=now_s,
                wall_ms=wall_ms,
                source=source,
            )
        return new

    # -- letting go --

    def expire(self, now_s: float) -> tuple[Entry, ...]:
        """Drop what has outlived its lifetime; gives the entries that went."""
        if now_s < self.next_expiry_s:
            return ()
        gone = tuple(e for e in self._entries.values() if e.expires_at_s <= now_s)
        for entry in gone:
            self.bury(PeerId(entry.advert.peer))
        self.next_expiry_s = min(
            (entry.expires_at_s for entry in self._entries.values()), default=math.inf
        )
        return gone

    def bury(self, peer: PeerId) -> bool:
        """Drop a peer found dead; only a newer word of its own brings it back."""
        entry = self._remove(peer)
        if entry is None:
            return False
        self._marks.bury(peer, entry.mark)
        return True

    def meet(self, peer: PeerId) -> None:
        """Note that this node is linked to ``peer``: no grave and no hearsay any more."""
        self._marks.forgive(peer)
        self._vouch(peer, peer)

    # -- comparing --

    def digest(self) -> Digest:
        """What this table holds, for a peer to compare with its own."""
        return Digest(held=self._marks.digest())

    def answer(
        self,
        digest: Digest,
        now_s: float,
        source: PeerId | None = None,
        *,
        wanting: bool = True,
    ) -> Adverts:
        """What the sender of ``digest`` lacks, and what this table wants of it.

        ``wanting``: without it nothing is wanted, for now.
        """
        theirs = read_marks(digest.held)
        for peer in [p for p in self._hearsay.told_by if prefix_of(p) in theirs]:
            self._vouch(peer, source)
        room = self._hearsay.room(source) if source is not None else DIGEST_LIMIT
        wanted = self._marks.wanted(theirs, room) if wanting else b""
        return self._give(self._marks.lacking(theirs), now_s, wanted)

    def give(self, wanted: bytes, now_s: float) -> Adverts:
        """What an answer's ``wanted`` asks for, as far as it is held and newer."""
        return self._give(self._marks.asked_for(wanted), now_s)

    def some(
        self, count: int, leaving_out: Container[PeerId], draw: Callable[[], float]
    ) -> list[PeerId]:
        """Up to ``count`` nodes of the table, drawn at random; ``draw`` is in [0, 1)."""
        peers = [peer for peer in self._entries if peer not in leaving_out]
        chosen: list[PeerId] = []
        while peers and len(chosen) < count:
            place = int(draw() * len(peers))
            peers[place], peers[-1] = peers[-1], peers[place]
            chosen.append(peers.pop())
        return chosen

    def aged(self, peers: Iterable[PeerId], now_s: float) -> Adverts:
        """The adverts of ``peers`` that are held, with their renewals."""
        return self._give({peer: NOTHING for peer in peers if peer in self._entries}, now_s)

    def get(self, peer: PeerId) -> Entry | None:
        """The entry of one peer, if it is held."""
        return self._entries.get(peer)

    def __contains__(self, peer: object) -> bool:
        return peer in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(tuple(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    # -- within --

    def _give(
        self, lacking: Mapping[PeerId, int], now_s: float, wanted: bytes = b""
    ) -> Adverts:
        """What is newer here than the marks in ``lacking``, within one message.

        The youngest come first: what a peer will not take (it buried its node, or
        its clock is wrong) grows old, and must not crowd out what it lacks.
        """
        newer = [
            (entry, mark)
            for peer, mark in lacking.items()
            if (entry := self._entries[peer]).mark > mark
        ]
        newer.sort(key=lambda pair: pair[0].born_at_s, reverse=True)
        adverts: list[tuple[bytes, float]] = []
        renewals: list[tuple[bytes, float]] = []
        given = 0
        for entry, mark in newer:
            age_s = max(0.0, now_s - entry.born_at_s)
            whole = not is_of(mark, entry.advert.sequence)
            if (whole and len(adverts) >= ADVERTS_PER_MESSAGE_LIMIT) or (
                entry.renewal and len(renewals) >= RENEWALS_PER_MESSAGE_LIMIT
            ):
                break
            given += 1
            if whole:
                adverts.append((entry.envelope, age_s))
            if entry.renewal:
                renewals.append((entry.renewal, age_s))
        return Adverts(
            adverts=tuple(adverts),
            renewals=tuple(renewals),
            wanted=wanted,
            more=given < len(newer),
        )

    def _make_room(self, peer: PeerId, source: PeerId | None) -> bool:
        """Whether a node that is not in the table may enter it."""
        if self._marks.is_taken(peer):
            return False
        teller = source if source != peer else None  # its own word comes with meeting it
        if teller is not None and self._hearsay.room(teller) <= 0:
            return False
        if len(self._entries) >= DIGEST_LIMIT:
            leaving = self._hearsay.replaceable(teller)
            if leaving is None:
                return False
            self._remove(leaving)
        if teller is not None:
            self._hearsay.note(peer, teller)
        return True

    def _hold(self, entry: Entry) -> None:
        peer = PeerId(entry.advert.peer)
        self._entries[peer] = entry
        self._marks.hold(peer, entry.mark)
        self.next_expiry_s = min(self.next_expiry_s, entry.expires_at_s)
        self.changes += 1

    def _vouch(self, peer: PeerId, source: PeerId | None) -> None:
        if source is not None:
            self._hearsay.vouch(peer, source)

    def _remove(self, peer: PeerId) -> Entry | None:
        entry = self._entries.pop(peer, None)
        if entry is not None:
            del self._by_envelope[entry.envelope]
            self._marks.drop(peer)
            self._hearsay.forget(peer)
        return entry


def _born_at_s(
    issued_at_ms: int, lifetime_s: float, age_s: float, now_s: float, wall_ms: int
) -> float | None:
    """When a statement of that age was issued, by this node's clock; None: too old."""
    by_clock_ms = wall_ms - issued_at_ms
    if by_clock_ms < -CLOCK_TOLERANCE_MS:
        return None
    age_s = max(age_s, (by_clock_ms - CLOCK_TOLERANCE_MS) / 1000)
    return now_s - age_s if age_s < lifetime_s else None
