"""A unit on its way through a worker, as whoever waits for it and the supervisor see it."""

from __future__ import annotations

import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import trio

from shoal.compute.errors import ComputeError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from shoal.compute.in_file import InFile, Tensor
    from shoal.crypto.content import BlobId


@dataclass(frozen=True, slots=True)
class Execution:
    """A unit that ran.

    Attributes:
        outputs: Tensor blobs by output name, in the program's order. Large ones of a unit
            that ran by itself are not in memory; each of them is to be read once.
        compute_s: From the inputs' arrival in the worker to the last output.
        runtime: Name and version, such as ``onnxruntime 1.32.0 CPUExecutionProvider``.
        stages: The leaves of its stages, where they were asked for and its class has them.
    """

    outputs: Mapping[str, bytes | InFile]
    compute_s: float
    runtime: str
    stages: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Traced:
    """What a unit's trace holds, each leaf in the bytes that its digest is taken over.

    Attributes:
        leaves: Of the operators, in order; the last one may hold an error.
        stages: Of the stages that these reach the end of; () where one stage alone was
            asked for.
    """

    leaves: tuple[bytes, ...]
    stages: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class NodeTensors:
    """What one node of a unit took and gave.

    Attributes:
        leaf: The bytes of its leaf.
        blobs: The tensors that the leaf names, by id.
    """

    leaf: bytes
    blobs: Mapping[BlobId, bytes]


Outcome: TypeAlias = Execution | ProgramError | ComputeError


@dataclass(slots=True, eq=False)
class UnitRun:
    """One unit of several that are run together (`device_worker.Worker.run_many`).

    Attributes:
        inputs: Tensor blobs by input name.
        outcome: What came of it; None until then, and of one that was cancelled.
        started_at_ms: Wall clock of when it began to run, with its outcome.
        ended_at_ms: The same of its end.
        cancelled: Nobody waits for it any more.
        trace: Its stages are to be committed to (`Execution.stages`): it is long.
    """

    inputs: Mapping[str, Tensor]
    outcome: Outcome | None = None
    started_at_ms: int = 0
    ended_at_ms: int = 0
    cancelled: bool = False
    trace: bool = False
    _attempt: trio.CancelScope | None = field(default=None, repr=False)

    def cancel(self) -> None:
        """Do not run it; where it runs now, its worker's process is ended."""
        self.cancelled = True
        if self._attempt is not None:
            self._attempt.cancel()

    @contextmanager
    def attempt(self, limit_s: float = math.inf) -> Iterator[None]:
        """A block in which it runs; `cancel` ends the block, and so does its time limit."""
        self.started_at_ms = _wall_ms()
        with trio.move_on_after(limit_s) as scope:
            self._attempt = scope
            try:
                yield
            finally:
                self._attempt = None

    def end(self, outcome: Outcome) -> None:
        """Note what came of it, now."""
        self.outcome = outcome
        self.ended_at_ms = _wall_ms()
        if isinstance(outcome, Execution):  # as the worker measured: no other's time is in it
            self.started_at_ms = self.ended_at_ms - round(outcome.compute_s * 1e3)


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000
