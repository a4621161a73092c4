"""Starts the processes of one device, and sees whether it still does what it did.

A process that has settled in is a `Room`; whose it becomes is `compute.rooms`'. Where no
process can be started on a card any more, the card is gone, and `Place.lost` is told.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from shoal.compute import frames, kernel_cache
from shoal.compute.devices.abilities import takes_units
from shoal.compute.errors import ComputeError
from shoal.compute.exchanges import exchange
from shoal.compute.executors.card_faults import LOST
from shoal.compute.frames import UnitLimits
from shoal.compute.worker_process import Place, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.compute.card_memory import Use
    from shoal.compute.devices.inventory import Lack
    from shoal.compute.executors.base import NumericClass, Probe

STARTS_TRIED: Final = 2
"""A card whose worker fails to start so often in a row is gone: once, any process may."""

FIRST_TURN_S: Final = 1.0
"""How long the first turn of a process lasts: its start took as long, and where more
requesters take turns than have processes, each turn begins with one."""

log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Room:
    """A worker's process, what it showed, and whose units alone it runs.

    Attributes:
        requester: Whose; "" before it is anybody's.
        held: The programs prepared there, and the bytes of their blobs.
        card_bytes: What these take of a card, as the process says.
        use: What the unit that runs there may take; None where none does.
        ending: Somebody ends it.
    """

    process: WorkerProcess
    probes: tuple[Probe, ...]
    requester: str = ""
    held: dict[str, int] = field(default_factory=dict)
    card_bytes: int = 0
    use: Use | None = None
    ending: bool = False
    used_at_s: float = 0.0
    turn_s: float = FIRST_TURN_S
    """How long its next turn lasts, where many units wait."""

    @property
    def weights_bytes(self) -> int:
        """What its programs take of a card, at the least."""
        return max(self.card_bytes, sum(self.held.values()))

    @property
    def idle(self) -> bool:
        """Whether it may be used, or ended."""
        return self.use is None and not self.ending


class Starter:
    """Starts processes for one device.

    Args:
        start: What they are told.
        entry: What Python runs.
        place: Where.
        lost: Called once, when the device computes nothing more.
    """

    def __init__(
        self,
        start: frames.Start,
        entry: Sequence[str],
        place: Place,
        lost: Callable[[], None],
    ) -> None:
        self.start = start
        self._entry = entry
        self._place = place
        self._on_lost = lost
        self._classes: frozenset[NumericClass] | None = None
        self._failed_starts = 0
        self.lost: ComputeError | None = None
        """Why the device computes nothing more; None where it does."""
        self.sandbox, self.sandboxed = "no worker has started yet", False
        """How the process that started last is locked in; whether strangers are welcome."""
        self.holds_units = True
        """Whether each process so far holds a unit to its own memory, by whatever executor."""
        self.missing: tuple[Lack, ...] = ()
        """Why other executors are not among those that the last start showed."""
        self.processes_started = 0
        """How many there have been, those that did not settle in as well."""

    async def started(self, start: frames.Start | None = None) -> Room:
        """A new process that has settled in.

        Args:
            start: What it is told, where that is not what all are.

        Raises:
            ComputeError: It does not start (``worker_start``), or the card is gone.
        """
        start = start or self.start
        try:
            process = WorkerProcess(self._entry, self._place)
        except OSError as error:
            raise ComputeError(
                f"a worker process cannot be started: {error.strerror}", code="worker_start"
            ) from None
        self.processes_started += 1
        start = msgspec.structs.replace(start, scratch=process.scratch)
        limits = UnitLimits(self._place.start_limit_s, memory_bytes=0, output_bytes=0)
        try:
            answer, _ = await exchange(process, start, [], limits, frames.Started)
            self._check_device(answer)
            await self._keep_kernels(process)
        except BaseException as error:  # nobody else knows of the process yet
            if not process.ended:
                await process.end()
            if isinstance(error, ComputeError):
                raise self._not_started(error) from error
            raise
        self._failed_starts = 0
        if start.exact == self.start.exact:
            self.missing = answer.missing
        self.sandbox, self.sandboxed = answer.sandbox, answer.sandboxed
        self.holds_units = self.holds_units and answer.holds_units
        return Room(process, answer.probes)

    async def _keep_kernels(self, process: WorkerProcess) -> None:
        """Keep what a process compiled for its canaries, before it sees a program."""
        if process.scratch:
            keep = partial(kernel_cache.keep, process.scratch, self._place.kernels)
            with suppress(OSError):  # then the next process compiles it again
                await trio.to_thread.run_sync(keep)

    def _check_device(self, answer: frames.Started) -> None:
        """See that a card still does what it did when it was first looked at.

        Raises:
            ComputeError: It does not.
        """
        if self.start.card is None:
            return
        classes = frozenset(p.numeric_class for p in answer.probes if takes_units(p))
        if self._classes is None:
            self._classes = classes
        elif gone := self._classes - classes:
            reasons = "; ".join(lack.reason for lack in answer.missing)
            names = ", ".join(sorted(each.value for each in gone))
            raise ComputeError(f"it does not run {names} any more: {reasons:.300}")

    def _not_started(self, error: ComputeError) -> ComputeError:
        """What to say of a worker that does not start; of a card's, twice is once too often."""
        self._failed_starts += 1
        card = self.start.card
        if card is None or self._classes is None or self._failed_starts < STARTS_TRIED:
            return ComputeError(
                f"the worker does not start: {error.message}",
                code="worker_start",
                hint="`shoal doctor` checks what it needs",
            )
        lost = ComputeError(
            f"the card {card.id} is gone: its worker does not start any more: {error.message}",
            code=LOST,
            hint="another node may run it",
        )
        self._lose(lost)
        return lost

    def _lose(self, error: ComputeError) -> None:
        """Run nothing more; units that come get this error."""
        if self.lost is None:
            log.error("a device is lost", error=error.message)
            self.lost = error
            self._place.lost(error)
            self._on_lost()
