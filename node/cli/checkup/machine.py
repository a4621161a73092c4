"""Checks of this machine: user, settings, home, key, secret, clock's keeper, disk, limits."""

from __future__ import annotations

import os
import pwd
import resource
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shoal.crypto import identity
from shoal.crypto.errors import ShoalError
from shoal.node.cli.checkup.findings import Finding, failure, failure_of, ok, warning
from shoal.node.cli.output import network_text, size_text
from shoal.node.shares import usable_memory_bytes
from shoal.node.swarm_key import PUBLIC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.node.cli.checkup.patient import Patient
    from shoal.node.settings_view import SettingView

DISK_LEAST_BYTES: Final = 64 << 20
"""Below that the state cannot be written for long: its log alone grows to some megabytes."""

TRIAL_BYTES: Final = 64 << 10
FILES_WANTED: Final = 512 + 256
"""One for each connection, and for the state, blobs on their way, workers and the socket."""

FILES_LEAST: Final = 256
"""Below that it is not the peers that fail first but workers and the state."""


def user(patient: Patient) -> Iterator[Finding]:
    """Whether the daemon has more rights than it needs."""
    uid = os.geteuid()
    if patient.status is not None:
        with suppress(OSError):
            uid = Path(f"/proc/{patient.status.pid}").stat().st_uid
    who = "the daemon runs" if patient.status else "a daemon started by this user would run"
    if uid == 0:
        yield warning(
            "user",
            f"{who} as root, so that a fault in it would be one in the whole machine",
            "run it as an ordinary user, or as the system service, which has one of its own",
        )
    else:
        yield ok("user", f"{who} as {_user_name(uid)}")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def settings(patient: Patient) -> Iterator[Finding]:
    """Whether the settings can be read, are those in force, and fit this machine."""
    if patient.complaint is not None:
        yield failure_of("settings", patient.complaint)
    elif patient.config is not None:
        path = patient.config.file_path
        yield ok("settings", str(path) if path.exists() else "defaults; no settings file")
    yield from _beyond_the_machine(patient)
    changed = [each.name for each in _edited(patient)]
    if changed:
        yield warning(
            "settings",
            f"the daemon still runs with what {', '.join(changed)} was before the settings "
            "were edited",
            "`shoal reload`, and where it says so `shoal down`, then `shoal up`",
        )


def _beyond_the_machine(patient: Patient) -> Iterator[Finding]:
    for said in patient.config.warnings if patient.config else ():
        yield warning("settings", said, "`shoal up --help` lists the settings")
    memory_bytes = patient.setting("memory")
    there_bytes = usable_memory_bytes()
    if isinstance(memory_bytes, int) and memory_bytes > there_bytes:
        yield warning(
            "settings",
            f"memory = {size_text(memory_bytes)}, and this machine lets the daemon use "
            f"{size_text(there_bytes)}: units may be killed",
            f"set `memory` to less than {size_text(there_bytes)}, or to a share such as 50%",
        )


def _edited(patient: Patient) -> list[SettingView]:
    """What is otherwise in the file now than in the daemon; flags and variables aside."""
    if patient.running is None or patient.config is None:
        return []
    if patient.config.home != patient.home:
        return []  # the daemon of another home, such as the system's
    from shoal.node.settings_view import settings_view

    here = {each.name: each for each in settings_view(patient.config)}
    quiet = ("file", "default")
    return [
        each
        for each in patient.running
        if each.name in here
        and {each.source, here[each.name].source} <= {*quiet}
        and "file" in (each.source, here[each.name].source)
        and each.value != here[each.name].value
    ]


def home(patient: Patient) -> Iterator[Finding]:
    """Whether the home is there and this user's to write."""
    place = patient.home
    if not os.access(_nearest(place), os.X_OK):
        yield failure(
            "home",
            f"{place} is not to be reached: this user may not enter {_nearest(place)}",
            "choose another with --home or SHOAL_HOME, or ask as the daemon's user",
        )
    elif not place.exists():
        yield warning("home", f"{place} is not there yet", "run `shoal init`")
    elif not place.is_dir():
        yield failure(
            "home", f"{place} is no directory", "choose another with --home or SHOAL_HOME"
        )
    elif not os.access(place, os.R_OK | os.W_OK | os.X_OK) and not _read_only(place):
        yield failure(
            "home",
            f"{place} is not writable for this user",
            "choose another with --home or SHOAL_HOME",
        )
    else:
        yield ok("home", str(place))


def key(patient: Patient) -> Iterator[Finding]:
    """Whether the node's key can be used, and is the daemon's."""
    try:
        peer = identity.load(patient.home / "identity.key").peer_id
    except ShoalError as error:
        if error.code == "key_missing" and patient.status is None:
            yield warning("key", error.message, error.hint)
        else:
            yield failure_of("key", error)
        return
    if patient.status is not None and patient.status.peer != peer:
        yield warning(
            "key",
            f"the daemon is {patient.status.peer}, and its next start will be as {peer}: "
            "the key was replaced meanwhile",
            "restart it: `shoal down`, then `shoal up`",
        )
    else:
        yield ok("key", peer)


def network(patient: Patient) -> Iterator[Finding]:
    """Which network the node is in, and whether its secret can be used."""
    try:
        found = patient.swarm_key()
    except ShoalError as error:
        yield failure_of("network", error)
        return
    name, fingerprint = (found.name, found.fingerprint) if found else (PUBLIC, "")
    status = patient.status
    if status is not None and status.network_fingerprint != fingerprint:
        yield warning(
            "network",
            f"the daemon is in {network_text(status.network, status.network_fingerprint)}, and "
            f"its next start will be in {network_text(name, fingerprint)}",
            "restart it: `shoal down`, then `shoal up`",
        )
    else:
        yield ok("network", network_text(name, fingerprint))


def disk(patient: Patient) -> Iterator[Finding]:
    """Whether the home's disk takes what is written, and has the room that was promised."""
    place = _nearest(patient.home)
    try:
        free_bytes, read_only = shutil.disk_usage(place).free, _read_only(place)
    except OSError as error:
        yield failure("disk", f"{place} cannot be looked at: {error.strerror}")
        return
    there = f"the disk of {place}"
    if read_only:
        yield failure(
            "disk",
            f"{there} is mounted read-only",
            "mount it writable, or choose another home with --home or SHOAL_HOME",
        )
        return
    make_room = "make room there, or choose a home on another disk with --home or SHOAL_HOME"
    if reason := _refuses(place):
        yield failure("disk", f"{there} takes nothing more: {reason}", make_room)
        return
    if free_bytes < DISK_LEAST_BYTES:
        yield failure(
            "disk", f"{there} is nearly full: {size_text(free_bytes)} free", make_room
        )
        return
    quota = patient.setting("blob_quota")
    used = patient.status.blob_bytes if patient.status else 0
    if isinstance(quota, int) and quota - used > free_bytes:
        yield warning(
            "disk",
            f"blobs may take {size_text(quota)}, and {there} has {size_text(free_bytes)} free",
            "set `blob_quota` to less, or make room",
        )
    else:
        yield ok("disk", f"{size_text(free_bytes)} free on {there}")


def _nearest(place: Path) -> Path:
    """The directory nearest to ``place``, on the way to it, of those that can be seen."""
    return next((d for d in (place, *place.parents) if os.path.isdir(d)), Path("/"))  # noqa: PTH112  # Path.is_dir raises where this user may not look


def _read_only(place: Path) -> bool:
    """Whether nobody can write there, the disk being mounted so."""
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _refuses(place: Path) -> str | None:
    """Why a file cannot be written there; a file system's figures leave out users' quotas."""
    if not os.access(place, os.W_OK | os.X_OK):
        return None  # the home's check says so
    try:
        with tempfile.TemporaryFile(dir=place) as file:  # without a name, gone at any end
            file.write(bytes(TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return None


def files(patient: Patient) -> Iterator[Finding]:
    """Whether the limit on open files allows as many connections as the daemon would take."""
    soft = _daemon_files(patient)
    whose = "the daemon"
    if soft is None:
        soft, whose = resource.getrlimit(resource.RLIMIT_NOFILE)[0], "a daemon started here"
        if soft == resource.RLIM_INFINITY:
            soft = 1 << 30
    if soft >= FILES_WANTED:
        yield ok("files", f"{whose} may open {soft} files")
        return
    found = failure if soft < FILES_LEAST else warning
    yield found(
        "files",
        f"the file limit is too low: {whose} may open {soft} files, and connections, blobs "
        f"and workers want {FILES_WANTED}",
        "`ulimit -n 4096` in the shell that starts it, or LimitNOFILE=4096 in its unit",
    )


def _daemon_files(patient: Patient) -> int | None:
    """The soft limit of the daemon's process, where the kernel tells."""
    if patient.status is None:
        return None
    try:
        text = Path(f"/proc/{patient.status.pid}/limits").read_text(encoding="ascii")
        (row,) = [line for line in text.splitlines() if line.startswith("Max open files")]
        soft = row.split()[3]
        return 1 << 30 if soft == "unlimited" else int(soft)
    except (OSError, ValueError, IndexError):
        return None
