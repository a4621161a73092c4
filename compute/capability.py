"""What a device can do, measured: the figures that a node advertises of itself.

The daemon's side of it: what the worker is asked for (`compute.measuring`), in which
amounts, and what is claimed of the answers. There is no table of device names. A claim
is the lowest of some samples, taken in the worker at the priority of units, so that
whoever claims it can show it later, beside whatever ran beside it then. The class exact
is measured by the very work that a challenge asks for.
"""

from __future__ import annotations

import os
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final

import msgspec

from shoal.compute import frames
from shoal.compute.executors.base import NumericClass
from shoal.protocol.challenge_terms import RATE_SHOWN_MIN, Work, first_seed, work_for
from shoal.protocol.statements import ClassRate

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from shoal.compute.device_worker import Worker
    from shoal.compute.devices import Device

PRECISION_SHOWN: Final = "x20"
"""The precision in which the class exact is measured and challenged."""

SAMPLES: Final = 3
SAMPLES_EXACT: Final = 5
"""More of them, since others will hold the node to this claim."""

SAMPLE_EXACT_S: Final = 0.5
SAMPLE_FP32_S: Final = 0.15
SAMPLE_MEMORY_S: Final = 0.1
TIME_LIMIT_S: Final = 20.0
"""For one sample; a machine that needs longer has other troubles."""

DISK_BYTES: Final = 32 << 20
"""Written and flushed: enough for a disk's own cache to be no help, 1 s of a slow one."""

_FIRST_WORK: Final = Work(rows=256, size=256, steps=1)
_GROWING_LIMIT: Final = 4
_ENOUGH_S: Final = 0.1
_VERSION: Final = "1"
"""Of how is measured; a new one makes old figures stale."""

_RUNTIMES: Final = ("onnxruntime", "numba", "numpy")


class Measurement(msgspec.Struct, frozen=True):
    """The figures of one device.

    Attributes:
        device: Its id.
        key: What they depend on; figures with another key are stale.
        measured_at: Seconds since the epoch.
        rates: One for each class that is offered there.
        memory_rate: Bytes per second read and written by a copy; 0: not measured.
        disk_rate: Bytes per second written to the store's disk; 0: not measured.
    """

    device: str
    key: str
    measured_at: float
    rates: tuple[ClassRate, ...]
    memory_rate: float = 0.0
    disk_rate: float = 0.0


def key_of(device: Device, threads: int, classes: Iterable[str]) -> str:
    """What a device's figures depend on: what it is, what runs there, on how many cores."""
    versions = []
    for name in _RUNTIMES:
        with suppress(PackageNotFoundError):
            versions.append(f"{name} {version(name)}")
    what = (_VERSION, device.name, *device.isa, *versions, *sorted(classes))
    return f"{threads} threads of {device.threads}; {'; '.join(what)}"


def claim_of(samples: Sequence[float]) -> float:
    """What may be claimed after these samples: the lowest, at three digits, rounded down."""
    lowest = min(samples)
    step = 10.0 ** (len(f"{lowest:.0f}") - 3)
    return float(lowest // step * step)


async def measure_rates(worker: Worker, classes: Iterable[str]) -> tuple[ClassRate, ...]:
    """Measure each class that is offered; some seconds in all, in pieces of half a second.

    Units that wait come in between the pieces.

    Raises:
        ComputeError: The worker failed.
    """
    rates = []
    for numeric_class in sorted(classes):
        if numeric_class == NumericClass.EXACT.value:
            rate = await _measure_exact(worker)
            if rate >= RATE_SHOWN_MIN:
                rates.append(ClassRate(numeric_class, PRECISION_SHOWN, rate))
        elif numeric_class == NumericClass.FP32.value:
            rate = await _measure(worker, frames.Measure("fp32", SAMPLE_FP32_S))
            rates.append(ClassRate(numeric_class, None, rate))
    return tuple(rates)


async def measure_memory(worker: Worker) -> float:
    """Bytes per second that a copy in memory reads and writes; raises ComputeError."""
    return await _measure(worker, frames.Measure("memory", SAMPLE_MEMORY_S))


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


async def _measure(worker: Worker, request: frames.Measure) -> float:
    samples = []
    for _ in range(SAMPLES):
        answer = await worker.measure(request, frames.Measured, TIME_LIMIT_S)
        samples.append(answer.amount / answer.elapsed_s)
    return claim_of(samples)


async def _measure_exact(worker: Worker) -> float:
    """The rate at which chains of a challenge are done."""
    work, rate = _FIRST_WORK, 0.0
    for _ in range(_GROWING_LIMIT):  # from a first guess to the size that will be asked for
        elapsed_s = await _chain_s(worker, work)
        rate = work.multiply_adds / elapsed_s
        if elapsed_s > _ENOUGH_S or rate < RATE_SHOWN_MIN:
            break
        work = work_for(rate, SAMPLE_EXACT_S)
    work = work_for(max(rate, RATE_SHOWN_MIN), SAMPLE_EXACT_S)
    samples = [work.multiply_adds / await _chain_s(worker, work) for _ in range(SAMPLES_EXACT)]
    return claim_of(samples)


async def _chain_s(worker: Worker, work: Work) -> float:
    request = frames.Prove(
        root=first_seed(os.urandom(32)),
        rows=work.rows,
        size=work.size,
        steps=work.steps,
        precision=PRECISION_SHOWN,
        time_limit_s=TIME_LIMIT_S,
    )
    return (await worker.measure(request, frames.Proved, TIME_LIMIT_S)).elapsed_s
