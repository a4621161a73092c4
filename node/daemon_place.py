"""Where a client finds the daemon of this machine.

The settings say where a daemon's socket should be; the lock of a home says where
the one that runs has it. They differ where the daemon was started with
``--socket``, or in a shell with another ``XDG_RUNTIME_DIR``. A client that was
told neither socket nor home first tries the system service's.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.node.config import locate
from shoal.node.home_lock import holder_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from shoal.node.errors import ConfigError

SYSTEM_SOCKET = Path("/run/shoal/shoal.sock")
"""Of the system service, whose unit sets SHOAL_HOME=/var/lib/shoal and this socket."""


@dataclass(frozen=True, slots=True)
class DaemonPlace:
    """Where a daemon is looked for.

    Attributes:
        home: The home it should hold.
        socket: Where it should answer.
        complaint: What is wrong with the settings file, which a client can do without.
    """

    home: Path
    socket: Path
    complaint: ConfigError | None = None


def find_daemon(
    flags: Mapping[str, object] | None = None, environment: Mapping[str, str] | None = None
) -> DaemonPlace:
    """Find the daemon that these settings mean.

    Args:
        flags: ``home`` and ``socket``, where they were told; None counts as not told.
        environment: In place of the process's own.

    Raises:
        ConfigError: As `config.locate` does.
    """
    found = locate(flags, environment)
    socket = found.socket
    if found.socket_source not in ("flag", "environment"):
        untold = found.socket_source == found.home_source == "default"
        if untold and _usable_socket(SYSTEM_SOCKET):
            socket = SYSTEM_SOCKET
        elif holder := holder_of(found.home):
            socket = holder.socket
    return DaemonPlace(found.home, socket, found.complaint)


def _usable_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode) and os.access(path, os.W_OK)
    except OSError:
        return False
