"""Where a unit's time went, step by step of the data path, for the last units of this node.

Everything is measured by this node's own clock, but what the provider did: that is the
provider's word, and what it says is taken from the time between handing over and its answer,
so that the steps add up to the time that passed. In memory: of the last `UNITS_LIMIT` units
that were handed over, and gone with the daemon; a unit that ran before shows none.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from shoal.crypto.peer_id import PeerId
from shoal.node.errors import JobError
from shoal.node.records import JobId
from shoal.node.timing_view import STEPS, UnitTiming

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.protocol.negotiation_messages import UnitTimes

UNITS_LIMIT = 4096
"""Units that are remembered, about 1 KB each."""

ADDED_LIMIT = 1024
"""Requests by which units came that are remembered, until the units are handed over."""

AT_PROVIDER: Final = ("fetched", "waited", "executed", "signed")


class _Added(NamedTuple):
    job: JobId
    first: int
    units: int
    took_s: float
    at_s: float


@dataclass(slots=True)
class _Marks:
    """A unit on its way."""

    provider: PeerId | None = None
    together: int = 1
    last_s: float = 0.0
    steps: dict[str, float] = field(default_factory=dict)


class Timings:
    """Notes when units pass which step. Takes the time from Trio's clock."""

    def __init__(self) -> None:
        self._added: deque[_Added] = deque(maxlen=ADDED_LIMIT)
        self._units: OrderedDict[tuple[JobId, int], _Marks] = OrderedDict()

    def added(self, job: JobId, first: int, count: int, began_s: float) -> None:
        """Units are written down.

        Args:
            job: Theirs.
            first: The index of the first.
            count: How many.
            began_s: When they came.
        """
        now_s = trio.current_time()
        self._added.append(_Added(job, first, count, now_s - began_s, now_s))

    def handed(
        self,
        job: JobId,
        indices: Iterable[int],
        provider: PeerId,
        called_s: float,
        got_s: float,
    ) -> None:
        """Units go to a provider in one message; again, where they ran elsewhere before.

        Args:
            job: Theirs.
            indices: Which.
            provider: Whose lease they go under.
            called_s: When it was called for a bid.
            got_s: When it had bid.
        """
        now_s = trio.current_time()
        indices = list(indices)
        for index in indices:
            marks = self._units.pop((job, index), None) or self._begun(job, index, now_s)
            self._units[job, index] = marks
            negotiated_s = max(0.0, min(got_s, now_s) - max(called_s, marks.last_s))
            self._add(marks, "queued", now_s - marks.last_s - negotiated_s)
            if negotiated_s:
                self._add(marks, "negotiated", negotiated_s)
            marks.provider, marks.together, marks.last_s = provider, len(indices), now_s
        while len(self._units) > UNITS_LIMIT:
            self._units.popitem(last=False)

    def came_back(self, job: JobId, index: int, times: UnitTimes | None) -> None:
        """A provider has answered for a unit; ``times`` are what it says that it took."""
        marks = self._units.get((job, index))
        if marks is None:
            return
        now_s = trio.current_time()
        rest_s = now_s - marks.last_s
        if times is not None:
            said = (times.fetched_s, times.waited_s, times.executed_s, times.signed_s)
            for step, seconds in zip(AT_PROVIDER, said, strict=True):
                seconds = min(seconds, rest_s)  # noqa: PLW2901  # what it says may be anything
                rest_s -= seconds
                self._add(marks, step, seconds)
        self._add(marks, "handed_over", rest_s)
        marks.last_s = now_s

    def passed(self, job: JobId, indices: Iterable[int], step: str) -> None:
        """Units have passed a step that began with the end of their last one."""
        now_s = trio.current_time()
        for index in indices:
            if (marks := self._units.get((job, index))) is not None:
                self._add(marks, step, now_s - marks.last_s)
                marks.last_s = now_s

    def delivered(self, job: JobId, indices: Iterable[int]) -> None:
        """Results are given out; what counts is the first time."""
        fresh = [
            index
            for index in indices
            if (marks := self._units.get((job, index))) is not None
            and "written" in marks.steps
            and "delivered" not in marks.steps
        ]
        self.passed(job, fresh, "delivered")

    def of(self, job: JobId, index: int) -> UnitTiming:
        """Where a unit's time went.

        Raises:
            JobError: ``no_timing``: it was not handed over since this daemon started, or so
                many others were since.
        """
        marks = self._units.get((job, index))
        if marks is None:
            raise JobError(
                f"where the time of unit {index} of job {job} went is not known",
                code="no_timing",
                hint=f"it is kept for the last {UNITS_LIMIT} units that were handed over since "
                "the daemon started: ask right after the unit ran",
            )
        steps = {step: marks.steps[step] for step in STEPS if step in marks.steps}
        return UnitTiming(
            job, index, marks.provider, marks.together, steps, sum(steps.values())
        )

    def _begun(self, job: JobId, index: int, now_s: float) -> _Marks:
        for added in reversed(self._added):
            if added.job == job and added.first <= index < added.first + added.units:
                return _Marks(last_s=added.at_s, steps={"submitted": added.took_s})
        return _Marks(last_s=now_s)

    @staticmethod
    def _add(marks: _Marks, step: str, seconds: float) -> None:
        marks.steps[step] = marks.steps.get(step, 0.0) + max(0.0, seconds)
