"""What the checks look at: the settings here, and what the daemon says where one answers.

Gathered once, so that all checks speak of the same moment.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from shoal.crypto import identity
from shoal.crypto.errors import ShoalError
from shoal.crypto.peer_id import PeerId
from shoal.node.config import Config, Location, load, locate
from shoal.node.errors import DaemonUnreachableError
from shoal.node.home_lock import Holder, holder_of
from shoal.node.settings_view import settings_view
from shoal.node.swarm_key import SwarmKey, load_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.node.client import Client
    from shoal.node.peer_views import PeerView
    from shoal.node.settings_view import SettingView
    from shoal.node.status_views import Status


@dataclass(frozen=True, slots=True)
class Patient:
    """A node, running or not.

    Attributes:
        place: Where its home and its socket are.
        config: The settings as a daemon that starts now would read them; None where
            they cannot be used, for ``complaint``'s reason.
        status: What the daemon says; None where none answers, for ``unreachable``'s reason.
        running: The settings that the daemon runs with; None where it does not say.
        peers: The nodes that the daemon knows.
    """

    place: Location
    config: Config | None = None
    complaint: ShoalError | None = None
    status: Status | None = None
    unreachable: ShoalError | None = None
    running: tuple[SettingView, ...] | None = None
    peers: tuple[PeerView, ...] = field(default=(), repr=False)

    @property
    def home(self) -> Path:
        """The daemon's home where one runs, else the one that the settings name."""
        return Path(self.status.home) if self.status else self.place.home

    @property
    def effective(self) -> tuple[SettingView, ...]:
        """The settings in force: the daemon's where it runs, else those it would have."""
        if self.running is not None:
            return self.running
        return settings_view(self.config) if self.config else ()

    def setting(self, name: str) -> object:
        """The value in force of one setting; None where no settings can be read."""
        return next((each.value for each in self.effective if each.name == name), None)

    def peer(self) -> PeerId | None:
        """The node's own id, where that can be told."""
        if self.status is not None:
            return self.status.peer
        try:
            return identity.load(self.home / "identity.key").peer_id
        except ShoalError:
            return None

    def holder(self) -> Holder | None:
        """The daemon that holds the home, whether it answers or not."""
        return holder_of(self.home)

    def swarm_key(self) -> SwarmKey | None:
        """The private network that the home is in; raises ConfigError as `load_key`."""
        return load_key(self.home / "swarm.key")

    def bootstrap(self) -> tuple[str, ...]:
        """Where this node looks for its network: as set, and as its invitation said."""
        found = self.setting("bootstrap")
        addresses = [str(each) for each in found] if isinstance(found, list) else []
        # The daemon knows, too, where names that stand for several addresses lead.
        joining = self.status.joining if self.status else None
        seeds = joining.seeds if joining else ()
        addresses += [seed.text for seed in seeds if seed.source == "dnsaddr"]
        with suppress(ShoalError):
            key = self.swarm_key()
            addresses += key.bootstrap if key else ()
        return tuple(dict.fromkeys(addresses))


def meet(home: Path | None, socket: Path | None, client: Callable[[], Client]) -> Patient:
    """Read the settings and ask the daemon; whatever fails is part of the picture.

    Args:
        home: As it was given on the command line.
        socket: Likewise.
        client: Makes a client of the daemon.

    Raises:
        ConfigError: Not even where the home is can be told.
    """
    flags = {"home": home, "socket": socket}
    place = locate(flags)
    config = complaint = None
    try:
        config = load(flags)
    except ShoalError as error:
        complaint = error
    status = unreachable = running = None
    peers: tuple[PeerView, ...] = ()
    holder = holder_of(place.home)
    if holder is not None and _stopped(holder.pid):  # it would be waited for in vain
        return Patient(place, config, complaint, unreachable=_is_stopped(holder.pid))
    try:
        with client() as daemon:
            status = daemon.status()
            with suppress(ShoalError):  # one of an older version has no such route
                running = tuple(daemon.settings())
            with suppress(ShoalError):
                peers = tuple(daemon.peers())
    except ShoalError as error:
        unreachable = error
    return Patient(place, config, complaint, status, unreachable, running, peers)


def _stopped(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in "Tt"


def _is_stopped(pid: int) -> DaemonUnreachableError:
    return DaemonUnreachableError(
        f"the daemon (process {pid}) is stopped, by SIGSTOP or by a debugger",
        code="daemon_stopped",
        hint=f"`kill -CONT {pid}` lets it go on",
    )
