"""``shoal bugreport``: one file that a user can attach to a bug, without secrets in it."""

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shoal.node.cli.checkup.patient import meet
from shoal.node.cli.checkup.report import write_report
from shoal.node.cli.doctor import findings_of, looking
from shoal.node.cli.options import Daemon
from shoal.node.cli.output import note, print_json
from shoal.node.errors import ConfigError

if TYPE_CHECKING:
    from shoal.compute.devices import Inventory


def bugreport(
    *,
    output: Path | None = None,
    with_addresses: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    daemon: Daemon | None = None,
) -> None:
    """Write what explains a fault into one file: versions, doctor's findings, the log's end.

    Keys, secrets, invitations and blobs are not in it; ids are shortened, and names and
    addresses masked. Read it before you send it all the same.

    Args:
        output: The file to write; shoal-bugreport-TIME.txt here where not given.
        with_addresses: Leave IP addresses and names of hosts as they are.
    """
    daemon = daemon or Daemon()
    path = output or Path(time.strftime("shoal-bugreport-%Y%m%d-%H%M%S.txt"))
    with os.fdopen(_new_file(path), "w", encoding="utf-8") as report:
        try:
            report.write(_report(daemon, with_addresses=with_addresses))
        except BaseException:  # also when interrupted: an empty report is none
            path.unlink(missing_ok=True)
            raise
    if daemon.as_json:
        print_json({"path": str(path)})
    else:
        print(path)
    note("keys, secrets and invitations are left out; read it before you send it to anybody")


def _report(daemon: Daemon, *, with_addresses: bool) -> str:
    patient = meet(daemon.home, daemon.socket, daemon.quiet_client)
    look = looking(daemon, patient)
    seen: list[Inventory] = []

    def look_once() -> "Inventory":
        if not seen:
            seen.append(look())
        return seen[0]

    findings = list(findings_of(patient, look_once))
    return write_report(patient, findings, look_once, with_addresses=with_addresses)


def _new_file(path: Path) -> int:
    """Before all the work: a report that cannot be written is of no use."""
    try:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"there is a file at {path} already, and it is never overwritten",
            code="file_exists",
            hint="give another with --output",
        ) from None
