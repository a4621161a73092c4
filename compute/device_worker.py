"""The daemon's side of a worker: units run, and each ends, whatever happens.

A unit that meets its limits, a worker that dies, hangs or answers nonsense: the
unit ends with an error that says so, the process is ended, and the next unit gets
a new one. A unit cannot be interrupted from outside, so cancelling a run ends the
process too. The first process starts when it is needed: a daemon that wants it
early awaits `Worker.probe` in a task of its own. From then on a spare is kept.

Whose process is which, and who waits for whom, is `compute.rooms`'; several units of one
program are `compute.unit_batches`'.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.compute import frames, unit_batches
from shoal.compute.exchanges import Answer, nonsense
from shoal.compute.frames import FrameError, UnitLimits
from shoal.compute.judges import Judges
from shoal.compute.preparing import name_of, prepare
from shoal.compute.rooms import FIRST, LAST, Rooms
from shoal.compute.unit_runs import Execution, NodeTensors, Traced, UnitRun
from shoal.compute.worker_process import Place, compile_kernels
from shoal.crypto.content import BlobId

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import trio

    from shoal.compute.devices.inventory import Lack
    from shoal.compute.errors import ComputeError
    from shoal.compute.executors.base import Probe
    from shoal.crypto.content import Buffer
    from shoal.protocol.verification.fraud_proof import Verdict

CONVERT_LIMITS: Final = UnitLimits(time_s=60.0, memory_bytes=8 << 30, output_bytes=4 << 30)
"""For a model that comes by plain HTTP; larger ones are converted by their owner's client."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A program that a worker made of a model: its id, and all of its blobs."""

    program_id: BlobId
    blobs: Mapping[BlobId, bytes]


class Worker:
    """Runs units, each requester's in a process of its own: one at a time, or a few.

    Made by `supervisor.open_worker`. Callers wait for one another, the foremost rank first. One
    spare process stands ready: a new requester gets it, and another one is started.
    """

    def __init__(
        self,
        start: frames.Start,
        entry: Sequence[str],
        nursery: trio.Nursery,
        place: Place | None = None,
    ) -> None:
        self._rooms = Rooms(start, entry, nursery, place or Place())
        self._starter = self._rooms.starter
        self._judges = Judges(self._starter)

    @property
    def missing(self) -> tuple[Lack, ...]:
        """Why other executors are not among those of the last `probe`."""
        return self._starter.missing

    @property
    def lost(self) -> ComputeError | None:
        """Why its device computes nothing more; None where it does."""
        return self._starter.lost

    @property
    def pids(self) -> dict[str, int]:
        """The live processes, by requester; the spare's name is empty."""
        return self._rooms.pids

    @property
    def sandbox(self) -> str:
        """How the process that started last is locked in, or what is missing."""
        return self._starter.sandbox

    @property
    def sandboxed(self) -> bool:
        """Whether that is enough for strangers' programs."""
        return self._starter.sandboxed

    @property
    def units_at_once(self) -> int:
        """How many units it runs at once where their memory fits; known after `probe`."""
        return self._rooms.units_at_once

    @property
    def processes_started(self) -> int:
        """How many worker processes there have been, those that did not settle in as well."""
        return self._starter.processes_started

    @property
    def judging_s(self) -> float:
        """Processor seconds that judging proofs has taken."""
        return self._judges.spent_s

    @property
    def busy(self) -> bool:
        """Whether something runs, or nothing could run at once because no spare is ready."""
        return self._rooms.taken or not self._rooms.ready

    def holds(self, requester: str, program_id: BlobId, numeric_class: str = "") -> bool:
        """Whether a program is prepared for a requester, which makes its next unit cheaper."""
        return self._rooms.holds(requester, name_of(program_id, numeric_class))

    async def probe(self) -> tuple[Probe, ...]:
        """Start a process if there is none ready, and say what its canaries showed.

        Raises:
            ComputeError: No worker can be had, or no executor works here.
        """
        return (await self._rooms.probe()).probes

    async def enable_exact(self) -> tuple[Probe, ...]:
        """Offer the class `exact` too: compile its kernels, then start every process anew.

        Compiling goes on in a process of its own at the lowest priority, and units
        run meanwhile. Cancelling ends that process.

        Raises:
            ComputeError: The kernels cannot be compiled, or the worker does not start.
        """
        await compile_kernels()
        start = msgspec.structs.replace(self._starter.start, exact=True)
        return (await self._rooms.start_anew(start)).probes  # else others are still to be had

    async def convert(
        self,
        requester: str,
        onnx: Buffer,
        precision: str | None = None,
        limits: UnitLimits = CONVERT_LIMITS,
    ) -> Converted:
        """Make a program of an ONNX file's bytes.

        Cancelling ends the requester's process.

        Raises:
            ProgramError: The model is not a program.
            ComputeError: A limit was met, or the worker failed.
        """
        async with self._rooms.turn(FIRST, requester, limits=limits) as room:
            request = frames.Convert(limits, precision)
            answer, blobs = await self._rooms.ask(
                room, request, [onnx], limits, frames.Converted
            )
        ids = map(BlobId, answer.blob_ids)
        return Converted(BlobId(answer.program_id), dict(zip(ids, blobs, strict=True)))

    async def run(
        self,
        requester: str,
        program_id: BlobId,
        fetch_blobs: Callable[[], Awaitable[Mapping[BlobId, Buffer]]],
        inputs: Mapping[str, Buffer],
        limits: UnitLimits,
        rank: int = 0,
        patience_s: float = math.inf,
    ) -> Execution:
        """Run one unit.

        Cancelling ends the requester's process.

        Args:
            requester: Whose unit it is: no process ever sees two requesters' data.
            program_id: The program.
            fetch_blobs: Gives its blobs, the manifest among them, checked against
                their ids; called only where the process does not hold the program.
            inputs: Tensor blobs by input name.
            limits: What the unit may take.
            rank: Of those that wait, one of a lower rank goes first.
            patience_s: How long it waits at its rank, and then at each before that.

        Raises:
            ProgramError: The program, or these inputs to it, would fail anywhere.
            ComputeError: A limit was met (``time_limit``, ``memory_limit``,
                ``output_limit``) or the worker failed (``worker_died``,
                ``worker_nonsense``, ``worker_start``, ``no_memory``).
        """
        async with self._rooms.turn(rank, requester, patience_s, limits, program_id) as room:
            await prepare(self._rooms, room, program_id, fetch_blobs, limits)
            return await unit_batches.run_one(self._rooms, room, program_id, inputs, limits)

    async def run_many(
        self,
        requester: str,
        program_id: BlobId,
        fetch_blobs: Callable[[], Awaitable[Mapping[BlobId, Buffer]]],
        units: Sequence[UnitRun],
        limits: UnitLimits,
        ended: Callable[[UnitRun], None],
        rank: int = 0,
        numeric_class: str = "",
    ) -> None:
        """Run several units of one program, in as few exchanges as is fair to others.

        One after another, in one process; those of other calls run beside them where the
        device has places for several. Each is held to the limits by itself, and its error is
        its own. What is done of them within `TURN_S` is done in one turn; then whoever waits
        has theirs. Where one breaks its process it runs again by itself, and so do those
        behind it.

        Cancelling ends the requester's process; of one unit, `UnitRun.cancel` does, and
        the others go on.

        Args:
            requester: As for `run`, like ``program_id``, ``fetch_blobs`` and ``rank``.
            program_id: The program.
            fetch_blobs: Gives its blobs.
            units: With the same names of inputs.
            limits: What each of them may take.
            ended: Told of each that has its outcome, in order.
            rank: Of those that wait, one of a lower rank goes first.
            numeric_class: In which they run; "" is by the program, ``exact`` or ``fp32``.
        """
        await unit_batches.run_many(
            self._rooms,
            requester,
            program_id,
            fetch_blobs,
            units,
            limits,
            ended,
            rank,
            numeric_class,
        )

    async def trace(
        self,
        requester: str,
        program_id: BlobId,
        fetch_blobs: Callable[[], Awaitable[Mapping[BlobId, Buffer]]],
        inputs: Mapping[str, Buffer],
        limits: UnitLimits,
        stage: int | None = None,
        rank: int = 0,
        patience_s: float = math.inf,
    ) -> Traced:
        """Run one unit of the class exact again, for the leaves of its operators.

        A unit that errs has a trace too. Cancelling ends the requester's process.

        Args:
            requester: As for `run`, like ``program_id``, ``fetch_blobs``, ``inputs``,
                ``limits`` and ``rank``. A leaf takes some 300 bytes of the output.
            program_id: The program.
            fetch_blobs: Gives its blobs.
            inputs: Tensor blobs by input name.
            limits: What the run may take.
            stage: Of which stage the leaves are wanted; of all, where it is None.
            rank: Of those that wait, one of a lower rank goes first.
            patience_s: As for `run`.

        Raises:
            ProgramError: ``no_such_stage``, ``no_trace`` of another class; or what went
                wrong before the first node, or before the stage began.
            ComputeError: As for `run`.
        """
        request = frames.Trace(program_id, tuple(inputs), limits, stage)
        async with self._rooms.turn(rank, requester, patience_s, limits, program_id) as room:
            await prepare(self._rooms, room, program_id, fetch_blobs, limits)
            attachments = list(inputs.values())
            _, packed = await self._rooms.ask(room, request, attachments, limits, frames.Traced)
            try:
                return Traced(*map(frames.unpack_leaves, packed))
            except FrameError as error:
                await self._rooms.end(room)
                raise nonsense(str(error)) from None

    async def tensors_of(
        self,
        requester: str,
        program_id: BlobId,
        fetch_blobs: Callable[[], Awaitable[Mapping[BlobId, Buffer]]],
        inputs: Mapping[str, Buffer],
        limits: UnitLimits,
        index: int,
        rank: int = 0,
        patience_s: float = math.inf,
    ) -> NodeTensors:
        """Run one unit of the class exact up to one node, for what that takes and gives.

        Cancelling ends the requester's process.

        Args:
            requester: As for `trace`, like all but ``index``.
            program_id: The program.
            fetch_blobs: Gives its blobs.
            inputs: Tensor blobs by input name.
            limits: What the run may take; the tensors are its output.
            index: The node's place in the graph.
            rank: Of those that wait, one of a lower rank goes first.
            patience_s: As for `run`.

        Raises:
            ProgramError: ``no_such_node``, ``no_trace``; or what went wrong before it.
            ComputeError: As for `run`.
        """
        request = frames.TensorsOf(program_id, tuple(inputs), limits, index)
        async with self._rooms.turn(rank, requester, patience_s, limits, program_id) as room:
            await prepare(self._rooms, room, program_id, fetch_blobs, limits)
            attachments = list(inputs.values())
            answer, tensors = await self._rooms.ask(
                room, request, attachments, limits, frames.NodeTensors
            )
        blobs = dict(zip(map(BlobId, answer.blob_ids), tensors, strict=True))
        return NodeTensors(answer.leaf, blobs)

    async def judge(
        self,
        proof: bytes,
        blobs: Mapping[BlobId, Buffer],
        limits: UnitLimits,
        processor_s: float,
        *,
        own: bool = False,
    ) -> Verdict:
        """Judge a fraud proof by the reference: one after another, beside units that run.

        Each has a process of its own at the lowest priority, so that a proof made to
        take long holds up no unit. It is ended afterwards: whoever breaks into it by one
        proof decides on no other, and reads nothing. Cancelling ends it too.

        This node's own proof has the priority of a unit, and waits for none of others': its
        unit ran here already, and until it is judged a liar goes on lying to everybody.

        Args:
            proof: The proof.
            blobs: What it needs, by id.
            limits: What judging may take of wall time and memory. On a machine that has
                much else to do it gets a thirtieth of a core.
            processor_s: What it may take of a processor.
            own: It is of this node's own disputes.

        Raises:
            ComputeError: A limit was met, or the worker failed: nothing is decided.
        """
        return await self._judges.judge(proof, blobs, limits, processor_s, own=own)

    async def measure(
        self,
        request: frames.Measure | frames.Prove | frames.Recompute,
        kind: type[Answer],
        time_limit_s: float,
        patience_s: float = math.inf,
        began: Callable[[int], None] = lambda _pid: None,
    ) -> Answer:
        """Have a measurement made, or a challenge's work done, by the spare process.

        Nobody's data is in it, so the spare stays one; a process that failed at it does not.
        Units that wait go first, but for a verifier's few rows; but for those nothing else
        runs on the device meanwhile. Cancelling ends the process.

        Args:
            request: What is to be measured or shown.
            kind: Of the answer.
            time_limit_s: What it may take once its turn has come.
            patience_s: As for `run`.
            began: Told which process it is done by, when its turn has come; must not raise.

        Raises:
            ProgramError: A library failed.
            ComputeError: As for `run`.
        """
        limits = UnitLimits(time_s=time_limit_s, memory_bytes=0, output_bytes=0)
        quick = isinstance(request, frames.Recompute)
        rank = FIRST if quick else LAST
        async with self._rooms.turn_with_spare(rank, patience_s, alone=not quick) as spare:
            began(spare.process.pid)
            answer, _ = await self._rooms.ask(spare, request, [], limits, kind)
        return answer

    async def close(self) -> None:
        """End all processes and wait until they are gone; a later call starts others."""
        await self._rooms.close()

    async def sweep(self) -> None:
        """End the processes of requesters that do not come back, for ever."""
        await self._rooms.sweep()
