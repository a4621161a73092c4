"""What each call of a client says to the daemon, step by step and with no IO.

First step of the data path, *submit*: a model becomes a program here, in the
submitter's own process, and arrays become tensor blobs. Last step, *deliver*:
blobs become arrays.
"""

from __future__ import annotations

import re
import time
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import msgspec

from shoal.compute.devices import Device, Inventory
from shoal.compute.errors import ProgramError
from shoal.compute.executors.base import NumericClass
from shoal.compute.manifest import Manifest, check_inputs, decode
from shoal.compute.tensor import from_blob, spec_of_array, to_blob
from shoal.crypto.content import BlobId, blob_id_of
from shoal.node.capability_views import CapabilityView, ChallengeView
from shoal.node.causes import Explanation
from shoal.node.client.batching import batches, check_batch
from shoal.node.client.exchange import Flow, Request, Value, Work
from shoal.node.errors import JobFailedError, WaitTimeoutError
from shoal.node.records import (
    Answer,
    CutView,
    Failure,
    Job,
    JobSpec,
    JobState,
    LogLevelView,
    MisfitView,
    OwnerView,
    PeerView,
    Policy,
    ReloadView,
    Status,
    Unit,
    UnitState,
)
from shoal.node.settings_view import SettingView

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np
    import onnx
    from numpy.typing import ArrayLike

    from shoal.compute.convert import Program

Model: TypeAlias = "str | Path | bytes | onnx.ModelProto | Prepared"
"""A path, an ONNX file's bytes, a loaded model, a program id, or a prepared program."""

_HEAD_FROM_BYTES = 64 << 10
"""Smaller blobs are sent without asking first whether the daemon holds them."""

_STATUS_LIMIT_S = 10.0
_UPLOAD_LIMIT_S = 600.0
_CHALLENGE_LIMIT_S = 120.0
"""Those before it, the dial, the chain at its slowest, and this node's own worker."""
_WAIT_STEP_S = 30.0
_POLL_S = 0.2
DEFAULT_PRECISION = "x20"
_UNITS_PER_REQUEST = 100


NUMERIC_CLASSES = tuple(numeric_class.value for numeric_class in NumericClass)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the units of a job are to be run: the fields of `JobSpec`, and ``precision``.

    ``precision`` belongs to the class ``exact``: ``x20``, ``x16`` or ``x8``. It is
    part of the program, so a program that is prepared already keeps its own.
    """

    numeric_class: str = NumericClass.FP32.value
    precision: str | None = None
    label: str = ""
    time_limit_s: float = 300.0
    memory_limit_bytes: int = 1 << 30


class Prepared(msgspec.Struct, frozen=True):
    """A program that the daemon holds, ready for any number of jobs."""

    program_id: BlobId
    manifest: Manifest


def status() -> Flow[Status]:
    """How the daemon is."""
    request = Request("GET", "/v1/status", answer_limit_s=_STATUS_LIMIT_S)
    return msgspec.convert((yield from _json(request)), Status)


def settings() -> Flow[list[SettingView]]:
    """The settings that the daemon runs with."""
    return (yield from _get("/v1/settings", "settings", list[SettingView]))


def peers() -> Flow[list[PeerView]]:
    """The nodes whose adverts are valid now."""
    return (yield from _get("/v1/peers", "peers", list[PeerView]))


def misfits() -> Flow[list[MisfitView]]:
    """The connected peers that the daemon cannot talk to."""
    return (yield from _get("/v1/peers", "misfits", list[MisfitView]))


def cuts() -> Flow[list[CutView]]:
    """The peers that are cut for what they did."""
    return (yield from _get("/v1/peers", "cut", list[CutView]))


def forgive(peer: str) -> Flow[None]:
    """Let a peer that is cut back in."""
    body = msgspec.json.encode({"peer": peer})
    yield from _json(Request("POST", "/v1/forgive", body=body))


def devices() -> Flow[list[Device]]:
    """The daemon's devices."""
    return [*(yield from inventory()).devices]


def inventory() -> Flow[Inventory]:
    """The daemon's devices, and the kinds of which it has none."""
    return msgspec.convert((yield from _json(Request("GET", "/v1/devices"))), Inventory)


def pause(device: str | None, for_s: float | None) -> Flow[OwnerView]:
    """Pause a device, or the node for peers."""
    return (yield from _owner("pause", {"device": device, "for_s": for_s}))


def resume(device: str | None) -> Flow[OwnerView]:
    """End the pause of a device, or every pause."""
    return (yield from _owner("resume", {"device": device}))


def _owner(verb: str, wanted: dict[str, Any]) -> Flow[OwnerView]:
    request = Request("POST", f"/v1/{verb}", body=msgspec.json.encode(wanted))
    return msgspec.convert((yield from _json(request))["owner"], OwnerView)


def reload() -> Flow[ReloadView]:
    """Have the daemon read its settings again."""
    return msgspec.convert(
        (yield from _json(Request("POST", "/v1/reload")))["reload"], ReloadView
    )


def log_level() -> Flow[LogLevelView]:
    """How much the daemon's log tells."""
    return (yield from _get("/v1/log-level", "log_level", LogLevelView))


def set_log_level(level: str, module: str | None) -> Flow[LogLevelView]:
    """Have it tell more or less."""
    body = msgspec.json.encode({"level": level, "module": module})
    answered = yield from _json(Request("PUT", "/v1/log-level", body=body))
    return msgspec.convert(answered["log_level"], LogLevelView)


def end(*, now: bool) -> Flow[int]:
    """Make the daemon end; gives the number of its process."""
    body = msgspec.json.encode({"now": now})
    return (yield from _json(Request("POST", "/v1/end", body=body)))["pid"]


def metrics() -> Flow[str]:
    """The daemon's metrics, in Prometheus' text format."""
    return (yield Request("GET", "/metrics")).decode()


def capability() -> Flow[CapabilityView]:
    """What the daemon's node claims of itself."""
    return (yield from _get("/v1/capability", "capability", CapabilityView))


def challenge(peer: str, device: str | None = None) -> Flow[ChallengeView]:
    """Have a peer show a rate that it claims."""
    body = msgspec.json.encode({"peer": peer, "device": device})
    request = Request("POST", "/v1/challenges", body=body, answer_limit_s=_CHALLENGE_LIMIT_S)
    return msgspec.convert((yield from _json(request))["challenge"], ChallengeView)


def connect(address: str) -> Flow[str]:
    """Link the daemon to a peer; gives its id."""
    body = msgspec.json.encode({"address": address})
    return (yield from _json(Request("POST", "/v1/connect", body=body)))["peer"]


def prepare(model: Model, precision: str | None = None) -> Flow[Prepared]:
    """Bring a model to the daemon as a program, with what it does not hold yet.

    With a precision it is a program of the class ``exact``.

    Raises:
        ProgramError: The model cannot be a program.
        OSError: Its file cannot be read.
    """
    if isinstance(model, Prepared):
        return model
    if isinstance(model, str) and re.fullmatch("[0-9a-f]{64}", model):
        manifest = yield Request("GET", f"/v1/blobs/{model}")
        return Prepared(BlobId(model), decode(manifest))
    program: Program = yield Work(lambda: _convert(model, precision))
    register = Request("PUT", f"/v1/programs/{program.program_id}", refusals=(404, 409))
    if (yield register) is None:
        for blob_id, blob in program.blobs.items():
            yield from _upload(blob_id, blob)
        yield Request("PUT", register.path)
    return Prepared(program.program_id, program.manifest)


def submit(
    model: Model,
    units: Iterable[Mapping[str, ArrayLike]],
    policy: Policy,
    options: Options,
) -> Flow[Job]:
    """Upload a job's inputs unit by unit, then the job itself.

    Raises:
        ProgramError: An input is missing, or does not fit the program.
    """
    prepared = yield from prepare(model, precision_of(options))
    ids = []
    for unit in units:
        ids.append((yield from _upload_inputs(prepared.manifest, unit)))  # noqa: PERF401  # yields
    if not ids:
        raise ProgramError("there is nothing to run: no inputs were given", code="no_units")
    fields = msgspec.structs.asdict(options)
    del fields["precision"]
    spec = JobSpec(policy, prepared.program_id, tuple(ids), **fields)
    request = Request(
        "POST", "/v1/jobs", body=msgspec.json.encode(spec), answer_limit_s=_UPLOAD_LIMIT_S
    )
    return msgspec.convert((yield from _json(request))["job"], Job)


def run(
    model: Model,
    inputs: Mapping[str, ArrayLike],
    options: Options,
    timeout_s: float | None,
) -> Flow[dict[str, np.ndarray]]:
    """Run one unit and give its outputs.

    Raises:
        JobFailedError: The unit failed, or the job was cancelled.
        WaitTimeoutError: It is still running after ``timeout_s``.
    """
    submitted = yield from submit(model, [inputs], Policy.RUN, options)
    ended = yield from wait(submitted.id, timeout_s)
    if not ended.state.final:
        raise WaitTimeoutError(
            f"job {ended.id} is still running after {timeout_s:g} s",
            hint=f"it goes on; `shoal job wait {ended.id}`",
        )
    if ended.state is not JobState.DONE:
        raise failure_of(ended)
    return (yield from outputs(ended.id, 0))


def map_(
    model: Model, inputs: Mapping[str, np.ndarray], batch: int, options: Options
) -> Flow[Job]:
    """Submit a job of a unit for each ``batch`` rows of the inputs.

    Raises:
        ProgramError: Model or inputs cannot be used, or do not fit in such pieces.
    """
    prepared = yield from prepare(model, precision_of(options))
    check_batch(prepared.manifest, inputs, batch)
    return (yield from submit(prepared, batches(inputs, batch), Policy.MAP, options))


def jobs(limit: int) -> Flow[list[Job]]:
    """The newest jobs first."""
    return (yield from _get("/v1/jobs", "jobs", list[Job], limit=limit))


def job(job_id: str) -> Flow[Job]:
    """A job as it stands."""
    return (yield from _get(f"/v1/jobs/{job_id}", "job", Job))


def units(job_id: str, offset: int, limit: int) -> Flow[list[Unit]]:
    """Some units of a job."""
    path = f"/v1/jobs/{job_id}/units"
    return (yield from _get(path, "units", list[Unit], offset=offset, limit=limit))


def wait(job_id: str, timeout_s: float | None) -> Flow[Job]:
    """Wait for a job to end; gives it as it stands when the time is over."""
    deadline = time.monotonic() + (timeout_s if timeout_s is not None else float("inf"))
    while True:
        step_s = max(0.0, min(_WAIT_STEP_S, deadline - time.monotonic()))
        now = yield from _wait_once(job_id, step_s)
        if now.state.final or time.monotonic() >= deadline:
            return now


def cancel(job_id: str) -> Flow[Job]:
    """End a job early."""
    answer = yield from _json(Request("POST", f"/v1/jobs/{job_id}/cancel"))
    return msgspec.convert(answer["job"], Job)


def why(job_id: str) -> Flow[tuple[list[Answer], str]]:
    """What peers answered to a job's calls, and what to make of it."""
    found = yield from explanation(job_id)
    return list(found.answers), found.summary


def explanation(job_id: str, unit: int | None = None) -> Flow[Explanation]:
    """Why a job, or one unit of it, stands where it stands."""
    query = {} if unit is None else {"unit": unit}
    answer = yield from _json(Request("GET", f"/v1/jobs/{job_id}/why", query))
    return msgspec.convert(answer, Explanation)


def receipts(job_id: str) -> Flow[list[BlobId]]:
    """Ids of a job's receipts."""
    return (yield from _get(f"/v1/jobs/{job_id}/receipts", "receipts", list[BlobId]))


def receipt(receipt_id: str) -> Flow[bytes]:
    """A receipt's signed envelope."""
    return (yield Request("GET", f"/v1/receipts/{receipt_id}"))


def outputs(job_id: str, index: int) -> Flow[dict[str, np.ndarray]]:
    """The outputs of one unit.

    Raises:
        JobFailedError: It is not done.
    """
    found = yield from units(job_id, index, 1)
    if not found:
        raise JobFailedError(f"job {job_id} has no unit {index}", code="no_such_unit")
    return (yield from arrays(found[0]))


def arrays(unit: Unit) -> Flow[dict[str, np.ndarray]]:
    """The outputs of a unit as it was told; raises as `outputs` does."""
    if unit.state is not UnitState.DONE or unit.outputs is None:
        raise unit_failure(unit)
    found = {}
    for name, tensor in unit.outputs.items():
        found[name] = from_blob((yield Request("GET", f"/v1/blobs/{tensor}")))
    return found


def next_done(job_id: str, index: int) -> Flow[list[Unit]]:
    """Wait for unit ``index``; gives it and the done ones that follow it without a gap.

    Raises:
        JobFailedError: It ended without outputs.
    """
    while True:
        now = yield from _wait_once(job_id, 0)  # before the units: they may end meanwhile
        found = yield from units(job_id, index, _UNITS_PER_REQUEST)
        done = list(takewhile(lambda unit: unit.state is UnitState.DONE, found))
        if done:
            return done
        if not found or now.state.final or found[0].state is UnitState.FAILED:
            raise unit_failure(found[0]) if found else failure_of(now)
        yield from _wait_once(job_id, _POLL_S)


def failure_of(ended: Job) -> JobFailedError:
    """The error that stands for a job that ended without its results."""
    failure = ended.failure or Failure(
        f"job_{ended.state}",
        f"job {ended.id} was cancelled"
        if ended.state is JobState.CANCELLED
        else f"job {ended.id} failed",
        f"see `shoal job why {ended.id}`",
    )
    return JobFailedError(failure.message, hint=failure.hint, code=failure.code)


def unit_failure(unit: Unit) -> JobFailedError:
    """The error that stands for a unit without outputs."""
    failure = unit.failure or Failure(
        f"unit_{unit.state}", f"it is {unit.state}", f"see `shoal job show {unit.job}`"
    )
    return JobFailedError(
        f"unit {unit.index} of job {unit.job}: {failure.message}",
        hint=failure.hint,
        code=failure.code,
    )


def _wait_once(job_id: str, timeout_s: float) -> Flow[Job]:
    request = Request(
        "GET",
        f"/v1/jobs/{job_id}/wait",
        {"timeout_s": timeout_s},
        answer_limit_s=timeout_s + 30,
    )
    return msgspec.convert((yield from _json(request))["job"], Job)


def _upload_inputs(
    manifest: Manifest, unit: Mapping[str, ArrayLike]
) -> Flow[dict[str, BlobId]]:
    import numpy as np

    given = {name: np.asarray(value) for name, value in unit.items()}
    check_inputs(manifest, {name: spec_of_array(array) for name, array in given.items()})
    ids = {}
    for name, array in given.items():
        blob = to_blob(array)
        ids[name] = blob_id_of(blob)
        yield from _upload(ids[name], blob)
    return ids


def _upload(blob_id: BlobId, blob: bytes) -> Flow[None]:
    if len(blob) >= _HEAD_FROM_BYTES:
        held = yield Request("HEAD", f"/v1/blobs/{blob_id}", refusals=(404,))
        if held is not None:
            return
    yield Request("PUT", "/v1/blobs", body=blob, answer_limit_s=_UPLOAD_LIMIT_S)


def precision_of(options: Options) -> str | None:
    """The precision that a program needs for these options: x20 where none was chosen."""
    exact = options.numeric_class == NumericClass.EXACT.value
    return options.precision or (DEFAULT_PRECISION if exact else None)


def _convert(model: str | Path | bytes | onnx.ModelProto, precision: str | None) -> Program:
    from shoal.compute.convert import convert, convert_file

    if isinstance(model, str | Path):
        try:
            return convert_file(Path(model), precision)
        except ProgramError as error:
            raise ProgramError(
                f"{model}: {error.message}", hint=error.hint, code=error.code
            ) from None
    if isinstance(model, bytes):
        return convert(model, precision)
    return convert(model.SerializeToString(), precision)


def _get(path: str, field: str, kind: type[Value], **query: int) -> Flow[Value]:
    answer = yield from _json(Request("GET", path, query))
    return msgspec.convert(answer[field], kind)


def _json(request: Request) -> Flow[dict[str, Any]]:
    return cast("dict[str, Any]", msgspec.json.decode((yield request)))
