"""Which executor runs which numeric class, by kind of device: one table for each.

Part of *execute*; read in the worker. An executor is a line here. What it needs is
imported when it is loaded, and not before, so that a node without torch or Triton still
serves what it can, and says what is missing and how to get it.

Where two executors have a class on one device, the first in the table that works there has
it, and the other is not used.

What is loaded is loaded before the worker locks itself in, and what is made of it, after:
a card's driver starts threads, and a thread that runs already would not be locked in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from shoal.compute.devices.abilities import NOT_USED
from shoal.compute.devices.inventory import Lack
from shoal.compute.errors import ComputeError
from shoal.compute.executors.base import Evidence, Executor, NumericClass, Probe

if TYPE_CHECKING:
    from collections.abc import Sequence

    from shoal.compute.devices.cards import Card
    from shoal.compute.frames import Start

Make: TypeAlias = Callable[[], Executor[Any]]

TORCH_DEVICE: Final = "cuda:0"
"""A card's worker sees its own card alone; torch's builds for ROCm call it so too."""

INSTALL_GPU: Final = (
    "in a checkout of shoal: `pip install -c constraints.txt '.[gpu]'`, into the environment "
    "that shoal runs in"
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One executor of one numeric class.

    Attributes:
        name: The executor's, with which its runtime's text begins.
        numeric_class: The class.
        packages: Modules that have to be installed.
        load: Imports what it takes; what it gives makes the executor, once the worker is
            locked in. Either raises anything where the executor does not work here.
        compiles: The canary where the card cannot be reached: compiles for it, and raises
            anything where that fails. None, where the executor compiles nothing.
        by_torch: Whether it reaches a card through torch (`check_reach`); the canary of
            another one shows that by itself.
    """

    name: str
    numeric_class: NumericClass
    packages: tuple[str, ...]
    load: Callable[[Start], Make]
    compiles: Callable[[Card], Probe] | None = None
    by_torch: bool = True


def entries(start: Start) -> Sequence[Entry]:
    """The executors that a worker tries, by what it runs units on."""
    if start.card is not None:
        return ON_CARDS
    return ON_CPUS if start.exact else ON_CPUS[:1]


def missing_packages(entry: Entry) -> Lack | None:
    """What has to be installed for an executor, or None where all of it is."""
    absent = [name for name in entry.packages if find_spec(name) is None]
    if not absent:
        return None
    return Lack(
        "package_missing",
        f"the executor {entry.name} ({entry.numeric_class.value}) is not here: "
        f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed",
        INSTALL_GPU,
    )


def passed_over(entry: Entry, first: Entry) -> Lack:
    """Why an executor that may work is not used: another one has its class."""
    return Lack(
        NOT_USED,
        f"the executor {entry.name} ({entry.numeric_class.value}) is not used: {first.name} "
        "comes first and works here",
    )


def check_reach(card: Card) -> None:
    """See whether torch reaches the one card that this process is shown.

    Raises:
        ComputeError: ``card_unreachable``, and why.
    """
    import torch

    built_for = "hip" if torch.version.hip else "cuda" if torch.version.cuda else ""
    if built_for != card.runtime:
        maker = "ROCm" if card.runtime == "hip" else "CUDA"
        raise ComputeError(
            f"torch {torch.__version__} is built without {maker}",
            code="card_unreachable",
            hint=f"install a build for {maker} that fits the driver: "
            "https://pytorch.org/get-started shows the command",
        )
    if not torch.cuda.is_available() or torch.cuda.device_count() != 1:
        raise ComputeError(
            f"torch {torch.__version__} finds {torch.cuda.device_count()} cards where this "
            "one is to be found",
            code="card_unreachable",
            hint="its build has to fit the driver: `shoal devices` shows which the driver "
            "supports, https://pytorch.org/get-started how to install it",
        )


# --- on CPUs ---------------------------------------------------------------------------


def _onnxruntime(start: Start) -> Make:
    from shoal.compute.executors.onnxruntime import OnnxRuntime

    executor = OnnxRuntime(threads=start.threads)
    return lambda: executor


def _exact_by_numba(start: Start) -> Make:
    """Importing it loads every kernel."""
    import numba
    import numpy.ma  # noqa: F401  # numba asks whether arrays are masked: later is too late

    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]  # then the kernels are plain Python, and nothing says so
        raise ComputeError("numba's compiler is switched off", code="probe_failed")
    from shoal.compute.exact.cpu.kernels import CpuKernels
    from shoal.compute.executors.exact import Exact

    kernels = CpuKernels(start.threads)
    executor = Exact(kernels, "numba", kernels.warm_up)
    return lambda: executor


ON_CPUS: Final = (
    Entry("onnxruntime", NumericClass.FP32, (), _onnxruntime),
    Entry("exact", NumericClass.EXACT, (), _exact_by_numba),
)
"""The first is there from the start; the others, when their kernels are compiled."""


# --- on cards --------------------------------------------------------------------------


def _exact_by_triton(start: Start) -> Make:
    import triton

    from shoal.compute.challenge_work import ChallengeWork
    from shoal.compute.exact.gpu.card import Card as TorchCard
    from shoal.compute.exact.gpu.kernels import CardKernels
    from shoal.compute.executors.exact import Exact

    def make() -> Executor[Any]:
        kernels = CardKernels(TorchCard(TORCH_DEVICE), threads=start.threads)
        # What a challenge runs is compiled now: its prover has no time for that.
        warm_up = partial(ChallengeWork(kernels).warm_up, "x20")
        return Exact(kernels, f"triton {triton.__version__}", warm_up)

    return make


_EXACT_CANARY: Final = ("admit", "chain", "digit_product")
"""Kernels that stand for all: `python -m shoal.compute.exact.gpu` compiles every one."""


def _exact_compiles(card: Card) -> Probe:
    import triton

    from shoal.compute.exact.gpu.kernels import variants
    from shoal.compute.exact.gpu.targets import TARGETS, compile_for
    from shoal.compute.exact.spec import SPEC_VERSION

    target = TARGETS.get(card.target)
    if target is None:
        raise _unknown_target(card)
    kernels = list(variants())
    for name in _EXACT_CANARY:
        variant = next(each for each in kernels if each.name.startswith(name))
        done = compile_for(variant, target)
        if not done.binary or done.shared_bytes > target.shared_bytes:
            raise ComputeError(
                f"the kernel {variant.name} does not fit {target.name}", code="probe_failed"
            )
    return Probe(
        runtime=f"exact {SPEC_VERSION} triton {triton.__version__} for {target.name}",
        numeric_class=NumericClass.EXACT,
        evidence=Evidence.COMPILE_ONLY,
    )


def _unknown_target(card: Card) -> ComputeError:
    from shoal.compute.exact.gpu.targets import TARGETS

    return ComputeError(
        f"no kernel is compiled for {card.target or 'a card of unknown kind'} ahead of "
        f"time: only for {', '.join(TARGETS)}",
        code="unknown_target",
    )


def _kernels(_: Start) -> Make:
    from shoal.compute.executors.triton import Triton

    return lambda: Triton(TORCH_DEVICE)


def _kernels_compile(card: Card) -> Probe:
    from triton.backends.compiler import GPUTarget

    from shoal.compute.exact.gpu.targets import TARGETS
    from shoal.compute.executors.triton import compiles

    target = TARGETS.get(card.target)
    if target is None:
        raise _unknown_target(card)
    return compiles(GPUTarget(target.backend, target.arch, target.lanes))


def _torch(numeric_class: NumericClass) -> Callable[[Start], Make]:
    def load(_: Start) -> Make:
        from shoal.compute.executors.torch import TorchExecutor

        return lambda: TorchExecutor(TORCH_DEVICE, numeric_class)

    return load


def _onnxruntime_on_card(start: Start) -> Make:
    import onnxruntime as ort

    from shoal.compute.executors import providers
    from shoal.compute.executors.onnxruntime import OnnxRuntime

    assert start.card is not None
    provider = providers.of_card(start.card, start.memory_bytes)
    providers.check_build(provider, ort.__version__, ort.get_available_providers())
    if start.card.runtime == "cuda":
        ort.preload_dlls()  # CUDA's libraries lie in packages of their own, where pip put them
    return lambda: OnnxRuntime(provider, threads=start.threads)


ON_CARDS: Final = (
    Entry("exact", NumericClass.EXACT, ("torch", "triton"), _exact_by_triton, _exact_compiles),
    Entry("torch", NumericClass.FP32, ("torch",), _torch(NumericClass.FP32)),
    Entry("onnxruntime", NumericClass.FP32, (), _onnxruntime_on_card, by_torch=False),
    Entry("torch", NumericClass.LOW, ("torch",), _torch(NumericClass.LOW)),
    Entry("triton", NumericClass.KERNEL, ("torch", "triton"), _kernels, _kernels_compile),
)
"""Torch comes before ONNX Runtime: it runs what is left to the CPU there, computed shapes above
all, which models of sizes that vary are full of; and it holds each unit to its own memory."""
