"""A job's changes as they happen, one JSON line each, until it is final."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import trio
from starlette.responses import Response

from shoal.node.api.answers import encode

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from shoal.node.api.facade import DaemonFacade
    from shoal.node.records import Job, JobId

_INTERVAL_S = 0.1
"""Changes that come closer together are told as one."""


class JobEvents(Response):
    """An answer of one line for the job at once, and one for each change.

    Not a `StreamingResponse`: that one abandons its generator when the client
    goes away, and with it whatever the generator holds open.
    """

    media_type = "application/x-ndjson"

    def __init__(self, daemon: DaemonFacade, job_id: JobId) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._daemon = daemon
        self._job_id = job_id

    async def __call__(
        self,
        scope: Scope,  # noqa: ARG002  # ASGI's signature
        receive: Receive,
        send: Send,
    ) -> None:
        """Tell the job over ASGI; ends early when the client goes away."""
        head = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(head)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
            await self._tell(send)
            nursery.cancel_scope.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, send: Send) -> None:
        told: Job | None = None
        async with self._daemon.watch(self._job_id) as changes:
            async for change in changes:
                told = _newest(changes, change)
                await _send_line(send, told)
                if told.state.final:
                    return
                await trio.sleep(_INTERVAL_S)
        now = await self._daemon.job(self._job_id)
        if now != told:
            await _send_line(send, now)


async def cancel_when_gone(receive: Receive, scope: trio.CancelScope) -> None:
    """End the waiting for a client that went away."""
    while (await receive())["type"] != "http.disconnect":
        pass  # what is left of the request's body
    scope.cancel()


def _newest(changes: trio.MemoryReceiveChannel[Job], job: Job) -> Job:
    """Of several waiting changes only the newest matters."""
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        while True:
            job = changes.receive_nowait()
    return job


async def _send_line(send: Send, job: Job) -> None:
    line = encode({"job": job}) + b"\n"
    await send({"type": "http.response.body", "body": line, "more_body": True})
