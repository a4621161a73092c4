"""This node's own figures: measured when they are wanted, kept, claimed in its advert.

Measures in the background once the executors are known, when nothing else runs; the
figures outlast restarts and are taken anew when they are a week old, when the device,
its cores or the runtimes have changed, or when this node could not show its own claim.
How is measured is `compute.capability`'s; what others think of the claims, `node.proofs`'.
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
from shoal.compute.capability import Measurement
from shoal.crypto.errors import ShoalError
from shoal.node import capability_records
from shoal.node.capability_views import CapabilityView, Claim
from shoal.node.errors import StoreError
from shoal.node.house import wall_ms
from shoal.node.proofs import Proof, ProofBook, claims_of, to_give

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from shoal.compute.device_worker import Worker
    from shoal.compute.devices import Device
    from shoal.node.state import State
    from shoal.protocol.statements import Advert, ClassRate

LIFETIME_S: Final = 7 * 86400.0
BELIED_AFTER_S: Final = 60.0
"""Between two measurements because a claim could not be shown."""

LOOK_INTERVAL_S: Final = 5.0
log = structlog.get_logger(__name__)


def is_stale(kept: Measurement | None, key: str, wall_s: float, *, belied: bool) -> bool:
    """Whether a device is to be measured anew."""
    if kept is None or kept.key != key:
        return True
    age_s = wall_s - kept.measured_at
    return not 0 <= age_s <= LIFETIME_S or (belied and age_s > BELIED_AFTER_S)


@dataclass(slots=True)
class Capability:
    """Measures this node and says what it claims. Made by `open_capability`.

    Args:
        journal: Keeps the figures.
        worker: Measures.
        directory: Where the store writes: its disk is measured.
        threads: How many the worker uses.
        cpu: Gives the device that units run on, once it is known.
        classes: Gives the numeric classes offered there.
        idle: Whether nothing else runs here.
        changed: Called when there are new figures.
        book: The proofs.
    """

    journal: State
    worker: Worker
    directory: Path
    threads: int
    cpu: Callable[[], Device | None]
    classes: Callable[[], frozenset[str]]
    idle: Callable[[], bool]
    changed: Callable[[], None]
    book: ProofBook
    settled: trio.Event = field(default_factory=trio.Event)
    """Set once all executors that there will be are there."""
    _measured: Measurement | None = None
    _belied: bool = False
    _problem: str = ""

    @property
    def measurement(self) -> Measurement | None:
        """The figures, where they are about what is here now."""
        device = self.cpu()
        if device is None or self._measured is None or self._measured.key != self._key(device):
            return None
        return self._measured

    @property
    def rates(self) -> tuple[ClassRate, ...]:
        """What is claimed of the CPU now."""
        measured = self.measurement
        return () if measured is None else measured.rates

    def belie(self) -> None:
        """This node could not show what it claims."""
        self._belied = True

    def claimed(self, advert: Advert) -> Advert:
        """This node's advert, with its figures and a word of who has seen them shown."""
        measured = self.measurement
        if measured is None:
            return advert
        devices = tuple(
            msgspec.structs.replace(
                offer, rates=measured.rates, memory_rate=measured.memory_rate
            )
            if offer.id == measured.device
            else offer
            for offer in advert.devices
        )
        return msgspec.structs.replace(
            advert,
            devices=devices,
            disk_rate=measured.disk_rate,
            proven_at_ms=max((proof.said.issued_at_ms for proof in self.to_give()), default=0),
        )

    def to_give(self) -> tuple[Proof, ...]:
        """The proofs of what is claimed now, for whoever asks."""
        measured = self.measurement
        if measured is None:
            return ()
        claimed = [(measured.device, rate) for rate in measured.rates]
        proofs = self.book.about(self.book.own)
        return to_give(proofs, claimed, self.book.allowed, wall_ms())

    def view(self, own: Advert | None) -> CapabilityView:
        """What ``shoal devices`` shows; ``own`` is this node's advert."""
        measured = self.measurement
        claims: tuple[Claim, ...] = ()
        if own is not None:
            proofs = self.book.about(own.peer)
            anybody = {proof.verifier for proof in proofs}
            claims = claims_of(own.peer, own.devices, proofs, anybody, wall_ms())
        return CapabilityView(
            claims=claims,
            memory_rate=measured.memory_rate if measured else 0.0,
            disk_rate=measured.disk_rate if measured else 0.0,
            measured_at=measured.measured_at if measured else None,
            problem=self._problem,
        )

    async def keep_measured(self) -> None:
        """Measure whenever that is due and nothing else runs, for ever."""
        await self.settled.wait()
        while True:
            device = self.cpu()
            if (
                device is not None
                and self.classes()
                and is_stale(
                    self._measured, self._key(device), time.time(), belied=self._belied
                )
                and self.idle()
            ):
                try:
                    await self._measure(device)
                except ShoalError as error:
                    self._problem = error.message
                    log.warning("this node was not measured", error=str(error))
                    await trio.sleep(BELIED_AFTER_S)
            await trio.sleep(LOOK_INTERVAL_S)

    async def load(self) -> None:
        """Take up the figures and proofs of an earlier time."""
        self._measured = await capability_records.kept_measurement(self.journal, "cpu")
        for proof in await capability_records.kept_proofs(self.journal):
            self.book.keep(proof)

    async def _measure(self, device: Device) -> None:
        classes = self.classes()
        rates = await figures.measure_rates(self.worker, classes)
        memory_rate = await figures.measure_memory(self.worker)
        measured = Measurement(
            device=device.id,
            key=figures.key_of(device, self.threads, classes),
            measured_at=time.time(),
            rates=rates,
            memory_rate=memory_rate,
            disk_rate=await self._disk_rate(),
        )
        self._measured, self._belied, self._problem = measured, False, ""
        log.info(
            "measured",
            device=device.id,
            rates={rate.numeric_class: rate.rate for rate in rates},
            memory_rate=memory_rate,
            disk_rate=measured.disk_rate,
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

    def _key(self, device: Device) -> str:
        return figures.key_of(device, self.threads, self.classes())


@asynccontextmanager
async def open_capability(capability: Capability) -> AsyncIterator[Capability]:
    """Keep this node measured for as long as the block runs."""
    await capability.load()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(capability.keep_measured)
        yield capability
        nursery.cancel_scope.cancel()
