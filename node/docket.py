"""Which accusations are looked into, in which order, and whose are not heard any more.

Pure state with time as an argument; `node.convictions` does what it says. Looking into
an accusation costs a fetch and a run of the reference, so what a peer may cause of that is
bounded. Each has a few tries, which come back slowly; one that led to a conviction is
given back at once, so that honest peers are never short of them. The peers' accusations
are taken in turn: whoever sends a thousand delays its own only. Whoever sent one that is
false is not heard for a while.

What comes of an accusation is one of four ends. *Needless*: the peer is banned already.
*Proved* and *false* are verdicts, and every other sender of the same proof, against the same
peer, is answered by them. *Open* is all else, from a blob that did not come to a word of a
newer version: it costs nobody standing, and the same proof of the same sender is not looked
into again soon.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Final, TypeVar

from shoal.node.allowance import Bucket
from shoal.protocol.limits import FRAUD_PROOF_LIMIT_BYTES

if TYPE_CHECKING:
    from collections.abc import Hashable

    from shoal.crypto.peer_id import PeerId
    from shoal.protocol.checking_messages import Accusation

TRIES: Final = 16.0
TRIES_PER_S: Final = 1 / 60
"""Accusations of one peer that are looked into and come to nothing."""

WAITING_EACH_LIMIT: Final = 64
"""Accusations of one peer that wait: as many as one answer has."""

WAITING_LIMIT: Final = 512
"""Accusations of all peers that wait, some KB each at the most."""

BLOBS_LIMIT_BYTES: Final = 1 << 30
"""What an accusation may make this node fetch, and then hold in memory while it judges:
less than may be spread. Whoever has more memory may believe more."""

AGAIN_AFTER_S: Final = 3600.0
"""Before a proof that was left open is looked into again, if the same peer sends it."""

SILENCE_S: Final = 3600.0
"""For so long nothing is heard of a peer whose accusation was false."""

REMEMBERED_LIMIT: Final = 4096
"""False proofs, open ones and senders that are remembered, each; the oldest go first."""

Key = TypeVar("Key", bound="Hashable")


class Hearing(StrEnum):
    """What becomes of an accusation when it comes in."""

    WAITS = "waits"
    KNOWN = "known"
    """It waits already, or was left open lately."""
    FALSE = "false"
    """The proof was looked into before, and is false."""
    TOO_LARGE = "too_large"
    NO_ROOM = "no_room"
    UNHEARD = "unheard"
    """Its sender has no tries left, or accused falsely."""


class End(StrEnum):
    """What came of an accusation."""

    PROVED = "proved"
    FALSE = "false"
    OPEN = "open"
    NEEDLESS = "needless"


@dataclass(frozen=True, slots=True)
class Heard:
    """An accusation and who sent it."""

    sender: PeerId
    accusation: Accusation


@dataclass(slots=True)
class Docket:
    """The accusations that wait, and what is remembered of others."""

    _waiting: dict[PeerId, dict[str, Accusation]] = field(default_factory=dict)
    """By sender and proof; the sender whose turn is next comes first."""
    _looked_into: Heard | None = None
    _tries: dict[PeerId, Bucket] = field(default_factory=dict)
    _silenced: dict[PeerId, float] = field(default_factory=dict)
    _false: dict[tuple[str, str], float] = field(default_factory=dict)
    """By proof and accused: who names another than the proof does has not made it false."""
    _open: dict[tuple[str, PeerId], float] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def hear(self, sender: PeerId, accusation: Accusation, now_s: float) -> Hearing:
        """Take an accusation in, or say why not."""
        heard = Heard(sender, accusation)
        of_sender = self._waiting.get(sender, {})
        if self._silenced.get(sender, 0.0) > now_s:
            return Hearing.UNHEARD
        if _charge(accusation) in self._false:
            self.silence(sender, now_s)
            return Hearing.FALSE
        if accusation.proof in of_sender or heard == self._looked_into:
            return Hearing.KNOWN
        if self._open.get((accusation.proof, sender), 0.0) > now_s:
            return Hearing.KNOWN
        if (
            accusation.proof_bytes > FRAUD_PROOF_LIMIT_BYTES
            or accusation.blobs_bytes > BLOBS_LIMIT_BYTES
        ):
            return Hearing.TOO_LARGE
        if self._bucket(sender).holds(now_s) < 1.0:
            return Hearing.UNHEARD
        if len(of_sender) >= WAITING_EACH_LIMIT or len(self) >= WAITING_LIMIT:
            return Hearing.NO_ROOM
        self._waiting.setdefault(sender, {})[accusation.proof] = accusation
        return Hearing.WAITS

    def take(self, now_s: float) -> Heard | None:
        """The next to be looked into, each sender in turn; `close` it when that is done."""
        assert self._looked_into is None
        while self._waiting:
            sender = next(iter(self._waiting))
            of_sender = self._waiting.pop(sender)
            if self._bucket(sender).holds(now_s) < 1.0:
                continue  # what waits of it goes: it may say so again
            accusation = of_sender.pop(next(iter(of_sender)))
            if of_sender:
                self._waiting[sender] = of_sender
            self._bucket(sender).pay(1.0, now_s)
            self._looked_into = Heard(sender, accusation)
            return self._looked_into
        return None

    def close(self, end: End, now_s: float) -> tuple[PeerId, ...]:
        """Note what came of the one that was taken.

        Returns:
            Who accused falsely by it: its sender, and those who have sent the same.
        """
        heard, self._looked_into = self._looked_into, None
        assert heard is not None
        sender, proof = heard.sender, heard.accusation.proof
        if end is End.OPEN:
            _remember(self._open, (proof, sender), now_s + AGAIN_AFTER_S)
            return ()
        if end is not End.FALSE:
            bucket = self._bucket(sender)
            bucket.pay(-1.0, now_s)
        if end is End.NEEDLESS:
            return ()
        others = [
            peer
            for peer, of_peer in self._waiting.items()
            if proof in of_peer and _charge(of_peer[proof]) == _charge(heard.accusation)
        ]
        for peer in others:
            del self._waiting[peer][proof]
            if not self._waiting[peer]:
                del self._waiting[peer]
        if end is End.PROVED:
            return ()
        _remember(self._false, _charge(heard.accusation), now_s)
        for peer in (sender, *others):
            self.silence(peer, now_s)
        return (sender, *others)

    def silence(self, sender: PeerId, now_s: float) -> None:
        """Hear nothing of a peer for a while, and forget what it said."""
        _remember(self._silenced, sender, now_s + SILENCE_S)
        self._waiting.pop(sender, None)

    def _bucket(self, sender: PeerId) -> Bucket:
        return self._tries.get(sender) or _remember(
            self._tries, sender, Bucket(TRIES_PER_S, TRIES)
        )


def _charge(accusation: Accusation) -> tuple[str, str]:
    """What makes two accusations the same: a proof, and whom it is said to be against."""
    return accusation.proof, accusation.accused


Value = TypeVar("Value")


def _remember(table: dict[Key, Value], key: Key, value: Value) -> Value:
    table.pop(key, None)
    while len(table) >= REMEMBERED_LIMIT:
        del table[next(iter(table))]
    table[key] = value
    return value
