"""Checks of the daemon and what it works with: versions, worker, devices, sandbox, owner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import shoal
from shoal.node.cli.checkup.findings import (
    Finding,
    Verdict,
    failure_of,
    ok,
    warning,
    without_circle,
)
from shoal.node.cli.owner import LET_IN, nobody_served, serves_text
from shoal.protocol.limits import PROTOCOL_MAJOR, PROTOCOL_MINOR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from shoal.compute.devices import Inventory
    from shoal.node.cli.checkup.patient import Patient

_TOLD_ELSEWHERE: Final = ("executor_failed", "not_probed", "compiling", "not_used")
"""Codes of lacks that come before, that pass by themselves, or that cost nothing."""


def daemon(patient: Patient) -> Iterator[Finding]:
    """Whether a daemon answers, and is of this command's version."""
    status = patient.status
    if status is None:
        if patient.unreachable is not None:
            yield failure_of("daemon", patient.unreachable)
        return
    yield ok("daemon", f"answers on {status.socket}, process {status.pid}")
    own = f"{PROTOCOL_MAJOR}.{PROTOCOL_MINOR}"
    if (status.version, status.protocol) != (shoal.__version__, own):
        yield warning(
            "version",
            f"the daemon runs shoal {status.version} (protocol {status.protocol}), and "
            f"this command is of {shoal.__version__} (protocol {own})",
            "if you have upgraded, restart the daemon: `shoal down`, then `shoal up`",
        )
    else:
        yield ok("version", f"shoal {status.version}, protocol {status.protocol}")


def worker_and_devices(found: Inventory) -> Iterator[Finding]:
    """What runs programs here, and what its canary showed."""
    cpu = found.devices[0]
    broken = [lack for lack in cpu.missing if lack.code == "executor_failed"]
    if cpu.executors:
        by = (f"{a.runtime} ({a.numeric_class}, {a.evidence})" for a in cpu.abilities)
        yield ok("worker", f"runs programs by {', '.join(by)}")
    elif not broken:
        yield warning(
            "worker",
            "no executor has run its canary yet, so that no work is taken",
            "ask again in some seconds; see the daemon's log for the reason",
        )
    for lack in broken:
        verdict = Verdict.WARNING if cpu.executors else Verdict.FAILURE
        yield Finding("worker", verdict, lack.reason, without_circle(lack.hint))
    yield from _devices(found)


def _devices(found: Inventory) -> Iterator[Finding]:
    """Each device's driver and what uses it; kinds that are simply absent are left out."""
    for device in found.devices:
        driver = ", ".join(filter(None, (device.driver, device.driver_supports)))
        what = f"{device.id}: {device.name}" + (f", driver {driver}" if driver else "")
        if device.executors:
            sandbox = f"; sandbox: {device.sandbox}" if device.kind != "cpu" else ""
            yield ok("device", f"{what}, used by {', '.join(device.executors)}{sandbox}")
        for lack in device.missing:
            if lack.code not in _TOLD_ELSEWHERE:
                yield warning("device", f"{what}: {lack.reason}", without_circle(lack.hint))
    for missing in found.missing:
        if missing.code != "absent":
            yield warning("device", missing.reason, without_circle(missing.hint))


def sandbox(patient: Patient) -> Iterator[Finding]:
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
        yield ok("sandbox", f"strangers' work is possible ({how})")
    else:
        yield warning(
            "sandbox",
            f"strangers' work is not possible ({how})",
            "your own work, and that of peers in `allow`, runs all the same",
        )


def served(patient: Patient) -> Iterator[Finding]:
    """Whom the owner's settings let in, and whether that can work."""
    allow, deny = patient.setting("allow"), patient.setting("deny")
    both = set(allow) & set(deny) if isinstance(allow, list) and isinstance(deny, list) else ()
    for peer in sorted(both):
        yield warning(
            "serves",
            f"{peer} is on the allow list and on the deny list, which goes before",
            "take it off one of them",
        )
    owner = patient.status.owner if patient.status else None
    if owner is None:
        return
    if nobody := nobody_served(owner):
        yield warning("serves", f"nobody but this node's own user: {nobody}", LET_IN)
    else:
        yield ok("serves", serves_text(owner))
    if owner.provide and owner.serve != "friends" and not owner.sandboxed:
        yield warning(
            "serves",
            "strangers are refused: their programs run in a sandbox only, and there is none",
            'put peers whose work you want into `allow`; `serve = "friends"` if you mean it',
        )
    for stance in owner.stances:
        if not stance.peers and owner.provide:
            yield warning(
                "serves",
                f"{stance.device} takes no work of peers: {stance.sentence}",
                "`shoal resume` ends a pause" if stance.cause == "paused" else "",
            )
