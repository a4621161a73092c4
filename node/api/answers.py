"""JSON bodies of the local API, and which HTTP status an error gets.

The status follows from the error's code, or else from the code of its family
(its class, then its base classes); what no row names is the daemon's fault, 500.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from starlette.responses import Response

from shoal.crypto.errors import ShoalError
from shoal.node.records import SCHEMA_VERSION, Failure

if TYPE_CHECKING:
    from starlette.exceptions import HTTPException
    from starlette.requests import Request

_STATUS_OF_CODE = {
    # families
    "bad_request": 400,
    "compute": 503,
    "config": 400,
    "identity": 500,
    "job": 409,
    "network": 503,
    "peer": 409,
    "program": 400,
    "remote_protocol": 503,
    "store": 500,
    "verification": 400,
    # single codes
    "blob_missing": 404,
    "blobs_missing": 409,
    "body_too_large": 413,
    "disk_full": 507,
    "draining": 503,
    "no_such_job": 404,
    "no_such_offender": 404,
    "no_such_proof": 404,
    "not_banned": 404,
    "not_measured": 409,
    "no_such_output": 404,
    "no_such_peer": 404,
    "no_such_receipt": 404,
    "no_such_unit": 404,
    "peer_too_old": 409,
    "quota_exceeded": 507,
    "unit_too_large": 413,
}


def answer(body: dict[str, Any], status: int = 200) -> Response:
    """A JSON answer with the schema's version in it."""
    return Response(encode(body), status, media_type="application/json")


def encode(body: dict[str, Any]) -> bytes:
    """The bytes of a JSON body."""
    return msgspec.json.encode({"schema_version": SCHEMA_VERSION, **body})


def status_of(error: ShoalError) -> int:
    """The HTTP status that tells of ``error``."""
    codes = (error.code, *(getattr(base, "code", "") for base in type(error).__mro__))
    return next((_STATUS_OF_CODE[code] for code in codes if code in _STATUS_OF_CODE), 500)


def refuse(_request: Request | None, error: ShoalError) -> Response:
    """The answer that an error becomes."""
    return _refusal(Failure(error.code, error.message, error.hint), status_of(error))


def refuse_route(request: Request, error: HTTPException) -> Response:
    """The answer where no route or method fits; starlette raises this one."""
    return _refusal(
        Failure(
            "no_such_route",
            f"{request.method} {request.url.path[:100]} is not in this API: {error.detail}",
            "the routes are listed in docs/API.md",
        ),
        error.status_code,
    )


def confess(_request: Request | None, _error: Exception) -> Response:
    """The answer to a bug of ours; the server logs its traceback."""
    return _refusal(
        Failure("internal_error", "the daemon failed at this request", "see the daemon's log"),
        500,
    )


def _refusal(failure: Failure, status: int) -> Response:
    return answer({"error": failure}, status)
