"""Whether a provider that is asked again says the same: two receipts that differ convict.

Part of *verify*, beside the data path. A unit's name stands for one run under its lease: who
is asked for it again answers from memory, since the first answer may have been lost with its
link. So of a provider that signs two receipts for one unit only the requester can ever see
both, and only where it asks although it has the first. It does so now and then, for one unit
of a message, in the words by which a lost answer is asked for. Nothing waits for that.

Whoever is asked cannot tell which of the two has arrived, or whether both have. What it signs
the second time is held against what it signed the first time, whichever of them is right.
"""

from __future__ import annotations

from random import SystemRandom
from typing import TYPE_CHECKING, Final

import structlog
import trio

from shoal.crypto.errors import ShoalError
from shoal.node import pipeline
from shoal.node.checks import said_by
from shoal.node.house import unit_name
from shoal.node.unit_messages import inline_blobs, small_inputs
from shoal.protocol.negotiation_messages import UnitRequest, UnitResult
from shoal.protocol.statements import open_receipt

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from shoal.crypto.peer_id import PeerId
    from shoal.node.house import House
    from shoal.node.pipeline import Need
    from shoal.node.records import Unit
    from shoal.node.running_jobs import Held, RunningJob
    from shoal.protocol.negotiation import RequesterSide

SHARE: Final = 0.05
"""Of a known peer's messages: of newcomers each is followed by a question."""

ANSWER_S: Final = 2.0
"""What a provider gets to repeat an answer: it has it in memory, and the lease may end."""

log = structlog.get_logger(__name__)
random = SystemRandom()


def is_due(*, newcomer: bool, draw: float) -> bool:
    """Whether one unit of a message is asked for again: pure.

    Args:
        newcomer: Whether the provider is one.
        draw: Uniform in [0, 1).
    """
    return newcomer or draw < SHARE


def ask_of(
    house: House,
    running: RunningJob,
    held: Held,
    units: Sequence[Unit],
    answers: Mapping[int, object],
) -> None:
    """Ask for one of these units again, in a task of the job's, where it is due.

    Args:
        house: This node.
        running: The job, in the class exact if anything is to come of it.
        held: Under which lease.
        units: Those of one message whose receipts were verified (level L0).
        answers: What came, by index.
    """
    peer = held.side.provider
    exact = running.need.spec.numeric_class == "exact"
    if not units or not exact or held.draw is None or running.nursery is None:
        return
    newcomer = house.standings.of(peer).newcomer
    if is_due(newcomer=newcomer, draw=random.random()):
        unit = random.choice(units)
        answer = answers[unit.index]
        assert isinstance(answer, UnitResult)
        running.nursery.start_soon(_compare, house, running, held.side, unit, answer.receipt)


async def _compare(
    house: House, running: RunningJob, side: RequesterSide, unit: Unit, first: bytes
) -> None:
    """Ask again, and bring two receipts that differ to the disputes: raises nothing."""
    try:
        second = await other_answer(house, running.need, side, unit, first)
        if second is None:
            return
        peer: PeerId = side.provider
        log.warning("a peer signed two results of one unit", peer=peer, unit=unit_name(unit))
        with trio.CancelScope(shield=True):  # the job may be over by this
            await house.accuse(side.award_bytes, first, second, unit.job, unit.index)
    except ShoalError as error:  # root of a task of the job
        log.error("a provider could not be asked again", error=error.message)


async def other_answer(
    house: House, need: Need, side: RequesterSide, unit: Unit, first: bytes
) -> bytes | None:
    """Have a provider repeat an answer; gives the receipt where that says another thing."""
    assert side.call is not None
    inputs = tuple(sorted(unit.inputs.items()))
    try:
        small = await small_inputs(house, [unit])
        blobs = await inline_blobs(house, unit, small)
        # Beside the lease's machine: the scheduler counts what is out by that.
        request = UnitRequest(side.call.call, unit_name(unit), inputs, blobs)
        answer = await house.control.request(side.provider, request, ANSWER_S)
        if isinstance(answer, UnitResult) and answer.receipt != first:
            receipt = pipeline.verify(need, side, unit, answer)
            if said_by(receipt) != said_by(open_receipt(first)):
                return answer.receipt
    except ShoalError:  # the lease may be over, or an input gone: then there is one receipt
        pass
    return None
