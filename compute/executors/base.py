"""The contract between a worker and an executor, whatever runtime it drives.

An executor lives in a worker process and is used by one thread; `terminate` alone
may be called from another one. It never falls back: what it cannot do on its own
device it refuses, and `probe` says what that device really is.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np


class Evidence(Enum):
    """What a canary showed about a device; a node advertises no more than this."""

    EXECUTED = "executed"
    """The canary ran on the real silicon, every fallback off, and was right."""

    EMULATED = "emulated"
    """It ran, and was right, on a simulator of the device."""

    COMPILE_ONLY = "compile-only"
    """Programs compile for the device, which is not here."""


class NumericClass(Enum):
    """How results compare between honest nodes (see the numeric classes of the design)."""

    EXACT = "exact"
    FP32 = "fp32"
    LOW = "low"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class Probe:
    """What an executor offers, after its canary ran."""

    runtime: str
    """Name and version for people and receipts, where it is advisory."""

    numeric_class: NumericClass
    evidence: Evidence


Handle = TypeVar("Handle")


class Executor(Protocol[Handle]):
    """Runs programs on one device."""

    def start_threads(self) -> None:
        """Start all threads now: a locked-in worker can start none later. Called once.

        Without this call, an executor starts threads when it needs them.
        """
        ...

    def probe(self) -> Probe:
        """Run the canary.

        Raises:
            ComputeError: The runtime or the device does not work.
        """
        ...

    def prepare(self, program: Any) -> Handle:
        """Compile a program and place its weights.

        Args:
            program: What `shoal.compute.loading.load` gave: a `LoadedProgram`, or of the
                class kernel a `LoadedKernel`.

        Raises:
            ProgramError: The runtime cannot run this program.
            ComputeError: There is not enough memory, or `terminate` was called.
        """
        ...

    def run(self, handle: Handle, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a prepared program once.

        Args:
            handle: What `prepare` gave.
            inputs: Arrays by input name, of the dtypes and shapes the manifest asks for.

        Returns:
            Arrays by output name.

        Raises:
            ProgramError: An operator failed on these inputs.
            ComputeError: There is not enough memory, or `terminate` was called.
        """
        ...

    def terminate(self) -> None:
        """Make the current `prepare` or `run` end soon with code ``terminated``."""
        ...
