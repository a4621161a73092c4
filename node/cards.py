"""The workers of this node's cards: each is started once, and its card is offered or not.

The effects around what is decided elsewhere: what may be used is `compute.devices.cards`',
what takes units `compute.devices.abilities`', what is offered `node.offer`'s. A card whose
worker can start no more is gone: what ran on it is handed back, and the node stays up.
"""

from __future__ import annotations

import shutil
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from shoal.compute import card_memory, frames
from shoal.compute.devices.abilities import NOT_USED, failed, takes_units
from shoal.compute.devices.cards import card_of, may_be_used, only
from shoal.compute.supervisor import open_workers
from shoal.compute.worker_process import CARD_START_LIMIT_S, Place
from shoal.crypto.errors import ShoalError
from shoal.node.offer import unit_memory_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from shoal.compute.device_worker import Worker
    from shoal.compute.devices import Device
    from shoal.compute.errors import ComputeError
    from shoal.compute.supervisor import Workers
    from shoal.node.config import Config
    from shoal.node.offer import Capacity

WEIGHTS_SHARE: Final = 0.5
"""Of a card's memory that weights of prepared programs may take, so that units of a lease
find them there."""

log = structlog.get_logger(__name__)


class Cards:
    """This node's cards. Made by `open_cards`.

    Args:
        config: The settings of the start.
        capacity: Is told what each of them shows.
        workers: Makes their workers.
        scratch: Where these may write, each in a directory of its own.
    """

    def __init__(
        self, config: Config, capacity: Capacity, workers: Workers, scratch: Path
    ) -> None:
        self._config = config
        self._capacity = capacity
        self._workers = workers
        self._scratch = scratch
        self.workers: dict[str, Worker] = {}
        """By device: of those cards that take units, or did."""

    async def look(self, lost: Callable[[str, ComputeError], None]) -> None:
        """Start the worker of every card, one after another, and see what it shows.

        Args:
            lost: Told of a card that took units and is gone.
        """
        for device in self._capacity.devices:
            if may_be_used(device):
                await self._look(device, partial(lost, device.id))

    async def _look(self, device: Device, lost: Callable[[ComputeError], None]) -> None:
        scratch = self._scratch / device.id
        try:
            scratch.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            reason = f"its worker has no directory to write in: {error.strerror}"
            hint = f"make room for {scratch}, where this user may write, and restart the daemon"
            log.warning("a card is not used", device=device.id, reason=reason)
            self._capacity.offer((), [failed(reason, hint)], device.id)
            return
        at_once = card_memory.places(device.memory_bytes, self._config.units_per_card)
        worker = self._workers.add(
            frames.Start(
                threads=self._config.cores,
                cache_bytes=int(device.memory_bytes * WEIGHTS_SHARE),
                memory_bytes=unit_memory_bytes(device, self._config),
                exact=False,
                niceness=self._config.niceness,
                card=card_of(device),
                home=str(self._config.home),
                share_bytes=card_memory.share_bytes(device.memory_bytes, at_once),
            ),
            Place(
                only(device, self._capacity.devices),
                scratch,
                CARD_START_LIMIT_S,
                lost,
                at_once,
                card_memory.lent_bytes(device.memory_bytes),
            ),
        )
        try:
            probes = await worker.probe()
        except ShoalError as error:
            log.warning("no executor works on a card", device=device.id, error=str(error))
            self._capacity.offer((), [failed(error.message, error.hint)], device.id)
            return
        if any(map(takes_units, probes)):
            self.workers[device.id] = worker
        else:
            await worker.close()
        self._capacity.offer(
            probes,
            worker.missing,
            device.id,
            worker.sandbox,
            sandboxed=worker.sandboxed,
            units_at_once=worker.units_at_once,
        )
        for lack in worker.missing:
            if lack.code != NOT_USED:
                log.warning("an executor does not work", device=device.id, reason=lack.reason)


@asynccontextmanager
async def open_cards(config: Config, capacity: Capacity) -> AsyncIterator[Cards]:
    """Keep the cards' workers for as long as the block runs."""
    scratch = config.home / "cards"
    shutil.rmtree(scratch, ignore_errors=True)  # of a daemon that was killed
    with suppress(OSError):  # a node goes on without: each card says what it lacks
        scratch.mkdir(mode=0o700)
    async with open_workers() as workers:
        try:
            yield Cards(config, capacity, workers, scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
