"""This node's own figures: measured when they are wanted, kept, claimed in its advert.

Measures each device in the background once its executors are known, when nothing else
runs there, one after another; the figures outlast restarts and are taken anew when they
are a week old, when the device, its cores, driver or runtimes have changed, when this
node could not show its own claim, when they were taken beside other work, or when the owner
asks. A device that takes no units claims nothing, whatever was measured. When is measured is
`node.measuring_plan`'s, how, `compute.capability`'s; what others think of the claims,
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
from shoal.compute import contention
from shoal.compute.capability import MEMORY, VERSION, Measurement
from shoal.compute.errors import ComputeError
from shoal.crypto.errors import ShoalError
from shoal.node import capability_records
from shoal.node.capability_views import CapabilityView, Claim, DeviceFigures, NoRate
from shoal.node.device_lines import lines_of
from shoal.node.errors import StoreError
from shoal.node.house import wall_ms
from shoal.node.measuring_plan import (
    Hold,
    Tries,
    is_stale,
    may_begin,
    may_wait_in_line,
    retry_after_s,
    why_no_rate,
)
from shoal.node.offer import CPU
from shoal.node.proofs import Proof, ProofBook, claims_of, to_give
from shoal.protocol.device_offers import DeviceOffer
from shoal.protocol.limits import DEVICES_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence
    from pathlib import Path

    from shoal.compute.contention import Look
    from shoal.compute.device_worker import Worker
    from shoal.compute.devices import Device
    from shoal.node.state import State
    from shoal.protocol.device_offers import ClassRate
    from shoal.protocol.statements import Advert

LOOK_INTERVAL_S: Final = 5.0

LAST_WRITE_S: Final = 2.0
"""For what is still to be written down when the daemon ends."""

log = structlog.get_logger(__name__)


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
        hold: What keeps it from being measured: what else runs there, or its owner.
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
    hold: Callable[[str], Hold | None]
    changed: Callable[[], None]
    book: ProofBook
    settled: trio.Event = field(default_factory=trio.Event)
    """Set once all executors of the CPU are there that there will be."""
    _measured: dict[str, Measurement] = field(default_factory=dict)
    _tries: dict[str, Tries] = field(default_factory=dict)
    _began_s: dict[str, float] = field(default_factory=dict)
    _in_line: dict[str, trio.CancelScope] = field(default_factory=dict)
    """Of those that are measured, or wait for that among their device's units."""
    _looked: Look | None = None
    _quiet: bool = False
    _unwritten: set[str] = field(default_factory=set)
    """Devices of which the journal does not have yet what is to outlast a restart."""
    _to_write: trio.Event = field(default_factory=trio.Event)

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
        """This node could not show what it claims of a device.

        Until it is measured anew it claims that still, but not after a restart.
        """
        self._tries.setdefault(device, Tries()).belied = True
        self._unwritten.add(device)
        self._to_write.set()

    def ask(self, device: str | None = None) -> tuple[str, ...]:
        """Measure a device anew as soon as it can be, or each; gives which will be.

        Units that run there end first. What the owner's own programs do does not keep it
        from being measured, as it does otherwise.

        Raises:
            ComputeError: ``not_measured``: none of them can be.
        """
        wanted, reasons = [], []
        for each in self.devices():
            if device not in {None, each.id}:
                continue
            hold = self.hold(each.id)
            if not self.classes(each.id):
                reasons.append(f"{each.id} takes no units")
            elif hold is not None and hold.by == "owner":
                reasons.append(f"{each.id}: {hold.why}")
            else:
                wanted.append(each.id)
        if not wanted:
            raise ComputeError(
                f"nothing can be measured now: {'; '.join(reasons) or 'no device is known'}",
                code="not_measured",
                hint="`shoal devices` says what is missing; `shoal resume` ends a pause",
            )
        for each_id in wanted:
            self._tries.setdefault(each_id, Tries()).asks += 1
        return tuple(wanted)

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
        tries = self._tries.get(device.id, Tries())
        rated = {rate.numeric_class for rate in self.rates(device.id)}
        compiled = frozenset(self.compiled(device.id))
        lacking = sorted({*self.classes(device.id), *compiled} - rated)
        return DeviceFigures(
            device=device.id,
            memory_rate=measured.memory_rate if measured else 0.0,
            measured_at=measured.measured_at if measured else None,
            problem=problem,
            without=tuple(
                NoRate(
                    each,
                    why_no_rate(
                        each,
                        measured,
                        problem,
                        compiled=each in compiled,
                        busy=tries.hold is not None,
                    ),
                )
                for each in lacking
            ),
            memory_problem=dict(measured.failed).get(MEMORY, "") if measured else "",
            beside=measured.beside if measured else "",
            busy_since=tries.held_since,
            busy_with=tries.hold.why if tries.hold else "",
            measuring=tries.measuring,
            asked=tries.asked,
        )

    async def keep_measured(self) -> None:
        """Measure whenever that is due and the device is free, for ever."""
        await self.settled.wait()
        async with trio.open_nursery() as nursery:
            while True:
                self._look()
                for device in tuple(self.devices()):
                    if self._is_due(device):
                        self._began_s[device.id] = trio.current_time()
                        nursery.start_soon(self._try, device)
                await trio.sleep(LOOK_INTERVAL_S)

    def _look(self) -> None:
        """See whether the machine is quiet, where that is asked; and who may wait on."""
        last, self._looked = self._looked, None
        if any(kept.beside for kept in self._measured.values()):
            self._looked = contention.look()
        self._quiet = bool(last and self._looked and contention.is_quiet(last, self._looked))
        for device, scope in self._in_line.items():
            tries, hold = self._tries[device], self.hold(device)
            by_units = hold is None or hold.by == "units"
            if not (
                tries.measuring or by_units or may_wait_in_line(hold, 0, asked=tries.asked)
            ):
                tries.held(hold, time.time(), trio.current_time())
                scope.cancel()

    def _is_due(self, device: Device) -> bool:
        if device.id in self._began_s:
            return False
        now_s, tries = trio.current_time(), self._tries.setdefault(device.id, Tries())
        if not self.classes(device.id):
            tries.not_held()
            if tries.asked:
                tries.answered, tries.problem = tries.asks, "it takes no units any more"
            return False
        kept, key = self._measured.get(device.id), self._key(device)
        stale = is_stale(kept, key, time.time(), belied=tries.belied, quiet=self._quiet)
        if not tries.asked and not (stale and tries.again_s <= now_s):
            tries.not_held()
            return False
        tries.held(self.hold(device.id), time.time(), now_s)
        held_s = now_s - tries.held_from_s
        return may_wait_in_line(tries.hold, held_s, asked=tries.asked) and may_begin(
            self._began_s,
            device.id,
            now_s,
            [name for name in self._began_s if self._tries[name].measuring],
        )

    async def _try(self, device: Device) -> None:
        tries = self._tries.setdefault(device.id, Tries())
        tries.meant = tries.asks
        try:
            with trio.CancelScope() as self._in_line[device.id]:
                await self._measure(device, tries)
            if self._in_line[device.id].cancelled_caught:
                if tries.asked and tries.hold:
                    tries.problem = tries.hold.why
                tries.meant = tries.asks
                return
        except ShoalError as error:
            tries.problem, tries.failures = error.message, tries.failures + 1
            tries.again_s = trio.current_time() + retry_after_s(tries.failures)
            log.warning("a device was not measured", device=device.id, error=str(error))
            if tries.belied and self._measured.pop(device.id, None) is not None:
                self.changed()  # neither shown nor measured: it is claimed no more
        else:
            tries.problem, tries.failures, tries.belied = "", 0, False
            await self._write(device.id)
        finally:
            tries.measuring, tries.answered = False, tries.meant
            del self._began_s[device.id], self._in_line[device.id]

    async def keep_written(self) -> None:
        """Have the journal hold what is to outlast a restart, for ever.

        What a full disk does not take is tried again: figures that were given up would
        come back at the next start, and older ones in place of those of now.
        """
        while True:
            await self._to_write.wait()
            self._to_write = trio.Event()
            await self.write_out()
            if self._unwritten:
                await trio.sleep(LOOK_INTERVAL_S)

    async def write_out(self) -> None:
        """Write down once what the journal does not have yet."""
        for device in sorted(self._unwritten):
            await self._write(device)

    async def _write(self, device: str) -> None:
        """Write down a device's figures, or that there are none which could be shown."""
        self._unwritten.discard(device)
        measured, tries = self._measured.get(device), self._tries.get(device)
        try:
            if measured is None or (tries and tries.belied):
                await capability_records.drop_measurement(self.journal, device)
            else:
                await capability_records.keep_measurement(self.journal, measured)
        except StoreError as error:
            log.warning("the figures are not kept", device=device, error=str(error))
            self._unwritten.add(device)
            self._to_write.set()
        except trio.Cancelled:
            self._unwritten.add(device)
            raise

    async def load(self) -> None:
        """Take up the figures and proofs of an earlier time."""
        for kept in await capability_records.kept_measurements(self.journal):
            self._measured[kept.device] = kept
        for proof in await capability_records.kept_proofs(self.journal):
            self.book.keep(proof)

    async def _measure(self, device: Device, tries: Tries) -> None:
        classes, worker = frozenset(self.classes(device.id)), self.worker(device.id)
        key = figures.key_of(device, self.threads, classes)
        if worker is None:  # it has been lost just now
            raise ComputeError(f"{device.id} takes no units any more", code="no_executor")

        def began() -> None:
            if not tries.measuring:
                tries.measuring, tries.meant = True, tries.asks
            tries.not_held()

        found = await figures.measure_device(
            worker, classes, figures.amounts_for(device), began
        )
        before = self._measured.get(device.id)
        measured = Measurement(
            device=device.id,
            key=key,  # of the beginning: what was lost meanwhile is not claimed
            measured_at=time.time(),
            rates=found.rates,
            memory_rate=found.memory_rate,
            disk_rate=await self._disk_rate() if device.id == CPU else 0.0,
            failed=found.failed,
            version=VERSION,
            beside=found.beside,
            disturbed=(before.disturbed if before else 0) + 1 if found.beside else 0,
        )
        self._measured[device.id] = measured
        log.info(
            "measured",
            device=device.id,
            rates={rate.numeric_class: rate.rate for rate in found.rates},
            memory_rate=found.memory_rate,
            disk_rate=measured.disk_rate,
            failed=dict(found.failed),
            beside=found.beside,
        )
        self.changed()

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
        nursery.start_soon(capability.keep_written)
        yield capability
        nursery.cancel_scope.cancel()
    with trio.move_on_after(LAST_WRITE_S, shield=True):
        await capability.write_out()
