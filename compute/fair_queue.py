"""Whose turn it is: start-time fair queuing over measured seconds. Pure.

A worker does few things at a time, and many ask for it. Ranks are strict: a machine's
owner comes before friends, and friends before strangers. Within a rank each *flow* (a
requester) has the same share of the seconds, whatever number of jobs, leases and units
it waits with: a requester with thousands of units in front does not delay another's
single one by more than what is under way.

Start-time fair queuing (Goyal, Vin and Cheng 1996) gives each turn a start tag and takes
the least; it needs no turn's length before it has ended, unlike fair queuing by finish
times. A flow's tag grows by the seconds that its turns took. One that comes back starts
at the tag of the turn under way, or at its own where that is greater: time away is no
credit, and time used is not forgotten. When nobody waits any more nobody owes anything.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")


@dataclass(slots=True)
class _Flow(Generic[Item]):
    """What waits of one requester, first come first; where its next turn starts."""

    start_s: float
    waiting: deque[tuple[int, Item]] = field(default_factory=deque)


@dataclass(slots=True)
class _Rank(Generic[Item]):
    """The flows of one rank.

    Attributes:
        virtual_s: The start tag of the turn that was given last.
        flows: Those that wait.
        ahead: Where flows start that do not wait and have used more than others.
    """

    virtual_s: float = 0.0
    flows: dict[str, _Flow[Item]] = field(default_factory=dict)
    ahead: dict[str, float] = field(default_factory=dict)


class FairQueue(Generic[Item]):
    """Items that wait, each of a flow and a rank. `take` one, then `charge` for it."""

    def __init__(self) -> None:
        self._ranks: dict[int, _Rank[Item]] = {}
        self._arrivals = 0

    def __len__(self) -> int:
        return sum(len(f.waiting) for r in self._ranks.values() for f in r.flows.values())

    def add(self, rank: int, flow: str, item: Item) -> None:
        """Let ``item`` wait behind what its flow waits with."""
        held = self._ranks.setdefault(rank, _Rank())
        if flow not in held.flows:
            start_s = max(held.virtual_s, held.ahead.pop(flow, 0.0))
            held.flows[flow] = _Flow(start_s)
        held.flows[flow].waiting.append((self._arrivals, item))
        self._arrivals += 1

    def foremost(self) -> Item:
        """The next item, which goes on waiting.

        Raises:
            IndexError: Nothing waits.
        """
        _, _, flow = self._first()
        return flow.waiting[0][1]

    def take(self) -> Item:
        """The next item: of the least rank, then of the flow that has used least.

        Raises:
            IndexError: Nothing waits.
        """
        held, name, flow = self._first()
        held.virtual_s = flow.start_s
        _, item = flow.waiting.popleft()
        if not flow.waiting:
            del held.flows[name]
            held.ahead[name] = flow.start_s
        return item

    def _first(self) -> tuple[_Rank[Item], str, _Flow[Item]]:
        """Where the next item waits: its rank, its flow's name, and its flow."""
        ranks = [rank for rank, held in self._ranks.items() if held.flows]
        if not ranks:
            raise IndexError("nothing waits")
        held = self._ranks[min(ranks)]
        name, flow = min(held.flows.items(), key=lambda f: (f[1].start_s, f[1].waiting[0][0]))
        return held, name, flow

    def charge(self, rank: int, flow: str, seconds: float) -> None:
        """Note how long the turn took that ``flow`` had; only then is the next one taken."""
        held = self._ranks.setdefault(rank, _Rank())
        if flow in held.flows:
            held.flows[flow].start_s = max(held.flows[flow].start_s, held.virtual_s) + seconds
            return
        held.ahead[flow] = max(held.ahead.get(flow, 0.0), held.virtual_s) + seconds
        if not held.flows:  # nobody is behind anybody
            del self._ranks[rank]
            return
        behind = [name for name, start_s in held.ahead.items() if start_s <= held.virtual_s]
        for name in behind:
            del held.ahead[name]

    def remove(self, rank: int, flow: str, item: Item) -> None:
        """Let go of an item that gives up waiting; what is not there is ignored."""
        held = self._ranks.get(rank)
        if held is None or flow not in held.flows:
            return
        waiting = held.flows[flow].waiting
        for place, (_, waits) in enumerate(waiting):
            if waits is item:
                del waiting[place]
                break
        if not waiting:
            start_s = held.flows.pop(flow).start_s
            if start_s > held.virtual_s:
                held.ahead[flow] = start_s
