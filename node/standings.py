"""How a peer stands with this node, all things together, and what that decides.

Three things are known of a peer, each kept where it comes from: how far its work has been
found right (`node.result_standing`), how it keeps to the rules of the wire
(`node.conduct`), and whether it is banned (`node.convictions`). Here they come to one
value from 0 to 1, and what follows from it is decided in this one place: the share of
work that it gets, how often its results are checked, whether it may check others', and
whether this node works for it.

Deeds are noted in memory at once and written once a second, since they come with every
message; what is bad is rare and is written at the next such time like the rest. A ban has
a row of its own, written before it counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import structlog

from shoal.crypto.peer_id import PeerId
from shoal.node.errors import StoreError
from shoal.node.result_standing import (
    NEW,
    Deed,
    Grounds,
    ResultStanding,
    StandingNow,
    StandingRow,
)
from shoal.node.standing import RULES, Offence
from shoal.node.standing_view import StandingPage, StandingReason
from shoal.protocol.verification.policy import probability

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from shoal.node.conduct import Conduct
    from shoal.node.records import Ban
    from shoal.node.state import State

VERIFIES_FROM: Final = 0.75
"""Who checks others' results: about ten found right, and nothing against it."""

DOUBTED_BELOW: Final = 0.4
"""Whose units wait behind all others' here."""

REFUSED_BELOW: Final = 0.1
"""For whom this node does not work, and who gets no work of it."""

COLLUDING: Final = 0.25
"""Which part of those that may verify is assumed to be with a provider."""

log = structlog.get_logger(__name__)


class Standings:
    """How peers stand with this node.

    Args:
        own: This node, which trusts itself.
        rows: What was kept of peers' work.
        conduct: How they keep to the rules of the wire.
        friends: Peers on the allow list, as it is now.
        clock: The time, in seconds since the epoch.

    Attributes:
        banned: Gives the ban of a peer that is banned now.
    """

    def __init__(
        self,
        own: PeerId,
        conduct: Conduct,
        rows: Iterable[StandingRow] = (),
        friends: Callable[[], Collection[PeerId]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.banned: Callable[[PeerId], Ban | None] = lambda _peer: None
        self._own = own
        self._conduct = conduct
        self._friends = friends
        self._clock = clock
        self._results = ResultStanding(rows)
        self._changed: set[PeerId] = set()
        self._forgotten: set[PeerId] = set()

    # --- what is known ---

    def note(
        self,
        peer: PeerId,
        deed: Deed,
        weight: float = 1.0,
        detail: str = "",
        *,
        times: int = 1,
    ) -> None:
        """Note what a peer did; it does not block and never raises.

        Args:
            peer: Who.
            deed: What.
            weight: Less for a weaker check, such as one within a tolerance.
            detail: The same more exactly, for a person.
            times: How often, where it was the same many times over.
        """
        if peer == self._own or times <= 0:
            return
        forgotten = self._results.note(peer, deed, self._clock(), weight, detail, times)
        self._changed.add(peer)
        self._forgotten.discard(peer)
        if forgotten is not None:
            self._changed.discard(forgotten)
            self._forgotten.add(forgotten)

    def of(self, peer: PeerId) -> StandingNow:
        """What is known of a peer's work; a banned one has a value of 0."""
        if peer == self._own:
            return StandingNow(1.0, 0, newcomer=False)
        found, ban = self._results.of(peer, self._clock()), self.banned(peer)
        if ban is None:
            return found
        return StandingNow(
            0.0, 0, found.newcomer, ban.until, reasons=(_of_ban(ban), *found.reasons)
        )

    def convicted(self, peer: PeerId, why: str) -> None:
        """Note that a peer was banned by a proof, for as long as its ban lasts."""
        ban = self.banned(peer)
        self.note(peer, Deed.CONVICTED, detail=why)
        if ban is not None:
            self._results.convict_until(peer, ban.until)

    # --- what follows from it ---

    def share(self, peer: PeerId) -> float:
        """By how much a peer's price and time are divided where work is given out."""
        value = self.of(peer).value
        wire = self._conduct.standing_of(peer)
        return value if wire is None else value * wire.standing

    def may_verify(self, peer: PeerId) -> bool:
        """Whether a peer may check others' results.

        Friends may from the start: their keys are no fresh ones. Nobody may while banned
        or cut.
        """
        if self.share(peer) <= 0.0:
            return False
        if peer in self._friends():
            return self.of(peer).value >= NEW.value
        found = self.of(peer)
        return not found.newcomer and found.value >= VERIFIES_FROM

    def probability(self, peer: PeerId) -> float:
        """How often a provider's results are checked under ``auto``; never one's own."""
        if peer == self._own:
            return 0.0
        found = self.of(peer)
        return probability(
            good_in_a_row=found.good_in_a_row,
            newcomer=found.newcomer,
            standing=found.value,
            cost=1.0,
            reward=1.0,
            colluding=COLLUDING,
        )

    def doubted(self, peer: PeerId) -> bool:
        """Whether a peer's units wait behind all others' here."""
        return peer not in self._friends() and self.share(peer) < DOUBTED_BELOW

    def refusal(self, peer: PeerId) -> str | None:
        """Why this node does not work for a peer, as it is told to it; None where it does."""
        if peer in self._friends() or self.share(peer) >= REFUSED_BELOW:
            return None
        reasons = self.of(peer).reasons
        against = reasons[0].sentence if reasons else "broke the rules of the wire"
        return f"its standing here is too low: it {against}; it recovers with time"

    def page(self, peer: PeerId) -> StandingPage:
        """All of it, for a person."""
        found, ban = self.of(peer), self.banned(peer)
        wire = self._conduct.standing_of(peer)
        refusal = self.refusal(peer) or ""
        offences = wire.offences if wire is not None else {}
        return StandingPage(
            peer=peer,
            value=found.value,
            conduct=1.0 if wire is None else wire.standing,
            share=self.share(peer),
            newcomer=found.newcomer,
            good_in_a_row=found.good_in_a_row,
            check_probability=self.probability(peer),
            may_verify=self.may_verify(peer),
            served=not refusal,
            refusal=refusal,
            banned_until=found.convicted_until_s if ban is None else ban.until,
            reasons=(
                *(
                    StandingReason(
                        "banned" if each is found.reasons[0] and ban else each.deed.value,
                        each.count,
                        each.last_s,
                        each.sentence,
                        each.detail,
                    )
                    for each in found.reasons
                ),
                *(
                    StandingReason(code, count, None, RULES[Offence(code)].sentence)
                    for code, count in offences.items()
                ),
            ),
        )

    def lift(self, peer: PeerId) -> None:
        """End what a conviction counts for: its ban was lifted by the operator."""
        self._results.lift(peer, self._clock())
        self._changed.add(peer)

    # --- effects ---

    async def write(self, journal: State) -> None:
        """Write what has changed; where that cannot be, it is written later."""
        changed, self._changed = self._changed, set()
        forgotten, self._forgotten = self._forgotten, set()
        rows = [row for peer in changed if (row := self._results.row(peer)) is not None]
        if not rows and not forgotten:
            return
        try:
            await journal.save_standing(rows, forgotten)
        except StoreError as error:
            self._changed |= changed
            self._forgotten |= forgotten
            log.warning("standing is not written down", error=str(error))


def _of_ban(ban: Ban) -> Grounds:
    return Grounds(Deed.CONVICTED, 1, ban.since, "is banned", f"{ban.why} (proof {ban.proof})")
