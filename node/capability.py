"""This node's own figures: measured when they are wanted, kept, claimed in its advert.

Measures each device in the background once its executors are known, when nothing else
runs there, one after another; the figures outlast restarts and are taken anew when they
are a week old, when the device, its cores, driver or runtimes have changed, or when this
node could not show its own claim. A device that takes no units claims nothing, whatever
was measured. How is measured is `compute.capability`'s; what others think of the claims,
`node.proofs`'.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import structlog
import trio

from shoal.compute import capability as figures
from shoal.compute.capability import MEMORY, VERSION, Measurement
from shoal.compute.errors import ComputeError
from shoal.crypto.errors import ShoalError
from shoal.node import capability_records
from shoal.node.capability_views import CapabilityView, Claim, DeviceFigures, NoRate
from shoal.node.device_lines import lines_of
from shoal.node.errors import StoreError
from shoal.node.house import wall_ms
from shoal.node.offer import CPU
from shoal.node.proofs import Proof, ProofBook, claims_of, to_give
from shoal.protocol.challenge_terms import RATE_SHOWN_MIN
from shoal.protocol.device_offers import DeviceOffer
from shoal.protocol.limits import DEVICES_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
    from pathlib import Path

    from shoal.compute.device_worker import Worker
    from shoal.compute.devices import Device
    from shoal.node.state import State
    from shoal.protocol.device_offers import ClassRate
    from shoal.protocol.statements import Advert

LIFETIME_S: Final = 7 * 86400.0
BELIED_AFTER_S: Final = 60.0
"""Between two measurements because a claim could not be shown."""

FAILED_AFTER_S: Final = 3600.0
"""Before what could not be measured is tried again, where the rest was."""

RETRY_LIMIT_S: Final = 3600.0
"""Between two tries where all fails, at the most: the time doubles from `BELIED_AFTER_S` on."""

ALONE_S: Final = 60.0
"""So long one device is measured while no other is; one with many units takes longer."""

LOOK_INTERVAL_S: Final = 5.0
log = structlog.get_logger(__name__)


# --- decisions: pure ------------------------------------------------------------------


def is_stale(kept: Measurement | None, key: str, wall_s: float, *, belied: bool) -> bool:
    """Whether a device is to be measured anew."""
    if kept is None or kept.key != key or kept.version != VERSION:
        return True
    age_s = wall_s - kept.measured_at
    return (
        not 0 <= age_s <= LIFETIME_S
        or (belied and age_s > BELIED_AFTER_S)
        or (bool(kept.failed) and age_s > FAILED_AFTER_S)
    )


def retry_after_s(failures: int) -> float:
    """How long a device is left alone that could not be measured so often in a row."""
    return float(min(RETRY_LIMIT_S, BELIED_AFTER_S * 2.0 ** min(failures - 1, 16)))


def may_begin(began_s: Mapping[str, float], device: str, now_s: float) -> bool:
    """Whether a device may be measured now, beside those that are since ``began_s``."""
    return device not in began_s and all(now_s - at_s > ALONE_S for at_s in began_s.values())


def why_no_rate(
    numeric_class: str, measured: Measurement | None, problem: str, *, compiled: bool
) -> str:
    """Why a class of a device has no rate.

    Args:
        numeric_class: The class.
        measured: What is claimed of the device.
        problem: Why the last try to measure it gave nothing.
        compiled: Whether programs of the class only compile for it.
    """
    if compiled:
        return "compile-only: nothing runs there that could be measured"
    if numeric_class not in {"exact", *figures.PRODUCTS}:
        return "units of this class are kernels of their own, of which no rate tells anything"
    failed = dict(measured.failed).get(numeric_class, "") if measured else problem
    if failed:
        return f"it could not be measured: {failed.rstrip('.')}"
    if measured is None:
        return "not measured yet: that takes some seconds, when nothing else runs there"
    return f"slower than the {RATE_SHOWN_MIN:.0e} a second that can be shown"


# --- effects --------------------------------------------------------------------------


@dataclass(slots=True)
class Tries:
    """How the measuring of one device has gone.

    Attributes:
        problem: Why the last try gave nothing; "" where it gave something.
        failures: How many in a row gave nothing.
        again_s: From when on it may be tried again.
        belied: Whether the device could not show what is claimed of it.
    """

    problem: str = ""
    failures: int = 0
    again_s: float = 0.0
    belied: bool = False


@dataclass(slots=True)
class Capability:
    """Measures this node's devices and says what it claims. Made by `open_capability`.

    Args:
        journal: Keeps the figures.
        directory: Where the store writes: its disk is measured, with the CPU.
        threads: How many the workers use.
        devices: Gives the devices of this machine.
        classes: Gives the numeric classes in which one takes units now: none, of one that
            is lost.
        compiled: Gives those for which programs only compile there.
        worker: Gives who measures it.
        idle: Whether nothing else runs on it, and its owner lets it work.
        changed: Called when there are new figures.
        book: The proofs.
    """

    journal: State
    directory: Path
    threads: int
    devices: Callable[[], Sequence[Device]]
    classes: Callable[[str], Collection[str]]
    compiled: Callable[[str], Collection[str]]
    worker: Callable[[str], Worker | None]
    idle: Callable[[str], bool]
    changed: Callable[[], None]
    book: ProofBook
    settled: trio.Event = field(default_factory=trio.Event)
    """Set once all executors of the CPU are there that there will be."""
    _measured: dict[str, Measurement] = field(default_factory=dict)
    _tries: dict[str, Tries] = field(default_factory=dict)
    _began_s: dict[str, float] = field(default_factory=dict)

    def measurement(self, device: str) -> Measurement | None:
        """A device's figures, where they are about what is here and takes units now."""
        found, kept = self._device(device), self._measured.get(device)
        if found is None or kept is None or not self.classes(device):
            return None
        return kept if kept.key == self._key(found) and kept.version == VERSION else None

    def rates(self, device: str) -> tuple[ClassRate, ...]:
        """What is claimed of a device now."""
        measured = self.measurement(device)
        return () if measured is None else measured.rates

    def belie(self, device: str) -> None:
        """This node could not show what it claims of a device."""
        self._tries.setdefault(device, Tries()).belied = True

    def claimed(self, advert: Advert) -> Advert:
        """This node's advert, with its figures and a word of who has seen them shown.

        Equal devices then stand in one line, with what each of them can do.
        """
        cpu = self.measurement(CPU)
        return msgspec.structs.replace(
            advert,
            devices=lines_of(map(self._with_figures, advert.devices))[:DEVICES_LIMIT],
            disk_rate=cpu.disk_rate if cpu else 0.0,
            proven_at_ms=max((proof.said.issued_at_ms for proof in self.to_give()), default=0),
        )

    def _with_figures(self, offer: DeviceOffer) -> DeviceOffer:
        measured = self.measurement(offer.id)
        if measured is None:
            return offer
        return msgspec.structs.replace(
            offer, rates=measured.rates, memory_rate=measured.memory_rate
        )

    def to_give(self) -> tuple[Proof, ...]:
        """The proofs of what is claimed now, for whoever asks."""
        claimed = [(d.id, rate) for d in self.devices() for rate in self.rates(d.id)]
        if not claimed:
            return ()
        proofs = self.book.about(self.book.own)
        return to_give(proofs, claimed, self.book.allowed, wall_ms())

    def view(self, own: Advert | None) -> CapabilityView:
        """What ``shoal devices`` shows; ``own`` is this node's advert."""
        cpu = self.measurement(CPU)
        claims: tuple[Claim, ...] = ()
        if own is not None:
            proofs = self.book.about(own.peer)
            anybody = {proof.verifier for proof in proofs}
            each = [
                DeviceOffer(d.id, d.kind, "", 0, (), self.rates(d.id)) for d in self.devices()
            ]
            claims = claims_of(own.peer, each, proofs, anybody, wall_ms(), own.devices)
        return CapabilityView(
            claims=claims,
            memory_rate=cpu.memory_rate if cpu else 0.0,
            disk_rate=cpu.disk_rate if cpu else 0.0,
            measured_at=cpu.measured_at if cpu else None,
            problem=self._problem(CPU),
            devices=tuple(map(self._figures, self.devices())),
        )

    def _figures(self, device: Device) -> DeviceFigures:
        measured, problem = self.measurement(device.id), self._problem(device.id)
        rated = {rate.numeric_class for rate in self.rates(device.id)}
        compiled = frozenset(self.compiled(device.id))
        lacking = sorted({*self.classes(device.id), *compiled} - rated)
        return DeviceFigures(
            device=device.id,
            memory_rate=measured.memory_rate if measured else 0.0,
            measured_at=measured.measured_at if measured else None,
            problem=problem,
            without=tuple(
                NoRate(each, why_no_rate(each, measured, problem, compiled=each in compiled))
                for each in lacking
            ),
            memory_problem=dict(measured.failed).get(MEMORY, "") if measured else "",
        )

    async def keep_measured(self) -> None:
        """Measure whenever that is due and nothing else runs, for ever."""
        await self.settled.wait()
        async with trio.open_nursery() as nursery:
            while True:
                for device in tuple(self.devices()):
                    if self._is_due(device):
                        self._began_s[device.id] = trio.current_time()
                        nursery.start_soon(self._try, device)
                await trio.sleep(LOOK_INTERVAL_S)

    def _is_due(self, device: Device) -> bool:
        now_s, tries = trio.current_time(), self._tries.get(device.id, Tries())
        return (
            bool(self.classes(device.id))
            and is_stale(
                self._measured.get(device.id),
                self._key(device),
                time.time(),
                belied=tries.belied,
            )
            and tries.again_s <= now_s
            and may_begin(self._began_s, device.id, now_s)
            and self.idle(device.id)
        )

    async def _try(self, device: Device) -> None:
        tries = self._tries.setdefault(device.id, Tries())
        try:
            await self._measure(device)
        except ShoalError as error:
            tries.problem, tries.failures = error.message, tries.failures + 1
            tries.again_s = trio.current_time() + retry_after_s(tries.failures)
            log.warning("a device was not measured", device=device.id, error=str(error))
            if tries.belied and self._measured.pop(device.id, None) is not None:
                self.changed()  # neither shown nor measured: it is claimed no more
        else:
            tries.problem, tries.failures, tries.belied = "", 0, False
        finally:
            del self._began_s[device.id]

    async def load(self) -> None:
        """Take up the figures and proofs of an earlier time."""
        for kept in await capability_records.kept_measurements(self.journal):
            self._measured[kept.device] = kept
        for proof in await capability_records.kept_proofs(self.journal):
            self.book.keep(proof)

    async def _measure(self, device: Device) -> None:
        classes, worker = frozenset(self.classes(device.id)), self.worker(device.id)
        key = figures.key_of(device, self.threads, classes)
        if worker is None:  # it has been lost just now
            raise ComputeError(f"{device.id} takes no units any more", code="no_executor")
        found = await figures.measure_device(worker, classes, figures.amounts_for(device))
        measured = Measurement(
            device=device.id,
            key=key,  # of the beginning: what was lost meanwhile is not claimed
            measured_at=time.time(),
            rates=found.rates,
            memory_rate=found.memory_rate,
            disk_rate=await self._disk_rate() if device.id == CPU else 0.0,
            failed=found.failed,
            version=VERSION,
        )
        self._measured[device.id] = measured
        log.info(
            "measured",
            device=device.id,
            rates={rate.numeric_class: rate.rate for rate in found.rates},
            memory_rate=found.memory_rate,
            disk_rate=measured.disk_rate,
            failed=dict(found.failed),
        )
        self.changed()
        try:
            await capability_records.keep_measurement(self.journal, measured)
        except StoreError as error:
            log.warning("the figures are not kept", error=str(error))

    async def _disk_rate(self) -> float:
        try:
            return await trio.to_thread.run_sync(partial(figures.measure_disk, self.directory))
        except OSError as error:
            log.warning("the disk was not measured", error=str(error))
            return 0.0

    def _device(self, device: str) -> Device | None:
        return next((each for each in self.devices() if each.id == device), None)

    def _key(self, device: Device) -> str:
        return figures.key_of(device, self.threads, self.classes(device.id))

    def _problem(self, device: str) -> str:
        tries = self._tries.get(device)
        return tries.problem if tries else ""


@asynccontextmanager
async def open_capability(capability: Capability) -> AsyncIterator[Capability]:
    """Keep this node's devices measured for as long as the block runs."""
    await capability.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(capability.keep_measured)
        yield capability
        nursery.cancel_scope.cancel()
