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

from shoal.crypto.content import BlobId, blob_id_of
from shoal.crypto.errors import ShoalError, VerificationError
from shoal.node import arrivals, chaining, pipeline, repeating
from shoal.node.checks import of_the_program, wanted
from shoal.node.errors import JobError, NetworkError, StoreError
from shoal.node.house import unit_name
from shoal.node.records import Ended, Failure, Unit, UnitState
from shoal.node.result_standing import Deed
from shoal.node.running_jobs import Ending, Held, RunningJob
from shoal.node.scheduling import events
from shoal.node.scheduling.setbacks import HANDED_BACK
from shoal.protocol.negotiation_messages import Reason, Refusal, UnitResult
from shoal.protocol.verification.draw import signature_of

if TYPE_CHECKING:
    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.node.lineage import Left, Supply
    from shoal.node.scheduling.state import Batch, State
    from shoal.protocol.statements import Receipt

RECONNECT_S = (0.0, 1.0)
"""When a broken link is tried again, in seconds after the last try: a provider that is there
answers from memory what it ran, and one that was restarted says so at once."""

REACH_TIME_LIMIT_S = 3.0

LONG_UNIT_S = 30.0
"""From so many measured seconds on a unit of the class exact commits to its stages: a dispute
about it then runs one stage again, and not all of it."""


@dataclass(slots=True)
class Outcome:
    """What came of a batch.

    Attributes:
        ends: Units that are done, to be written down.
        drawn: Units that are done, or that the provider calls errors, to be checked first;
            with how many opinions each is to have beside the provider's.
        failed: How many were called errors.
        given_up: Units that have failed, since what they need cannot be had any more.
        refusal: Why the provider takes no more under the lease, where it said so.
        problem: Why the lease is broken.
        receipts: What was verified of each answer: its receipt, or what is wrong with it.
    """

    ends: list[Ended] = field(default_factory=list)
    drawn: list[tuple[Ended, int]] = field(default_factory=list)
    failed: int = 0
    given_up: list[int] = field(default_factory=list)
    refusal: Refusal | None = None
    problem: ShoalError | None = None
    receipts: dict[int, Receipt | VerificationError] = field(default_factory=dict)


async def hand_over(
    house: House, state: State, running: RunningJob, held: Held, batch: Batch, cost_s: float
) -> Outcome:
    """Take one batch to its provider and its answers back.

    Outputs are held for the caller, who writes the ends down and then lets go of them by
    `arrivals.let_go`.

    Raises:
        ShoalError: The lease is broken, and nothing of the batch came back.
        StoreError: This node has no room for an output.
    """
    outcome = Outcome()
    units, supply = await _supplied(house, state, running, held, batch, outcome)
    if not units:
        events.came_back(state, batch.id, trio.current_time(), 0, cost_s)
        return outcome
    started_s = trio.current_time()
    unit_s = cost_s / max(1, len(batch.open))
    house.timings.handed(
        running.need.job.id,
        [unit.index for unit in units],
        batch.peer,
        held.called_s,
        held.got_s,
    )
    trace = running.need.spec.numeric_class == "exact" and unit_s > LONG_UNIT_S
    answers = await _ask(house, running, held, units, supply, trace=trace)
    now_s = trio.current_time()
    for index, answer in answers.items():
        times = answer.times if isinstance(answer, UnitResult) else None
        house.timings.came_back(running.need.job.id, index, times)
    ran = sum(isinstance(answer, UnitResult) for answer in answers.values())
    events.came_back(state, batch.id, now_s, ran, cost_s)
    unit_s = (now_s - started_s) / max(1, ran)
    units = [msgspec.structs.replace(unit, seconds=unit_s) for unit in units]
    try:
        await _take_in(house, state, running, held, batch, units, answers, outcome)
    except BaseException:
        arrivals.let_go(house, [*outcome.ends, *(end for end, _ in outcome.drawn)])
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
    _verify(house, running, held, units, answers, outcome)
    house.timings.passed(running.need.job.id, answers, "verified")
    for unit in units:
        answer = answers.get(unit.index)
        if answer is None or unit.index not in batch.open or unit.index in batch.unwanted:
            continue
        if isinstance(answer, Refusal):
            if not await _lacks_input(house, state, running, batch, unit, answer, outcome):
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


def _verify(
    house: House,
    running: RunningJob,
    held: Held,
    units: list[Unit],
    answers: dict[int, UnitResult | Refusal],
    outcome: Outcome,
) -> None:
    """Verify all receipts of one message, wanted still or not, and owe them to the provider.

    That comes before any output is fetched, which can take its time.
    """
    good: list[bytes] = []
    known: list[Unit] = []
    seconds = 0.0
    for unit in units:
        answer = answers.get(unit.index)
        if not isinstance(answer, UnitResult):
            continue
        try:
            receipt = pipeline.verify(running.need, held.side, unit, answer)
        except VerificationError as error:
            outcome.receipts[unit.index] = error
            continue
        outcome.receipts[unit.index] = receipt
        good.append(answer.receipt)
        known.append(unit)
        seconds += max(0, receipt.ended_at_ms - receipt.started_at_ms) / 1000
    house.settling.received(held.side, good, seconds)
    repeating.ask_of(house, running, held, known, answers)


async def _supplied(
    house: House, state: State, running: RunningJob, held: Held, batch: Batch, outcome: Outcome
) -> tuple[list[Unit], Supply]:
    """The units of a batch, and how their provider gets their inputs.

    Units that lost an input are not among them: they wait until it is made anew. Nor are
    those that the lease has answered before, and which run again since what came of it is
    lost: the answer would be the same, so that they wait for another lease.
    """
    units = []
    for index in list(batch.open):
        if index in batch.unwanted or index not in running.units:
            continue  # another peer has ended it since
        unit = running.units[index]
        if held.side.has_answered(unit_name(unit)):
            events.handed_back(state, batch.id, index)
            events.lease_closed(state, batch.lease)
            continue
        unit = msgspec.structs.replace(unit, attempts=unit.attempts + 1)
        running.units[index] = unit
        units.append(unit)
    supply = await chaining.supply(house, batch.peer, units)
    for unit in units:
        if lost := supply.lost.get(unit.index):
            await _wait_again(house, state, running, batch, unit, lost, outcome)
    return [unit for unit in units if unit.index in batch.open], supply


async def _ask(
    house: House,
    running: RunningJob,
    held: Held,
    units: list[Unit],
    supply: Supply,
    *,
    trace: bool,
) -> dict[int, UnitResult | Refusal]:
    """Hand over, and ask again for the same units where the link broke and came back."""
    waits_s = iter(RECONNECT_S)
    while True:
        try:
            return await pipeline.hand_over(
                house,
                running.need,
                held.side,
                units,
                supply.sources,
                trace=trace,
                answered=held.answered,
            )
        except NetworkError as error:
            wait_s = next(waits_s, None)
            if error.code == "no_answer" or wait_s is None:
                raise
            await trio.sleep(wait_s)
            with trio.move_on_after(REACH_TIME_LIMIT_S) as reaching:
                await house.reach(held.side.provider)
            if reaching.cancelled_caught:
                raise


async def _lacks_input(
    house: House,
    state: State,
    running: RunningJob,
    batch: Batch,
    unit: Unit,
    answer: Refusal,
    outcome: Outcome,
) -> bool:
    """Look into a refusal that may be the fault of whom an input was left with.

    Returns:
        Whether it is: then it is nothing against the provider, nor against the unit.
    """
    lost: tuple[Left, ...] = ()
    missing = BlobId(answer.missing or "")
    lacks = answer.reason is Reason.DATA_MISSING and missing in unit.inputs.values()
    if lacks and not house.store.holds(missing):
        lost = await chaining.not_found(house, unit, missing)
        if house.store.holds(missing):
            events.handed_back(state, batch.id, unit.index)
            return True
    elif answer.reason is Reason.PROGRAM_REFUSED:
        lost = await chaining.false_inputs(house, unit)
    if lost:
        await _wait_again(house, state, running, batch, unit, lost, outcome)
    return bool(lost)


async def _wait_again(
    house: House,
    state: State,
    running: RunningJob,
    batch: Batch,
    unit: Unit,
    lost: tuple[Left, ...],
    outcome: Outcome,
) -> None:
    """Take a unit out that lost inputs, until they are there again; or give it up."""
    events.waits_again(state, batch.id, unit.index)
    if unit.index not in running.queue.out:  # nor has another peer a copy of it
        running.units.pop(unit.index, None)
    try:
        await chaining.wait_again(house, unit, lost)
    except JobError as error:
        failure = Failure(error.code, error.message, error.hint)
        running.errors[unit.index] = Ending(unit, None, failure, None)
        outcome.given_up.append(unit.index)


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
    receipt = outcome.receipts[unit.index]
    if isinstance(receipt, VerificationError):
        raise receipt
    more = _opinions_wanted(house, running, held, answer, unit)
    if receipt.error is not None:
        failure = Failure(receipt.error.code, receipt.error.message)
        if (
            more
            and running.need.spec.numeric_class == "exact"
            and of_the_program(receipt.error)
        ):
            outcome.drawn.append((failed_end(unit, batch.peer, failure, answer.receipt), more))
            return
        running.errors[unit.index] = Ending(unit, batch.peer, failure, answer.receipt, held)
        events.failed(state, batch.id, unit.index)
        outcome.failed += 1
        return
    try:
        end = await pipeline.take_outputs(house, running.need, held.side, unit, answer, receipt)
    except NetworkError as error:
        if batch.peer in house.network.connected():  # else it may have been killed
            house.standings.note(batch.peer, Deed.NO_ANSWER, detail=error.message)
        raise
    house.timings.passed(unit.job, [unit.index], "taken_in")
    if more and (running.need.spec.numeric_class == "exact" or not end.left):
        outcome.drawn.append((end, more))
    else:  # nor is a value that is not here compared within a tolerance
        outcome.ends.append(end)


def _opinions_wanted(
    house: House, running: RunningJob, held: Held, answer: UnitResult, unit: Unit
) -> int:
    """How many others are to run the unit, by the draw of its receipt."""
    if held.draw is None:
        return 0
    p = house.standings.probability(held.side.provider)
    signature, doubted = signature_of(answer.receipt), unit.index in running.doubted
    return wanted(running.verify, signature, held.draw.salt, p, doubted=doubted)


def failed_end(
    unit: Unit, peer: PeerId | None, failure: Failure, receipt: bytes | None
) -> Ended:
    """The end of a unit that is an error, by whoever says so."""
    ended = msgspec.structs.replace(
        unit,
        state=UnitState.FAILED,
        provider=peer,
        failure=failure,
        receipt=None if receipt is None else blob_id_of(receipt),
    )
    return Ended(ended, receipt)
