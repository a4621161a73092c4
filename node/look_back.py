"""What a result rests on, when it may be delivered, and what is looked at again: all pure.

A verifier may be in league with a provider. One check that agrees is then worth as much as
the verifier's word, and a liar is found by the first honest one that is drawn. Two rules
make little of what was vouched for until then:

*Hold*: what a provider gives that is not in good standing is not delivered as long as more
of it is on its way to be checked. A liar would have to draw its friends every time until it
is trusted, and not once; if it does not, nothing of it was delivered. A job that has
nothing more out at a provider waits for nothing: one unit alone is delivered as soon as it
is checked.

*Look back*: a peer that was found false may have had friends. Whoever vouched for it, and
whomever it vouched for, is looked at again by this node itself, by the last result of each:
so one liar that is caught brings down those with it. What rests on false peers alone is run
again where nobody has fetched it, and named where somebody has.

What is done about it is `node.checking`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Final, Generic, TypeVar

HOLD_S: Final = 30.0
"""How long a result is held at most: a newcomer is trusted after some eight of them, and
units that take far longer than some seconds are not worth the wait."""

HELD_UNITS: Final = 256
"""Results of one job that are held at most: of more the oldest are delivered."""

LOOKED_AT: Final = 8
"""Results that this node runs again for each peer that was found false."""

PAIRS_LIMIT: Final = 4096
"""Of how many pairs, a provider and who vouched for it, the last result is remembered: about
2 KB each."""

_Peer = TypeVar("_Peer", bound=Hashable)
_Item = TypeVar("_Item")


def is_held(*, trusted: bool, out: int, held: int, waited_s: float) -> bool:
    """Whether a result that is ready is not to be delivered yet.

    Args:
        trusted: Whether its provider is in good standing.
        out: What else of this provider and job is under way: units that it runs, and results
            that wait to be checked.
        held: How many newer results of the job are held.
        waited_s: How long this one has been.
    """
    return not trusted and out > 0 and held < HELD_UNITS and waited_s < HOLD_S


def is_doubtful(
    provider: _Peer, vouched: Iterable[_Peer], is_false: Callable[[_Peer], bool]
) -> bool:
    """Whether nobody stands for a result any more who was not found false.

    Args:
        provider: Whose result it is.
        vouched: Whose own run came to the same: this node may be among them.
        is_false: Whether a peer was found false.
    """
    agreed = list(vouched)
    if any(not is_false(peer) for peer in agreed):
        return False
    return bool(agreed) or is_false(provider)


class Vouchers(Generic[_Peer, _Item]):
    """Who vouched for whom, with the last result of each pair; bounded, the oldest go.

    Args:
        limit: Pairs that are remembered.
    """

    def __init__(self, limit: int = PAIRS_LIMIT) -> None:
        self._limit = limit
        self._last: dict[tuple[_Peer, _Peer], _Item] = {}

    def note(self, provider: _Peer, agreed: Collection[_Peer], item: _Item) -> None:
        """``agreed`` gave the same as ``provider`` for ``item``."""
        for peer in agreed:
            self._last.pop((provider, peer), None)
            self._last[provider, peer] = item
        while len(self._last) > self._limit:
            del self._last[next(iter(self._last))]

    def friends_of(self, peer: _Peer, is_false: Callable[[_Peer], bool]) -> list[_Item]:
        """What is to be looked at again now that ``peer`` was found false; each only once.

        Newer results come first, and at most `LOOKED_AT` of them; of a pair of which both
        are false nothing is left to be found.
        """
        found: list[_Item] = []
        for pair in reversed([pair for pair in self._last if peer in pair]):
            item = self._last.pop(pair)
            other = pair[0] if pair[1] == peer else pair[1]
            if not is_false(other) and len(found) < LOOKED_AT:
                found.append(item)
        return found
