"""Stages: where a long unit is cut, and what is alive at each cut.

Part of *execute* (a provider commits to the state at the end of each stage while it runs)
and of *verify* (two runs of a unit that differ do so first in one stage). Where stages end
follows from the graph alone, so that all nodes cut alike: after some 32 to 64 nodes, about
a layer of a transformer, where the fewest values are alive. SPEC.md, "Traces", is the rule.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from shoal.compute.exact.leaves import (
    STAGE_ALIVE_LIMIT,
    STAGES_LIMIT,
    OperatorLeaf,
    StageLeaf,
)
from shoal.compute.exact.tracing import tensor_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.compute.exact.operators.node import Array
    from shoal.compute.exact.reading import Graph
    from shoal.crypto.content import BlobId

NODES_LEAST: Final = 32
"""Nodes of a stage, at least; at most twice as many where the graph allows it."""


@dataclass(frozen=True, slots=True)
class Stages:
    """How a graph is cut.

    Attributes:
        ends: For each stage the place of the node behind it; the last is their number.
        alive: For each stage the names of the values that make up the state at its end.
    """

    ends: tuple[int, ...]
    alive: tuple[tuple[str, ...], ...]

    def span(self, stage: int) -> range:
        """The places of a stage's nodes."""
        return range(self.ends[stage - 1] if stage else 0, self.ends[stage])


def stages_of(graph: Graph) -> Stages:
    """Cut a graph. Every node cuts alike."""
    count = len(graph.nodes)
    if not count:
        return Stages((), ())
    born, dies = _lives(graph)
    alive = [0] * (count + 1)  # how many are alive before the node at each place
    for name, place in born.items():
        if dies[name] > place:
            alive[place + 1] += 1
            if dies[name] < count:
                alive[dies[name] + 1] -= 1
    for place in range(count):
        alive[place + 1] += alive[place]
    ends = _ends(alive, count)
    states: list[list[str]] = [[] for _ in ends]
    for name, place in born.items():
        for stage in range(bisect_right(ends, place), bisect_right(ends, dies[name])):
            states[stage].append(name)
    return Stages(ends, tuple(map(tuple, states)))


def _ends(alive: Sequence[int], count: int) -> tuple[int, ...]:
    least = max(NODES_LEAST, -(-count // STAGES_LIMIT))
    ends: list[int] = []
    at = 0
    while count - at > 2 * least:
        window = range(at + least, at + 2 * least + 1)
        at = min(window, key=alive.__getitem__)  # of equal ones the first
        if alive[at] > STAGE_ALIVE_LIMIT:
            behind = range(window.stop, count)
            at = next((p for p in behind if alive[p] <= STAGE_ALIVE_LIMIT), count)
            if at == count:
                break
        ends.append(at)
    return (*ends, count)


def _lives(graph: Graph) -> tuple[dict[str, int], dict[str, int]]:
    """Of each value that a node gives: the node's place, and that of its last reader.

    An output is read behind the last node; what nobody reads ends where it began.
    """
    born = {
        name: place for place, node in enumerate(graph.nodes) for name in node.outputs if name
    }
    dies = dict(born)
    for place, node in enumerate(graph.nodes):
        dies.update((name, place) for name in node.inputs if name in born)
    dies.update((name, len(graph.nodes)) for name in graph.outputs if name in born)
    return born, dies


class StageRecorder:
    """Takes the leaves of a unit's stages while it runs (`plan.Plan.run`).

    Each value is hashed once, however many stages it lives through.

    Args:
        stages: How the graph is cut.
        folded: Ids of those values of a state that depend on constants alone.
    """

    def __init__(self, stages: Stages, folded: Mapping[str, BlobId]) -> None:
        self._stages = stages
        self._ids = dict(folded)
        self.leaves: list[StageLeaf] = []

    def reached(self, place: int, values: Mapping[str, Array]) -> None:
        """Note the stages that end before the node at ``place``, which is about to run.

        Raises:
            ProgramError: A value is no tensor that travels.
        """
        while (stage := len(self.leaves)) < len(self._stages.ends):
            if self._stages.ends[stage] > place:
                return
            alive = self._stages.alive[stage]
            for name in alive:
                if name not in self._ids:
                    self._ids[name] = tensor_id(values[name])
            state = tuple(self._ids[name] for name in alive)
            self.leaves.append(StageLeaf(stage, state))


def stage_leaves(
    stages: Stages, leaves: Sequence[OperatorLeaf], graph: Graph
) -> list[StageLeaf]:
    """The leaves of the stages that a unit's operator leaves reach the end of.

    Args:
        stages: How the graph is cut.
        leaves: From the first node on; the last one may hold an error.
        graph: The graph.
    """
    ids: dict[str, BlobId | None] = {}
    found: list[StageLeaf] = []
    for stage in range(len(stages.ends)):
        span = stages.span(stage)
        if span.stop > len(leaves) or leaves[span.stop - 1].error is not None:
            break
        for place in span:
            ids.update(zip(graph.nodes[place].outputs, leaves[place].outputs, strict=True))
        state = (ids[name] for name in stages.alive[stage])
        found.append(StageLeaf(stage, tuple(digest for digest in state if digest)))
    return found
