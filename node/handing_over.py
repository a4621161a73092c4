"""One batch of units, to a provider and back: the requester's part of the data path.

Hands the units over, asks again where only the link broke, checks each answer, takes the
outputs in and writes all ends of the batch down at once. What is decided by what came back
is `node.scheduling`'s; here it is told of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import trio

from shoal.crypto.errors import ShoalError
from shoal.node import pipeline
from shoal.node.errors import JobError, NetworkError, StoreError
from shoal.node.records import Ended, Failure, Unit
from shoal.node.running_jobs import Ending, Held, RunningJob
from shoal.node.scheduling import events
from shoal.node.scheduling.setbacks import HANDED_BACK
from shoal.protocol.messages import Reason, Refusal, UnitResult

if TYPE_CHECKING:
    from shoal.node.house import House
    from shoal.node.scheduling.state import Batch, State

RECONNECT_S = (0.0, 1.0)
"""When a broken link is tried again, in seconds after the last try: a provider that is there
answers from memory what it ran, and one that was restarted says so at once."""

REACH_TIME_LIMIT_S = 3.0


@dataclass(slots=True)
class Outcome:
    """What came of a batch.

    Attributes:
        ends: Units that are done, to be written down.
        failed: How many were called errors.
        refusal: Why the provider takes no more under the lease, where it said so.
        problem: Why the lease is broken.
    """

    ends: list[Ended] = field(default_factory=list)
    failed: int = 0
    refusal: Refusal | None = None
    problem: ShoalError | None = None


async def hand_over(
    house: House, state: State, running: RunningJob, held: Held, batch: Batch, cost_s: float
) -> Outcome:
    """Take one batch to its provider and its answers back.

    Outputs are held for the caller, who writes the ends down and then lets go of them by
    `pipeline.let_go`.

    Raises:
        ShoalError: The lease is broken, and nothing of the batch came back.
        StoreError: This node has no room for an output.
    """
    units = []
    for index in batch.open:
        if index in batch.unwanted or index not in running.units:
            continue  # another peer has ended it since
        unit = running.units[index]
        unit = msgspec.structs.replace(unit, attempts=unit.attempts + 1)
        running.units[index] = unit
        units.append(unit)
    if not units:
        return Outcome()
    started_s = trio.current_time()
    answers = await _ask(house, running, held, units)
    now_s = trio.current_time()
    ran = sum(isinstance(answer, UnitResult) for answer in answers.values())
    events.came_back(state, batch.id, now_s, ran, cost_s)
    unit_s = (now_s - started_s) / max(1, ran)
    units = [msgspec.structs.replace(unit, seconds=unit_s) for unit in units]
    outcome = Outcome()
    try:
        await _take_in(house, state, running, held, batch, units, answers, outcome)
    except BaseException:
        pipeline.let_go(house, outcome.ends)
        raise
    return outcome


async def _take_in(
    house: House,
    state: State,
    running: RunningJob,
    held: Held,
    batch: Batch,
    units: list[Unit],
    answers: dict[int, UnitResult | Refusal],
    outcome: Outcome,
) -> None:
    """Check the answers one after another; a false one ends the taking in."""
    for unit in units:
        answer = answers.get(unit.index)
        if answer is None or unit.index not in batch.open or unit.index in batch.unwanted:
            continue
        if isinstance(answer, Refusal):
            _refused(state, running, batch, unit, answer, outcome)
            continue
        if outcome.problem is not None:
            continue
        try:
            await _result(house, state, running, held, batch, unit, answer, outcome)
        except StoreError:
            raise
        except ShoalError as error:
            outcome.problem = error


async def _ask(
    house: House, running: RunningJob, held: Held, units: list[Unit]
) -> dict[int, UnitResult | Refusal]:
    """Hand over, and ask again for the same units where the link broke and came back."""
    waits_s = iter(RECONNECT_S)
    while True:
        try:
            if len(units) == 1:
                (unit,) = units
                answer = await pipeline.hand_over(house, running.need, held.side, unit)
                return {unit.index: answer}
            return await pipeline.hand_over_together(house, running.need, held.side, units)
        except NetworkError as error:
            wait_s = next(waits_s, None)
            if error.code == "no_answer" or wait_s is None:
                raise
            await trio.sleep(wait_s)
            with trio.move_on_after(REACH_TIME_LIMIT_S) as reaching:
                await house.reach(held.side.provider)
            if reaching.cancelled_caught:
                raise


def _refused(  # of one answer
    state: State,
    running: RunningJob,
    batch: Batch,
    unit: Unit,
    answer: Refusal,
    outcome: Outcome,
) -> None:
    if answer.reason in HANDED_BACK:
        events.handed_back(state, batch.id, unit.index)
        events.lease_closed(state, batch.lease)
        outcome.refusal = answer
    elif answer.reason is Reason.PROGRAM_REFUSED:
        failure = Failure(answer.reason.value, answer.detail)
        running.errors[unit.index] = Ending(unit, batch.peer, failure, None)
        events.failed(state, batch.id, unit.index)
        outcome.failed += 1
    else:
        outcome.problem = JobError(
            answer.detail or answer.reason.value, code=answer.reason.value
        )


async def _result(  # of one answer
    house: House,
    state: State,
    running: RunningJob,
    held: Held,
    batch: Batch,
    unit: Unit,
    answer: UnitResult,
    outcome: Outcome,
) -> None:
    receipt = pipeline.verify(running.need, held.side, unit, answer)
    if receipt.error is not None:
        failure = Failure(receipt.error.code, receipt.error.message)
        running.errors[unit.index] = Ending(unit, batch.peer, failure, answer.receipt)
        events.failed(state, batch.id, unit.index)
        outcome.failed += 1
        return
    outcome.ends.append(
        await pipeline.take_outputs(house, running.need, held.side, unit, answer, receipt)
    )
