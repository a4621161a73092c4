"""What is said to a worker's process once: a request, its answers, and what goes wrong.

A process that has not answered as it must is ended here; what that means for the next
unit is `shoal.compute.rooms`'s.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from shoal.compute import frames
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.card_faults import ENDS_WORKER
from shoal.compute.frames import FrameError, UnitLimits
from shoal.compute.host_memory import HostMemoryError
from shoal.compute.unit_runs import Execution, Outcome, UnitRun
from shoal.compute.worker_process import WorkerGoneError, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from shoal.compute.in_file import InFile, Tensor

GRACE_S: Final = 2.0
"""How long after its time limit a unit may take to end by itself; then its worker is ended."""

_BREAKS: Final = (WorkerGoneError, FrameError, HostMemoryError, OSError)
"""What an exchange ends by, and its process with it."""

Answer = TypeVar("Answer", bound=frames.Answer)


async def exchange(
    process: WorkerProcess,
    request: frames.Request,
    attachments: Sequence[Tensor],
    limits: UnitLimits,
    kind: type[Answer],
    in_file_from: float = math.inf,
) -> tuple[Answer, list[Any]]:
    """Exchange one request for one answer of ``kind``, or raise.

    The answer's attachments are bytes; those of ``in_file_from`` bytes or more are `InFile`.

    The process is ended unless it has answered as it must: then it may still run.

    Raises:
        ProgramError: As the worker says.
        ComputeError: As the worker says, or of the worker itself.
    """
    answer: frames.Answer | None = None
    received: list[bytes | InFile] = []
    try:
        with trio.move_on_after(limits.time_s + GRACE_S):
            answer, received = await process.exchange(
                request, attachments, limits.output_bytes, in_file_from
            )
    except _BREAKS as error:
        raise await _broken(process, error) from None
    finally:  # after a cancellation too
        sound = isinstance(answer, (kind, frames.Failed)) and not _ends_worker(answer)
        if not sound and not process.ended:
            await process.end()
    if answer is None:
        raise _over_time(limits)
    if isinstance(answer, frames.Failed):
        raise _raised(answer)
    if not isinstance(answer, kind):
        raise nonsense(f"a {type(answer).__name__} is no {kind.__name__}")
    return answer, received


async def exchange_many(
    process: WorkerProcess,
    request: frames.RunMany,
    units: Sequence[UnitRun],
    ended: Callable[[UnitRun], None],
) -> int:
    """Have ``units`` run one after another; says ``ended`` of each in order, as it ends.

    Each has the whole of its time limit from the end of the one before. The process is
    ended where one of them meets that, is cancelled while it runs, or breaks the process.
    The last may be another's fault; so one that is not the only unit here does not end by
    it, and is to be run again by itself.

    Returns:
        How many need not be run any more.
    """
    attachments = [unit.inputs[name] for unit in units for name in request.input_names]
    dealt_with, sound = 0, False
    try:
        for unit in units:
            answer: frames.Answer | None = None
            outputs: list[bytes] = []
            with unit.attempt(request.limits.time_s + GRACE_S):
                if not dealt_with:
                    await process.ask_many(request, attachments)
                answer, outputs = await process.next_answer(request.limits.output_bytes)
            if isinstance(answer, frames.Paused) and dealt_with:
                break
            if answer is None and unit.cancelled:
                return dealt_with + 1
            unit.end(_outcome(answer, outputs, request.limits))
            ended(unit)
            dealt_with += 1
            if answer is None or _ends_worker(answer):
                return dealt_with
        sound = True
    except _BREAKS as error:
        why = await _broken(process, error)
        if len(units) == 1:
            units[0].end(why)
            ended(units[0])
            return 1
    finally:  # after a cancellation too
        if not sound and not process.ended:
            await process.end()
    return dealt_with


def _ends_worker(answer: frames.Answer) -> bool:
    """Whether the worker is about to end, because its card failed under it."""
    return isinstance(answer, frames.Failed) and answer.code in ENDS_WORKER


def _outcome(
    answer: frames.Answer | None, outputs: Sequence[bytes], limits: UnitLimits
) -> Outcome:
    """What came of a unit, by the worker's answer; None where there was none in time.

    Raises:
        FrameError: It is no answer to a unit.
    """
    match answer:
        case frames.Ran():
            named = dict(zip(answer.output_names, outputs, strict=True))
            return Execution(named, answer.compute_s, answer.runtime, answer.stages)
        case frames.Failed():
            return _raised(answer)
        case None:
            return _over_time(limits)
    raise FrameError(f"a {type(answer).__name__} is no answer to a unit")


async def _broken(
    process: WorkerProcess, error: WorkerGoneError | FrameError | HostMemoryError | OSError
) -> ComputeError:
    """What to say of an exchange that broke."""
    if isinstance(error, FrameError):
        return nonsense(str(error))
    if isinstance(error, HostMemoryError):
        return ComputeError(
            f"the unit took {error.taken_bytes / 1e6:.0f} MB of the machine's memory, where "
            f"{error.allowed_bytes / 1e6:.0f} MB are allowed beside the card's, and its worker "
            "was ended",
            code="memory_limit",
            hint="ask for more memory, or split the inputs into smaller batches",
        )
    if isinstance(error, OSError):
        return ComputeError(
            f"there is no memory to hand the unit's tensors over in: {error.strerror}",
            code="no_memory",
            hint="free some memory, or lower `memory` in the settings",
        )
    how = await process.end()
    return ComputeError(
        f"the worker {how} while the unit ran",
        code="worker_died",
        hint="try another node; a unit that ends workers everywhere is at fault itself",
    )


def _over_time(limits: UnitLimits) -> ComputeError:
    return ComputeError(
        f"the unit took longer than its limit of {limits.time_s:g} s, and its worker was ended",
        code="time_limit",
        hint="ask for more time, or split the inputs into smaller batches",
    )


def _raised(failed: frames.Failed) -> ProgramError | ComputeError:
    family = ProgramError if failed.of_program else ComputeError
    return family(
        failed.message,
        hint=failed.hint,
        code=failed.code,
        node=failed.node,
        operator=failed.operator,
    )


def nonsense(why: str) -> ComputeError:
    """The error of a worker that has said what it may not; the caller has ended it."""
    return ComputeError(
        f"the worker answered nonsense ({why[:200]}) and was ended", code="worker_nonsense"
    )
