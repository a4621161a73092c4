"""Results that wait to be checked, and those who check them: the requester's verification.

What is decided is in `node.checks`; here it is done. Results that were drawn come from
`node.jobs` and go back there to be delivered. In between each waits in the line of a
verifier; one task for each verifier of a job holds a lease with it
(`node.verifying`), gives it several units in a message, and compares what it says. At most
`WAITING_UNITS` of a job wait: then it hands over nothing more until some are done.

Where a result turns out false the right one is delivered, with the receipt of whoever was
right. In ``exact`` the false receipt is evidence and goes to the disputes; whoever signed
it gets nothing more from this node, and what it gave before without a check is run again,
unless it was fetched already.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import SystemRandom
from typing import TYPE_CHECKING, Final, Protocol

import msgspec
import structlog
import trio

from shoal.crypto.content import blob_id_of
from shoal.crypto.errors import ShoalError
from shoal.node import bidding, comparing, pipeline, probation
from shoal.node.checks import OF_THE_PROGRAM, Draw, Stage, UnitCheck, said_by
from shoal.node.errors import StoreError
from shoal.node.house import unit_name
from shoal.node.records import Check, CheckVerdict, Ended, Failure, Unit, UnitState
from shoal.node.repeating import other_answer
from shoal.node.result_standing import Deed
from shoal.node.scheduling import estimates
from shoal.node.scheduling.setbacks import COOL_DOWN_BROKEN_S, setback_of
from shoal.node.surroundings import PendingChecks
from shoal.node.verifying import VerifierLease, open_lease
from shoal.protocol.limits import CANDIDATES_LIMIT
from shoal.protocol.messages import UnitResult
from shoal.protocol.statements import Receipt, open_receipt
from shoal.protocol.verification.draw import SALT_SIZE_BYTES, signature_of, verifiers

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.node.records import JobId
    from shoal.node.running_jobs import Held, RunningJob
    from shoal.node.scheduling.state import State

FOUND_FALSE: Final = "found_false"
"""What ``job why`` says of a peer whose result was false."""

WAITING_UNITS: Final = 1024
WAITING_BYTES: Final = 64 << 20
"""Results of one job that wait to be checked, and their bytes in memory: some seconds of
work of a good many peers, since a verifier takes batches of half a second."""

IDLE_S: Final = 2.0
"""What a lease with a verifier is kept when there is nothing to check."""

RETRY_S: Final = 3.0
"""When those are asked again who gave no opinion, where nobody else is left."""

TRIES: Final = 5
"""After so many times ``auto`` delivers a result that nobody could be found to check, and at
once where there is nobody at all. What was asked for by name, a quorum or a sample, waits."""

FALSE_FOR_S: Final = 24 * 3600.0
"""How long a peer gets nothing by this node's own finding, beside what others find."""

FALSE_PEERS: Final = 4096
EVIDENCE_OF_ONE: Final = 3
"""False receipts of one peer that are brought to the disputes: one convicts, and two more
are for what cannot be had any more of the first."""

log = structlog.get_logger(__name__)
random = SystemRandom()


class Deliveries(Protocol):
    """Where checked results go: `node.jobs.Jobs`."""

    async def deliver_checked(self, running: RunningJob, ends: Sequence[Ended]) -> None:
        """Write them down."""

    def put_back(self, running: RunningJob, indices: Sequence[int]) -> None:
        """Have these units run again."""

    async def take_away(self, peer: PeerId, detail: str) -> None:
        """Have nothing more to do with a peer."""

    def let_go(self, lease: VerifierLease) -> None:
        """Release a lease with a verifier."""

    def wake(self) -> None:
        """Plan again."""


@dataclass(frozen=True, slots=True)
class Opinion:
    """What somebody gave for a unit.

    Attributes:
        award, receipt: As signed: evidence, should it be false.
        end: The unit's end by it, where its outputs are here.
        pinned: The unit by whose name its outputs are pinned.
    """

    award: bytes
    receipt: bytes
    end: Ended | None = None
    pinned: Ended | None = None


@dataclass(frozen=True, slots=True)
class Falsehood:
    """A result that was false, and what is to be done about it.

    Attributes:
        other: Another receipt of the same award and unit that says another thing.
        first: Nothing false was found of this peer before.
        accused: The receipt is to be brought to the disputes.
    """

    peer: PeerId
    opinion: Opinion
    other: bytes | None
    unit: Unit
    first: bool
    accused: bool


@dataclass(slots=True, eq=False)
class Checked:
    """A result that waits.

    Attributes:
        held: The lease under which it came.
        opinions: What each gave, the provider's among them.
        tries: How often nobody was left to ask.
    """

    machine: UnitCheck
    unit: Unit
    held: Held
    opinions: dict[PeerId, Opinion]
    size_bytes: int
    tries: int = 0
    since_s: float = field(default_factory=trio.current_time)


@dataclass(slots=True)
class JobChecks:
    """What of one job waits.

    Attributes:
        waiting: By index of the unit.
        lines: For each verifier what it is to run.
        serving: Verifiers that have a task.
        rests: Until when a verifier is not asked, since it gave no answer.
    """

    running: RunningJob
    waiting: dict[int, Checked] = field(default_factory=dict)
    lines: dict[PeerId, deque[Checked]] = field(default_factory=dict)
    serving: set[PeerId] = field(default_factory=set)
    rests: dict[PeerId, float] = field(default_factory=dict)
    size_bytes: int = 0
    added: trio.Event = field(default_factory=trio.Event)


class Checking:
    """Has results of this node's jobs checked. Made by `node.jobs.Jobs`.

    Args:
        house: The modules that the steps call.
        state: The scheduler's: measured speeds are read from it.
        providers: Gives the peers that offer a numeric class now.
        jobs: Where checked results go.
        nursery: Owns what outlives a job.

    Attributes:
        leases: How many leases with verifiers are held.
        verdicts: How often verifiers said what of results that were delivered.
    """

    def __init__(
        self,
        house: House,
        state: State,
        providers: Callable[[str], list[PeerId]],
        jobs: Deliveries,
        nursery: trio.Nursery,
    ) -> None:
        self._house, self._state, self._nursery = house, state, nursery
        self._providers = providers
        self._deliveries = jobs
        self._jobs: dict[JobId, JobChecks] = {}
        self._false: dict[PeerId, float] = {}
        self._accused: dict[PeerId, int] = {}
        self._asked_again: set[PeerId] = set()
        self.leases = 0
        self.verdicts: Counter[CheckVerdict] = Counter()

    # --- what others ask ---

    def is_false(self, peer: PeerId) -> bool:
        """Whether this node has found a result of this peer false lately."""
        until_s = self._false.get(peer)
        return until_s is not None and trio.current_time() < until_s

    def holder_of(self, job_id: JobId, index: int) -> PeerId | None:
        """Whose result of a unit waits to be checked; None where none does."""
        job = self._jobs.get(job_id)
        checked = job.waiting.get(index) if job else None
        return checked.unit.provider if checked else None

    def pending(self, job_id: JobId) -> list[PendingChecks]:
        """What of a job waits, told once for all that wait alike."""
        job = self._jobs.get(job_id)
        alike: dict[tuple[Stage, tuple[PeerId, ...], int | None], list[Checked]] = {}
        for each in job.waiting.values() if job else ():
            asked = tuple(sorted(each.machine.out))
            auto = job is not None and job.running.verify.level == "auto"
            tries_left = max(0, TRIES + 1 - each.tries) if auto and not asked else None
            alike.setdefault((each.machine.stage, asked, tries_left), []).append(each)
        now_s = trio.current_time()
        return [
            PendingChecks(
                stage=stage,
                asked=asked,
                units=tuple(sorted(each.unit.index for each in group)),
                waited_s=now_s - min(each.since_s for each in group),
                again_s=RETRY_S,
                tries_left=tries_left,
            )
            for (stage, asked, tries_left), group in alike.items()
        ]

    def banned(self, peer: PeerId) -> None:
        """Part with a peer that somebody's fraud proof has convicted; it does not block."""
        if self._note_false(peer):
            self._nursery.start_soon(self._part_with, peer, "a fraud proof has convicted it")

    def forgive(self, peer: PeerId) -> None:
        """Hold nothing against a peer any more: its operator has mended it, says this one's."""
        self._false.pop(peer, None)
        self._accused.pop(peer, None)
        self._asked_again.discard(peer)

    def draw_for(self, running: RunningJob, provider: PeerId) -> Draw | None:
        """By what the verifiers of a new lease's receipts are to be drawn.

        None where nothing is checked: under ``receipt``, and of this node's own results.
        """
        if running.verify.level == "receipt" or provider == self._house.peer_id:
            return None
        able = self._able(running, provider)
        if len(able) > CANDIDATES_LIMIT:
            able = random.sample(able, CANDIDATES_LIMIT)
        return Draw(secrets.token_bytes(SALT_SIZE_BYTES), tuple(sorted(able)))

    def is_outdated(self, running: RunningJob, held: Held) -> bool:
        """Whether a lease is to be given up for one whose award names more verifiers."""
        draw = held.draw
        if draw is None or len(draw.candidates) >= probation.LISTED_ENOUGH:
            return False
        able = self._able(running, held.side.provider)
        return probation.outdated(draw.candidates, len(able))

    def _able(self, running: RunningJob, provider: PeerId) -> list[PeerId]:
        """Who may verify what a provider gives."""
        return [
            peer
            for peer in self._providers(running.need.spec.numeric_class)
            if peer not in {provider, self._house.peer_id}
            and not self.is_false(peer)
            and self._house.standings.may_verify(peer)
        ]

    def doubts(self, running: RunningJob, end: Ended) -> bool:
        """Whether a unit that is about to fail is to be run here first."""
        failure = end.unit.failure
        return (
            running.verify.level != "receipt"
            and running.need.spec.numeric_class == "exact"
            and end.receipt is not None
            and end.unit.provider != self._house.peer_id
            and failure is not None
            and failure.code in OF_THE_PROGRAM
        )

    def begin(
        self,
        running: RunningJob,
        held: Held,
        drawn: Iterable[tuple[Ended, int]],
        *,
        own_only: bool = False,
    ) -> None:
        """Check results of one lease; for the scheduler they have ended.

        Args:
            running: Their job.
            held: Their lease.
            drawn: With how many opinions each is to have beside the provider's.
            own_only: Have them checked by this node alone.
        """
        job = self._jobs.setdefault(running.need.job.id, JobChecks(running))
        for end, more in drawn:
            checked = self._checked(held, end, more, own_only=own_only)
            job.waiting[end.unit.index] = checked
            job.size_bytes += checked.size_bytes
            self._ask(job, checked)
        self._note_room(job)

    def leave(self, running: RunningJob) -> None:
        """A job is over: whatever of it waits is not delivered."""
        job = self._jobs.pop(running.need.job.id, None)
        for checked in list(job.waiting.values()) if job else ():
            self._let_go(checked)

    # --- whom to ask ---

    def _checked(self, held: Held, end: Ended, more: int, *, own_only: bool) -> Checked:
        own, unit = self._house.peer_id, end.unit
        assert end.receipt is not None
        assert unit.provider is not None
        order: tuple[PeerId, ...] = ()
        if held.draw is not None and not own_only:
            signature, exclude = signature_of(end.receipt), (unit.provider, own)
            order = tuple(verifiers(signature, held.draw.salt, held.draw.candidates, exclude))
        exact = unit.failure is not None or self._is_exact(held)
        key = _said(end) if exact else unit.provider
        machine = UnitCheck(unit.provider, own, order, more, exact, key)
        opinion = Opinion(held.side.award_bytes, end.receipt, end, end)
        size_bytes = sum(map(len, end.tensors.values()))
        return Checked(machine, unit, held, {unit.provider: opinion}, size_bytes)

    @staticmethod
    def _is_exact(held: Held) -> bool:
        assert held.side.award is not None
        return held.side.award.numeric_class == "exact"

    def _ask(self, job: JobChecks, checked: Checked) -> None:
        """Put a result into the lines of those who are to check it next."""
        offering = frozenset(self._providers(job.running.need.spec.numeric_class))
        now_s = trio.current_time()

        def usable(peer: PeerId) -> bool:
            return (
                peer in offering
                and not self.is_false(peer)
                and job.rests.get(peer, now_s) <= now_s
                and self._house.standings.may_verify(peer)
            )

        for peer in checked.machine.next(usable):
            checked.machine.asks(peer)
            line = job.lines.setdefault(peer, deque())
            if peer == self._house.peer_id and checked.machine.stage is Stage.DIFFERS:
                line.appendleft(checked)  # once it is known who lies, the rest is spared
            else:
                line.append(checked)
            if peer not in job.serving:
                job.serving.add(peer)
                assert job.running.nursery is not None
                job.running.nursery.start_soon(self._serve, job, peer)
        job.added.set()
        job.added = trio.Event()
        if not checked.machine.out and not checked.machine.stage.final:
            assert job.running.nursery is not None
            job.running.nursery.start_soon(self._try_again, job, checked)

    async def _try_again(self, job: JobChecks, checked: Checked) -> None:
        """Ask once more, a little later, where nobody is left; in the end do without."""
        checked.tries += 1
        hopeless = checked.tries > TRIES or not self._can_be_checked(job, checked)
        if not hopeless or job.running.verify.level != "auto":
            await trio.sleep(RETRY_S)
            checked.machine.try_again()
            if self._waits(job, checked):
                self._ask(job, checked)
            return
        checked.machine.give_up()
        if self._waits(job, checked):
            await self._finish(job, [checked])

    def _can_be_checked(self, job: JobChecks, checked: Checked) -> bool:
        """Whether there is anybody who may check a result, or this node may come to do it."""
        terms, numeric_class = self._house.terms(), job.running.need.spec.numeric_class
        itself = bidding.closed(self._house.peer_id, terms) is None and (
            terms.starting or numeric_class in terms.executors
        )
        return itself or bool(self._able(job.running, checked.machine.provider))

    def _waits(self, job: JobChecks, checked: Checked) -> bool:
        return job.waiting.get(checked.unit.index) is checked

    def _note_room(self, job: JobChecks) -> None:
        """Hold the job's hand-overs back while too much waits."""
        part = 0.5 if job.running.queue.full else 1.0
        job.running.queue.in_check = len(job.waiting)
        full = (
            len(job.waiting) >= WAITING_UNITS * part or job.size_bytes >= WAITING_BYTES * part
        )
        waiting = Counter(checked.machine.provider for checked in job.waiting.values())
        wakes = full != job.running.queue.full
        for peer, candidate in job.running.queue.candidates.items():
            was, now = candidate.full, self._house.standings.of(peer)
            candidate.full = probation.is_full(now, waiting[peer])
            wakes = wakes or (was and not candidate.full)
        job.running.queue.full = full
        if wakes:
            self._deliveries.wake()

    # --- one verifier ---

    async def _serve(self, job: JobChecks, peer: PeerId) -> None:
        """Have one verifier run what is in its line, until there is nothing more."""
        line, lease = job.lines[peer], None
        batch: list[Checked] = []
        try:
            while await self._more(job, line):
                if self.is_false(peer):
                    break
                if lease is None or lease.room < 1:
                    self._close(lease)
                    lease = None
                    draw = self.draw_for(job.running, peer)
                    lease = await open_lease(
                        self._house, job.running.need, peer, len(line), draw
                    )
                    self.leases += 1
                if not line:  # what waited was put back meanwhile
                    continue
                guess_s = self._unit_s(job, peer, line[0])
                batch = [line.popleft() for _ in range(min(len(line), lease.size(guess_s)))]
                await self._run(job, lease, batch, guess_s)
                batch = []
        except StoreError:
            raise
        except ShoalError as error:
            self._blame(job, peer, error, asked=bool(batch))
        finally:
            job.serving.discard(peer)
            self._close(lease)
        missed = [*batch, *line]
        line.clear()
        await self._silent(job, peer, missed)

    async def _more(self, job: JobChecks, line: deque[Checked]) -> bool:
        """Wait for something in a line; False where nothing comes for a while."""
        with trio.move_on_after(IDLE_S):
            while not line:
                await job.added.wait()
        return bool(line)

    def _close(self, lease: VerifierLease | None) -> None:
        if lease is not None:
            self.leases -= 1
            lease.let_go()
            self._deliveries.let_go(lease)

    async def _run(
        self, job: JobChecks, lease: VerifierLease, batch: list[Checked], guess_s: float
    ) -> None:
        """Have one message's units run, and hear what comes of them; ``batch`` is then empty.

        Raises:
            ShoalError: There is nothing more to be had of this verifier.
        """
        peer = lease.side.provider
        ran = await lease.run([checked.unit.inputs for checked in batch], guess_s)
        answers = {unit.index: (unit, answer) for unit, answer in ran}
        first = lease.given - len(batch)
        receipts: list[bytes] = []
        silent: list[Checked] = []
        heard: list[Checked] = []
        problem: ShoalError | None = None
        for place, checked in enumerate(batch):
            unit, answer = answers.get(first + place, (None, None))
            if unit is None or not isinstance(answer, UnitResult) or problem is not None:
                silent.append(checked)
                continue
            try:
                await self._hear(lease, checked, unit, answer)
                receipts.append(answer.receipt)
                heard.append(checked)
            except StoreError:
                raise
            except ShoalError as error:
                problem = error
                silent.append(checked)
        self._house.settling.received(lease.side, receipts, len(receipts) * (lease.each_s or 0))
        batch.clear()
        await self._silent(job, peer, silent, heard)
        if problem is not None:
            raise problem

    async def _hear(
        self, lease: VerifierLease, checked: Checked, unit: Unit, answer: UnitResult
    ) -> None:
        """Take in one verifier's opinion.

        Raises:
            VerificationError: Its receipt or its outputs are not what they must be.
            NetworkError: An output could not be fetched.
            StoreError: There is no room here for an output.
        """
        peer = lease.side.provider
        receipt = pipeline.verify(lease.need, lease.side, unit, answer)
        machine = checked.machine
        outputs = None
        if receipt.outputs is not None and (
            not machine.exact or said_by(receipt) != machine.key
        ):
            outputs = await pipeline.take_outputs(
                self._house, lease.need, lease.side, unit, answer, receipt
            )
        end = self._end_by(checked.unit, receipt, answer.receipt, outputs)
        checked.opinions[peer] = Opinion(lease.side.award_bytes, answer.receipt, end, outputs)
        key: object = said_by(receipt)
        if not machine.exact:
            ends = {who: each.end for who, each in checked.opinions.items() if each.end}
            key = await comparing.like_whom(
                self._house, lease.need, machine.opinions, ends, peer
            )
        machine.answers(peer, key)

    @staticmethod
    def _end_by(
        unit: Unit, receipt: Receipt, envelope: bytes, outputs: Ended | None
    ) -> Ended | None:
        """The end that a unit has by a receipt; None where its outputs are not here."""
        who = {"provider": receipt.provider, "receipt": blob_id_of(envelope)}
        if receipt.error is not None:
            failure = Failure(receipt.error.code, receipt.error.message)
            ended = msgspec.structs.replace(
                unit, state=UnitState.FAILED, outputs=None, failure=failure, **who
            )
            return Ended(ended, envelope)
        if outputs is None:
            return None
        ended = msgspec.structs.replace(
            unit, state=UnitState.DONE, outputs=outputs.unit.outputs, failure=None, **who
        )
        return Ended(ended, envelope, outputs.tensors)

    def _unit_s(self, job: JobChecks, peer: PeerId, checked: Checked) -> float:
        """What one unit takes: as measured at this peer, or as its provider took."""
        own_s = estimates.measured_s(self._state, job.running.queue, peer)
        return own_s or checked.unit.seconds or estimates.GUESS_S

    def _blame(self, job: JobChecks, peer: PeerId, error: ShoalError, *, asked: bool) -> None:
        """A verifier refused, broke a rule, or is gone: it rests, and others are asked."""
        setback = setback_of(error)
        log.info("a verifier gives no opinion", peer=peer, code=setback.verdict)
        job.rests[peer] = trio.current_time() + max(setback.wait_s, COOL_DOWN_BROKEN_S)
        if setback.offence is not None:
            self._house.broke(peer, setback.offence, setback.detail)
        if asked and peer != self._house.peer_id:
            self._house.standings.note(peer, Deed.NO_ANSWER, detail=setback.detail)

    async def _silent(
        self,
        job: JobChecks,
        peer: PeerId,
        missed: Sequence[Checked],
        heard: Sequence[Checked] = (),
    ) -> None:
        """Go on with what a verifier gave an opinion on, and with what it did not."""
        for checked in missed:
            checked.machine.says_nothing(peer)
        await self._decide(job, [*heard, *missed])

    # --- what it comes to ---

    async def _decide(self, job: JobChecks, changed: Sequence[Checked]) -> None:
        """Deliver what is decided, and ask on for what is not."""
        waiting = [checked for checked in changed if self._waits(job, checked)]
        for checked in waiting:
            if not checked.machine.stage.final:
                self._ask(job, checked)
        await self._finish(job, [each for each in waiting if each.machine.stage.final])

    async def _finish(self, job: JobChecks, decided: Sequence[Checked]) -> None:
        """Deliver the right results, and see to those who gave false ones."""
        ends: list[Ended] = []
        again: list[int] = []
        for checked in decided:
            del job.waiting[checked.unit.index]
            job.size_bytes -= checked.size_bytes
            end = self._right_end(checked)
            if end is None:
                again.append(checked.unit.index)
                self._let_go(checked)
            else:
                ends.append(end)
                self.verdicts.update(check.verdict for check in end.checks)
            self._note_deeds(checked)
        found = [
            await self._convicted(job, checked, peer)
            for checked in decided
            for peer in checked.machine.false
            if checked.machine.exact and peer != checked.machine.own
        ]
        if found:  # in a task that outlives the job, which may be over by this
            self._nursery.start_soon(self._see_to, found)
        if ends:
            await self._deliveries.deliver_checked(job.running, ends)
        if again:
            self._deliveries.put_back(job.running, again)
        for checked in decided:
            self._let_go(checked)
        self._note_room(job)

    def _right_end(self, checked: Checked) -> Ended | None:
        """What is to be written down; None where nobody's result can be used."""
        machine = checked.machine
        if machine.stage is Stage.UNCHECKED and len(set(machine.opinions.values())) > 1:
            return None
        opinion = checked.opinions[machine.right]
        end = opinion.end
        own = checked.opinions.get(machine.own)
        if end is None and own is not None and own.end is not None:
            end = own.end  # equal bits, which are here
        if end is None:
            return None
        unit = msgspec.structs.replace(
            end.unit, provider=machine.right, receipt=blob_id_of(opinion.receipt)
        )
        return msgspec.structs.replace(
            end, unit=unit, receipt=opinion.receipt, checks=self._records(checked)
        )

    @staticmethod
    def _records(checked: Checked) -> tuple[Check, ...]:
        """The checks as they are written down."""
        now = time.time()
        return tuple(
            Check(
                job=checked.unit.job,
                unit=checked.unit.index,
                level=level,
                verifier=peer,
                verdict=verdict,
                receipt=blob_id_of(opinion.receipt) if opinion else None,
                at=now,
            )
            for peer, level, verdict in checked.machine.verdicts
            for opinion in (checked.opinions.get(peer),)
        )

    def _note_deeds(self, checked: Checked) -> None:
        machine, note = checked.machine, self._house.standings.note
        if machine.stage is Stage.UNCHECKED:
            return
        for peer in machine.opinions.keys() - {machine.own, *machine.false}:
            first = peer == machine.provider
            note(peer, Deed.CHECKED_GOOD if first else Deed.CHECKED_OTHERS)
        for peer in machine.false:
            if not machine.exact and peer != machine.own:
                note(peer, Deed.VOTED_DOWN, detail=f"unit {unit_name(checked.unit)}")

    def _let_go(self, checked: Checked) -> None:
        """Keep outputs no longer that were only here to be compared."""
        pinned = [each.pinned for each in checked.opinions.values() if each.pinned]
        pipeline.let_go(self._house, pinned)

    # --- who gave a false result ---

    async def _convicted(self, job: JobChecks, checked: Checked, peer: PeerId) -> Falsehood:
        """Note that a peer's signed result is another one than this node got itself."""
        machine, opinion = checked.machine, checked.opinions[peer]
        name, before = unit_name(checked.unit), self._accused.get(peer, 0)
        log.warning("a result was false", peer=peer, unit=name, right=machine.right)
        first = self._note_false(peer)
        self._accused[peer] = before + 1
        other = None
        if peer == machine.provider and peer not in self._asked_again:
            self._asked_again.add(peer)
            side, need = checked.held.side, job.running.need  # while there is the lease
            other = await other_answer(self._house, need, side, checked.unit, opinion.receipt)
        return Falsehood(
            peer,
            opinion,
            other,
            checked.unit,
            first=first,
            accused=before < EVIDENCE_OF_ONE or other is not None,
        )

    def _note_false(self, peer: PeerId) -> bool:
        """Deal no more with a peer for a while; gives whether that is new."""
        first = not self.is_false(peer)
        self._false[peer] = trio.current_time() + FALSE_FOR_S
        while len(self._false) > FALSE_PEERS:
            self.forgive(next(iter(self._false)))
        return first

    async def _part_with(self, peer: PeerId, detail: str) -> None:
        """Have nothing more to do with a peer, and nothing rest on its word; never raises."""
        try:
            with trio.CancelScope(shield=True):
                await self._deliveries.take_away(peer, detail)
                await self._take_back(peer)
        except ShoalError as error:  # root of a task of all jobs
            log.error("what a banned peer gave could not be taken back", error=str(error))

    async def _see_to(self, found: Sequence[Falsehood]) -> None:
        """See to peers whose results were false: raises nothing."""
        try:
            with trio.CancelScope(shield=True):
                for each in found:
                    if each.first:
                        detail = f"its result of unit {unit_name(each.unit)} was false"
                        await self._deliveries.take_away(each.peer, detail)
                        await self._take_back(each.peer)
                    if each.accused:
                        await self._house.accuse(
                            each.opinion.award,
                            each.opinion.receipt,
                            each.other,
                            each.unit.job,
                            each.unit.index,
                        )
        except ShoalError as error:  # root of a task of all jobs
            log.error("what follows from a false result could not be done", error=str(error))

    async def _take_back(self, peer: PeerId) -> None:
        """Have everything run again that rests on a false peer's word alone."""
        for job in list(self._jobs.values()):
            theirs = [c for c in job.waiting.values() if c.machine.provider == peer]
            for checked in theirs:
                del job.waiting[checked.unit.index]
                job.size_bytes -= checked.size_bytes
                self._let_go(checked)
            for line in job.lines.values():
                still = [checked for checked in line if checked not in theirs]
                line.clear()
                line.extend(still)
            if theirs:
                self._deliveries.put_back(job.running, [c.unit.index for c in theirs])
                self._note_room(job)
        journal, again = self._house.journal, 0
        for job_id, index in await journal.unfetched_units_of(peer):
            checks = await journal.checks(job_id, index)
            if any(c.verdict == "agrees" and not self.is_false(c.verifier) for c in checks):
                continue
            again += await journal.reopen_unit(job_id, index)
        log.warning("what a false peer gave runs again", peer=peer, units=again)


def _said(end: Ended) -> object:
    """What the provider's receipt says, by the end that was made of it."""
    assert end.receipt is not None
    return said_by(open_receipt(end.receipt))
