"""``shoal jobs`` and ``shoal job``: what was submitted, and what became of it."""

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from cyclopts import App, Parameter

from shoal.node.cli.assurance import no_such_unit, print_paragraphs, print_unit, print_units
from shoal.node.cli.follow import follow
from shoal.node.cli.forget import forget
from shoal.node.cli.options import Daemon, read_time_s
from shoal.node.cli.output import (
    duration_text,
    note,
    print_json,
    print_pairs,
    print_table,
)
from shoal.node.cli.timing import print_timing
from shoal.node.cli.why import why
from shoal.node.cli.work import Format, Into, deliver
from shoal.node.errors import ConfigError, JobFailedError
from shoal.node.records import Job, Unit
from shoal.node.wording import spans

if TYPE_CHECKING:
    from shoal.node.assurance import Assurance
    from shoal.node.client import Client

_UNITS_PER_REQUEST = 1000

app = App(name="job", help="Look at one job, wait for it, fetch its outputs, or end it.")
app.command(why)
app.command(forget)


def jobs(*, limit: int = 20, daemon: Daemon | None = None) -> None:
    """List the newest jobs.

    Args:
        limit: How many at most.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        found = client.jobs(limit)
    if daemon.as_json:
        print_json({"jobs": found})
        return
    if not found:
        note("no jobs yet; `shoal run --help` shows how to submit one")
        return
    print_table(
        ("JOB", "POLICY", "STATE", "UNITS", "FAILED", "AGE", "LABEL"),
        (
            (
                job.id,
                job.policy,
                "open" if _is_open(job) else job.state,
                f"{job.units_done}/{job.units_total}",
                job.units_failed,
                duration_text(time.time() - job.created_at),
                job.label,
            )
            for job in found
        ),
    )
    if waiting := [job for job in found if _is_open(job)]:
        note(
            f"open: more units are to come, or whoever was to send them went away; then "
            f"`shoal job seal {waiting[0].id}` ends the job with the units it has, and "
            f"`shoal job cancel {waiting[0].id}` at once"
        )


@app.command
def show(
    job_id: str,
    /,
    *,
    units: int = 20,
    unit: int | None = None,
    timing: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    daemon: Daemon | None = None,
) -> None:
    """Show a job and its units: who ran them, who checked them, and what that rules out.

    Args:
        job_id: The job.
        units: How many units at most.
        unit: Tell of this unit alone: who ran it, who checked it and how, what that rules
            out, and what it does not.
        timing: With --unit: where its time went, step by step. It is kept in memory for the
            last units that this daemon handed over.
    """
    daemon = daemon or Daemon()
    if timing and unit is None:
        raise ConfigError(
            "--timing tells of one unit, and none is named", code="usage", hint="add --unit N"
        )
    with daemon.client() as client:
        job = client.job(job_id)
        first, end = (0, min(units, job.units_total)) if unit is None else (unit, unit + 1)
        if unit is not None and not 0 <= unit < job.units_total:
            raise no_such_unit(job, unit)
        if timing and unit is not None:
            told = client.timing(job_id, unit)
            print_json({"timing": told}) if daemon.as_json else print_timing(told)
            return
        found: list[Unit] = []
        assured: list[Assurance] = []
        while first + len(found) < end:
            offset = first + len(found)
            wanted = min(end - offset, _UNITS_PER_REQUEST)
            found += client.units(job_id, offset, wanted)
            assured += client.assurance(job_id, offset, wanted)[1]
        counted, _ = client.assurance(job_id, 0, 0)
    if daemon.as_json:
        checks = {**msgspec.to_builtins(counted), "summary": counted.summary}
        print_json({"job": job, "units": found, "assurance": checks, "assured": assured})
        return
    if unit is not None:
        print_unit(found[0], assured[0])
        return
    _print_job(job)
    print()
    print_units(found, assured)
    if counted.summary:
        print()
        print_paragraphs(counted.summary)
    if len(found) < job.units_total:
        note(
            f"{job.units_total - len(found)} more units: "
            f"`shoal job show {job.id} --units {job.units_total}`"
        )
    if counted.doubted:
        note(f"run just those again, each checked: `shoal job again {job.id}`")
    note(f"what that says of one unit: `shoal job show {job.id} --unit N`")


@app.command
def again(
    job_id: str,
    /,
    *,
    units: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    verify: str = "sample:1",
    daemon: Daemon | None = None,
) -> None:
    """Run units of a job once more, as a job of their own.

    Args:
        job_id: The job.
        units: Which, such as 3 5; left out: those that rest on peers that were convicted later.
            In the new job they are counted from 0, in this order.
        verify: How their results are checked, as in `shoal map`.
    """
    daemon, chosen = daemon or Daemon(), _numbers(job_id, units)
    with daemon.client() as client:
        named = chosen or client.assurance(job_id, 0, 0)[0].doubted
        job = client.again(job_id, named, verify)
    if daemon.as_json:
        print_json({"job": job, "units": named})
        return
    if len(named) == 1:
        note(f"unit {named[0]} of job {job_id} runs again as job {job.id}")
    else:
        note(f"units {spans(named)} of job {job_id} run again as job {job.id}, in this order")
    note(f"fetch them with `shoal job fetch {job.id} --output DIR`")


@app.command
def wait(job_id: str, /, *, timeout: str | None = None, daemon: Daemon | None = None) -> None:
    """Follow a job until it ends; Ctrl-C lets it go on.

    Args:
        job_id: The job.
        timeout: Time to wait, such as 90s or 2h; then exit with 5.
    """
    daemon = daemon or Daemon()
    timeout_s = None if timeout is None else read_time_s("--timeout", timeout, zero=True)
    with daemon.client() as client:
        job = follow(client, client.job(job_id), timeout_s)
    if daemon.as_json:
        print_json({"job": job})
        return
    _print_job(job)
    note(f"next: `shoal job fetch {job.id} --output DIR`")


@app.command
def fetch(
    job_id: str,
    /,
    *,
    output: Path,
    unit: int | None = None,
    file_format: Format = "npy",
    unordered: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    daemon: Daemon | None = None,
) -> None:
    """Write the outputs of a job that is done to files in a directory.

    The outputs of several units are put together along their first axis.

    Args:
        job_id: The job.
        output: The directory; it is made where it is missing.
        unit: Only this unit's outputs.
        file_format: npy: NAME.npy for each output; npz or safetensors: one file of all.
        unordered: Write rows in the order in which their units ended.
    """
    from shoal.node.cli.arrays import OutputFiles, check_directory

    check_directory(output)
    daemon = daemon or Daemon()
    with daemon.client() as client:
        job = client.job(job_id)
        if unit is None:
            job = _follow_all(client, job)
            into = Into(output, file_format, ordered=not unordered)
            deliver(client, job, into, as_json=daemon.as_json)
            return
        with OutputFiles(output, file_format) as files:
            files.append(client.outputs(job_id, unit))
            written = files.finish()
    if daemon.as_json:
        print_json({"job": job, "outputs": written})
        return
    for name, file in written.items():
        print(f"{name}  {file['dtype']}{file['shape']}  {file['path']}")


@app.command
def seal(job_id: str, /, *, daemon: Daemon | None = None) -> None:
    """Say that no more units come to an open job: it ends with those it has.

    Args:
        job_id: The job.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        job = client.seal(job_id)
    if daemon.as_json:
        print_json({"job": job})
    else:
        _print_job(job)


@app.command
def cancel(job_id: str, /, *, daemon: Daemon | None = None) -> None:
    """End a job; units that are done keep their outputs.

    Args:
        job_id: The job.
    """
    daemon = daemon or Daemon()
    with daemon.client() as client:
        before = client.job(job_id)
        job = before if before.state.final else client.cancel(job_id)
    if daemon.as_json:
        print_json({"job": job})
    else:
        _print_job(job)
    if before.state.final:
        note(f"job {job.id} had ended already; nothing was changed")


def _numbers(job_id: str, units: tuple[str, ...]) -> tuple[int, ...]:
    """The units that are named.

    Raises:
        ConfigError: ``usage``: one is no number.
    """
    for unit in units:
        if not re.fullmatch("[0-9]{1,9}", unit):
            raise ConfigError(
                f"--units: {unit[:40]!r} is not the number of a unit",
                code="usage",
                hint=f"name each one: `shoal job again {job_id} --units 0 1`",
            )
    return tuple(map(int, units))


def _follow_all(client: "Client", job: Job) -> Job:
    """As `follow`; where the job has ended without all outputs, tell how to get some."""
    try:
        return follow(client, job)
    except JobFailedError as error:
        if client.job(job.id).units_done == 0:
            raise
        raise JobFailedError(
            error.message,
            hint="units that are done can be fetched one by one: "
            f"`shoal job fetch {job.id} --output DIR --unit N`; `shoal job show {job.id}` "
            "tells which",
            code=error.code,
        ) from None


def _is_open(job: Job) -> bool:
    return job.open and not job.state.final


def _print_job(job: Job) -> None:
    ended_at = job.ended_at if job.ended_at is not None else time.time()
    pairs: list[tuple[str, object]] = [
        ("job", job.id),
        ("state", f"{job.state}, open for more units" if _is_open(job) else job.state),
        ("policy", job.policy),
        ("program", job.program),
        ("class", job.numeric_class),
        ("verify", job.verify),
        ("units", f"{job.units_done} done, {job.units_failed} failed, of {job.units_total}"),
        ("time", duration_text(ended_at - job.created_at)),
    ]
    if job.priority:
        pairs.append(("priority", job.priority))
    if job.label:
        pairs.append(("label", job.label))
    if job.failure:
        pairs.append(("failure", job.failure.message))
        if job.failure.hint:
            pairs.append(("next", job.failure.hint))
    print_pairs(pairs)
