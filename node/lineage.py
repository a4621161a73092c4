"""Outputs that were left with peers, as values: who has which, and which unit made it. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.node.records import JobId, Unit

RECOMPUTED_LIMIT: Final = 6
"""How often one unit is made anew since its outputs were lost, in one run of the daemon."""

COUNTED_LIMIT: Final = 4096
"""Units of which that is counted: those that were made anew last."""


class Left(NamedTuple):
    """An output that was left with a peer: who has it, which unit made it, its bytes."""

    peer: PeerId
    job: JobId
    unit: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Supply:
    """How some units get their inputs.

    Attributes:
        sources: By unit, whom its provider may ask for what, as `UnitRequest` has it.
        lost: For units of which inputs are nowhere, what is to be made anew first.
    """

    sources: Mapping[int, tuple[tuple[BlobId, PeerId], ...]]
    lost: Mapping[int, tuple[Left, ...]]


@dataclass(slots=True)
class Lineage:
    """How often units were made anew, and whether one may be once more."""

    _times: OrderedDict[tuple[JobId, int], int] = field(default_factory=OrderedDict)

    def again(self, job: JobId, unit: int) -> bool:
        """Count one more time; gives whether that is within the bound."""
        times = self._times.pop((job, unit), 0) + 1
        self._times[job, unit] = times
        if len(self._times) > COUNTED_LIMIT:
            self._times.popitem(last=False)
        return times <= RECOMPUTED_LIMIT


def nearest(left: Mapping[BlobId, Left], units: Iterable[Unit]) -> dict[int, PeerId]:
    """For units of which peers have inputs, who has the most bytes of them: pure."""
    found: dict[int, PeerId] = {}
    for unit in units:
        held = bytes_with(left, [unit])
        if held:
            found[unit.index] = max(held, key=lambda peer: (held[peer], peer))
    return found


def bytes_with(left: Mapping[BlobId, Left], units: Iterable[Unit]) -> Counter[PeerId]:
    """How many bytes of these units' inputs each peer has already: pure."""
    held: Counter[PeerId] = Counter()
    for unit in units:
        for blob_id in unit.inputs.values():
            if blob_id in left:
                held[left[blob_id].peer] += left[blob_id].size_bytes
    return held
