"""What a worker does to measure and to show its device's rates.

Runs in the worker, under the conditions that units run under: its priority, its
threads, its executors. Answers three requests of `shoal.compute.frames`: `Measure`
(products by the executor that runs programs of the class, or bytes moved in memory),
`Prove` (the chain of a capability challenge, which is also how the class exact is
measured: the claim then is about the very work that will be asked for) and `Recompute`
(a verifier's few rows of it). What becomes of the figures is `shoal.compute.capability`'s.

Whatever is measured is done once before a clock starts: kernels are compiled, libraries
loaded and memory taken by then. On a card, operands lie there already, and the clock is
read when the card has done what it was given.
"""

from __future__ import annotations

import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from shoal.compute import frames
from shoal.compute.challenge_work import Arithmetic, ChallengeWork
from shoal.compute.convert import convert
from shoal.compute.errors import ComputeError
from shoal.compute.executors.base import NumericClass
from shoal.compute.loading import load
from shoal.protocol.challenge import Row
from shoal.protocol.challenge_terms import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from shoal.compute.executors.base import Executor


@runtime_checkable
class OnCard(Protocol):
    """An executor that can leave tensors on its device: without, their way there counts."""

    def resident(self, handle: Any, inputs: Mapping[str, np.ndarray]) -> Callable[[], None]:
        """What runs a program on inputs that lie there, leaves outputs there, and waits."""
        ...

    def copying(self, size_bytes: int) -> Callable[[], None]:
        """What copies so many bytes there, and waits."""
        ...


def answer(
    request: frames.Measure | frames.Prove | frames.Recompute,
    executors: Mapping[NumericClass, Executor[Any]],
    *,
    card: bool = False,
) -> frames.Measured | frames.Proved | frames.Recomputed:
    """Answer one request to measure or to show something.

    Args:
        request: What is to be measured or shown.
        executors: Those of this process.
        card: Whether they are a card's.

    Raises:
        ComputeError: ``no_executor`` where the class is not to be had here, or nothing
            copies on the card; ``time_limit`` where a chain takes longer than it may.
    """
    match request:
        case frames.Measure(what="memory"):
            copy = (_copy_on_card if card else _copy)(executors, request.size)
            return _repeated(copy, 2 * request.size, request.time_s)
        case frames.Measure():
            executor = _executor_of(executors, NumericClass(request.what))
            products = _products(executor, request.size, request.depth)
            return _repeated(products, request.depth * request.size**3, request.time_s)
        case frames.Prove():
            return _prove(request, _challenge_work(executors))
        case frames.Recompute():
            rows = [Row(seed, row) for seed, row in request.rows]
            leaves = _challenge_work(executors).row_leaves(
                request.root, request.size, rows, request.precision
            )
            return frames.Recomputed(b"".join(leaves))


def _prove(request: frames.Prove, challenge_work: ChallengeWork) -> frames.Proved:
    challenge_work.warm_up(request.precision)
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


def _products(executor: Executor[Any], size: int, depth: int) -> Callable[[], object]:
    """A program of products, each of the one before, prepared as a stranger's would be.

    Numbers are drawn: what a card draws of power, and with it how fast it runs, depends on
    them. Those of each product are about as large as those of the one before.
    """
    numbers = np.random.default_rng(0)
    weights = numbers.standard_normal((size, size), np.float32) / np.float32(size**0.5)
    names = ["x", *(f"y{index}" for index in range(1, depth)), "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [left, "w"], [right]) for left, right in pairwise(names)],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [size, size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [size, size])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    program = convert(model.SerializeToString())
    prepared = executor.prepare(load(program.program_id, program.blobs))
    inputs = {"x": numbers.standard_normal((size, size), np.float32)}
    if isinstance(executor, OnCard):
        return executor.resident(prepared, inputs)
    return lambda: executor.run(prepared, inputs)


def _copy_on_card(
    executors: Mapping[NumericClass, Executor[Any]], size_bytes: int
) -> Callable[[], object]:
    """A copy on the card: one in this machine's memory would say nothing of the card's."""
    for executor in executors.values():
        if isinstance(executor, OnCard):
            return executor.copying(size_bytes)
    raise ComputeError("no executor here copies on the card", code="no_executor")


def _copy(
    executors: Mapping[NumericClass, Executor[Any]], size_bytes: int
) -> Callable[[], object]:
    """A copy by all threads of the exact class, where there are any."""
    source = np.ones(size_bytes, np.uint8)
    target = np.zeros_like(source)
    if NumericClass.EXACT not in executors:
        return lambda: np.copyto(target, source)
    threads = _arithmetic(executors).threads

    def part(start: int, stop: int) -> int:
        np.copyto(target[start:stop], source[start:stop])
        return 0

    return lambda: threads.split(part, size_bytes, cost=1)


def _challenge_work(executors: Mapping[NumericClass, Executor[Any]]) -> ChallengeWork:
    return ChallengeWork(_arithmetic(executors))


def _arithmetic(executors: Mapping[NumericClass, Executor[Any]]) -> Arithmetic:
    """The kernels of the class exact, which the CPU's and the cards' executor both has."""
    executor: Any = _executor_of(executors, NumericClass.EXACT)
    kernels: Arithmetic = executor.kernels
    return kernels


def _executor_of(
    executors: Mapping[NumericClass, Executor[Any]], numeric_class: NumericClass
) -> Executor[Any]:
    if numeric_class not in executors:
        raise ComputeError(
            f"no executor of the class {numeric_class.value!r} works here", code="no_executor"
        )
    return executors[numeric_class]
