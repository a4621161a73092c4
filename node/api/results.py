"""Results of a job as they go out: a msgpack map for each unit that has ended.

An answer is bounded in bytes and in units, and ends with a map that tells where to go on;
so neither side ever holds more of a job than one answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import msgpack
import msgspec
import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node.api.events import cancel_when_gone

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.types import Receive

    from shoal.crypto.content import BlobId
    from shoal.node.api.facade import DaemonFacade
    from shoal.node.journal_results import Order
    from shoal.node.records import Job, JobId, Unit

MSGPACK = "application/msgpack"

UNITS_PER_ANSWER_LIMIT = 1000

ANSWER_LIMIT_BYTES = 4 << 20
"""Inline outputs in one answer; the units after them are for the next one."""

log = structlog.get_logger(__name__)

_PAGE_UNITS = 128
"""Read at once: with outputs of `SMALL_TENSOR_LIMIT_BYTES`, some 8 MiB for each of them."""


@dataclass(frozen=True, slots=True)
class ResultsQuery:
    """What a client asks for.

    Attributes:
        after: Where the answer before told to go on; -1 for the beginning.
        limit: Units at most.
        order: ``given``, by index and without gaps, or ``ended``.
        wait_s: How long to wait for the first.
    """

    after: int
    limit: int
    order: Order
    wait_s: float


async def results_of(
    daemon: DaemonFacade, job_id: JobId, query: ResultsQuery, receive: Receive | None = None
) -> bytes:
    """The body of an answer; empty but for its last map where nothing has ended in time.

    It ends early when the client leaves, by what ``receive`` gives, where that is given.

    That whoever asks has what came before is noted, but not before the answer to one who waits
    for a job that goes on: see `note_before`.

    Raises:
        JobError: ``no_such_job``.
    """
    job = await daemon.job(job_id)  # before the units: they may end meanwhile
    if not query.wait_s or job.state.final:
        await note_before(daemon, job_id, query)
    found: _Page | None = None
    if not job.state.final and query.wait_s:
        found = await _wait(daemon, job_id, query, receive)
        if not found or not found[0]:
            job = await daemon.job(job_id)
    if not found or not found[0]:
        found = await _page(daemon, job_id, query, query.after, query.limit)
    units, small, after, size_bytes = [*found[0]], {**found[1]}, found[2], found[3]
    while (
        len(found[0]) >= _PAGE_UNITS
        and len(units) < query.limit
        and size_bytes < ANSWER_LIMIT_BYTES
    ):
        found = await _page(daemon, job_id, query, after, query.limit - len(units))
        units += found[0]
        small |= found[1]
        after = found[2]
        size_bytes += found[3]
    return _body(units, small, job, after)


async def note_before(daemon: DaemonFacade, job_id: JobId, query: ResultsQuery) -> None:
    """Note that who reads on has what came before."""
    if query.after >= 0:
        await daemon.note_read(job_id, query.after, query.order)


async def note_later(daemon: DaemonFacade, job_id: JobId, query: ResultsQuery) -> None:
    """As `note_before`, after the answer: else a short unit's write would wait for it."""
    try:
        await note_before(daemon, job_id, query)
    except ShoalError as error:  # it is given out again, and then noted
        log.warning("what was read is not noted", job=job_id, why=error.message)


_Page = tuple[list["Unit"], dict["BlobId", bytes], int, int]
"""Units, their small outputs, where to go on, and how many bytes those outputs have."""


async def _wait(
    daemon: DaemonFacade, job_id: JobId, query: ResultsQuery, receive: Receive | None
) -> _Page | None:
    if receive is None:
        return await _next_page(daemon, job_id, query)
    found: _Page | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel_when_gone, receive, nursery.cancel_scope)
        found = await _next_page(daemon, job_id, query)
        nursery.cancel_scope.cancel()
    return found


async def _next_page(daemon: DaemonFacade, job_id: JobId, query: ResultsQuery) -> _Page | None:
    """The first page with a unit, once there is one; what there is at the end of its time."""
    found: _Page | None = None
    with trio.move_on_after(query.wait_s):
        async with daemon.watch(job_id) as changes:
            before: Job | None = None
            async for job in changes:
                more, before = before and _only_more(before, job), job
                if more:
                    continue
                found = await _page(daemon, job_id, query, query.after, query.limit)
                if found[0] or job.state.final:
                    break
    return found


def _only_more(before: Job, now: Job) -> bool:
    """Whether all that happened is that units came."""
    ended = (before.units_done, before.units_failed, before.state)
    grown = now.units_total > before.units_total
    return grown and ended == (now.units_done, now.units_failed, now.state)


async def _page(
    daemon: DaemonFacade, job_id: JobId, query: ResultsQuery, after: int, limit: int
) -> _Page:
    units, cursor = await daemon.results(job_id, after, min(limit, _PAGE_UNITS), query.order)
    if query.order == "given":
        whole = takewhile(lambda at: at[1].index == after + 1 + at[0], enumerate(units))
        units = [unit for _, unit in whole]
        cursor = units[-1].index if units else after
    ids = [i for unit in units for i in (unit.outputs or {}).values()]
    small = await daemon.small_tensors(ids)
    return units, small, cursor, sum(len(small.get(i, i)) for i in ids)


def _body(units: Sequence[Unit], small: Mapping[BlobId, bytes], job: Job, after: int) -> bytes:
    """Units that have ended, one map each, then one that tells where to go on.

    An output is its tensor where that is in ``small``, otherwise its id.
    """
    packer = msgpack.Packer()
    parts: list[bytes] = []
    for unit in units:
        told = msgspec.to_builtins(unit)
        if unit.outputs is not None:
            told["outputs"] = {name: small.get(i, i) for name, i in unit.outputs.items()}
        for left_out in ("job", "inputs", "awaits"):
            del told[left_out]
        parts.append(packer.pack(told))
    parts.append(packer.pack({"job": msgspec.to_builtins(job), "after": after}))
    return b"".join(parts)
