"""What a worker does to measure and to show its device's rates.

Runs in the worker, under the conditions that units run under: its priority, its
threads, its executors. Answers three requests of `shoal.compute.frames`: `Measure`
(float32 products by the executor that runs programs of the class, or bytes moved in
memory), `Prove` (the chain of a capability challenge, which is also how the class
exact is measured: the claim then is about the very work that will be asked for) and
`Recompute` (a verifier's few rows of it). What becomes of the figures is
`shoal.compute.capability`'s.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from shoal.compute import frames
from shoal.compute.challenge_work import ChallengeWork
from shoal.compute.convert import convert
from shoal.compute.errors import ComputeError
from shoal.compute.executors.base import NumericClass
from shoal.compute.loading import load
from shoal.protocol.challenge import Row
from shoal.protocol.challenge_terms import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shoal.compute.exact.cpu.kernels import CpuKernels
    from shoal.compute.executors.base import Executor

_ROWS: Final = 1024
_SIZE: Final = 1024
"""Of the float32 product: large enough that nothing but multiplying counts."""

_COPY_BYTES: Final = 64 << 20
"""Copied at once, far over most last-level caches; as much again is written to."""


def answer(
    request: frames.Measure | frames.Prove | frames.Recompute,
    executors: Mapping[NumericClass, Executor[Any]],
) -> frames.Measured | frames.Proved | frames.Recomputed:
    """Answer one request to measure or to show something.

    Raises:
        ComputeError: ``no_executor`` where the class is not to be had here, or
            ``time_limit`` where a chain takes longer than it may.
    """
    match request:
        case frames.Measure(what="memory"):
            return _repeated(_copy(executors), 2 * _COPY_BYTES, request.time_s)
        case frames.Measure():
            product = _float32_product(_executor_of(executors, NumericClass.FP32))
            return _repeated(product, _ROWS * _SIZE * _SIZE, request.time_s)
        case frames.Prove():
            return _prove(request, _challenge_work(executors))
        case frames.Recompute():
            rows = [Row(seed, row) for seed, row in request.rows]
            leaves = _challenge_work(executors).row_leaves(
                request.root, request.size, rows, request.precision
            )
            return frames.Recomputed(b"".join(leaves))


def _prove(request: frames.Prove, challenge_work: ChallengeWork) -> frames.Proved:
    started = time.perf_counter()

    def check() -> None:
        if time.perf_counter() - started > request.time_limit_s:
            raise ComputeError(
                f"the chain took longer than {request.time_limit_s:.2f} s", code="time_limit"
            )

    work = Work(request.rows, request.size, request.steps)
    steps = challenge_work.chain(request.root, work, request.precision, check)
    elapsed_s = time.perf_counter() - started
    leaves = tuple(b"".join(step.leaves) for step in steps)
    return frames.Proved(leaves, tuple(step.root for step in steps), elapsed_s)


def _repeated(once: Callable[[], object], amount: int, time_s: float) -> frames.Measured:
    """Do it once to warm up, then until ``time_s`` is over."""
    once()
    started, count, elapsed_s = time.perf_counter(), 0, 0.0
    while elapsed_s < time_s or count == 0:
        once()
        count += 1
        elapsed_s = time.perf_counter() - started
    return frames.Measured(float(count * amount), elapsed_s)


def _float32_product(executor: Executor[Any]) -> Callable[[], object]:
    """A program of one product, prepared as a stranger's would be."""
    weights = np.ones((_SIZE, _SIZE), np.float32) / np.float32(_SIZE)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [_ROWS, _SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [_ROWS, _SIZE])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    program = convert(model.SerializeToString())
    prepared = executor.prepare(load(program.program_id, program.blobs))
    inputs = {"x": np.ones((_ROWS, _SIZE), np.float32)}
    return lambda: executor.run(prepared, inputs)


def _copy(executors: Mapping[NumericClass, Executor[Any]]) -> Callable[[], object]:
    """A copy, by all threads of the exact class where there are any."""
    source = np.ones(_COPY_BYTES, np.uint8)
    target = np.zeros_like(source)
    if NumericClass.EXACT not in executors:
        return lambda: np.copyto(target, source)
    threads = _kernels(executors).threads

    def part(start: int, stop: int) -> int:
        np.copyto(target[start:stop], source[start:stop])
        return 0

    return lambda: threads.split(part, _COPY_BYTES, cost=1)


def _challenge_work(executors: Mapping[NumericClass, Executor[Any]]) -> ChallengeWork:
    return ChallengeWork(_kernels(executors))


def _kernels(executors: Mapping[NumericClass, Executor[Any]]) -> CpuKernels:
    executor = _executor_of(executors, NumericClass.EXACT)
    # Both modules are loaded where the executor is: a locked-in worker could not load them.
    from shoal.compute.exact.cpu.kernels import CpuKernels
    from shoal.compute.executors.exact import Exact

    assert isinstance(executor, Exact)
    assert isinstance(executor.kernels, CpuKernels)
    return executor.kernels


def _executor_of(
    executors: Mapping[NumericClass, Executor[Any]], numeric_class: NumericClass
) -> Executor[Any]:
    if numeric_class not in executors:
        raise ComputeError(
            f"no executor of the class {numeric_class.value!r} works here", code="no_executor"
        )
    return executors[numeric_class]
