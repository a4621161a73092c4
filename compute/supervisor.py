"""The daemon's side of a worker: one unit at a time, each ends, whatever happens.

A process runs the units of one requester and of nobody else, so that whoever breaks
into it finds nothing of another's, and falsifies nothing of another's. The next
requester gets a spare that has settled in already.

A unit that meets its limits, a worker that dies, hangs or answers nonsense: the
unit ends with an error that says so, the process is ended, and the next unit gets
a new one. A unit cannot be interrupted from outside, so cancelling a run ends the
process too. The first process starts when it is needed: a daemon that wants it
early awaits `Worker.probe` in a task of its own. From then on a spare is kept.

A unit that finds its card gone ends by `device_lost`. Where no process can be started on
the card any more, the worker runs nothing more either, and `Place.lost` is told.
"""

from __future__ import annotations

import math
from collections import deque
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import structlog
import trio

from shoal.compute import frames, kernel_cache, priority
from shoal.compute.devices.abilities import takes_units
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.exchanges import Answer, exchange, exchange_many, nonsense
from shoal.compute.executors.card_faults import LOST
from shoal.compute.frames import FrameError, UnitLimits
from shoal.compute.in_file import LARGE_BYTES, size_of
from shoal.compute.turnstile import Turnstile
from shoal.compute.unit_runs import (
    Execution,
    NodeTensors,
    Outcome,
    Traced,
    UnitRun,
)
from shoal.compute.worker_process import WORKER, Place, WorkerProcess, compile_kernels
from shoal.crypto.content import BlobId
from shoal.crypto.peer_id import PeerId
from shoal.protocol.verification import fraud_proof
from shoal.protocol.verification.fraud_proof import Verdict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from shoal.compute.devices.inventory import Lack
    from shoal.compute.executors.base import NumericClass, Probe
    from shoal.compute.in_file import Tensor
    from shoal.crypto.content import Buffer

CACHE_BYTES: Final = 2 << 30
"""Weights of prepared programs that a process keeps at most."""

ROOMS_LIMIT: Final = 3
"""Requesters whose processes are kept at once, with what is prepared for them."""

ROOM_IDLE_LIMIT_S: Final = 300.0
"""How long a process waits for its requester's next unit; a cold one takes about a second."""

SWEEP_INTERVAL_S: Final = 30.0

TURN_S: Final = 0.25
"""So long one requester's small units are run in a row while another's wait: a hundred
times what it costs to hand over between them."""

FIRST_TURN_S: Final = 1.0
"""The same in a process that is new: its start took as long, and where more requesters
take turns than have processes, each turn begins with one."""

PART_LIMIT_BYTES: Final = 1 << 20
"""Inputs of the units that are handed over together; they may be handed over again."""

_FIRST: Final = 0  # what the owner waits for, and what is soon done
_LAST: Final = 3  # what nobody waits for: after strangers' units

MEMORY_BYTES: Final = 8 << 30
"""What a unit may use at most, where the operator has not said."""

STARTS_TRIED: Final = 2
"""A card whose worker fails to start so often in a row is gone: once, any process may."""

CONVERT_LIMITS: Final = UnitLimits(time_s=60.0, memory_bytes=8 << 30, output_bytes=4 << 30)
"""For a model that comes by plain HTTP; larger ones are converted by their owner's client."""


@dataclass(frozen=True, slots=True)
class Converted:
    """A program that a worker made of a model: its id, and all of its blobs."""

    program_id: BlobId
    blobs: Mapping[BlobId, bytes]


log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Room:
    """A worker's process, what it showed, and whose units alone it runs."""

    process: WorkerProcess
    probes: tuple[Probe, ...]
    held: frozenset[str] = frozenset()
    used_at_s: float = 0.0
    turn_s: float = FIRST_TURN_S
    """How long its next turn lasts, where many units wait."""


class Worker:
    """Runs units, one after another, each requester's in a process of its own.

    Made by `open_worker`. Callers wait for one another, the foremost rank first. One
    spare process stands ready: a new requester gets it, and another one is started.
    """

    def __init__(
        self,
        start: frames.Start,
        entry: Sequence[str],
        nursery: trio.Nursery,
        place: Place | None = None,
    ) -> None:
        self._start = start
        self._entry = entry
        self._place = place or Place()
        self._classes: frozenset[NumericClass] | None = None
        self._failed_starts = 0
        self._lost: ComputeError | None = None
        self._looking = False
        self._sandbox, self._sandboxed = "no worker has started yet", False
        self._nursery = nursery
        self._turnstile = Turnstile()
        self._starting = trio.Lock()
        self._judging, self._judging_own = trio.Lock(), trio.Lock()
        self._rooms: dict[str, _Room] = {}  # the least recently used first
        self._spare: _Room | None = None
        self._missing: tuple[Lack, ...] = ()
        self.processes_started = 0
        """How many worker processes there have been, those that did not settle in as well."""
        self.judging_s = 0.0
        """Processor seconds that judging proofs has taken."""

    @property
    def missing(self) -> tuple[Lack, ...]:
        """Why other executors are not among those of the last `probe`."""
        return self._missing

    @property
    def lost(self) -> ComputeError | None:
        """Why its device computes nothing more; None where it does."""
        return self._lost

    @property
    def pids(self) -> dict[str, int]:
        """The live processes, by requester; the spare's name is empty."""
        rooms = self._rooms | ({"": self._spare} if self._spare else {})
        return {name: room.process.pid for name, room in rooms.items() if room.process.alive}

    @property
    def sandbox(self) -> str:
        """How the process that started last is locked in, or what is missing."""
        return self._sandbox

    @property
    def sandboxed(self) -> bool:
        """Whether that is enough for strangers' programs."""
        return self._sandboxed

    def holds(self, requester: str, program_id: BlobId, numeric_class: str = "") -> bool:
        """Whether a program is prepared for a requester, which makes its next unit cheaper."""
        room = self._rooms.get(requester)
        held_as = _held_as(program_id, numeric_class)
        return room is not None and room.process.alive and held_as in room.held

    async def probe(self) -> tuple[Probe, ...]:
        """Start a process if there is none ready, and say what its canaries showed.

        Raises:
            ComputeError: No worker can be had, or no executor works here.
        """
        async with self._starting:
            return (await self._ready_spare()).probes

    async def enable_exact(self) -> tuple[Probe, ...]:
        """Offer the class `exact` too: compile its kernels, then start every process anew.

        Compiling goes on in a process of its own at the lowest priority, and units
        run meanwhile. Cancelling ends that process.

        Raises:
            ComputeError: The kernels cannot be compiled, or the worker does not start.
        """
        await compile_kernels()
        async with self._turnstile.turn(_FIRST), self._starting:
            without = self._start
            self._start = msgspec.structs.replace(without, exact=True)
            await self.close()
            try:
                return (await self._ready_spare()).probes
            except ComputeError:  # then the other classes are still to be had
                self._start = without
                raise

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
        async with self._turnstile.turn(_FIRST, requester):
            await self._room_of(requester)
            request = frames.Convert(limits, precision)
            answer, blobs = await self._ask(
                requester, request, [onnx], limits, frames.Converted
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
        async with self._turnstile.turn(rank, requester, patience_s):
            await self._room_with(requester, program_id, fetch_blobs, limits)
            return await self._run(requester, program_id, inputs, limits)

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

        Each is held to the limits by itself, and its error is its own. What is done of
        them within `TURN_S` is done in one turn; then whoever waits has theirs. Where one
        breaks its process it runs again by itself, and so do those behind it.

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
        together = True
        held_as = _held_as(program_id, numeric_class)
        ended = partial(self._ended, ended)
        left = deque(units)
        while left := deque(unit for unit in left if not unit.cancelled):
            async with self._turnstile.turn(rank, requester):
                try:
                    room = await self._room_with(
                        requester, program_id, fetch_blobs, limits, numeric_class
                    )
                except ProgramError as error:  # nor will any other unit of it run
                    for unit in left:
                        unit.end(error)
                        ended(unit)
                    return
                except ComputeError as error:
                    unit = left.popleft()
                    unit.end(error)
                    ended(unit)
                    continue
                part = _part(left) if together else [left[0]]
                turn_s, room.turn_s = room.turn_s, TURN_S
                if len(part) == 1:
                    await self._run_one(requester, held_as, left.popleft(), limits, ended)
                    continue
                request = frames.RunMany(
                    held_as, tuple(part[0].inputs), len(part), limits, turn_s, part[0].trace
                )
                try:
                    for _ in range(await exchange_many(room.process, request, part, ended)):
                        left.popleft()
                finally:
                    if room.process.ended:
                        del self._rooms[requester]
                        together = False

    def _ended(self, tell: Callable[[UnitRun], None], unit: UnitRun) -> None:
        """Tell of a unit's end; by some of them the device may be gone."""
        gone = isinstance(unit.outcome, ComputeError) and unit.outcome.code == LOST
        if gone and self._start.card is not None and not self._looking:
            self._looking = True
            self._nursery.start_soon(self._look_again)
        tell(unit)

    async def _look_again(self) -> None:
        """See whether a device is there that a unit has found gone.

        What one unit met is no proof: it may have been made to. A fresh process is. One
        look is for all that say so meanwhile, or whoever says it often would have every
        start wait.
        """
        async with self._starting:
            await self._end_spare()  # it was started before
            self._looking = False  # what is said from now on is of a later time
            while self._lost is None:
                with suppress(ComputeError):
                    await self._ready_spare()
                    return

    def _lose(self, error: ComputeError) -> None:
        """Run nothing more; units that come get this error."""
        if self._lost is None:
            log.error("a device is lost", error=error.message)
            self._lost = error
            self._place.lost(error)
            self._nursery.start_soon(self._end_all)

    async def _end_all(self) -> None:
        async with self._turnstile.turn(_FIRST):
            await self.close()

    async def _run_one(
        self,
        requester: str,
        held_as: str,
        unit: UnitRun,
        limits: UnitLimits,
        ended: Callable[[UnitRun], None],
    ) -> None:
        """Run one of several units by itself."""
        outcome: Outcome
        with unit.attempt():
            try:
                outcome = await self._run(
                    requester,
                    held_as,
                    unit.inputs,
                    limits,
                    trace=unit.trace,
                    in_file_from=LARGE_BYTES,
                )
            except (ProgramError, ComputeError) as error:
                outcome = error
            unit.end(outcome)
            ended(unit)

    async def _run(
        self,
        requester: str,
        held_as: str,
        inputs: Mapping[str, Tensor],
        limits: UnitLimits,
        *,
        trace: bool = False,
        in_file_from: float = math.inf,
    ) -> Execution:
        """Run one unit of a program that the requester's process holds."""
        request = frames.Run(held_as, tuple(inputs), limits, trace)
        answer, outputs = await self._ask(
            requester, request, list(inputs.values()), limits, frames.Ran, in_file_from
        )
        named = dict(zip(answer.output_names, outputs, strict=True))
        return Execution(named, answer.compute_s, answer.runtime, answer.stages)

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
        async with self._turnstile.turn(rank, requester, patience_s):
            await self._room_with(requester, program_id, fetch_blobs, limits)
            attachments = list(inputs.values())
            _, packed = await self._ask(requester, request, attachments, limits, frames.Traced)
            try:
                return Traced(*map(frames.unpack_leaves, packed))
            except FrameError as error:
                await self._end(requester)
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
        async with self._turnstile.turn(rank, requester, patience_s):
            await self._room_with(requester, program_id, fetch_blobs, limits)
            attachments = list(inputs.values())
            answer, tensors = await self._ask(
                requester, request, attachments, limits, frames.NodeTensors
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
        request = frames.Judge(tuple(blobs), limits, processor_s)
        niceness = self._start.niceness if own else priority.LOWEST
        start = msgspec.structs.replace(self._start, niceness=niceness, exact=False)
        async with self._judging_own if own else self._judging:
            spent_s, began_s = None, trio.current_time()
            room = await self._started(start)
            try:
                answer, _ = await exchange(
                    room.process, request, [proof, *blobs.values()], limits, frames.Judged
                )
                spent_s = answer.processor_s
            except ProgramError as error:  # judging never raises, so this is not of a proof
                raise nonsense(str(error)) from None
            finally:
                took_s = trio.current_time() - began_s
                if not own:
                    self.judging_s += min(took_s, processor_s) if spent_s is None else spent_s
                if not room.process.ended:
                    await room.process.end()
        accused = None if answer.accused is None else PeerId(answer.accused)
        return Verdict(fraud_proof.Outcome(answer.outcome), accused, answer.sentence)

    async def _room_with(
        self,
        requester: str,
        program_id: BlobId,
        fetch_blobs: Callable[[], Awaitable[Mapping[BlobId, Buffer]]],
        limits: UnitLimits,
        numeric_class: str = "",
    ) -> _Room:
        """The requester's process, in which the program is prepared."""
        room = await self._room_of(requester)
        held_as = _held_as(program_id, numeric_class)
        if held_as not in room.held:
            blobs = await fetch_blobs()
            prepare = frames.Prepare(
                program_id, tuple(blobs), limits, numeric_class, held_as=held_as
            )
            prepared, _ = await self._ask(
                requester, prepare, list(blobs.values()), limits, frames.Prepared
            )
            room.held = frozenset(prepared.held)
        return room

    @property
    def busy(self) -> bool:
        """Whether something runs, or nothing could run at once because no spare is ready."""
        spare = self._spare
        ready = spare is not None and spare.process.alive
        return self._turnstile.taken or not ready

    async def measure(
        self,
        request: frames.Measure | frames.Prove | frames.Recompute,
        kind: type[Answer],
        time_limit_s: float,
    ) -> Answer:
        """Have a measurement made, or a challenge's work done, by the spare process.

        Nobody's data is in it, so the spare stays one. Units that wait go first, but for
        a verifier's few rows. Cancelling ends the process.

        Raises:
            ComputeError: As for `run`.
        """
        limits = UnitLimits(time_s=time_limit_s, memory_bytes=0, output_bytes=0)
        rank = _FIRST if isinstance(request, frames.Recompute) else _LAST
        async with self._turnstile.turn(rank), self._starting:
            spare = await self._ready_spare()
            try:
                answer, _ = await exchange(spare.process, request, [], limits, kind)
            finally:
                if spare.process.ended:
                    self._spare = None
                    self._nursery.start_soon(self._keep_spare)
        return answer

    async def close(self) -> None:
        """End all processes and wait until they are gone; a later call starts others."""
        for requester in tuple(self._rooms):
            await self._end(requester)
        await self._end_spare()

    async def sweep(self) -> None:
        """End the processes of requesters that do not come back, for ever."""
        while True:
            await trio.sleep(SWEEP_INTERVAL_S)
            async with self._turnstile.turn(_FIRST):
                for requester, room in tuple(self._rooms.items()):
                    if room.used_at_s + ROOM_IDLE_LIMIT_S <= trio.current_time():
                        await self._end(requester)

    async def _room_of(self, requester: str) -> _Room:
        """The process that runs this requester's units and nobody else's."""
        if self._lost is not None:
            raise self._lost
        room = self._rooms.pop(requester, None)
        if room is not None and not room.process.usable:
            await room.process.end()  # it died between two units: no unit's fault
            room = None
        if room is None:
            while len(self._rooms) >= ROOMS_LIMIT:
                await self._end(next(iter(self._rooms)))
            await self.probe()
            room, self._spare = self._spare, None
            assert room is not None
            self._nursery.start_soon(self._keep_spare)
        room.used_at_s = trio.current_time()
        self._rooms[requester] = room
        return room

    async def _ready_spare(self) -> _Room:
        """The spare, started if there is none; the caller holds `_starting`."""
        if self._lost is not None:
            raise self._lost
        if self._spare is None or not self._spare.process.alive:
            await self._end_spare()
            self._spare = await self._started(self._start)
        return self._spare

    async def _keep_spare(self) -> None:
        try:
            await self.probe()
        except ComputeError as error:  # said again to the next unit, which waits for it
            log.warning("there is no spare worker", error=str(error))

    async def _started(self, start: frames.Start) -> _Room:
        """A new process that has settled in."""
        try:
            process = WorkerProcess(self._entry, self._place)
        except OSError as error:
            raise ComputeError(
                f"a worker process cannot be started: {error.strerror}", code="worker_start"
            ) from None
        self.processes_started += 1
        start = msgspec.structs.replace(start, scratch=process.scratch)
        limits = UnitLimits(self._place.start_limit_s, memory_bytes=0, output_bytes=0)
        try:
            answer, _ = await exchange(process, start, [], limits, frames.Started)
            self._check_device(answer)
            await self._keep_kernels(process)
        except BaseException as error:  # nobody else knows of the process yet
            if not process.ended:
                await process.end()
            if isinstance(error, ComputeError):
                raise self._not_started(error) from error
            raise
        self._failed_starts = 0
        if start.exact == self._start.exact:
            self._missing = answer.missing
        self._sandbox, self._sandboxed = answer.sandbox, answer.sandboxed
        return _Room(process, answer.probes)

    async def _keep_kernels(self, process: WorkerProcess) -> None:
        """Keep what a process compiled for its canaries, before it sees a program."""
        if process.scratch:
            keep = partial(kernel_cache.keep, process.scratch, self._place.kernels)
            with suppress(OSError):  # then the next process compiles it again
                await trio.to_thread.run_sync(keep)

    def _check_device(self, answer: frames.Started) -> None:
        """See that a card still does what it did when it was first looked at.

        Raises:
            ComputeError: It does not.
        """
        if self._start.card is None:
            return
        classes = frozenset(p.numeric_class for p in answer.probes if takes_units(p))
        if self._classes is None:
            self._classes = classes
        elif gone := self._classes - classes:
            reasons = "; ".join(lack.reason for lack in answer.missing)
            names = ", ".join(sorted(each.value for each in gone))
            raise ComputeError(f"it does not run {names} any more: {reasons:.300}")

    def _not_started(self, error: ComputeError) -> ComputeError:
        """What to say of a worker that does not start; of a card's, twice is once too often."""
        self._failed_starts += 1
        card = self._start.card
        if card is None or self._classes is None or self._failed_starts < STARTS_TRIED:
            return ComputeError(
                f"the worker does not start: {error.message}",
                code="worker_start",
                hint="`shoal doctor` checks what it needs",
            )
        lost = ComputeError(
            f"the card {card.id} is gone: its worker does not start any more: {error.message}",
            code=LOST,
            hint="another node may run it",
        )
        self._lose(lost)
        return lost

    async def _ask(
        self,
        requester: str,
        request: frames.Request,
        attachments: Sequence[Tensor],
        limits: UnitLimits,
        kind: type[Answer],
        in_file_from: float = math.inf,
    ) -> tuple[Answer, list[Any]]:
        """Exchange one request for one answer of ``kind``; see `exchange`."""
        room = self._rooms[requester]
        try:
            return await exchange(
                room.process, request, attachments, limits, kind, in_file_from
            )
        finally:
            if room.process.ended:
                del self._rooms[requester]

    async def _end(self, requester: str) -> None:
        await self._rooms.pop(requester).process.end()

    async def _end_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            await spare.process.end()


def _held_as(program_id: BlobId, numeric_class: str) -> str:
    """Under which name a process holds a program, which it may hold in several classes."""
    return f"{program_id} {numeric_class}" if numeric_class else program_id


def _part(units: Sequence[UnitRun]) -> list[UnitRun]:
    """As many of the units, from the first, as are handed over together."""
    part: list[UnitRun] = []
    room = PART_LIMIT_BYTES
    for unit in units:
        room -= sum(map(size_of, unit.inputs.values()))
        if part and (room < 0 or unit.trace != part[0].trace):
            break
        part.append(unit)
    return part


@asynccontextmanager
async def open_worker(
    *,
    threads: int,
    cache_bytes: int = CACHE_BYTES,
    memory_bytes: int = MEMORY_BYTES,
    niceness: int = priority.STARTING,
    entry: Sequence[str] = WORKER,
) -> AsyncIterator[Worker]:
    """A worker for the CPU, whose processes are gone when the block is left.

    Args:
        threads: How many threads a unit may use.
        cache_bytes: How many bytes of prepared programs each process keeps.
        memory_bytes: The most that any unit may ask for; the kernel holds each process
            to this, the programs kept, and a unit's inputs and outputs, whatever it runs.
        niceness: How far units yield to other processes; a start yields less.
        entry: What Python runs as the worker, for tests.
    """
    start = frames.Start(
        threads=threads,
        cache_bytes=cache_bytes,
        memory_bytes=memory_bytes,
        exact=False,
        niceness=niceness,
    )
    async with open_workers() as workers:
        yield workers.add(start, entry=entry)


class Workers:
    """Workers that end together. Made by `open_workers`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._all: list[Worker] = []

    def add(
        self,
        start: frames.Start,
        place: Place | None = None,
        entry: Sequence[str] = WORKER,
    ) -> Worker:
        """Another worker; its first process starts when it is needed.

        Args:
            start: For which device, and what its units may take.
            place: Where its processes run.
            entry: What Python runs as the worker, for tests.
        """
        worker = Worker(start, entry, self._nursery, place)
        self._all.append(worker)
        self._nursery.start_soon(worker.sweep)
        return worker

    async def close(self) -> None:
        """End all their processes."""
        for worker in self._all:
            await worker.close()


@asynccontextmanager
async def open_workers() -> AsyncIterator[Workers]:
    """Workers of one device each, whose processes are gone when the block is left."""
    workers: Workers | None = None
    try:
        async with trio.open_nursery() as nursery:
            workers = Workers(nursery)
            try:
                yield workers
            finally:
                nursery.cancel_scope.cancel()
    finally:  # when no task is left that may be starting one
        if workers is not None:
            with trio.CancelScope(shield=True):
                await workers.close()
