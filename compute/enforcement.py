"""Holds what a worker does to its limits, and says what a failure within them means.

Part of *execute*; in the worker. Time and memory are held as far as a process can hold
itself: `shoal.compute.sandbox.limits` and, of a card's memory, `shoal.compute.card_meter`
count them, `shoal.compute.watchdog` the time. Whatever does not listen is ended by the
supervisor. Whether a card's failure is the unit's, the process's or the card's is told by
`shoal.compute.executors.card_faults`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from shoal.compute.card_memory import OVERHEAD_BYTES
from shoal.compute.card_meter import CardMeter
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.card_faults import ENDS_WORKER, fault_of
from shoal.compute.sandbox import Meter
from shoal.compute.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shoal.compute import frames
    from shoal.compute.devices.cards import Card

_PROCESSOR_GRACE_S: Final = 10.0
"""What a unit may use of processor time beyond its threads' share of its time limit: the
supervisor's clock ends it long before, unless the daemon itself stands still."""

_PLACED: Final = (ProgramError, ComputeError)


class Enforcer:
    """Holds one request at a time; made before the process locks itself in.

    Args:
        card: What this process computes on; None for the CPU.
        threads: How many threads its executors have.
        terminate: Asks executors to end what they run; called from a thread of its own.

    Attributes:
        meter: Sets this process's limits, and knows what it uses.
        broken: Whether this process can run nothing more: its card has failed.
    """

    def __init__(self, card: Card | None, threads: int, terminate: Callable[[], None]) -> None:
        self._card = card
        self._threads = threads
        self._watchdog = Watchdog(terminate)
        self.meter = CardMeter() if card else Meter()
        self.broken = False

    def start(self) -> None:
        """Start the thread that keeps the time, once the process is locked in."""
        self._watchdog.start()

    @contextmanager
    def within(
        self, limits: frames.UnitLimits, processor_s: float | None = None
    ) -> Iterator[None]:
        """Hold a request to its limits of time and memory, as far as this process can.

        Time: the executor is asked to end. What does not listen is killed by the
        supervisor a moment later. Memory: address space beyond what is mapped now.

        Raises:
            ComputeError: ``memory_limit``, ``time_limit``, or what a card's failure means.
        """
        if processor_s is None:
            processor_s = self._threads * limits.time_s + _PROCESSOR_GRACE_S
        try:
            self.meter.hold(OVERHEAD_BYTES + limits.memory_bytes, processor_s)
            with self._watchdog.within(limits.time_s):
                yield
                self.settle()
        except MemoryError:
            raise _over_memory(limits) from None
        except Exception as error:
            self._raise_fault(error, limits.memory_bytes)
            self._raise_late(limits.memory_bytes)
            if not isinstance(error, ComputeError):
                raise
            if error.code == "memory_limit":
                raise _over_memory(limits, error) from None
            if error.code == "terminated":
                raise _over_time(limits) from None
            raise
        finally:
            self.meter.release()

    @contextmanager
    def unlimited(self) -> Iterator[None]:
        """Hold what is the worker's own, on a card, to no limit; failures mean the same."""
        assert self._card is not None
        try:
            yield
            self.settle()
        except Exception as error:
            self._raise_fault(error, self._card.memory_bytes)
            raise
        finally:  # units of other processes want the memory that this took
            self.meter.release()

    def settle(self) -> None:
        """Wait for what was set going on a card: a late fault is not the next unit's."""
        if isinstance(self.meter, CardMeter):
            self.meter.settle()

    def _raise_late(self, memory_bytes: int) -> None:
        """Raise what a unit that has failed leaves behind, where that ends this process."""
        if self._card is None:
            return
        try:
            self.settle()
        except Exception as error:  # noqa: BLE001  # a driver's, of whatever kind
            fault = fault_of(error, self._card.id, memory_bytes)
            if fault is not None and fault.code in ENDS_WORKER:
                self.broken = True
                raise fault from None

    def _raise_fault(self, error: Exception, memory_bytes: int) -> None:
        """Raise what a failure means where it is the card's.

        An executor may have said it in its own words; what it heard is told with the error.
        """
        if self._card is None:
            return
        heard = error.__context__ if isinstance(error, _PLACED) else error
        fault = fault_of(heard, self._card.id, memory_bytes) if heard else None
        if fault is None and isinstance(error, ComputeError) and error.code in ENDS_WORKER:
            fault = error
        if fault is None:
            return
        if isinstance(error, _PLACED):
            fault.node, fault.operator = error.node, error.operator
        self.broken = fault.code in ENDS_WORKER
        if not self.broken:
            self._raise_late(memory_bytes)
        raise fault from None


def check_output_size(size_bytes: int, limits: frames.UnitLimits) -> None:
    """Hold outputs to their limit; raises ComputeError ``output_limit``."""
    if size_bytes > limits.output_bytes:
        raise ComputeError(
            f"the outputs take {size_bytes} bytes, and the limit is {limits.output_bytes}",
            code="output_limit",
            hint="ask for more output bytes, or split the inputs into smaller batches",
        )


def _over_memory(limits: frames.UnitLimits, cause: ComputeError | None = None) -> ComputeError:
    return ComputeError(
        f"the unit needs more than its limit of {limits.memory_bytes / 1e6:.0f} MB of memory",
        code="memory_limit",
        hint="ask for more memory, or split the inputs into smaller batches",
        node=cause.node if cause else "",
        operator=cause.operator if cause else "",
    )


def _over_time(limits: frames.UnitLimits) -> ComputeError:
    return ComputeError(
        f"the unit took longer than its limit of {limits.time_s:g} s",
        code="time_limit",
        hint="ask for more time, or split the inputs into smaller batches",
    )
