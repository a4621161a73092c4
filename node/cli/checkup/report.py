"""The report that a user attaches to a bug: everything that explains, nothing that harms.

Each section is made by itself, and one that fails says so in its place: what is most
wanted is the report of a node that is broken. All of it goes through `scrub` at the end.
"""

from __future__ import annotations

import getpass
import os
import platform
import resource
import socket
import sys
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

import shoal
from shoal.crypto.errors import ShoalError
from shoal.node.cli.checkup.findings import summary
from shoal.node.cli.checkup.scrub import Scrubber, words_of
from shoal.node.settings import SETTINGS
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from shoal.compute.devices import Inventory
    from shoal.node.cli.checkup.findings import Finding
    from shoal.node.cli.checkup.patient import Patient

LOG_LIMIT_BYTES: Final = 64 << 10
"""Of the log's end: some hundred lines."""

LOG_LINES_LIMIT: Final = 300
PEERS_LIMIT: Final = 100
_SECRET_FILE_LIMIT_BYTES: Final = 64 << 10
_SECRET_FILES_LIMIT: Final = 64
_PACKAGES: Final = (
    *("libp2p", "trio", "multiaddr", "msgspec", "msgpack", "cryptography", "hypercorn"),
    *("numpy", "numba", "onnx", "onnxruntime", "torch", "psutil", "zeroconf", "dnspython"),
)
_SECRET_FILES: Final = ("identity.key*", "swarm.key*")
"""Those of now, and those that were put aside."""


def write_report(
    patient: Patient,
    findings: Sequence[Finding],
    look: Callable[[], Inventory],
    *,
    with_addresses: bool,
) -> str:
    """The whole report as text, scrubbed."""
    sections: tuple[tuple[str, Callable[[], Iterator[str]]], ...] = (
        ("versions", _versions),
        ("doctor", lambda: _doctor(findings)),
        ("settings in force", lambda: _settings(patient)),
        ("environment", _environment),
        ("status", lambda: _status(patient)),
        ("peers", lambda: _peers(patient)),
        ("devices", lambda: _devices(look)),
        ("sandbox", _sandbox),
        ("limits", lambda: _limits(patient)),
        ("files of the home", lambda: _home(patient)),
        ("log", lambda: _log(patient)),
    )
    lines = ["shoal bug report", f"made at {time.strftime('%Y-%m-%d %H:%M:%S %z')}"]
    for title, make in sections:
        lines += ["", f"== {title}"]
        try:
            lines += make()
        except Exception as error:  # noqa: BLE001  # root of a section: the others are wanted all the same
            lines.append(f"(not to be had: {type(error).__name__}: {error})")
    scrubber = scrubber_of(patient, with_addresses=with_addresses)
    return scrubber.scrub("\n".join(lines)) + "\n"


def scrubber_of(patient: Patient, *, with_addresses: bool) -> Scrubber:
    """What knows the secrets of this home, and the words that are personal on this machine."""
    secrets: list[bytes] = []
    for directory in {patient.home, patient.place.home}:
        with suppress(OSError):  # a home that this user may not enter
            found = [path for each in _SECRET_FILES for path in sorted(directory.glob(each))]
            for path in found[:_SECRET_FILES_LIMIT]:
                with suppress(OSError):
                    secrets += _secrets_in(path.read_bytes()[:_SECRET_FILE_LIMIT_BYTES])
    user = ""
    with suppress(OSError, KeyError):
        user = getpass.getuser()
    named = [str(patient.setting("name") or "")]
    if not with_addresses and (announced := patient.setting("bulk_announce")):
        named.append(str(announced[0] if isinstance(announced, list | tuple) else announced))
    return Scrubber(
        secrets=tuple(dict.fromkeys(secrets)),
        words=words_of(user, str(Path.home()), socket.gethostname(), named),
        with_addresses=with_addresses,
    )


def _secrets_in(data: bytes) -> Iterator[bytes]:
    """What of a secret file must not be told: all of it, its key, and its long lines."""
    seed_size_bytes = 32
    yield data
    if len(data) <= 64:
        yield data[-seed_size_bytes:]
    for line in data.splitlines():
        if len(line) >= seed_size_bytes and not line.startswith((b"/key/", b"bootstrap ")):
            yield line
            with suppress(ValueError):
                yield bytes.fromhex(line.decode("ascii", "replace"))


# --- sections ---------------------------------------------------------------------


def _versions() -> Iterator[str]:
    yield f"shoal {shoal.__version__}, protocol {PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
    yield f"Python {sys.version.split()[0]} ({platform.python_implementation()})"
    yield f"kernel {platform.system()} {platform.release()} {platform.machine()}"
    with suppress(OSError):
        yield f"distribution {platform.freedesktop_os_release().get('PRETTY_NAME', '?')}"
    yield f"C library {' '.join(platform.libc_ver())}"
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            yield f"{name} {version(name)}"


def _doctor(findings: Sequence[Finding]) -> Iterator[str]:
    for each in findings:
        yield f"{each.verdict:<8} {each.check:<12} {each.message}"
        if each.hint:
            yield f"{'':21} next: {each.hint}"
    yield summary(findings)


def _settings(patient: Patient) -> Iterator[str]:
    running = patient.running is not None
    yield "of the daemon that runs" if running else "as a start would read them"
    for each in patient.effective:
        value = "(set)" if each.name == "name" and each.value else _json(each.value)
        yield f"{each.name} = {value}  ({each.source})"
    if patient.complaint is not None:
        yield f"(they cannot be read: {patient.complaint.message})"


def _environment() -> Iterator[str]:
    """Variables that are settings, whose values are above, and names of other SHOAL_ ones."""
    known = {setting.variable for setting in SETTINGS}
    for name in sorted(name for name in os.environ if name.startswith("SHOAL_")):
        yield f"{name} is set" if name in known else f"{name} is set, and nothing reads it"


def _status(patient: Patient) -> Iterator[str]:
    if patient.status is None:
        why = patient.unreachable.message if patient.unreachable else "nobody was asked"
        yield f"(no daemon answers: {why})"
        return
    for name, value in msgspec.structs.asdict(patient.status).items():
        yield f"{name} = {_json(value)}"


def _peers(patient: Patient) -> Iterator[str]:
    if patient.status is None:
        yield "(no daemon answers)"
        return
    yield f"{len(patient.peers)} known"
    for view in patient.peers[:PEERS_LIMIT]:
        told = msgspec.to_builtins(view)
        told.pop("claims", None)
        yield _json(told)


def _devices(look: Callable[[], Inventory]) -> Iterator[str]:
    try:
        found = look()
    except ShoalError as error:
        yield f"(not to be had: {error.message})"
        return
    for device in found.devices:
        told = msgspec.to_builtins(device)
        told.pop("uuid", None)  # a number that follows the machine round
        yield _json(told)
    for lack in found.missing:
        yield _json(lack)


def _sandbox() -> Iterator[str]:
    from shoal.compute.sandbox import features

    for feature in features():
        yield f"{feature.name}: {feature.message}"


def _limits(patient: Patient) -> Iterator[str]:
    yield f"open files here: {resource.getrlimit(resource.RLIMIT_NOFILE)}"
    yield f"cores {os.cpu_count()}, usable {len(os.sched_getaffinity(0))}"
    if patient.status is not None:
        yield "of the daemon's process:"
        yield Path(f"/proc/{patient.status.pid}/limits").read_text(encoding="ascii").rstrip()


def _home(patient: Patient) -> Iterator[str]:
    """Names, modes and sizes; of what is in the files, nothing."""
    yield str(patient.home)
    for path in sorted(patient.home.iterdir())[:50]:
        with suppress(OSError):
            found = path.lstat()
            yield f"{found.st_mode:06o} {found.st_size:>12} {path.name}"


def _log(patient: Patient) -> Iterator[str]:
    path = Path(str(patient.setting("log_file") or patient.home / "daemon.log"))
    try:
        with path.open("rb") as file:
            before = max(0, path.stat().st_size - LOG_LIMIT_BYTES)
            file.seek(before)
            lines = file.read(LOG_LIMIT_BYTES).decode(errors="replace").splitlines()
    except FileNotFoundError:
        yield (
            f"(there is none at {path}: add the end of what your terminal or "
            "`journalctl -u shoal` shows, and read it first)"
        )
        return
    if before:
        del lines[:1]  # half a line, of which a secret might not be told by its other half
    yield from lines[-LOG_LINES_LIMIT:]


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
