"""Units of a job run once more, as a job of their own: for ``shoal job again``.

A result that was fetched cannot be taken back. Where its provider is convicted later, the
submitter is told of it (`node.units_assured`), and this is the next thing to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from shoal.node.errors import JobError
from shoal.node.records import Policy
from shoal.node.units_assured import units_assured

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.crypto.peer_id import PeerId
    from shoal.node.records import JobId, JobSpec
    from shoal.node.state import State


async def spec_again(
    journal: State, own: PeerId, job_id: JobId, indices: Sequence[int], verify: str
) -> JobSpec:
    """What is to be submitted to run units of a job once more.

    Args:
        journal: The journal.
        own: This node.
        job_id: The job they are of.
        indices: Which, in the order that they are to have; none: those whose results rest on
            convicted peers alone.
        verify: How their results are to be checked.

    Raises:
        JobError: ``no_such_job``, ``no_such_unit``, ``units_await`` or ``none_doubted``.
        StoreError: The state cannot be read.
    """
    job, spec = await journal.job(job_id), await journal.spec(job_id)
    indices = indices or (await units_assured(journal, job, own)).doubted
    if not indices:
        raise JobError(
            f"no result of job {job_id} rests on peers that were convicted",
            code="none_doubted",
            hint=f"name the units: `shoal job again {job_id} --units 0`",
        )
    given = []
    for index in indices:
        units = await journal.units(job_id, index, 1)
        if not units:
            raise JobError(
                f"job {job_id} has no unit {index}",
                code="no_such_unit",
                hint=f"it has {job.units_total}, and the first is 0",
            )
        if units[0].awaits:
            raise JobError(
                f"unit {index} of job {job_id} awaits inputs that are not there yet",
                code="units_await",
                hint=f"`shoal job wait {job_id}` first",
            )
        given.append(dict(units[0].inputs))
    return msgspec.structs.replace(
        spec, id=None, policy=Policy.MAP, units=tuple(given), verify=verify, open=False
    )
