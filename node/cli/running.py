"""``shoal reload`` and ``shoal log-level``: what can be changed of a daemon that runs."""

from shoal.node.cli.options import Daemon
from shoal.node.cli.output import note, print_json, print_pairs


def reload(*, daemon: Daemon | None = None) -> None:
    """Have the daemon read its settings again, as SIGHUP does.

    All of them count, or none: where one is in error, the daemon goes on with those that
    it has. Flags and SHOAL_* variables that it was started with stay as they are.
    """
    daemon = daemon or Daemon()
    with daemon.quiet_client() as client:
        found = client.reload()
    if daemon.as_json:
        print_json({"reload": found})
        return
    print_pairs(
        [
            ("changed", ", ".join(found.changed) or "-"),
            ("needs a restart", ", ".join(found.needs_restart) or "-"),
            ("unchanged", f"{found.unchanged} settings"),
        ]
    )
    for warning in found.warnings:
        note(f"warning: {warning}")


def log_level(
    level: str | None = None, /, *, module: str | None = None, daemon: Daemon | None = None
) -> None:
    """Show how much the daemon's log tells, or change it until `shoal reload`.

    Args:
        level: debug, info, warning or error.
        module: Change it of this module alone, such as shoal.node.membership or libp2p.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        found = client.log_level() if level is None else client.set_log_level(level, module)
    if daemon.as_json:
        print_json({"log_level": found})
        return
    configured = "" if found.level == found.configured else f" (settings: {found.configured})"
    print_pairs([("shoal", f"{found.level}{configured}"), *sorted(found.modules.items())])
