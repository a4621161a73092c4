"""The daemon's side of a worker: one unit at a time, each ends, whatever happens.

A unit that meets its limits, a worker that dies, hangs or answers nonsense: the
unit ends with an error that says so, the process is ended, and the next unit gets
a new one. A unit cannot be interrupted from outside, so cancelling a run ends the
process too. Nothing is started before it is needed: a daemon that wants its
worker early awaits `Worker.probe` in a task of its own.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import trio

from shoal.compute import frames
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.frames import FrameError, UnitLimits
from shoal.compute.worker_process import WorkerGoneError, WorkerProcess, compile_kernels
from shoal.crypto.content import BlobId

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from shoal.compute.executors.base import Probe
    from shoal.crypto.content import Buffer

START_LIMIT_S: Final = 60.0
"""Imports take half a second on an idle machine, and much longer on a busy one."""

GRACE_S: Final = 2.0
"""How long after its time limit a unit may take to end by itself; then its worker is ended."""

CACHE_BYTES: Final = 2 << 30
"""Weights of prepared programs that a worker keeps at most."""


CONVERT_LIMITS: Final = UnitLimits(time_s=60.0, memory_bytes=8 << 30, output_bytes=4 << 30)
"""For a model that comes by plain HTTP; larger ones are converted by their owner's client."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A program that a worker made of a model: its id, and all of its blobs."""

    program_id: BlobId
    blobs: Mapping[BlobId, bytes]


@dataclass(frozen=True, slots=True)
class Execution:
    """A unit that ran.

    Attributes:
        outputs: Tensor blobs by output name, in the program's order.
        compute_s: From the inputs' arrival in the worker to the last output.
        runtime: Name and version, such as ``onnxruntime 1.32.0 CPUExecutionProvider``.
    """

    outputs: Mapping[str, bytes]
    compute_s: float
    runtime: str


_Answer = TypeVar("_Answer", bound=frames.Answer)


class Worker:
    """Runs units, one after another, in a process that is replaced when it fails.

    Made by `open_worker`. Callers wait for one another in order of arrival.
    """

    def __init__(self, *, threads: int, cache_bytes: int) -> None:
        self._start = frames.Start(threads=threads, cache_bytes=cache_bytes, exact=False)
        self._one_at_a_time = trio.Lock()
        self._process: WorkerProcess | None = None
        self._probes: tuple[Probe, ...] = ()
        self._held: frozenset[str] = frozenset()

    @property
    def pid(self) -> int | None:
        """The process id of the current worker, or None where there is none."""
        return self._process.pid if self._process and self._process.alive else None

    def holds(self, program_id: BlobId) -> bool:
        """Whether a program is prepared already, which makes its next unit cheaper."""
        return self.pid is not None and program_id in self._held

    async def probe(self) -> tuple[Probe, ...]:
        """Start the worker if it does not run, and say what its canaries showed.

        Raises:
            ComputeError: No worker can be had, or no executor works here.
        """
        async with self._one_at_a_time:
            await self._started()
            return self._probes

    async def enable_exact(self) -> tuple[Probe, ...]:
        """Offer the class `exact` too: compile its kernels, then start the worker anew.

        Compiling goes on in a process of its own at the lowest priority, and units
        run meanwhile. Cancelling ends that process.

        Raises:
            ComputeError: The kernels cannot be compiled, or the worker does not start.
        """
        await compile_kernels()
        async with self._one_at_a_time:
            self._start = msgspec.structs.replace(self._start, exact=True)
            await self._end()
            await self._started()
            return self._probes

    async def convert(
        self, onnx: Buffer, precision: str | None = None, limits: UnitLimits = CONVERT_LIMITS
    ) -> Converted:
        """Make a program of an ONNX file's bytes.

        Cancelling ends the worker's process.

        Raises:
            ProgramError: The model is not a program.
            ComputeError: A limit was met, or the worker failed.
        """
        async with self._one_at_a_time:
            process = await self._started()
            request = frames.Convert(limits, precision)
            answer, blobs = await self._ask(process, request, [onnx], limits, frames.Converted)
        ids = map(BlobId, answer.blob_ids)
        return Converted(
            BlobId(answer.program_id), dict(zip(ids, map(bytes, blobs), strict=True))
        )

    async def run(
        self,
        program_id: BlobId,
        fetch_blobs: Callable[[], Awaitable[Mapping[BlobId, Buffer]]],
        inputs: Mapping[str, Buffer],
        limits: UnitLimits,
    ) -> Execution:
        """Run one unit.

        Cancelling ends the worker's process.

        Args:
            program_id: The program.
            fetch_blobs: Gives its blobs, the manifest among them, checked against
                their ids; called only where the worker does not hold the program.
            inputs: Tensor blobs by input name.
            limits: What the unit may take.

        Raises:
            ProgramError: The program, or these inputs to it, would fail anywhere.
            ComputeError: A limit was met (``time_limit``, ``memory_limit``,
                ``output_limit``) or the worker failed (``worker_died``,
                ``worker_nonsense``, ``worker_start``).
        """
        async with self._one_at_a_time:
            process = await self._started()
            if program_id not in self._held:
                await self._prepare(process, program_id, await fetch_blobs(), limits)
            request = frames.Run(program_id, tuple(inputs), limits)
            answer, outputs = await self._ask(
                process, request, list(inputs.values()), limits, frames.Ran
            )
        named = dict(zip(answer.output_names, map(bytes, outputs), strict=True))
        return Execution(named, answer.compute_s, answer.runtime)

    async def close(self) -> None:
        """End the process and wait until it is gone; a later call starts another one."""
        await self._end()

    async def _prepare(
        self,
        process: WorkerProcess,
        program_id: BlobId,
        blobs: Mapping[BlobId, Buffer],
        limits: UnitLimits,
    ) -> None:
        request = frames.Prepare(program_id, tuple(blobs), limits)
        answer, _ = await self._ask(
            process, request, list(blobs.values()), limits, frames.Prepared
        )
        self._held = frozenset(answer.held)

    async def _started(self) -> WorkerProcess:
        """The running process, a new one where there is none."""
        if self._process is not None and not self._process.alive:
            await self._end()  # it died between two units: no unit's fault
        if self._process is not None and self._probes:
            return self._process
        try:
            self._process = WorkerProcess()
        except OSError as error:
            raise ComputeError(
                f"a worker process cannot be started: {error.strerror}", code="worker_start"
            ) from None
        limits = UnitLimits(time_s=START_LIMIT_S, memory_bytes=0, output_bytes=0)
        try:
            answer, _ = await self._ask(self._process, self._start, [], limits, frames.Started)
        except ComputeError as error:
            raise ComputeError(
                f"the worker does not start: {error.message}",
                code="worker_start",
                hint="`shoal doctor` checks what it needs",
            ) from error
        self._probes = answer.probes
        return self._process

    async def _ask(
        self,
        process: WorkerProcess,
        request: frames.Request,
        attachments: Sequence[Buffer],
        limits: UnitLimits,
        kind: type[_Answer],
    ) -> tuple[_Answer, list[bytearray]]:
        """Exchange one request for one answer of ``kind``, or end the process and raise."""
        answer: frames.Answer | None = None
        received: list[bytearray] = []
        try:
            with trio.move_on_after(limits.time_s + GRACE_S):
                answer, received = await process.exchange(
                    request, attachments, limits.output_bytes
                )
        except WorkerGoneError:
            how = await self._end()
            raise ComputeError(
                f"the worker {how or 'was ended'} while the unit ran",
                code="worker_died",
                hint="try another node; a unit that ends workers everywhere is at fault itself",
            ) from None
        except FrameError as error:
            raise _nonsense(str(error)) from None
        finally:  # after a cancellation too: the unit may still run
            if not isinstance(answer, (kind, frames.Failed)):
                await self._end()
        if answer is None:
            raise ComputeError(
                f"the unit took longer than its limit of {limits.time_s:g} s, "
                "and its worker was ended",
                code="time_limit",
                hint="ask for more time, or split the inputs into smaller batches",
            )
        if isinstance(answer, frames.Failed):
            raise _raised(answer)
        if not isinstance(answer, kind):
            raise _nonsense(f"a {type(answer).__name__} is no {kind.__name__}")
        return answer, received

    async def _end(self) -> str:
        """End the process, if there is one; says how it ended."""
        process, self._process = self._process, None
        self._probes, self._held = (), frozenset()
        return await process.end() if process is not None else ""


@asynccontextmanager
async def open_worker(*, threads: int, cache_bytes: int = CACHE_BYTES) -> AsyncIterator[Worker]:
    """A worker for the CPU, whose process is gone when the block is left.

    Args:
        threads: How many threads a unit may use.
        cache_bytes: How many bytes of prepared programs to keep.
    """
    worker = Worker(threads=threads, cache_bytes=cache_bytes)
    try:
        yield worker
    finally:
        await worker.close()


def _raised(failed: frames.Failed) -> ProgramError | ComputeError:
    family = ProgramError if failed.of_program else ComputeError
    return family(
        failed.message,
        hint=failed.hint,
        code=failed.code,
        node=failed.node,
        operator=failed.operator,
    )


def _nonsense(why: str) -> ComputeError:
    return ComputeError(
        f"the worker answered nonsense ({why[:200]}) and was ended", code="worker_nonsense"
    )
