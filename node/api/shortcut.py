"""One unit and its result in one request, past the HTTP server: see `node.quick_request`.

What is asked for is done by the same functions as for the route ``POST /v1/jobs/{id}/units``.
Left out is what takes about as long as the rest of the daemon's part in a trivial unit: an
HTTP parser for everything, a task for each request, and Starlette's layers. That a client
has left is not looked for either, since none waits here for as long as a second.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from shoal.crypto.errors import ShoalError
from shoal.node import quick_request
from shoal.node.api.answers import confess, refuse
from shoal.node.api.results import (
    MSGPACK,
    UNITS_PER_ANSWER_LIMIT,
    ResultsQuery,
    note_later,
    results_of,
)
from shoal.node.api.units import UnitReader, add_stream, writes
from shoal.node.records import JobId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from starlette.responses import Response

    from shoal.node.api.facade import DaemonFacade
    from shoal.node.quick_request import QuickRequest

_CREATED = 201
log = structlog.get_logger(__name__)


class Shortcut:
    """Answers quick requests for a daemon."""

    def __init__(self, daemon: DaemonFacade) -> None:
        self._daemon = daemon

    async def __call__(self, data: bytes, send: Callable[[bytes], Awaitable[None]]) -> bool:
        """Answer what has come in on a connection; False, where it is no quick request."""
        request = quick_request.decode(data)
        if request is None:
            return False
        job_id = JobId(request.job)
        query = ResultsQuery(request.after, UNITS_PER_ANSWER_LIMIT, "ended", request.wait_s)
        try:
            body = await self._answer(job_id, query, request)
        except ShoalError as error:
            await send(_bytes_of(refuse(None, error)))
        except Exception as error:  # root of a request: a bug at one must not end the others
            log.exception("a request failed", job=job_id)
            await send(_bytes_of(confess(None, error)))
        else:
            await send(quick_request.encode_answer(_CREATED, MSGPACK, body))
            await note_later(self._daemon, job_id, query)
        return True

    async def _answer(self, job_id: JobId, query: ResultsQuery, request: QuickRequest) -> bytes:
        given = writes(UnitReader(_whole(request.body)).maps())
        await add_stream(self._daemon, job_id, given, request.at)
        return await results_of(self._daemon, job_id, query)


async def _whole(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _bytes_of(refusal: Response) -> bytes:
    return quick_request.encode_answer(
        refusal.status_code, "application/json", bytes(refusal.body)
    )
