"""``shoal doctor``: what keeps this node from working, and what to do about it.

The checks are `cli.checkup`'s; here they are shown.
"""

import sys
from typing import TYPE_CHECKING

import msgspec

from shoal.node.cli.checkup.findings import Finding, Verdict, summary
from shoal.node.cli.checkup.patient import Patient, meet
from shoal.node.cli.devices import look_here
from shoal.node.cli.options import Daemon
from shoal.node.cli.output import EXIT_FAILED, EXIT_OK, print_json, printable, runnable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from shoal.compute.devices import Inventory

_WAITING = "looking at the worker and at bootstrap peers; that may take some seconds …"


def doctor(*, daemon: Daemon | None = None) -> int:
    """Check this node piece by piece and say what to do next; changes nothing.

    Exits with 1 where something fails; warnings are things that you may have meant.
    """
    daemon = daemon or Daemon()
    patient = meet(daemon.home, daemon.socket, daemon.quiet_client)
    found = []
    for finding in findings_of(patient, looking(daemon, patient)):
        found.append(finding)
        if not daemon.as_json:
            _show(finding)
    if daemon.as_json:
        print_json({"checks": found, "summary": summary(found)})
    else:
        _show_waiting(show=False)
        print(printable(f"\n{summary(found)}"))
    failed = any(finding.verdict is Verdict.FAILURE for finding in found)
    return EXIT_FAILED if failed else EXIT_OK


def findings_of(patient: Patient, look: "Callable[[], Inventory]") -> "Iterator[Finding]":
    """The findings as they come, with hints that can be run as they stand."""
    from shoal.node.cli.checkup.examination import examine  # it meets peers, by Trio

    for finding in examine(patient, look):
        yield msgspec.structs.replace(finding, hint=runnable(finding.hint))


def looking(daemon: Daemon, patient: Patient) -> "Callable[[], Inventory]":
    """How to find the devices: by the daemon where one answers, else by this process."""
    from shoal.node.cli.checkup.examination import CANARY_LIMIT_S

    def look() -> "Inventory":
        if patient.status is None:
            return look_here(CANARY_LIMIT_S)
        with daemon.quiet_client() as client:
            return client.inventory()

    return look


def _show(finding: Finding) -> None:
    _show_waiting(show=False)
    print(printable(f"{finding.verdict:<8} {finding.check:<9} {finding.message}"))
    if finding.hint:
        print(printable(f"{'':18} next: {finding.hint}"))
    sys.stdout.flush()
    _show_waiting(show=True)


def _show_waiting(*, show: bool) -> None:
    """A line for the person who watches, which the next finding takes the place of."""
    if sys.stderr.isatty() and sys.stdout.isatty():
        print(f"\r\x1b[K{_WAITING if show else ''}", end="", file=sys.stderr, flush=True)
