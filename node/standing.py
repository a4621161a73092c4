"""How well peers keep to the rules of the wire, and who is cut for breaking them.

Pure state with time as an argument. An *offence* is something that an honest node
never does, however slow, loaded or unlucky it is: time-outs, resets, refusals and
clocks that differ are none, and have no name here. Each costs its weight of the
`FULL` standing that every peer begins with; `RECOVERY_PER_S` gives it back. Who has
none left is *cut*: its connections are ended and refused for some minutes, longer
each time. That is all that a cut is: nothing is said of the peer to others, no
receipt of its is doubted, and it is no ban.

Keys cost nothing, so the table is bounded, and the question is what is forgotten.
It forgets whoever has kept the rules for longest. A peer is so forgotten only once
`PEERS_LIMIT` others have offended since it last did; each of those needs a key and
a connection of its own, and one fresh key would have served the offender as well.
And one that goes on offending is never forgotten before it is cut, whatever others
do: that takes some ten offences, and there are fewer connections than `PEERS_LIMIT`
to offend over. *Spared* peers, those on the allow list and those that this node
joins by, are few, named by the operator, and kept apart from all that. They are cut
too, since a friend's buggy build floods as well as an enemy does, but for a minute
at the most: their owner will mend it, and this node must find its network again.

Nothing is written down: a cut is shorter than a restart is rare, and no peer can
make a node restart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from shoal.crypto.peer_id import PeerId

FULL: Final = 100.0
"""The standing of a peer of which nothing bad is known."""

RECOVERY_PER_S: Final = FULL / 3600.0
"""An hour without an offence makes good whatever there was."""

AFTER_CUT: Final = FULL / 2
"""What a peer comes back with: what cut it once does so again in half the time."""

FIRST_CUT_S: Final = 120.0
CUT_LIMIT_S: Final = 3600.0
"""Doubling from the one to the other, while the standing has not become full between."""

SPARED_FIRST_CUT_S: Final = 15.0
SPARED_CUT_LIMIT_S: Final = 60.0
"""The same for peers that the operator named."""

PEERS_LIMIT: Final = 4096
"""Peers of which anything is kept, about 1 KB each: many times the connections that
a node has, which is what the reasoning above rests on."""


class Offence(StrEnum):
    """What no honest node does: a closed list."""

    BAD_FRAME = "bad_frame"
    SLOW_FRAME = "slow_frame"
    PROTOCOL_BROKEN = "protocol_broken"
    BAD_ADVERT = "bad_advert"
    BAD_AWARD = "bad_award"
    BAD_PROOF = "bad_proof"
    BAD_RESULT = "bad_result"
    BAD_BLOB = "bad_blob"
    FALSE_CLAIM = "false_claim"
    UNFITTING_ANSWER = "unfitting_answer"
    REQUEST_FLOOD = "request_flood"
    GOSSIP_FLOOD = "gossip_flood"
    TOO_MANY_STREAMS = "too_many_streams"


@dataclass(frozen=True, slots=True)
class Rule:
    """What an offence costs, and how it is said.

    Attributes:
        weight: Points of standing.
        sentence: What the peer did, after its name.
        every_s: It counts once in so many seconds: a flood is one thing that goes on,
            and its weight must not depend on how finely it is cut up.
    """

    weight: float
    sentence: str
    every_s: float = 0.0


RULES: Final = {
    Offence.BAD_FRAME: Rule(20, "sent bytes that are no message of the protocol"),
    Offence.SLOW_FRAME: Rule(25, "dribbled a message, a few bytes at a time"),
    Offence.PROTOCOL_BROKEN: Rule(10, "broke the order in which a stream is spoken on"),
    Offence.BAD_ADVERT: Rule(20, "passed on an advert that nobody signed"),
    Offence.BAD_AWARD: Rule(25, "sent an award that is not its own, or not what was agreed"),
    Offence.BAD_PROOF: Rule(25, "sent a proof that is none"),
    Offence.BAD_RESULT: Rule(35, "sent a result that its own receipt contradicts"),
    Offence.BAD_BLOB: Rule(35, "sent other bytes than those of the blob"),
    Offence.FALSE_CLAIM: Rule(35, "committed to work and could not show it"),
    Offence.UNFITTING_ANSWER: Rule(20, "answered with a message that is no answer"),
    Offence.REQUEST_FLOOD: Rule(10, "went on asking after it was told that it is too much", 1),
    Offence.GOSSIP_FLOOD: Rule(5, "gossiped more than anybody has to say", 1),
    Offence.TOO_MANY_STREAMS: Rule(5, "opened more streams than it can have use for", 1),
}


@dataclass(frozen=True, slots=True)
class Record:
    """What is kept of a peer that is not in good standing, as of one moment.

    Attributes:
        standing: From 0 to `FULL`.
        offences: How often it did what, since its standing was last full.
        cut_since_s: When its cut began, where it is cut now; and `cut_until_s`.
    """

    peer: PeerId
    standing: float
    offences: tuple[tuple[Offence, int], ...]
    cut_since_s: float | None = None
    cut_until_s: float | None = None

    @property
    def why(self) -> str:
        """What it did, for a person: the worst first."""
        worst = sorted(self.offences, key=lambda each: -RULES[each[0]].weight * each[1])
        return "; ".join(_counted(RULES[offence].sentence, count) for offence, count in worst)


@dataclass(slots=True)
class _Account:
    """The same while it changes; ``standing`` is as of ``at_s``."""

    at_s: float
    standing: float = FULL
    offences: Counter[Offence] = field(default_factory=Counter)
    counted_at_s: dict[Offence, float] = field(default_factory=dict)
    cuts: int = 0
    cut_since_s: float = -math.inf
    cut_until_s: float = -math.inf

    def settle(self, now_s: float) -> None:
        """Bring it up to now; a cut's own time gives nothing back."""
        from_s = max(self.at_s, self.cut_until_s)
        if now_s > from_s:
            self.standing = min(FULL, self.standing + (now_s - from_s) * RECOVERY_PER_S)
        self.at_s = max(self.at_s, now_s)


class Standing:
    """The standing of peers.

    Args:
        spared: Peers that the operator named; see the module's text.
        limit: How many others are kept.
    """

    def __init__(self, spared: Collection[PeerId] = (), limit: int = PEERS_LIMIT) -> None:
        self._spared = frozenset(spared)
        self._limit = limit
        self._accounts: dict[PeerId, _Account] = {}
        """In order of the last offence."""
        self._spared_accounts: dict[PeerId, _Account] = {}

    def spare(self, peers: Collection[PeerId]) -> None:
        """Spare these from now on, and no others; what was noted stays noted."""
        noted = self._accounts | self._spared_accounts
        self._spared = frozenset(peers)
        self._spared_accounts = {p: one for p, one in noted.items() if p in self._spared}
        self._accounts = type(self._accounts)(
            (p, one) for p, one in noted.items() if p not in self._spared
        )

    def note(self, peer: PeerId, offence: Offence, now_s: float) -> Record | None:
        """Note an offence; gives the record of a peer that is cut by this one.

        What a peer does while it is cut counts for nothing: it may not have heard
        of it yet, and its streams may still be ending.
        """
        account = self._open(peer, now_s)
        if account.cut_until_s > now_s:
            return None
        rule = RULES[offence]
        if now_s - account.counted_at_s.get(offence, -math.inf) < rule.every_s:
            return None
        account.counted_at_s[offence] = now_s
        account.offences[offence] += 1
        account.standing -= rule.weight
        if account.standing > 0.0:
            return None
        first_s, limit_s = (
            (SPARED_FIRST_CUT_S, SPARED_CUT_LIMIT_S)
            if peer in self._spared
            else (FIRST_CUT_S, CUT_LIMIT_S)
        )
        account.cut_since_s = now_s
        account.cut_until_s = now_s + min(limit_s, first_s * 2.0 ** min(account.cuts, 32))
        account.cuts += 1
        account.standing = AFTER_CUT
        return _record(peer, account, now_s)

    def record(self, peer: PeerId, now_s: float) -> Record | None:
        """What is kept of a peer; None where it is in full standing."""
        table = self._table(peer)
        account = table.get(peer)
        if account is None:
            return None
        account.settle(now_s)
        if account.standing >= FULL:
            del table[peer]
            return None
        return _record(peer, account, now_s)

    def cut_for(self, peer: PeerId, now_s: float) -> str | None:
        """Why a peer is cut now, and for how much longer; None where it is not."""
        account = self._table(peer).get(peer)
        if account is None or account.cut_until_s <= now_s:
            return None
        left_s = account.cut_until_s - now_s
        return f"it {_record(peer, account, now_s).why}: cut for another {left_s:.0f} s"

    def offences(self, peer: PeerId) -> tuple[tuple[Offence, int], ...]:
        """How often a peer did what, since its standing was last full."""
        account = self._table(peer).get(peer)
        return tuple(account.offences.items()) if account else ()

    def records(self, now_s: float) -> list[Record]:
        """All peers that are not in full standing, the newest offence last."""
        peers = [*self._accounts, *self._spared_accounts]
        return [found for peer in peers if (found := self.record(peer, now_s)) is not None]

    def forgive(self, peer: PeerId) -> bool:
        """Put a peer back into full standing; False where it was there."""
        return self._table(peer).pop(peer, None) is not None

    def _table(self, peer: PeerId) -> dict[PeerId, _Account]:
        return self._spared_accounts if peer in self._spared else self._accounts

    def _open(self, peer: PeerId, now_s: float) -> _Account:
        """The account of a peer, as the one of the newest offence."""
        table = self._table(peer)
        account = table.pop(peer, None)
        if account is not None:
            account.settle(now_s)
        if account is None or account.standing >= FULL:
            account = _Account(now_s)
        while len(self._accounts) >= self._limit and table is self._accounts:
            del self._accounts[next(iter(self._accounts))]
        table[peer] = account
        return account


def _record(peer: PeerId, account: _Account, now_s: float) -> Record:
    cut = account.cut_until_s > now_s
    return Record(
        peer=peer,
        standing=0.0 if cut else account.standing,
        offences=tuple(account.offences.items()),
        cut_since_s=account.cut_since_s if cut else None,
        cut_until_s=account.cut_until_s if cut else None,
    )


def _counted(sentence: str, count: int) -> str:
    return sentence if count == 1 else f"{sentence} ({count} times)"
