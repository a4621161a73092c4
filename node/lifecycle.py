"""A daemon's life: it starts, runs, drains and ends, by signals or by the local API.

SIGTERM or SIGINT, or ``shoal down``: the daemon drains. Nothing new is taken, the
network is told, and units that run get the time that the setting ``drain`` gives; what
still runs then is handed back, so that its requesters give it to others. Another of
those signals, or ``shoal down --now``, ends it at once. Neither loses anything: a
daemon may be killed at any instant. SIGHUP reads the settings again and opens the log
file anew; on a terminal that has gone it means that nobody watches, and drains.
SIGUSR1 and SIGUSR2, which would end a process that does not know them, do nothing.

What a signal means is decided by `on_signal`; what a drain asks of the daemon is
`Drainable`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

import structlog
import trio

if TYPE_CHECKING:
    from shoal.node.logs import Logs
    from shoal.node.reload import Change, LiveConfig
    from shoal.node.service_manager import ServiceManager

PULSE_S = 1.0
"""Between two looks at how the daemon does; more often where a watchdog wants it."""

HAND_BACK_LIMIT_S = 3.0
"""For telling requesters that their units are handed back, when the drain is over."""

PATIENCE_S = 15.0
"""What the service manager is asked for again and again while the daemon ends."""

END_LIMIT_S = 5.0
"""What ending at once may take; then the process goes without having closed anything."""

log = structlog.get_logger(__name__)


# --- decisions: pure -------------------------------------------------------------


class Phase(StrEnum):
    """Where a daemon is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"


class Act(StrEnum):
    """What a signal makes a daemon do."""

    DRAIN = "drain"
    END = "end"
    RELOAD = "reload"
    NOTHING = "nothing"


def on_signal(number: int, phase: Phase, *, terminal_gone: bool = False) -> Act:
    """What a signal means in a phase.

    Args:
        number: The signal.
        phase: Where the daemon is in its life.
        terminal_gone: Whether the terminal that it was started on is no more.
    """
    ends = number in (signal.SIGTERM, signal.SIGINT)
    ends = ends or (number == signal.SIGHUP and terminal_gone)
    match phase:
        case Phase.STARTING if ends:
            return Act.END  # it has taken nothing yet
        case Phase.RUNNING if ends:
            return Act.DRAIN
        case Phase.RUNNING if number == signal.SIGHUP:
            return Act.RELOAD
        case Phase.DRAINING if number in (signal.SIGTERM, signal.SIGINT):
            return Act.END
    return Act.NOTHING


def exit_code(number: int, phase: Phase) -> int:
    """The process's exit code when a signal ended it at once in a phase.

    One that ended it while it drained has cut something short, and is told as shells
    tell of a signal: 130 for SIGINT, 143 for SIGTERM.
    """
    return 128 + number if phase is Phase.DRAINING else 0


# --- effects -----------------------------------------------------------------------


class Drainable(Protocol):
    """What a daemon must be able to do to end in order."""

    @property
    def units_running(self) -> int:
        """Units that this node runs now."""
        ...

    def stop_taking(self) -> None:
        """Take nothing new from now on, and let the network know."""
        ...

    async def idle(self) -> None:
        """Wait until no unit runs here, and none of this node's own is out."""
        ...

    def hand_back(self) -> None:
        """Give units that still run back to their requesters."""
        ...


class Lifecycle:
    """The life of this process's daemon. `live` runs it.

    Args:
        settings: Those that count now; asked for the time to drain.
        manager: Told how it stands.
        logs: Opened anew by a reload.
    """

    def __init__(self, settings: LiveConfig, manager: ServiceManager, logs: Logs) -> None:
        self.phase = Phase.STARTING
        self.exit_code = 0
        self.settings = settings
        self._manager = manager
        self.logs = logs
        self._terminal = os.isatty(2)
        self._wanted = trio.Event()
        self._scope = trio.CancelScope()
        self._drain_until_s: float | None = None

    @property
    def drain_ends_in_s(self) -> float | None:
        """How long units that run still have; None while it does not drain."""
        if self._drain_until_s is None:
            return None
        return max(0.0, self._drain_until_s - trio.current_time())

    async def live(self, serve: Callable[[], Awaitable[None]]) -> int:
        """Run ``serve`` until it ends, and obey signals; gives the exit code."""
        numbers = (
            *(signal.SIGTERM, signal.SIGINT, signal.SIGHUP),
            *(signal.SIGUSR1, signal.SIGUSR2),
        )
        with trio.open_signal_receiver(*numbers) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals, nursery)
                failure: Exception | None = None
                try:
                    with self._scope:
                        await serve()
                except Exception as error:  # noqa: BLE001  # raised below, in no group
                    failure = error
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return self.exit_code

    async def stay(self, daemon: Drainable) -> None:
        """Be ready until the daemon is told to end, and then until it has drained."""
        self.phase = Phase.RUNNING
        self._manager.ready()
        await self._wanted.wait()
        self._manager.stopping()
        self._manager.still_stopping(PATIENCE_S)
        drain_s = self.settings().drain_s
        self._drain_until_s = trio.current_time() + drain_s
        log.info("draining", units_running=daemon.units_running, limit_s=drain_s)
        daemon.stop_taking()
        with trio.move_on_after(drain_s) as limit:
            await daemon.idle()
        if limit.cancelled_caught:
            log.warning("the drain is over", units_handed_back=daemon.units_running)
            daemon.hand_back()
            with trio.move_on_after(HAND_BACK_LIMIT_S):
                await daemon.idle()
        log.info("ending")

    def end(self, *, now: bool = False) -> None:
        """Make the daemon drain and end, or end at once."""
        if self.phase is Phase.RUNNING:
            self.phase = Phase.DRAINING
            self._wanted.set()
        if now or self.phase is Phase.STARTING:
            self._scope.cancel()

    async def reload(self) -> Change:
        """Read the settings again; raises ConfigError where they stay as they are."""
        self._manager.reloading()
        try:
            self.logs.reopen()
            return await self.settings.reload()
        finally:
            self._manager.ready()

    async def pulse(self, look: Callable[[], str]) -> None:
        """Show for ever that the loop runs.

        Args:
            look: Called at each pulse; gives what the service manager is to show.
        """
        watchdog_s = self._manager.watchdog_s
        interval_s = PULSE_S if watchdog_s is None else min(PULSE_S, watchdog_s / 2)
        said = ""
        while True:
            await trio.sleep(interval_s)
            self._manager.alive()
            if self.phase is Phase.DRAINING:
                self._manager.still_stopping(PATIENCE_S)
            before, said = said, look()
            if said != before:
                self._manager.status(said)

    async def _obey(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            gone = self._terminal and not os.isatty(2)
            act = on_signal(number, self.phase, terminal_gone=gone)
            log.info("signalled", signal=signal.Signals(number).name, act=act.value)
            match act:
                case Act.DRAIN:
                    self.end()
                case Act.END:
                    self.exit_code = exit_code(number, self.phase)
                    _end_within(END_LIMIT_S, self.exit_code)
                    self.end(now=True)
                case Act.RELOAD:
                    nursery.start_soon(self._reload_by_signal)

    async def _reload_by_signal(self) -> None:
        from shoal.node.errors import ConfigError

        try:
            await self.reload()
        except ConfigError:
            return  # it is in the log, and `shoal status` shows it


def _end_within(limit_s: float, code: int) -> None:
    """See to it that the process is gone in time, whatever its loop does."""
    timer = threading.Timer(limit_s, os._exit, (code,))
    timer.daemon = True
    timer.start()
