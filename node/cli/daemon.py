"""The daemon's life as its operator sees it: up, down, status, peers."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from shoal.node.errors import (
    ConfigError,
    DaemonError,
    DaemonUnreachableError,
    WaitTimeoutError,
)
from shoal.node.home_lock import holder_of, home_in_use
from shoal.node.peer_views import CallerView, ConductView, CutView, PeerView
from shoal.node.status_views import JoiningView, Status
from shoal.protocol.device_offers import DeviceOffer

if TYPE_CHECKING:
    from shoal.node.client import Client

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
    from shoal.node.home import open_home
    from shoal.node.swarm_key import load_key

    here = here or Here()
    given = settings.given() if settings else {}
    reread = partial(load, {"home": here.home, **given})
    config = reread()
    open_home(config)
    load_key(config.swarm_key_path)  # refused before anything is started
    if detach:
        for warning in config.warnings:
            note(f"warning: {warning}")
        return _start_detached(config, given, as_json=here.as_json)
    gc.disable()  # imports make objects that stay: to look for garbage among them takes long
    from shoal.node import daemon

    gc.freeze()  # nor does any later look halt the daemon to go through them
    gc.enable()
    return daemon.run(config, reread)


def down(
    *,
    now: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    daemon: Daemon | None = None,
) -> None:
    """End the daemon; jobs that run are resumed at its next start.

    Units that run get the time that the setting `drain` gives; what still runs then is
    handed back, and other nodes run it.

    Args:
        now: Do not wait for units that run.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        try:
            pid = _tell_to_end(client, now=now)
        except DaemonUnreachableError as error:
            if error.code != DaemonUnreachableError.code:
                raise
            raise DaemonUnreachableError(
                f"no daemon runs: none answers on {client.place.socket}",
                hint="there is nothing to end; one with another home is ended by "
                "`shoal down --home ITS`",
            ) from None
        _wait_for_end(client, pid)
    if daemon.as_json:
        print_json({"pid": pid})
    else:
        note(f"the daemon (process {pid}) has ended")


def status(*, daemon: Daemon | None = None) -> None:
    """Show how the daemon is: its id, addresses, peers, jobs and blobs."""
    daemon = daemon or Daemon()
    with daemon.client() as client:
        _print_status(client.status(), as_json=daemon.as_json)


def peers(
    *,
    connect: str | None = None,
    forgive: str | None = None,
    unban: str | None = None,
    daemon: Daemon | None = None,
) -> None:
    """List the other nodes of the network as this one sees them.

    Peers that are connected and cannot be talked to follow, each with the reason, such
    as which of the two to upgrade. Then those that broke the rules of the wire, with
    what they did; of one that is cut no connection is taken until the time that is shown.
    What was only seen, and may be nobody's or somebody else's doing, is listed as noted, and
    from where strangers called at the bulk port: that is held against nobody.
    Last come those that a fraud proof has convicted: they get no work and none of theirs
    is taken. `shoal proof list` tells more.

    Args:
        connect: Link to the node at this address or /dnsaddr name first; as in `bootstrap`.
        forgive: Let the peer of this id back in first, and forget what it did.
        unban: Lift the ban of the peer of this id first.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        if forgive is not None:
            client.forgive(forgive)
        if unban is not None:
            client.unban(unban)
        linked = "" if connect is None else client.connect(connect)
        found, misfits, cut = client.peers(), client.misfits(), client.cuts()
        banned, conducts, callers = client.bans(), client.conducts(), client.callers()
        joining = None if found else client.status().joining
    if daemon.as_json:
        print_json(
            {
                "peers": found,
                "misfits": misfits,
                "cut": cut,
                "conduct": conducts,
                "callers": callers,
                "banned": banned,
            }
        )
        return
    if found:
        _print_peers(found)
    if linked and linked not in {view.peer for view in found}:
        note(f"{linked} is linked; `shoal peers` lists it once its advert has come, in seconds")
    elif not found:
        sentence = joining.sentence if joining else ""
        note(f"no peers yet; {sentence or 'nodes to join through are set as `bootstrap`'}")
    for misfit in misfits:
        note(f"{misfit.peer} is connected and {misfit.why}")
    _print_offenders(conducts, cut)
    _print_notes(conducts, callers)
    if banned:
        print()
        print_table(
            ("BANNED", "UNTIL", "PROOF", "IT"),
            ((ban.peer, _day_text(ban.until), ban.proof[:16], ban.why) for ban in banned),
        )


def _print_notes(conducts: Sequence[ConductView], callers: Sequence[CallerView]) -> None:
    """What was seen and is held against nobody."""
    noted = [(view.peer, note) for view in conducts for note in view.notes]
    for title, seen in (
        ("NOTED", noted),
        ("CALLERS", [(view.place, view.note) for view in callers]),
    ):
        if seen:
            print()
            print_table(
                (title, "TIMES", "LAST", "IT"),
                (
                    (whom, note.times, _clock_text(note.last), note.sentence)
                    for whom, note in seen
                ),
            )


def _print_offenders(conducts: Sequence[ConductView], cut: Sequence[CutView]) -> None:
    """Who broke the rules, and who is cut for it."""
    cut_peers = {view.peer for view in cut}
    standings = ((view.peer, view.standing) for view in conducts if view.peer not in cut_peers)
    lowered = [(peer, view) for peer, view in standings if view is not None]
    if lowered:
        print()
        print_table(
            ("STANDING LOWERED", "STANDING", "IT"),
            ((peer, f"{view.standing:.0%}", view.why) for peer, view in lowered),
        )
    if cut:
        print()
        print_table(
            ("CUT", "SINCE", "UNTIL", "IT"),
            ((v.peer, _clock_text(v.since), _clock_text(v.until), v.why) for v in cut),
        )


def _clock_text(epoch_s: float) -> str:
    """A time of today by this machine's clock: cuts are shorter than a day."""
    return time.strftime("%H:%M:%S", time.localtime(epoch_s))


def _day_text(epoch_s: float) -> str:
    """A day by this machine's clock: bans last for weeks."""
    return time.strftime("%Y-%m-%d", time.localtime(epoch_s))


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


def _tell_to_end(client: "Client", *, now: bool) -> int:
    """Have the daemon end, by its API or, where that does not do it, by signals."""
    try:
        return client.end(now=now)
    except DaemonError as error:
        if error.code != "no_such_route":  # an older daemon
            raise
        pid = client.status().pid
    except WaitTimeoutError:  # it hangs
        holder = holder_of(client.place.home)
        if holder is None:
            raise
        pid = holder.pid
    try:
        for _ in range(2 if now else 1):
            os.kill(pid, signal.SIGTERM)
            time.sleep(_POLL_S)  # two at once are one
    except ProcessLookupError:
        pass  # it ended in between
    except PermissionError:
        raise ConfigError(
            f"this user may not end process {pid}", code="socket_forbidden"
        ) from None
    return pid


def _wait_for_end(client: "Client", pid: int) -> None:
    """Wait until the process is gone, and say what it waits for."""
    began_s = time.monotonic()
    deadline_s, said = began_s + STOP_LIMIT_S, -1
    while _alive(pid):
        found = _status_or_none(client)
        if found is not None and found.drain_ends_in_s is not None:
            deadline_s = time.monotonic() + found.drain_ends_in_s + STOP_LIMIT_S
            units = found.units_running + found.units_out
            if units not in (0, said):
                left = duration_text(found.drain_ends_in_s)
                note(f"{units} unit{'' if units == 1 else 's'} still running, for {left} more")
                said = units
        if time.monotonic() > deadline_s:
            raise WaitTimeoutError(
                f"the daemon (process {pid}) did not end within "
                f"{time.monotonic() - began_s:.0f} s",
                hint=f"see its log; `kill -9 {pid}` ends it, and nothing is lost by that",
            )
        time.sleep(_POLL_S)


def _print_status(found: Status, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        print_json(msgspec.structs.asdict(found))
        return
    print_pairs(
        [
            ("peer", found.peer),
            ("version", f"{found.version}, protocol {found.protocol}"),
            ("network", network_text(found.network, found.network_fingerprint)),
            *(("address", address) for address in found.addresses),
            ("bulk", _bulk_text(found)),
            *_reachability_pairs(found),
            ("up for", _up_text(found)),
            ("peers", _peers_text(found)),
            *_joining_pairs(found.joining),
            ("jobs", f"{found.jobs_running} running"),
            ("served", f"{found.units_served} units, {found.units_running} running"),
            *(owner_pairs(found.owner) if found.owner else ()),
            ("blobs", f"{size_text(found.blob_bytes)} of {size_text(found.blob_quota_bytes)}"),
            ("sandbox", found.sandbox),
            *_settings_pairs(found),
            ("home", found.home),
            ("socket", found.socket),
            ("process", found.pid),
        ]
    )


def _bulk_text(found: Status) -> str:
    """The port that large blobs go over."""
    if not found.bulk:
        return "off: large blobs go as small ones do, at a tenth of the speed"
    at = f", announced as {found.bulk_announced}" if found.bulk_announced else ""
    return f"port {found.bulk}{at}"


def _peers_text(found: Status) -> str:
    text = f"{found.peers_linked} linked, {found.peers_known} known"
    if not found.peers_banned:
        return text
    return f"{text}; {found.peers_banned} banned, see `shoal peers`"


def _up_text(found: Status) -> str:
    up = duration_text(found.uptime_s)
    if found.drain_ends_in_s is None:
        return up
    return f"{up}; it is ending, within {duration_text(found.drain_ends_in_s)}"


def _settings_pairs(found: Status) -> Iterator[tuple[str, str]]:
    """What is not as its settings say."""
    if found.settings_error:
        yield "settings", f"in error, so those before them count: {found.settings_error}"
    if found.needs_restart:
        yield "settings", f"changed and not yet in use: {', '.join(found.needs_restart)}"


def _reachability_pairs(found: Status) -> list[tuple[str, str]]:
    if found.reachability is None:
        return []
    evidence = [("evidence", line) for line in found.reachability.evidence]
    return [("reachability", found.reachability.sentence), *evidence]


def _joining_pairs(joining: JoiningView | None) -> list[tuple[str, object]]:
    """Why the node is alone, and what it says on its local network, where there is a word."""
    if joining is None:
        return []
    found = [("joining", joining.sentence), ("nearby", joining.lan)]
    return [(name, text) for name, text in found if text]


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
        log_path = config.log_file or config.home / "daemon.log"
        if holder := holder_of(config.home):
            raise home_in_use(config.home, holder)
        log_bytes = log_path.stat().st_size if log_path.exists() else 0
        child = _spawn(config, given | {"log_file": log_path}, log_path)
        deadline = time.monotonic() + START_LIMIT_S
        while (found := _status_or_none(client)) is None or found.pid != child.pid:
            if child.poll() is not None:
                raise _start_failed(log_path, log_bytes, child.returncode)
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
    with log_path.open("ab") as log:
        return subprocess.Popen(  # noqa: S603  # our own interpreter and flags
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _status_or_none(client: "Client") -> Status | None:
    try:
        return client.status()
    except DaemonUnreachableError as error:
        if error.code == "socket_forbidden":
            raise
        return None


def _start_failed(log_path: Path, since_bytes: int, code: int) -> ConfigError:
    """The error that the daemon ended with, as its own; its last words where it had none."""
    said_bytes = log_path.read_bytes()[since_bytes:][-_LOG_TAIL_BYTES:]
    words = said_bytes.decode(errors="replace").strip()
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
