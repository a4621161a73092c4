"""``shoal run`` and ``shoal map``: a model and arrays in, arrays out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from shoal.crypto.errors import ShoalError
from shoal.node.cli.arrays import OutputFiles, check_directory, read_inputs
from shoal.node.cli.follow import DetachedError, follow, interruptible, progress_bar
from shoal.node.cli.options import Daemon, read_time_s
from shoal.node.cli.output import note, print_json
from shoal.node.errors import ConfigError
from shoal.node.records import JOB_ID_PATTERN, PRIORITY_LIMIT, Job, Policy, new_job_id
from shoal.node.setting_values import read_size_bytes
from shoal.protocol.limits import UNIT_TIME_LIMIT_S

if TYPE_CHECKING:
    import numpy as np

    from shoal.node.client import Client

_NAME_FILE = (
    "NAME=FILE for each input of the model, an .npy, .npz or .safetensors file; or one "
    ".npz or .safetensors file with all of them."
)
_PREVIEW_ELEMENTS = 8

Format = Annotated[Literal["npy", "npz", "safetensors"], Parameter(name="--format")]
Inputs = Annotated[list[str], Parameter(name="--input", negative="", help=_NAME_FILE)]


@Parameter(name="*", group="Limits")
class Limits:
    """How units are to be run."""

    def __init__(
        self,
        *,
        numeric_class: Annotated[
            str | None,
            Parameter(
                name="--class",
                help="Numeric class of the results: fp32, exact, or low (GPUs only). "
                "Without it the program's own: fp32, where it has no precision.",
            ),
        ] = None,
        precision: Annotated[
            str | None, Parameter(help="Of the class exact: x20 (the default), x16 or x8.")
        ] = None,
        label: Annotated[str, Parameter(help="Free text to know the job by.")] = "",
        time_limit: Annotated[
            str, Parameter(help="Time that a unit may take, such as 90s or 2h.")
        ] = "5m",
        memory_limit: Annotated[
            str, Parameter(help="Memory that a unit may use, such as 8GB.")
        ] = "1GiB",
        timeout: Annotated[
            str | None,
            Parameter(help="Time to wait for results, such as 90s; then exit with 5."),
        ] = None,
        priority: Annotated[
            int,
            Parameter(
                help="From -4 to 4: each step doubles the job's share beside your other jobs."
            ),
        ] = 0,
        fail_fast: Annotated[
            bool,
            Parameter(
                negative="",
                show_default=False,
                help="Fail where nobody takes the job at the first call, instead of waiting.",
            ),
        ] = False,
        outputs_stay: Annotated[
            bool,
            Parameter(
                negative="",
                show_default=False,
                help="Leave outputs with the peers that made them until they are fetched.",
            ),
        ] = False,
        verify: Annotated[
            str,
            Parameter(
                help="How results are checked: receipt, quorum:K, sample:P or auto. What this "
                "node runs itself needs no check, and stands in place of a quorum.",
            ),
        ] = "auto",
        proofs: Annotated[
            str,
            Parameter(
                help="Who gets a proof of a false result, which shows program and inputs of "
                "its unit: public (everybody, who then bans the liar too) or private (this "
                "node alone bans it). For --class exact.",
            ),
        ] = "public",
        job_id: Annotated[
            str | None,
            Parameter(
                help="The job's id, of your own choice: 27 hexadecimal digits. What is "
                "submitted again unchanged under the same one is the same job.",
            ),
        ] = None,
    ) -> None:
        from shoal.compute.exact.spec import PRECISIONS
        from shoal.node.client.flows import OFFERED_CLASSES

        if numeric_class is not None and numeric_class not in OFFERED_CLASSES:
            raise ConfigError(
                f"--class: nothing runs a numeric class {numeric_class!r}",
                code="usage",
                hint=f"there is {', '.join(OFFERED_CLASSES)}",
            )
        if not -PRIORITY_LIMIT <= priority <= PRIORITY_LIMIT:
            raise ConfigError(
                f"--priority: {priority} is not from {-PRIORITY_LIMIT} to {PRIORITY_LIMIT}",
                code="usage",
                hint="0 is what jobs have that say nothing",
            )
        time_limit_s = read_time_s("--time-limit", time_limit, limit_s=UNIT_TIME_LIMIT_S)
        self.timeout_s = (
            None if timeout is None else read_time_s("--timeout", timeout, zero=True)
        )
        self.precision = precision or ("x20" if numeric_class == "exact" else None)
        try:
            memory_limit_bytes = read_size_bytes(memory_limit)
        except ValueError as error:
            raise ConfigError(
                f"--memory-limit: {memory_limit!r} {error}",
                code="usage",
                hint="for example --memory-limit 16GiB, or 512MiB",
            ) from None
        fits = numeric_class in {None, "exact"} and precision in PRECISIONS
        if precision is not None and not fits:
            raise ConfigError(
                f"--precision: {precision!r} does not fit --class {numeric_class or 'exact'}",
                code="usage",
                hint=f"--class exact --precision {'|'.join(PRECISIONS)}",
            )
        checked_class = numeric_class or ("exact" if precision else "fp32")
        self.options: dict[str, Any] = {
            "numeric_class": numeric_class,
            "precision": precision,
            "label": label,
            "time_limit_s": time_limit_s,
            "memory_limit_bytes": memory_limit_bytes,
            "priority": priority,
            "fail_fast": fail_fast,
            "outputs_stay": outputs_stay,
            "verify": _checked_verify(verify),
            "proofs": _checked_proofs(proofs, checked_class, verify),
            "id": new_job_id() if job_id is None else _checked_id(job_id),
        }
        self.names_job = job_id is not None


def _checked_verify(text: str) -> str:
    """What ``--verify`` says, once it is known to say something.

    Raises:
        ConfigError: ``usage``.
    """
    from shoal.protocol.errors import LocalProtocolError
    from shoal.protocol.verification.policy import Verify

    try:
        return str(Verify.parse(text))
    except LocalProtocolError as error:
        raise ConfigError(f"--verify: {error.message}", code="usage", hint=error.hint) from None


def _checked_proofs(text: str, numeric_class: str, verify: str) -> str:
    """What ``--proofs`` says, once it fits the job.

    Raises:
        ConfigError: ``usage``.
    """
    from shoal.protocol.errors import LocalProtocolError
    from shoal.protocol.verification.policy import Verify, check_proofs

    try:
        check_proofs(text, numeric_class, Verify.parse(verify))
    except LocalProtocolError as error:
        raise ConfigError(f"--proofs: {error.message}", code="usage", hint=error.hint) from None
    return text


def _checked_id(text: str) -> str:
    if re.fullmatch(JOB_ID_PATTERN, text) is None:
        raise ConfigError(
            f"--job-id: {text[:40]!r} is no id of a job",
            code="usage",
            hint=f"27 hexadecimal digits, such as {new_job_id()}",
        )
    return text


def run(
    model: str,
    /,
    *,
    inputs: Inputs,
    output: Path | None = None,
    file_format: Format = "npy",
    detach: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    limits: Limits | None = None,
    daemon: Daemon | None = None,
) -> None:
    """Run an ONNX model once and show or save its outputs.

    Ctrl-C lets the job go on without you and says how to come back.

    Args:
        model: An ONNX file, a .kernel file (docs/KERNELS.md), or the id of a program that
            the daemon holds.
        output: Directory to write the outputs to.
        file_format: npy: a file for each output; npz or safetensors: one file of all.
        detach: Submit the job, print its id and return.
    """
    daemon, limits = daemon or Daemon(), limits or Limits()
    check_directory(output)
    arrays = read_inputs(inputs)
    with daemon.client() as client:
        with _handing_over(client, limits):
            job = client.submit(model, [arrays], policy=Policy.RUN, **limits.options)
        if detach:
            _print_submitted(job, daemon)
            return
        job = follow(client, job, limits.timeout_s)
        deliver(client, job, Into(output, file_format), as_json=daemon.as_json)


def map_(
    model: str,
    /,
    *,
    inputs: Inputs,
    batch: int = 1,
    output: Path | None = None,
    file_format: Format = "npy",
    unordered: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    detach: Annotated[bool, Parameter(negative="", show_default=False)] = False,
    limits: Limits | None = None,
    daemon: Daemon | None = None,
) -> None:
    """Run an ONNX model over many rows, on many nodes at once.

    All inputs are cut along their first axis into units of --batch rows; the
    outputs are put together again in order. Inputs are never loaded whole.

    Args:
        model: An ONNX file, a .kernel file (docs/KERNELS.md), or the id of a program that
            the daemon holds.
        batch: Rows in one unit.
        output: Directory to write the outputs to.
        file_format: npy: a file for each output; npz or safetensors: one file of all.
        unordered: Write rows in the order in which their units ended.
        detach: Submit the job, print its id and return.
    """
    from shoal.node.client.batching import check_batch

    daemon, limits = daemon or Daemon(), limits or Limits()
    if batch < 1:
        raise ConfigError(
            f"--batch: a unit of {batch} rows holds nothing", code="usage", hint="1 or more"
        )
    check_directory(output)
    arrays = read_inputs(inputs)
    with daemon.client() as client:
        prepared = client.prepare(model, limits.precision)
        check_batch(prepared.manifest, arrays, batch)
        with _handing_over(client, limits):
            job = client.submit(prepared, _uploading(arrays, batch), **limits.options)
        if detach:
            _print_submitted(job, daemon)
            return
        job = follow(client, job, limits.timeout_s)
        into = Into(output, file_format, ordered=not unordered)
        deliver(client, job, into, as_json=daemon.as_json)


@dataclass(frozen=True, slots=True)
class Into:
    """Where outputs go: a directory or, where there is none, the terminal."""

    directory: Path | None
    file_format: str = "npy"
    ordered: bool = True


def deliver(client: "Client", job: Job, into: Into, *, as_json: bool) -> None:
    """Fetch what a done job gave: into files, or to show it.

    Raises:
        DetachedError: The user pressed Ctrl-C.
    """
    output = into.directory
    if output is not None:
        again = f"fetch them with `shoal job fetch {job.id} --output DIR`"
        with (
            interruptible(f"stopped; the outputs of job {job.id} are kept", again),
            OutputFiles(output, into.file_format, job_id=job.id) as files,
            progress_bar("fetching", job.units_total) as show,
        ):
            results = client.results(job.id, ordered=into.ordered)
            for number, found in enumerate(results, start=1):
                files.append(found)
                show(number)
            written = files.finish()
    elif job.policy is Policy.RUN:
        arrays = next(client.results(job.id))
        written = {
            name: {"dtype": array.dtype.name, "shape": list(array.shape)}
            for name, array in arrays.items()
        }
    else:
        written = {}
    if as_json:
        print_json({"job": job, "outputs": written})
        return
    if output is not None:
        for name, file in written.items():
            print(f"{name}  {file['dtype']}{file['shape']}  {file['path']}")
    elif job.policy is Policy.RUN:
        for name, array in arrays.items():
            print(f"{name}  {array.dtype.name}{list(array.shape)}  {_preview(array)}")
    note(f"job {job.id}: {job.units_done} of {job.units_total} units done")
    _note_own_runs(client, job)
    if output is None:
        note(f"next: `shoal job fetch {job.id} --output DIR` writes the outputs to files")


def _note_own_runs(client: "Client", job: Job) -> None:
    """Say where this node ran units in place of the quorum that was asked for."""
    if job.verify.startswith("quorum:"):
        counted, _ = client.assurance(job.id, 0, 0)
        if counted.below_quorum:
            note(f"{counted.own_runs}; `shoal job show {job.id}` tells which")


@contextmanager
def _handing_over(client: "Client", limits: Limits) -> Iterator[None]:
    """Let nothing go on of a job that is handed over when Ctrl-C comes.

    It may be written down by then, without anybody having heard of it: so it is cancelled by
    the id that was chosen for it. One whose id the user named may have run before: it is let
    be.

    Raises:
        DetachedError: The user pressed Ctrl-C.
    """
    job_id = limits.options["id"]
    try:
        yield
    except KeyboardInterrupt:
        if limits.names_job:
            raise DetachedError(
                f"stopped while job {job_id} was handed over; what is there of it is let be, "
                "since it may have been there before",
                hint=f"`shoal job cancel {job_id}` ends it; the same command again goes on "
                "with it, or hands it over",
            ) from None
        raise _stopped(client, job_id) from None


def _stopped(client: "Client", job_id: str) -> DetachedError:
    hint = f"`shoal job show {job_id}` shows it; --detach hands over and returns"
    try:
        client.cancel(job_id)
    except ShoalError as error:
        if error.code != "no_such_job":
            return DetachedError(
                f"stopped; job {job_id} may have been handed over, and go on: {error.message}",
                hint=f"`shoal job show {job_id}` tells, `shoal job cancel {job_id}` ends it",
            )
        hint = "`shoal jobs` lists what there is; --detach hands over and returns"
        return DetachedError(
            f"stopped before job {job_id} was handed over; nothing of it goes on", hint=hint
        )
    return DetachedError(
        f"stopped while job {job_id} was handed over; it is cancelled, and nothing of it goes "
        "on",
        hint=hint,
    )


def _uploading(
    arrays: "dict[str, np.ndarray]", batch: int
) -> "Iterator[dict[str, np.ndarray]]":
    from shoal.node.client.batching import batches

    rows = max((len(array) for array in arrays.values() if array.ndim), default=0)
    with progress_bar("uploading", -(-rows // max(batch, 1))) as show:
        for number, unit in enumerate(batches(arrays, batch)):
            show(number)
            yield unit


def _print_submitted(job: Job, daemon: Daemon) -> None:
    if daemon.as_json:
        print_json({"job": job})
    else:
        print(job.id)
        note(f"next: `shoal job wait {job.id}`")


def _preview(array: "np.ndarray") -> str:
    import numpy as np

    return np.array2string(
        array.reshape(-1), threshold=_PREVIEW_ELEMENTS, edgeitems=3, max_line_width=1000
    )
