"""The executors of one worker: loads them, runs their canaries, and says what is missing.

Part of *execute*. Which there are on a kind of device is `shoal.compute.executors.table`'s.
The worker loads them first, locks itself in, and then probes them: what works here works
inside the sandbox. What one raises on that way is why it is not there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from shoal.compute import priority
from shoal.compute.devices.abilities import failed
from shoal.compute.devices.inventory import Lack
from shoal.compute.errors import ComputeError
from shoal.compute.executors.base import Executor, NumericClass, Probe
from shoal.compute.executors.providers import MISSING
from shoal.compute.executors.table import (
    check_reach,
    entries,
    missing_packages,
    passed_over,
)

if TYPE_CHECKING:
    from shoal.compute import frames
    from shoal.compute.executors.table import Entry, Make


class Executors:
    """Those of one device; made, which loads them, before the process is locked in.

    Attributes:
        by_class: Those whose canary was right, by what they run.
        runtimes: What each of these says of itself.
        missing: Why others are not there, as far as the probes have shown.
        holds_units: Whether what works here takes no memory past the worker's meter.
    """

    def __init__(self, start: frames.Start) -> None:
        self._card = start.card
        self._not_loaded: list[tuple[Entry, Lack]] = []
        self._loaded: list[tuple[Entry, Make]] = []
        self.by_class: dict[NumericClass, Executor[Any]] = {}
        self.runtimes: dict[NumericClass, str] = {}
        self.missing: list[Lack] = []
        self.holds_units = True
        self._load(start)

    def _load(self, start: frames.Start) -> None:
        """Import what the executors take, while this process may still read any file."""
        for entry in entries(start):
            lack = missing_packages(entry)
            if lack is None:
                try:
                    self._loaded.append((entry, entry.load(start)))
                except Exception as error:  # noqa: BLE001  # a library may fail in any way
                    lack = _lack(entry, error)
            if lack is not None:
                self._not_loaded.append((entry, lack))

    @property
    def need_torch(self) -> bool:
        """Whether there is a card that one of them reaches through torch."""
        return self._card is not None and any(entry.by_torch for entry, _ in self._loaded)

    def reach(self) -> bool:
        """Whether torch reaches the card; where it does not, why is among what is missing."""
        assert self._card is not None
        try:
            check_reach(self._card)
        except ComputeError as error:
            self.missing.append(Lack(error.code, error.message, error.hint))
            return False
        return True

    def probe(self, reached: bool) -> list[Probe]:
        """Run the canaries; those that need torch, where it reaches the device.

        Args:
            reached: Whether it does.
        """
        probes: list[Probe] = []
        first: dict[NumericClass, Entry] = {}
        for entry, make in self._loaded:
            if entry.by_torch and not reached:
                continue
            if entry.numeric_class in first:
                self.missing.append(passed_over(entry, first[entry.numeric_class]))
                continue
            try:
                executor = make()
                executor.start_threads()
                probes.append(executor.probe())
            except Exception as error:  # noqa: BLE001  # a library may fail in any way inside
                self.missing.append(_lack(entry, error))
            else:
                self.by_class[entry.numeric_class] = executor
                if self._card is not None and not entry.by_torch:
                    self.holds_units = False  # it takes memory past the meter
                first[entry.numeric_class] = entry
        self.runtimes = {probe.numeric_class: probe.runtime for probe in probes}
        return probes

    def lacks(self) -> tuple[Lack, ...]:
        """What is missing; of what could not be loaded, where nothing else has its class."""
        missed = (
            lack for entry, lack in self._not_loaded if entry.numeric_class not in self.by_class
        )
        return (*self.missing, *missed)

    def compile_only(self) -> list[Probe]:
        """What compiles for a card that torch does not reach."""
        assert self._card is not None
        if not self.by_class:
            os.nice(priority.LOWEST)  # nobody waits for it
        probes: list[Probe] = []
        for entry, _ in self._loaded:
            if entry.compiles is not None:
                try:
                    probes.append(entry.compiles(self._card))
                except Exception as error:  # noqa: BLE001  # a compiler may fail in any way
                    self.missing.append(_lack(entry, error))
        return probes

    def of(self, numeric_class: NumericClass) -> Any:  # that of a class may do more
        """The executor of a class.

        Raises:
            ComputeError: ``no_executor``: none of the class works here.
        """
        try:
            return self.by_class[numeric_class]
        except KeyError:
            raise ComputeError(
                f"no executor of the class {numeric_class.value!r} works here",
                code="no_executor",
            ) from None

    def terminate(self) -> None:
        """Ask each to end what it runs; called from any thread."""
        for executor in self.by_class.values():
            executor.terminate()


def _lack(entry: Entry, error: Exception) -> Lack:
    """Why an executor is not there."""
    shoals = error if isinstance(error, ComputeError) else None
    if shoals and shoals.code == MISSING:
        return Lack(shoals.code, shoals.message, shoals.hint)
    reason = shoals.message if shoals else f"{type(error).__name__}: {error!s:.200}"
    text = f"{entry.name} ({entry.numeric_class.value}): {reason:.300}"
    return failed(text, shoals.hint if shoals else "")
