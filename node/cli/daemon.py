"""The daemon's life as its operator sees it: up, down, status, peers."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shoal.node.cli.capability import claims_text
from shoal.node.cli.options import Daemon, Here, SettingFlags
from shoal.node.cli.output import (
    duration_text,
    network_text,
    note,
    print_json,
    print_pairs,
    print_table,
    size_text,
)
from shoal.node.cli.owner import owner_pairs
from shoal.node.config import Config, load
from shoal.node.errors import ConfigError, DaemonUnreachableError, WaitTimeoutError
from shoal.node.home import holder_of, home_in_use, open_home
from shoal.node.records import PeerView, Status
from shoal.protocol.statements import DeviceOffer

START_LIMIT_S = 30.0
STOP_LIMIT_S = 20.0
_POLL_S = 0.05
_LOG_TAIL_BYTES = 2000


def up(
    *,
    detach: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    settings: SettingFlags | None = None,
    here: Here | None = None,
) -> int:
    """Start the daemon of this machine and stay with it; Ctrl-C ends it.

    A home and a key are made at the first start.

    Args:
        detach: Start it in the background and return once it answers; its log
            goes to HOME/daemon.log.
    """
    from shoal.node.swarm_key import load_key

    here = here or Here()
    given = settings.given() if settings else {}
    config = load({"home": here.home, **given})
    open_home(config)
    load_key(config.swarm_key_path)  # refused before anything is started
    if detach:
        return _start_detached(config, given, as_json=here.as_json)
    from shoal.node import daemon

    return daemon.run(config)


def down(*, daemon: Daemon | None = None) -> None:
    """End the daemon; jobs that run are resumed at its next start."""
    daemon = daemon or Daemon()
    with daemon.client() as client:
        try:
            pid = client.status().pid
        except DaemonUnreachableError as error:
            if error.code != DaemonUnreachableError.code:
                raise
            raise DaemonUnreachableError(
                f"no daemon runs: none answers on {client.place.socket}"
            ) from None
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ended in between
    except PermissionError:
        raise ConfigError(
            f"this user may not end process {pid}", code="socket_forbidden"
        ) from None
    deadline = time.monotonic() + STOP_LIMIT_S
    while _alive(pid):
        if time.monotonic() > deadline:
            raise WaitTimeoutError(
                f"the daemon (process {pid}) did not end within {STOP_LIMIT_S:.0f} s",
                hint=f"see its log; `kill -9 {pid}` ends it, and nothing is lost by that",
            )
        time.sleep(_POLL_S)
    if daemon.as_json:
        print_json({"pid": pid})
    else:
        note(f"the daemon (process {pid}) has ended")


def status(*, daemon: Daemon | None = None) -> None:
    """Show how the daemon is: its id, addresses, peers, jobs and blobs."""
    daemon = daemon or Daemon()
    with daemon.client() as client:
        _print_status(client.status(), as_json=daemon.as_json)


def peers(*, connect: str | None = None, daemon: Daemon | None = None) -> None:
    """List the other nodes of the network as this one sees them.

    Peers that are connected and cannot be talked to follow, each with the reason, such
    as which of the two to upgrade.

    Args:
        connect: Link to the node at this address first; as those of `bootstrap`.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        if connect is not None:
            client.connect(connect)
        found, misfits = client.peers(), client.misfits()
    if daemon.as_json:
        print_json({"peers": found, "misfits": misfits})
        return
    if found:
        _print_peers(found)
    else:
        note("no peers yet; nodes to join through are set as `bootstrap`")
    for misfit in misfits:
        note(f"{misfit.peer} is connected and {misfit.why}")


def _print_peers(found: Sequence[PeerView]) -> None:
    print_table(
        (
            *("PEER", "LINK", "PROTOCOL", "TAKES WORK", "MAY SEND WORK", "ROUND TRIP"),
            "DEVICES",
            *("CLASSES", "CLAIMS", "HEARD OF"),
        ),
        (
            (
                view.peer,
                "linked" if view.linked else "known",
                "{}.{}".format(*view.protocol),
                "yes" if view.providing else "no",
                "yes" if view.allowed else "no",
                "-" if view.rtt_s is None else duration_text(view.rtt_s),
                ", ".join(map(_device_text, view.devices)) or "-",
                ", ".join(view.numeric_classes) or "-",
                claims_text(view.claims),
                f"{duration_text(view.advert_age_s)} ago",
            )
            for view in found
        ),
    )


def _device_text(offer: DeviceOffer) -> str:
    """A line of an advert; equal devices share one."""
    return offer.id if offer.count == 1 else f"{offer.count} × {offer.id}"


def _print_status(found: Status, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        print_json(msgspec.structs.asdict(found))
        return
    print_pairs(
        [
            ("peer", found.peer),
            ("version", f"{found.version}, protocol {found.protocol_version}"),
            ("network", network_text(found.network, found.network_fingerprint)),
            *(("address", address) for address in found.addresses),
            ("up for", duration_text(found.uptime_s)),
            ("peers", f"{found.peers_linked} linked, {found.peers_known} known"),
            ("jobs", f"{found.jobs_running} running"),
            ("served", f"{found.units_served} units"),
            *(owner_pairs(found.owner) if found.owner else ()),
            ("blobs", f"{size_text(found.blob_bytes)} of {size_text(found.blob_quota_bytes)}"),
            ("sandbox", found.sandbox),
            ("home", found.home),
            ("socket", found.socket),
            ("process", found.pid),
        ]
    )


def _start_detached(config: Config, given: dict[str, object], *, as_json: bool) -> int:
    from shoal.node.client import Client

    with Client(config.socket) as client:
        running = _status_or_none(client)
        if running is not None:
            raise ConfigError(
                f"a daemon (process {running.pid}) serves {config.socket} already",
                code="daemon_running",
                hint="see `shoal status`; end it with `shoal down`",
            )
        log_path = config.home / "daemon.log"
        if holder := holder_of(config.home):
            raise home_in_use(config.home, holder)
        child = _spawn(config, given, log_path)
        deadline = time.monotonic() + START_LIMIT_S
        while (found := _status_or_none(client)) is None or found.pid != child.pid:
            if child.poll() is not None:
                raise _start_failed(log_path, child.returncode)
            if time.monotonic() > deadline:
                raise WaitTimeoutError(
                    f"the daemon (process {child.pid}) does not answer after "
                    f"{START_LIMIT_S:.0f} s",
                    hint=f"see its log {log_path}",
                )
            time.sleep(_POLL_S)
    _print_status(found, as_json=as_json)
    return 0


def _spawn(config: Config, given: dict[str, object], log_path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "shoal.node.cli", "up"]
    if config.sources["home"] == "flag":
        command.append(f"--home={config.home}")
    for name, value in given.items():
        values = value if isinstance(value, list) else [value]
        command += [f"--{name.replace('_', '-')}={item}" for item in values]
    if log_path.exists():
        log_path.replace(log_path.with_suffix(".log.1"))
    with log_path.open("ab") as log:
        return subprocess.Popen(  # noqa: S603  # our own interpreter and flags
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _status_or_none(client: object) -> Status | None:
    from shoal.node.client import Client

    assert isinstance(client, Client)
    try:
        return client.status()
    except DaemonUnreachableError as error:
        if error.code == "socket_forbidden":
            raise
        return None


def _start_failed(log_path: Path, code: int) -> ConfigError:
    """The error that the daemon ended with, as its own; its last words where it had none."""
    words = log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace").strip()
    said = re.search(r"^error: (.*?)(?:\n  next: (.*))?\Z", words, re.MULTILINE | re.DOTALL)
    if said is None:
        return ConfigError(
            f"the daemon ended at once with code {code}; its last words:\n{words}",
            code="start_failed",
            hint=f"the whole log is {log_path}",
        )
    return ConfigError(
        f"the daemon did not start: {said[1]}",
        code="start_failed",
        hint=said[2] or f"the whole log is {log_path}",
    )


def _alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
