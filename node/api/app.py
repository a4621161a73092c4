"""The routes of the local API, each a few lines between a body and the daemon."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import structlog
import trio
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from shoal.crypto.content import BlobId
from shoal.crypto.errors import ShoalError
from shoal.node.api.answers import answer, confess, refuse, refuse_route
from shoal.node.api.bodies import (
    BodyReader,
    blobs_with,
    npy_of,
    read_bounded,
    safetensors_of,
    store_npy,
    store_safetensors,
)
from shoal.node.api.events import JobEvents, cancel_when_gone
from shoal.node.api.queries import (
    blob_id_in,
    content_type,
    cursor,
    decode,
    job_id_in,
    one_of,
    peer_asked_for,
    peer_id,
    seconds,
    whole_number,
)
from shoal.node.api.results import (
    MSGPACK,
    UNITS_PER_ANSWER_LIMIT,
    ResultsQuery,
    note_later,
    results_of,
)
from shoal.node.api.shortcut import Shortcut
from shoal.node.api.units import UnitReader, add_stream, check_ids, submit_stream, writes
from shoal.node.errors import JobError, RequestError
from shoal.node.metrics import CONTENT_TYPE
from shoal.node.records import JobSpec, UnitState

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Iterable

    from starlette.requests import Request

    from shoal.compute.programs import AnyManifest
    from shoal.node.api.facade import DaemonFacade
    from shoal.node.records import JobId

log = structlog.get_logger(__name__)

MODEL_LIMIT_BYTES = 512 << 20
"""An ONNX file posted whole; larger ones are converted by the Python client."""

JOB_LIMIT_BYTES = 64 << 20
"""A job as JSON: some 400,000 units of two inputs each."""

SHORT_LIMIT_BYTES = 4 << 10
"""A body of some words: an address, a device and a time, a log level."""

CANCEL_LIMIT_BYTES = 1 << 20
"""Some 150,000 indices of units."""

INDEX_LIMIT = (1 << 62) - 1
"""More units than any job has, and fewer than the journal can count."""

PAUSE_LIMIT_S = 10 * 366 * 86_400.0
"""Longer than any device lives; without it a pause lasts until it is resumed."""

JOBS_PER_ANSWER_LIMIT = 1000


class _Connect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/connect."""

    address: str
    schema_version: int = 1


class _Pardon(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/forgive and of POST /v1/unban."""

    peer: str
    schema_version: int = 1


class _Resume(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/resume; no device means every pause."""

    device: str | None = None
    schema_version: int = 1


class _Measure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/measure; no device means each that takes units."""

    device: str | None = None
    schema_version: int = 1


class _Pause(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/pause; no device means peers' work on all of them."""

    device: str | None = None
    for_s: Annotated[float, msgspec.Meta(gt=0.0, le=PAUSE_LIMIT_S)] | None = None
    schema_version: int = 1


class _CancelUnits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/jobs/{id}/cancel; no units means the job."""

    units: tuple[Annotated[int, msgspec.Meta(ge=0, le=INDEX_LIMIT)], ...] | None = None
    schema_version: int = 1


class _Again(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Units to run once more, and how they are checked; none: those in doubt."""

    units: tuple[Annotated[int, msgspec.Meta(ge=0, le=INDEX_LIMIT)], ...] = ()
    verify: str = "sample:1"


class _LogLevel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of PUT /v1/log-level; no module means all of shoal's."""

    level: str
    module: str | None = None
    schema_version: int = 1


class _End(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/end."""

    now: bool = False
    schema_version: int = 1


def make_app(daemon: DaemonFacade) -> Starlette:
    """The local API in front of ``daemon``; its ``state.shortcut`` is for `serve_on`."""
    api = _Api(daemon)
    routes = (
        ("GET", "/v1/status", api.status),
        ("GET", "/v1/settings", api.settings),
        ("GET", "/v1/peers", api.peers),
        ("POST", "/v1/forgive", api.forgive),
        ("GET", "/v1/standing/{peer}", api.standing),
        ("GET", "/v1/ledger", api.ledger),
        ("GET", "/v1/ledger/export", api.export_ledger),
        ("POST", "/v1/unban", api.unban),
        ("GET", "/v1/proofs", api.proofs),
        ("GET", "/v1/proofs/{id}", api.proof),
        ("GET", "/v1/devices", api.devices),
        ("POST", "/v1/pause", api.pause),
        ("POST", "/v1/resume", api.resume),
        ("POST", "/v1/reload", api.reload),
        ("GET", "/v1/log-level", api.log_level),
        ("PUT", "/v1/log-level", api.set_log_level),
        ("POST", "/v1/end", api.end),
        ("GET", "/metrics", api.metrics),
        ("GET", "/v1/capability", api.capability),
        ("POST", "/v1/measure", api.measure),
        ("POST", "/v1/challenges", api.challenge),
        ("POST", "/v1/connect", api.connect),
        ("PUT", "/v1/blobs", api.put_blob),
        ("GET", "/v1/blobs/{id}", api.get_blob),  # and HEAD
        ("PUT", "/v1/tensors", api.put_tensors),
        ("GET", "/v1/tensors/{id}", api.get_tensor),
        ("POST", "/v1/programs", api.convert_program),
        ("PUT", "/v1/programs/{id}", api.register_program),
        ("GET", "/v1/programs/{id}", api.program),
        ("POST", "/v1/jobs", api.submit),
        ("GET", "/v1/jobs", api.jobs),
        ("GET", "/v1/jobs/{id}", api.job),
        ("GET", "/v1/jobs/{id}/units", api.units),
        ("GET", "/v1/jobs/{id}/wait", api.wait),
        ("GET", "/v1/jobs/{id}/events", api.events),
        ("GET", "/v1/jobs/{id}/outputs/{name:path}", api.output),
        ("POST", "/v1/jobs/{id}/units", api.add_units),
        ("POST", "/v1/jobs/{id}/seal", api.seal),
        ("GET", "/v1/jobs/{id}/results", api.results),
        ("POST", "/v1/jobs/{id}/cancel", api.cancel),
        ("POST", "/v1/jobs/{id}/again", api.again),
        ("DELETE", "/v1/jobs/{id}", api.forget),
        ("GET", "/v1/jobs/{id}/why", api.why),
        ("GET", "/v1/jobs/{id}/timing", api.timing),
        ("GET", "/v1/jobs/{id}/assurance", api.assurance),
        ("GET", "/v1/jobs/{id}/receipts", api.receipts),
        ("GET", "/v1/receipts/{id}", api.receipt),
    )
    handlers: dict[Any, Any] = {  # each takes its own kind of exception
        ShoalError: refuse,
        HTTPException: refuse_route,
        ClientDisconnect: _leave,
        Exception: confess,
    }
    app = Starlette(
        routes=[Route(path, handler, methods=[method]) for method, path, handler in routes],
        exception_handlers=handlers,
    )
    app.state.shortcut = Shortcut(daemon)
    return app


def make_metrics_app(daemon: DaemonFacade) -> Starlette:
    """The metrics alone, for a port that more people reach than the socket."""
    return Starlette(routes=[Route("/metrics", _Api(daemon).metrics, methods=["GET"])])


class _Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST /v1/challenges; without a device it is the first that can be asked."""

    peer: str
    device: str | None = None
    schema_version: int = 1


class _Api:
    """The handlers, one for each route."""

    def __init__(self, daemon: DaemonFacade) -> None:
        self._daemon = daemon

    async def status(self, _request: Request) -> Response:
        return answer(msgspec.structs.asdict(self._daemon.status()))

    async def settings(self, _request: Request) -> Response:
        return answer({"settings": self._daemon.settings()})

    async def peers(self, _request: Request) -> Response:
        return answer(
            {
                "peers": self._daemon.peers(),
                "misfits": self._daemon.misfits(),
                "cut": self._daemon.cuts(),
                "conduct": self._daemon.conducts(),
                "callers": self._daemon.callers(),
                "banned": self._daemon.bans(),
            }
        )

    async def forgive(self, request: Request) -> Response:
        wanted = decode(await read_bounded(request, SHORT_LIMIT_BYTES), _Pardon)
        self._daemon.forgive(wanted.peer)
        return answer({"peer": wanted.peer})

    async def standing(self, request: Request) -> Response:
        return answer({"standing": self._daemon.standing(peer_id(request.path_params["peer"]))})

    async def ledger(self, request: Request) -> Response:
        return answer({"ledger": self._daemon.ledger(peer_asked_for(request))})

    async def export_ledger(self, request: Request) -> Response:
        lines = await self._daemon.export_ledger(peer_asked_for(request))
        return Response(lines, media_type="application/x-ndjson")

    async def unban(self, request: Request) -> Response:
        wanted = decode(await read_bounded(request, SHORT_LIMIT_BYTES), _Pardon)
        await self._daemon.unban(wanted.peer)
        return answer({"peer": wanted.peer})

    async def proofs(self, _request: Request) -> Response:
        return answer({"proofs": self._daemon.proofs()})

    async def proof(self, request: Request) -> Response:
        proof = await self._daemon.proof(blob_id_in(request))
        return Response(proof, media_type="application/octet-stream")

    async def devices(self, _request: Request) -> Response:
        found = await self._daemon.devices()
        return answer({"devices": found.devices, "missing": found.missing})

    async def pause(self, request: Request) -> Response:
        wanted = decode(await read_bounded(request, SHORT_LIMIT_BYTES) or b"{}", _Pause)
        return answer({"owner": await self._daemon.pause(wanted.device, wanted.for_s)})

    async def resume(self, request: Request) -> Response:
        wanted = decode(await read_bounded(request, SHORT_LIMIT_BYTES) or b"{}", _Resume)
        return answer({"owner": await self._daemon.resume(wanted.device)})

    async def reload(self, _request: Request) -> Response:
        return answer({"reload": await self._daemon.reload()})

    async def log_level(self, _request: Request) -> Response:
        return answer({"log_level": self._daemon.log_level()})

    async def set_log_level(self, request: Request) -> Response:
        wanted = decode(await read_bounded(request, SHORT_LIMIT_BYTES), _LogLevel)
        return answer({"log_level": self._daemon.set_log_level(wanted.level, wanted.module)})

    async def end(self, request: Request) -> Response:
        wanted = decode(await read_bounded(request, SHORT_LIMIT_BYTES) or b"{}", _End)
        answered = answer({"pid": os.getpid()}, 202)

        async def end() -> None:  # once the answer is on its way
            self._daemon.end(now=wanted.now)

        answered.background = BackgroundTask(end)
        return answered

    async def metrics(self, _request: Request) -> Response:
        return Response(self._daemon.metrics(), media_type=CONTENT_TYPE)

    async def capability(self, _request: Request) -> Response:
        return answer({"capability": self._daemon.capability()})

    async def measure(self, request: Request) -> Response:
        wanted = decode(await read_bounded(request, SHORT_LIMIT_BYTES) or b"{}", _Measure)
        return answer({"asked": await self._daemon.measure(wanted.device)}, 202)

    async def challenge(self, request: Request) -> Response:
        wanted = decode(await read_bounded(request, SHORT_LIMIT_BYTES), _Challenge)
        return answer({"challenge": await self._daemon.challenge(wanted.peer, wanted.device)})

    async def connect(self, request: Request) -> Response:
        wanted = decode(await read_bounded(request, SHORT_LIMIT_BYTES), _Connect)
        return answer({"peer": await self._daemon.connect(wanted.address)})

    async def put_blob(self, request: Request) -> Response:
        stored = await self._daemon.blobs.put(_non_empty(request.stream()))
        return answer({"id": stored.blob_id, "size_bytes": stored.size_bytes}, 201)

    async def get_blob(self, request: Request) -> Response:
        blob_id = blob_id_in(request)
        blobs = await blobs_with(self._daemon, blob_id)
        return _stream(request, blobs.size_bytes(blob_id), blobs.read_chunks(blob_id))

    async def put_tensors(self, request: Request) -> Response:
        kind = request.headers.get("content-type", "application/x-npy").partition(";")[0]
        store = store_safetensors if kind == "application/x-safetensors" else store_npy
        ids = await store(BodyReader(request), self._daemon.blobs)
        return answer({"tensors": ids}, 201)

    async def get_tensor(self, request: Request) -> Response:
        return await self._tensor(request, blob_id_in(request))

    async def convert_program(self, request: Request) -> Response:
        onnx = await read_bounded(request, MODEL_LIMIT_BYTES)
        precision = request.query_params.get("precision")
        program = await self._daemon.convert_program(onnx, precision)
        return _program(program, await self._daemon.program(program), 201)

    async def register_program(self, request: Request) -> Response:
        program = blob_id_in(request)
        return _program(program, await self._daemon.register_program(program), 201)

    async def program(self, request: Request) -> Response:
        program = blob_id_in(request)
        return _program(program, await self._daemon.program(program))

    async def submit(self, request: Request) -> Response:
        if content_type(request) == MSGPACK:
            return answer({"job": await submit_stream(self._daemon, request.stream())}, 201)
        spec = decode(await read_bounded(request, JOB_LIMIT_BYTES), JobSpec)
        check_ids(spec)
        return answer({"job": await self._daemon.submit(spec, spec.units)}, 201)

    async def add_units(self, request: Request) -> Response:
        job_id = job_id_in(request)
        at = whole_number(request, "at", 0) if "at" in request.query_params else None
        if content_type(request) == MSGPACK:
            given = writes(UnitReader(request.stream()).maps())
        else:
            body = await read_bounded(request, JOB_LIMIT_BYTES)
            given = writes(_each(decode(body, list[dict[str, Any]])))
        job = await add_stream(self._daemon, job_id, given, at)
        if "after" not in request.query_params:
            return answer({"job": job}, 201)
        return await self._results(request, job_id, 201)  # in one request, for short units

    async def seal(self, request: Request) -> Response:
        return answer({"job": await self._daemon.seal(job_id_in(request))})

    async def results(self, request: Request) -> Response:
        return await self._results(request, job_id_in(request))

    async def _results(self, request: Request, job_id: JobId, status: int = 200) -> Response:
        query = ResultsQuery(
            after=cursor(request),
            limit=whole_number(
                request, "limit", UNITS_PER_ANSWER_LIMIT, UNITS_PER_ANSWER_LIMIT
            ),
            order=one_of(request, "order", ("given", "ended")),
            wait_s=seconds(request, "wait_s", 0.0),
        )
        body = await results_of(self._daemon, job_id, query, request.receive)
        later = None
        if query.wait_s:
            later = BackgroundTask(note_later, self._daemon, job_id, query)
        return Response(body, status, media_type=MSGPACK, background=later)

    async def jobs(self, request: Request) -> Response:
        limit = whole_number(request, "limit", 50, JOBS_PER_ANSWER_LIMIT)
        return answer({"jobs": await self._daemon.jobs(limit)})

    async def job(self, request: Request) -> Response:
        return answer({"job": await self._daemon.job(job_id_in(request))})

    async def units(self, request: Request) -> Response:
        offset = whole_number(request, "offset", 0)
        limit = whole_number(request, "limit", 100, UNITS_PER_ANSWER_LIMIT)
        return answer({"units": await self._daemon.units(job_id_in(request), offset, limit)})

    async def wait(self, request: Request) -> Response:
        timeout_s = seconds(request, "timeout_s", 30.0)
        job = await self._daemon.job(job_id_in(request))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, request.receive, nursery.cancel_scope)
            with trio.move_on_after(timeout_s):
                async with self._daemon.watch(job.id) as changes:
                    async for job in changes:
                        if job.state.final:
                            break
            nursery.cancel_scope.cancel()
        return answer({"job": job})

    async def events(self, request: Request) -> Response:
        job = await self._daemon.job(job_id_in(request))
        return JobEvents(self._daemon, job.id)

    async def output(self, request: Request) -> Response:
        job_id, name = job_id_in(request), request.path_params["name"]
        index = whole_number(request, "unit", 0)
        units = await self._daemon.units(job_id, index, 1)
        if not units:
            raise JobError(f"job {job_id} has no unit {index}", code="no_such_unit")
        (unit,) = units
        if unit.state is not UnitState.DONE or unit.outputs is None:
            raise JobError(
                f"unit {index} of job {job_id} has no outputs: it is {unit.state}",
                code="unit_not_done",
                hint=f"see `shoal job show {job_id}`",
            )
        if name not in unit.outputs:
            raise JobError(
                f"job {job_id} has no output {name[:80]!r}",
                code="no_such_output",
                hint=f"its outputs are {', '.join(unit.outputs)}",
            )
        return await self._tensor(request, unit.outputs[name])

    async def cancel(self, request: Request) -> Response:
        job_id = job_id_in(request)
        wanted = decode(await read_bounded(request, CANCEL_LIMIT_BYTES) or b"{}", _CancelUnits)
        if wanted.units is None:
            return answer({"job": await self._daemon.cancel(job_id)})
        cancelled = await self._daemon.cancel_units(job_id, wanted.units)
        return answer({"job": await self._daemon.job(job_id), "cancelled": cancelled})

    async def forget(self, request: Request) -> Response:
        unfetched_too = whole_number(request, "unfetched", 0, 1) == 1
        job = await self._daemon.forget(job_id_in(request), unfetched_too=unfetched_too)
        return answer({"job": job})

    async def why(self, request: Request) -> Response:
        asked = "unit" in request.query_params
        unit = whole_number(request, "unit", 0) if asked else None
        found = await self._daemon.why(job_id_in(request), unit)
        # The summary is for clients that have no words of their own.
        return answer({**msgspec.structs.asdict(found), "summary": found.summary})

    async def timing(self, request: Request) -> Response:
        unit = whole_number(request, "unit", 0)
        return answer({"timing": await self._daemon.timing(job_id_in(request), unit)})

    async def assurance(self, request: Request) -> Response:
        offset = whole_number(request, "offset", 0)
        limit = whole_number(request, "limit", 100, UNITS_PER_ANSWER_LIMIT)
        counted, units = await self._daemon.assurance(job_id_in(request), offset, limit)
        # The summary is for clients that have no words of their own.
        job = {**msgspec.structs.asdict(counted), "summary": counted.summary}
        return answer({"job": job, "units": units})

    async def again(self, request: Request) -> Response:
        wanted = decode(await read_bounded(request, JOB_LIMIT_BYTES), _Again)
        job = await self._daemon.again(job_id_in(request), wanted.units, wanted.verify)
        return answer({"job": job}, 201)

    async def receipts(self, request: Request) -> Response:
        return answer({"receipts": await self._daemon.receipts(job_id_in(request))})

    async def receipt(self, request: Request) -> Response:
        envelope = await self._daemon.receipt(blob_id_in(request))
        return Response(envelope, media_type="application/octet-stream")

    async def _tensor(self, request: Request, blob_id: BlobId) -> Response:
        blobs = await blobs_with(self._daemon, blob_id)
        match request.query_params.get("format", "npy"):
            case "npy":
                kind, opened = "application/x-npy", npy_of(blob_id, blobs)
            case "safetensors":
                kind = "application/x-safetensors"
                opened = safetensors_of(blob_id, blobs)
            case other:
                raise RequestError(
                    f"there is no tensor format {other[:40]!r}", hint="npy or safetensors"
                )
        return _stream(request, *await opened, media_type=kind)


async def _each(values: Iterable[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
    for value in values:
        yield value


async def _non_empty(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        if piece:
            yield piece


async def _leave(_request: Request, _error: ClientDisconnect) -> Response:
    return Response(status_code=400)  # nobody reads it


def _stream(
    request: Request,
    size_bytes: int,
    pieces: AsyncIterator[bytes],
    media_type: str = "application/octet-stream",
) -> Response:
    headers = {"content-length": str(size_bytes)}
    if request.method == "HEAD":
        return Response(headers=headers, media_type=media_type)
    return StreamingResponse(pieces, headers=headers, media_type=media_type)


def _program(program: BlobId, manifest: AnyManifest, status: int = 200) -> Response:
    return answer(
        {"program": program, "inputs": manifest.inputs, "outputs": manifest.outputs}, status
    )
