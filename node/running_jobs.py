"""What is in memory of the jobs that run, beside what the scheduler keeps of them.

How a job is taken up: what it needs is pinned and looked for, once, whether it was
submitted now or ran when the daemon ended.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from shoal.node import chaining, pipeline
from shoal.node.checks import FOUND_FALSE
from shoal.node.errors import StoreError
from shoal.node.house import program_blobs, program_of
from shoal.node.job_views import JobViews
from shoal.node.records import UnitState
from shoal.node.scheduling.state import JobQueue, State
from shoal.node.wanted import wanted_of
from shoal.protocol.verification.policy import Verify

if TYPE_CHECKING:
    from collections.abc import Iterable

    from shoal.crypto.content import BlobId
    from shoal.crypto.peer_id import PeerId
    from shoal.node.checks import Draw
    from shoal.node.house import House
    from shoal.node.records import Failure, Job, JobId, JobSpec, Unit
    from shoal.node.scheduling.state import LeaseId
    from shoal.node.state import State as Journal
    from shoal.protocol.negotiation import RequesterSide

UNITS_AT_ONCE = 1024
"""Units looked at in one piece when a job is taken up."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a unit ends if nobody else can try it: the newest error it was given."""

    unit: Unit
    peer: PeerId | None
    failure: Failure
    receipt: bytes | None
    held: Held | None = None


@dataclass(slots=True)
class Held:
    """A lease that is held, and the hand-overs under it.

    Attributes:
        draw: By what verifiers of its receipts are drawn; None where nothing is checked.
        called_s, got_s: When its provider was called for a bid, and when it had bid.
        answered: Set once the provider has answered the award. Units may go out before; where
            it refuses the lease, they are cut off first.
    """

    side: RequesterSide
    draw: Draw | None = None
    called_s: float = 0.0
    got_s: float = field(default_factory=trio.current_time)
    answered: trio.Event = field(default_factory=trio.Event)
    scopes: set[trio.CancelScope] = field(default_factory=set)

    def cut(self) -> None:
        """Wait for nothing more of it."""
        for scope in self.scopes:
            scope.cancel()


@dataclass(slots=True)
class RunningJob:
    """A job that runs.

    Attributes:
        need: What it needs of a provider.
        queue: The scheduler's part.
        verify: How its results are checked.
        units: Those in memory: that wait, or are out.
        doubted: Units that a peer had that was found false: whoever runs them next is
            checked.
        cursor: The last index read from the journal.
        bids: Conversations that stand at a bid or an award.
        called_s: When a peer was called last.
        held: Its leases.
        errors: For each unit that somebody called an error, the newest.
        ending: Units whose end is being written.
        failure: Why it has failed, beside its units.
        touched: Whether units became ready since it was looked up if all have ended.
    """

    need: pipeline.Need
    queue: JobQueue
    verify: Verify = field(default_factory=Verify)
    units: dict[int, Unit] = field(default_factory=dict)
    cursor: int = -1
    bids: dict[PeerId, RequesterSide] = field(default_factory=dict)
    called_s: dict[PeerId, float] = field(default_factory=dict)
    held: dict[LeaseId, Held] = field(default_factory=dict)
    doubted: set[int] = field(default_factory=set)
    errors: dict[int, Ending] = field(default_factory=dict)
    ending: set[int] = field(default_factory=set)
    failure: Failure | None = None
    touched: bool = False
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    nursery: trio.Nursery | None = None
    finished: trio.Event = field(default_factory=trio.Event)


class RunningJobs:
    """The jobs that run, for those who share in running them.

    Attributes:
        by_id: Each of them.
        state: The scheduler's part of all.
        views: Those who watch them.
        changed: Set at the next change, when there is another event for the one after it.
    """

    def __init__(self, journal: Journal) -> None:
        self.by_id: dict[JobId, RunningJob] = {}
        self.state = State()
        self.views = JobViews(journal)
        self.changed = trio.Event()

    def wake(self) -> None:
        """Have those look again who wait for a change: above all, plan."""
        self.changed.set()
        self.changed = trio.Event()


async def prepare(house: House, job: Job, spec: JobSpec, *, resumed: bool) -> RunningJob:
    """Pin what a job needs, and see that it is there.

    Args:
        house: This node.
        job: As it stands.
        spec: What was asked for.
        resumed: It ran before this daemon started: what its units need is pinned by nobody
            yet, as it is at a submission. And to fail fast is for a first start.

    Raises:
        StoreError: ``blob_missing`` or ``blobs_missing``: something is not held any more.
        ProgramError: The program is none.
    """
    store = house.store
    manifest = await program_of(store, spec.program)
    program = [spec.program, *program_blobs(manifest)]
    for blob_id in program:
        store.pin(blob_id, job.id)
    input_bytes, doubted = 0, set[int]()
    doubts = resumed and await _has_met_a_false_peer(house, job)
    seen = job.units_total if resumed else min(job.units_total, UNITS_AT_ONCE)
    for offset in range(0, seen, UNITS_AT_ONCE):
        units = await house.journal.units(job.id, offset, UNITS_AT_ONCE)
        queued = [unit for unit in units if unit.state is UnitState.QUEUED]
        sizes = await input_sizes(house, queued)
        for blob_id in sizes:
            if store.holds(blob_id):
                store.pin(blob_id, job.id)
        if doubts:  # what a false peer gave was not used: they have been under a lease
            doubted.update(unit.index for unit in queued if unit.attempts)
        for unit in queued:
            input_bytes = max(input_bytes, sum(sizes[i] for i in unit.inputs.values()))
    program_bytes = sum(store.size_bytes(blob_id) for blob_id in program)
    queue = JobQueue(
        job.id,
        (spec.program, spec.numeric_class),
        wanted_of(manifest, spec.numeric_class),
        weight=2.0**spec.priority,
        unit_bytes=input_bytes,
        program_bytes=program_bytes,
        time_limit_s=spec.time_limit_s,
        fail_fast=spec.fail_fast and not resumed,
        open=job.open,
        units=job.units_total,
        ended=job.units_done + job.units_failed,
    )
    need = pipeline.Need(job, spec, manifest, program_bytes, input_bytes)
    return RunningJob(need, queue, Verify.parse(spec.verify), doubted=doubted)


async def _has_met_a_false_peer(house: House, job: Job) -> bool:
    """Whether a peer was found false that may have had units of a job."""
    if await house.journal.bans():
        return True
    return any(answer.verdict == FOUND_FALSE for answer in await house.journal.answers(job.id))


async def input_sizes(house: House, units: Iterable[Unit]) -> dict[BlobId, int]:
    """The size in bytes of every input of these units, wherever it is; 0 of what was lost.

    Raises:
        StoreError: ``blob_missing``: one is neither held nor in the journal, nor with a peer,
            and no unit can make it anew.
    """
    units = list(units)
    inputs = {blob_id for unit in units for blob_id in unit.inputs.values()}
    sizes = {i: house.store.size_bytes(i) for i in inputs if house.store.holds(i)}
    if rest := inputs - sizes.keys():
        sizes |= await house.journal.tensor_sizes(rest)
    if rest := inputs - sizes.keys():
        sizes |= {i: size for i, (*_, size) in (await house.journal.holders(rest)).items()}
    if rest := inputs - sizes.keys():
        sizes |= dict.fromkeys(await chaining.made_by_units(house, units, rest), 0)
    if rest := inputs - sizes.keys():
        raise StoreError(
            f"input {min(rest)[:16]}… is not held any more",
            code="blob_missing",
            hint="submit the job again with its inputs",
        )
    return sizes
