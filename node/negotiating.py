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
from shoal.node import pipeline
from shoal.node.errors import StoreError
from shoal.node.house import RELEASE_TIME_LIMIT_S
from shoal.node.records import Answer
from shoal.node.running_jobs import Held
from shoal.node.scheduling import events
from shoal.node.scheduling.setbacks import setback_of
from shoal.node.scheduling.state import Offer
from shoal.protocol.messages import Reason, Refusal
from shoal.protocol.negotiation import State as Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from shoal.crypto.peer_id import PeerId
    from shoal.node.checks import Draw
    from shoal.node.house import House
    from shoal.node.running_jobs import RunningJob
    from shoal.node.scheduling.state import State
    from shoal.protocol.negotiation import RequesterSide

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
        each = pipeline.units_per_message(running.need.manifest)
        offer = Offer(
            price=bid.price,
            units_max=bid.units_max,
            in_flight_max=bid.in_flight_max,
            batch_max=min(bid.batch_max, each),
            proven=self._house.proven(peer, bid.device),
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
        try:
            problem: Refusal | ShoalError | None
            problem = await pipeline.award(self._house, running.need, side, draw)
        except ShoalError as error:
            problem = error
        running.bids.pop(peer, None)
        if problem is not None:
            self.let_go(side)
            await self.note(running, peer, problem)
            return
        if self._is_false(peer):
            self.let_go(side, draw)
            return
        lease = events.lease_granted(self._state, job_id, peer, trio.current_time())
        if lease is None:  # the job has ended meanwhile
            self.let_go(side, draw)
            return
        running.held[lease] = Held(side, draw)
        self._wake()
        await self._keep(Answer(job_id, peer, time.time(), "awarded"))

    def let_go(self, side: RequesterSide, draw: Draw | None = None) -> None:
        """Release a bid or a lease, in a task that outlives the job."""
        if side.award_id is not None or side.state is Stage.BID:
            self.letting_go += 1
            self._nursery.start_soon(self._release, side, draw)

    async def _release(self, side: RequesterSide, draw: Draw | None) -> None:
        try:
            with trio.move_on_after(RELEASE_TIME_LIMIT_S, shield=True):
                await pipeline.release(self._house, side, draw)
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
