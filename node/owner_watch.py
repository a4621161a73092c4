"""Keeps the owner's pauses, watches clock and machine, and tells who has to know.

The effects around `node.owner`, which decides: pauses are in the state before
they count, so that they outlast a restart; the machine's use is measured every
few seconds where the owner wants the node to step back. Nothing here stops a
unit: `node.provider` asks for the stance of a device at every step and by itself.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.node import owner
from shoal.node.owner import Courtesy, Pause, Stance

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Sequence

    from shoal.node.owner_load import OwnersUse
    from shoal.node.schedule import Schedule
    from shoal.node.state import State

MEASURE_INTERVAL_S = 2.0
"""Two measurements over the threshold make a node step back: in about 4 s."""

log = structlog.get_logger(__name__)


class OwnerWatch:
    """What the owner wants now; it watches while `open_owner_watch` is open.

    Args:
        journal: Where pauses are kept.
        pauses: Those kept so far.
        schedule: The hours for peers.
        step_back: From which share of the machine on, used by the owner's own
            processes, the node steps back; None for never.
        use: Measures that share.
        devices: The ids of the devices that run units here.
        changed: Called when the advert says something else from now on.
    """

    def __init__(
        self,
        journal: State,
        pauses: Collection[Pause],
        *,
        schedule: Schedule,
        step_back: float | None,
        use: OwnersUse,
        devices: Callable[[], Sequence[str]],
        changed: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._pauses = tuple(pauses)
        self._schedule = schedule
        self._step_back = step_back
        self._measure = use.measure
        self._devices = devices
        self._changed = changed
        self._courtesy = Courtesy()
        self._known: dict[str, Stance] = {}
        self._announced = self.announces_open
        self._one_at_a_time = trio.Lock()
        self.use: float | None = None
        """The share of the machine that the owner's processes took last."""

    def stance(self, device: str) -> Stance:
        """What a device takes at this moment."""
        stepping_back = {"cpu"} if self._courtesy.stepping_back else ()
        return owner.stance(device, self._pauses, self._schedule, stepping_back, time.time())

    @property
    def announces_open(self) -> bool:
        """What this node's advert is to say."""
        return owner.announces_open([self.stance(device) for device in self._devices()])

    async def pause(self, device: str, for_s: float | None) -> None:
        """Take nothing more on a device, or for peers on the `WHOLE_NODE`.

        Args:
            device: Its id.
            for_s: After so many seconds it ends by itself; None for never.

        Raises:
            StoreError: It could not be written down, and does not hold.
        """
        now_s = time.time()
        pause = Pause(device, None if for_s is None else now_s + for_s)
        async with self._one_at_a_time:
            await self._keep(owner.after_pause(self._pauses, pause, now_s))

    async def resume(self, device: str) -> None:
        """End the pause of a device, or with `WHOLE_NODE` every pause; raises as `pause`."""
        async with self._one_at_a_time:
            await self._keep(owner.after_resume(self._pauses, device, time.time()))

    async def _keep(self, pauses: tuple[Pause, ...]) -> None:
        await self._journal.keep_pauses(pauses)
        self._pauses = pauses
        self._notice()

    def follow(self, schedule: Schedule, step_back: float | None) -> None:
        """Go by these settings from now on."""
        self._schedule, self._step_back = schedule, step_back
        if step_back is None:
            self._courtesy, self.use = Courtesy(), None
        self._notice()

    async def watch(self) -> None:
        """Measure, and notice what changes by itself, for ever."""
        while True:
            if self._step_back is not None:
                self.use = await trio.to_thread.run_sync(self._measure)
                if self.use is not None and self._step_back is not None:
                    self._courtesy = owner.after_use(
                        self._courtesy, self.use, self._step_back, trio.current_time()
                    )
            self._notice()
            await trio.sleep(MEASURE_INTERVAL_S)

    def _notice(self) -> None:
        """Tell the log and the network what is another than it was."""
        before, self._known = self._known, {d: self.stance(d) for d in self._devices()}
        for device, now in self._known.items():
            was = before.get(device, owner.OPEN)
            if (now.cause, now.own) != (was.cause, was.own):
                log.info("a device's stance changed", device=device, stance=_text(now))
        before_announced, self._announced = self._announced, self.announces_open
        if before_announced != self._announced:
            self._changed()


@asynccontextmanager
async def open_owner_watch(watch: OwnerWatch) -> AsyncIterator[OwnerWatch]:
    """Watch for as long as the block runs."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.watch)
        yield watch
        nursery.cancel_scope.cancel()


def _text(stance: Stance) -> str:
    return owner.sentence(stance) or "takes work"
