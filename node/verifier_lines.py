"""Verifiers at their lines: each has a lease, and runs what waits for it in messages.

One task for each verifier of a job. What it says goes back to `node.checking`, which
decides; who refuses, breaks a rule or is gone rests for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node import arrivals, comparing, pipeline
from shoal.node.checked import Checked, Deliveries, JobChecks, Opinion, end_by
from shoal.node.checks import Draw, said_by
from shoal.node.errors import NetworkError, StoreError
from shoal.node.result_standing import Deed
from shoal.node.scheduling import estimates
from shoal.node.scheduling.setbacks import COOL_DOWN_BROKEN_S, setback_of
from shoal.node.verifying import VerifierLease, open_lease
from shoal.protocol.negotiation_messages import UnitResult

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.node.records import Unit
    from shoal.node.running_jobs import RunningJob
    from shoal.node.scheduling.state import State

IDLE_S: Final = 2.0
"""What a lease with a verifier is kept when there is nothing to check."""

log = structlog.get_logger(__name__)


class VerifierLines:
    """Has verifiers run what is in their lines.

    Args:
        house: The modules that the steps call.
        state: The scheduler's: measured speeds are read from it.
        jobs: Who releases leases.
        draw_for: By what the verifiers of a lease's receipts are to be drawn.
        is_false: Whether a peer was found false.
        decide: Called with the results of which something is known now.

    Attributes:
        leases: How many leases with verifiers are held.
    """

    def __init__(
        self,
        house: House,
        state: State,
        jobs: Deliveries,
        draw_for: Callable[[RunningJob, PeerId], Draw | None],
        is_false: Callable[[PeerId], bool],
        decide: Callable[[JobChecks, Sequence[Checked]], Awaitable[None]],
    ) -> None:
        self._house, self._state, self._deliveries = house, state, jobs
        self._draw_for, self._is_false, self._decide = draw_for, is_false, decide
        self.leases = 0

    async def serve(self, job: JobChecks, peer: PeerId) -> None:
        """Have one verifier run what is in its line, until there is nothing more."""
        line, lease = job.lines[peer], None
        batch: list[Checked] = []
        try:
            while await self._more(job, line):
                if self._is_false(peer):
                    break
                if lease is None or lease.room < 1:
                    self._close(lease)
                    lease = None
                    draw = self._draw_for(job.running, peer)
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
                withholds = isinstance(error, NetworkError)
                if withholds and peer in self._house.network.connected():
                    self._house.standings.note(peer, Deed.NO_ANSWER, detail=error.message)
        self._house.settling.received(lease.side, receipts, len(receipts) * (lease.each_s or 0))
        batch.clear()
        await self._silent(job, peer, silent, heard)
        if problem is not None:
            raise problem

    async def _hear(
        self, lease: VerifierLease, checked: Checked, unit: Unit, answer: UnitResult
    ) -> None:
        """Take in one verifier's opinion, where anybody waits for it still.

        Raises:
            VerificationError: Its receipt or its outputs are not what they must be.
            NetworkError: An output could not be fetched.
            StoreError: There is no room here for an output.
        """
        peer = lease.side.provider
        receipt = pipeline.verify(lease.need, lease.side, unit, answer)
        if checked.gone:
            return
        machine = checked.machine
        outputs = None
        if receipt.outputs is not None and (
            not machine.exact or said_by(receipt) != machine.key
        ):
            outputs = await pipeline.take_outputs(
                self._house, lease.need, lease.side, unit, answer, receipt
            )
            if checked.gone:
                arrivals.let_go(self._house, [outputs])
                return
        end = end_by(checked.unit, receipt, answer.receipt, outputs)
        checked.opinions[peer] = Opinion(lease.side.award_bytes, answer.receipt, end, outputs)
        key: object = said_by(receipt)
        if not machine.exact:
            ends = {who: each.end for who, each in checked.opinions.items() if each.end}
            key = await comparing.like_whom(
                self._house, lease.need, machine.opinions, ends, peer
            )
        machine.answers(peer, key)

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
