"""``shoal allow`` and ``shoal deny``: two lists of the settings, as commands.

They change the settings file of the home and have a daemon that runs read it again.
"""

import fcntl
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shoal.crypto.errors import VerificationError
from shoal.crypto.peer_id import check_peer_id
from shoal.node.cli.options import Daemon
from shoal.node.cli.output import note, print_json, print_pairs
from shoal.node.config import file_text, load
from shoal.node.errors import ConfigError, DaemonUnreachableError
from shoal.node.home import open_home
from shoal.node.settings_edit import with_item, without_item
from shoal.node.status_views import Status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.node.client import Client

_LISTS = ("allow", "deny")
_Off = Annotated[bool, Parameter(negative="", show_default=False)]


def allow(peer: str, /, *, remove: _Off = False, daemon: Daemon | None = None) -> None:
    """Serve a peer as a friend: its work goes before strangers', and needs no sandbox.

    It comes onto `allow` in the settings file, and off `deny`; a daemon that runs
    reads the file again.

    Args:
        peer: Its id, as `shoal identity show` prints it there and `shoal peers` here.
        remove: Take it off `allow` instead, so that it is a stranger.
    """
    _change("allow", peer, remove=remove, daemon=daemon or Daemon())


def deny(peer: str, /, *, remove: _Off = False, daemon: Daemon | None = None) -> None:
    """Never serve a peer, whatever else is set; what it has running here is handed back.

    It comes onto `deny` in the settings file, and off `allow`; a daemon that runs
    reads the file again.

    Args:
        peer: Its id, as `shoal peers` prints it.
        remove: Take it off `deny` instead.
    """
    _change("deny", peer, remove=remove, daemon=daemon or Daemon())


def _change(name: str, peer: str, *, remove: bool, daemon: Daemon) -> None:
    """Put ``peer`` onto one of the lists, or take it off, and tell what came of it."""
    try:
        check_peer_id(peer)
    except VerificationError:
        raise ConfigError(
            f"{peer[:80]!r} is no peer id, which begins with 12D3KooW",
            code="usage",
            hint="`shoal peers` lists those that are known here, and “shoal identity show” "
            "prints a machine's own",
        ) from None
    with daemon.quiet_client() as client:
        running = _status_or_none(client)
        path = (Path(running.home) if running else _home(client)) / "config.toml"
        with _alone(path.parent):
            if path.exists():
                load({"home": path.parent})  # refused with the word on what is wrong in it
            before = path.read_text(encoding="utf-8") if path.exists() else file_text()
            after = edited(before, name, peer, remove=remove)
            if after != before:
                _write(path, after)
        found = client.reload() if running else None
        sources = {view.name: view.source for view in client.settings()} if running else {}
    if daemon.as_json:
        print_json({"settings": str(path), "changed": after != before, "reload": found})
        return
    listed = load({"home": path.parent}, {})
    print_pairs(
        [
            ("allow", ", ".join(listed.allow) or "-"),
            ("deny", ", ".join(listed.deny) or "-"),
            ("settings", path if after != before else f"{path} (as it was)"),
        ]
    )
    given = [each for each in _LISTS if sources.get(each) in ("flag", "environment")]
    if given:
        note(
            f"warning: the daemon was started with its own {' and '.join(given)} by a flag or "
            "variable, and that goes before the file until it is started without"
        )
    elif running:
        note("the daemon has taken it up")
    else:
        note("it counts from the daemon's next start: `shoal up`")


def edited(text: str, name: str, peer: str, *, remove: bool) -> str:
    """The settings with a peer on one of the lists and off the other; or taken off the one.

    Pure; raises as `settings_edit.with_item`.
    """
    if remove:
        return without_item(text, name, peer)
    (other,) = (each for each in _LISTS if each != name)
    return with_item(without_item(text, other, peer), name, peer)


@contextmanager
def _alone(home: Path) -> "Iterator[None]":
    """Wait for other commands that change the settings of this home."""
    directory = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _status_or_none(client: "Client") -> Status | None:
    """How the daemon is; None where none runs."""
    try:
        return client.status()
    except DaemonUnreachableError as error:
        if error.code != DaemonUnreachableError.code:
            raise
        return None


def _home(client: "Client") -> Path:
    """The home of the daemon that would start, made where there is none."""
    config = load({"home": client.place.home})
    open_home(config)
    return config.home


def _write(path: Path, text: str) -> None:
    """Put the file into its place at once, with the owner and the rights that it has.

    A new one is its home's owner's: root may command the system service, which is to read it.
    """
    path = path.resolve()
    there = path.exists()
    now = (path if there else path.parent).stat()
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".config-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chown(temporary, now.st_uid, now.st_gid)
        temporary.chmod(now.st_mode & 0o777 if there else 0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
