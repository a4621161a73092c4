"""Torch on any device it has, classes fp32 and low: CUDA, ROCm, XPU, MPS and CPU.

A program is run by the operators of `shoal.compute.torch_graph`, eagerly, or compiled for
the shapes it meets where that is asked for. fp32 is IEEE single throughout: TF32 and other
shortened products are switched off. low has products and convolutions in bfloat16, added up
in float32; sums, softmax and norms stay in float32.

Torch falls back to the CPU in silence for what MPS lacks, if the environment says so; the
canary refuses that, and any result that lies on another device than the one named.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from onnx import ModelProto, parser

from shoal.compute.errors import ComputeError, ProgramError
from shoal.compute.executors.base import Evidence, NumericClass, Probe
from shoal.compute.graph import printable
from shoal.compute.tolerance import tolerance_of
from shoal.compute.torch_graph.arrays import to_array
from shoal.compute.torch_graph.compiled import Compiled
from shoal.compute.torch_graph.errors import FAILURES, translated
from shoal.compute.torch_graph.graph import Plan, make_plan, placed_input, settle
from shoal.compute.torch_graph.node import Run, dtype_named
from shoal.compute.torch_graph.operators import OPERATORS
from shoal.compute.torch_graph.reading import read

if TYPE_CHECKING:
    from shoal.compute.loading import LoadedProgram

CLASSES: Final = frozenset({NumericClass.FP32, NumericClass.LOW})

_FALLBACK: Final = "PYTORCH_ENABLE_MPS_FALLBACK"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A plan and what it refers to: on a CPU the weights' memory is the program's."""

    plan: Plan
    program: LoadedProgram
    compiled: Compiled | None


class TorchExecutor:
    """The executor ``torch`` of one device.

    Args:
        device: As torch names it, such as ``cuda``, ``cuda:0``, ``xpu``, ``mps`` or
            ``cpu``; ``accelerator`` is the one that torch finds here. ROCm's build of
            torch calls its cards ``cuda``, too.
        numeric_class: fp32 or low.
        threads: How many threads one operator on a CPU may use; None leaves it to torch.
        compile_graphs: Whether to compile each program for the shapes it meets
            (``torch.compile``). That starts compilers, which a locked-in worker cannot.

    Raises:
        ComputeError: ``no_device``: torch has no such device here.
    """

    def __init__(
        self,
        device: str,
        numeric_class: NumericClass,
        *,
        threads: int | None = None,
        compile_graphs: bool = False,
    ) -> None:
        if numeric_class not in CLASSES:
            raise ComputeError(
                f"the executor torch has no class {numeric_class.value}", code="no_executor"
            )
        self._device = _device_named(device)
        self._class = numeric_class
        self._compile = compile_graphs
        self._ended = threading.Event()
        if threads is not None:
            torch.set_num_threads(threads)
        _be_precise()

    def start_threads(self) -> None:
        """Start torch's threads and load the device's libraries.

        See `Executor.start_threads`. Torch starts threads at the first large operator,
        and loads libraries of products and convolutions at the first of these.
        """
        try:
            _warm_up(self._device, self._class)
        except FAILURES as error:
            raise translated(error) from None

    def probe(self) -> Probe:
        """Run a small program whose outputs are known. See `Executor.probe`."""
        if self._device.type == "mps" and os.environ.get(_FALLBACK, "0") != "0":
            raise ComputeError(
                f"{_FALLBACK} is set, so what runs on the CPU would pass for the device",
                code="wrong_provider",
                hint=f"unset {_FALLBACK}",
            )
        run = self._new_run()
        model = _canary()
        try:
            with torch.no_grad():
                plan = make_plan(read(model, OPERATORS), CANARY_WEIGHTS, run)
                inputs = {n: placed_input(a, self._device) for n, a in CANARY_INPUTS.items()}
                outputs = plan.run(inputs, run)
                settle(run)
                arrays = [to_array(y.to(torch.float32)) for y in outputs]
        except ProgramError as error:
            raise ComputeError(
                f"torch does not work on {self._device}: {error.message}", code="probe_failed"
            ) from None
        except FAILURES as error:
            raise translated(error) from None
        strays = {str(y.device) for y in outputs if y.device.type != self._device.type}
        if strays:
            raise ComputeError(
                f"torch computed on {', '.join(sorted(strays))}, not on {self._device}",
                code="wrong_provider",
            )
        relative = tolerance_of(model.SerializeToString(), self._class.value).relative
        for name, found, wanted in zip(
            CANARY_OUTPUTS, arrays, CANARY_OUTPUTS.values(), strict=True
        ):
            right = np.asarray(wanted, np.float32)
            if found.shape != right.shape or not _near(found, right, relative):
                raise ComputeError(
                    f"torch gave a wrong {name} on {self._device}",
                    code="probe_failed",
                    hint="is this build of torch made for this device and its driver?",
                )
        return Probe(
            runtime=f"torch {torch.__version__} {_described(self._device)}",
            numeric_class=self._class,
            evidence=Evidence.EXECUTED,
        )

    def prepare(self, program: LoadedProgram) -> Prepared:
        """Read the graph, place the weights, fold constants. See `Executor.prepare`."""
        self._ended.clear()
        graph = read(program.model, OPERATORS)
        with torch.no_grad():
            plan = make_plan(graph, program.weights, self._new_run())
        compiled = Compiled(plan, self._new_run(lazy=True)) if self._compile else None
        return Prepared(plan, program, compiled)

    def run(self, handle: Prepared, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run the plan once. See `Executor.run`."""
        self._ended.clear()
        ports = handle.program.manifest.inputs
        for port in ports:
            if inputs[port.name].dtype.name != port.dtype:
                raise ProgramError(
                    f"the input {printable(port.name)!r} is {inputs[port.name].dtype.name}, "
                    f"and {port.dtype} is declared",
                    code="wrong_dtype",
                )
        run = self._new_run()
        names = [port.name for port in handle.program.manifest.outputs]
        dtypes = [dtype_named(port.dtype) for port in handle.program.manifest.outputs]
        try:
            with torch.no_grad():
                placed = {p.name: placed_input(inputs[p.name], self._device) for p in ports}
                outputs = self._computed(handle, placed, run)
                settle(run)
                arrays = [
                    to_array(y if y.dtype == dtype else y.to(dtype))
                    for y, dtype in zip(outputs, dtypes, strict=True)
                ]
        except FAILURES as error:
            raise translated(error) from None
        return dict(zip(names, arrays, strict=True))

    def resident(
        self, handle: Prepared, inputs: Mapping[str, np.ndarray]
    ) -> Callable[[], None]:
        """A prepared program with its inputs on the device, to see how fast that is.

        Returns:
            What runs it once, leaves the outputs there and waits for them; raises as `run`.

        Raises:
            ProgramError: The inputs cannot be placed.
            ComputeError: ``memory_limit`` or ``device_lost``.
        """
        run = self._new_run()

        def once() -> None:
            with _translating(), torch.no_grad():
                self._computed(handle, placed, run)
                settle(run)
                self._wait()

        with _translating(), torch.no_grad():
            placed = {name: placed_input(each, self._device) for name, each in inputs.items()}
        return once

    def copying(self, size_bytes: int) -> Callable[[], None]:
        """What copies so many bytes on the device, and waits for that; raises as `resident`."""
        with _translating():
            source = torch.ones(size_bytes // 4, device=self._device)
            target = torch.zeros_like(source)

        def once() -> None:
            with _translating():
                target.copy_(source)
                self._wait()

        return once

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def terminate(self) -> None:
        """End what is going on before its next node. See `Executor.terminate`."""
        self._ended.set()

    def _computed(
        self, handle: Prepared, inputs: Mapping[str, torch.Tensor], run: Run
    ) -> list[torch.Tensor]:
        if handle.compiled is not None:
            outputs: list[torch.Tensor] | None = handle.compiled.run(inputs)
            self._check()
            if outputs is not None:
                return outputs
        results: list[torch.Tensor] = handle.plan.run(inputs, run)
        return results

    def _new_run(self, *, lazy: bool = False) -> Run:
        return Run(
            device=self._device,
            low=self._class is NumericClass.LOW,
            before_node=(lambda: None) if lazy else self._check,
            lazy=lazy,
        )

    def _check(self) -> None:
        if self._ended.is_set():
            raise ComputeError("the program was ended", code="terminated")


@contextmanager
def _translating() -> Iterator[None]:
    try:
        yield
    except FAILURES as error:
        raise translated(error) from None


def _device_named(name: str) -> torch.device:
    try:
        if name == "accelerator":
            found = torch.accelerator.current_accelerator()
            if found is None or not torch.accelerator.is_available():
                raise RuntimeError("torch finds no accelerator here")
            name = found.type
        device = torch.empty(0, device=name).device  # with its index, as tensors have it
    except FAILURES as error:
        raise ComputeError(
            f"torch {torch.__version__} has no device {printable(name)!r} here: "
            f"{printable(str(error).split(chr(10))[0], 200)}",
            code="no_device",
            hint="install the build of torch that is made for it, and its driver",
        ) from None
    return device


def _be_precise() -> None:
    """Switch off whatever shortens float32 products, for the whole process."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    # Long sums of bfloat16 and float16 products are added up in float32.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cudnn.benchmark = False  # trials would make results depend on the moment


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        kind = (
            f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        )
        return f"{kind} ({torch.cuda.get_device_name(device)})"
    if device.type == "xpu":
        return f"XPU ({torch.xpu.get_device_name(device)})"
    return str(device.type).upper()


def _warm_up(device: torch.device, numeric_class: NumericClass) -> None:
    dtype = torch.bfloat16 if numeric_class is NumericClass.LOW else torch.float32
    with torch.no_grad():
        x = torch.ones(512, 512, device=device, dtype=dtype)
        y = torch.softmax((x @ x).float(), -1)
        image = x.reshape(1, 4, 256, 256)
        z = torch.nn.functional.conv2d(
            image, torch.ones(8, 4, 3, 3, device=device, dtype=dtype)
        )
        # Large enough for every thread to have a part of it.
        total = torch.ones(1 << 20, device=device).sin().sum() + y.sum() + z.float().sum()
        total.item()


def _near(found: np.ndarray, right: np.ndarray, relative: float) -> bool:
    room = relative * float(np.abs(right).max())
    return bool((np.abs(found - right) <= room).all())


def _drawn(*shape: int) -> np.ndarray:
    """Float32 in [-1, 1) that use every bit of their mantissas, the same on any machine."""
    count = np.arange(1, int(np.prod(shape)) + 1, dtype=np.uint64)
    words = count * count * np.uint64(0x9E3779B1) % np.uint64(1 << 32)
    return (words.astype(np.float64) / 2.0**31 - 1).astype(np.float32).reshape(shape)


CANARY_INPUTS: Final[Mapping[str, np.ndarray]] = {
    "image": _drawn(1, 16, 10, 10),
    "chosen": np.array([5, -6], np.int64),
}

CANARY_WEIGHTS: Final[Mapping[str, np.ndarray]] = {
    "filters": _drawn(8, 16, 3, 3) / np.float32(16),
    "scale": _drawn(64),
    "projection": _drawn(64, 4),
}

CANARY_OUTPUTS: Final[Mapping[str, list[list[float]]]] = {
    "scores": [
        [0.010536451, 0.009869076, 0.012573013, 0.007383688,
         0.005083771, 0.938029857, 0.003469244, 0.013054900],
        [0.042086978, 0.016986630, 0.766411123, 0.011470096,
         0.046441791, 0.038322113, 0.045797552, 0.032483717],
    ],
    "features": [
        [7.096510226, -0.718173750, -0.080066936, 7.792329534],
        [-1.762945470, -2.524113469, 0.262354431, -0.574544142],
    ],
}  # fmt: skip
"""Written down, from float64: a device or library at fault would be wrong here as well."""


def _canary() -> ModelProto:
    """A convolution, products, a softmax, a norm and a choice: what programs are made of."""
    model: ModelProto = parser.parse_model(
        """
        <ir_version: 9, opset_import: ["" : 20]>
        canary (
            float[1, 16, 10, 10] image, int64[2] chosen,
            float[8, 16, 3, 3] filters, float[64] scale, float[64, 4] projection
        ) => (float[2, 8] scores, float[2, 4] features)
        <int64[2] rows = {8, 64}>
        {
            seen = Conv (image, filters)
            flat = Reshape (seen, rows)
            turned = Transpose <perm = [1, 0]> (flat)
            products = MatMul (flat, turned)
            weights = Softmax (products)
            mixed = MatMul (weights, flat)
            normal = LayerNormalization (mixed, scale)
            projected = MatMul (normal, projection)
            scores = Gather (weights, chosen)
            features = Gather (projected, chosen)
        }
        """
    )
    return model
