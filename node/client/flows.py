"""What each call of a client says to the daemon, step by step and with no IO.

First step of the data path, *submit*: a model becomes a program here, in the
submitter's own process. How units are handed over is in `submitting`, and how
results come back in `fetching`.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast
from urllib.parse import quote

import msgspec

from shoal.compute.devices import Device, Inventory
from shoal.compute.errors import ProgramError
from shoal.compute.executors.base import NumericClass
from shoal.compute.kernel_manifest import KERNEL_SUFFIX, from_file, is_kernel_file
from shoal.compute.programs import AnyManifest, decode
from shoal.crypto.content import BlobId
from shoal.node.assurance import Assurance, JobAssurance
from shoal.node.capability_views import CapabilityView, ChallengeView
from shoal.node.causes import Explanation
from shoal.node.client.exchange import Flow, Request, Value, Work
from shoal.node.errors import JobFailedError
from shoal.node.ledger import LedgerPage
from shoal.node.peer_views import (
    CallerView,
    ConductView,
    CutView,
    MisfitView,
    PeerView,
    ProofView,
)
from shoal.node.records import Answer, Ban, Failure, Job, JobState, Unit
from shoal.node.settings_view import SettingView
from shoal.node.standing_view import StandingPage
from shoal.node.status_views import LogLevelView, OwnerView, ReloadView, Status
from shoal.node.timing_view import UnitTiming

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx

    from shoal.compute.convert import Program
    from shoal.compute.kernel_manifest import KernelProgram

Model: TypeAlias = "str | Path | bytes | onnx.ModelProto | Program | KernelProgram | Prepared"
"""A path, an ONNX file's bytes, a loaded model, a program id, an exported program
(`shoal.export`), a GPU kernel (`shoal.kernel`), or what `prepare` gave."""

_HEAD_FROM_BYTES = 64 << 10
"""Smaller blobs are sent without asking first whether the daemon holds them."""

_STATUS_LIMIT_S = 10.0
UPLOAD_LIMIT_S = 600.0
_CHALLENGE_LIMIT_S = 120.0
"""Those before it, the dial, the chain at its slowest, and this node's own worker."""
WAIT_STEP_S = 30.0
"""How long one request waits for something to change."""

DEFAULT_PRECISION = "x20"


OFFERED_CLASSES = (
    NumericClass.FP32.value,
    NumericClass.EXACT.value,
    NumericClass.LOW.value,
    NumericClass.KERNEL.value,
)
"""The numeric classes that some executor runs."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the units of a job are to be run: the fields of `JobSpec`, and ``precision``.

    ``numeric_class`` is the program's own where it is not said: ``exact`` of one that was
    made with a precision, ``kernel`` of a GPU kernel, ``fp32`` of the others.

    ``precision`` belongs to the class ``exact``: ``x20``, ``x16`` or ``x8``. It is
    part of the program, so a program that is prepared already keeps its own.

    ``verify`` says how results are checked: ``receipt`` (signatures and ids alone),
    ``quorum:K`` (K providers run each unit), ``sample:P`` (of all results, P are run again
    by others) or ``auto`` (as often as each provider's standing asks for).

    ``proofs`` says who gets proofs of false results, which show program and inputs of a
    unit: ``public`` (everybody, so that the liar is banned everywhere) or ``private``
    (nobody: it is banned by this node alone). It is for ``exact`` and results that are checked.

    ``id`` is the job's, 27 hexadecimal digits (`shoal.new_job_id`): what is submitted again
    unchanged under the same one is the same job, so that a submission whose answer was lost
    can be repeated. Without it each submission is a job of its own.
    """

    numeric_class: str | None = None
    precision: str | None = None
    label: str = ""
    time_limit_s: float = 300.0
    memory_limit_bytes: int = 1 << 30
    priority: int = 0
    fail_fast: bool = False
    outputs_stay: bool = False
    verify: str = "auto"
    proofs: str = "public"
    id: str | None = None


class Prepared(msgspec.Struct, frozen=True):
    """A program that the daemon holds, ready for any number of jobs."""

    program_id: BlobId
    manifest: AnyManifest


class Drive(Protocol):
    """Carries out a flow and gives its value: what a client does with each call."""

    def __call__(self, flow: Flow[Value], /) -> Value:
        """Carry out ``flow``; raises what it raises."""
        ...


def status() -> Flow[Status]:
    """How the daemon is."""
    request = Request("GET", "/v1/status", answer_limit_s=_STATUS_LIMIT_S)
    return msgspec.convert((yield from json_of(request)), Status)


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


def conducts() -> Flow[list[ConductView]]:
    """The peers of which something is held or noted."""
    return (yield from _get("/v1/peers", "conduct", list[ConductView]))


def callers() -> Flow[list[CallerView]]:
    """From where strangers called at the bulk port."""
    return (yield from _get("/v1/peers", "callers", list[CallerView]))


def forgive(peer: str) -> Flow[None]:
    """Let a peer that is cut back in."""
    body = msgspec.json.encode({"peer": peer})
    yield from json_of(Request("POST", "/v1/forgive", body=body))


def standing(peer: str) -> Flow[StandingPage]:
    """How a peer stands with the daemon's node."""
    return (yield from _get(f"/v1/standing/{quote(peer, safe='')}", "standing", StandingPage))


def ledger(peer: str | None = None) -> Flow[LedgerPage]:
    """Who did how much for whom."""
    request = Request("GET", "/v1/ledger", query=_of_peer(peer))
    return msgspec.convert((yield from json_of(request))["ledger"], LedgerPage)


def export_ledger(peer: str | None = None) -> Flow[bytes]:
    """What others have signed of it, as a file."""
    return (yield Request("GET", "/v1/ledger/export", query=_of_peer(peer)))


def _of_peer(peer: str | None) -> dict[str, str]:
    return {} if peer is None else {"peer": peer}


def bans() -> Flow[list[Ban]]:
    """The peers that are banned."""
    return (yield from _get("/v1/peers", "banned", list[Ban]))


def unban(peer: str) -> Flow[None]:
    """Lift a ban before its time."""
    body = msgspec.json.encode({"peer": peer})
    yield from json_of(Request("POST", "/v1/unban", body=body))


def proofs() -> Flow[list[ProofView]]:
    """The fraud proofs that the daemon believes."""
    return (yield from _get("/v1/proofs", "proofs", list[ProofView]))


def proof(proof_id: str) -> Flow[bytes]:
    """A fraud proof's bytes."""
    return (yield Request("GET", f"/v1/proofs/{proof_id}"))


def blob(blob_id: BlobId) -> Flow[bytes]:
    """Any blob that the daemon holds."""
    return (yield Request("GET", f"/v1/blobs/{blob_id}"))


def devices() -> Flow[list[Device]]:
    """The daemon's devices."""
    return [*(yield from inventory()).devices]


def inventory() -> Flow[Inventory]:
    """The daemon's devices, and the kinds of which it has none."""
    return msgspec.convert((yield from json_of(Request("GET", "/v1/devices"))), Inventory)


def pause(device: str | None, for_s: float | None) -> Flow[OwnerView]:
    """Pause a device, or the node for peers."""
    return (yield from _owner("pause", {"device": device, "for_s": for_s}))


def resume(device: str | None) -> Flow[OwnerView]:
    """End the pause of a device, or every pause."""
    return (yield from _owner("resume", {"device": device}))


def _owner(verb: str, wanted: dict[str, Any]) -> Flow[OwnerView]:
    request = Request("POST", f"/v1/{verb}", body=msgspec.json.encode(wanted))
    return msgspec.convert((yield from json_of(request))["owner"], OwnerView)


def reload() -> Flow[ReloadView]:
    """Have the daemon read its settings again."""
    return msgspec.convert(
        (yield from json_of(Request("POST", "/v1/reload")))["reload"], ReloadView
    )


def log_level() -> Flow[LogLevelView]:
    """How much the daemon's log tells."""
    return (yield from _get("/v1/log-level", "log_level", LogLevelView))


def set_log_level(level: str, module: str | None) -> Flow[LogLevelView]:
    """Have it tell more or less."""
    body = msgspec.json.encode({"level": level, "module": module})
    answered = yield from json_of(Request("PUT", "/v1/log-level", body=body))
    return msgspec.convert(answered["log_level"], LogLevelView)


def end(*, now: bool) -> Flow[int]:
    """Make the daemon end; gives the number of its process."""
    body = msgspec.json.encode({"now": now})
    return (yield from json_of(Request("POST", "/v1/end", body=body)))["pid"]


def metrics() -> Flow[str]:
    """The daemon's metrics, in Prometheus' text format."""
    return (yield Request("GET", "/metrics")).decode()


def capability() -> Flow[CapabilityView]:
    """What the daemon's node claims of itself."""
    return (yield from _get("/v1/capability", "capability", CapabilityView))


def measure(device: str | None = None) -> Flow[list[str]]:
    """Have a device measured anew, or each; gives which will be."""
    body = msgspec.json.encode({"device": device})
    asked = (yield from json_of(Request("POST", "/v1/measure", body=body)))["asked"]
    return msgspec.convert(asked, list[str])


def challenge(peer: str, device: str | None = None) -> Flow[ChallengeView]:
    """Have a peer show a rate that it claims."""
    body = msgspec.json.encode({"peer": peer, "device": device})
    request = Request("POST", "/v1/challenges", body=body, answer_limit_s=_CHALLENGE_LIMIT_S)
    return msgspec.convert((yield from json_of(request))["challenge"], ChallengeView)


def connect(address: str) -> Flow[str]:
    """Link the daemon to a peer; gives its id."""
    body = msgspec.json.encode({"address": address})
    return (yield from json_of(Request("POST", "/v1/connect", body=body)))["peer"]


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
    if _is_program(model):
        program = cast("Program | KernelProgram", model)
    else:
        program = yield Work(lambda: _convert(cast("Any", model), precision))
    register = Request("PUT", f"/v1/programs/{program.program_id}", refusals=(404, 409))
    if (yield register) is None:
        for blob_id, blob in program.blobs.items():
            yield from upload(blob_id, blob)
        yield Request("PUT", register.path)
    return Prepared(program.program_id, program.manifest)


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
        step_s = max(0.0, min(WAIT_STEP_S, deadline - time.monotonic()))
        now = yield from _wait_once(job_id, step_s)
        if now.state.final or time.monotonic() >= deadline:
            return now


def cancel(job_id: str, *, parting: bool = False) -> Flow[Job]:
    """End a job early."""
    request = Request("POST", f"/v1/jobs/{job_id}/cancel", parting=parting)
    return msgspec.convert((yield from json_of(request))["job"], Job)


def cancel_units(job_id: str, indices: Sequence[int]) -> Flow[list[int]]:
    """Cancel units that nobody runs yet; gives those that are cancelled."""
    body = msgspec.json.encode({"units": indices})
    request = Request("POST", f"/v1/jobs/{job_id}/cancel", body=body)
    return [*(yield from json_of(request))["cancelled"]]


def again(job_id: str, indices: Sequence[int], verify: str) -> Flow[Job]:
    """Submit units of a job once more, as a job of their own; none: those in doubt."""
    body = msgspec.json.encode({"units": indices, "verify": verify})
    request = Request("POST", f"/v1/jobs/{job_id}/again", body=body)
    return msgspec.convert((yield from json_of(request))["job"], Job)


def seal(job_id: str) -> Flow[Job]:
    """Add no more units to an open job."""
    answer = yield from json_of(Request("POST", f"/v1/jobs/{job_id}/seal"))
    return msgspec.convert(answer["job"], Job)


def forget(job_id: str, *, unfetched_too: bool) -> Flow[Job]:
    """Let a job go that has ended, with its results; gives it as it was."""
    query = {"unfetched": int(unfetched_too)}
    answer = yield from json_of(Request("DELETE", f"/v1/jobs/{job_id}", query))
    return msgspec.convert(answer["job"], Job)


def why(job_id: str) -> Flow[tuple[list[Answer], str]]:
    """What peers answered to a job's calls, and what to make of it."""
    found = yield from explanation(job_id)
    return list(found.answers), found.summary


def explanation(job_id: str, unit: int | None = None) -> Flow[Explanation]:
    """Why a job, or one unit of it, stands where it stands."""
    query = {} if unit is None else {"unit": unit}
    answer = yield from json_of(Request("GET", f"/v1/jobs/{job_id}/why", query))
    return msgspec.convert(answer, Explanation)


def assurance(
    job_id: str, offset: int, limit: int
) -> Flow[tuple[JobAssurance, list[Assurance]]]:
    """How far a job's results can be relied on: all of it counted, and some units."""
    query = {"offset": offset, "limit": limit}
    answer = yield from json_of(Request("GET", f"/v1/jobs/{job_id}/assurance", query))
    counted = msgspec.convert(answer["job"], JobAssurance)
    return counted, msgspec.convert(answer["units"], list[Assurance])


def timing(job_id: str, unit: int) -> Flow[UnitTiming]:
    """Where the time of a unit went."""
    return (yield from _get(f"/v1/jobs/{job_id}/timing", "timing", UnitTiming, unit=unit))


def receipts(job_id: str) -> Flow[list[BlobId]]:
    """Ids of a job's receipts."""
    return (yield from _get(f"/v1/jobs/{job_id}/receipts", "receipts", list[BlobId]))


def receipt(receipt_id: str) -> Flow[bytes]:
    """A receipt's signed envelope."""
    return (yield Request("GET", f"/v1/receipts/{receipt_id}"))


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
    return msgspec.convert((yield from json_of(request))["job"], Job)


def upload(blob_id: BlobId, blob: bytes) -> Flow[None]:
    """Send a blob, unless it is a larger one that the daemon holds."""
    if len(blob) >= _HEAD_FROM_BYTES:
        held = yield Request("HEAD", f"/v1/blobs/{blob_id}", refusals=(404,))
        if held is not None:
            return
    yield Request("PUT", "/v1/blobs", body=blob, answer_limit_s=UPLOAD_LIMIT_S)


def precision_of(options: Options) -> str | None:
    """The precision that a program needs for these options: x20 where none was chosen."""
    exact = options.numeric_class == NumericClass.EXACT.value
    return options.precision or (DEFAULT_PRECISION if exact else None)


def _is_program(model: object) -> bool:
    return hasattr(model, "program_id") and hasattr(model, "blobs")


def _convert(
    model: str | Path | bytes | onnx.ModelProto, precision: str | None
) -> Program | KernelProgram:
    from shoal.compute.convert import convert, convert_file

    if isinstance(model, bytes) and is_kernel_file(model):
        return from_file(model)
    if isinstance(model, str | Path):
        try:
            if Path(model).suffix == KERNEL_SUFFIX:
                return from_file(Path(model).read_bytes())
            return convert_file(Path(model), precision)
        except ProgramError as error:
            raise ProgramError(
                f"{model}: {error.message}", hint=error.hint, code=error.code
            ) from None
    if isinstance(model, bytes):
        return convert(model, precision)
    if not hasattr(model, "SerializeToString"):
        raise ProgramError(
            f"a {type(model).__name__} is no program",
            code="bad_model",
            hint="programs are ONNX models (a path, its bytes, a ModelProto) or the id of one, "
            "never Python functions; `shoal.remote` exports a torch function or module",
        )
    return convert(model.SerializeToString(), precision)


def _get(path: str, field: str, kind: type[Value], **query: int) -> Flow[Value]:
    answer = yield from json_of(Request("GET", path, query))
    return msgspec.convert(answer[field], kind)


def json_of(request: Request) -> Flow[dict[str, Any]]:
    """The JSON of an answer."""
    return cast("dict[str, Any]", msgspec.json.decode((yield request)))
