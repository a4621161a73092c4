"""``shoal job forget``: let jobs go that have ended, with their results."""

from typing import Annotated

from cyclopts import Parameter

from shoal.node.cli.options import Daemon
from shoal.node.cli.output import print_json
from shoal.node.errors import ConfigError


def forget(
    *job_ids: str,
    yes: Annotated[bool, Parameter(negative="")] = False,
    daemon: Daemon | None = None,
) -> None:
    """Forget jobs that have ended, with their results and receipts, to make room.

    Args:
        job_ids: The jobs, one or more.
        yes: Forget results that nobody has fetched, too.

    Raises:
        ConfigError: ``usage``: no job is named.
    """
    if not job_ids:
        raise ConfigError(
            "no job is named",
            code="usage",
            hint="`shoal jobs` lists them; then `shoal job forget JOB`",
        )
    daemon = daemon or Daemon()
    forgotten = []
    with daemon.client() as client:
        for job_id in job_ids:
            forgotten.append(client.forget(job_id, unfetched_too=yes))
            if not daemon.as_json:
                print(f"forgot {job_id}")
    if daemon.as_json:
        print_json({"jobs": forgotten})
