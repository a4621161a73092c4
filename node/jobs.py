"""The requester's half of the node: takes each job's units to providers and back.

One task per running job. It calls for bids while units wait, gives a lease to
each bid chosen, and lets every lease pull units from the job's board until
none wait. A lease that breaks puts its units back; other providers take them.
Everything that is decided is decided in `node.bidding` and `node.unit_board`;
everything that is done goes through the steps of `node.pipeline`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import structlog
import trio

from shoal.crypto.content import blob_id_of
from shoal.crypto.errors import ShoalError, VerificationError
from shoal.node import bidding, pipeline
from shoal.node.answering import TOO_MANY_REQUESTS
from shoal.node.control import LEFT_ALONE_S
from shoal.node.errors import JobError, StoreError
from shoal.node.house import RELEASE_TIME_LIMIT_S, House, program_blobs, program_of
from shoal.node.job_views import JobViews
from shoal.node.records import (
    Answer,
    Ended,
    Failure,
    Job,
    JobId,
    JobSpec,
    JobState,
    Unit,
    UnitState,
)
from shoal.node.standing import Offence
from shoal.node.unit_board import UnitBoard
from shoal.protocol.errors import RemoteProtocolError
from shoal.protocol.messages import Reason, Refusal, UnitResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from shoal.crypto.peer_id import PeerId
    from shoal.node.pipeline import Need
    from shoal.node.records import GivenUnit
    from shoal.protocol.negotiation import RequesterSide

RECALL_INTERVAL_S = 1.0
"""Between two calls for bids of one job while units wait."""

CALLED_LIMIT = 32
"""Peers called for bids at once; this node and its links come first."""

COOL_DOWN_S = {
    Reason.BUSY: 2.0,
    Reason.EXPIRED: 0.5,
    Reason.DRAINING: 30.0,
    Reason.PAUSED: 5.0,
}
COOL_DOWN_REFUSED_S = 20.0
"""After a refusal for a reason that does not pass by itself."""
HANDED_BACK = frozenset({Reason.BUSY, Reason.DRAINING, Reason.PAUSED})
"""Refusals of a unit under a lease that tell of the provider and nothing of the unit."""

COOL_DOWN_BROKEN_S = 5.0
"""After a broken link, or words that broke the protocol."""

COOL_DOWN_TOO_MANY_S = LEFT_ALONE_S
"""After a peer said that it is asked too much: it is asked nothing before by anybody here."""

OFFENCES = {
    "unfitting_answer": Offence.UNFITTING_ANSWER,
    "unknown_call": Offence.UNFITTING_ANSWER,
    "unknown_award": Offence.UNFITTING_ANSWER,
    "unknown_unit": Offence.UNFITTING_ANSWER,
}
"""Which words of a provider break the rules: not those that only came too late."""

SETBACKS_LIMIT = 3
"""Broken links in a row after which a peer is not counted on to try a failed unit again."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a unit ends if nobody else can try it: the newest error it was given."""

    unit: Unit
    peer: PeerId
    failure: Failure
    receipt: bytes | None


@dataclass(slots=True)
class _Lease:
    """What the feeders of one lease share."""

    side: RequesterSide
    turns: Iterator[int]
    """One for each unit that it is for; none where the provider takes no more, though
    what it has in hand it may still end."""


@dataclass(slots=True)
class _RunningJob:
    """What is in memory of a job while it runs."""

    need: Need
    board: UnitBoard
    sealed: bool = True
    added: bool = False
    """Whether the journal has units that are not on the board yet."""
    units: dict[int, Unit] = field(default_factory=dict)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    leases: set[PeerId] = field(default_factory=set)
    not_before_s: dict[PeerId, float] = field(default_factory=dict)
    setbacks: Counter[PeerId] = field(default_factory=Counter)
    errors: dict[int, _Ending] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)
    finished: trio.Event = field(default_factory=trio.Event)

    def wake(self) -> None:
        """Look at the board again: a unit ended or came back, or a lease is over."""
        if self.board.finished and self.sealed and not self.added:
            self.finished.set()
        self.changed.set()
        self.changed = trio.Event()


class Jobs:
    """Runs the jobs of this node's user. Made by `open_jobs`.

    Args:
        house: The modules that the steps call.
        providers: Gives the peers that may be called for bids now, this node's
            own provider among them; a pure look at the table of adverts.
        nursery: Owns one task for each running job.
    """

    def __init__(
        self,
        house: House,
        providers: Callable[[str], list[PeerId]],
        nursery: trio.Nursery,
    ) -> None:
        self._house = house
        self._providers = providers
        self._nursery = nursery
        self._running: dict[JobId, _RunningJob] = {}
        self._views = JobViews(house.journal)
        self._draining = False
        self.jobs_ended: Counter[JobState] = Counter()
        self.units_ended: Counter[UnitState] = Counter()

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return len(self._running)

    @property
    def units_waiting(self) -> int:
        """How many units of running jobs no lease has taken."""
        return sum(running.board.waiting for running in self._running.values())

    @property
    def units_out(self) -> int:
        """How many units of running jobs are in the hands of a provider."""
        return sum(running.board.out for running in self._running.values())

    def drain(self) -> None:
        """Take no job and hand over no unit any more; what waits is for the next start."""
        self._draining = True
        for running in self._running.values():
            running.wake()

    async def idle(self) -> None:
        """Wait, once drained, until no unit is out and every lease is given up."""
        while leased := [one for one in self._running.values() if one.leases]:
            await leased[0].changed.wait()

    def leases(self, job_id: JobId) -> int:
        """How many leases a job holds now; 0 when it does not run."""
        running = self._running.get(job_id)
        return len(running.leases) if running else 0

    def as_leased(self, unit: Unit) -> Unit:
        """A unit of the state as it stands at this moment: out with whom, if it is."""
        running = self._running.get(unit.job)
        holder = running.board.holder(unit.index) if running else None
        if holder is None:
            return unit
        return msgspec.structs.replace(unit, state=UnitState.LEASED, provider=holder)

    async def submit(self, spec: JobSpec, given: Sequence[GivenUnit] | None = None) -> Job:
        """Check a job, write it down and start it; errors as `pipeline.submit` raises.

        Raises:
            JobError: ``draining``: this daemon is about to end.
        """
        if self._draining:
            raise JobError(
                "this daemon is ending and takes no more jobs",
                code="draining",
                hint="submit it again after the next `shoal up`",
            )
        job = await pipeline.submit(self._house, spec, given)
        with trio.CancelScope(shield=True):  # what is written down runs, whoever hangs up
            return job if job.state.final else await self._start(job, spec)

    def units_added(self, job_id: JobId) -> None:
        """Look at the units that were added to an open job."""
        if (running := self._running.get(job_id)) is not None:
            running.added = True
            running.wake()

    def sealed(self, job_id: JobId) -> None:
        """No more units come to a job: it ends with those it has."""
        if (running := self._running.get(job_id)) is not None:
            running.sealed = True
            running.wake()

    async def cancel_units(self, job_id: JobId, indices: Sequence[int]) -> tuple[int, ...]:
        """Cancel units that nobody runs; gives the indices of those that are cancelled.

        Raises:
            JobError: ``no_such_job``.
        """
        await self._house.journal.job(job_id)
        running = self._running.get(job_id)
        if running is None:
            return ()
        free = tuple(index for index in indices if running.board.cancel(index))
        ends = [
            Ended(Unit(job_id, index, UnitState.CANCELLED, running.units[index].inputs))
            for index in free
        ]
        with trio.CancelScope(shield=True):  # they have ended on the board already
            await self._house.journal.end_units(ends)
        running.wake()
        return free

    async def resume(self) -> None:
        """Start again what ran when the daemon ended; to be called before any `submit`."""
        for job in await self._house.journal.running_jobs():
            await self._start(job, await self._house.journal.spec(job.id))

    async def cancel(self, job_id: JobId) -> Job:
        """End a job; units that have ended keep their results.

        Raises:
            JobError: ``no_such_job``.
        """
        job = await self._house.journal.job(job_id)
        if job.state.final:
            return job
        running = self._running.get(job_id)
        if running is not None:
            running.scope.cancel()
        return await self._end(job_id, JobState.CANCELLED)

    def watch(
        self, job_id: JobId
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[Job]]:
        """The job as it stands and at each change; see `JobViews.watch`."""
        return self._views.watch(job_id)

    async def _start(self, job: Job, spec: JobSpec) -> Job:
        """Run a job in a task of its own; one that cannot even start has failed."""
        try:
            running, units = await self._prepare(job, spec)
        except ShoalError as error:
            self._house.store.unpin(job.id)
            return await self._end(job.id, JobState.FAILED, _failure(error))
        self._running[job.id] = running
        self._nursery.start_soon(self._run, running, units)
        return job

    async def _prepare(self, job: Job, spec: JobSpec) -> tuple[_RunningJob, dict[int, Unit]]:
        """Pin what a job needs, and see what is left to do of it."""
        journal, store = self._house.journal, self._house.store
        units = await journal.open_units(job.id)
        manifest = await program_of(store, spec.program)
        program = [spec.program, *program_blobs(manifest)]
        for blob_id in program:
            store.pin(blob_id, job.id)
        input_bytes = 0
        for unit in units:
            sizes = await journal.tensor_sizes(unit.inputs.values())
            for blob_id in unit.inputs.values() - sizes.keys():
                store.pin(blob_id, job.id)
                sizes[blob_id] = store.size_bytes(blob_id)
            input_bytes = max(input_bytes, sum(sizes[b] for b in unit.inputs.values()))
        need = pipeline.Need(
            job=job,
            spec=spec,
            manifest=manifest,
            program_bytes=sum(store.size_bytes(blob_id) for blob_id in program),
            input_bytes=input_bytes,
        )
        by_index = {unit.index: unit for unit in units}
        board = UnitBoard.of(by_index)
        return _RunningJob(need, board, sealed=not job.open, units=by_index), by_index

    async def _run(self, running: _RunningJob, units: dict[int, Unit]) -> None:
        job_id = running.need.job.id
        log.info("job started", job=job_id, units=len(units))
        try:
            with running.scope:
                async with trio.open_nursery() as leases:
                    leases.start_soon(self._keep_calling, running, units, leases)
                    running.wake()
                    await running.finished.wait()
                    leases.cancel_scope.cancel()
                failure = await self._house.journal.first_failure(job_id)
                await self._end(job_id, JobState.FAILED if failure else JobState.DONE, failure)
        except* StoreError as errors:  # this node's disk: no other provider would help
            await self._break_off(job_id, _failure(_first(errors)))
        except* Exception as errors:  # root of a job: one job's end must not end the others
            log.exception("a job failed inside this node", job=job_id)
            await self._break_off(job_id, Failure("internal", repr(errors)[:400]))
        finally:
            self._running.pop(job_id, None)
            running.wake()
            self._house.store.unpin(job_id)

    async def _break_off(self, job_id: JobId, failure: Failure) -> None:
        """End a job through a fault of this node, perhaps one that keeps it from writing."""
        try:
            await self._end(job_id, JobState.FAILED, failure)
        except StoreError as error:
            log.error(
                "a job stopped and its end could not be written: it goes on after a restart",
                job=job_id,
                why=failure.message,
                error=str(error),
            )

    async def _keep_calling(
        self, running: _RunningJob, units: dict[int, Unit], leases: trio.Nursery
    ) -> None:
        """Call for bids for as long as units wait, at every change and now and then."""
        while True:
            changed = running.changed
            if running.added:
                await self._take_in(running, units)
            await self._give_up(running)
            await self._call(running, units, leases)
            with trio.move_on_after(RECALL_INTERVAL_S):
                await changed.wait()

    async def _take_in(self, running: _RunningJob, units: dict[int, Unit]) -> None:
        """Put the units that were added on the board."""
        running.added = False
        last = max(units, default=-1)
        for unit in await self._house.journal.open_units(running.need.job.id, after=last):
            units[unit.index] = unit
            running.board.add(unit.index)
        running.wake()

    async def _give_up(self, running: _RunningJob) -> None:
        """End units that were called errors, where nobody is left to try them."""
        hopes = [
            peer
            for peer in self._providers(running.need.spec.numeric_class)
            if running.setbacks[peer] < SETBACKS_LIMIT
        ]
        for index in running.board.give_up(hopes):
            await self._write_failed(running, running.errors[index])

    async def _call(
        self, running: _RunningJob, units: dict[int, Unit], leases: trio.Nursery
    ) -> None:
        """Call for bids wherever no lease is held, and award the bids chosen."""
        now_s = trio.current_time()
        peers = [
            peer
            for peer in self._providers(running.need.spec.numeric_class)
            if peer not in running.leases
            and running.not_before_s.get(peer, -math.inf) <= now_s
            and running.board.takeable(peer)
        ]
        if not peers or not running.board.waiting or self._draining:
            return
        answers = await pipeline.call_for_bids(
            self._house, running.need, peers[:CALLED_LIMIT], running.board.waiting
        )
        sides: dict[PeerId, RequesterSide] = {}
        for peer, answer in answers.items():
            if isinstance(answer, Refusal | ShoalError):
                await self._note(running, peer, answer)
            else:
                sides[peer] = answer
        bids = {peer: side.bid for peer, side in sides.items() if side.bid is not None}
        proven = {peer for peer, bid in bids.items() if self._house.proven(peer, bid.device)}
        chosen = bidding.choose(bids, running.board.waiting, proven)
        for peer, side in sides.items():
            if peer in chosen:
                running.leases.add(peer)
                leases.start_soon(self._lease, running, units, side)
            else:
                leases.start_soon(pipeline.release, self._house, side)

    async def _lease(
        self, running: _RunningJob, units: dict[int, Unit], side: RequesterSide
    ) -> None:
        """Award one bid and feed its lease until no unit waits or the lease breaks."""
        assert side.bid is not None
        peer = side.provider
        problem: Refusal | ShoalError | None = None
        try:
            problem = await pipeline.award(self._house, running.need, side)
            if problem is None:
                await self._note(running, peer, None)
                lease = _Lease(side, iter(range(side.bid.units_max)))
                async with trio.open_nursery() as feeders:
                    for _ in range(min(side.bid.in_flight_max, bidding.IN_FLIGHT)):
                        feeders.start_soon(self._feed, running, units, lease)
        except* StoreError:
            raise
        except* ShoalError as errors:
            problem = _first(errors)
        finally:
            running.leases.discard(peer)
            with trio.move_on_after(RELEASE_TIME_LIMIT_S, shield=True):
                await pipeline.release(self._house, side)
        if problem is not None:
            await self._note(running, peer, problem)
        running.wake()

    async def _feed(self, running: _RunningJob, units: dict[int, Unit], lease: _Lease) -> None:
        """Take units from the board to one provider, one after another."""
        board, side, peer = running.board, lease.side, lease.side.provider
        while not self._draining and next(lease.turns, None) is not None:
            index = board.take(peer)
            if index is None:
                return
            unit = msgspec.structs.replace(units[index], attempts=units[index].attempts + 1)
            units[index] = unit
            started_s = trio.current_time()
            ended = False
            try:
                answer = await pipeline.hand_over(self._house, running.need, side, unit)
                if isinstance(answer, Refusal) and answer.reason in HANDED_BACK:
                    ended = True
                    board.handed_back(index)
                    lease.turns = iter(())
                    await self._note(running, peer, answer)
                    running.wake()  # for other peers to be called
                    return
                if isinstance(answer, Refusal):
                    if answer.reason is not Reason.PROGRAM_REFUSED:
                        raise JobError(answer.detail or answer.reason, code=answer.reason)
                    failure = Failure(answer.reason, answer.detail)
                    ended = True
                    await self._failed(running, _Ending(unit, peer, failure, None))
                    continue
                ended = await self._result(running, side, unit, answer, started_s)
            finally:
                if not ended and board.lost(index):
                    failure = Failure(
                        "lost_too_often", "too many leases broke while this unit was out"
                    )
                    await self._write_failed(running, _Ending(unit, peer, failure, None))

    async def _result(
        self,
        running: _RunningJob,
        side: RequesterSide,
        unit: Unit,
        answer: UnitResult,
        started_s: float,
    ) -> bool:
        receipt = pipeline.verify(running.need, side, unit, answer)
        unit = msgspec.structs.replace(unit, seconds=trio.current_time() - started_s)
        if receipt.error is not None:
            failure = Failure(receipt.error.code, receipt.error.message)
            ending = _Ending(unit, side.provider, failure, answer.receipt)
            await self._failed(running, ending)
            return True
        await pipeline.deliver(self._house, running.need, side, unit, answer, receipt)
        if running.board.done(unit.index):
            self.units_ended[UnitState.DONE] += 1
            await self._views.changed(unit.job)
            running.wake()
        return True

    async def _failed(self, running: _RunningJob, ending: _Ending) -> None:
        """Let another provider try a unit that one called an error, or give it up."""
        running.errors[ending.unit.index] = ending
        if running.board.failed(ending.unit.index, ending.peer):
            await self._write_failed(running, ending)
        running.wake()

    async def _write_failed(self, running: _RunningJob, ending: _Ending) -> None:
        unit, receipt = ending.unit, ending.receipt
        ended = msgspec.structs.replace(
            unit,
            state=UnitState.FAILED,
            provider=ending.peer,
            failure=ending.failure,
            receipt=None if receipt is None else blob_id_of(receipt),
        )
        with trio.CancelScope(shield=True):  # it has ended on the board already
            await self._house.journal.end_unit(ended, receipt)
            self.units_ended[UnitState.FAILED] += 1
            await self._views.changed(unit.job)
        running.wake()

    async def _note(
        self, running: _RunningJob, peer: PeerId, problem: Refusal | ShoalError | None
    ) -> None:
        """Remember what a peer answered, for ``job why``, and when to ask it again."""
        match problem:
            case None:
                verdict, detail, wait_s = "awarded", "", 0.0
                del running.setbacks[peer]
            case Refusal():
                verdict, detail = problem.reason.value, problem.detail
                wait_s = COOL_DOWN_S.get(problem.reason, COOL_DOWN_REFUSED_S)
                if problem.reason is Reason.PAUSED:  # for how long, nobody knows
                    running.setbacks[peer] += 1
                elif problem.reason not in COOL_DOWN_S:
                    running.setbacks[peer] = SETBACKS_LIMIT
            case VerificationError():  # what it says is false: not again in this job
                verdict, detail, wait_s = problem.code, problem.message, math.inf
                running.setbacks[peer] = SETBACKS_LIMIT
                log.warning(
                    "a provider's result is false", peer=peer, code=verdict, error=detail
                )
                if verdict != "bad_payload":  # a newer node's receipt, maybe
                    self._house.broke(peer, Offence.BAD_RESULT, detail)
            case JobError():  # a unit was refused under a lease
                verdict, detail = problem.code, problem.message
                wait_s = COOL_DOWN_S.get(Reason(verdict), COOL_DOWN_BROKEN_S)
                running.setbacks[peer] += 1
            case ShoalError():
                verdict, detail = problem.code, problem.message
                busy = verdict == TOO_MANY_REQUESTS
                wait_s = COOL_DOWN_TOO_MANY_S if busy else COOL_DOWN_BROKEN_S
                running.setbacks[peer] += 1
                if isinstance(problem, RemoteProtocolError) and verdict in OFFENCES:
                    self._house.broke(peer, OFFENCES[verdict], detail)
                log.warning("a lease broke", peer=peer, code=verdict, error=detail)
        running.not_before_s[peer] = trio.current_time() + wait_s
        answer = Answer(running.need.job.id, peer, time.time(), verdict, detail)
        await self._house.journal.add_answer(answer)

    async def _end(self, job_id: JobId, state: JobState, failure: Failure | None = None) -> Job:
        with trio.CancelScope(shield=True):
            try:
                job = await self._house.journal.end_job(job_id, state, time.time(), failure)
                self.jobs_ended[job.state] += 1
                log.info(
                    "job ended", job=job_id, state=job.state.value, failed=job.units_failed
                )
                await self._views.changed(job_id)
            finally:  # also where it could not be written: nothing more will be shown
                self._views.close(job_id)
        return job


@asynccontextmanager
async def open_jobs(
    house: House, providers: Callable[[str], list[PeerId]]
) -> AsyncIterator[Jobs]:
    """Run jobs for as long as the block runs; what has not ended then is resumed later."""
    async with trio.open_nursery() as nursery:
        yield Jobs(house, providers, nursery)
        nursery.cancel_scope.cancel()


def _failure(error: ShoalError) -> Failure:
    return Failure(error.code, error.message, error.hint)


def _first(group: BaseExceptionGroup[ShoalError]) -> ShoalError:
    """One error of a group: the first leaf tells enough for a person."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, ShoalError)
    return error
