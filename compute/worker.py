"""The worker: the process in which strangers' models are parsed and run.

Started by `shoal.compute.starting` as ``python -m shoal.compute.worker FD``, where
FD is its end of a socket pair. It answers one request after another
(`shoal.compute.worker_channel`); what it cannot answer for, a crash or a hang, is the
supervisor's part.

It loads its libraries first, then locks itself in (`shoal.compute.sandbox`), then starts
its threads and runs the canaries, which shows that the executors work inside; only then
does it take a program. What else a process does to itself is here: it dies with its
parent, gives way to other work, and is the first to go when memory runs out.

Which executors it has is `shoal.compute.executors.probing`'s; what a request may use, and
what its failure means, `shoal.compute.enforcement`'s.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import sys
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shoal.compute import (
    frames,
    judging_traces,  # noqa: F401  # `judging` asks for it when this process reads no file
    measuring,
    priority,
)
from shoal.compute.card_memory import OVERHEAD_BYTES, Use
from shoal.compute.card_meter import CardMeter
from shoal.compute.convert import convert
from shoal.compute.enforcement import Enforcer, check_output_size
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.exact.leaves import leaf_bytes
from shoal.compute.executors.base import NumericClass
from shoal.compute.executors.probing import Executors
from shoal.compute.judging import judge
from shoal.compute.loading import load
from shoal.compute.manifest import check_inputs
from shoal.compute.programs import AnyManifest, own_class
from shoal.compute.sandbox import CPU, GPU, HardLimits, lock_in, of_card_worker
from shoal.compute.tensor import from_blob, spec_of_array, to_blob
from shoal.compute.warming import made_up_inputs
from shoal.compute.worker_channel import serve
from shoal.crypto.content import BlobId

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from shoal.compute.exact.leaves import StageLeaf
    from shoal.crypto.content import Buffer

HELD_PROGRAMS_LIMIT: Final = 8
"""How many programs stay prepared; each has scratch memory of its own."""

_SHARES_OF_A_UNIT: Final = 3
"""Its inputs and its outputs may each be as large as its memory, and come on top of it."""

_PR_SET_PDEATHSIG: Final = 1
_LINUX_OOM_FIRST: Final = "1000"


@dataclass(frozen=True, slots=True)
class Held:
    """A prepared program, who runs it, and what its weights and graph take."""

    manifest: AnyManifest
    numeric_class: NumericClass
    prepared: object
    size_bytes: int


class Worker:
    """Answers requests; holds the prepared programs, the least recently used go first."""

    def __init__(self, start: frames.Start) -> None:
        self._card = start.card
        self._scratch, self._home = start.scratch, start.home
        self._executors = Executors(start)
        self._enforcer = Enforcer(self._card, start.threads, self._executors.terminate)
        self._unit_bytes = OVERHEAD_BYTES + _SHARES_OF_A_UNIT * start.memory_bytes
        self._cache_bytes, self._share_bytes = start.cache_bytes, start.share_bytes
        self._niceness = start.niceness
        self._held: OrderedDict[str, Held] = OrderedDict()

    @property
    def broken(self) -> bool:
        """Whether this process can run nothing more: its card has failed."""
        return self._enforcer.broken

    def start(self) -> frames.Started:
        """Lock this process in and run the canary of each executor; one that fails is not used.

        Raises:
            ComputeError: None of them works here.
        """
        priority.yield_to_owner(self._niceness)  # threads that start later have it too
        lock = (
            lock_in(GPU, of_card_worker(self._scratch, self._card.pci, home=self._home))
            if self._card
            else lock_in(CPU)
        )
        self._enforcer.start()
        reached = self._reached()
        probes = self._executors.probe(reached)
        if not reached:
            probes += self._executors.compile_only()
        missing = self._executors.lacks()
        if not probes and not self._card:
            reasons = "; ".join(lack.reason for lack in missing)
            raise ComputeError(reasons, code="no_executor")
        # A runtime keeps weights as they came and as it likes them, and memory to work in.
        held_bytes = 2 * self._cache_bytes + HELD_PROGRAMS_LIMIT * OVERHEAD_BYTES
        hard_limits = HardLimits(held_bytes + self._unit_bytes)
        lock = lock.close(self._enforcer.meter, hard_limits)
        return frames.Started(
            tuple(probes),
            missing,
            str(lock),
            lock.complete,
            holds_units=self._executors.holds_units,
        )

    def _reached(self) -> bool:
        """Whether torch reaches the device; of a card, its allocator is metered then."""
        if not self._executors.need_torch:
            return True
        if not self._executors.reach():
            return False
        if isinstance(self._enforcer.meter, CardMeter):
            import torch

            self._enforcer.meter.allocator = torch.cuda
        return True

    def convert(
        self, request: frames.Convert, attachments: list[Buffer]
    ) -> tuple[frames.Converted, list[bytes]]:
        """Convert one model."""
        (model,) = attachments
        with self._enforcer.within(request.limits):
            program = convert(model, request.precision)
        blobs = list(program.blobs.values())
        check_output_size(sum(map(len, blobs)), request.limits)
        return frames.Converted(program.program_id, tuple(program.blobs)), blobs

    def prepare(self, request: frames.Prepare, attachments: list[Buffer]) -> frames.Prepared:
        """Load a program and keep it, letting older ones go."""
        ids = map(BlobId, request.blob_ids)
        blobs = dict(zip(ids, attachments, strict=True))
        size_bytes = sum(memoryview(blob).nbytes for blob in attachments)
        self._make_room(size_bytes)
        with self._enforcer.within(request.limits):
            loaded = load(BlobId(request.program_id), blobs)
            numeric_class = _class_of(request.numeric_class, loaded.manifest)
            prepared = self._executors.of(numeric_class).prepare(loaded)
        held = Held(loaded.manifest, numeric_class, prepared, size_bytes)
        name = request.held_as or request.program_id
        self._held[name] = held
        self._leave_room(name, request.limits)
        if request.compile_s and numeric_class is NumericClass.EXACT:
            self._warm_up(held, request)
        meter = self._enforcer.meter
        used = meter.memory_used_bytes() if isinstance(meter, CardMeter) else 0
        return frames.Prepared(tuple(self._held), used)

    def _warm_up(self, held: Held, request: frames.Prepare) -> None:
        """Compile a program's kernels by a run that is nobody's; only a card's fault counts."""
        limits = msgspec.structs.replace(request.limits, time_s=request.compile_s)
        try:
            inputs = made_up_inputs(held.manifest.inputs, limits.memory_bytes)
            if inputs is not None:
                with self._enforcer.within(limits):
                    self._executors.of(held.numeric_class).run(held.prepared, inputs)
        except Exception:  # a program may fail in any way at inputs that mean nothing
            if self.broken:
                raise

    def run(
        self, request: frames.Run, attachments: list[Buffer]
    ) -> tuple[frames.Ran, list[bytes]]:
        """Run a program that is held."""
        started = time.perf_counter()
        held = self._held_as(request.program_id)
        with self._enforcer.within(request.limits):
            arrays = _inputs(held, request.input_names, attachments)
            executor = self._executors.of(held.numeric_class)
            stages: list[StageLeaf] = []
            if request.trace and held.numeric_class is NumericClass.EXACT:
                results, stages = executor.run_in_stages(held.prepared, arrays)
            else:
                results = executor.run(held.prepared, arrays)
            check_output_size(sum(array.nbytes for array in results.values()), request.limits)
            outputs = {name: to_blob(array) for name, array in results.items()}
        check_output_size(sum(map(len, outputs.values())), request.limits)
        compute_s = time.perf_counter() - started
        runtime = self._executors.runtimes[held.numeric_class]
        leaves = tuple(map(leaf_bytes, stages))
        return frames.Ran(tuple(outputs), compute_s, runtime, leaves), list(outputs.values())

    def trace(
        self, request: frames.Trace, attachments: list[Buffer]
    ) -> tuple[frames.Traced, list[bytes]]:
        """Run a program that is held, for its leaves."""
        held, executor = self._traced(request.program_id)
        with self._enforcer.within(request.limits):
            arrays = _inputs(held, request.input_names, attachments)
            leaves, stages = executor.trace(held.prepared, arrays, request.stage)
            packed = [frames.pack_leaves([*map(leaf_bytes, each)]) for each in (leaves, stages)]
        check_output_size(sum(map(len, packed)), request.limits)
        return frames.Traced(), packed

    def tensors_of(
        self, request: frames.TensorsOf, attachments: list[Buffer]
    ) -> tuple[frames.NodeTensors, list[bytes]]:
        """Run a program that is held up to one node, for what that one takes and gives."""
        held, executor = self._traced(request.program_id)
        with self._enforcer.within(request.limits):
            arrays = _inputs(held, request.input_names, attachments)
            found = executor.tensors_of(held.prepared, arrays, request.index)
        blobs = list(found.blobs.values())
        check_output_size(sum(map(len, blobs)), request.limits)
        return frames.NodeTensors(tuple(found.blobs), leaf_bytes(found.leaf)), blobs

    def judge(self, request: frames.Judge, attachments: list[Buffer]) -> frames.Judged:
        """Judge a fraud proof by the reference."""
        proof, *blobs = attachments
        ids = map(BlobId, request.blob_ids)
        with self._enforcer.within(request.limits, request.processor_s):
            verdict = judge(bytes(proof), dict(zip(ids, blobs, strict=True)))
        return frames.Judged(
            verdict.outcome.value,
            verdict.accused,
            verdict.sentence[:4096],
            time.process_time(),
        )

    def _held_as(self, name: str) -> Held:
        """A program that is held.

        Raises:
            ComputeError: ``not_prepared``: it is not. The daemon knows what is held, so that
                this is nobody's fault but its own, and never the program's.
        """
        try:
            held = self._held[name]
        except KeyError:
            raise ComputeError(
                "the worker does not hold the program any more", code="not_prepared"
            ) from None
        self._held.move_to_end(name)
        return held

    def _traced(self, program_id: str) -> tuple[Held, Any]:
        """A program that is held, and the executor that traces it.

        Raises:
            ProgramError: ``no_trace``: it is of another class than exact.
        """
        held = self._held_as(program_id)
        if held.numeric_class is not NumericClass.EXACT:
            raise ProgramError("only programs of the class exact have a trace", code="no_trace")
        return held, self._executors.of(held.numeric_class)

    def measure(
        self, request: frames.Measure | frames.Prove | frames.Recompute
    ) -> frames.Answer:
        """Measure this device, or do a capability challenge's work."""
        if self._card is None:
            return measuring.answer(request, self._executors.by_class)
        with self._enforcer.unlimited():
            return measuring.answer(request, self._executors.by_class, card=True)

    def _make_room(self, size_bytes: int) -> None:
        while self._held and (
            len(self._held) >= HELD_PROGRAMS_LIMIT
            or sum(held.size_bytes for held in self._held.values()) + size_bytes
            > self._cache_bytes
        ):
            self._held.popitem(last=False)

    def _leave_room(self, prepared: str, limits: frames.UnitLimits) -> None:
        """Let others go where they leave a unit less room than the hard limit promises.

        What a runtime makes of a program's weights counts there, and not in `_make_room`. A
        card promises nothing beyond what this program's units may ask for: no two programs
        could stay there otherwise. Nor does one go for what other processes take of a card,
        as long as this one keeps within its share.
        """
        wanted = OVERHEAD_BYTES + limits.memory_bytes if self._card else self._unit_bytes
        others = [program_id for program_id in self._held if program_id != prepared]
        meter = self._enforcer.meter
        while others and meter.memory_left_bytes() < wanted:
            if isinstance(meter, CardMeter):
                use = Use(meter.memory_used_bytes(), limits.memory_bytes)
                if use.total_bytes <= self._share_bytes:
                    return
            del self._held[others.pop(0)]


def _class_of(named: str, manifest: AnyManifest) -> NumericClass:
    """In which class a program is run; where none is named, in its own."""
    try:
        return NumericClass(named or own_class(manifest))
    except ValueError:
        raise ComputeError(
            f"no executor of the class {named!r} works here", code="no_executor"
        ) from None


def _inputs(
    held: Held, names: Sequence[str], attachments: Sequence[Buffer]
) -> dict[str, np.ndarray]:
    """A unit's inputs as arrays, if its program takes them.

    Raises:
        ProgramError: It does not.
    """
    blobs = dict(zip(names, attachments, strict=True))
    arrays = {name: from_blob(blob) for name, blob in blobs.items()}
    check_inputs(held.manifest, {name: spec_of_array(array) for name, array in arrays.items()})
    return arrays


def _settle_in() -> None:
    """Tie this process to its parent, behind all others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the daemon decides when a unit ends
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    os.nice(priority.STARTING)
    with suppress(OSError):  # not in every container
        Path("/proc/self/oom_score_adj").write_text(_LINUX_OOM_FIRST, encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def main(worker_class: type[Worker] = Worker) -> None:
    """Run a worker on the file descriptor named on the command line."""
    _settle_in()
    with socket.socket(fileno=int(sys.argv[-1])) as channel, suppress(ConnectionError):
        serve(channel, worker_class)
    os._exit(0)  # a runtime's threads are not waited for


if __name__ == "__main__":
    main()
