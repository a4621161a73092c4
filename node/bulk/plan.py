"""Which chunks to ask of which source next, where a blob is had from several: pure.

Sources ask for work whenever they have room for a request, so that each gets as much as it
carries; a request is as long as a source sends in a quarter of a second, and shorter
towards the end, so that all end at about the same time. Then whoever has nothing left to
do takes over the rear of the slowest source's share. Only that is ever asked for twice,
within `TWICE_SHARE` of the blob, or one chunk. What a source had not sent when it left goes
to the others.

Where the blob goes to several nodes at once, these are sources for each other, and the one
that all have it from is to send it about once. Each group of chunks has one owner among the
takers, by rendezvous hashing (Thaler and Ravishankar 1998), so that all agree without a
word: whoever owns it gets it from the origin, and the others get it from the owner. One who
comes later looks first whether the owner of before has it. Only when nothing has come for a
while is the origin asked for what others own.

Time is an argument; sources are any hashable names.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from hashlib import blake2b
from math import ceil
from typing import Final, Generic, TypeVar

from shoal.protocol.limits import CHANNEL_CHUNKS_LIMIT

REQUEST_S: Final = 0.25
"""What one request is to ask for, by its source's pace; four of them are out at once."""

FIRST_CHUNKS: Final = 4
"""In a request to a source whose pace is not known yet."""

TWICE_SHARE: Final = 0.005
"""Of a blob's chunks, how many may be asked for twice."""

STALLED_S: Final = 2.0
STALLED_TIMES: Final = 8
"""A source that has sent nothing for so long, and for so many times as long as its chunks
take, is given up where another has nothing to do."""

GROUP_CHUNKS: Final = 4
"""Chunks that have one owner together: long enough for a request, short enough that even a
blob of 32 MiB is spread over eight takers."""

GRACE_S: Final = 0.2
"""How long one who comes later waits for what the owner of before may just be getting."""

PATIENCE_S: Final = 3.0
"""Without a new chunk, after which the origin is asked for what others own."""

STARVED_S: Final = 10.0
"""Without a new chunk, after which a taker that lacks what is wanted is given up."""

LACKING_S: Final = (0.05, 1.0)
"""When a source is asked again for what it did not have: at first, and in the end."""

K = TypeVar("K", bound=Hashable)


class Role(Enum):
    """What a source is to this transfer."""

    HOLDER = auto()
    """It has the blob, and is asked for any of it."""
    ORIGIN = auto()
    """All have the blob from it: asked for what this node owns, or when nothing else helps."""
    BEFORE = auto()
    """It began to take the blob before this node did."""
    AFTER = auto()
    """It began later."""


@dataclass(slots=True)
class _Lacking:
    since_s: float
    again_s: float
    wait_s: float


@dataclass(slots=True)
class _Source:
    """What is known of a source.

    Attributes:
        asked: Chunks that it was asked for and has not sent, in that order.
        chunk_s: Seconds from one chunk to the next, lately.
        last_s: When its last chunk came, or when it was first asked after a pause.
        idle: Whether there was nothing to ask of it when it had room.
        lacking: What it did not have when it was asked.
    """

    role: Role
    joined_s: float
    last_s: float
    asked: dict[int, None] = field(default_factory=dict)
    chunk_s: float | None = None
    idle: bool = False
    lacking: dict[int, _Lacking] = field(default_factory=dict)


class Plan(Generic[K]):
    """The transfer of one blob from its sources.

    Args:
        missing: The chunks that are not here.
        own: This node, where it is one of several takers.
        name: Of the blob; equal for all of them.
    """

    def __init__(self, missing: Iterable[int], *, own: K | None = None, name: str = "") -> None:
        self._free = sorted(missing)
        self._missing = set(self._free)
        self._twice_left = max(1, int(len(self._free) * TWICE_SHARE))
        self._askers: dict[int, list[K]] = {}
        self._sources: dict[K, _Source] = {}
        self._own, self._name = own, name
        self._owners: dict[int, tuple[K | None, K | None]] = {}
        self._progress_s: float | None = None

    @property
    def done(self) -> bool:
        """Whether all chunks have come."""
        return not self._missing

    def lacks(self, index: int) -> bool:
        """Whether a chunk has not come yet."""
        return index in self._missing

    def knows(self, source: K) -> bool:
        """Whether a source has joined and not left."""
        return source in self._sources

    def owes(self, source: K) -> bool:
        """Whether a source has not sent all that it was asked for."""
        return source in self._sources and bool(self._sources[source].asked)

    def join(self, source: K, role: Role, now_s: float) -> None:
        """Have one source more; it may be one that left before."""
        assert source not in self._sources
        self._sources[source] = _Source(role, now_s, now_s)
        self._owners.clear()
        if self._progress_s is None:
            self._progress_s = now_s

    def leave(self, source: K) -> None:
        """Have one source less: what it has not sent is for others to send."""
        for index in self._sources.pop(source).asked:
            self._give_back(source, index)
        self._owners.clear()

    def more(self, source: K, now_s: float) -> range | None:
        """What to ask of a source now; None where there is nothing for it at present."""
        own = self._sources[source]
        found = self._next_free(source, own, now_s) or self._from_the_slowest(
            source, own, now_s
        )
        own.idle = not found and not own.asked
        if not found:
            return None
        if not own.asked:
            own.last_s = now_s
        for index in found:
            own.asked[index] = None
            self._askers.setdefault(index, []).append(source)
        return found

    def came(self, source: K, index: int, now_s: float) -> None:
        """A chunk came from a source, and it was right."""
        own = self._sources.get(source)
        if own is not None and index in own.asked:
            del own.asked[index]
            took_s = now_s - own.last_s
            own.chunk_s = took_s if own.chunk_s is None else 0.8 * own.chunk_s + 0.2 * took_s
            own.last_s = now_s
            own.lacking.pop(index, None)
        self._forget_asker(source, index)
        if index in self._missing:
            self._missing.remove(index)
            self._progress_s = now_s

    def lacking(self, source: K, chunks: Iterable[int], now_s: float) -> None:
        """A source does not have these yet: others may, and it is asked again."""
        own = self._sources[source]
        own.last_s = now_s
        for index in chunks:
            before = own.lacking.get(index)
            wait_s = LACKING_S[0] if before is None else min(2 * before.wait_s, LACKING_S[1])
            since_s = now_s if before is None else before.since_s
            own.lacking[index] = _Lacking(since_s, now_s + wait_s, wait_s)
            if own.asked.pop(index, index) is None:
                self._give_back(source, index)

    def waited_s(self, now_s: float) -> float:
        """For how long no chunk has come from anybody."""
        return 0.0 if self._progress_s is None else now_s - self._progress_s

    def starved(self, source: K, now_s: float) -> bool:
        """Whether to give up a source that lacks what it was asked for.

        One that should have the blob is; one that is getting it when nothing has come from
        anybody for long.
        """
        own = self._sources[source]
        waited_s = now_s - max(self._progress_s or 0.0, own.joined_s)
        taker = own.role in {Role.BEFORE, Role.AFTER}
        return bool(own.lacking) and (not taker or waited_s >= STARVED_S)

    def stalled(self, now_s: float) -> list[K]:
        """Sources that others, which have nothing to do, should not wait for any longer."""
        spare = [
            name
            for name, each in self._sources.items()
            if each.idle and (each.role is not Role.ORIGIN or self._is_impatient(now_s))
        ]
        return [
            name
            for name, each in self._sources.items()
            if each.asked
            and spare
            and now_s - each.last_s >= max(STALLED_S, STALLED_TIMES * (each.chunk_s or 0.0))
            and any(self.lacks(index) for index in each.asked)
        ]

    # --- what is free ---------------------------------------------------------------

    def _next_free(self, source: K, own: _Source, now_s: float) -> range | None:
        size = self._size(own)
        for eager in (False, True):
            for index in self._free:
                if self._may_ask(source, own, index, now_s, eager=eager):
                    return self._take_free(source, own, index, size, now_s, eager=eager)
        return None

    def _take_free(
        self, source: K, own: _Source, first: int, size: int, now_s: float, *, eager: bool
    ) -> range:
        at = bisect_left(self._free, first)
        count = 1
        while (
            count < size
            and at + count < len(self._free)
            and self._free[at + count] == first + count
            and self._may_ask(source, own, first + count, now_s, eager=eager)
        ):
            count += 1
        del self._free[at : at + count]
        return range(first, first + count)

    def _size(self, own: _Source) -> int:
        """How many chunks to ask for: by pace, and by what is left for all."""
        by_pace = FIRST_CHUNKS
        if own.chunk_s is not None:
            by_pace = int(min(CHANNEL_CHUNKS_LIMIT, REQUEST_S / max(own.chunk_s, 1e-6)))
        share = CHANNEL_CHUNKS_LIMIT
        if len(self._sources) > 1:
            share = ceil(len(self._free) / (2 * len(self._sources)))
        return max(1, min(by_pace, share))

    def _may_ask(
        self, source: K, own: _Source, index: int, now_s: float, *, eager: bool
    ) -> bool:
        """Whether to ask a source for a free chunk; ``eager`` where it has nothing better."""
        lacked = own.lacking.get(index)
        if lacked is not None and now_s < lacked.again_s:
            return False
        if own.role is Role.HOLDER or self._own is None:
            return own.role is not Role.ORIGIN or self._is_last_resort(now_s)
        owner, before = self._owner(index)
        if own.role is Role.ORIGIN:
            if self._is_last_resort(now_s):
                return True
            return owner == self._own and self._had_not(before, index, now_s)
        if source == owner or (owner == self._own and source == before):
            return True
        return eager and (owner != self._own or not self._has(Role.ORIGIN))

    def _had_not(self, before: K | None, index: int, now_s: float) -> bool:
        if before is None:
            return True
        lacked = self._sources[before].lacking.get(index)
        return lacked is not None and now_s >= lacked.since_s + GRACE_S

    def _is_last_resort(self, now_s: float) -> bool:
        """Whether the origin is to be asked for anything: nobody else is there, or helps."""
        return self._is_impatient(now_s) or all(
            each.role is Role.ORIGIN for each in self._sources.values()
        )

    def _is_impatient(self, now_s: float) -> bool:
        return self._progress_s is not None and now_s - self._progress_s >= PATIENCE_S

    def _has(self, role: Role) -> bool:
        return any(each.role is role for each in self._sources.values())

    def _owner(self, index: int) -> tuple[K | None, K | None]:
        """Who owns a chunk, and who did before this node came."""
        group = index // GROUP_CHUNKS
        if group not in self._owners:
            before = [name for name, each in self._sources.items() if each.role is Role.BEFORE]
            after = [name for name, each in self._sources.items() if each.role is Role.AFTER]
            own = [] if self._own is None else [self._own]
            self._owners[group] = (
                owner_of(self._name, group, [*own, *before, *after]),
                owner_of(self._name, group, before),
            )
        return self._owners[group]

    # --- what others have been asked for ----------------------------------------------

    def _from_the_slowest(self, source: K, own: _Source, now_s: float) -> range | None:
        """Take over the rear of the share that would end last."""
        if self._free or self._twice_left < 1:
            return None
        slowest: tuple[float, float, list[int]] | None = None
        for name, each in self._sources.items():
            left = [index for index in each.asked if self._askers.get(index) == [name]]
            left = [index for index in left if self.lacks(index) and index not in own.lacking]
            if name == source or not left:
                continue
            chunk_s = max(each.chunk_s or 0.0, now_s - each.last_s)
            if slowest is None or chunk_s * len(left) > slowest[0]:
                slowest = chunk_s * len(left), chunk_s, left
        if slowest is None or (own.role is Role.ORIGIN and not self._is_impatient(now_s)):
            return None
        left_s, theirs_s, left = slowest
        own_s = own.chunk_s if own.chunk_s is not None else theirs_s / 2
        if left_s <= 2 * own_s:
            return None
        count = max(1, int(len(left) * theirs_s / (theirs_s + own_s)))
        count = min(count, self._twice_left, CHANNEL_CHUNKS_LIMIT)
        first = last = left.pop()
        while left and left[-1] == first - 1 and last - first + 1 < count:
            first = left.pop()
        self._twice_left -= last - first + 1
        return range(first, last + 1)

    def _give_back(self, source: K, index: int) -> None:
        self._forget_asker(source, index)
        if index in self._missing and index not in self._askers:
            insort(self._free, index)

    def _forget_asker(self, source: K, index: int) -> None:
        askers = self._askers.get(index, [])
        if source in askers:
            askers.remove(source)
        if not askers:
            self._askers.pop(index, None)


def owner_of(name: str, group: int, takers: Iterable[K]) -> K | None:
    """Which of the takers owns a group of chunks of a blob; None where there are none."""

    def weight(taker: K) -> bytes:
        return blake2b(f"{name}/{group}/{taker}".encode(), digest_size=16).digest()

    return max(takers, key=weight, default=None)
