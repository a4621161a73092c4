"""``shoal doctor``: what keeps this node from working, and what to do about it.

Each check looks at one thing and yields what it found; none changes anything.
"""

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from shoal.crypto import identity
from shoal.crypto.errors import ShoalError
from shoal.node.cli.devices import look_here
from shoal.node.cli.options import Daemon
from shoal.node.cli.output import EXIT_FAILED, EXIT_OK, network_text, print_json, runnable
from shoal.node.cli.owner import serves_text
from shoal.node.config import Config, load, unknown_variables
from shoal.node.records import Status
from shoal.node.swarm_key import PUBLIC, load_key

if TYPE_CHECKING:
    from shoal.compute.devices import Inventory

_TOLD_ELSEWHERE = ("executor_failed", "not_probed", "compiling")
"""Codes of lacks that come before, or that pass by themselves."""


class Verdict(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


class Finding(msgspec.Struct, frozen=True):
    """What one check found, and the next step where there is one."""

    check: str
    verdict: Verdict
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class _Patient:
    """What the checks look at; ``status`` is None where no daemon answers."""

    config: Config
    daemon: Daemon
    status: Status | None
    unreachable: ShoalError | None


def doctor(*, daemon: Daemon | None = None) -> int:
    """Check this node piece by piece and say what to do next; changes nothing.

    Exits with 1 where something fails; warnings are things that you may have meant.
    """
    daemon = daemon or Daemon()
    findings = [
        msgspec.structs.replace(finding, hint=runnable(finding.hint))
        for finding in _examine(daemon)
    ]
    if daemon.as_json:
        print_json({"checks": findings})
    else:
        for finding in findings:
            print(f"{finding.verdict:<8} {finding.check:<9} {finding.message}")
            if finding.hint:
                print(f"{'':18} next: {finding.hint}")
    failed = any(finding.verdict is Verdict.FAILURE for finding in findings)
    return EXIT_FAILED if failed else EXIT_OK


def _examine(daemon: Daemon) -> Iterator[Finding]:
    try:
        config = load({"home": daemon.home, "socket": daemon.socket})
    except ShoalError as error:
        yield _failure("settings", error)
        yield from _daemon(*_ask(daemon))
        return
    patient = _Patient(config, daemon, *_ask(daemon))
    for check in _CHECKS:
        yield from check(patient)


def _ask(daemon: Daemon) -> tuple[Status | None, ShoalError | None]:
    """How the daemon is, or why it does not say."""
    try:
        with daemon.quiet_client() as client:
            return client.status(), None
    except ShoalError as error:
        return None, error


def _settings(patient: _Patient) -> Iterator[Finding]:
    path = patient.config.file_path
    where = str(path) if path.exists() else "defaults; there is no settings file"
    yield Finding("settings", Verdict.OK, where)
    for variable in unknown_variables():
        yield Finding(
            "settings",
            Verdict.WARNING,
            f"nothing reads the variable {variable}",
            "`shoal up --help` lists those that are read",
        )


def _home(patient: _Patient) -> Iterator[Finding]:
    home = patient.config.home
    if not home.exists():
        yield Finding("home", Verdict.WARNING, f"{home} is not there yet", "run `shoal init`")
    elif not home.is_dir() or not os.access(home, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            "home",
            Verdict.FAILURE,
            f"{home} is not writable for this user",
            "choose another with --home or SHOAL_HOME",
        )
    else:
        yield Finding("home", Verdict.OK, str(home))


def _key(patient: _Patient) -> Iterator[Finding]:
    try:
        yield Finding("key", Verdict.OK, identity.load(patient.config.key_path).peer_id)
    except ShoalError as error:
        if error.code == "key_missing":
            yield Finding("key", Verdict.WARNING, error.message, error.hint)
        else:
            yield _failure("key", error)


def _network(patient: _Patient) -> Iterator[Finding]:
    try:
        key = load_key(patient.config.swarm_key_path)
    except ShoalError as error:
        yield _failure("network", error)
        return
    name, fingerprint = (key.name, key.fingerprint) if key else (PUBLIC, "")
    status = patient.status
    if status is not None and status.network_fingerprint != fingerprint:
        yield Finding(
            "network",
            Verdict.WARNING,
            f"the daemon is in {network_text(status.network, status.network_fingerprint)}, and "
            f"its next start will be in {network_text(name, fingerprint)}",
            "restart it: `shoal down`, then `shoal up`",
        )
    else:
        yield Finding("network", Verdict.OK, network_text(name, fingerprint))


def _clock(_patient: _Patient) -> Iterator[Finding]:
    installed_at = Path(__file__).stat().st_mtime
    if time.time() < installed_at:
        yield Finding(
            "clock",
            Verdict.FAILURE,
            "this machine's clock shows a time before shoal was installed",
            "set the clock, best by NTP: peers refuse statements from far away times",
        )
    else:
        yield Finding("clock", Verdict.OK, time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _daemon(status: Status | None, unreachable: ShoalError | None) -> Iterator[Finding]:
    if status is not None:
        yield Finding("daemon", Verdict.OK, f"answers on {status.socket}, process {status.pid}")
    elif unreachable is not None:
        yield _failure("daemon", unreachable)


def _daemon_asked(patient: _Patient) -> Iterator[Finding]:
    yield from _daemon(patient.status, patient.unreachable)


def _port(patient: _Patient) -> Iterator[Finding]:
    if patient.status is not None:
        for address in patient.status.addresses:
            yield Finding("port", Verdict.OK, f"listening on {address}")
        return
    for address in patient.config.listen:
        _, family, host, _, port = address.split("/")
        kind = socket.AF_INET6 if family == "ip6" else socket.AF_INET
        with contextlib.closing(socket.socket(kind)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, int(port)))
            except OSError as error:
                yield Finding(
                    "port",
                    Verdict.FAILURE,
                    f"{address} cannot be listened on: {error.strerror}",
                    "choose another with `listen` in the settings file or --listen",
                )
            else:
                yield Finding("port", Verdict.OK, f"{address} is free")


def _worker_and_devices(patient: _Patient) -> Iterator[Finding]:
    try:
        found = _inventory(patient)
    except ShoalError as error:
        yield _failure("worker", error)
        return
    cpu = found.devices[0]
    broken = [lack for lack in cpu.missing if lack.code == "executor_failed"]
    if cpu.executors:
        by = (f"{a.runtime} ({a.numeric_class}, {a.evidence})" for a in cpu.abilities)
        yield Finding("worker", Verdict.OK, f"runs programs by {', '.join(by)}")
    elif not broken:
        yield Finding(
            "worker",
            Verdict.WARNING,
            "no executor has run its canary yet, so that no work is taken",
            "ask again in some seconds; see the daemon's log for the reason",
        )
    for lack in broken:
        verdict = Verdict.WARNING if cpu.executors else Verdict.FAILURE
        yield Finding("worker", verdict, lack.reason, lack.hint)
    yield from _devices(found)


def _devices(found: "Inventory") -> Iterator[Finding]:
    """Each device's driver and what uses it; kinds that are simply absent are left out."""
    for device in found.devices:
        driver = ", ".join(filter(None, (device.driver, device.driver_supports)))
        what = f"{device.id}: {device.name}" + (f", driver {driver}" if driver else "")
        if device.executors:
            yield Finding(
                "device", Verdict.OK, f"{what}, used by {', '.join(device.executors)}"
            )
        for lack in device.missing:
            if lack.code not in _TOLD_ELSEWHERE:
                yield Finding("device", Verdict.WARNING, f"{what}: {lack.reason}", lack.hint)
    for missing in found.missing:
        if missing.code != "absent":
            yield Finding("device", Verdict.WARNING, missing.reason, missing.hint)


def _inventory(patient: _Patient) -> "Inventory":
    if patient.status is None:
        return look_here()
    with patient.daemon.client() as client:
        return client.inventory()


def _sandbox(patient: _Patient) -> Iterator[Finding]:
    """What this kernel offers, and whether the daemon's worker is locked in by it."""
    from shoal.compute.sandbox import features, strangers_welcome

    found = features()
    for feature in found:
        verdict = Verdict.OK if feature.offered else Verdict.WARNING
        yield Finding("sandbox", verdict, f"{feature.name}: {feature.message}", feature.hint)
    possible, how = strangers_welcome(found), "as far as this kernel goes"
    if patient.status is not None:
        possible, how = (
            patient.status.sandboxed,
            f"the worker's sandbox: {patient.status.sandbox}",
        )
    if possible:
        yield Finding("sandbox", Verdict.OK, f"strangers' work is possible ({how})")
    else:
        yield Finding(
            "sandbox",
            Verdict.WARNING,
            f"strangers' work is not possible ({how})",
            "your own work, and that of peers in `allow`, runs all the same",
        )


def _served(patient: _Patient) -> Iterator[Finding]:
    both = set(patient.config.allow) & set(patient.config.deny)
    for peer in sorted(both):
        yield Finding(
            "serves",
            Verdict.WARNING,
            f"{peer} is on the allow list and on the deny list, which goes before",
            "take it off one of them",
        )
    owner = patient.status.owner if patient.status else None
    if owner is None:
        return
    yield Finding("serves", Verdict.OK, serves_text(owner))
    if owner.provide and owner.serve == "anyone" and not owner.sandboxed:
        yield Finding(
            "serves",
            Verdict.WARNING,
            "strangers are refused: their programs run in a sandbox only, and there is none",
            'put peers whose work you want into `allow`; `serve = "friends"` if you mean it',
        )
    for stance in owner.stances:
        if not stance.peers and owner.provide:
            yield Finding(
                "serves",
                Verdict.WARNING,
                f"{stance.device} takes no work of peers: {stance.sentence}",
                "`shoal resume` ends a pause" if stance.cause == "paused" else "",
            )


def _peers(patient: _Patient) -> Iterator[Finding]:
    if patient.status is None:
        return
    linked, known = patient.status.peers_linked, patient.status.peers_known
    if linked:
        yield Finding("peers", Verdict.OK, f"{linked} linked, {known} known")
    elif patient.config.bootstrap or _bootstrap_of_network(patient):
        yield Finding(
            "peers",
            Verdict.FAILURE,
            "no bootstrap peer is linked",
            "are their addresses right, and is their port open? See the daemon's log",
        )
    else:
        yield Finding(
            "peers",
            Verdict.WARNING,
            "this node is alone: no bootstrap peer is set",
            "set `bootstrap`, or give this node's address to others",
        )


def _bootstrap_of_network(patient: _Patient) -> tuple[str, ...]:
    with contextlib.suppress(ShoalError):
        key = load_key(patient.config.swarm_key_path)
        return key.bootstrap if key else ()
    return ()


def _failure(check: str, error: ShoalError) -> Finding:
    return Finding(check, Verdict.FAILURE, error.message, error.hint)


_CHECKS: tuple[Callable[[_Patient], Iterator[Finding]], ...] = (
    _settings,
    _home,
    _key,
    _network,
    _clock,
    _daemon_asked,
    _port,
    _worker_and_devices,
    _sandbox,
    _served,
    _peers,
)
