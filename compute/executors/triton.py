"""Users' own kernels on a card, class `kernel`.

Part of *execute*. Preparing a program parses its text, looks at it again and compiles it for
this very card (`shoal.compute.user_kernels`); running it copies the inputs to the card,
launches the grid by Triton's own launcher and copies the outputs back. Outputs are zeros
before the kernel runs, so that nothing shows that lay in the card's memory before.

A kernel may read and write where it likes in the card's memory *of its own process*, and no
rule keeps it from that. A worker serves one requester, and one that is on the allow list.

Where no card is there, kernels compile for it and do not run: `compiles` shows that. Under
Triton's interpreter nothing of this works, for that one interprets Python and not its IR.
"""

from __future__ import annotations

import threading
from collections import namedtuple
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import triton
from triton.compiler import CompiledKernel as TritonKernel
from triton.compiler.compiler import make_backend
from triton.runtime.autotuner import OutOfResources
from triton.runtime.driver import driver

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.kernel_manifest import KernelManifest, launch_of
from shoal.compute.tensor import spec_of_array
from shoal.compute.user_kernels.canary import SIZE, canary
from shoal.compute.user_kernels.compiling import CompiledKernel, compile_kernel
from shoal.compute.user_kernels.parsing import LoadedKernel, load

if TYPE_CHECKING:
    from collections.abc import Mapping

    from triton.backends.compiler import GPUTarget

_HIP_THREADS_LIMIT: Final = 2**32 - 1
"""HIP counts a launch's threads along an axis in 32 bits."""

_NAME: Final = f"triton {triton.__version__}"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A kernel that is loaded on the card, and what its units are checked by."""

    manifest: KernelManifest
    launcher: Any
    threads_limit: int | None
    """Of a launch along x, where the card's runtime has one; None where programs have."""


@dataclass(frozen=True, slots=True)
class _Signature:
    """What Triton's launcher asks of a kernel's source: the type of each argument."""

    signature: Mapping[int, str]


class Triton:
    """The executor ``triton``.

    Args:
        device: Of torch's, such as ``cuda:0`` (of ROCm's builds too).
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._ended = threading.Event()

    def start_threads(self) -> None:
        """Nothing: a driver starts its own. See `Executor.start_threads`."""

    def probe(self) -> Probe:
        """Lower, compile and run a kernel whose result is known. See `Executor.probe`."""
        try:
            made = canary()
            handle = self.prepare(load(made.program_id, made.blobs))
            x = np.arange(SIZE, dtype=np.int32)
            right = np.array_equal(self.run(handle, {"x": x})["y"], 4 * x)
        except (ProgramError, ComputeError) as error:
            raise _failed(error.message) from error
        if not right:
            raise _failed("the canary's result is wrong")
        target = driver.active.get_current_target()
        return Probe(
            runtime=f"{_NAME} {_target_name(target)}",
            numeric_class=NumericClass.KERNEL,
            evidence=Evidence.EXECUTED,
        )

    def prepare(self, program: LoadedKernel) -> Prepared:
        """Parse, check and compile a kernel, and load it. See `Executor.prepare`.

        Raises:
            ComputeError: ``terminated``, or as `user_kernels.compiling.compile_kernel`.
            ProgramError: As that.
        """
        self._ended.clear()
        target = driver.active.get_current_target()
        compiled = compile_kernel(program, target)
        self._check()
        launcher = _launcher(program.manifest, compiled)
        try:
            launcher._init_handles()  # noqa: SLF001  # loads it now, and not in a unit's time
        except OutOfResources as error:
            raise ComputeError(
                f"the kernel does not fit this card: {error!s:.200}",
                code="not_for_this_card",
                hint="lower it with smaller blocks, fewer stages or fewer warps",
            ) from None
        hip = target.backend == "hip"
        return Prepared(program.manifest, launcher, _HIP_THREADS_LIMIT if hip else None)

    def run(self, handle: Prepared, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Launch the grid once, and wait for it. See `Executor.run`.

        Raises:
            ProgramError: ``grid_too_large``, or as `kernel_manifest.launch_of`.
            ComputeError: ``terminated``.
        """
        self._ended.clear()
        manifest = handle.manifest
        launch = launch_of(manifest, {n: spec_of_array(array) for n, array in inputs.items()})
        threads = launch.grid[0] * manifest.warps * handle.launcher.metadata.warp_size
        if handle.threads_limit is not None and threads > handle.threads_limit:
            raise ProgramError(
                f"{threads} threads along x are more than the {handle.threads_limit} that "
                "this card's runtime launches",
                code="grid_too_large",
                hint="use more axes of the grid, or make smaller units",
            )
        # The card has bytes: it is the kernel that knows what they are.
        tensors = {name: self._on_card(array) for name, array in inputs.items()}
        for name, spec in launch.outputs.items():
            if name not in tensors:
                tensors[name] = torch.zeros(
                    spec.data_bytes, dtype=torch.uint8, device=self._device
                )
        self._check()
        if all(launch.grid):
            handle.launcher[launch.grid](
                *(
                    tensors[argument.name] if argument.value is None else launch.numbers[place]
                    for place, argument in enumerate(manifest.arguments)
                )
            )
        torch.cuda.synchronize(self._device)
        self._check()
        return {
            name: tensors[name].cpu().numpy().view(_numpy_dtype(spec.dtype)).reshape(spec.shape)
            for name, spec in launch.outputs.items()
        }

    def terminate(self) -> None:
        """End before the next step; a kernel that runs is not ended. See `Executor.terminate`.

        What hangs on a card ends with its process, which the supervisor kills.
        """
        self._ended.set()

    def _on_card(self, array: np.ndarray) -> Any:
        """A copy of an array's bytes in the card's memory, (bytes,) uint8."""
        data = np.frombuffer(bytearray(np.ascontiguousarray(array).tobytes()), dtype=np.uint8)
        if not data.size:
            return torch.zeros(0, dtype=torch.uint8, device=self._device)
        return torch.from_numpy(data).to(self._device)

    def _check(self) -> None:
        if self._ended.is_set():
            raise ComputeError("the program was ended", code="terminated")


def compiles(target: GPUTarget) -> Probe:
    """Show that kernels compile for a card that is not here; they do not run.

    Raises:
        ComputeError: ``probe_failed``.
    """
    try:
        made = canary()
        compile_kernel(load(made.program_id, made.blobs), target)
    except (ProgramError, ComputeError) as error:
        raise _failed(error.message) from error
    return Probe(
        runtime=f"{_NAME} for {_target_name(target)}",
        numeric_class=NumericClass.KERNEL,
        evidence=Evidence.COMPILE_ONLY,
    )


def _launcher(manifest: KernelManifest, compiled: CompiledKernel) -> Any:
    """Triton's own kernel object, made of what was compiled here.

    Its constructor reads files of Triton's cache, where nothing of a stranger's is put.
    """
    fields = dict(compiled.metadata)
    kernel = TritonKernel.__new__(TritonKernel)
    kernel.metadata = namedtuple("KernelMetadata", sorted(fields))(**fields)  # noqa: PYI024
    kernel.packed_metadata = make_backend(fields["target"]).pack_metadata(kernel.metadata)
    kernel.src = _Signature({n: one.type for n, one in enumerate(manifest.arguments)})
    kernel.hash = fields["hash"]
    kernel.name = fields["name"]
    kernel.asm = {compiled.extension: compiled.binary}
    kernel.metadata_group = {}
    kernel.kernel = compiled.binary
    kernel.module = kernel.function = kernel._run = None  # noqa: SLF001
    return kernel


def _numpy_dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        from ml_dtypes import bfloat16

        dtype: np.dtype[Any] = np.dtype(bfloat16)
        return dtype
    return np.dtype(name)


def _target_name(target: GPUTarget) -> str:
    return f"sm_{target.arch}" if target.backend == "cuda" else str(target.arch)


def _failed(why: str) -> ComputeError:
    return ComputeError(f"users' kernels do not work here: {why}", code="probe_failed")
