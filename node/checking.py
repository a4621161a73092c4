"""Results that wait to be checked, until they are delivered: the requester's verification.

What is decided is in `node.checks` and `node.look_back`; here it is done. Results that were
drawn come from `node.units_under_way` and go back there to be delivered. In between each
waits in the line of a verifier, which `node.verifier_lines` has run what is in it. At most
`WAITING_UNITS` of a job wait: then it hands over nothing more until some are done.

Where a result turns out false the right one is delivered, with the receipt of whoever was
right, and `node.falsehoods` sees to whoever signed the false one; who vouched for it is
looked at again here. A result of a peer that is not in good standing is held until what
else it gives has been checked.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import trio

from shoal.node import arrivals, bidding, probation
from shoal.node.candidates import Candidates
from shoal.node.checked import Checked, Deliveries, JobChecks, Opinion, right_end, said
from shoal.node.checks import AUDITED_WHILE, OF_THE_PROGRAM, Stage, UnitCheck, audited
from shoal.node.falsehoods import Falsehoods
from shoal.node.holding import Holding
from shoal.node.house import unit_name
from shoal.node.look_back import Vouchers, is_doubtful
from shoal.node.result_standing import Deed
from shoal.node.surroundings import PendingChecks
from shoal.node.verifier_lines import VerifierLines
from shoal.protocol.verification.draw import signature_of, verifiers

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.node.records import CheckVerdict, Ended, JobId
    from shoal.node.running_jobs import Held, RunningJob
    from shoal.node.scheduling.state import State
    from shoal.node.wanted import Wanted

WAITING_UNITS: Final = 1024
WAITING_BYTES: Final = 64 << 20
"""Results of one job that wait to be checked, and their bytes in memory: some seconds of
work of a good many peers, since a verifier takes batches of half a second."""

RETRY_S: Final = 3.0
"""When those are asked again who gave no opinion, where nobody else is left."""

TRIES: Final = 5
"""After so many times ``auto`` delivers a result that nobody could be found to check, and at
once where there is nobody at all. What was asked for by name, a quorum or a sample, waits."""


class Checking:
    """Has results of this node's jobs checked. Made by `node.units_under_way`.

    Args:
        house: The modules that the steps call.
        state: The scheduler's: measured speeds are read from it.
        providers: Gives the peers that offer what units look for now.
        jobs: Where checked results go.
        nursery: Owns what outlives a job.

    Attributes:
        verdicts: How often verifiers said what of results that were delivered.
        banned, forgive, is_false: As `Falsehoods` has them.
        draw_for, is_outdated: As `Candidates` has them.
    """

    def __init__(
        self,
        house: House,
        state: State,
        providers: Callable[[Wanted], list[PeerId]],
        jobs: Deliveries,
        nursery: trio.Nursery,
    ) -> None:
        self._house = house
        self._providers = providers
        self._deliveries = jobs
        self._jobs: dict[JobId, JobChecks] = {}
        self.verdicts: Counter[CheckVerdict] = Counter()
        self._vouchers: Vouchers[PeerId, Checked] = Vouchers()
        self._falsehoods = Falsehoods(house, jobs, nursery, self._withdraw)
        self.is_false = self._falsehoods.is_false
        self.banned, self.forgive = self._falsehoods.banned, self._falsehoods.forgive
        self._candidates = Candidates(house, providers, self.is_false)
        self.draw_for = self._candidates.draw_for
        self.is_outdated = self._candidates.is_outdated
        self._holding = Holding(house, state, self._deliver)
        self._lines = VerifierLines(
            house, state, jobs, self.draw_for, self.is_false, self._decide
        )

    # --- what others ask ---

    @property
    def leases(self) -> int:
        """How many leases with verifiers are held."""
        return self._lines.leases

    def holder_of(self, job_id: JobId, index: int) -> PeerId | None:
        """Whose result of a unit waits to be checked; None where none does."""
        job = self._jobs.get(job_id)
        if job is None:
            return None
        held = job.ready.get(index)
        checked = held[0] if held else job.waiting.get(index)
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

        def waiting() -> Iterator[Checked]:  # lines grow meanwhile, which decides on audits
            for end, more in drawn:
                checked = self._checked(job, held, end, more, own_only=own_only)
                job.waiting[end.unit.index] = checked
                job.size_bytes += checked.size_bytes
                yield checked

        self._ask(job, waiting())
        self._note_room(job)

    def holds(self, running: RunningJob, provider: PeerId) -> bool:
        """Whether results of a peer that were not drawn are to be held."""
        job = self._jobs.get(running.need.job.id)
        return job is not None and self._holding.is_held(job, provider)

    def hold(self, running: RunningJob, held: Held, ends: Iterable[Ended]) -> None:
        """Keep results that were not drawn until more is known of who gave them."""
        job = self._jobs[running.need.job.id]
        for end in ends:
            checked = self._checked(job, held, end, 0, own_only=True)
            checked.machine.stage = Stage.AGREED
            self._holding.keep(job, checked)
        self._note_room(job)

    def leave(self, running: RunningJob) -> None:
        """A job is over: whatever of it waits is not delivered."""
        job = self._jobs.pop(running.need.job.id, None)
        if job is not None:
            for checked in (*job.waiting.values(), *(each for each, _ in job.ready.values())):
                self._let_go(checked)
            job.ready.clear()

    # --- whom to ask ---

    def _checked(
        self, job: JobChecks, held: Held, end: Ended, more: int, *, own_only: bool
    ) -> Checked:
        own, unit = self._house.peer_id, end.unit
        assert end.receipt is not None
        assert unit.provider is not None
        order: tuple[PeerId, ...] = ()
        audit = False
        if held.draw is not None and not own_only:
            signature, exclude = signature_of(end.receipt), (unit.provider, own)
            order = tuple(verifiers(signature, held.draw.salt, held.draw.candidates, exclude))
            p = self._house.standings.probability(unit.provider)
            few = p >= 1.0 and len(order) < probation.LISTED_ENOUGH
            audit = (
                (few or len(job.lines.get(own, ())) < AUDITED_WHILE)
                and self._is_exact(held)
                and audited(
                    job.running.verify,
                    signature,
                    held.draw.salt,
                    p,
                    few=few,
                    doubted=unit.index in job.running.doubted,
                )
            )
        exact = unit.failure is not None or self._is_exact(held)
        key = said(end) if exact else unit.provider
        quorum = job.running.verify.level == "quorum"
        machine = UnitCheck(unit.provider, own, order, more, exact, key, audit, quorum)
        opinion = Opinion(held.side.award_bytes, end.receipt, end, end)
        size_bytes = sum(map(len, end.tensors.values()))
        return Checked(
            machine, unit, held, {unit.provider: opinion}, size_bytes, own_only=own_only
        )

    @staticmethod
    def _is_exact(held: Held) -> bool:
        assert held.side.award is not None
        return held.side.award.numeric_class == "exact"

    def _ask(self, job: JobChecks, some: Iterable[Checked]) -> None:
        """Put results into the lines of those who are to check them next."""
        offering = frozenset(self._providers(job.running.need.wanted))
        now_s = trio.current_time()

        @cache
        def usable(peer: PeerId) -> bool:
            return (
                peer in offering
                and not self.is_false(peer)
                and job.rests.get(peer, now_s) <= now_s
                and self._house.standings.may_verify(peer)
            )

        of_nobody = []
        for checked in some:
            for peer in checked.machine.next(usable):
                checked.machine.asks(peer)
                self._line_up(job, peer, checked)
            if not checked.machine.out and not checked.machine.stage.final:
                of_nobody.append(checked)
        job.added.set()
        job.added = trio.Event()
        if of_nobody:
            assert job.running.nursery is not None
            job.running.nursery.start_soon(self._try_again, job, of_nobody)

    def _line_up(self, job: JobChecks, peer: PeerId, checked: Checked) -> None:
        line = job.lines.setdefault(peer, deque())
        if peer == self._house.peer_id and checked.machine.stage is Stage.DIFFERS:
            line.appendleft(checked)  # once it is known who lies, the rest is spared
        else:
            line.append(checked)
        if peer not in job.serving:
            job.serving.add(peer)
            assert job.running.nursery is not None
            job.running.nursery.start_soon(self._lines.serve, job, peer)

    async def _try_again(self, job: JobChecks, some: Sequence[Checked]) -> None:
        """Ask once more, a little later, where nobody is left; in the end do without.

        Those that came together are given up together: that is one write for all of them.
        """
        auto, itself = job.running.verify.level == "auto", self._may_run_itself(job)
        providers = {checked.machine.provider for checked in some}
        by_others = {each for each in providers if self._candidates.able(job.running, each)}
        later: list[Checked] = []
        hopeless: list[Checked] = []
        for checked in some:
            checked.tries += 1
            others = not checked.own_only and checked.machine.provider in by_others
            has_hope = checked.tries <= TRIES and (itself or others)
            asked_for = not auto and not checked.own_only
            (later if has_hope or asked_for else hopeless).append(checked)
        for checked in hopeless:
            checked.machine.give_up()
        if given_up := [checked for checked in hopeless if self._waits(job, checked)]:
            await self._finish(job, given_up)
        if later:
            await trio.sleep(RETRY_S)
            for checked in later:
                checked.machine.try_again()
            self._ask(job, [checked for checked in later if self._waits(job, checked)])

    def _may_run_itself(self, job: JobChecks) -> bool:
        """Whether this node runs what it wants to be sure of, or may come to do it."""
        terms, numeric_class = self._house.terms(), job.running.need.spec.numeric_class
        return bidding.closed(self._house.peer_id, terms) is None and (
            terms.starting or numeric_class in terms.executors
        )

    def _waits(self, job: JobChecks, checked: Checked) -> bool:
        if checked.looks_back:
            return not checked.gone
        return job.waiting.get(checked.unit.index) is checked

    def _note_room(self, job: JobChecks) -> None:
        """Hold the job's hand-overs back while too much waits."""
        part = 0.5 if job.running.queue.full else 1.0
        job.running.queue.in_check = len(job.waiting) + len(job.ready)
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

    # --- what it comes to ---

    async def _decide(self, job: JobChecks, changed: Sequence[Checked]) -> None:
        """Deliver what is decided, and ask on for what is not."""
        waiting = [checked for checked in changed if self._waits(job, checked)]
        if more := [checked for checked in waiting if not checked.machine.stage.final]:
            self._ask(job, more)
        await self._finish(job, [each for each in waiting if each.machine.stage.final])

    async def _finish(self, job: JobChecks, decided: Sequence[Checked]) -> None:
        """Deliver the right results, and see to those who gave false ones."""
        ready: list[Checked] = []
        again: list[int] = []
        for checked in decided:
            if checked.looks_back:
                self._let_go(checked)
                continue
            del job.waiting[checked.unit.index]
            job.size_bytes -= checked.size_bytes
            end = right_end(checked)
            if end is None:
                again.append(checked.unit.index)
                self._let_go(checked)
            else:
                ready.append(checked)
                self.verdicts.update(check.verdict for check in end.checks)
            self._note_deeds(checked)
            self._note_vouchers(checked)
        false = [
            (checked, self._falsehoods.convicted(checked, peer))
            for checked in decided
            for peer in checked.machine.false
            if checked.machine.exact and peer != checked.machine.own
        ]
        found = [each for _, each in false]
        try:
            found = [
                await self._falsehoods.asked_again(job, checked, each)
                for checked, each in false
            ]
        except BaseException:  # the job is over, and nothing more of it is delivered
            for checked in ready:
                self._let_go(checked)
            raise
        finally:
            if found:  # in a task that outlives the job
                self._falsehoods.follow(found)
        if again:
            self._deliveries.put_back(job.running, again)
            await self._house.journal.count_lease(job.running.need.job.id, again)
        now: list[Checked] = []
        for checked in ready:
            provider = checked.machine.right
            by_own = checked.machine.own in checked.machine.opinions
            if not by_own and self._holding.is_held(job, provider):
                self._holding.keep(job, checked)
            else:
                now.append(checked)
        await self._deliver(job, now)
        await self._holding.release(job)

    async def _deliver(self, job: JobChecks, ready: Sequence[Checked]) -> None:
        ends = [end for checked in ready if (end := right_end(checked)) is not None]
        if ends:
            await self._deliveries.deliver_checked(job.running, ends)
        for checked in ready:
            self._let_go(checked)
        self._note_room(job)

    # --- who vouched for whom ---

    def _note_vouchers(self, checked: Checked) -> None:
        """Remember who vouched for a result, without what it takes to deliver it."""
        machine = checked.machine
        if not machine.exact or machine.own in machine.opinions or not checked.agreed:
            return
        said = {
            peer: Opinion(each.award, each.receipt) for peer, each in checked.opinions.items()
        }
        item = Checked(machine, checked.unit, checked.held, said, 0)
        self._vouchers.note(machine.right, checked.agreed, item)

    def _withdraw(self, peer: PeerId) -> list[tuple[JobId, list[int]]]:
        """Put back what of a false peer waits or is held, and look at its friends.

        Returns:
            The units that were put back, by their job.
        """
        found = []
        for job in list(self._jobs.values()):
            theirs = [c for c in job.waiting.values() if c.machine.provider == peer]
            held = [
                checked
                for checked, _ in job.ready.values()
                if is_doubtful(checked.machine.right, checked.agreed, self.is_false)
            ]
            for checked in theirs:
                del job.waiting[checked.unit.index]
            for checked in held:
                del job.ready[checked.unit.index]
            for checked in (*theirs, *held):
                job.size_bytes -= checked.size_bytes
                self._let_go(checked)
            for line in job.lines.values():
                still = [checked for checked in line if checked not in theirs]
                line.clear()
                line.extend(still)
            if back := [checked.unit.index for checked in (*theirs, *held)]:
                self._deliveries.put_back(job.running, back)
                found.append((job.running.need.job.id, back))
                self._note_room(job)
        for item in self._vouchers.friends_of(peer, self.is_false):
            job_or_none = self._jobs.get(item.unit.job)
            if job_or_none is not None:  # else its inputs may be gone
                self._look_back(job_or_none, item)
        return found

    def _look_back(self, job: JobChecks, item: Checked) -> None:
        """Have this node run what a false peer and another one agreed upon."""
        old = item.machine
        machine = UnitCheck(old.provider, old.own, (), old.more, True, old.key, audit=True)
        for peer, key in old.opinions.items():
            if peer != old.provider:
                machine.asks(peer)
                machine.answers(peer, key)
        checked = Checked(machine, item.unit, item.held, item.opinions, 0, looks_back=True)
        if not machine.stage.final:
            self._ask(job, [checked])

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
        checked.gone = True
        pinned = [each.pinned for each in checked.opinions.values() if each.pinned]
        arrivals.let_go(self._house, pinned)
