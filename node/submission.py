"""What a submission has to be before it is written down, and the units that come after it.

Part of the step "submit" of the data path: whether a job is one that was submitted before
under its id, whether its policy of verification is one, how it begins, and adding units to an
open job.
`node.given_units` checks the units themselves; `node.pipeline.submit` writes a job down.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec
import trio

from shoal.node import given_units
from shoal.node.errors import JobError, job_id_taken
from shoal.node.house import program_of
from shoal.node.records import Job, JobState
from shoal.protocol.errors import LocalProtocolError
from shoal.protocol.verification.policy import Verify, check_proofs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.programs import AnyManifest
    from shoal.node.house import House
    from shoal.node.records import GivenUnit, JobId, JobSpec


async def submitted_before(
    house: House, spec: JobSpec, given: Sequence[GivenUnit]
) -> Job | None:
    """The job that was submitted under the id of this one, where there is such a job.

    Args:
        house: This node.
        spec: What is asked for now.
        given: The units that come with it.

    Raises:
        JobError: ``job_id_taken``: it is another one.
    """
    if spec.id is None:
        return None
    try:
        job, before = await house.journal.job(spec.id), await house.journal.spec(spec.id)
    except JobError:
        return None
    count = len(given)
    same_count = job.units_total >= count if spec.open else job.units_total == count
    if before != msgspec.structs.replace(spec, units=()) or not same_count:
        raise job_id_taken(spec.id)
    units = await house.journal.units(spec.id, 0, count)
    if not all(map(given_units.is_given, units, given)):
        raise job_id_taken(spec.id)
    return job


def check_policy(spec: JobSpec) -> None:
    """See that a job says how its results are to be verified, and who gets proofs.

    Raises:
        JobError: ``bad_verify`` or ``bad_proofs``.
    """
    try:
        verify = Verify.parse(spec.verify)
        check_proofs(spec.proofs, spec.numeric_class, verify)
    except LocalProtocolError as error:
        raise JobError(error.message, code=error.code, hint=error.hint) from None


def new_job(spec: JobSpec, job_id: JobId, units: int) -> Job:
    """A job as it begins, now, with so many units; without any it is done unless it is open."""
    running = bool(units) or spec.open
    now_s = time.time()
    return Job(
        id=job_id,
        policy=spec.policy,
        program=spec.program,
        numeric_class=spec.numeric_class,
        label=spec.label,
        state=JobState.RUNNING if running else JobState.DONE,
        created_at=now_s,
        ended_at=None if running else now_s,
        units_total=units,
        units_done=0,
        units_failed=0,
        priority=spec.priority,
        open=spec.open,
        outputs_stay=spec.outputs_stay,
        verify=spec.verify,
    )


async def add_units(
    house: House,
    job_id: JobId,
    given: Sequence[GivenUnit],
    at: int | None = None,
    manifest: AnyManifest | None = None,
) -> tuple[Job, given_units.Taken]:
    """Check units whole and add them to an open job: all of them or none.

    Args:
        house: This node.
        job_id: The job.
        given: The units.
        at: The index that the first is to have; None for whatever comes next.
        manifest: Of its program, where that is at hand and the program held.

    Raises:
        JobError: ``no_such_job``, ``job_sealed``, ``job_ended``, ``wrong_place``, or as
            `pipeline.submit`.
        ProgramError, StoreError: As `pipeline.submit`.
    """
    began_s = trio.current_time()
    async with house.adding.take(job_id):
        job = await house.journal.job(job_id)
        if at is not None and at != job.units_total:
            raise JobError(
                f"job {job_id} has {job.units_total} units, so that none can be added as {at}",
                code="wrong_place",
                hint=f"go on with unit {job.units_total}",
            )
        if manifest is None:
            manifest = await program_of(house.store, job.program)
        taken = await given_units.take(house, manifest, job_id, given, job.units_total)
        added = await house.journal.add_units(job_id, taken.units, taken.tensors)
        house.timings.added(job_id, job.units_total, len(taken.units), began_s)
        return added, taken
