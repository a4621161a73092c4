"""How far a peer's work has shown that it can be relied on: standing from results.

Pure state with time as an argument, in seconds since the epoch, since it outlives the
process. What is held against a peer here is about *work*; what it does on the wire is
`node.standing`'s. Each node keeps this for itself, from what it saw itself: its own
receipts, the verdicts of checks on them, proofs that it checked.

A peer's *good* and *bad* are sums of the weights of its deeds, both halved every
`HALF_LIFE_S`; the good ends at `GOOD_LIMIT`, so that nobody can save up for a lie. Its
value is

    (PRIOR_GOOD + good) / (PRIOR_GOOD + PRIOR_BAD + good + bad)

a Beta mean: two thirds for a peer of which nothing is known, near 1 for one that was found
right a hundred times. It is 0 while a conviction lasts, whatever else the peer does. A
result that nobody checked counts for nothing, or a liar would live on those. An *extra*
good deed never lowers a value, now or later, and a bad one never raises it.

Keys cost nothing, and the table is bounded; so whom it forgets must not be up to fresh
keys. It has two parts. Peers that this node *gave work to* are in one that nobody else can
get into: how fast it fills is this node's own choice. Whoever has only come to it by
itself, with an accusation or with work that it never acknowledged, or was convicted by
what others tell, is in the other. In each the one of whom least is known is forgotten
first (good and bad together), and of equals the one that was longest idle. So a peer with
some weight is forgotten only after as many others as the table holds have come to have
that weight too, each by deeds of its own.

Source: A. Jøsang, R. Ismail, The Beta Reputation System, 2002.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import msgspec

from shoal.crypto.peer_id import PeerId

HALF_LIFE_S: Final = 14 * 86400.0
"""What a deed still counts after two weeks is half: machines and owners change."""

BAN_S: Final = 30 * 86400.0
"""How long a conviction lasts."""

PRIOR_GOOD: Final = 2.0
PRIOR_BAD: Final = 1.0

GOOD_LIMIT: Final = 100.0
"""Beyond so much nothing more is gained: some hundred results found right."""

NEWCOMER_GOOD: Final = 8.0
"""Results found right, or their like, before a peer is no newcomer."""

PEERS_LIMIT: Final = 4096
"""Peers in each part of the table, about 1 KB each."""

DETAIL_LIMIT: Final = 200


class Deed(StrEnum):
    """What a peer did that tells something of its work: a closed list."""

    DELIVERED = "delivered"
    CHECKED_GOOD = "checked_good"
    CHECKED_OTHERS = "checked_others"
    VOTED_DOWN = "voted_down"
    CONVICTED = "convicted"
    WITHHELD = "withheld"
    SLOW = "slow"
    NO_ANSWER = "no_answer"
    UNSETTLED = "unsettled"
    FALSE_ACCUSATION = "false_accusation"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a deed counts, and how it is said.

    Attributes:
        good: Added to the good.
        bad: Added to the bad.
        ends_row: Whether the good results in a row begin anew.
        unasked: It says nothing of work that this node gave the peer.
        sentence: What the peer did, after its name.
    """

    sentence: str
    good: float = 0.0
    bad: float = 0.0
    ends_row: bool = False
    unasked: bool = False


RULES: Final = {
    Deed.DELIVERED: Rule("gave results in all, checked or not"),
    Deed.CHECKED_GOOD: Rule("gave results that were checked and found right", good=1.0),
    Deed.CHECKED_OTHERS: Rule("checked others' results, and was right", good=0.5),
    Deed.VOTED_DOWN: Rule("gave results that a vote was against", bad=5.0, ends_row=True),
    Deed.CONVICTED: Rule("was convicted by a fraud proof", bad=50.0, ends_row=True),
    Deed.WITHHELD: Rule("gave nothing of what a dispute asked for", bad=20.0, ends_row=True),
    Deed.SLOW: Rule("was far slower than others or than before", bad=0.5),
    Deed.NO_ANSWER: Rule("took units and gave no answer, or no outputs", bad=0.5),
    Deed.UNSETTLED: Rule(
        "had units run and did not acknowledge the receipts", bad=1.0, unasked=True
    ),
    Deed.FALSE_ACCUSATION: Rule(
        "accused a peer by a proof that does not hold", bad=20.0, ends_row=True, unasked=True
    ),
}


class Noted(msgspec.Struct, frozen=True):
    """How often a peer did one thing, and when it last did."""

    count: int
    last_s: float
    detail: str = ""


class StandingRow(msgspec.Struct, frozen=True):
    """All that is kept of a peer, as the journal has it; sums are as of ``at_s``.

    Attributes:
        in_a_row: Results found right in a row, halved with time as the sums are.
        convicted_until_s: When its last conviction lapses; 0 where there was none.
        worked: Whether this node gave it work.
    """

    peer: PeerId
    at_s: float
    good: float = 0.0
    bad: float = 0.0
    in_a_row: float = 0.0
    convicted_until_s: float = 0.0
    worked: bool = False
    deeds: dict[Deed, Noted] = {}


@dataclass(frozen=True, slots=True)
class Grounds:
    """One reason for a standing, for a person: what a peer did, how often, when last."""

    deed: Deed
    count: int
    last_s: float
    sentence: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StandingNow:
    """A peer's standing at one moment.

    Attributes:
        value: From 0 to 1.
        good_in_a_row: Results found right since one was not; fewer as they grow old.
        newcomer: Too little is known of it.
        convicted_until_s: When its conviction lapses; None where it is not convicted.
        reasons: What it rests on, what counts most first.
    """

    value: float
    good_in_a_row: int
    newcomer: bool
    convicted_until_s: float | None = None
    reasons: tuple[Grounds, ...] = ()


NEW: Final = StandingNow(PRIOR_GOOD / (PRIOR_GOOD + PRIOR_BAD), 0, newcomer=True)
"""Of a peer of which nothing is known."""


@dataclass(slots=True)
class _Account:
    """A `StandingRow` while it changes."""

    at_s: float
    good: float = 0.0
    bad: float = 0.0
    in_a_row: float = 0.0
    convicted_until_s: float = 0.0
    deeds: dict[Deed, Noted] = field(default_factory=dict)
    weight: float = -math.inf
    """How much was known after its last deed, in a measure that time does not change."""
    reasons: tuple[Grounds, ...] | None = None
    """What the deeds come to in words, until there is another one: it is asked for at every
    plan, of every peer."""

    def settle(self, now_s: float) -> None:
        """Bring it up to now; a clock that was set back gives nothing and takes nothing."""
        if now_s > self.at_s:
            left = 2.0 ** (-(now_s - self.at_s) / HALF_LIFE_S)
            self.good, self.bad = self.good * left, self.bad * left
            self.in_a_row *= left
            self.at_s = now_s

    def weigh(self) -> None:
        """Bring `weight` up to the last deed."""
        self.weight = math.log2(self.good + self.bad + _LEAST) + self.at_s / HALF_LIFE_S


_LEAST: Final = 0.01
"""Known of a peer that only delivered: more than nothing, less than any check."""


class ResultStanding:
    """The standing of peers from their work.

    Args:
        rows: As they were kept.
        limit: Peers in each part of the table.
    """

    def __init__(self, rows: Iterable[StandingRow] = (), limit: int = PEERS_LIMIT) -> None:
        self._worked = _Part(limit)
        self._others = _Part(limit)
        for row in rows:
            account = _Account(
                row.at_s,
                row.good,
                row.bad,
                row.in_a_row,
                row.convicted_until_s,
                dict(row.deeds),
            )
            (self._worked if row.worked else self._others).put(row.peer, account)

    def note(
        self,
        peer: PeerId,
        deed: Deed,
        now_s: float,
        weight: float = 1.0,
        detail: str = "",
        times: int = 1,
    ) -> PeerId | None:
        """Note what a peer did; gives whom the table has forgotten for it, if anybody.

        Args:
            peer: Who.
            deed: What.
            now_s: When, in seconds since the epoch.
            weight: What it counts, times what the deed does: less for a weaker check.
            detail: The same more exactly, for a person; the last one is kept.
            times: How often it did so.
        """
        assert weight >= 0.0
        assert times > 0
        rule = RULES[deed]
        part = self._part(peer)
        if part is self._others and not rule.unasked and deed is not Deed.CONVICTED:
            part = self._worked  # from now on: this node has given it work
        account = self._others.pop(peer) or self._worked.pop(peer) or _Account(now_s)
        account.settle(now_s)
        account.good = min(GOOD_LIMIT, account.good + times * weight * rule.good)
        account.bad += times * weight * rule.bad
        if deed is Deed.CHECKED_GOOD:
            account.in_a_row += times
        elif rule.ends_row:
            account.in_a_row = 0.0
        if deed is Deed.CONVICTED:
            account.convicted_until_s = max(account.convicted_until_s, now_s + BAN_S)
        before = account.deeds.get(deed, Noted(0, now_s))
        account.reasons = None
        account.deeds[deed] = Noted(
            before.count + times,
            max(before.last_s, now_s),
            detail[:DETAIL_LIMIT] or before.detail,
        )
        return part.put(peer, account)

    def of(self, peer: PeerId, now_s: float) -> StandingNow:
        """A peer's standing now."""
        account = self._part(peer).get(peer)
        if account is None:
            return NEW
        account.settle(now_s)
        good, bad = account.good, account.bad
        convicted = account.convicted_until_s > now_s
        if account.reasons is None:
            account.reasons = _reasons(account.deeds)
        return StandingNow(
            value=0.0
            if convicted
            else (PRIOR_GOOD + good) / (PRIOR_GOOD + PRIOR_BAD + good + bad),
            good_in_a_row=int(account.in_a_row + 1e-9),
            newcomer=good < NEWCOMER_GOOD,
            convicted_until_s=account.convicted_until_s if convicted else None,
            reasons=account.reasons,
        )

    def convict_until(self, peer: PeerId, until_s: float) -> None:
        """Have the conviction of a peer last until then: as long as its ban."""
        account = self._part(peer).get(peer)
        if account is not None:
            account.convicted_until_s = until_s

    def lift(self, peer: PeerId, now_s: float) -> None:
        """End a peer's conviction, and what it counts for."""
        account = self._part(peer).get(peer)
        if account is not None and account.deeds.pop(Deed.CONVICTED, None) is not None:
            account.settle(now_s)
            account.reasons = None
            account.bad, account.convicted_until_s = 0.0, 0.0

    def row(self, peer: PeerId) -> StandingRow | None:
        """What is kept of a peer, to be written down."""
        part = self._part(peer)
        account = part.get(peer)
        if account is None:
            return None
        return StandingRow(
            peer=peer,
            at_s=account.at_s,
            good=account.good,
            bad=account.bad,
            in_a_row=account.in_a_row,
            convicted_until_s=account.convicted_until_s,
            worked=part is self._worked,
            deeds=dict(account.deeds),
        )

    def peers(self) -> list[PeerId]:
        """All peers of which anything is kept."""
        return [*self._worked.accounts, *self._others.accounts]

    def _part(self, peer: PeerId) -> _Part:
        return self._worked if self._worked.get(peer) is not None else self._others


class _Part:
    """A bounded table that forgets of whom least is known.

    The heap has each peer with its weight as it was when that changed last; an entry that
    is not the peer's newest is passed over.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.accounts: dict[PeerId, _Account] = {}
        self._heap: list[tuple[float, PeerId]] = []

    def get(self, peer: PeerId) -> _Account | None:
        return self.accounts.get(peer)

    def pop(self, peer: PeerId) -> _Account | None:
        return self.accounts.pop(peer, None)

    def put(self, peer: PeerId, account: _Account) -> PeerId | None:
        account.weigh()
        self.accounts[peer] = account
        heapq.heappush(self._heap, (account.weight, peer))
        if len(self._heap) > 4 * self._limit:
            self._heap = [(one.weight, each) for each, one in self.accounts.items()]
            heapq.heapify(self._heap)
        if len(self.accounts) <= self._limit:
            return None
        while True:
            weight, least = heapq.heappop(self._heap)
            found = self.accounts.get(least)
            if found is not None and found.weight == weight:
                del self.accounts[least]
                return least


def _reasons(deeds: dict[Deed, Noted]) -> tuple[Grounds, ...]:
    def counts(deed: Deed) -> float:
        return (RULES[deed].bad * 1e6 + RULES[deed].good) * deeds[deed].count

    return tuple(
        Grounds(
            deed,
            deeds[deed].count,
            deeds[deed].last_s,
            RULES[deed].sentence,
            deeds[deed].detail,
        )
        for deed in sorted(deeds, key=lambda deed: (-counts(deed), deed))
    )
