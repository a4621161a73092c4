"""The requester's words with peers about leases: calls, awards, what is let go, what is noted.

When to call whom, and whose bid to award, is decided by `node.scheduling`; here it is done
by the steps of `node.pipeline`, and the scheduler is told what came of it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node import ending_leases, pipeline, program_sources, unit_messages
from shoal.node.errors import StoreError
from shoal.node.house import RELEASE_TIME_LIMIT_S
from shoal.node.records import Answer
from shoal.node.running_jobs import Held
from shoal.node.scheduling import events
from shoal.node.scheduling.setbacks import setback_of
from shoal.node.scheduling.state import Offer
from shoal.protocol.negotiation import State as Stage
from shoal.protocol.negotiation_messages import Reason, Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.crypto.peer_id import PeerId
    from shoal.node.checks import Draw
    from shoal.node.house import House
    from shoal.node.running_jobs import RunningJob
    from shoal.node.scheduling.state import LeaseId, State
    from shoal.protocol.negotiation import RequesterSide
    from shoal.protocol.negotiation_messages import AwardOffer

log = structlog.get_logger(__name__)


class Negotiation:
    """Talks with peers for all jobs of this node.

    Args:
        house: The modules that the steps call.
        state: The scheduler's; told of what comes of it.
        nursery: Owns what outlives a job: bids and leases are let go in it.
        wake: Has the scheduler plan again.
        draw: Gives by what the verifiers of a lease's receipts are to be drawn.
        is_false: Whether a peer was found false, perhaps while it was asked: its bid is not
            used then, and no lease of it is held.

    Attributes:
        letting_go: How many bids and leases are being let go.
    """

    def __init__(
        self,
        house: House,
        state: State,
        nursery: trio.Nursery,
        wake: Callable[[], None],
        draw: Callable[[RunningJob, PeerId], Draw | None],
        is_false: Callable[[PeerId], bool],
    ) -> None:
        self._house = house
        self._state = state
        self._draw, self._is_false = draw, is_false
        self._nursery = nursery
        self._wake = wake
        self.letting_go = 0

    async def call(self, running: RunningJob, peer: PeerId, units: int) -> None:
        """Call one peer for a bid; what it says goes to the scheduler."""
        running.called_s[peer] = trio.current_time()
        try:
            answer = await pipeline.call_for_bid(self._house, running.need, peer, units)
        except ShoalError as error:
            await self.note(running, peer, error)
            return
        if isinstance(answer, Refusal):
            await self.note(running, peer, answer)
            return
        if self._is_false(peer):
            self.let_go(answer)
            return
        bid = answer.bid
        assert bid is not None
        running.bids[peer] = answer
        each = unit_messages.units_per_message(running.need.manifest)
        offer = Offer(
            price=bid.price,
            units_max=bid.units_max,
            in_flight_max=bid.in_flight_max,
            batch_max=min(bid.batch_max, each),
            at_once=bid.at_once,
            proven=self._house.proven(peer, bid.device),
            rate=self._house.claimed_rate(peer, bid.device, running.need.job.numeric_class),
        )
        now_s = trio.current_time()
        events.bid_came(self._state, running.need.job.id, peer, offer, now_s)
        self._wake()

    async def award(self, running: RunningJob, peer: PeerId) -> None:
        """Award a peer's bid, and hold the lease."""
        side = running.bids.get(peer)
        if side is None:
            return  # the job ended before this began
        job_id, draw = running.need.job.id, self._draw(running, peer)
        held = Held(side, draw, running.called_s.pop(peer, trio.current_time()))
        lease: LeaseId | None = None
        problem: Refusal | ShoalError | None
        try:
            offer = self._sign_award(running.need, side, held.draw)
            if unit_messages.takes_units_with_award(self._house, side):
                lease = self._expect(running, held)
            problem = await pipeline.await_lease(self._house, side, offer)
        except ShoalError as error:
            problem = error
        running.bids.pop(peer, None)
        if lease is not None and lease not in running.held:
            held.answered.set()
            return  # it was taken away meanwhile, by whoever has let it go
        if problem is None and not self._is_false(peer):
            if lease is None:
                lease = self._expect(running, held)
            held.answered.set()
            if lease is None:  # the job has ended meanwhile
                self.let_go(side, held.draw)
                return
            events.lease_confirmed(self._state, lease)
            self._wake()
            await self._keep(Answer(job_id, peer, time.time(), "awarded"))
            return
        if lease is not None:
            del running.held[lease]
            held.cut()
            events.lease_refused(self._state, lease)
        held.answered.set()
        self.let_go(side, None if problem else held.draw)
        if problem is not None:
            await self.note(running, peer, problem)

    def _sign_award(
        self, need: pipeline.Need, side: RequesterSide, draw: Draw | None
    ) -> AwardOffer:
        """Sign an award that names those who have the program, and name the peer to them."""
        house, peer, program = self._house, side.provider, need.spec.program
        others = program_sources.others_for(house, peer, program, need.program_bytes)
        offer = pipeline.sign_award(house, need, side, draw, others)
        assert side.award_id is not None
        if program_sources.shares(house, peer, need.program_bytes):
            house.awarded.add(side.award_id, peer, program)
        if others:
            tell = program_sources.tell_others
            self._nursery.start_soon(tell, house, others, peer, program)
        return offer

    def _expect(self, running: RunningJob, held: Held) -> LeaseId | None:
        """Hold a lease, and have units handed over; None where the job has ended."""
        job_id, peer = running.need.job.id, held.side.provider
        lease = events.lease_expected(self._state, job_id, peer, trio.current_time())
        if lease is not None:
            running.bids.pop(peer, None)
            running.held[lease] = held
            self._wake()
        return lease

    def let_go(self, side: RequesterSide, draw: Draw | None = None) -> None:
        """Release a bid or a lease, in a task that outlives the job."""
        if side.award_id is not None or side.state is Stage.BID:
            self.letting_go += 1
            self._nursery.start_soon(self._release, side, draw)

    async def _release(self, side: RequesterSide, draw: Draw | None) -> None:
        try:
            with trio.move_on_after(3 * RELEASE_TIME_LIMIT_S, shield=True):  # so many messages
                await ending_leases.release(self._house, side, draw)
        finally:
            self.letting_go -= 1
            self._wake()

    async def note(
        self, running: RunningJob, peer: PeerId, problem: Refusal | ShoalError
    ) -> None:
        """Remember what a peer answered, for ``job why``, and when to ask it again."""
        job_id, setback = running.need.job.id, setback_of(problem)
        until_s = trio.current_time() + setback.wait_s
        events.refused(
            self._state, job_id, peer, setback.verdict, until_s, setbacks=setback.count
        )
        self._wake()
        if setback.broken:
            log.warning("a lease broke", peer=peer, code=setback.verdict, error=setback.detail)
        if setback.offence is not None:
            self._house.broke(peer, setback.offence, setback.detail)
        if isinstance(problem, Refusal) and problem.reason is Reason.UNSETTLED:
            self._house.settling.asked_for(peer, problem.missing)
        await self._keep(Answer(job_id, peer, time.time(), setback.verdict, setback.detail))

    async def _keep(self, answer: Answer) -> None:
        """Note an answer for whoever asks why; a job goes on without, as on a full disk."""
        try:
            await self._house.journal.add_answer(answer)
        except StoreError as error:
            log.warning(
                "a peer's answer is not noted",
                job=answer.job,
                peer=answer.peer,
                verdict=answer.verdict,
                error=error.message,
            )
