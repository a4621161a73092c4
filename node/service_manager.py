"""What a service manager is told: ready, reloading, stopping, alive (sd_notify(3)).

systemd starts a unit of ``Type=notify`` with a datagram socket in ``NOTIFY_SOCKET`` and
believes what the daemon says there. The protocol is lines of text in one datagram, so
this is it, and no library. Without that variable everything here does nothing.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

log = structlog.get_logger(__name__)


class ServiceManager:
    """The one that has started this process, if any has.

    Args:
        environment: In place of the process's own. What is for this process alone is
            taken out of it, so that nothing it starts speaks in its name.
    """

    def __init__(self, environment: MutableMapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        place = environment.pop("NOTIFY_SOCKET", "")
        # A leading @ stands for the zero of Linux's abstract names.
        self._place = "\0" + place[1:] if place.startswith("@") else place
        self.watchdog_s = _watchdog_s(environment)
        """Within which time `alive` must be said again; None where nobody watches."""

    def ready(self) -> None:
        """The daemon answers; also after `reloading`."""
        self._say("READY=1")

    def reloading(self) -> None:
        """Settings are being read again; `ready` ends it."""
        # systemd tells this reload from an older one by the time.
        self._say("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The daemon has begun to end."""
        self._say("STOPPING=1")

    def still_stopping(self, for_s: float) -> None:
        """It takes so much longer: whoever is patient for less is to wait."""
        self._say(f"EXTEND_TIMEOUT_USEC={int(for_s * 1e6)}")

    def alive(self) -> None:
        """The daemon's loop runs."""
        if self.watchdog_s is not None:
            self._say("WATCHDOG=1")

    def status(self, sentence: str) -> None:
        """What ``systemctl status`` shows."""
        self._say(f"STATUS={sentence}")

    def _say(self, *lines: str) -> None:
        if not self._place:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as mouth:
                mouth.setblocking(False)  # the loop waits for nobody
                mouth.sendto("\n".join(lines).encode(), self._place)
        except OSError as error:  # a manager that does not listen is its own matter
            log.debug("the service manager was not told", error=str(error))


def _watchdog_s(environment: MutableMapping[str, str]) -> float | None:
    microseconds = environment.pop("WATCHDOG_USEC", "")
    for_pid = environment.pop("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    return int(microseconds) / 1e6 if for_pid in ("", str(os.getpid())) else None
