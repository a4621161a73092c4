"""One verifier, from the requester's side: a lease with it, and units run under it.

The steps are those of `node.pipeline` and the words on the wire are those of any lease, so
that a verifier cannot tell a check from other work: the award names candidates and a salt,
and units are called as those of a job are, by a job that there is not. What a verifier
says is compared by `node.checking`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from shoal.node import chaining, pipeline, unit_messages
from shoal.node.errors import JobError, NetworkError
from shoal.node.records import JobId, Unit, UnitState, new_job_id
from shoal.node.scheduling import estimates
from shoal.node.scheduling.feeding import BATCH_S
from shoal.protocol.negotiation_messages import Refusal, UnitResult

if TYPE_CHECKING:
    from shoal.crypto.content import BlobId
    from shoal.crypto.peer_id import PeerId
    from shoal.node.checks import Draw
    from shoal.node.house import House
    from shoal.node.pipeline import Need
    from shoal.protocol.negotiation import RequesterSide

COLD_S: Final = estimates.COLD_S
WARM_S: Final = 10.0
"""What a verifier gets beyond the units' own time: it has work of others before them."""


@dataclass(slots=True)
class VerifierLease:
    """A lease with a verifier.

    Attributes:
        job: The name of a job that there is not: units are called as its units.
        given: How many units it was given.
        each_s: Seconds per unit as measured here; None before there was one.
    """

    house: House
    need: Need
    side: RequesterSide
    draw: Draw | None
    job: JobId
    given: int = 0
    each_s: float | None = None

    @property
    def room(self) -> int:
        """How many units it takes in one more message."""
        bid = self.side.bid
        assert bid is not None
        each = unit_messages.units_per_message(self.need.manifest)
        return min(self.side.room, bid.batch_max, each)

    def size(self, guess_s: float) -> int:
        """How many units to give it in one message.

        Args:
            guess_s: What a unit takes elsewhere.
        """
        each_s = self.each_s or guess_s
        return max(1, min(self.room, int(BATCH_S / max(each_s, 1e-6))))

    async def run(
        self, inputs: Sequence[Mapping[str, BlobId]], guess_s: float
    ) -> list[tuple[Unit, UnitResult | Refusal]]:
        """Have units with these inputs run; gives each with its answer, in order.

        A unit of which nobody gives an input is answered by a refusal.

        Raises:
            NetworkError: It went away, or takes far longer than others.
            RemoteProtocolError: It broke the protocol.
            StoreError: There is no room here for an input.
        """
        units = [
            Unit(self.job, self.given + place, UnitState.QUEUED, dict(given))
            for place, given in enumerate(inputs)
        ]
        self.given += len(units)
        peer = self.side.provider
        supply = await chaining.supply(self.house, peer, units)
        ready = [unit for unit in units if unit.index not in supply.lost]
        began_s = trio.current_time()
        answers: Mapping[int, UnitResult | Refusal] = {}
        if ready:
            with trio.move_on_after(self._limit_s(len(ready), guess_s)) as limit:
                answers = await pipeline.hand_over(
                    self.house, self.need, self.side, ready, supply.sources
                )
            if limit.cancelled_caught:
                raise NetworkError(f"{peer} takes far longer than others", code="no_answer")
            self.each_s = (trio.current_time() - began_s) / len(ready)
        return [(unit, answers[unit.index]) for unit in units if unit.index in answers]

    def _limit_s(self, units: int, guess_s: float) -> float:
        if self.side.provider == self.house.peer_id:
            return float("inf")  # its own worker has its own limits
        each_s = max(guess_s, self.each_s or 0.0)
        grace_s = COLD_S if self.each_s is None else WARM_S
        size_bytes = self.need.program_bytes + units * self.need.input_bytes
        grace_s += size_bytes / estimates.LINK_BYTES_PER_S
        return estimates.HANG_FACTOR * units * each_s + grace_s

    def let_go(self) -> None:
        """Keep nothing any more for its sake; the lease itself is for the caller to release."""
        self.house.store.unpin(self.job)


def _refused(refusal: Refusal) -> JobError:
    return JobError(refusal.detail or refusal.reason.value, code=refusal.reason.value)


async def open_lease(
    house: House, need: Need, peer: PeerId, units: int, draw: Draw | None
) -> VerifierLease:
    """Get a lease with a verifier, by the same words as with any provider.

    Raises:
        JobError: It refuses; the code is its reason.
        NetworkError, RemoteProtocolError: As the steps raise.
    """
    # What a check gives is compared here, so it comes here.
    spec = msgspec.structs.replace(need.spec, outputs_stay=False)
    need = replace(need, spec=spec)
    side = await pipeline.call_for_bid(house, need, peer, units)
    if isinstance(side, Refusal):
        raise _refused(side)
    offer = pipeline.sign_award(house, need, side, draw)
    refusal = await pipeline.await_lease(house, side, offer)
    if refusal is not None:
        raise _refused(refusal)
    return VerifierLease(house, need, side, draw, new_job_id())
