"""What a device can do, measured: the figures that a node advertises of itself.

The daemon's side of it: what the worker is asked for (`compute.measuring`), in which
amounts, and what is claimed of the answers. There is no table of device names. A claim
is the lowest of some samples, taken in the worker at the priority of units, so that
whoever claims it can show it later, beside whatever ran beside it then. The class exact
is measured by the very work that a challenge asks for. Of a card the same is asked as of
the CPU, in larger pieces.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import msgspec

from shoal.compute import contention, frames
from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.base import NumericClass
from shoal.compute.executors.card_faults import LOST
from shoal.protocol.challenge_terms import RATE_SHOWN_MIN, Work, first_seed, work_for
from shoal.protocol.device_offers import ClassRate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from shoal.compute.contention import Look
    from shoal.compute.device_worker import Worker
    from shoal.compute.devices import Device
    from shoal.compute.exchanges import Answer

PRECISION_SHOWN: Final = "x20"
"""The precision in which the class exact is measured and challenged."""

SAMPLES: Final = 3
SAMPLES_EXACT: Final = 5
"""More of them, since others will hold the node to this claim."""

SAMPLE_EXACT_S: Final = 0.5
SAMPLE_PRODUCTS_S: Final = 0.15
SAMPLE_MEMORY_S: Final = 0.1
TIME_LIMIT_S: Final = 20.0
"""For one sample; a machine that needs longer has other troubles."""

PATIENCE_S: Final = 200.0
"""How long the first piece waits behind units, and then again at each of their ranks: some
ten minutes in all on a device that is never empty."""

NEXT_PATIENCE_S: Final = 5.0
"""The same of the pieces that follow: what was begun is brought to its end."""

DISK_BYTES: Final = 32 << 20
"""Written and flushed: enough for a disk's own cache to be no help, 1 s of a slow one."""

MEMORY: Final = "memory"
"""In place of a class, where one is named: how fast memory is copied."""

VERSION: Final = 2
"""Of how is measured; a new one makes old figures stale. Those without one are of 1."""

_FIRST_WORK: Final = Work(rows=256, size=256, steps=1)
_GROWING_LIMIT: Final = 4
_ENOUGH_S: Final = 0.1

_RUNTIMES: Final = ("onnxruntime", "numba", "numpy")
_RUNTIMES_OF_CARDS: Final = ("onnxruntime", "torch", "triton", "numpy")

PRODUCTS: Final = (NumericClass.FP32.value, NumericClass.LOW.value)
"""The classes that are measured by a program of products."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much a device is given at once, so that nothing counts but what is measured.

    Attributes:
        size: Rows, terms and columns of a product.
        depth: Products in a program.
        copy_bytes: Far over the caches; as much again is written to.
    """

    size: int
    depth: int
    copy_bytes: int


ON_CPU: Final = Amounts(size=1024, depth=1, copy_bytes=64 << 20)

_COPY_ON_CARD: Final = 1 << 30
_SHARE_COPIED: Final = 16
"""A small card is given this part of its memory, and one of unknown size that of 4 GiB."""


def amounts_for(device: Device) -> Amounts:
    """How much a device is given at once.

    A product of 4096 columns has work for all units of a card, and several in a row keep the
    way there and back from counting where an executor has no other way than to go it.
    """
    if device.kind == "cpu":
        return ON_CPU
    share = (device.memory_bytes or 4 << 30) // _SHARE_COPIED
    return Amounts(size=4096, depth=8, copy_bytes=min(_COPY_ON_CARD, share))


class Measurement(msgspec.Struct, frozen=True):
    """The figures of one device.

    Attributes:
        device: Its id.
        key: What they depend on; figures with another key are stale.
        measured_at: Seconds since the epoch.
        rates: One for each class that is offered there.
        memory_rate: Bytes per second read and written by a copy; 0: not measured.
        disk_rate: Bytes per second written to the store's disk; 0: not measured.
        failed: Classes, or `MEMORY`, that could not be measured, each with the reason.
        version: `VERSION` of then.
        beside: Why the figures may be too low: what else went on meanwhile; "" otherwise.
        disturbed: How many measurements in a row, this one the last, were taken so.
    """

    device: str
    key: str
    measured_at: float
    rates: tuple[ClassRate, ...]
    memory_rate: float = 0.0
    disk_rate: float = 0.0
    failed: tuple[tuple[str, str], ...] = ()
    version: int = 1
    beside: str = ""
    disturbed: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """What was found of one device; fields as those of `Measurement`."""

    rates: tuple[ClassRate, ...]
    memory_rate: float
    failed: tuple[tuple[str, str], ...] = ()
    beside: str = ""


@dataclass(slots=True)
class Pieces:
    """How the pieces of one measurement have their turns, and what went on meanwhile.

    Args:
        began: Called when the turn of each has come.
    """

    began: Callable[[], None] = lambda: None
    patience_s: float = PATIENCE_S
    spans: list[tuple[Look, Look]] = field(default_factory=list)

    async def measure(
        self,
        worker: Worker,
        request: frames.Measure | frames.Prove,
        kind: type[Answer],
    ) -> Answer:
        """Have one piece measured; raises as `Worker.measure`."""
        at_first: list[tuple[int, Look]] = []

        def began(pid: int) -> None:
            self.began()
            at_first.append((pid, contention.look(pid)))

        answer = await worker.measure(request, kind, TIME_LIMIT_S, self.patience_s, began)
        self.spans += [(first, contention.look(pid)) for pid, first in at_first]
        self.patience_s = NEXT_PATIENCE_S
        return answer

    def beside(self) -> str:
        """Why what was measured since the last call may be too low; "" otherwise."""
        spans, self.spans = self.spans, []
        return contention.disturbance(contention.contention(spans))


def key_of(device: Device, threads: int, classes: Iterable[str]) -> str:
    """What a device's figures depend on: what it is, what runs there, on how many cores."""
    card = device.kind != "cpu"
    versions = map(_version_of, _RUNTIMES_OF_CARDS if card else _RUNTIMES)
    what = [device.name, *device.isa, *filter(None, versions), *sorted(classes)]
    if card:
        what += [device.uuid, device.target, device.driver, device.driver_supports]
    return f"{threads} threads of {device.threads}; {'; '.join(what)}"


@cache
def _version_of(package: str) -> str:
    """Read once: a file is, and what a node claims is asked for with every bid."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return ""


def claim_of(samples: Sequence[float]) -> float:
    """What may be claimed after these samples: the lowest, at three digits, rounded down."""
    lowest = min(samples)
    step = 10.0 ** (len(f"{lowest:.0f}") - 3)
    return float(lowest // step * step)


async def measure_device(
    worker: Worker,
    classes: Iterable[str],
    amounts: Amounts = ON_CPU,
    began: Callable[[], None] = lambda: None,
) -> Figures:
    """Measure each class that is offered, and memory; some seconds in all.

    In pieces of about half a second, between which units that wait have their turns. What
    fails is told, and the rest is measured all the same.

    Args:
        worker: Of the device.
        classes: What is offered there.
        amounts: How much it is given at once.
        began: Called when the turn of each piece has come.

    Raises:
        ProgramError: A library failed at all of it.
        ComputeError: All of it failed, or the device is gone.
    """
    rates: list[ClassRate] = []
    failed: list[tuple[str, str]] = []
    memory_rate, beside = 0.0, ""
    pieces = Pieces(began)
    first: ProgramError | ComputeError | None = None
    for what in (*sorted(classes), MEMORY):
        try:
            if what == MEMORY:
                memory_rate = await measure_memory(worker, amounts, pieces)
            elif rate := await measure_class(worker, what, amounts, pieces):
                rates.append(rate)
            beside = pieces.beside() or beside
        except (ProgramError, ComputeError) as error:
            if error.code == LOST:
                raise
            first = first or error
            failed.append((what, error.message))
    if first and not rates and not memory_rate:
        raise first
    return Figures(tuple(rates), memory_rate, tuple(failed), beside)


async def measure_class(
    worker: Worker,
    numeric_class: str,
    amounts: Amounts = ON_CPU,
    pieces: Pieces | None = None,
) -> ClassRate | None:
    """Measure one class; None where it has no rate, or one too low to be shown.

    Raises:
        ProgramError: A library failed.
        ComputeError: The worker failed.
    """
    pieces = pieces or Pieces()
    if numeric_class == NumericClass.EXACT.value:
        rate = await _measure_exact(worker, pieces)
        if rate < RATE_SHOWN_MIN:
            return None
        return ClassRate(numeric_class, PRECISION_SHOWN, rate)
    if numeric_class in PRODUCTS:
        what: Any = numeric_class
        request = frames.Measure(what, SAMPLE_PRODUCTS_S, amounts.size, amounts.depth)
        return ClassRate(numeric_class, None, await _measure(worker, request, pieces))
    return None


async def measure_memory(worker: Worker, amounts: Amounts, pieces: Pieces) -> float:
    """Bytes per second that a copy in memory reads and writes; raises as `measure_class`."""
    request = frames.Measure("memory", SAMPLE_MEMORY_S, amounts.copy_bytes)
    return await _measure(worker, request, pieces)


def measure_disk(directory: Path) -> float:
    """Bytes per second that get to the disk under ``directory``; blocks for about a second.

    Raises:
        OSError: There is no room, or the disk is sick.
    """
    data = os.urandom(1 << 20)  # what a disk compresses would look fast
    path = directory / ".disk-measure"
    try:
        with path.open("wb") as file:
            started = perf_counter()
            for _ in range(DISK_BYTES // len(data)):
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            elapsed_s = perf_counter() - started
    finally:
        path.unlink(missing_ok=True)
    return claim_of([DISK_BYTES / max(elapsed_s, 1e-6)])


async def _measure(worker: Worker, request: frames.Measure, pieces: Pieces) -> float:
    samples = []
    for _ in range(SAMPLES):
        answer = await pieces.measure(worker, request, frames.Measured)
        samples.append(answer.amount / answer.elapsed_s)
    return claim_of(samples)


async def _measure_exact(worker: Worker, pieces: Pieces) -> float:
    """The rate at which chains of a challenge are done."""
    work, rate = _FIRST_WORK, 0.0
    for _ in range(_GROWING_LIMIT):  # from a first guess to the size that will be asked for
        elapsed_s = await _chain_s(worker, work, pieces)
        rate = work.multiply_adds / elapsed_s
        if elapsed_s > _ENOUGH_S or rate < RATE_SHOWN_MIN:
            break
        work = work_for(rate, SAMPLE_EXACT_S)
    work = work_for(max(rate, RATE_SHOWN_MIN), SAMPLE_EXACT_S)
    samples = [
        work.multiply_adds / await _chain_s(worker, work, pieces) for _ in range(SAMPLES_EXACT)
    ]
    return claim_of(samples)


async def _chain_s(worker: Worker, work: Work, pieces: Pieces) -> float:
    request = frames.Prove(
        root=first_seed(os.urandom(32)),
        rows=work.rows,
        size=work.size,
        steps=work.steps,
        precision=PRECISION_SHOWN,
        time_limit_s=TIME_LIMIT_S,
    )
    return (await pieces.measure(worker, request, frames.Proved)).elapsed_s
